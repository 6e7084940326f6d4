"""Settlement: money that came pays an invoice, and everything that follows is written with it."""

from uuid import UUID

from shared.db import account_state, events, payments
from shared.db.account_state import Change, OpenedAccount
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.event import EventKind
from shared.domain.invoice import Invoice, PaymentMethod
from shared.domain.plan import Rules


def settle(
    tx: Tx,
    account: OpenedAccount,
    invoice: Invoice,
    rules: Rules,
    *,
    operation_id: UUID,
    method: PaymentMethod,
    external_payment_id: str,
    amount_minor: int,
    currency: str,
) -> UUID:
    """Payment, invoice, subscription, period, account and credits, in the caller's transaction; the payment's id.

    Whether this money may pay this invoice is for the caller to know. Raises PaymentAlreadyUsed, InvoiceNotOpen.
    """
    payments.record_intent(
        tx,
        payment_id=rules.new_id(),
        account_id=invoice.account_id,
        invoice_id=invoice.id,
        operation_id=operation_id,
        provider=method,
        external_payment_id=external_payment_id,
    )
    payment_id = payments.succeed(tx, operation_id, amount_minor=amount_minor, currency=currency, at=account.now)
    events.record(
        tx,
        EventKind.PAYMENT_SUCCEEDED,
        account_id=invoice.account_id,
        subject_id=payment_id,
        at=account.now,
        data={"invoice_id": invoice.id, "amount_minor": amount_minor, "currency": currency},
    )
    state = lifecycle.settle(
        account.state,
        rules,
        invoice_id=invoice.id,
        method=method,
        external_payment_id=external_payment_id,
        at=account.now,
    )
    account_state.write(tx, [Change(account.loaded, state)], rules)
    return payment_id
