"""A provider that talks to this worker's Stripe, and what tests ask it for."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from shared.domain.payment import ChargeRequest, CheckoutRequest
from shared.ids import new_id
from shared.providers.stripe import StripeProvider
from workers.local_stripe import SECRET_KEY, WEBHOOK_SECRET, LocalStripe


def make_provider(api_base: str, **changes: Any) -> StripeProvider:
    """A provider with the keys of every `LocalStripe`, with changes."""
    options: dict[str, Any] = {
        "secret_key": SecretStr(SECRET_KEY),
        "webhook_secret": SecretStr(WEBHOOK_SECRET),
        "api_base": api_base,
        "timeout_seconds": 10,
    }
    return StripeProvider(**(options | changes))


@pytest.fixture
def provider(stripe: LocalStripe) -> StripeProvider:
    return make_provider(stripe.api_base)


@pytest.fixture
def account_id() -> UUID:
    return new_id()


@pytest.fixture
def checkout(account_id: UUID) -> Callable[..., CheckoutRequest]:
    """A checkout of a new invoice over 19.00 USD, with changes."""

    def request(**changes: Any) -> CheckoutRequest:
        fields: dict[str, Any] = {
            "account_id": account_id,
            "invoice_id": new_id(),
            "invoice_number": "2026-00000017",
            "amount_minor": 1900,
            "currency": "USD",
        }
        return CheckoutRequest(**(fields | changes))

    return request


@pytest.fixture
def charge(account_id: UUID) -> Callable[..., ChargeRequest]:
    """A charge for a new invoice over 19.00 USD, with changes."""

    def request(**changes: Any) -> ChargeRequest:
        invoice_id = new_id()
        fields: dict[str, Any] = {
            "account_id": account_id,
            "invoice_id": invoice_id,
            "invoice_number": "2026-00000018",
            "amount_minor": 1900,
            "currency": "USD",
            "customer_ref": "cus_none",
            "payment_method_ref": "pm_none",
            "idempotency_key": f"charge:{invoice_id}:1",
        }
        return ChargeRequest(**(fields | changes))

    return request
