"""Charge what is owed to a saved payment method: note the attempt, ask the provider, settle or try again later.

Three steps like those of a confirmation, for the same reason. A provider that cannot be asked delays an attempt and
uses none up. A decline uses one up, and a hard one ends the attempts. An attempt whose answer was lost is asked about
until there is one, whatever has become of the invoice: the money may have moved.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct

from shared.db import account_state, charges, checkouts, invoices, payments, settlement
from shared.db.account_state import OpenedAccount
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.invoice import InvoiceStatus, PaymentMethod, invoice_number
from shared.domain.operation import Operation
from shared.domain.payment import Charge, ChargeRequest, ProviderPayment, ProviderStatus, is_hard_decline
from shared.domain.plan import Rules
from shared.domain.requests import ChargeInvoice
from shared.errors import BillingError, InvoiceNotOpen, NotFound, PaymentDeclined


class Attempt(Struct, frozen=True, kw_only=True):
    """What is asked of which provider."""

    provider: PaymentMethod
    request: ChargeRequest


class Answer(Struct, frozen=True, kw_only=True):
    """What it said."""

    provider: PaymentMethod
    payment: ProviderPayment


def record_attempt(tx: Tx, operation: Operation, request: ChargeInvoice, rules: Rules) -> Attempt | None:
    """Write down what is about to be charged; None when there is nothing to charge any more. Raises NotFound."""
    if operation.account_id is None:
        raise NotFound("the operation names no account")
    account_state.lock(tx, [operation.account_id])
    invoice = invoices.get(tx, operation.account_id, request.invoice_id)
    attempt = payments.attempt_of(tx, operation.id)
    if attempt is None:
        customer = charges.chargeable(tx, operation.account_id)
        if customer is None or invoice.status != InvoiceStatus.OPEN:
            return None
        payments.record_attempt(
            tx,
            payment_id=rules.new_id(),
            invoice=invoice,
            operation_id=operation.id,
            customer=customer,
            attempt=request.attempt,
        )
        attempt = customer
    return Attempt(
        provider=PaymentMethod(attempt.provider),
        request=ChargeRequest(
            account_id=invoice.account_id,
            invoice_id=invoice.id,
            invoice_number=invoice_number(invoice.number_year, invoice.number),
            amount_minor=invoice.amount_minor,
            currency=invoice.currency,
            customer_ref=attempt.customer_ref,
            payment_method_ref=attempt.payment_method_ref,
            idempotency_key=f"charge:{invoice.id}:{request.attempt}",
        ),
    )


def settle_charged(
    tx: Tx, operation: Operation, request: ChargeInvoice, answer: Answer | None, rules: Rules, *, now: datetime
) -> dict[str, Any] | BillingError:
    """Settle the invoice with what was charged, keep money that came too late, or schedule the next attempt.

    answer: None when nobody was asked. Returns PaymentDeclined and InvoiceNotOpen, with what they leave behind.
    """
    facts = {"account_id": str(operation.account_id), "invoice_id": str(request.invoice_id), "attempt": request.attempt}
    if answer is None:
        return facts | {"charged": False}
    payment = answer.payment
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    if payment.status is ProviderStatus.FAILED:
        return _decline(tx, account, operation, request, payment, rules)
    if payment.status is ProviderStatus.PENDING:
        payments.await_answer(tx, operation.id, external_payment_id=payment.external_payment_id)
        checkouts.open_checkout(
            tx,
            answer.provider,
            payment.external_payment_id,
            account_id=account.state.account.id,
            invoice_id=request.invoice_id,
            saves_method=True,
            now=account.now,
        )
        return facts | {"charged": False, "external_payment_id": payment.external_payment_id}
    return _settle(tx, account, operation, request, answer, rules, facts)


def _settle(
    tx: Tx,
    account: OpenedAccount,
    operation: Operation,
    request: ChargeInvoice,
    answer: Answer,
    rules: Rules,
    facts: dict[str, Any],
) -> dict[str, Any] | BillingError:
    money = settlement.Received(
        operation_id=operation.id,
        method=answer.provider,
        external_payment_id=answer.payment.external_payment_id,
        amount_minor=answer.payment.amount_minor,
        currency=answer.payment.currency,
    )
    try:
        invoice = lifecycle.open_invoice(account.state, request.invoice_id)
    except InvoiceNotOpen as refusal:
        return settlement.keep(tx, account, rules, money, refusal, invoice_id=request.invoice_id)
    return facts | {"charged": True, "payment_id": str(settlement.settle(tx, account, invoice, rules, money))}


def _decline(
    tx: Tx, account: OpenedAccount, operation: Operation, request: ChargeInvoice, payment: ProviderPayment, rules: Rules
) -> PaymentDeclined:
    next_attempt = None
    if not is_hard_decline(payment.decline_code):
        failed = Charge(
            account_id=account.state.account.id,
            invoice_id=request.invoice_id,
            attempt=request.attempt,
            due_at=operation.created_at,
        )
        next_attempt = lifecycle.next_charge(account.state, failed, rules.charge_retry_days)
    charges.schedule(tx, [] if next_attempt is None else [next_attempt], rules)
    refusal = PaymentDeclined(
        "the saved payment method was declined",
        decline_code=payment.decline_code,
        attempt=request.attempt,
        next_attempt_at=None if next_attempt is None else next_attempt.due_at.isoformat(),
    )
    payments.fail(
        tx,
        operation.id,
        refusal,
        at=account.now,
        external_payment_id=payment.external_payment_id,
        decline_code=payment.decline_code,
    )
    return refusal
