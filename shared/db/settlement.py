"""Settlement: money that came pays an invoice, and everything that follows is written with it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Row

from shared.db import account_state, audit, bank_transfers, events, payments
from shared.db.account_state import Change, OpenedAccount
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.bank_transfer import BankTransferEvent, BankTransferStatus, next_status
from shared.domain.event import EventKind
from shared.domain.invoice import Invoice, PaymentMethod
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import ApproveBankTransfer
from shared.errors import BillingError


class Received(Struct, frozen=True, kw_only=True):
    """Money of which a provider, a bank or an admin says that it came, by the operation that asked."""

    operation_id: UUID
    method: PaymentMethod
    external_payment_id: str
    amount_minor: int
    currency: str


def settle(tx: Tx, account: OpenedAccount, invoice: Invoice, rules: Rules, money: Received) -> UUID:
    """Payment, invoice, subscription, period, account and credits, in the caller's transaction; the payment's id.

    Whether this money may pay this invoice is for the caller to know. Raises PaymentAlreadyUsed, InvoiceNotOpen.
    """
    payment = _record_payment(tx, account, rules, money, invoice_id=invoice.id)
    _follow(tx, account, invoice, rules, payment)
    payment_id: UUID = payment.id
    return payment_id


def keep(
    tx: Tx, account: OpenedAccount, rules: Rules, money: Received, refusal: BillingError, *, invoice_id: UUID
) -> BillingError:
    """Money that came for an invoice and may not settle it stays visible as unapplied; the refusal, with its id."""
    payment = _record_payment(tx, account, rules, money, invoice_id=invoice_id, unapplied=refusal)
    return type(refusal)(
        f"{refusal.detail}; the money is kept as unapplied", **refusal.data, payment_id=str(payment.id)
    )


def apply(
    tx: Tx,
    account: OpenedAccount,
    invoice: Invoice,
    rules: Rules,
    *,
    payment_id: UUID,
    override_reason: str | None,
) -> Row[Any]:
    """The same with money that is here and settled nothing so far; the payment. Raises InvoiceNotOpen."""
    payment = payments.apply(
        tx,
        payment_id,
        account_id=invoice.account_id,
        invoice_id=invoice.id,
        override_reason=override_reason,
        at=account.now,
    )
    _follow(tx, account, invoice, rules, payment)
    return payment


def approve_transfer(
    tx: Tx,
    account: OpenedAccount,
    operation: Operation,
    transfer: Row[Any],
    invoice: Invoice,
    approval: ApproveBankTransfer,
    *,
    payment_id: UUID,
    decided_by: UUID,
) -> None:
    """Decide a bank transfer, which is locked: this payment is what it brought.

    decided_by: the admin who said so, by hand or by handing in the bank's statement.
    Raises AlreadyApproved, AlreadyRejected.
    """
    status = next_status(BankTransferStatus(transfer.status), BankTransferEvent.APPROVE)
    bank_transfers.approve(tx, approval, payment_id=payment_id, decided_by=decided_by, at=account.now)
    record_decision(
        tx,
        operation,
        transfer,
        EventKind.BANK_TRANSFER_APPROVED,
        at=account.now,
        reason=approval.override_reason,
        after={
            "status": str(status),
            "amount_minor": approval.amount_minor,
            "currency": approval.currency,
            "bank_transaction_id": approval.bank_transaction_id,
            "invoice_amount_minor": invoice.amount_minor,
        },
    )


def record_decision(
    tx: Tx,
    operation: Operation,
    transfer: Row[Any],
    kind: EventKind,
    *,
    at: datetime,
    reason: str | None,
    after: dict[str, Any],
) -> None:
    """Tell the customer, and the audit log under the same name, how a bank transfer was decided.

    transfer: as it was before. after: what it is by now.
    """
    events.record(
        tx,
        kind,
        account_id=transfer.account_id,
        subject_id=transfer.id,
        at=at,
        data={"invoice_id": transfer.invoice_id},
    )
    audit.record(
        tx,
        at=at,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action=str(kind),
        account_id=transfer.account_id,
        subject_kind="bank_transfer",
        subject_id=transfer.id,
        reason=reason,
        before={"status": transfer.status},
        after=after,
        operation_id=operation.id,
    )


def _record_payment(
    tx: Tx,
    account: OpenedAccount,
    rules: Rules,
    money: Received,
    *,
    invoice_id: UUID,
    unapplied: BillingError | None = None,
) -> Row[Any]:
    payments.record_intent(
        tx,
        payment_id=rules.new_id(),
        account_id=account.state.account.id,
        invoice_id=invoice_id,
        operation_id=money.operation_id,
        provider=money.method,
        external_payment_id=money.external_payment_id,
    )
    return payments.succeed(
        tx,
        money.operation_id,
        external_payment_id=money.external_payment_id,
        amount_minor=money.amount_minor,
        currency=money.currency,
        at=account.now,
        unapplied=unapplied,
    )


def _follow(tx: Tx, account: OpenedAccount, invoice: Invoice, rules: Rules, payment: Row[Any]) -> None:
    state = lifecycle.settle(
        account.state,
        rules,
        invoice_id=invoice.id,
        method=PaymentMethod(payment.provider),
        external_payment_id=payment.external_payment_id,
        at=account.now,
    )
    account_state.write(tx, [Change(account.loaded, state)], rules)
