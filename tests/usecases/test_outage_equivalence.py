"""The database lives as the pure core does, whenever the jobs run: same states, same rows, same instants.

A generated life is lived twice. In the pure core time passes in one go. In the database it passes by beat
jobs at generated moments, some of which die before they commit, or not at all before the next deed; each
deed is a transaction of its own, as an operation is.
"""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import Connection

from shared.config import Settings
from shared.db import account_state, accounts, bank_transfers
from shared.db.account_state import Change, OpenedAccount
from shared.db.engine import Database, Tx
from shared.domain.account import AccountState
from shared.domain.invoice import Invoice, InvoiceStatus
from shared.domain.lifecycle import Transition
from shared.domain.plan import Plan
from shared.ids import new_id
from shared.usecases.advance_due_accounts import advance_due_accounts
from tests.lives import CountedIds, History, Life, as_loaded, do, gaps, histories
from tests.office import Office

Tick = tuple[timedelta, bool]  # how long after the one before, and whether its worker dies before it commits


class StoredLife(Life):
    """A life in the database: read for each deed, written after it; time passes by the beat jobs."""

    office: Office
    ids: CountedIds
    connection: Connection | None = None
    ids_before: int
    opened: OpenedAccount | None = None

    @classmethod
    def begin(cls, history: History, office: Office, first_id: int) -> "StoredLife":
        ids = CountedIds(first_id)
        life = cls(history.rules(ids), history.start, history.time_zone)
        life.office, life.ids = office, ids
        signed_up = history.begin(first_id)
        account = Life.of(history.rules(ids), history.start, time_zone=history.time_zone)
        assert account.state == signed_up.state
        tx = life._begin()
        accounts.create(
            tx,
            account_id=signed_up.account.id,
            name="Ada",
            time_zone=history.time_zone,
            test_clock_id=None,
        )
        accounts.create_user(
            tx,
            user_id=signed_up.account.id,
            account_id=signed_up.account.id,
            email=f"{signed_up.account.id}@example.com",
            password_hash="hash",
            role="owner",
        )
        state = AccountState(
            account=signed_up.account,
            subscriptions=tuple(signed_up.subscriptions.values()),
            periods=tuple(signed_up.periods.values()),
            grants=tuple(signed_up.grants.values()),
            transactions=tuple(signed_up.ledger),
        )
        account_state.write(tx, [Change(AccountState(account=signed_up.account), state)], life.rules)
        life.state = signed_up.state
        life._commit()
        return life

    def until(self, at: datetime, *, steps: int | None = None) -> None:
        del steps
        while sum(self.run_job(transition, at) for transition in Transition):
            pass
        self.now = max(self.now, at)

    def run_job(self, transition: Transition, as_of: datetime, *, dies: bool = False) -> int:
        tx = self._begin()
        claimed = advance_due_accounts(tx, self.rules, transition, as_of=as_of, limit=100)
        if dies:
            self._roll_back()
        else:
            self._commit()
        return claimed

    def _opened(self, at: datetime) -> AccountState:
        self.now = max(self.now, at)
        self.opened = account_state.open_account(self._begin(), self.account.id, self.rules, now=at)
        return self.opened.state

    def _become(self, decided: AccountState) -> None:
        assert self.opened is not None
        tx = self._tx()
        for invoice in decided.invoices:
            self._keep_transfer(tx, invoice)
        account_state.write(tx, [Change(self.opened.loaded, decided)], self.rules)
        self._commit()
        assert self.state == as_loaded(decided), "what is written is what is loaded"

    def _keep_transfer(self, tx: Tx, invoice: Invoice) -> None:
        """Submit or reject what the decision says was submitted or rejected; what is paid or void stays undecided."""
        pending = tx.maybe(
            "SELECT id FROM bank_transfers WHERE invoice_id = %(id)s AND status = 'pending'", id=invoice.id
        )
        if pending is None and invoice.transfer_pending_since is not None:
            stored = tx.maybe("SELECT id FROM invoices WHERE id = %(id)s", id=invoice.id)
            assert stored is not None
            bank_transfers.submit(
                tx,
                bank_transfer_id=new_id(),
                account_id=self.account.id,
                invoice_id=invoice.id,
                payer_name=None,
                transferred_on=None,
                note=None,
                submitted_by=self.account.id,
                at=invoice.transfer_pending_since,
            )
        if pending is not None and invoice.transfer_pending_since is None and invoice.status is InvoiceStatus.OPEN:
            bank_transfers.reject(tx, pending.id, reason="nothing came", decided_by=self.office.admin_id, at=self.now)

    # --- transactions by hand, for they end in another method than they begin in

    def _begin(self) -> Tx:
        self._roll_back()
        self.ids_before = self.ids.next
        self.connection = self.office.database.connect()
        return Tx(self.connection)

    def _tx(self) -> Tx:
        assert self.connection is not None
        return Tx(self.connection)

    def _roll_back(self) -> None:
        """Nothing has happened, and no id was given."""
        if self.connection is not None:
            self.connection.rollback()
            self.connection.close()
            self.connection = None
            self.ids.next = self.ids_before

    def _commit(self) -> None:
        tx = self._tx()
        (self.state,) = account_state.read(tx, [self.account.id])
        invoices = tx.rows("SELECT * FROM invoices WHERE account_id = %(id)s ORDER BY id", id=self.account.id)
        pending = {one.id: one for one in self.state.invoices}
        self.invoices = {row.id: pending.get(row.id) or as_invoice(row) for row in invoices}
        assert self.connection is not None
        self.connection.commit()
        self.connection.close()
        self.connection = None

    def end(self) -> None:
        """Out of the way of the next example."""
        self._roll_back()
        self.office.change(
            "UPDATE accounts SET parked_at = now(), parked_reason = 'over' WHERE id = %(id)s", id=self.account.id
        )


