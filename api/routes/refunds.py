"""Refunds: an admin looks at a payment, and gives the money back."""

from api import schemas
from api.accept import Accepted, accept
from api.access import ADMIN, Admin
from api.routing import ACCEPTED, Routes
from api.schemas import AdminPaymentDocument, RefundDocument
from shared.db import payments, refunds
from shared.db.engine import Tx
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.payment import PaymentStatus
from shared.domain.refund import RefundStatus, require_reference
from shared.domain.requests import RefundPayment

routes = Routes("admin payments", about="Payments as admins see them, and money that goes back.")


@routes.handle("GET", "/admin/payments/<uuid:payment_id>", needs=ADMIN, answer=AdminPaymentDocument)
def read_payment(tx: Tx, path: schemas.PaymentPath) -> AdminPaymentDocument:
    """A payment, whose it is or that nobody knows, and what went back of it."""
    payment = payments.get(tx, path.payment_id)
    made = refunds.of_payment(tx, payment.id)
    counted = [refund for refund in made if refund.status != RefundStatus.FAILED and refunds.is_answered(refund)]
    left_minor = payment.amount_minor - payment.refunded_minor if payment.status == PaymentStatus.SUCCEEDED else 0
    return AdminPaymentDocument.of(
        payment,
        applied_minor=0 if payment.applied_at is None else left_minor,
        unapplied_minor=0 if payment.unapplied_reason is None else left_minor,
        reversed_credits=sum(refund.reversed_credits for refund in made),
        spent_credits=counted[-1].spent_credits if counted else 0,
        refunds=[RefundDocument.of(refund) for refund in made],
    )


@routes.handle("POST", "/admin/payments/<uuid:payment_id>/refunds", needs=ADMIN, answer=ACCEPTED)
def refund_payment(
    tx: Tx,
    principal: Admin,
    path: schemas.PaymentPath,
    header: schemas.OptionalKey,
    body: schemas.RefundBody,
) -> Accepted:
    """Give back all that is left of a payment, or a part, with the credits that it paid for as far as unspent.

    The subscription goes on: cancelling is another decision.
    """
    payment = payments.get(tx, path.payment_id)
    require_reference(PaymentMethod(payment.provider), body.transfer_reference)
    return accept(
        tx,
        OperationKind.REFUND_PAYMENT,
        RefundPayment(
            payment_id=payment.id,
            amount_minor=body.amount_minor,
            reason=body.reason,
            transfer_reference=body.transfer_reference,
        ),
        principal=principal,
        account_id=payment.account_id,
        body=body,
        key=header.idempotency_key,
    )
