"""The pretend card provider of the demo and the tests; its ledger is the table `sandbox_payments`."""

from shared.db.engine import Database
from shared.domain.payment import ProviderPayment


class SandboxProvider:
    """Knows the payments that were made at `POST /api/v1/sandbox/payments`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def retrieve(self, external_payment_id: str) -> ProviderPayment | None:
        """As the protocol says."""
        with self._database.transaction() as tx:
            row = tx.maybe("SELECT * FROM sandbox_payments WHERE external_payment_id = %(id)s", id=external_payment_id)
        if row is None:
            return None
        return ProviderPayment(
            external_payment_id=external_payment_id,
            succeeded=row.succeeded,
            amount_minor=row.amount_minor,
            currency=row.currency,
            account_id=row.account_id,
            invoice_id=row.invoice_id,
        )
