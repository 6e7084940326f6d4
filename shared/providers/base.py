"""What the engine asks of a payment provider.

Every method goes over a network, so none is ever called inside a transaction, and each may be called again with the
same arguments after its answer was lost: whatever changes something carries an idempotency key.

There are three outcomes. A value is the provider's answer, a declined card among them. A BillingError is an answer
too: the provider or this engine refuses the request, and would refuse it again. ProviderDown is no answer at all;
what was asked may or may not have happened, and is asked again later with the same key.

Source: docs/rules.md, "Payments".
"""

from collections.abc import Mapping
from typing import Protocol
from uuid import UUID

from shared.domain.payment import (
    ChargeRequest,
    Checkout,
    CheckoutRequest,
    ProviderEvent,
    ProviderPayment,
    ProviderRefund,
    RefundRequest,
)


class Provider(Protocol):
    """A provider of payments. Every method may raise ProviderDown, and ProviderUnavailable for what it cannot do."""

    def retrieve(self, external_payment_id: str) -> ProviderPayment | None:
        """What the provider knows of this payment; None when it knows nothing under this id."""
        ...

    def customer(self, account_id: UUID, name: str, email: str) -> str:
        """The reference of this account's customer at the provider, made at the first call.

        The same account gets the same customer for a day at least; the caller keeps the reference.
        Raises ProviderRefused.
        """
        ...

    def checkout(self, request: CheckoutRequest) -> Checkout:
        """A payment for this invoice that the customer completes in the browser; the same one when asked again.

        Raises ProviderRefused, for example for an amount below the provider's least.
        """
        ...

    def charge(self, request: ChargeRequest) -> ProviderPayment:
        """Take a payment with a saved method. A decline is an answer: `failed`, with its decline code.

        Raises ProviderRefused when nothing was tried, for example because the method was removed.
        """
        ...

    def refund(self, request: RefundRequest) -> ProviderRefund:
        """Give money back. Raises ProviderRefused, for example for more than is left of the payment."""
        ...

    def retrieve_refund(self, refund_id: str) -> ProviderRefund | None:
        """What the provider knows of this refund; None when it knows nothing under this id."""
        ...

    def refunds_of(self, external_payment_id: str) -> list[ProviderRefund]:
        """All refunds of a payment, whoever made them, newest first; none for an id that is not known."""
        ...

    def verify_webhook(self, body: bytes, headers: Mapping[str, str]) -> ProviderEvent:
        """The event in a request that claims to come from the provider.

        body: as it arrived, byte by byte. headers: in any case of letters. Asks nobody.
        Raises WebhookInvalid for a wrong or missing signature, one older than five minutes, or a body without event.
        """
        ...
