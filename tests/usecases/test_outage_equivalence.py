"""However time is cut into ticks, the database ends where the pure core does: same rows, same instants.

Several accounts live one history, in zones and on plans of their own, their deeds interleaved. The pure core lives it
in one go; the database once per pattern of ticks, each time with fresh accounts. What it holds of them in the end is
compared, column by column, and every invariant is checked.

A state machine collects the history, and the pure core lives it on the way. The database is told when it is complete:
each pattern has to begin at the start.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from random import Random
from threading import Barrier
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import Row

from shared.config import Settings
from shared.db import account_state
from shared.db.engine import Database, S, Tx
from shared.db.plans import load_rules
from shared.domain import lifecycle
from shared.domain.invoice import Invoice, InvoiceStatus, PaymentMethod
from shared.domain.lifecycle import Transition
from shared.domain.operation import OperationKind
from shared.domain.plan import Plan
from shared.domain.requests import CancelSubscription, OpenInvoice, SubmitBankTransfer
from shared.errors import BillingError
from shared.messages import Job
from shared.usecases.advance_due_accounts import advance_due_accounts
from shared.usecases.release_expired_holds import release_expired_holds
from tests.factories import rules
from tests.lives import LIKELY, ZONES, CountedIds, Life, assert_sound, catalogues, do, gaps, starts, transfer_graces
from tests.office import Office

FEWEST_ACCOUNTS, MOST_ACCOUNTS = 2, 4
zones = st.sampled_from(ZONES)
# Consumption above all, for it is what a job that was late could refuse.
WHAT = ["consume little", "hold", "consume much", "hold", "capture", *LIKELY]
AFTERWARDS = timedelta(days=100)
HOUR = timedelta(hours=1)


# --- an account in the database -----------------------------------------------------------------------------


class StoredLife:
    """An account in the database: asked of it as customers and admins do, executed as workers do."""

    def __init__(self, office: Office, at: datetime, time_zone: str) -> None:
        self.office = office
        office.now = at
        self.who = office.sign_up(time_zone=time_zone)
        self.holds: list[tuple[UUID, int]] = []
        self.deeds = 0

    @property
    def open_invoices(self) -> list[Invoice]:
        return [one for one in self.office.state(self.who).invoices if one.status is InvoiceStatus.OPEN]

    def until(self, at: datetime) -> None:
        """Whoever names an invoice has seen it, so what was due has been written."""
        self.office.now = at
        with self.office.database.transaction() as tx:
            if account_state.is_due(tx, self.who.account_id, now=at):
                rules = load_rules(tx, self.office.settings)
                account_state.catch_up(tx, self.who.account_id, rules, now=at)

    def checkout(self, at: datetime, slug: str) -> Invoice | None:
        request = OpenInvoice(plan=slug, payment_method=PaymentMethod.MANUAL)
        row = self._ask(at, OperationKind.OPEN_INVOICE, request)
        return next((one for one in self.open_invoices if str(one.id) == row.result["invoice_id"]), None)

    def pay(self, at: datetime, invoice: Invoice | None = None, method: PaymentMethod = PaymentMethod.MANUAL) -> None:
        self._begin(at)
        assert invoice is not None
        name = f"payment {self.deeds} of {self.who.account_id}"
        if method is PaymentMethod.SANDBOX:
            self.office.card_payment(self.who, invoice.id, name, amount_minor=invoice.amount_minor)
            row = self.office.execute(self.office.confirmation(self.who, invoice.id, name))
        else:
            amount = invoice.amount_minor
            row = self.office.record_payment(self.who, invoice.id, external_payment_id=name, amount_minor=amount)
        require(row)

    def buy(self, at: datetime, slug: str) -> None:
        self.pay(at, self.checkout(at, slug))

    def submit(self, at: datetime, invoice: Invoice | None = None) -> None:
        assert invoice is not None
        self._ask(at, OperationKind.SUBMIT_BANK_TRANSFER, SubmitBankTransfer(invoice_id=invoice.id))

    def approve(self, at: datetime, invoice: Invoice | None = None) -> None:
        self._begin(at)
        assert invoice is not None
        name = f"payment {self.deeds} of {self.who.account_id}"
        terms = {"amount_minor": invoice.amount_minor, "bank_transaction_id": name}
        require(self.office.execute(self.office.approval(self.who, self._transfer_for(invoice), **terms)))

    def reject(self, at: datetime, invoice: Invoice | None = None) -> None:
        assert invoice is not None
        self.office.now = at
        require(self.office.execute(self.office.rejection(self.who, self._transfer_for(invoice))))

    def cancel(self, at: datetime, *, at_period_end: bool = True) -> None:
        self._ask(at, OperationKind.CANCEL_SUBSCRIPTION, CancelSubscription(at_period_end=at_period_end))

    def assign(self, at: datetime, slug: str, *, at_period_end: bool = False) -> None:
        self.office.now = at
        require(self.office.assign(self.who, slug, at_period_end=at_period_end))

    def adjust(self, at: datetime, amount: int, expires_at: datetime | None = None) -> None:
        self._begin(at)
        require(self.office.adjust(self.who, amount, expires_at))

    def consume(self, at: datetime, amount: int) -> None:
        self._begin(at)
        self.office.consume(self.who, amount, f"call {self.deeds}")

    def hold(self, at: datetime, amount: int, ttl: timedelta) -> None:
        self._begin(at)
        hold_id = self.office.hold(self.who, amount, f"hold {self.deeds}", int(ttl.total_seconds()))
        self.holds.append((hold_id, amount))

    def capture(self, at: datetime) -> None:
        self.office.now = at
        if self.holds:
            hold_id, amount = self.holds[-1]
            self.office.capture(self.who, hold_id, (amount + 1) // 2)

    def release(self, at: datetime) -> None:
        self.office.now = at
        if self.holds:
            self.office.release(self.who, self.holds[-1][0])

    def _begin(self, at: datetime) -> None:
        self.office.now = at
        self.deeds += 1

    def _ask(self, at: datetime, kind: OperationKind, request: Struct) -> Any:
        self.office.now = at
        return require(self.office.ask(kind, request, account_id=self.who.account_id, by=self.who.user_id))

    def _transfer_for(self, invoice: Invoice) -> UUID:
        sql = "SELECT id FROM bank_transfers WHERE invoice_id = %(id)s AND status = 'pending'"
        found: UUID = self.office.row(sql, id=invoice.id).id
        return found


def require(row: Row[Any]) -> Row[Any]:
    """An operation that succeeded; else raises what it was refused with."""
    if row.status != "succeeded":
        raise type("Refused", (BillingError,), {"code": row.problem["code"]})(row.problem["detail"])
    return row


# --- patterns of ticks ---------------------------------------------------------------------------------------

JOBS = {transition.job: transition for transition in Transition}


class DiedError(BaseException):
    """A worker is gone in the middle of its work or before its commit; nobody catches that."""


class Deed(NamedTuple):
    """What is done at an instant to the account of that number, and the code of the refusal that it met."""

    at: datetime
    number: int
    what: str
    refused: str | None


class Telling:
    """A history, told to the database under one pattern of ticks."""

    def __init__(self, office: Office, pattern: "Pattern", start: datetime, chance: Random) -> None:
        self.office = office
        self.pattern = pattern
        self.ticked_at = start
        self.chance = chance
        self.lives: list[StoredLife] = []
        self.seen: Counter[str] = Counter()

    def tell(self, deeds: list[Deed], end: datetime) -> None:
        """Do all of it, and let time pass until `end`; what the pattern has left undone is done there."""
        for deed in deeds:
            self.pattern(self, deed.at)
            if deed.number == len(self.lives):
                self.lives.append(StoredLife(self.office, deed.at, deed.what))
            else:
                refused = do(self.lives[deed.number], deed.what, deed.at)
                assert refused == deed.refused, (self.pattern.__name__, deed)
        self.pattern(self, end)
        self.tick(end)
        assert not self.office.rows("SELECT parked_reason FROM accounts WHERE parked_at IS NOT NULL")

    def next_due(self) -> datetime | None:
        """When the next tick will find something to do; any before it would change nothing."""
        at: datetime | None = self.office.row(
            """
            SELECT least(
                (SELECT min(next_transition_at) FROM accounts WHERE parked_at IS NULL),
                (SELECT min(expires_at) FROM holds WHERE status = 'open')
            ) AS at
            """
        ).at
        return at

    def tick(self, at: datetime) -> None:
        """Every beat job to its end, in large batches."""
        while (due := self.next_due()) is not None and due <= at:
            assert sum(self.run_job(job, at, limit=100) for job in self.due_jobs(at)), "what is due is done"

    def due_jobs(self, at: datetime) -> list[Job]:
        """Those that will find something; the others would change nothing."""
        rows = self.office.rows(
            """
            SELECT next_transition AS name FROM accounts WHERE next_transition_at <= %(at)s AND parked_at IS NULL
            UNION SELECT 'hold' FROM holds WHERE status = 'open' AND expires_at <= %(at)s
            """,
            at=at,
        )
        return [Job.RELEASE_HOLDS if row.name == "hold" else Transition(row.name).job for row in rows]

    def run_job(self, job: Job, at: datetime, *, limit: int) -> int:
        """Until nothing is due; how many accounts it took up."""
        taken = 0
        while passed := self.one_pass(job, at, limit=limit):
            taken += passed
        return taken

    def one_pass(self, job: Job, at: datetime, *, limit: int, statements: int | None = None) -> int:
        """One transaction of a job; how many accounts it took up. statements: after so many its worker dies."""
        with self.office.database.transaction() as immortal:
            tx = immortal if statements is None else MortalTx(immortal, statements)
            rules = load_rules(tx, self.office.settings)
            if job is Job.RELEASE_HOLDS:
                passed = release_expired_holds(tx, rules, at, limit)
            else:
                passed = advance_due_accounts(tx, rules, JOBS[job], as_of=at, limit=limit)
            if statements is not None:
                raise DiedError
        self.seen["accounts taken up"] += passed
        return passed


class MortalTx(Tx):
    """A transaction whose worker dies before its next statement, after so many."""

    def __init__(self, tx: Tx, statements: int) -> None:
        super().__init__(tx.connection)
        self._left = statements

    def _live_on(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise DiedError

    def rows(self, sql: str, **params: Any) -> Sequence[Row[Any]]:
        self._live_on()
        return super().rows(sql, **params)

    def scalar(self, sql: str, **params: Any) -> Any:
        self._live_on()
        return super().scalar(sql, **params)

    def execute(self, sql: str, **params: Any) -> int:
        self._live_on()
        return super().execute(sql, **params)

    def structs(self, kind: type[S], sql: str, **params: Any) -> list[S]:
        self._live_on()
        return super().structs(kind, sql, **params)

    def copy(self, sql: str, types: Mapping[str, str], rows: Iterable[tuple[Any, ...]]) -> None:
        self._live_on()
        super().copy(sql, types, rows)


Pattern = Callable[[Telling, datetime], None]


def every_hour(telling: Telling, to: datetime) -> None:
    """Hours in which nothing is due are left out."""
    while (due := telling.next_due()) is not None:
        hour = due.replace(minute=0, second=0, microsecond=0)
        at = hour if hour == due else hour + HOUR
        if at > to:
            return
        telling.tick(at)


def every_forty_days(telling: Telling, to: datetime) -> None:
    while telling.ticked_at + timedelta(days=40) <= to:
        telling.ticked_at += timedelta(days=40)
        telling.tick(telling.ticked_at)


def two_workers_at_once(telling: Telling, to: datetime) -> None:
    """Every now and then both run all jobs as of the same instant, one account in a batch."""
    while telling.ticked_at < to:
        at = telling.ticked_at = min(to, telling.ticked_at + timedelta(hours=telling.chance.randint(1, 1_000)))
        if not telling.due_jobs(at):
            continue
        together = Barrier(2)

        def work(_: int, at: datetime = at, together: Barrier = together) -> int:
            together.wait()
            return sum(telling.run_job(job, at, limit=1) for job in (*JOBS, Job.RELEASE_HOLDS))

        with ThreadPoolExecutor(2) as threads:
            taken = list(threads.map(work, range(2)))
        telling.seen["both workers took up accounts"] += all(taken)


def workers_that_die(telling: Telling, to: datetime) -> None:
    """Some batches die after some statement or before their commit; what they leave may wait for the next tick."""
    while telling.ticked_at < to:
        telling.ticked_at += timedelta(hours=telling.chance.randint(1, 500))
        at = min(to, telling.ticked_at)
        for job in telling.due_jobs(at):
            for _ in range(telling.chance.randint(1, 3)):
                statements = telling.chance.choice([None, telling.chance.randint(0, 20)])
                try:
                    telling.one_pass(job, at, limit=telling.chance.randint(1, 2), statements=statements)
                except DiedError:
                    telling.seen["a worker died"] += 1


def once_at_the_end(telling: Telling, to: datetime) -> None:
    """Deeds bring their account up to date; nothing else does."""


PATTERNS: list[Pattern] = [every_hour, every_forty_days, two_workers_at_once, workers_that_die, once_at_the_end]


# --- what is compared ----------------------------------------------------------------------------------------

Books = dict[str, list[dict[str, Any]]]

# Rows of an account, in the order in which they were made.
BOOKS = {
    "accounts": "SELECT * FROM accounts WHERE id = %(id)s",
    "subscriptions": "SELECT * FROM subscriptions WHERE account_id = %(id)s ORDER BY id",
    "subscription_periods": "SELECT * FROM subscription_periods WHERE account_id = %(id)s ORDER BY starts_at",
    "invoices": "SELECT * FROM invoices WHERE account_id = %(id)s ORDER BY id",
    "credit_grants": "SELECT * FROM credit_grants WHERE account_id = %(id)s ORDER BY id",
    "credit_transactions": "SELECT * FROM credit_transactions WHERE account_id = %(id)s ORDER BY seq",
    "holds": "SELECT * FROM holds WHERE account_id = %(id)s ORDER BY id",
    "hold_allocations": """
        SELECT l.* FROM hold_allocations l JOIN holds h ON h.id = l.hold_id
        WHERE h.account_id = %(id)s ORDER BY l.hold_id, l.grant_id
        """,
    "payments": "SELECT * FROM payments WHERE account_id = %(id)s ORDER BY id",
    "bank_transfers": "SELECT * FROM bank_transfers WHERE account_id = %(id)s ORDER BY id",
    "events": "SELECT * FROM events WHERE account_id = %(id)s ORDER BY id",
    "subscription_events": """
        SELECT * FROM events WHERE account_id = %(id)s AND kind LIKE 'subscription.%%' ORDER BY id
        """,
    "audit_log": "SELECT * FROM audit_log WHERE account_id = %(id)s ORDER BY id",
}
# When a row was written, and what counts the rows of all accounts in the order of their writing.
OF_THE_WRITING = {"created_at", "number", "reference"}
COUNTED = {"events", "subscription_events"}
AN_ID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}")


def is_of_the_writing(table: str, column: str) -> bool:
    return column in OF_THE_WRITING or (table in COUNTED and column == "id")


def stored_books(office: Office, life: StoredLife) -> Books:
    with office.database.transaction() as tx:
        return {
            name: [
                {column: value for column, value in row._asdict().items() if not is_of_the_writing(name, column)}
                for row in tx.rows(sql, id=life.who.account_id)
            ]
            for name, sql in BOOKS.items()
        }


def pure_books(life: Life) -> Books:
    due_at, transition = lifecycle.next_transition(life.state) or (None, None)
    follows = {
        "access_ends_at": life.access_ends_at(),
        "next_transition": transition,
        "next_transition_at": due_at,
        "low_credits": lifecycle.low_credits(life.state, life.rules),
    }
    held = {"held_credits": sum(grant.held for grant in life.grants.values())}
    return {
        "accounts": [asdict(life.account) | follows | held],
        "subscriptions": [asdict(one) | {"renews_at": one.renews_at} for one in life.subscriptions.values()],
        "subscription_periods": [asdict(one) for one in life.period_list()],
        "invoices": [without(asdict(one), "transfer_pending_since") for one in life.invoices.values()],
        "credit_grants": [asdict(one) for one in life.grants.values()],
        "credit_transactions": [asdict(one) for one in life.ledger],
        "subscription_events": [asdict(one) | {"data": msgspec.to_builtins(one.data)} for one in life.events],
        "holds": [without(asdict(one), "parts") for one in life.holds],
    }


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column != name}


def same_columns(books: Books, other: Books) -> Books:
    """Cut to the tables and columns that the other books have."""
    columns = {name: set(rows[0]) if rows else set() for name, rows in other.items()}
    return {
        name: [{column: value for column, value in row.items() if column in columns[name]} for row in books[name]]
        for name in other
    }


def with_names(books: Books, plans: list[Plan]) -> Books:
    """Ids, alone or within a text, become the order in which they appear."""
    names = {plan.id.hex: plan.slug for plan in plans}

    def name(text: str) -> str:
        return names.setdefault(text.replace("-", ""), f"#{len(names)}")

    def named(value: Any) -> Any:
        match value:
            case UUID():
                return name(str(value))
            case str():
                return AN_ID.sub(lambda found: name(found[0]), value)
            case dict():
                return {key: named(value[key]) for key in sorted(value)}
            case _:
                return value

    return {table: [named(row) for row in rows] for table, rows in books.items()}


# --- the test ------------------------------------------------------------------------------------------------


def histories_told_to(
    database: Database, settings: Settings, reset_sql: str, seen: dict[Pattern, Counter[str]]
) -> type[RuleBasedStateMachine]:
    class Histories(RuleBasedStateMachine):
        """Accounts sign up and have things done to them, in the pure core; then the database is told."""

        lives: list[Life]
        deeds: list[Deed]

        @initialize(
            plans=catalogues,
            transfer_grace_days=transfer_graces,
            at=starts,
            zones=st.lists(zones, min_size=FEWEST_ACCOUNTS, max_size=FEWEST_ACCOUNTS),
            seed=st.integers(0, 2**16),
        )
        def begin(self, plans: list[Plan], transfer_grace_days: int, at: datetime, zones: list[str], seed: int) -> None:
            self.plans, self.transfer_grace_days, self.seed = plans, transfer_grace_days, seed
            self.start = self.now = at
            self.lives, self.deeds = [], []
            for zone in zones:
                self.sign_up(zone)

        @precondition(lambda self: len(self.lives) < min(MOST_ACCOUNTS, len(self.deeds) // 5))
        @rule(gap=gaps, zone=zones)
        def another(self, gap: timedelta, zone: str) -> None:
            self.now += gap
            self.sign_up(zone)

        @rule(who=st.integers(0, MOST_ACCOUNTS - 1), gap=gaps, what=st.sampled_from(WHAT))
        def do(self, who: int, gap: timedelta, what: str) -> None:
            self.now += gap
            number = who % len(self.lives)
            refused = do(self.lives[number], what, self.now)
            self.deeds.append(Deed(self.now, number, what, refused))

        def sign_up(self, zone: str) -> None:
            terms = rules(self.plans, transfer_grace_days=self.transfer_grace_days, new_id=CountedIds())
            self.deeds.append(Deed(self.now, len(self.lives), zone, None))
            self.lives.append(Life.of(terms, self.now, time_zone=zone))

        @invariant()
        def sound(self) -> None:
            for life in getattr(self, "lives", []):
                assert_sound(life)

        def teardown(self) -> None:
            """The history is complete: tell it to the database."""
            if len(getattr(self, "deeds", [])) <= FEWEST_ACCOUNTS:
                return
            end = self.now + AFTERWARDS
            for life in self.lives:
                life.until(end)
            with database.transaction() as tx:
                tx.connection.exec_driver_sql(reset_sql)
            office = Office(database, settings.model_copy(update={"transfer_grace_days": self.transfer_grace_days}))
            replace_plans(office, self.plans)
            told: dict[str, list[Books]] = {}
            for pattern in PATTERNS:
                telling = Telling(office, pattern, self.start, Random(self.seed))
                telling.tell(self.deeds, end)
                told[pattern.__name__] = [stored_books(office, life) for life in telling.lives]
                seen[pattern].update(telling.seen)
            self.compare(told)
            assert office.findings() == []

        def compare(self, told: dict[str, list[Books]]) -> None:
            for name, accounts in told.items():
                for stored, life, first in zip(accounts, self.lives, told[every_hour.__name__], strict=True):
                    pure = pure_books(life)
                    known = same_columns(stored, pure)
                    assert with_names(known, self.plans) == with_names(pure, self.plans), name
                    assert with_names(stored, self.plans) == with_names(first, self.plans), name

    return Histories


def replace_plans(office: Office, plans: list[Plan]) -> None:
    """Make these the catalogue."""
    with office.database.transaction() as tx:
        tx.execute("DELETE FROM plan_assigners")
        tx.execute("DELETE FROM plans")
        for plan in plans:
            terms = {
                name: value if isinstance(value, int | UUID | None) else str(value)
                for name, value in asdict(plan).items()
                if name != "assignable_by"
            }
            columns, values = ", ".join(terms), ", ".join(f"%({name})s" for name in terms)
            tx.execute(f"INSERT INTO plans ({columns}) VALUES ({values})", **terms)
            for assigner in plan.assignable_by:
                if assigner != "signup" or plan.slug.startswith("free"):
                    tx.execute(
                        """
                        INSERT INTO plan_assigners (plan_id, plan_slug, assigned_by)
                        VALUES (%(id)s, %(slug)s, %(assigner)s)
                        """,
                        id=plan.id,
                        slug=plan.slug,
                        assigner=str(assigner),
                    )


def test_however_time_is_cut_into_ticks_the_database_ends_where_the_pure_core_does(
    database: Database, settings: Settings, reset_sql: str
) -> None:
    seen: dict[Pattern, Counter[str]] = {pattern: Counter() for pattern in PATTERNS}
    run_state_machine_as_test(
        histories_told_to(database, settings, reset_sql, seen),
        settings=bounds(max_examples=8, stateful_step_count=24, derandomize=True),
    )
    assert seen[two_workers_at_once]["both workers took up accounts"] > 0
    assert seen[workers_that_die]["a worker died"] > 50
    # What took the hourly jobs many steps was applied in one.
    assert seen[every_hour]["accounts taken up"] > 5 * seen[once_at_the_end]["accounts taken up"] > 0
