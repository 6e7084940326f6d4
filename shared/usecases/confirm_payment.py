"""Confirm a payment: note the intent, ask the provider, settle. The browser's word counts for nothing.

Three steps, because a provider is never called while a transaction is open. The first and the last
are transactions of their own; dying between any two of them repeats them, to the same effect.
"""

from datetime import datetime
from typing import Any

from shared.db import account_state, charges, checkouts, invoices, payments, settlement
from shared.db.account_state import OpenedAccount
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.operation import Operation, PrincipalKind
from shared.domain.payment import PaymentStatus, ProviderPayment, ProviderStatus, require_amount, require_made_for
from shared.domain.plan import Rules
from shared.domain.requests import ConfirmPayment
from shared.errors import BillingError, InvoiceNotOpen, NotFound, PaymentMismatch, PaymentNotSucceeded


def record_intent(tx: Tx, operation: Operation, request: ConfirmPayment, rules: Rules) -> ConfirmPayment:
    """Write down what is about to be asked. Raises NotFound for an invoice that is not this account's."""
    if operation.account_id is None:
        raise NotFound("no such account")
    invoices.get(tx, operation.account_id, request.invoice_id)
    payments.take_over_attempt(
        tx,
        request.provider,
        request.external_payment_id,
        invoice_id=request.invoice_id,
        operation_id=operation.id,
    )
    payments.record_intent(
        tx,
        payment_id=rules.new_id(),
        account_id=operation.account_id,
        invoice_id=request.invoice_id,
        operation_id=operation.id,
        provider=request.provider,
        external_payment_id=request.external_payment_id,
    )
    return request


def settle_confirmed(
    tx: Tx,
    operation: Operation,
    request: ConfirmPayment,
    answer: ProviderPayment | None,
    rules: Rules,
    *,
    now: datetime,
) -> dict[str, Any] | BillingError:
    """Settle the invoice with what the provider said; a payment that settled it before is no error.

    Raises PaymentNotSucceeded, PaymentMismatch (made for another invoice), PaymentAlreadyUsed, PaymentUnapplied. Money
    that is here and may not settle the invoice is kept as unapplied: InvoiceNotOpen and PaymentMismatch are returned.
    """
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    settled = payments.require_unused(tx, request.provider, request.external_payment_id, for_invoice=request.invoice_id)
    if settled is not None:
        payments.drop_intent(tx, operation.id)
        return _result(operation, request, payment_id=str(settled.id))
    if operation.principal_kind is PrincipalKind.SYSTEM and _is_no_news(tx, request, answer):
        payments.drop_intent(tx, operation.id)
        return _result(operation, request, payment_id=None)
    if answer is None:
        raise PaymentNotSucceeded("the provider knows no payment under this id")
    require_made_for(answer, account_id=account.state.account.id, invoice_id=request.invoice_id)
    if checkouts.close(tx, request.provider, request.external_payment_id):
        charges.save_method(tx, account.state.account.id, request.provider, answer)
    return _settle(tx, account, operation, request, answer, rules)


def _settle(
    tx: Tx,
    account: OpenedAccount,
    operation: Operation,
    request: ConfirmPayment,
    answer: ProviderPayment,
    rules: Rules,
) -> dict[str, Any] | BillingError:
    money = settlement.Received(
        operation_id=operation.id,
        method=request.provider,
        external_payment_id=request.external_payment_id,
        amount_minor=answer.amount_minor,
        currency=answer.currency,
    )
    try:
        invoice = lifecycle.open_invoice(account.state, request.invoice_id)
        require_amount(invoice, amount_minor=answer.amount_minor, currency=answer.currency)
    except (InvoiceNotOpen, PaymentMismatch) as refusal:
        return settlement.keep(tx, account, rules, money, refusal, invoice_id=request.invoice_id)
    payment_id = settlement.settle(tx, account, invoice, rules, money)
    return _result(operation, request, payment_id=str(payment_id))


def _is_no_news(tx: Tx, request: ConfirmPayment, answer: ProviderPayment | None) -> bool:
    """Nobody has paid yet, which nobody has said either; or a try has failed, as was told before."""
    if answer is None or answer.succeeded:
        return False
    return answer.status is ProviderStatus.PENDING or payments.is_recorded(
        tx, request.provider, request.external_payment_id, PaymentStatus.FAILED
    )


def _result(operation: Operation, request: ConfirmPayment, *, payment_id: str | None) -> dict[str, Any]:
    return {
        "account_id": str(operation.account_id),
        "invoice_id": str(request.invoice_id),
        "payment_id": payment_id,
    }
