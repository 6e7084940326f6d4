"""What a refusal leaves of a payment that was asked about: an intent that came to nothing, with the reason."""

from shared.db import payments
from shared.db.engine import Tx
from shared.domain.operation import Operation
from shared.errors import BillingError


def payment_refused(tx: Tx, operation: Operation, refusal: BillingError) -> None:
    """Write the reason down; there may be no intent."""
    payments.fail(tx, operation.id, refusal, at=operation.created_at)
