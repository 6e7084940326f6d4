"""Load accounts with all that `lifecycle` decides on, and write back what it decided, as sets.

Locks are taken in one order: operation, account, and under the account's lock everything that
belongs to it; the counter of invoice numbers comes last. Batches lock accounts in id order or skip
the locked ones, so no two workers wait for each other in a circle.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, TypeVar
from uuid import UUID

from msgspec import Struct

from shared.db import charges, events, invoices, operations
from shared.db.bulk import changed_fields, columns, delete_many, insert_many, update_many
from shared.db.engine import Tx
from shared.domain.account import Account, AccountState
from shared.domain.credits import CreditGrant
from shared.domain.invoice import Invoice
from shared.domain.lifecycle import (
    Transition,
    access_ends_at,
    acted,
    advance,
    advance_to_charge,
    low_credits,
    next_transition,
)
from shared.domain.operation import SCHEDULED, Operation
from shared.domain.plan import Rules
from shared.domain.subscription import Period, Subscription
from shared.errors import NotFound

B = TypeVar("B", Subscription, Period, Invoice, CreditGrant)

SUBSCRIPTION_TYPES: Final = {
    "id": "uuid",
    "account_id": "uuid",
    "plan_id": "uuid",
    "assigned_by": "text",
    "status": "text",
    "price_minor": "bigint",
    "currency": "text",
    "interval": "text",
    "interval_count": "integer",
    "time_zone": "text",
    "started_at": "timestamptz",
    "phase": "integer",
    "anchor_at": "timestamptz",
    "period_index": "integer",
    "current_period_starts_at": "timestamptz",
    "current_period_ends_at": "timestamptz",
    "renews_at": "timestamptz",
    "credit_month_index": "integer",
    "next_credit_at": "timestamptz",
    "trial_ends_at": "timestamptz",
    "activated_at": "timestamptz",
    "grace_ends_at": "timestamptz",
    "grace_extended": "boolean",
    "cancel_at_period_end": "boolean",
    "next_plan_id": "uuid",
    "next_plan_assigned_by": "text",
    "payment_method": "text",
    "external_payment_id": "text",
    "ended_at": "timestamptz",
    "end_reason": "text",
}
PERIOD_TYPES: Final = {
    "subscription_id": "uuid",
    "account_id": "uuid",
    "plan_id": "uuid",
    "phase": "integer",
    "period_index": "integer",
    "starts_at": "timestamptz",
    "ends_at": "timestamptz",
    "previous_ends_at": "timestamptz",
}
PERIOD_KEY: Final = ("subscription_id", "starts_at")
_PERIOD_KEY: Final = attrgetter(*PERIOD_KEY)
GRANT_TYPES: Final = {
    "id": "uuid",
    "account_id": "uuid",
    "source": "text",
    "amount": "bigint",
    "remaining": "bigint",
    "held": "bigint",
    "priority": "smallint",
    "effective_at": "timestamptz",
    "expires_at": "timestamptz",
    "subscription_id": "uuid",
    "phase": "integer",
    "credit_month_index": "integer",
}
TRANSACTION_TYPES: Final = {
    "account_id": "uuid",
    "seq": "bigint",
    "grant_id": "uuid",
    "kind": "text",
    "amount": "bigint",
    "balance_after": "bigint",
    "idempotency_key": "text",
    "line": "integer",
    "effective_at": "timestamptz",
    "source": "text",
    "source_id": "uuid",
    "reason": "text",
}
ACCOUNT_TYPES: Final = {
    "id": "uuid",
    "status": "text",
    "status_reason": "text",
    "payment_method": "text",
    "external_payment_id": "text",
    "saved_payment_method": "text",
    "balance_credits": "bigint",
    "ledger_seq": "bigint",
    "acted_at": "timestamptz",
    "access_ends_at": "timestamptz",
    "next_transition": "text",
    "next_transition_at": "timestamptz",
    "low_credits": "bigint",
}


class OpenedAccount(Struct, frozen=True):
    """An account that is locked, loaded and brought up to its own instant."""

    loaded: AccountState
    state: AccountState
    now: datetime


class Change(Struct, frozen=True, gc=False):
    """A state as it was loaded, and as it was decided."""

    loaded: AccountState
    decided: AccountState


def open_account(tx: Tx, account_id: UUID, rules: Rules, *, now: datetime) -> OpenedAccount:
    """Lock one account and apply what was due at its instant: `now`, or its test clock's.

    A `now` that lies before something that has happened already counts as that later instant: an
    operation that was accepted in time and executed late changes no past.
    Raises NotFound. Write the outcome with `write`, or nothing has happened.
    """
    _lock_one(tx, account_id)
    return _open(tx, account_id, rules, now=now_for(tx, account_id, now))


def open_operation_account(tx: Tx, operation: Operation, rules: Rules, *, now: datetime) -> OpenedAccount:
    """`open_account` for the account that an operation is about. Raises NotFound.

    What was scheduled for an instant of the account happens then, wherever its test clock stands by now.
    """
    if operation.account_id is None:
        raise NotFound("the operation names no account")
    if operation.kind not in SCHEDULED:
        return open_account(tx, operation.account_id, rules, now=now)
    _lock_one(tx, operation.account_id)
    return _open(tx, operation.account_id, rules, now=now)


def _lock_one(tx: Tx, account_id: UUID) -> None:
    if not lock(tx, [account_id]):
        raise NotFound("no such account")


def _open(tx: Tx, account_id: UUID, rules: Rules, *, now: datetime) -> OpenedAccount:
    (loaded,) = load(tx, [account_id], as_of=now)
    now = max(now, loaded.account.acted_at)
    return OpenedAccount(loaded, acted(advance(loaded, rules, as_of=now), now), now)


def is_due(tx: Tx, account_id: UUID, *, now: datetime) -> bool:
    """Whether something is due at the account's instant. Not of a parked one, until somebody has looked at it."""
    due: bool = tx.scalar(
        """
        SELECT EXISTS (
            SELECT FROM accounts
            WHERE id = %(id)s AND next_transition_at <= account_now(id, %(now)s) AND parked_at IS NULL
        )
        """,
        id=account_id,
        now=now,
    )
    return due


