"""Refunds: how much may go back, how far one has come, and which credits go back with the money.

Money is given back of one payment, all of it or parts. Credits go back in the same proportion: those that were seeded
for the period that the payment paid for, as far as they are not spent. Amounts are in minor units of the payment's
currency.

Source: docs/rules.md, "Refunds".
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from shared.domain.invoice import PaymentMethod
from shared.domain.payment import PaymentStatus, ProviderStatus
from shared.errors import InvalidInput, PaymentNotSucceeded, RefundExceedsPayment

MADE_AT_THE_PROVIDER: Final = "made at the provider"  # the reason of a refund that nobody asked this engine for

# Of these no provider can be asked: an admin gives the money back, and says how.
BY_HAND: Final = frozenset({PaymentMethod.BANK_TRANSFER, PaymentMethod.MANUAL})

# A provider keeps an idempotency key for a day at least. Before that is over it is no longer relied upon.
KEY_LASTS: Final = timedelta(hours=20)


class RefundStatus(StrEnum):
    """A refund is pending until the money has moved; what has moved may still come back."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


# Whatever else a provider says is no news: answers come late, twice, and in any order.
TRANSITIONS: Final = {
    (RefundStatus.PENDING, ProviderStatus.SUCCEEDED): RefundStatus.SUCCEEDED,
    (RefundStatus.PENDING, ProviderStatus.FAILED): RefundStatus.FAILED,
    (RefundStatus.SUCCEEDED, ProviderStatus.FAILED): RefundStatus.FAILED,  # the customer's bank sent it back
}


def next_status(status: RefundStatus, said: ProviderStatus) -> RefundStatus:
    """The status once the provider has said this; the same one when that is no news."""
    return TRANSITIONS.get((status, said), status)


def require_reference(provider: PaymentMethod, transfer_reference: str | None) -> None:
    """Raises InvalidInput unless it is stated how money went back that no provider gives back, and only then."""
    if provider in BY_HAND and transfer_reference is None:
        raise InvalidInput(f"a payment by {provider} is given back by hand: state the transfer_reference")
    if provider not in BY_HAND and transfer_reference is not None:
        raise InvalidInput(f"{provider} gives the money back: leave the transfer_reference out")


def amount_to_refund(
    status: PaymentStatus, *, paid_minor: int | None, refunded_minor: int, wanted_minor: int | None
) -> int:
    """What goes back: what is wanted, or all that is left when nothing is stated.

    refunded_minor: what has gone back or is on its way.
    Raises PaymentNotSucceeded, RefundExceedsPayment, InvalidInput.
    """
    if status is not PaymentStatus.SUCCEEDED or paid_minor is None:
        raise PaymentNotSucceeded(f"this payment is {status}; only money that came can go back")
    left_minor = paid_minor - refunded_minor
    amount_minor = left_minor if wanted_minor is None else wanted_minor
    if left_minor <= 0 or amount_minor > left_minor:
        raise RefundExceedsPayment(
            f"{left_minor} is left of this payment", left_minor=left_minor, paid_minor=paid_minor
        )
    if amount_minor <= 0:
        raise InvalidInput("a refund is of a positive amount")
    return amount_minor


def credits_to_reverse(*, seeded: int, paid_minor: int, refunded_minor: int, reversed_before: int) -> int:
    """How many credits this refund has to take back.

    The share of the money that has gone back, this refund included, is the share of what was seeded that must be taken
    back by now, rounded down; what earlier refunds took counts. So it does not matter into how many refunds an amount
    is split, and a part that was spent is looked for again by the next one.
    """
    return max(seeded * refunded_minor // paid_minor - reversed_before, 0)


def outlived_its_key(asked_at: datetime, *, now: datetime) -> bool:
    """Whether a refund that has no answer was asked for so long ago that asking again could make another one."""
    return now - asked_at >= KEY_LASTS
