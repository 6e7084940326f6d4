"""Explanations: which rule a row of the ledger follows, who is behind it, and how the rows sum up to the balance.

Source: docs/rules.md, "Explanations".
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct

from shared.domain.credits import GrantSource, Source, TransactionKind
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind, PrincipalKind
from shared.domain.plan import Rollover
from shared.domain.refund import RefundStatus

CALLERS_PREFIX: Final = "consume:"  # a consumption's key is its caller's; all others are the engine's own
EXPIRED_AT_ONCE: Final = "expire:reverse:"
MOVES: Final = ("seeded", "purchased", "given", "consumed", "corrected", "expired", "reversed")


class RuleName(StrEnum):
    """Why a row of the ledger is there."""

    CREDIT_MONTH = "credit_month"
    PURCHASE = "purchase"
    BURN_DOWN = "burn_down"
    CAPTURE = "capture"
    EXPIRY = "expiry"
    ROLLOVER_CAP = "rollover_cap"
    EXPIRY_AFTER_REVERSAL = "expiry_after_reversal"
    GIFT = "gift"
    CORRECTION = "correction"
    GIVEN_BACK = "given_back"
    TAKEN_BACK = "taken_back"
    REFUNDED = "refunded"


# What each rule says, and where docs/rules.md states it. Of a credit month `_seeded` tells which one.
RULES: Final[dict[RuleName, tuple[str | None, str]]] = {
    RuleName.CREDIT_MONTH: (None, "Credits 8"),
    RuleName.PURCHASE: ("credits that were bought", "Credits 4"),
    RuleName.BURN_DOWN: ("taken in burn-down order: priority, earliest expiry, oldest", "Credits 6"),
    RuleName.CAPTURE: ("taken from what the hold reserves, soonest expiry first", "Credits 13"),
    RuleName.EXPIRY: ("the grant expired with what was left of it", "Credits 7"),
    RuleName.ROLLOVER_CAP: ("the credit month ended, and this is what exceeds the cap of what rolls over", "Credits 9"),
    RuleName.EXPIRY_AFTER_REVERSAL: ("its grant had expired, so what was given back expires at once", "Credits 19"),
    RuleName.GIFT: ("an admin gave credits, which are a grant of their own", "Credits 16"),
    RuleName.CORRECTION: ("an admin took credits that were free, in burn-down order", "Credits 16"),
    RuleName.GIVEN_BACK: ("an admin undid a posting: what it took is back with its grant", "Credits 19"),
    RuleName.TAKEN_BACK: ("an admin undid a posting: what it gave is taken, as far as it is free", "Credits 19"),
    RuleName.REFUNDED: (
        "the money went back, and with it what the period that it paid for had brought, as far as that is free",
        "Refunds 7",
    ),
}


class Rule(Struct, frozen=True, kw_only=True):
    """The rule that a row follows, in one sentence; `section` is where docs/rules.md states it."""

    name: RuleName
    sentence: str
    section: str


class Plan(Struct, frozen=True, kw_only=True):
    """What a seed was given under. The rollover is the plan's as it is now."""

    slug: str
    rollover: Rollover
    rollover_cap: int | None


class Grant(Struct, frozen=True, kw_only=True):
    """The credits that a row gives or takes: where they came from, and what is left of them by now.

    opened_by_seq: the row that brought them. Seeds alone have a subscription, a phase and a credit month, both
    counted from 0, and a plan.
    """

    id: UUID
    source: GrantSource
    amount: int
    remaining: int
    effective_at: datetime
    expires_at: datetime | None
    opened_by_seq: int | None
    subscription_id: UUID | None
    phase: int | None
    credit_month_index: int | None
    plan: Plan | None


class Period(Struct, frozen=True, kw_only=True):
    """The subscription period in which a row is effective."""

    subscription_id: UUID
    plan: str
    starts_at: datetime
    ends_at: datetime


class Settlement(Struct, frozen=True, kw_only=True):
    """The payment of that period, and the invoice that it settled."""

    payment_id: UUID
    invoice_id: UUID
    invoice_reference: str
    provider: PaymentMethod
    amount_minor: int
    currency: str


class Refund(Struct, frozen=True, kw_only=True):
    """The money that went back, and of which payment; the row took back credits that it had paid for.

    external_refund_id: the provider's. transfer_reference: how it went back where no provider did it.
    """

    id: UUID
    payment_id: UUID
    amount_minor: int
    currency: str
    status: RefundStatus
    external_refund_id: str | None
    transfer_reference: str | None


class Decision(Struct, frozen=True, kw_only=True):
    """The operation that wrote a row, and who had asked for it."""

    id: UUID
    kind: OperationKind
    principal_kind: PrincipalKind
    principal_id: UUID | None


class Reservation(Struct, frozen=True, kw_only=True):
    """The hold that a row captures; the key is that of whoever placed it."""

    id: UUID
    amount: int
    captured_amount: int
    idempotency_key: str


class Actor(Struct, frozen=True, kw_only=True):
    """Who did it. The name is a user's address, or the prefix of an API key."""

    kind: PrincipalKind
    id: UUID | None
    name: str | None


