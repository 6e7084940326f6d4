"""Credits that a caller waits for: one question, one round trip, answered with a typed outcome.

The work is done by the functions of migration 0004, which lock the account first. While something of
the account is due that no job has taken up yet, they say so; it is applied, and they are asked again: whether
credits are there does not depend on when the jobs ran. docs/adr/0016 says why they are functions.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import Row
from sqlalchemy.exc import DBAPIError

from shared import errors
from shared.db import account_state
from shared.db.api_keys import LAST_USED_PRECISION
from shared.db.engine import Database, Tx
from shared.domain.credits import MAX_BATCH, MAX_CREDITS, HoldStatus, Source
from shared.domain.plan import Rules
from shared.ids import new_id

_REFUSALS: Final[dict[str, tuple[type[errors.BillingError], str]]] = {
    "not_found": (errors.NotFound, "no such account, hold or row of the ledger"),
    "account_suspended": (errors.AccountSuspended, "the account is suspended; paying lifts the suspension"),
    "account_cancelled": (errors.AccountCancelled, "the account is cancelled; it may be read"),
    "idempotency_key_reused": (errors.IdempotencyKeyReused, "this key was used with another amount"),
    "hold_not_open": (errors.HoldNotOpen, "the hold was captured, released or has expired"),
    "capture_exceeds_hold": (errors.InvalidInput, "the capture exceeds what is held"),
    "expires_too_early": (errors.InvalidInput, "credits that are given can expire only in the future"),
    "already_reversed": (errors.AlreadyReversed, "this row has been reversed"),
    "not_reversible": (errors.NotReversible, "reversals and expiries stay as they are; adjust the balance instead"),
    "nothing_to_reverse": (errors.NotReversible, "of what was given nothing is free any more"),
}


CONSUME: Final = """
    consume_credits(asker.account_id, %(amount)s, %(key)s, %(source)s, asker.id, %(reason)s, %(now)s, %(due_applied)s)
    """


class Asker(Protocol):
    """Puts a question to a function of the database, about an account that the same statement finds."""

    @property
    def source(self) -> Source:
        """What the credits that are taken are owed to."""

    def ask(self, call: str, /, **params: Any) -> Any:
        """One row: `account_id`, and what `call` answers.

        call: a function of the database, which may use `asker.account_id`, or what finds the account in its place, and
        `asker.id`, as whom the asker acts.
        """

    def catch_up(self, account_id: UUID, *, now: datetime) -> None:
        """Apply what is due of the account, or what of it may be applied."""


class AccountAsker(Struct, frozen=True):
    """Asks about an account that is known, within a transaction, as that account itself or `asker_id`."""

    tx: Tx
    account_id: UUID
    load_rules: Callable[[Tx], Rules]
    source: Source
    asker_id: UUID

    def ask(self, call: str, /, **params: Any) -> Any:
        """As `Asker` says."""
        return self.tx.one(
            f"""
            SELECT asker.account_id, answer.*
            FROM (SELECT %(account_id)s::uuid AS account_id, %(asker_id)s::uuid AS id) AS asker
            CROSS JOIN LATERAL {call} AS answer
            """,  # noqa: S608 (a constant of this module)
            account_id=self.account_id,
            asker_id=self.asker_id,
            **params,
        )

    def catch_up(self, account_id: UUID, *, now: datetime) -> None:
        """As `Asker` says, in the same transaction."""
        account_state.catch_up(self.tx, account_id, self.load_rules(self.tx), now=now)


def of_account(
    tx: Tx,
    account_id: UUID,
    load_rules: Callable[[Tx], Rules],
    *,
    source: Source = Source.USER,
    asker_id: UUID | None = None,
) -> AccountAsker:
    """Ask about an account that is known. load_rules: called only when something is due."""
    return AccountAsker(tx, account_id, load_rules, source, asker_id or account_id)


class Consumption(Struct, frozen=True):
    """Credits taken; `balance_credits` is what the ledger says after it."""

    balance_credits: int
    replayed: bool


class Item(Struct, frozen=True, kw_only=True):
    """One consumption of a batch."""

    key: str
    amount: int
    reason: str | None = None


class ItemOutcome(Struct, frozen=True, kw_only=True):
    """What became of an item: the balance after it, or why it was refused."""

    key: str
    balance_credits: int | None = None
    replayed: bool = False
    refusal: errors.BillingError | None = None


class BatchConsumption(Struct, frozen=True, kw_only=True):
    """What became of each item, in their order, and what is left after all of them."""

    items: list[ItemOutcome]
    balance_credits: int
    available_credits: int
    written: bool  # False when a batch that had to be taken whole was refused


class Hold(Struct, frozen=True, kw_only=True):
    """A reservation of credits."""

    id: UUID
    status: HoldStatus
    amount: int
    captured_amount: int
    held_at: datetime
    expires_at: datetime
    resolved_at: datetime | None


class PlacedHold(Struct, frozen=True):
    """A hold, and whether its key had placed it before."""

    hold: Hold
    replayed: bool


class Adjustment(Struct, frozen=True, kw_only=True):
    """What an admin did to the balance, at the account's instant `at`."""

    balance_before: int
    balance_credits: int
    at: datetime


