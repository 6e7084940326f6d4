"""What the engine asks of a payment provider, and which providers exist."""

from typing import Protocol

from shared.domain.payment import ProviderPayment


class Provider(Protocol):
    """Answers for payments that were made elsewhere. Never called inside a transaction."""

    def retrieve(self, external_payment_id: str) -> ProviderPayment | None:
        """What the provider knows of this payment; None when it knows nothing.

        Any exception means that it could not be asked, which is retried and never taken for a no.
        """
        ...
