"""Confirm a payment: note the intent, ask the provider, settle. The browser's word counts for nothing.

Three steps, because a provider is never called while a transaction is open. The first and the last
are transactions of their own; dying between any two of them repeats them, to the same effect.
"""

from datetime import datetime
from typing import Any

from shared.db import account_state, invoices, payments, settlement
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.operation import Operation
from shared.domain.payment import ProviderPayment, require_settles
from shared.domain.plan import Rules
from shared.domain.requests import ConfirmPayment
from shared.errors import NotFound, PaymentNotSucceeded


def record_intent(tx: Tx, operation: Operation, request: ConfirmPayment, rules: Rules) -> None:
    """Write down what is about to be asked. Raises NotFound for an invoice that is not this account's."""
    if operation.account_id is None:
        raise NotFound("no such account")
    invoices.get(tx, operation.account_id, request.invoice_id)
    payments.record_intent(
        tx,
        payment_id=rules.new_id(),
        account_id=operation.account_id,
        invoice_id=request.invoice_id,
        operation_id=operation.id,
        provider=request.provider,
        external_payment_id=request.external_payment_id,
    )


def settle_confirmed(
    tx: Tx,
    operation: Operation,
    request: ConfirmPayment,
    answer: ProviderPayment | None,
    rules: Rules,
    *,
    now: datetime,
) -> dict[str, Any]:
    """Settle the invoice with what the provider said; a payment that settled it before is no error.

    Raises PaymentNotSucceeded, PaymentMismatch, PaymentAlreadyUsed, InvoiceNotOpen.
    """
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    settled = payments.require_unused(tx, request.provider, request.external_payment_id, for_invoice=request.invoice_id)
    if settled is not None:
        payments.drop_intent(tx, operation.id)
        return _result(operation, request, str(settled.id))
    if answer is None:
        raise PaymentNotSucceeded("the provider knows no payment under this id")
    invoice = lifecycle.open_invoice(account.state, request.invoice_id)
    require_settles(answer, invoice)
    payment_id = settlement.settle(
        tx,
        account,
        invoice,
        rules,
        operation_id=operation.id,
        method=request.provider,
        external_payment_id=request.external_payment_id,
        amount_minor=answer.amount_minor,
        currency=answer.currency,
    )
    return _result(operation, request, str(payment_id))


def _result(operation: Operation, request: ConfirmPayment, payment_id: str) -> dict[str, Any]:
    return {
        "account_id": str(operation.account_id),
        "invoice_id": str(request.invoice_id),
        "payment_id": payment_id,
    }
