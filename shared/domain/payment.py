"""Payments: what a provider says of one, and whether that settles an invoice.

Source: docs/rules.md, "Payments".
"""

from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from shared.domain.invoice import Invoice
from shared.errors import PaymentMismatch, PaymentNotSucceeded


class PaymentStatus(StrEnum):
    """An intent is pending until the provider was asked."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class ProviderPayment(Struct, frozen=True, kw_only=True):
    """What a provider knows of a payment; `account_id` and `invoice_id` as it was created for."""

    external_payment_id: str
    succeeded: bool
    amount_minor: int
    currency: str
    account_id: UUID
    invoice_id: UUID


def require_settles(payment: ProviderPayment, invoice: Invoice) -> None:
    """Raises PaymentNotSucceeded or PaymentMismatch unless this payment is for just this invoice."""
    if not payment.succeeded:
        raise PaymentNotSucceeded("the provider reports no successful payment under this id")
    if payment.account_id != invoice.account_id or payment.invoice_id != invoice.id:
        raise PaymentMismatch("the payment was made for another invoice")
    require_amount(invoice, amount_minor=payment.amount_minor, currency=payment.currency)


def require_amount(invoice: Invoice, *, amount_minor: int, currency: str) -> None:
    """Raises PaymentMismatch unless amount and currency are those of the invoice."""
    if (amount_minor, currency) != (invoice.amount_minor, invoice.currency):
        raise PaymentMismatch(
            f"the invoice is over {invoice.amount_minor} {invoice.currency}, received {amount_minor} {currency}",
            expected_amount_minor=invoice.amount_minor,
            expected_currency=invoice.currency,
            received_amount_minor=amount_minor,
            received_currency=currency,
        )
