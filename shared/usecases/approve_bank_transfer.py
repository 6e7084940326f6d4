"""An admin approves a bank transfer: the money came, and it settles the invoice."""

from datetime import datetime
from typing import Any

from shared.db import account_state, audit, bank_transfers, events, payments, settlement
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.bank_transfer import BankTransferEvent, BankTransferStatus, next_status
from shared.domain.event import EventKind
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import Operation
from shared.domain.payment import require_amount
from shared.domain.plan import Rules
from shared.domain.requests import ApproveBankTransfer
from shared.errors import Forbidden


def approve_bank_transfer(
    tx: Tx, operation: Operation, request: ApproveBankTransfer, rules: Rules, *, now: datetime
) -> dict[str, Any]:
    """Settle the transfer's invoice.

    Raises NotFound, AlreadyApproved, AlreadyRejected, InvoiceNotOpen, PaymentAlreadyUsed, and PaymentMismatch
    unless a reason to override is stated, which is recorded.
    """
    if operation.principal_id is None:
        raise Forbidden("a bank transfer is decided by an admin")
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    transfer = bank_transfers.lock(tx, account.state.account.id, request.bank_transfer_id)
    status = next_status(BankTransferStatus(transfer.status), BankTransferEvent.APPROVE)
    invoice = lifecycle.open_invoice(account.state, transfer.invoice_id)
    if request.override_reason is None:
        require_amount(invoice, amount_minor=request.amount_minor, currency=request.currency)
    payments.require_unused(tx, PaymentMethod.BANK_TRANSFER, request.bank_transaction_id, for_invoice=invoice.id)
    payment_id = settlement.settle(
        tx,
        account,
        invoice,
        rules,
        operation_id=operation.id,
        method=PaymentMethod.BANK_TRANSFER,
        external_payment_id=request.bank_transaction_id,
        amount_minor=request.amount_minor,
        currency=request.currency,
    )
    bank_transfers.approve(tx, request, payment_id=payment_id, decided_by=operation.principal_id, at=account.now)
    events.record(
        tx,
        EventKind.BANK_TRANSFER_APPROVED,
        account_id=transfer.account_id,
        subject_id=request.bank_transfer_id,
        at=account.now,
        data={"invoice_id": transfer.invoice_id},
    )
    audit.record(
        tx,
        at=account.now,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action="bank_transfer.approved",
        account_id=invoice.account_id,
        subject_kind="bank_transfer",
        subject_id=request.bank_transfer_id,
        reason=request.override_reason,
        before={"status": transfer.status},
        after={
            "status": str(status),
            "amount_minor": request.amount_minor,
            "currency": request.currency,
            "bank_transaction_id": request.bank_transaction_id,
            "invoice_amount_minor": invoice.amount_minor,
        },
        operation_id=operation.id,
    )
    return {
        "account_id": str(invoice.account_id),
        "bank_transfer_id": str(request.bank_transfer_id),
        "invoice_id": str(invoice.id),
        "payment_id": str(payment_id),
    }