def catch_up(tx: Tx, account_id: UUID, rules: Rules, *, now: datetime) -> None:
    """Apply what was due at the account's instant, as a job would.

    Nothing passes an operation that was accepted and is not executed yet: it may change what becomes due
    after it.
    """
    if lock(tx, [account_id]):
        write(tx, advanced(tx, [account_id], rules, as_of=now_for(tx, account_id, now)), rules)


def advanced(
    tx: Tx, account_ids: Sequence[UUID], rules: Rules, *, as_of: datetime, steps: int | None = None
) -> list[Change]:
    """Accounts that are locked, brought up to `as_of`, or to where an operation waits that was accepted before it.

    steps: at most so many transitions of each. Write the outcome with `write`, or nothing has happened.
    """
    states = load(tx, account_ids, as_of=as_of)
    waiting_since = operations.waiting_since(tx, account_ids)
    return [
        Change(
            state,
            advance_to_charge(state, rules, as_of=min(as_of, waiting_since.get(state.account.id, as_of)), steps=steps),
        )
        for state in states
    ]


def now_for(tx: Tx, account_id: UUID, now: datetime) -> datetime:
    """The instant in which the account lives. The database's `account_now` is the only place that knows."""
    at: datetime = tx.scalar("SELECT account_now(%(id)s, %(now)s)", id=account_id, now=now)
    return at


def lock(tx: Tx, account_ids: Sequence[UUID]) -> list[UUID]:
    """Lock these customers' accounts in id order; the ids that exist."""
    rows = tx.rows(
        """
        SELECT id FROM accounts
        WHERE id = ANY (%(ids)s) AND kind = 'customer' AND deleted_at IS NULL
        ORDER BY id FOR NO KEY UPDATE
        """,
        ids=list(account_ids),
    )
    return [row.id for row in rows]


