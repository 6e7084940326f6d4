"""Invoices: states, what an invoice is for, its number and its creditor reference.

Source: docs/rules.md, "Invoices".
"""

from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct
from stdnum import iso11649
from stdnum.iso7064 import mod_97_10

from shared.domain.plan import Assigner
from shared.errors import IllegalTransition


class InvoiceStatus(StrEnum):
    """`paid` and `void` are final."""

    OPEN = "open"
    PAID = "paid"
    VOID = "void"


class InvoiceEvent(StrEnum):
    """What happens to an invoice."""

    SETTLE = "settle"
    VOID = "void"


class InvoicePurpose(StrEnum):
    """What paying it brings."""

    ACTIVATION = "activation"  # a first period that starts at the confirmation
    RENEWAL = "renewal"  # a period whose dates are known


class PaymentMethod(StrEnum):
    """How a customer pays."""

    STRIPE = "stripe"
    BANK_TRANSFER = "bank_transfer"
    MANUAL = "manual"
    SANDBOX = "sandbox"  # stands in for a card where BILLING_SANDBOX=1


TRANSITIONS: Final = {
    (InvoiceStatus.OPEN, InvoiceEvent.SETTLE): InvoiceStatus.PAID,
    (InvoiceStatus.OPEN, InvoiceEvent.VOID): InvoiceStatus.VOID,
}


def next_status(status: InvoiceStatus, event: InvoiceEvent) -> InvoiceStatus:
    """Raises IllegalTransition for every pair that TRANSITIONS does not declare."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise IllegalTransition(f"an invoice that is {status} cannot {event}") from None


class Invoice(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One row of `invoices`. Number and reference are given when the row is written."""

    id: UUID
    account_id: UUID
    purpose: InvoicePurpose
    plan_id: UUID
    assigned_by: Assigner
    status: InvoiceStatus
    amount_minor: int
    currency: str
    opened_at: datetime
    due_at: datetime
    subscription_id: UUID | None = None
    period_starts_at: datetime | None = None
    period_ends_at: datetime | None = None
    payment_method: PaymentMethod | None = None
    paid_at: datetime | None = None
    voided_at: datetime | None = None
    transfer_pending_since: datetime | None = None  # an undecided bank transfer for it; not a column


def invoice_number(year: int, number: int) -> str:
    """As it is printed and read out: year, number in eight digits."""
    return f"{year:04d}-{number:08d}"


def creditor_reference(year: int, number: int) -> str:
    """ISO 11649 reference of an invoice: `RF`, two check digits, year, number in eight digits."""
    body = f"{year:04d}{number:08d}"
    check = mod_97_10.calc_check_digits(f"{body}RF")
    return iso11649.validate(f"RF{check}{body}")
