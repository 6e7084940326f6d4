"""An admin records money that arrived by some other way than a provider or a bank transfer."""

from datetime import datetime
from typing import Any

from shared.db import account_state, audit, payments, settlement
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import Operation
from shared.domain.payment import require_amount
from shared.domain.plan import Rules
from shared.domain.requests import RecordPayment
from shared.errors import BillingError, InvoiceNotOpen


def record_payment(
    tx: Tx, operation: Operation, request: RecordPayment, rules: Rules, *, now: datetime
) -> dict[str, Any] | BillingError:
    """Settle the invoice by an admin's word.

    Raises PaymentMismatch, PaymentAlreadyUsed. InvoiceNotOpen is returned, and leaves the money as unapplied.
    """
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    used = payments.require_unused(
        tx, PaymentMethod.MANUAL, request.external_payment_id, for_invoice=request.invoice_id
    )
    money = settlement.Received(
        operation_id=operation.id,
        method=PaymentMethod.MANUAL,
        external_payment_id=request.external_payment_id,
        amount_minor=request.amount_minor,
        currency=request.currency,
    )
    try:
        invoice = lifecycle.open_invoice(account.state, request.invoice_id)
    except InvoiceNotOpen as refusal:
        if used is not None:
            raise
        return settlement.keep(tx, account, rules, money, refusal, invoice_id=request.invoice_id)
    require_amount(invoice, amount_minor=request.amount_minor, currency=request.currency)
    payment_id = settlement.settle(tx, account, invoice, rules, money)
    audit.record(
        tx,
        at=account.now,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action="payment.recorded",
        account_id=invoice.account_id,
        subject_kind="invoice",
        subject_id=invoice.id,
        reason=request.reason,
        before={"status": "open"},
        after={"status": "paid", "payment_id": str(payment_id)},
        operation_id=operation.id,
    )
    return {
        "account_id": str(invoice.account_id),
        "invoice_id": str(invoice.id),
        "payment_id": str(payment_id),
    }
