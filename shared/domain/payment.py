"""Payments: what a provider is asked and answers, and whether an answer settles an invoice.

Everything here is a value or a decision about values; who asks, and over which wire, is in shared/providers.
Amounts are in minor units of ISO 4217 (8900 of USD is 89.00), currencies in capitals, instants aware UTC.

Source: docs/rules.md, "Payments".
"""

from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct

from shared.domain.invoice import Invoice
from shared.errors import PaymentMismatch, PaymentNotSucceeded

# A decline is hard when trying the same card again cannot help: only the customer can change the outcome, by another
# card, by authenticating, or by talking to the bank. Card networks also fine those who go on trying such cards.
# Every other code is soft, and so is a code that nobody has seen before: too little money today may be enough in
# three days, and one vain attempt costs less than a customer who was given up for a word we did not know.
HARD_DECLINES: Final = frozenset(
    {
        # The card is not to be used any more, or is suspected.
        "do_not_try_again",
        "expired_card",
        "fraudulent",
        "highest_risk_level",
        "lost_card",
        "merchant_blacklist",
        "pickup_card",
        "restricted_card",
        "stolen_card",
        # There is no such card or account (any more).
        "incorrect_number",
        "invalid_account",
        "invalid_expiry_month",
        "invalid_expiry_year",
        "invalid_number",
        "new_account_information_available",
        # The card cannot pay for this at all.
        "card_not_supported",
        "currency_not_supported",
        "not_permitted",
        "service_not_allowed",
        "transaction_not_allowed",
        # The customer told the bank to stop.
        "revocation_of_all_authorizations",
        "revocation_of_authorization",
        "stop_payment_order",
        # The customer has to be there.
        "authentication_required",
    }
)


class Charge(Struct, frozen=True, kw_only=True):
    """A saved payment method is to be charged for an invoice, no earlier than `due_at`. Attempts count from 1."""

    account_id: UUID
    invoice_id: UUID
    attempt: int
    due_at: datetime


class PaymentStatus(StrEnum):
    """An intent is pending until the provider was asked."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class ProviderStatus(StrEnum):
    """How far a payment or a refund has come at the provider."""

    PENDING = "pending"  # nobody has paid yet, or the answer is not in
    SUCCEEDED = "succeeded"  # the money has moved
    FAILED = "failed"  # it was tried and came to nothing; a customer may still try the same payment with another card


class ProviderPayment(Struct, frozen=True, kw_only=True):
    """What a provider knows of a payment.

    amount_minor: received, not asked for; 0 until the payment has succeeded, and less than was asked for when
        only a part was captured.
    account_id, invoice_id: what it was created for; None when it was not created by this engine.
    decline_code: why it failed, in the provider's word; None for every other status, and for a cancelled payment.
    customer_ref, payment_method_ref: with both, `charge` can be asked for later payments.
    """

    external_payment_id: str
    status: ProviderStatus
    amount_minor: int
    currency: str
    account_id: UUID | None = None
    invoice_id: UUID | None = None
    decline_code: str | None = None
    customer_ref: str | None = None
    payment_method_ref: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the money has arrived."""
        return self.status is ProviderStatus.SUCCEEDED


class CheckoutRequest(Struct, frozen=True, kw_only=True):
    """A payment to be made by a customer who is present.

    invoice_number: for people, on receipts and in the provider's dashboard.
    customer_ref: from `customer`; needed when the payment method is to be saved.
    save_payment_method: ask the customer's consent to later charges, and keep the method.
    continues: the payment that an earlier checkout of this invoice began. It goes on unless it was cancelled, so that
        an invoice never has two payments that could both succeed.
    """

    account_id: UUID
    invoice_id: UUID
    invoice_number: str
    amount_minor: int
    currency: str
    customer_ref: str | None = None
    save_payment_method: bool = False
    continues: str | None = None


class Checkout(Struct, frozen=True, kw_only=True):
    """A payment that waits for its customer.

    client_secret: lets a browser complete this one payment. Secret: for its customer alone, never stored or logged.
    """

    external_payment_id: str
    client_secret: str
    status: ProviderStatus

    def __repr__(self) -> str:
        return f"Checkout({self.external_payment_id!r}, {str(self.status)!r}, client_secret=[redacted])"


class ChargeRequest(Struct, frozen=True, kw_only=True):
    """A payment with a saved method, by a customer who is absent.

    idempotency_key: of the invoice and the attempt. The same key charges once and answers the same, for a day at least.
    """

    account_id: UUID
    invoice_id: UUID
    invoice_number: str
    amount_minor: int
    currency: str
    customer_ref: str
    payment_method_ref: str
    idempotency_key: str


class RefundRequest(Struct, frozen=True, kw_only=True):
    """Money that goes back to where a payment came from.

    amount_minor: in the currency of the payment, all of it or a part.
    idempotency_key: of the refund. The same key refunds once and answers the same, for a day at least.
    """

    external_payment_id: str
    amount_minor: int
    currency: str
    idempotency_key: str


class ProviderRefund(Struct, frozen=True, kw_only=True):
    """What a provider knows of a refund. `reason` says why it failed, in the provider's word."""

    refund_id: str
    status: ProviderStatus
    amount_minor: int
    currency: str
    external_payment_id: str | None = None
    reason: str | None = None


class ProviderEventKind(StrEnum):
    """What an event is about; whoever handles it asks the provider for the rest."""

    PAYMENT = "payment"
    REFUND = "refund"
    OTHER = "other"  # genuine, and nothing to us


class ProviderEvent(Struct, frozen=True, kw_only=True):
    """News from a provider, known to be genuine. Events come twice, late, and in any order.

    type: the provider's word for what happened, such as `payment_intent.succeeded`.
    external_payment_id, refund_id: what to ask the provider about. An event about a payment has the first; one about
        refunds has at least one of the two.
    account_id, invoice_id: what the object was created for; None when this engine did not create it.
    """

    event_id: str
    type: str
    created_at: datetime
    kind: ProviderEventKind
    external_payment_id: str | None = None
    refund_id: str | None = None
    account_id: UUID | None = None
    invoice_id: UUID | None = None


def is_hard_decline(decline_code: str | None) -> bool:
    """Whether charging the same method again is in vain. False for codes that are not known, and for None."""
    return decline_code in HARD_DECLINES


def require_made_for(payment: ProviderPayment, *, account_id: UUID, invoice_id: UUID) -> None:
    """Raises PaymentNotSucceeded, or PaymentMismatch unless the payment was made for just this invoice.

    Whatever else it was made for is not this account's to know.
    """
    if not payment.succeeded:
        raise PaymentNotSucceeded("the provider reports no successful payment under this id")
    if (payment.account_id, payment.invoice_id) != (account_id, invoice_id):
        raise PaymentMismatch("the payment was made for another invoice")


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