def claim_due(tx: Tx, transition: Transition, *, as_of: datetime, limit: int) -> list[UUID]:
    """Lock accounts on the wall clock whose next transition is of this kind and due, oldest first.

    An account with an operation that was accepted before that transition is passed by: a payment that
    came in time counts, however late it is executed. Executing it applies what was due before it.
    """
    rows = tx.rows(
        """
        SELECT id FROM accounts a
        WHERE next_transition = %(transition)s AND next_transition_at <= %(as_of)s
          AND test_clock_id IS NULL AND parked_at IS NULL AND deleted_at IS NULL
          AND NOT EXISTS (
              SELECT FROM operations o
              WHERE o.account_id = a.id AND o.status = 'pending' AND o.created_at < a.next_transition_at
          )
        ORDER BY next_transition_at, id
        LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        """,
        transition=str(transition),
        as_of=as_of,
        limit=limit,
    )
    return [row.id for row in rows]


def load(tx: Tx, account_ids: Sequence[UUID], *, as_of: datetime) -> list[AccountState]:
    """The states of accounts that are locked. Holds that expired by `as_of` are released on the way.

    A hold never outlives a grant that it reserves from, so releasing it before the transitions that
    lie between its expiry and `as_of` changes none of them.
    """
    ids = list(account_ids)
    tx.execute("SELECT release_expired_holds(%(ids)b, %(as_of)s)", ids=ids, as_of=as_of)
    return read(tx, ids)


def read(tx: Tx, account_ids: Sequence[UUID]) -> list[AccountState]:
    """The states of accounts as they are stored, in id order; nothing is locked, released or written."""
    ids = list(account_ids)
    accounts = tx.structs(
        Account,
        f"SELECT {columns(Account)} FROM accounts WHERE id = ANY (%(ids)b) ORDER BY id",  # noqa: S608 (fields of a struct of ours)
        ids=ids,
    )
    subscriptions = _by_account(
        tx.structs(
            Subscription,
            f"""
            SELECT {columns(Subscription)} FROM subscriptions
            WHERE account_id = ANY (%(ids)b) AND status <> 'ended'
            """,  # noqa: S608 (fields of a struct of ours)
            ids=ids,
        )
    )
    relevant_invoices = _by_account(
        tx.structs(
            Invoice,
            f"""
            SELECT {columns(Invoice, "i", transfer_pending_since="t.submitted_at")} FROM invoices i
            LEFT JOIN bank_transfers t ON t.invoice_id = i.id AND t.status = 'pending' AND i.status = 'open'
            LEFT JOIN subscriptions s ON s.id = i.subscription_id
            WHERE i.account_id = ANY (%(ids)b)
              AND (i.status = 'open' OR (
                  i.status = 'paid' AND s.status <> 'ended' AND i.period_starts_at >= s.current_period_ends_at
              ))
            ORDER BY i.id
            """,  # noqa: S608 (fields of a struct of ours)
            ids=ids,
        )
    )
    grants = _by_account(
        tx.structs(
            CreditGrant,
            f"""
            SELECT {columns(CreditGrant)} FROM credit_grants
            WHERE account_id = ANY (%(ids)b) AND NOT spent ORDER BY id
            """,  # noqa: S608 (fields of a struct of ours)
            ids=ids,
        )
    )
    return [
        AccountState(
            account=account,
            subscriptions=tuple(subscriptions.get(account.id, ())),
            periods=tuple(one.current_period for one in subscriptions.get(account.id, ())),
            invoices=tuple(relevant_invoices.get(account.id, ())),
            grants=tuple(grants.get(account.id, ())),
        )
        for account in accounts
    ]