class Reversal(Struct, frozen=True, kw_only=True):
    """Credits that came back (positive) or were taken (negative); of the first, those that expired at once."""

    reversed_credits: int
    expired_credits: int
    balance_before: int
    balance_credits: int
    at: datetime


class CreditsTakenBack(Struct, frozen=True, kw_only=True):
    """What of a month's credits went back with the money that had paid for them."""

    reversed_credits: int
    balance_before: int
    balance_credits: int
    at: datetime


class Balance(Struct, frozen=True, kw_only=True):
    """What an account has: `available = balance - held - expired`, never negative."""

    balance_credits: int
    held_credits: int
    expired_credits: int  # past their expiry, not yet swept
    available_credits: int


def consume(asker: Asker, amount: int, *, key: str, reason: str | None, now: datetime) -> Consumption:
    """Take credits in burn-down order, once per key.

    Raises InsufficientCredits, AccountSuspended, AccountCancelled, IdempotencyKeyReused, NotFound, InvalidInput.
    """
    _require_positive(amount)
    row = _answer(
        asker,
        CONSUME,
        now=now,
        amount=amount,
        key=key,
        source=str(asker.source),
        reason=reason,
    )
    _require(row, "consumed", requested=amount)
    return Consumption(row.balance_credits, row.replayed)


class KeyConsumption(Struct, frozen=True, kw_only=True):
    """What an API key asks for at an instant. hash: of the key, as hexadecimal digits. key: that takes once."""

    hash: str
    amount: int
    key: str
    reason: str | None
    at: datetime


def consume_by_keys(database: Database, asked: Sequence[KeyConsumption], *, scope: str) -> list[Any | None]:
    """Let several API keys in and take what each asks for, in one statement: the rows that an `Asker` answers CONSUME.

    None where it has to be asked by itself: the key does not open this, somebody else is at the account, or the
    statement failed, perhaps for what another one had asked.
    """
    answers: list[Any | None] = [None] * len(asked)
    try:
        rows = database.ask_all(
            "SELECT *, true AS permitted FROM consume_credits_by_keys(%(items)s, %(scope)s, %(precision)s)",
            items=msgspec.json.encode(asked).decode(),
            scope=scope,
            precision=LAST_USED_PRECISION,
        )
    except DBAPIError:
        return answers
    for row in rows:
        answers[row.n - 1] = row
    return answers


def consume_batch(asker: Asker, items: Sequence[Item], *, all_or_nothing: bool, now: datetime) -> BatchConsumption:
    """Take credits for many items in their order, each once per its key; those that are refused take nothing.

    all_or_nothing: one refusal refuses them all. Raises InvalidInput, NotFound; what an item is refused for is its
    outcome.
    """
    keys = [item.key for item in items]
    if not 0 < len(items) <= MAX_BATCH or len(set(keys)) < len(keys):
        raise errors.InvalidInput(f"a batch has 1 to {MAX_BATCH} items, each with a key of its own")
    for item in items:
        _require_positive(item.amount)
    row = _answer(
        asker,
        """
        consume_credits_batch(asker.account_id, %(keys)s::text[], %(amounts)s::bigint[], %(reasons)s::text[],
                              %(all_or_nothing)s, %(source)s, asker.id, %(now)s, %(due_applied)s)
        """,
        now=now,
        keys=keys,
        amounts=[item.amount for item in items],
        reasons=[item.reason for item in items],
        all_or_nothing=all_or_nothing,
        source=str(asker.source),
    )
    if row.outcome not in {"done", "refused"}:
        raise _refusal(row.outcome)
    not_free = row.balance_credits - row.available_credits  # held or expired, whatever the items take
    outcomes = [
        ItemOutcome(key=item.key, balance_credits=balance, replayed=replayed)
        if outcome == "consumed"
        else ItemOutcome(key=item.key, refusal=_item_refusal(item, outcome, balance, not_free=not_free))
        for item, outcome, balance, replayed in zip(items, row.outcomes, row.balances, row.replays, strict=True)
    ]
    return BatchConsumption(
        items=outcomes,
        balance_credits=row.balance_credits,
        available_credits=row.available_credits,
        written=row.outcome == "done",
    )


