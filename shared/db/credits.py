"""Credits that a caller waits for: one call, one round trip, answered with a typed outcome.

The work is done by the functions of migration 0002, which lock the account first. While something of
the account is due that no job has taken up yet, it is applied first, in the same transaction: whether
credits are there does not depend on when the jobs ran.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Row

from shared import errors
from shared.config import Settings, get_settings
from shared.db import account_state
from shared.db.engine import Tx
from shared.domain.credits import MAX_CREDITS, Source
from shared.ids import new_id

# The account that a function is asked about: locked, and only if nothing of it is due; or whatever its state.
_UP_TO_DATE: Final = """
    SELECT id FROM accounts
    WHERE id = %(account_id)s AND coalesce(next_transition_at > account_now(id, %(now)s), true)
    FOR NO KEY UPDATE
    """
_AS_STORED: Final = "SELECT %(account_id)s::uuid AS id"

_REFUSALS: Final[dict[str, tuple[type[errors.BillingError], str]]] = {
    "not_found": (errors.NotFound, "no such account or hold"),
    "account_suspended": (errors.AccountSuspended, "the account is suspended; paying lifts the suspension"),
    "account_cancelled": (errors.AccountCancelled, "the account is cancelled; it may be read"),
    "idempotency_key_reused": (errors.IdempotencyKeyReused, "this key was used with another amount"),
    "hold_not_open": (errors.HoldNotOpen, "the hold was captured, released or has expired"),
    "capture_exceeds_hold": (errors.InvalidInput, "the capture exceeds what is held"),
}


class Consumption(Struct, frozen=True):
    """Credits taken; `balance_credits` is what the ledger says after it."""

    balance_credits: int
    replayed: bool


class Balance(Struct, frozen=True, kw_only=True):
    """What an account has: `available = balance - held - expired`, never negative."""

    balance_credits: int
    held_credits: int
    expired_credits: int  # past their expiry, not yet swept
    available_credits: int


def consume(
    tx: Tx,
    account_id: UUID,
    amount: int,
    *,
    key: str,
    source: Source,
    source_id: UUID,
    reason: str | None,
    now: datetime,
    settings: Settings | None = None,
) -> Consumption:
    """Take credits in burn-down order, once per key. settings: the process's own unless stated.

    Raises InsufficientCredits, AccountSuspended, AccountCancelled, IdempotencyKeyReused, NotFound, InvalidInput.
    """
    _require_positive(amount)
    row = _ask(
        tx,
        "consume_credits(account.id, %(amount)s, %(key)s, %(source)s, %(source_id)s, %(reason)s, %(now)s)",
        account_id,
        now=now,
        settings=settings,
        amount=amount,
        key=key,
        source=str(source),
        source_id=source_id,
        reason=reason,
    )
    _require(row, "consumed", requested=amount)
    return Consumption(row.balance_credits, row.replayed)


def place_hold(
    tx: Tx,
    account_id: UUID,
    amount: int,
    *,
    key: str,
    ttl_seconds: int,
    now: datetime,
    settings: Settings | None = None,
) -> tuple[UUID, bool]:
    """Reserve credits, once per key: the hold's id, and whether it was placed before.

    settings: as for `consume`, and so is what is raised.
    """
    _require_positive(amount)
    row = _ask(
        tx,
        "place_hold(account.id, %(id)s, %(amount)s, %(key)s, %(ttl_seconds)s, %(now)s)",
        account_id,
        now=now,
        settings=settings,
        id=new_id(),
        amount=amount,
        key=key,
        ttl_seconds=ttl_seconds,
    )
    _require(row, "held", requested=amount)
    return row.hold_id, row.replayed


def capture_hold(
    tx: Tx, account_id: UUID, hold_id: UUID, amount: int, *, now: datetime, settings: Settings | None = None
) -> Consumption:
    """Take `amount` of what is held and free the rest; the same capture again changes nothing.

    settings: as for `consume`. Raises HoldNotOpen, InvalidInput, AccountSuspended, AccountCancelled, NotFound.
    """
    _require_positive(amount)
    row = _ask(
        tx,
        "capture_hold(account.id, %(hold_id)s, %(amount)s, %(now)s)",
        account_id,
        now=now,
        settings=settings,
        hold_id=hold_id,
        amount=amount,
    )
    _require(row, "captured", requested=amount)
    return Consumption(row.balance_credits, row.replayed)


def release_hold(tx: Tx, account_id: UUID, hold_id: UUID, *, now: datetime) -> bool:
    """Free what is held; whether it was free already. Raises HoldNotOpen, NotFound."""
    row = tx.one(
        "SELECT * FROM release_hold(%(account_id)s, %(hold_id)s, %(now)s)",
        account_id=account_id,
        hold_id=hold_id,
        now=now,
    )
    _require(row, "released", requested=None)
    replayed: bool = row.replayed
    return replayed


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
            FROM credit_grants WHERE account_id = a.id AND remaining > 0
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


def _ask(
    tx: Tx, function: str, account_id: UUID, *, now: datetime, settings: Settings | None, **params: Any
) -> Row[Any]:
    """What a function of migration 0002 answers about `account`, in one round trip unless something is due."""
    answer = "SELECT answer.* FROM ({}) AS account CROSS JOIN LATERAL {} AS answer"
    params |= {"account_id": account_id, "now": now}
    row = tx.maybe(answer.format(_UP_TO_DATE, function), **params)
    if row is None:
        account_state.catch_up(tx, account_id, settings or get_settings(), now=now)
        row = tx.one(answer.format(_AS_STORED, function), **params)
    return row


def _require_positive(amount: int) -> None:
    if not 0 < amount <= MAX_CREDITS:
        raise errors.InvalidInput(f"an amount of credits is from 1 to {MAX_CREDITS}, not {amount}")


def _require(row: Row[Any], outcome: str, *, requested: int | None) -> None:
    if row.outcome == outcome:
        return
    if row.outcome == "insufficient_credits":
        raise errors.InsufficientCredits(
            f"{requested} credits requested, {row.available_credits} available",
            balance_credits=row.balance_credits,
            available_credits=row.available_credits,
            requested_credits=requested,
        )
    refusal, detail = _REFUSALS[row.outcome]
    raise refusal(detail)


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
