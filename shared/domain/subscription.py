"""Subscriptions and their periods: values, and the states a subscription can be in.

Source: docs/rules.md, "Subscriptions".
"""

from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct

from shared.domain.calendar import Interval, boundary
from shared.domain.plan import Assigner
from shared.errors import IllegalTransition


class SubscriptionStatus(StrEnum):
    """`ended` is final; the other three are live."""

    TRIALING = "trialing"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    ENDED = "ended"


# An enum's attribute takes as long to look up as a value takes to replace, and a batch looks up a hundred thousand.
TRIALING, ACTIVE, PAST_DUE, ENDED = SubscriptionStatus


class SubscriptionEvent(StrEnum):
    """What happens to a subscription."""

    ACTIVATE = "activate"  # paid, renewed, or on a plan without a price
    DEFER = "defer"  # owed, and given time: a grace period, an undecided bank transfer
    END = "end"


class EndReason(StrEnum):
    """Why a subscription ended."""

    TRIAL_EXPIRED = "trial_expired"
    PAYMENT_OVERDUE = "payment_overdue"
    CANCELLED = "cancelled"


TRANSITIONS: Final = {
    (SubscriptionStatus.TRIALING, SubscriptionEvent.ACTIVATE): SubscriptionStatus.ACTIVE,
    (SubscriptionStatus.TRIALING, SubscriptionEvent.DEFER): SubscriptionStatus.PAST_DUE,
    (SubscriptionStatus.TRIALING, SubscriptionEvent.END): SubscriptionStatus.ENDED,
    (SubscriptionStatus.ACTIVE, SubscriptionEvent.ACTIVATE): SubscriptionStatus.ACTIVE,
    (SubscriptionStatus.ACTIVE, SubscriptionEvent.DEFER): SubscriptionStatus.PAST_DUE,
    (SubscriptionStatus.ACTIVE, SubscriptionEvent.END): SubscriptionStatus.ENDED,
    (SubscriptionStatus.PAST_DUE, SubscriptionEvent.ACTIVATE): SubscriptionStatus.ACTIVE,
    (SubscriptionStatus.PAST_DUE, SubscriptionEvent.DEFER): SubscriptionStatus.PAST_DUE,
    (SubscriptionStatus.PAST_DUE, SubscriptionEvent.END): SubscriptionStatus.ENDED,
}


def next_status(status: SubscriptionStatus, event: SubscriptionEvent) -> SubscriptionStatus:
    """Raises IllegalTransition for every pair that TRANSITIONS does not declare."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise IllegalTransition(f"a subscription that is {status} cannot {event}") from None


class Subscription(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One row of `subscriptions`.

    A phase is the stretch under one plan and one anchor; it is counted from 0. Within a phase the
    k-th period runs from boundary k to boundary k + 1, and credit months are counted likewise.
    `price_minor`, `currency`, `interval` and `interval_count` are the subscription's own copy.
    """

    id: UUID
    account_id: UUID
    plan_id: UUID
    assigned_by: Assigner
    status: SubscriptionStatus
    price_minor: int
    currency: str
    interval: Interval
    interval_count: int
    time_zone: str
    started_at: datetime
    phase: int
    anchor_at: datetime
    period_index: int
    current_period_starts_at: datetime
    current_period_ends_at: datetime
    credit_month_index: int  # of the next seed
    next_credit_at: datetime  # when it is due
    trial_ends_at: datetime | None = None
    activated_at: datetime | None = None
    grace_ends_at: datetime | None = None
    grace_extended: bool = False
    cancel_at_period_end: bool = False
    next_plan_id: UUID | None = None
    next_plan_assigned_by: Assigner | None = None
    payment_method: str | None = None
    external_payment_id: str | None = None
    ended_at: datetime | None = None
    end_reason: EndReason | None = None

    @property
    def is_live(self) -> bool:
        """Whether it still runs; an account has one such subscription at most."""
        return self.status is not ENDED

    @property
    def current_period(self) -> "Period":
        """The period that it is in, or ended in."""
        first = self.current_period_starts_at == self.started_at
        return Period(
            subscription_id=self.id,
            account_id=self.account_id,
            plan_id=self.plan_id,
            phase=self.phase,
            period_index=self.period_index,
            starts_at=self.current_period_starts_at,
            ends_at=self.current_period_ends_at,
            previous_ends_at=None if first else self.current_period_starts_at,
        )

    @property
    def awaits_transfer_after_trial(self) -> bool:
        """Past due because a bank transfer submitted in the trial is undecided."""
        return self.status is PAST_DUE and self.activated_at is None

    @property
    def renews_at(self) -> datetime | None:
        """When the next period opens, if nothing changes; None in a trial or after a cancellation."""
        renews = self.status is ACTIVE or self.status is PAST_DUE
        if not renews or self.cancel_at_period_end or self.awaits_transfer_after_trial:
            return None
        return self.current_period_ends_at

    def credit_month_boundary(self, index: int) -> datetime:
        """Start of credit month `index` of the present phase."""
        return boundary(self.anchor_at, Interval.MONTH, 1, index, self.time_zone)


class Period(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One row of `subscription_periods`: access granted for [starts_at, ends_at)."""

    subscription_id: UUID
    account_id: UUID
    plan_id: UUID
    phase: int
    period_index: int
    starts_at: datetime
    ends_at: datetime
    previous_ends_at: datetime | None
