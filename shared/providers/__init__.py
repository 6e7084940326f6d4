"""Payment providers, by the payment method that they confirm."""

from shared.config import Settings
from shared.db.engine import Database
from shared.domain.invoice import PaymentMethod
from shared.errors import ProviderUnavailable
from shared.providers.base import Provider
from shared.providers.sandbox import SandboxProvider

__all__ = ["Provider", "provider_for"]


def provider_for(method: PaymentMethod, settings: Settings, database: Database) -> Provider:
    """The provider that can confirm such a payment. Raises ProviderUnavailable."""
    if method is PaymentMethod.SANDBOX and settings.billing_sandbox:
        return SandboxProvider(database)
    raise ProviderUnavailable(f"payments by {method} cannot be confirmed here", provider=str(method))
