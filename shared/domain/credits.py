"""Credits: grants, the ledger's rows, the order in which grants are spent, and what a month's end does.

Source: docs/rules.md, "Credits".
"""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct

from shared.errors import InsufficientCredits

SEED_PRIORITY: Final = 10  # what expires soonest is spent first
LASTING_PRIORITY: Final = 20
MAX_BATCH: Final = 1_000  # consumptions in one request
MAX_CREDITS: Final = 1_000_000_000_000  # of one request; a sum of a million such still fits a bigint


class GrantSource(StrEnum):
    """Where a grant's credits came from."""

    SEED = "seed"
    PURCHASE = "purchase"
    ADJUST = "adjust"


class TransactionKind(StrEnum):
    """What a row of the ledger records."""

    SEED = "seed"
    PURCHASE = "purchase"
    CONSUME = "consume"
    EXPIRE = "expire"
    ADJUST = "adjust"
    REVERSE = "reverse"


class HoldStatus(StrEnum):
    """`open` reserves; the other three are final."""

    OPEN = "open"
    CAPTURED = "captured"
    RELEASED = "released"
    EXPIRED = "expired"


class Source(StrEnum):
    """What a row of the ledger is owed to; `source_id` names the one."""

    SUBSCRIPTION = "subscription"
    PAYMENT = "payment"
    OPERATION = "operation"
    ADMIN = "admin"
    USER = "user"
    API_KEY = "api_key"
    HOLD = "hold"
    GRANT = "grant"


class CreditGrant(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One row of `credit_grants`: credits that share an origin, a priority and an expiry.

    `held` of the `remaining` credits are reserved by open holds. A seed is named by its
    subscription, phase and credit month, and exists once.
    """

    id: UUID
    account_id: UUID
    source: GrantSource
    amount: int
    remaining: int
    held: int
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    subscription_id: UUID | None = None
    phase: int | None = None
    credit_month_index: int | None = None


class CreditTransaction(Struct, frozen=True, kw_only=True, gc=False):
    """One row of `credit_transactions`, the append-only ledger.

    `seq` counts an account's rows from 1 without a gap. `effective_at` is when it was due;
    when it was written is the database's to say.
    """

    account_id: UUID
    seq: int
    grant_id: UUID
    kind: TransactionKind
    amount: int
    balance_after: int
    idempotency_key: str
    line: int
    effective_at: datetime
    source: Source
    source_id: UUID
    reason: str | None = None


def burn_down_order(grant: CreditGrant) -> tuple[int, bool, float, datetime, UUID]:
    """Sort key: priority, then earliest expiry (none last), then oldest, then id."""
    expires = grant.expires_at
    return (
        grant.priority,
        expires is None,
        expires.timestamp() if expires else 0.0,
        grant.effective_at,
        grant.id,
    )


def spendable(grant: CreditGrant, *, at: datetime) -> int:
    """Credits of this grant that may be taken at `at`: not expired, not held."""
    if grant.expires_at is not None and grant.expires_at <= at:
        return 0
    return grant.remaining - grant.held


def take(grants: Iterable[CreditGrant], amount: int, *, at: datetime) -> list[tuple[CreditGrant, int]]:
    """Which grants give how much, in burn-down order; together exactly `amount`.

    Raises InsufficientCredits, in which case nothing is taken. The database's
    `consume_credits` does the same, and a test holds the two together.
    """
    grants = sorted(grants, key=burn_down_order)
    available = sum(spendable(grant, at=at) for grant in grants)
    if available < amount:
        raise InsufficientCredits(
            f"{amount} credits requested, {available} available",
            available_credits=available,
            requested_credits=amount,
        )
    taken: list[tuple[CreditGrant, int]] = []
    for grant in grants:
        if amount == 0:
            break
        part = min(spendable(grant, at=at), amount)
        if part:
            taken.append((grant, part))
            amount -= part
    return taken


def carried_over(expiring: Iterable[CreditGrant], *, cap: int) -> dict[UUID, int]:
    """How many credits of each expiring seed stay, newest first, `cap` in all."""
    kept: dict[UUID, int] = {}
    for grant in sorted(expiring, key=lambda grant: (grant.effective_at, grant.id), reverse=True):
        kept[grant.id] = min(grant.remaining, cap)
        cap -= kept[grant.id]
    return kept