def write(tx: Tx, changes: Sequence[Change], rules: Rules) -> None:
    """Write the differences as one statement per table and verb, and what follows from each state."""
    new_subscriptions, subscriptions_before, subscriptions = _difference(changes, "subscriptions")
    written = changed_fields(subscriptions_before, subscriptions)
    types = _only(SUBSCRIPTION_TYPES, {"id", "renews_at", *written})
    update_many(tx, "subscriptions", types, subscriptions, key=("id",))
    insert_many(tx, "subscriptions", SUBSCRIPTION_TYPES, new_subscriptions)

    new_periods, moved_periods, withdrawn_periods = _period_difference(changes)
    delete_many(tx, "subscription_periods", _only(PERIOD_TYPES, PERIOD_KEY), withdrawn_periods)
    update_many(tx, "subscription_periods", PERIOD_TYPES, moved_periods, key=PERIOD_KEY)
    insert_many(tx, "subscription_periods", PERIOD_TYPES, new_periods)

    new_grants, grants_before, grants = _difference(changes, "grants")
    written = changed_fields(grants_before, grants)
    update_many(tx, "credit_grants", _only(GRANT_TYPES, {"id", *written}), grants, key=("id",))
    insert_many(tx, "credit_grants", GRANT_TYPES, new_grants)
    transactions = [row for change in changes for row in change.decided.transactions]
    insert_many(tx, "credit_transactions", TRANSACTION_TYPES, transactions)

    decided = [change.decided for change in changes]
    accounts = [state.account for state in decided]
    written = changed_fields([change.loaded.account for change in changes], accounts)
    due = [next_transition(state) or (None, None) for state in decided]
    derived: dict[str, list[Any]] = {
        "access_ends_at": [access_ends_at(state, rules) for state in decided],
        "next_transition": [transition for _, transition in due],
        "next_transition_at": [at for at, _ in due],
        "low_credits": [low_credits(state, rules) for state in decided],
    }
    types = _only(ACCOUNT_TYPES, {"id", *written, *derived})
    update_many(tx, "accounts", types, accounts, key=("id",), derived=derived)

    new_invoices, _, changed_invoices = _difference(changes, "invoices")
    invoices.update(tx, changed_invoices)
    events.insert(tx, [event for state in decided for event in state.events])
    invoices.number_and_insert(tx, new_invoices)
    charges.schedule(tx, [charge for state in decided for charge in state.charges], rules)


def park(tx: Tx, account_id: UUID, *, at: datetime, reason: str) -> None:
    """Take an account out of the beat jobs' sight until somebody has looked at it."""
    tx.execute(
        "UPDATE accounts SET parked_at = %(at)s, parked_reason = %(reason)s WHERE id = %(id)s",
        id=account_id,
        at=at,
        reason=reason[:2_000],
    )


def unpark(tx: Tx, account_id: UUID) -> bool:
    """Hand a parked account back to the beat jobs; False when it was not parked."""
    return bool(
        tx.execute(
            "UPDATE accounts SET parked_at = NULL, parked_reason = NULL WHERE id = %(id)s AND parked_at IS NOT NULL",
            id=account_id,
        )
    )


def _difference(changes: Sequence[Change], attribute: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Rows that are new; and, of those that are different now, what was loaded and what was decided.

    A decision puts a row in the place of the one that it replaces, and new rows after all others.
    """
    rows = attrgetter(attribute)
    new: list[Any] = []
    before: list[Any] = []
    after: list[Any] = []
    for change in changes:
        loaded, decided = rows(change.loaded), rows(change.decided)
        if decided is not loaded:
            new += decided[len(loaded) :]
            for old, row in zip(loaded, decided, strict=False):
                if old is not row:
                    before.append(old)
                    after.append(row)
    return new, before, after


def _period_difference(changes: Sequence[Change]) -> tuple[list[Period], list[Period], list[Period]]:
    """Periods that are new, that end at another instant now, and that turned out to have no length."""
    new: list[Period] = []
    moved: list[Period] = []
    withdrawn: list[Period] = []
    for change in changes:
        loaded, decided = change.loaded.periods, change.decided.periods
        if loaded and (not decided or decided[0] is not loaded[0]):
            (current,) = loaded
            if decided and _PERIOD_KEY(decided[0]) == _PERIOD_KEY(current):
                moved.append(decided[0])
                decided = decided[1:]
            else:
                withdrawn.append(current)
            new += decided
        else:
            new += decided[len(loaded) :]
    return new, moved, withdrawn


def _only(types: Mapping[str, str], columns: Collection[str]) -> dict[str, str]:
    return {column: type_ for column, type_ in types.items() if column in columns}


def _by_account(rows: Iterable[B]) -> dict[UUID, list[B]]:
    grouped: dict[UUID, list[B]] = {}
    for row in rows:
        grouped.setdefault(row.account_id, []).append(row)
    return grouped