def place_hold(asker: Asker, amount: int, *, key: str, ttl_seconds: int, now: datetime) -> PlacedHold:
    """Reserve credits, once per key. Raises what `consume` does."""
    _require_positive(amount)
    row = _answer(
        asker,
        """
        (SELECT p.*, to_jsonb(p.hold) AS hold_document FROM place_hold(
             asker.account_id, %(new_id)s, %(amount)s, %(key)s, %(ttl_seconds)s, %(now)s, %(due_applied)s
         ) p)
        """,
        now=now,
        amount=amount,
        key=key,
        ttl_seconds=ttl_seconds,
    )
    _require(row, "held", requested=amount)
    return PlacedHold(msgspec.convert(row.hold_document, Hold), row.replayed)


def capture_hold(asker: Asker, hold_id: UUID, amount: int, *, now: datetime) -> Consumption:
    """Take `amount` of what is held and free the rest; the same capture again changes nothing.

    Raises HoldNotOpen, InvalidInput, AccountSuspended, AccountCancelled, NotFound.
    """
    _require_positive(amount)
    row = _answer(
        asker,
        "capture_hold(asker.account_id, %(hold_id)s, %(amount)s, %(now)s, %(due_applied)s)",
        now=now,
        hold_id=hold_id,
        amount=amount,
    )
    _require(row, "captured", requested=amount)
    return Consumption(row.balance_credits, row.replayed)


def release_hold(asker: Asker, hold_id: UUID, *, now: datetime) -> PlacedHold:
    """Free what is held; `replayed` when it was free already. Raises HoldNotOpen, NotFound."""
    row = _answer(
        asker,
        """
        (SELECT r.*, to_jsonb(r.hold) AS hold_document
         FROM release_hold(asker.account_id, %(hold_id)s, %(now)s) r)
        """,
        now=now,
        hold_id=hold_id,
    )
    _require(row, "released", requested=None)
    return PlacedHold(msgspec.convert(row.hold_document, Hold), row.replayed)


def adjust(
    asker: Asker, amount: int, *, key: str, admin_id: UUID, reason: str, expires_at: datetime | None, now: datetime
) -> Adjustment:
    """Give credits (amount > 0) as a grant of their own, or take some that are free, once per key.

    Raises InsufficientCredits, InvalidInput, IdempotencyKeyReused, NotFound.
    """
    if not 0 < abs(amount) <= MAX_CREDITS:
        raise errors.InvalidInput("an adjustment is not zero and not absurd")
    if expires_at is not None and amount < 0:
        raise errors.InvalidInput("only credits that are given can expire")
    row = _answer(
        asker,
        """
        adjust_credits(asker.account_id, %(amount)s, %(key)s, %(new_id)s, %(expires_at)s, %(admin_id)s, %(reason)s,
                       %(now)s, %(due_applied)s)
        """,
        now=now,
        amount=amount,
        key=key,
        expires_at=expires_at,
        admin_id=admin_id,
        reason=reason,
    )
    _require(row, "adjusted", requested=-amount)
    return Adjustment(balance_before=row.balance_before, balance_credits=row.balance_credits, at=row.at)


def reverse(asker: Asker, seq: int, *, admin_id: UUID, reason: str, now: datetime) -> Reversal:
    """Undo the posting to which row `seq` of the ledger belongs, once.

    Raises NotFound, AlreadyReversed, NotReversible.
    """
    row = _answer(
        asker,
        "reverse_posting(asker.account_id, %(seq)s, %(admin_id)s, %(reason)s, %(now)s, %(due_applied)s)",
        now=now,
        seq=seq,
        admin_id=admin_id,
        reason=reason,
    )
    _require(row, "reversed", requested=None)
    return Reversal(
        reversed_credits=row.reversed_credits,
        expired_credits=row.expired_credits,
        balance_before=row.balance_before,
        balance_credits=row.balance_credits,
        at=row.at,
    )


def take_back(
    asker: Asker,
    amount: int,
    *,
    grant_ids: Sequence[UUID],
    refund_id: UUID,
    payment_id: UUID,
    reason: str,
    now: datetime,
) -> CreditsTakenBack:
    """Take up to `amount` of these seeds, soonest expiry first, as far as they are free; once per refund.

    Raises NotFound.
    """
    _require_positive(amount)
    row = _answer(
        asker,
        """
        refund_credits(asker.account_id, %(grant_ids)s::uuid[], %(amount)s, %(key)s, %(payment_id)s, %(reason)s,
                       %(now)s, %(due_applied)s)
        """,
        now=now,
        grant_ids=list(grant_ids),
        amount=amount,
        key=refund_id.hex,
        payment_id=payment_id,
        reason=reason,
    )
    _require(row, "refunded", requested=None)
    return CreditsTakenBack(
        reversed_credits=row.reversed_credits,
        balance_before=row.balance_before,
        balance_credits=row.balance_credits,
        at=row.at,
    )


