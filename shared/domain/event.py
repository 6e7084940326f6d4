"""Events: what happened to an account that other parts may act on, each told once and never changed.

Source: docs/rules.md, "Events".
"""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from msgspec import Struct


class EventKind(StrEnum):
    """What is told; the first part names what `subject_id` is."""

    SUBSCRIPTION_STARTED = "subscription.started"
    SUBSCRIPTION_ACTIVATED = "subscription.activated"  # by a payment
    SUBSCRIPTION_RENEWED = "subscription.renewed"
    SUBSCRIPTION_PAST_DUE = "subscription.past_due"
    SUBSCRIPTION_PLAN_CHANGED = "subscription.plan_changed"
    SUBSCRIPTION_CANCELLATION_SCHEDULED = "subscription.cancellation_scheduled"
    SUBSCRIPTION_ENDED = "subscription.ended"
    PAYMENT_SUCCEEDED = "payment.succeeded"
    PAYMENT_FAILED = "payment.failed"
    PAYMENT_UNAPPLIED = "payment.unapplied"  # the money is here and settles nothing
    PAYMENT_REFUNDED = "payment.refunded"
    PAYMENT_REFUND_FAILED = "payment.refund_failed"
    BANK_TRANSFER_SUBMITTED = "bank_transfer.submitted"
    BANK_TRANSFER_APPROVED = "bank_transfer.approved"
    BANK_TRANSFER_REJECTED = "bank_transfer.rejected"
    CREDITS_LOW = "credits.low"  # told by the functions that take credits; of the subscription whose month it is
    CREDITS_EXHAUSTED = "credits.exhausted"


class Event(Struct, frozen=True, kw_only=True):
    """One row of `events`. `occurred_at` is when it was due; when it was written is the database's to say."""

    account_id: UUID
    kind: EventKind
    subject_id: UUID
    data: dict[str, Any]
    occurred_at: datetime
