"""The timeline of an account: what will happen to it, and when, if nobody does anything.

No rule of an account's life is known here. `lifecycle` is asked for one transition after another, as
the jobs ask it, and the entries tell what differs between the state before it and the state after it.

Source: docs/rules.md, "Timeline".
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from shared.domain.account import AccountState, AccountStatus
from shared.domain.credits import TransactionKind
from shared.domain.invoice import InvoiceStatus
from shared.domain.lifecycle import Transition, advance, next_transition
from shared.domain.plan import Rules
from shared.domain.subscription import Period, SubscriptionStatus
from shared.errors import BillingError, Conflict, InvalidInput

USUAL_OUTLOOK: Final = timedelta(days=366)
LONGEST_OUTLOOK: Final = timedelta(days=5 * 366)


class EntryKind(StrEnum):
    """What an entry tells."""

    PERIOD_OPENED = "period_opened"
    PERIOD_EXTENDED = "period_extended"  # a trial, for the sake of an undecided bank transfer
    PERIOD_CUT = "period_cut"  # at its own start: it was never granted
    INVOICE_OPENED = "invoice_opened"
    INVOICE_VOIDED = "invoice_voided"
    SUBSCRIPTION_ACTIVATED = "subscription_activated"
    SUBSCRIPTION_PAST_DUE = "subscription_past_due"
    GRACE_EXTENDED = "grace_extended"
    SUBSCRIPTION_ENDED = "subscription_ended"
    ACCOUNT_STATUS_CHANGED = "account_status_changed"
    CREDITS_SEEDED = "credits_seeded"
    CREDITS_EXPIRED = "credits_expired"
    CREDITS_CARRIED_OVER = "credits_carried_over"


POSTED: Final = {
    TransactionKind.SEED: EntryKind.CREDITS_SEEDED,
    TransactionKind.EXPIRE: EntryKind.CREDITS_EXPIRED,
}


class TimelineEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that a transition brings about, at the instant at which the transition is due.

    What its kind has nothing to say about is None. Only the id of an invoice that is stored is told.
    """

    at: datetime
    transition: Transition
    kind: EntryKind
    # of periods, and of invoices for one
    plan: str | None = None
    period_starts_at: datetime | None = None
    period_ends_at: datetime | None = None
    # of invoices
    invoice_id: UUID | None = None
    amount_minor: int | None = None
    currency: str | None = None
    due_at: datetime | None = None
    # of the subscription and the account
    status: AccountStatus | None = None
    reason: str | None = None
    grace_ends_at: datetime | None = None
    # of credits; the amount has the sign that the ledger gives it
    amount: int | None = None
    balance_after: int | None = None
    expires_at: datetime | None = None


Tell = Callable[..., TimelineEntry]


def horizon(now: datetime, until: datetime | None) -> datetime:
    """Until when to look ahead: as asked for, or a year from `now`, in which the account lives.

    Raises InvalidInput for what lies before `now`, or more than five years ahead.
    """
    if until is None:
        return now + USUAL_OUTLOOK
    latest = now + LONGEST_OUTLOOK
    if not now <= until <= latest:
        raise InvalidInput(
            f"`until` must lie between the account's now and {LONGEST_OUTLOOK.days} days later",
            now_at=now.isoformat(),
            latest=latest.isoformat(),
        )
    return until


def timeline(state: AccountState, rules: Rules, *, until: datetime) -> Iterator[TimelineEntry]:
    """Everything that will happen by `until`, that instant included, in the order in which it will.

    state: as stored. What is due already and not yet written comes first, at the instant at which it was
    due, for that is how a job will write it. Lazy: a transition is computed when its first entry is asked
    for, and as each takes time forward by a period, a credit month or a grant, their number is bounded.
    Raises Conflict where a transition cannot be applied: there a job would park the account.
    """
    stored = frozenset(invoice.id for invoice in state.invoices)
    while (due := next_transition(state)) is not None and due[0] <= until:
        at, transition = due
        after = _applied(state, rules, at, transition)
        tell = partial(TimelineEntry, at=at, transition=transition)
        yield from _periods(state, after, rules, tell)
        yield from _invoices(state, after, rules, stored, tell)
        yield from _subscription(state, after, tell)
        yield from _account(state, after, tell)
        yield from _credits(state, after, tell)
        state = _without_the_past(after)


def _applied(state: AccountState, rules: Rules, at: datetime, transition: Transition) -> AccountState:
    try:
        return advance(state, rules, as_of=at, steps=1)
    except BillingError as refusal:  # it would read like an answer to whoever looks ahead
        raise Conflict(
            "what is due next cannot be applied; somebody has to look at this account",
            transition=transition,
            due_at=at.isoformat(),
            problem=refusal.code,
        ) from refusal


def _without_the_past(state: AccountState) -> AccountState:
    """What later transitions depend on; else each step of a long timeline would be slower than the one before."""
    return replace(
        state,
        periods=state.periods[-1:],
        grants=tuple(grant for grant in state.grants if grant.remaining),
        transactions=(),
        events=(),
    )


def _periods(before: AccountState, after: AccountState, rules: Rules, tell: Tell) -> Iterator[TimelineEntry]:
    there = {_name(period): period for period in after.periods}
    for period in before.periods:
        kept = there.pop(_name(period), None)
        ends_at = period.starts_at if kept is None else kept.ends_at
        if ends_at != period.ends_at:
            yield tell(
                kind=EntryKind.PERIOD_EXTENDED if ends_at > period.ends_at else EntryKind.PERIOD_CUT,
                plan=rules.plans[period.plan_id].slug,
                period_starts_at=period.starts_at,
                period_ends_at=ends_at,
            )
    for period in there.values():
        yield tell(
            kind=EntryKind.PERIOD_OPENED,
            plan=rules.plans[period.plan_id].slug,
            period_starts_at=period.starts_at,
            period_ends_at=period.ends_at,
        )


def _name(period: Period) -> tuple[UUID, int, int]:
    return period.subscription_id, period.phase, period.period_index


def _invoices(
    before: AccountState, after: AccountState, rules: Rules, stored: frozenset[UUID], tell: Tell
) -> Iterator[TimelineEntry]:
    statuses = {invoice.id: invoice.status for invoice in before.invoices}
    for invoice in after.invoices:
        if invoice.status is not statuses.get(invoice.id):
            opened = invoice.status is InvoiceStatus.OPEN
            yield tell(
                kind=EntryKind.INVOICE_OPENED if opened else EntryKind.INVOICE_VOIDED,
                plan=rules.plans[invoice.plan_id].slug,
                period_starts_at=invoice.period_starts_at,
                period_ends_at=invoice.period_ends_at,
                invoice_id=invoice.id if invoice.id in stored else None,
                amount_minor=invoice.amount_minor,
                currency=invoice.currency,
                due_at=invoice.due_at,
            )


def _subscription(before: AccountState, after: AccountState, tell: Tell) -> Iterator[TimelineEntry]:
    was = before.live
    if was is None:
        return
    sub = after.subscriptions[-1]
    if sub.status is SubscriptionStatus.ENDED:
        yield tell(kind=EntryKind.SUBSCRIPTION_ENDED, reason=sub.end_reason)
    elif sub.status is not was.status and sub.status is SubscriptionStatus.ACTIVE:
        yield tell(kind=EntryKind.SUBSCRIPTION_ACTIVATED)
    elif sub.status is not was.status:
        yield tell(kind=EntryKind.SUBSCRIPTION_PAST_DUE, grace_ends_at=sub.grace_ends_at)
    elif sub.grace_ends_at != was.grace_ends_at:
        yield tell(kind=EntryKind.GRACE_EXTENDED, grace_ends_at=sub.grace_ends_at)


def _account(before: AccountState, after: AccountState, tell: Tell) -> Iterator[TimelineEntry]:
    account = after.account
    if account.status is not before.account.status:
        yield tell(kind=EntryKind.ACCOUNT_STATUS_CHANGED, status=account.status, reason=account.status_reason)


def _credits(before: AccountState, after: AccountState, tell: Tell) -> Iterator[TimelineEntry]:
    grants = {grant.id: grant for grant in after.grants}
    for row in after.transactions:
        seeded = row.kind is TransactionKind.SEED
        yield tell(
            kind=POSTED[row.kind],
            amount=row.amount,
            balance_after=row.balance_after,
            expires_at=grants[row.grant_id].expires_at if seeded else None,
        )
    for grant in before.grants:
        kept = grants[grant.id]
        if kept.expires_at != grant.expires_at:
            yield tell(kind=EntryKind.CREDITS_CARRIED_OVER, amount=kept.remaining, expires_at=kept.expires_at)