def _answer(asker: Asker, call: str, *, now: datetime, **params: Any) -> Any:
    """One round trip unless something is due; then that is applied, and the question is put again.

    `new_id` in `call` is an id that is newer than all that was written before.
    """
    row = asker.ask(call, due_applied=False, now=now, new_id=new_id(), **params)
    if row.outcome == "due":
        asker.catch_up(row.account_id, now=now)
        row = asker.ask(call, due_applied=True, now=now, new_id=new_id(), **params)
    return row


def _require_positive(amount: int) -> None:
    if not 0 < amount <= MAX_CREDITS:
        raise errors.InvalidInput(f"an amount of credits is from 1 to {MAX_CREDITS}, not {amount}")


def _require(row: Any, outcome: str, *, requested: int | None) -> None:
    if row.outcome == "insufficient_credits":
        raise _too_few(requested, balance=row.balance_credits, available=row.available_credits)
    if row.outcome != outcome:
        raise _refusal(row.outcome)


def _refusal(outcome: str) -> errors.BillingError:
    refusal, detail = _REFUSALS[outcome]
    return refusal(detail)


def _item_refusal(item: Item, outcome: str, balance: int | None, *, not_free: int) -> errors.BillingError:
    if outcome == "insufficient_credits" and balance is not None:
        return _too_few(item.amount, balance=balance, available=balance - not_free)
    return _refusal(outcome)


def _too_few(requested: int | None, *, balance: int, available: int) -> errors.InsufficientCredits:
    return errors.InsufficientCredits(
        f"{requested} credits requested, {available} available",
        balance_credits=balance,
        available_credits=available,
        requested_credits=requested,
    )


def release_due_holds(tx: Tx, *, as_of: datetime, limit: int) -> int:
    """Free what expired holds of accounts on the wall clock reserve; how many accounts were looked at."""
    rows = tx.rows(
        """
        SELECT id FROM accounts
        WHERE id IN (
            SELECT h.account_id FROM holds h JOIN accounts a ON a.id = h.account_id AND a.test_clock_id IS NULL
            WHERE h.status = 'open' AND h.expires_at <= %(as_of)s
            ORDER BY h.expires_at LIMIT %(limit)s
        )
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
        """,
        as_of=as_of,
        limit=limit,
    )
    ids = [row.id for row in rows]
    if ids:
        tx.execute("SELECT release_expired_holds(%(ids)s, %(as_of)s)", ids=ids, as_of=as_of)
    return len(ids)


def balance(tx: Tx, account_id: UUID, *, now: datetime) -> Balance:
    """What the account has at its instant, decided from dates. Raises NotFound."""
    row = tx.maybe(
        """
        SELECT a.balance_credits, h.held, g.expired, g.available
        FROM accounts a
        CROSS JOIN LATERAL (SELECT account_now(a.id, %(now)s) AS at) t
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(amount), 0)::bigint AS held FROM holds
            WHERE account_id = a.id AND status = 'open' AND expires_at > t.at
        ) h
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(remaining) FILTER (WHERE expires_at <= t.at), 0)::bigint AS expired,
                   (coalesce(sum(remaining) FILTER (WHERE expires_at IS NULL OR expires_at > t.at), 0) - h.held)::bigint
                       AS available
            FROM credit_grants WHERE account_id = a.id AND NOT spent
        ) g
        WHERE a.id = %(account_id)s AND a.kind = 'customer'
        """,
        account_id=account_id,
        now=now,
    )
    if row is None:
        raise errors.NotFound("no such account")
    return Balance(
        balance_credits=row.balance_credits,
        held_credits=row.held,
        expired_credits=row.expired,
        available_credits=row.available,
    )


def hold(tx: Tx, account_id: UUID, hold_id: UUID, *, now: datetime) -> Row[Any]:
    """A hold of this account, expired by its date even when no job has been there yet. Raises NotFound."""
    row = tx.maybe(
        """
        SELECT id, amount, captured_amount, held_at, expires_at,
               CASE WHEN status = 'open' AND expires_at <= account_now(account_id, %(now)s) THEN 'expired' ELSE status
               END AS status,
               CASE WHEN status = 'open' AND expires_at <= account_now(account_id, %(now)s) THEN expires_at
               ELSE resolved_at END AS resolved_at
        FROM holds WHERE id = %(id)s AND account_id = %(account_id)s
        """,
        id=hold_id,
        account_id=account_id,
        now=now,
    )
    if row is None:
        raise errors.NotFound("no such hold")
    return row


def grants_page(tx: Tx, account_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The account's grants, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT * FROM credit_grants WHERE account_id = %(account_id)s AND id < %(before)s
        ORDER BY id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )


def transactions_page(tx: Tx, account_id: UUID, *, before: int, limit: int) -> Sequence[Row[Any]]:
    """The account's ledger, newest first, from the rows numbered below `before`."""
    return tx.rows(
        """
        SELECT * FROM credit_transactions WHERE account_id = %(account_id)s AND seq < %(before)s
        ORDER BY seq DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )
