"""Payment providers, by the payment method that they confirm."""

import os
from functools import lru_cache

from shared.config import Settings
from shared.db.engine import Database
from shared.domain.invoice import PaymentMethod
from shared.errors import ProviderUnavailable
from shared.providers.base import Provider
from shared.providers.sandbox import SandboxProvider

__all__ = ["Provider", "provider_for"]


def provider_for(method: PaymentMethod, settings: Settings, database: Database) -> Provider:
    """The provider that can confirm such a payment, ready for any thread. Raises ProviderUnavailable."""
    if method is PaymentMethod.SANDBOX and settings.billing_sandbox:
        return SandboxProvider(database)
    if method is PaymentMethod.STRIPE and settings.stripe_secret_key is not None:
        return _stripe(settings, os.getpid())
    raise ProviderUnavailable(f"payments by {method} cannot be confirmed here", provider=str(method))


@lru_cache(maxsize=1)
def _stripe(settings: Settings, _process: int) -> Provider:
    """Kept with its connections, for one process: the child of a fork makes its own."""
    from shared.providers.stripe import StripeProvider  # noqa: PLC0415 (slow to load, and most systems have no need)

    assert settings.stripe_secret_key is not None  # noqa: S101 - the caller looked
    return StripeProvider(
        secret_key=settings.stripe_secret_key,
        webhook_secret=settings.stripe_webhook_secret,
        api_base=settings.stripe_api_base,
        timeout_seconds=settings.stripe_timeout_seconds,
    )
