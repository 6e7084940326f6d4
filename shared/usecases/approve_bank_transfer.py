"""An admin approves a bank transfer: the money came, and it settles the invoice."""

from datetime import datetime
from typing import Any
from uuid import UUID

from shared.db import account_state, bank_transfers, payments, settlement
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.bank_transfer import BankTransferEvent, BankTransferStatus, next_status
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import Operation
from shared.domain.payment import require_amount
from shared.domain.plan import Rules
from shared.domain.requests import ApproveBankTransfer
from shared.errors import BillingError, Forbidden, InvoiceNotOpen


def approve_bank_transfer(
    tx: Tx, operation: Operation, request: ApproveBankTransfer, rules: Rules, *, now: datetime
) -> dict[str, Any] | BillingError:
    """Settle the transfer's invoice.

    Raises NotFound, AlreadyApproved, AlreadyRejected, PaymentAlreadyUsed, and PaymentMismatch unless a reason to
    override is stated, which is recorded. InvoiceNotOpen is returned, and leaves the money as unapplied.
    """
    if operation.principal_id is None:
        raise Forbidden("a bank transfer is decided by an admin")
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    transfer = bank_transfers.lock(tx, account.state.account.id, request.bank_transfer_id)
    next_status(BankTransferStatus(transfer.status), BankTransferEvent.APPROVE)  # a second decision says just that
    money = settlement.Received(
        operation_id=operation.id,
        method=PaymentMethod.BANK_TRANSFER,
        external_payment_id=request.bank_transaction_id,
        amount_minor=request.amount_minor,
        currency=request.currency,
    )
    known = payments.succeeded_with(tx, PaymentMethod.BANK_TRANSFER, request.bank_transaction_id)
    if known is not None:
        known = payments.lock(tx, known.id)
        payments.require_unapplied(known, amount_minor=request.amount_minor, currency=request.currency)
    try:
        invoice = lifecycle.open_invoice(account.state, transfer.invoice_id)
    except InvoiceNotOpen as refusal:
        if known is not None:
            raise
        return settlement.keep(tx, account, rules, money, refusal, invoice_id=transfer.invoice_id)
    if request.override_reason is None:
        require_amount(invoice, amount_minor=request.amount_minor, currency=request.currency)
    payment_id: UUID = (
        settlement.settle(tx, account, invoice, rules, money)
        if known is None
        else settlement.apply(
            tx, account, invoice, rules, payment_id=known.id, override_reason=request.override_reason
        ).id
    )
    settlement.approve_transfer(
        tx,
        account,
        operation,
        transfer,
        invoice,
        request,
        payment_id=payment_id,
        decided_by=operation.principal_id,
    )
    return {
        "account_id": str(invoice.account_id),
        "bank_transfer_id": str(request.bank_transfer_id),
        "invoice_id": str(invoice.id),
        "payment_id": str(payment_id),
    }
