"""Give money back: note how much, have the provider do it, take back the credits that went with it.

Three steps like those of a confirmation, for the same reason. From the first on, the amount counts as refunded, so two
refunds never give back more than came. A refund changes no subscription: whether the customer stays is another
decision.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct
from sqlalchemy import Row

from shared.db import payments, refunds
from shared.db.engine import Tx
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import Operation
from shared.domain.payment import PaymentStatus, ProviderRefund, ProviderStatus, RefundRequest
from shared.domain.plan import Rules
from shared.domain.refund import (
    BY_HAND,
    RefundStatus,
    amount_to_refund,
    outlived_its_key,
    require_reference,
)
from shared.domain.requests import RefundPayment
from shared.errors import BillingError, ProviderRefused
from shared.providers.base import Provider


class Intent(Struct, frozen=True, kw_only=True):
    """What is asked of which provider; nothing of money that goes back by hand.

    asked_at: when it was noted first. known: the provider's ids of this payment's refunds that have one.
    """

    provider: PaymentMethod
    request: RefundRequest | None
    asked_at: datetime
    known: frozenset[str]


def record_refund(
    tx: Tx,
    operation: Operation,
    request: RefundPayment,
    rules: Rules,  # noqa: ARG001 (as a task calls it)
) -> Intent:
    """Write down what is about to go back, once: the refund bears the operation's id.

    Raises NotFound, InvalidInput, PaymentNotSucceeded, RefundExceedsPayment.
    """
    payment = payments.lock(tx, request.payment_id)
    provider = PaymentMethod(payment.provider)
    refund = refunds.maybe(tx, operation.id)
    if refund is None:
        require_reference(provider, request.transfer_reference)
        refund = refunds.record(
            tx,
            payment,
            refund_id=operation.id,
            operation_id=operation.id,
            amount_minor=amount_to_refund(
                PaymentStatus(payment.status),
                paid_minor=payment.amount_minor,
                refunded_minor=payment.refunded_minor,
                wanted_minor=request.amount_minor,
            ),
            reason=request.reason,
            transfer_reference=request.transfer_reference,
        )
    return Intent(
        provider=provider,
        request=None if provider in BY_HAND or refunds.is_answered(refund) else _request(payment, refund),
        asked_at=refund.created_at,
        known=frozenset(
            one.external_refund_id for one in refunds.of_payment(tx, payment.id) if one.external_refund_id is not None
        ),
    )


def give_back(
    provider: Provider, request: RefundRequest, intent: Intent, *, now: datetime
) -> ProviderRefund | ProviderRefused:
    """What the provider makes of the request; a refusal is an answer, too. Raises ProviderDown, ProviderUnavailable.

    Asking again under the same key is safe, but not for ever: when the key may be forgotten, and the answer was lost,
    a refund of this amount that nobody knows of is the one that was asked for.
    """
    if outlived_its_key(intent.asked_at, now=now):
        for made in provider.refunds_of(request.external_payment_id):
            is_unknown = made.refund_id not in intent.known and made.status is not ProviderStatus.FAILED
            if is_unknown and made.amount_minor == request.amount_minor:
                return made
    try:
        return provider.refund(request)
    except ProviderRefused as refusal:
        return refusal


def complete_refund(
    tx: Tx,
    operation: Operation,
    request: RefundPayment,
    answer: ProviderRefund | ProviderRefused | None,
    rules: Rules,
    *,
    now: datetime,
) -> dict[str, Any] | BillingError:
    """Write down what became of it, and take the credits back.

    answer: None when nobody was asked. Returns ProviderRefused, with the refund as failed.
    """
    payment = refunds.open_payment(tx, request.payment_id, rules, now=now)
    refund = refunds.get(tx, operation.id)
    if isinstance(answer, ProviderRefund):
        told: dict[str, Any] = {"operation_id": operation.id, "now": now}
        if refund.external_refund_id in {None, answer.refund_id}:
            refund = refunds.hear(tx, refund, answer, rules, **told)
        else:  # while it was asked for, it was taken for one made in the dashboard: there are two
            refunds.learn(tx, payment.id, answer, rules, **told)
    elif not refunds.is_answered(refund):
        if isinstance(answer, ProviderRefused):
            problem = str(answer.data.get("reason") or answer.code)
            refund = refunds.fail(
                tx, refund, problem=problem, external_refund_id=None, operation_id=operation.id, now=now
            )
        else:
            refund = refunds.accept(tx, refund, RefundStatus.SUCCEEDED, rules, external_refund_id=None, now=now)
    if refund.status == RefundStatus.FAILED:
        return ProviderRefused(
            f"the money was not given back: {refund.problem}",
            provider=payment.provider,
            reason=refund.problem,
            refund_id=str(refund.id),
        )
    return _result(payment, refund)


def _request(payment: Row[Any], refund: Row[Any]) -> RefundRequest:
    return RefundRequest(
        external_payment_id=payment.external_payment_id,
        amount_minor=refund.amount_minor,
        currency=refund.currency,
        idempotency_key=f"refund:{refund.id}",
    )


def _result(payment: Row[Any], refund: Row[Any]) -> dict[str, Any]:
    return {
        "account_id": None if payment.account_id is None else str(payment.account_id),
        "payment_id": str(payment.id),
        "refund_id": str(refund.id),
        "status": refund.status,
        "amount_minor": refund.amount_minor,
        "currency": refund.currency,
        "external_refund_id": refund.external_refund_id,
        "reversed_credits": refund.reversed_credits,
        "spent_credits": refund.spent_credits,
    }
