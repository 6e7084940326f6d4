"""Follow refunds at the provider: ours that were on their way, and those that somebody made in its dashboard."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from shared.db import checkouts, payments, refunds
from shared.db.engine import Tx
from shared.domain.operation import Operation
from shared.domain.payment import PaymentStatus, ProviderRefund
from shared.domain.plan import Rules
from shared.domain.requests import FollowRefunds
from shared.errors import ProviderDown


def note_question(
    tx: Tx,  # noqa: ARG001 (as a task calls it)
    operation: Operation,  # noqa: ARG001
    request: FollowRefunds,
    rules: Rules,  # noqa: ARG001
) -> FollowRefunds:
    """Asking leaves nothing behind, so there is no intent."""
    return request


def follow_refunds(
    tx: Tx,
    operation: Operation,
    request: FollowRefunds,
    answer: Sequence[ProviderRefund],
    rules: Rules,
    *,
    now: datetime,
) -> dict[str, Any]:
    """Write down what is news; what is none changes nothing.

    answer: all refunds of the payment, newest first.
    Raises ProviderDown while it cannot be told whose a refund is, or the payment itself waits for its answer;
    RefundExceedsPayment for more than came.
    """
    payment = payments.succeeded_with(tx, request.provider, request.external_payment_id)
    if payment is None:
        if payments.is_recorded(
            tx, request.provider, request.external_payment_id, PaymentStatus.PENDING
        ) or checkouts.is_open(tx, request.provider, request.external_payment_id):
            raise ProviderDown("the payment itself waits for its answer")
        return {"account_id": None, "payment_id": None, "refund_ids": []}
    payment = refunds.open_payment(tx, payment.id, rules, now=now)
    found = [
        refunds.learn(tx, payment.id, said, rules, operation_id=operation.id, now=now) for said in reversed(answer)
    ]
    return {
        "account_id": None if payment.account_id is None else str(payment.account_id),
        "payment_id": str(payment.id),
        "refund_ids": [str(refund.id) for refund in found if refund is not None],
    }