def as_invoice(row: Any) -> Invoice:
    names = Invoice.__struct_fields__
    return Invoice(**{name: getattr(row, name) for name in names if name != "transfer_pending_since"})


def store_plans(office: Office, plans: list[Plan]) -> None:
    """Make these the catalogue, in place of whatever has their ids."""
    with office.database.transaction() as tx:
        for plan in plans:
            terms = {
                name: value if isinstance(value, int | UUID | None) else str(value)
                for name, value in asdict(plan).items()
                if name != "assignable_by"
            }
            tx.execute(
                f"""
                INSERT INTO plans ({", ".join(terms)}) VALUES ({", ".join(f"%({name})s" for name in terms)})
                ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in terms)}
                """,
                **terms,
            )
            for assigner in plan.assignable_by:
                if assigner != "signup" or plan.slug.startswith("free"):
                    tx.execute(
                        """
                        INSERT INTO plan_assigners (plan_id, plan_slug, assigned_by)
                        VALUES (%(id)s, %(slug)s, %(assigner)s) ON CONFLICT DO NOTHING
                        """,
                        id=plan.id,
                        slug=plan.slug,
                        assigner=str(assigner),
                    )


TABLES = {
    "subscriptions": "id",
    "subscription_periods": "starts_at",
    "invoices": "id",
    "credit_grants": "id",
    "credit_transactions": "seq",
}


def test_the_database_ends_where_the_pure_core_does(database: Database, settings: Settings) -> None:
    office = Office(database, settings)
    office.change("DELETE FROM plan_assigners")
    office.change("DELETE FROM plans")
    examples = iter(range(1, 1_000_000))

    @bounds(max_examples=30, derandomize=True)
    @given(histories(longest=8), st.lists(st.tuples(gaps, st.booleans()), max_size=4))
    def live(history: History, ticks: list[Tick]) -> None:
        first_id = next(examples) << 32
        store_plans(office, history.plans)
        pure, stored = history.begin(first_id), StoredLife.begin(history, office, first_id)
        try:
            assert stored.state == pure.state
            for gap, deed in [*history.deeds, (timedelta(days=100), "nothing")]:
                at = pure.now + gap
                for nap, dies in ticks:
                    for transition in Transition:
                        stored.run_job(transition, min(stored.now + nap, at), dies=dies)
                done = do(pure, deed, at)
                assert do(stored, deed, at) == done
                assert stored.state == pure.state or not done
            assert rows_of(office, pure) == {
                "subscriptions": as_dicts(pure.subscriptions.values()),
                "subscription_periods": as_dicts(pure.period_list()),
                "invoices": as_dicts(pure.invoices.values()),
                "credit_grants": as_dicts(pure.grants.values()),
                "credit_transactions": as_dicts(pure.ledger),
            }
        finally:
            stored.end()

    live()


def as_dicts(rows: Any) -> list[dict[str, Any]]:
    return [as_dict(row) for row in rows]


def as_dict(row: Struct) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "transfer_pending_since"}


def rows_of(office: Office, life: Life) -> dict[str, list[dict[str, Any]]]:
    """Every row of the account, cut to what the pure core knows of it."""
    examples: dict[str, Any] = {
        "subscriptions": life.subscriptions.values(),
        "subscription_periods": life.period_list(),
        "invoices": life.invoices.values(),
        "credit_grants": life.grants.values(),
        "credit_transactions": life.ledger,
    }
    found = {}
    for table, order in TABLES.items():
        rows = office.rows(f"SELECT * FROM {table} WHERE account_id = %(id)s ORDER BY {order}", id=life.account.id)
        names = [name for one in list(examples[table])[:1] for name in as_dict(one)]
        found[table] = [{name: getattr(row, name) for name in names} for row in rows]
    return found