class Explanation(Struct, frozen=True, kw_only=True):
    """A row of the ledger, and all that is known of why it is there."""

    seq: int
    kind: TransactionKind
    amount: int
    balance_after: int
    effective_at: datetime
    recorded_at: datetime
    reason: str | None
    posted_as: str
    source: Source
    source_id: UUID
    reverses_seq: int | None
    reversed_by_seqs: list[int]
    posting_seqs: list[int]
    grant: Grant
    period: Period | None
    payment: Settlement | None
    operation: Decision | None
    hold: Reservation | None
    refund: Refund | None
    customers_name: str | None
    admins_name: str | None

    @property
    def balance_before(self) -> int:
        """The balance that this row found."""
        return self.balance_after - self.amount

    @property
    def idempotency_key(self) -> str | None:
        """As `callers_key` says."""
        return callers_key(self.posted_as)

    @property
    def rule(self) -> Rule:
        """The rule that this row follows."""
        name = _rule_name(self)
        sentence, section = RULES[name]
        return Rule(name=name, sentence=sentence or _seeded(self.grant), section=section)

    def actor(self, *, for_admins: bool) -> Actor | None:
        """Who did it; None for a capture, of which the hold alone is recorded. Admins' names are for admins."""
        match self.source:
            case Source.USER | Source.API_KEY:
                return Actor(kind=PrincipalKind(str(self.source)), id=self.source_id, name=self.customers_name)
            case Source.ADMIN:
                name = self.admins_name if for_admins else None
                return Actor(kind=PrincipalKind.ADMIN, id=self.source_id, name=name)
            case Source.PAYMENT if self.operation is not None:
                asked = self.operation
                name = self.admins_name if for_admins else None
                return Actor(kind=asked.principal_kind, id=asked.principal_id, name=name)
            case Source.HOLD:
                return None
            case _:
                return Actor(kind=PrincipalKind.SYSTEM, id=None, name=None)


def callers_key(posted_as: str) -> str | None:
    """The idempotency key as the caller gave it; None for what the engine names itself."""
    return posted_as.removeprefix(CALLERS_PREFIX) if posted_as.startswith(CALLERS_PREFIX) else None


def _rule_name(row: Explanation) -> RuleName:
    name: RuleName
    match row.kind:
        case TransactionKind.SEED:
            name = RuleName.CREDIT_MONTH
        case TransactionKind.PURCHASE:
            name = RuleName.PURCHASE
        case TransactionKind.CONSUME:
            name = RuleName.BURN_DOWN if row.hold is None else RuleName.CAPTURE
        case TransactionKind.EXPIRE:
            name = _expiry(row)
        case TransactionKind.ADJUST:
            name = RuleName.GIFT if row.amount > 0 else RuleName.CORRECTION
        case TransactionKind.REVERSE if row.refund is not None:
            name = RuleName.REFUNDED
        case TransactionKind.REVERSE:
            name = RuleName.GIVEN_BACK if row.amount > 0 else RuleName.TAKEN_BACK
    return name


def _expiry(row: Explanation) -> RuleName:
    if row.posted_as.startswith(EXPIRED_AT_ONCE):
        return RuleName.EXPIRY_AFTER_REVERSAL
    lasts = row.grant.expires_at is not None and row.grant.expires_at > row.effective_at
    return RuleName.ROLLOVER_CAP if lasts else RuleName.EXPIRY


def _seeded(grant: Grant) -> str:
    """Which month of what; a phase that ended in the instant in which it began has no period that names its plan."""
    month = f"credit month {grant.credit_month_index} of phase {grant.phase} of the subscription"
    if grant.plan is None:
        return month
    keeps = {
        Rollover.NONE: "nothing rolls over",
        Rollover.ALL: "everything rolls over",
        Rollover.CAP: f"up to {grant.plan.rollover_cap} credits roll over",
    }
    return f"{month} under the plan {grant.plan.slug}, where {keeps[grant.plan.rollover]}"


# --- how it sums up -----------------------------------------------------------------------------


class GrantStatement(Struct, frozen=True, kw_only=True):
    """What became of a grant, as the ledger has it. All but `reversed` are counted without a sign."""

    id: UUID
    source: GrantSource
    opened_by_seq: int | None
    effective_at: datetime
    expires_at: datetime | None
    seeded: int
    purchased: int
    given: int
    consumed: int
    corrected: int
    expired: int
    reversed: int
    remaining: int

    @property
    def left(self) -> int:
        """What the ledger says is left; `remaining` is what the grant itself says."""
        return self.seeded + self.purchased + self.given - self.consumed - self.corrected - self.expired + self.reversed


class Statement(Struct, frozen=True, kw_only=True):
    """The whole ledger of an account in one line, from nothing to the balance; `fails` is empty when it sums up.

    `fails` has the names of the checks that `python -m workers check` makes of every account.
    """

    opening: int
    seeded: int
    purchased: int
    given: int
    consumed: int
    corrected: int
    expired: int
    reversed: int
    balance: int
    fails: list[str]


def statement(grants: Sequence[GrantStatement], *, balance_credits: int) -> Statement:
    """Add up what became of all grants, and hold it against the balance that is stored."""
    sums = {name: sum(getattr(grant, name) for grant in grants) for name in MOVES}
    checks = {
        "balance_is_sum_of_ledger": sum(grant.left for grant in grants) == balance_credits,
        "balance_is_sum_of_grants": sum(grant.remaining for grant in grants) == balance_credits,
        "grant_remaining_is_its_ledger": all(grant.left == grant.remaining for grant in grants),
    }
    return Statement(
        opening=0, **sums, balance=balance_credits, fails=[name for name, holds in checks.items() if not holds]
    )
