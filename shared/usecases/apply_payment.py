"""Money that is here settles an invoice after all: by its exact reference, or because an admin says so."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db import account_state, audit, bank_statements, bank_transfers, payments, settlement
from shared.db.account_state import OpenedAccount
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.invoice import Invoice, PaymentMethod
from shared.domain.operation import Operation, PrincipalKind
from shared.domain.payment import require_amount
from shared.domain.plan import Rules
from shared.domain.requests import ApplyPayment, ApproveBankTransfer
from shared.errors import BillingError, InvoiceNotOpen


def apply_payment(
    tx: Tx, operation: Operation, request: ApplyPayment, rules: Rules, *, now: datetime
) -> dict[str, Any] | BillingError:
    """Settle the invoice with an unapplied payment, and decide the bank transfer that announced it.

    Raises NotFound, PaymentNotUnapplied, and PaymentMismatch unless an admin states a reason to override, which is
    recorded. InvoiceNotOpen is returned: the money stays unapplied, and says so if it was meant for this invoice.
    """
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    payment = payments.lock(tx, request.payment_id)
    payments.require_applicable(payment)
    try:
        invoice = lifecycle.open_invoice(account.state, request.invoice_id)
    except InvoiceNotOpen as refusal:
        if payment.invoice_id == request.invoice_id:
            payments.stays_unapplied(tx, payment, refusal, at=account.now)
        return refusal
    by_admin = operation.principal_kind is PrincipalKind.ADMIN
    override_reason = request.override_reason if by_admin else None
    if override_reason is None:
        require_amount(invoice, amount_minor=payment.amount_minor, currency=payment.currency)
    settlement.apply(tx, account, invoice, rules, payment_id=payment.id, override_reason=override_reason)
    bank_transfer_id = _decide_transfer(tx, account, operation, invoice, payment, override_reason)
    audit.record(
        tx,
        at=account.now,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action="payment.applied",
        account_id=invoice.account_id,
        subject_kind="payment",
        subject_id=payment.id,
        reason=override_reason,
        before={"unapplied_reason": payment.unapplied_reason, "invoice_id": payment.invoice_id},
        after={
            "invoice_id": invoice.id,
            "amount_minor": payment.amount_minor,
            "currency": payment.currency,
            "invoice_amount_minor": invoice.amount_minor,
            "bank_transfer_id": bank_transfer_id,
        },
        operation_id=operation.id,
    )
    return {
        "account_id": str(invoice.account_id),
        "invoice_id": str(invoice.id),
        "payment_id": str(payment.id),
        "bank_transfer_id": None if bank_transfer_id is None else str(bank_transfer_id),
    }


def _decide_transfer(
    tx: Tx,
    account: OpenedAccount,
    operation: Operation,
    invoice: Invoice,
    payment: Row[Any],
    override_reason: str | None,
) -> UUID | None:
    """Approve the transfer that waits for this invoice, if the money came by one; its id.

    Where the system applies, the admin who handed in the bank's statement has said that the money came. Money that
    stands on no statement has no value date; the day on which it was recorded takes its place.
    """
    if payment.provider != PaymentMethod.BANK_TRANSFER:
        return None
    transfer = bank_transfers.lock_pending(tx, invoice.id)
    if transfer is None:
        return None
    value_on, decided_by = payment.confirmed_at.date(), operation.principal_id
    if payment.bank_entry_id is not None:
        origin = bank_statements.origin_of(tx, payment.bank_entry_id)
        value_on, decided_by = origin.value_on, decided_by or origin.uploaded_by
    if decided_by is None:
        return None
    settlement.approve_transfer(
        tx,
        account,
        operation,
        transfer,
        invoice,
        ApproveBankTransfer(
            bank_transfer_id=transfer.id,
            amount_minor=payment.amount_minor,
            currency=payment.currency,
            value_on=value_on,
            bank_transaction_id=payment.external_payment_id,
            override_reason=override_reason,
        ),
        payment_id=payment.id,
        decided_by=decided_by,
    )
    transfer_id: UUID = transfer.id
    return transfer_id
