"""Payments: intents, the provider's answer, and what settled what."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db import events
from shared.db.engine import Tx
from shared.domain.event import EventKind
from shared.domain.invoice import PaymentMethod
from shared.errors import BillingError, PaymentAlreadyUsed


def record_intent(
    tx: Tx,
    *,
    payment_id: UUID,
    account_id: UUID,
    invoice_id: UUID,
    operation_id: UUID,
    provider: PaymentMethod,
    external_payment_id: str,
) -> None:
    """Note that a provider is about to be asked; once per operation."""
    tx.execute(
        """
        INSERT INTO payments (id, account_id, invoice_id, operation_id, provider, external_payment_id, status)
        VALUES (%(id)s, %(account_id)s, %(invoice_id)s, %(operation_id)s, %(provider)s, %(external_id)s, 'pending')
        ON CONFLICT (operation_id) DO NOTHING
        """,
        id=payment_id,
        account_id=account_id,
        invoice_id=invoice_id,
        operation_id=operation_id,
        provider=str(provider),
        external_id=external_payment_id,
    )


def succeeded_with(tx: Tx, provider: PaymentMethod, external_payment_id: str) -> Row[Any] | None:
    """The payment that settled an invoice under this external id."""
    return tx.maybe(
        """
        SELECT id, account_id, invoice_id FROM payments
        WHERE provider = %(provider)s AND external_payment_id = %(external_id)s AND status = 'succeeded'
        """,
        provider=str(provider),
        external_id=external_payment_id,
    )


def require_unused(tx: Tx, provider: PaymentMethod, external_payment_id: str, *, for_invoice: UUID) -> Row[Any] | None:
    """The payment, if it settled this very invoice before. Raises PaymentAlreadyUsed if another one."""
    used = succeeded_with(tx, provider, external_payment_id)
    if used is not None and used.invoice_id != for_invoice:
        raise PaymentAlreadyUsed("this payment has settled an invoice before")
    return used


def succeed(tx: Tx, operation_id: UUID, *, amount_minor: int, currency: str, at: datetime) -> UUID:
    """The money is there; the payment's id. Raises PaymentAlreadyUsed, InvoiceNotOpen."""
    payment_id: UUID = tx.scalar(
        """
        UPDATE payments SET status = 'succeeded', amount_minor = %(amount_minor)s, currency = %(currency)s,
               confirmed_at = %(at)s
        WHERE operation_id = %(operation_id)s
        RETURNING id
        """,
        operation_id=operation_id,
        amount_minor=amount_minor,
        currency=currency,
        at=at,
    )
    return payment_id


def drop_intent(tx: Tx, operation_id: UUID) -> None:
    """The intent was answered by another operation's payment, which settled the same invoice."""
    tx.execute("DELETE FROM payments WHERE operation_id = %(id)s AND status = 'pending'", id=operation_id)


def fail(tx: Tx, operation_id: UUID, refusal: BillingError, *, at: datetime) -> None:
    """The intent of this operation came to nothing."""
    row = tx.maybe(
        """
        UPDATE payments SET status = 'failed', problem = %(problem)s, confirmed_at = %(at)s
        WHERE operation_id = %(operation_id)s AND status = 'pending'
        RETURNING id, account_id, invoice_id
        """,
        operation_id=operation_id,
        problem=refusal.code,
        at=at,
    )
    if row is not None:
        events.record(
            tx,
            EventKind.PAYMENT_FAILED,
            account_id=row.account_id,
            subject_id=row.id,
            at=at,
            data={"invoice_id": row.invoice_id, "problem": refusal.code},
        )


def page(tx: Tx, account_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The account's payments, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT * FROM payments WHERE account_id = %(account_id)s AND id < %(before)s
        ORDER BY id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )


def create_in_sandbox(tx: Tx, *, external_payment_id: str, invoice: Row[Any], succeeded: bool) -> None:
    """A payment for this invoice, or a failed try, in the ledger of the pretend card provider."""
    tx.execute(
        """
        INSERT INTO sandbox_payments (external_payment_id, account_id, invoice_id, succeeded, amount_minor, currency)
        VALUES (%(external_id)s, %(account_id)s, %(invoice_id)s, %(succeeded)s, %(amount_minor)s, %(currency)s)
        """,
        external_id=external_payment_id,
        account_id=invoice.account_id,
        invoice_id=invoice.id,
        succeeded=succeeded,
        amount_minor=invoice.amount_minor,
        currency=invoice.currency,
    )
