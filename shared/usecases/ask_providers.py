"""The beat job's work: have every checkout looked into whose time to be asked about has come.

A browser may have been closed and a webhook lost; a payment that was made is found all the same.
"""

from datetime import datetime

from shared.db import checkouts, operations
from shared.db.engine import Tx
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.plan import Rules
from shared.domain.requests import ConfirmPayment


def ask_providers(tx: Tx, rules: Rules, as_of: datetime, limit: int) -> int:
    """Have at most `limit` payments confirmed; how many. 0 means that no time has come."""
    due = checkouts.claim_to_ask(tx, as_of=as_of, limit=limit)
    operations.schedule(
        tx,
        OperationKind.CONFIRM_PAYMENT,
        [
            (
                rules.new_id(),
                row.account_id,
                ConfirmPayment(
                    invoice_id=row.invoice_id,
                    provider=PaymentMethod(row.provider),
                    external_payment_id=row.external_payment_id,
                ),
                f"{row.external_payment_id}:{row.asked + 1}",
                as_of,
            )
            for row in due
        ],
    )
    return len(due)
