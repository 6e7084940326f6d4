"""Payments: what a provider is asked, what it answered, and money that is here, applied to an invoice or not yet."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db import events
from shared.db.engine import Tx
from shared.domain.event import EventKind
from shared.domain.invoice import PaymentMethod
from shared.domain.payment import PaymentStatus
from shared.errors import (
    BillingError,
    NotFound,
    PaymentAlreadyUsed,
    PaymentMismatch,
    PaymentNotUnapplied,
    PaymentUnapplied,
)


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
        ON CONFLICT (operation_id) WHERE bank_entry_id IS NULL DO NOTHING
        """,
        id=payment_id,
        account_id=account_id,
        invoice_id=invoice_id,
        operation_id=operation_id,
        provider=str(provider),
        external_id=external_payment_id,
    )


def record_attempt(
    tx: Tx, *, payment_id: UUID, invoice: Row[Any], operation_id: UUID, customer: Row[Any], attempt: int
) -> None:
    """Note that a saved payment method is about to be charged. The provider's id comes with the answer."""
    tx.execute(
        """
        INSERT INTO payments (id, account_id, invoice_id, operation_id, provider, attempt, customer_ref,
                              payment_method_ref, status)
        VALUES (%(id)s, %(account_id)s, %(invoice_id)s, %(operation_id)s, %(provider)s, %(attempt)s, %(customer_ref)s,
                %(payment_method_ref)s, 'pending')
        """,
        id=payment_id,
        account_id=invoice.account_id,
        invoice_id=invoice.id,
        operation_id=operation_id,
        provider=customer.provider,
        attempt=attempt,
        customer_ref=customer.customer_ref,
        payment_method_ref=customer.payment_method_ref,
    )


def attempt_of(tx: Tx, operation_id: UUID) -> Row[Any] | None:
    """What an operation has begun to charge before."""
    return tx.maybe(
        "SELECT * FROM payments WHERE operation_id = %(id)s AND attempt IS NOT NULL AND status = 'pending'",
        id=operation_id,
    )


def await_answer(tx: Tx, operation_id: UUID, *, external_payment_id: str) -> None:
    """The provider has begun, and does not know yet: a confirmation of that payment brings the answer."""
    tx.execute(
        "UPDATE payments SET external_payment_id = %(external_id)s WHERE operation_id = %(id)s AND status = 'pending'",
        id=operation_id,
        external_id=external_payment_id,
    )


def take_over_attempt(
    tx: Tx, provider: PaymentMethod, external_payment_id: str, *, invoice_id: UUID, operation_id: UUID
) -> None:
    """An attempt that waits for its answer becomes the intent of the operation that asks for it now."""
    tx.execute(
        """
        UPDATE payments SET operation_id = %(operation_id)s
        WHERE provider = %(provider)s AND external_payment_id = %(external_id)s AND invoice_id = %(invoice_id)s
          AND attempt IS NOT NULL AND status = 'pending'
          AND NOT EXISTS (SELECT FROM payments WHERE operation_id = %(operation_id)s)
        """,
        operation_id=operation_id,
        provider=str(provider),
        external_id=external_payment_id,
        invoice_id=invoice_id,
    )


def succeeded_with(tx: Tx, provider: PaymentMethod, external_payment_id: str) -> Row[Any] | None:
    """The money that came under this external id."""
    return tx.maybe(
        """
        SELECT * FROM payments
        WHERE provider = %(provider)s AND external_payment_id = %(external_id)s AND status = 'succeeded'
        """,
        provider=str(provider),
        external_id=external_payment_id,
    )


def is_recorded(tx: Tx, provider: PaymentMethod, external_payment_id: str, status: PaymentStatus) -> bool:
    """Whether a payment of this external id is on record with this status."""
    recorded: bool = tx.scalar(
        """
        SELECT EXISTS (
            SELECT FROM payments
            WHERE provider = %(provider)s AND external_payment_id = %(external_id)s AND status = %(status)s
        )
        """,
        provider=str(provider),
        external_id=external_payment_id,
        status=str(status),
    )
    return recorded


def require_unused(tx: Tx, provider: PaymentMethod, external_payment_id: str, *, for_invoice: UUID) -> Row[Any] | None:
    """The payment, if it settled this very invoice before.

    Raises PaymentAlreadyUsed if it settled another one, PaymentUnapplied if it came before and settled nothing.
    """
    used = succeeded_with(tx, provider, external_payment_id)
    if used is not None and used.unapplied_reason is not None:
        raise PaymentUnapplied("this money came before and settles nothing yet", payment_id=str(used.id))
    if used is not None and used.invoice_id != for_invoice:
        raise PaymentAlreadyUsed("this payment has settled an invoice before")
    return used


def require_unapplied(payment: Row[Any], *, amount_minor: int, currency: str) -> None:
    """Raises PaymentAlreadyUsed when this money settles something, PaymentMismatch when it is another amount."""
    if payment.unapplied_reason is None or payment.refunded_minor:
        raise PaymentAlreadyUsed("this payment has settled an invoice before, or went back")
    if (payment.amount_minor, payment.currency) != (amount_minor, currency):
        raise PaymentMismatch(f"{payment.amount_minor} {payment.currency} came under this id")


def require_applicable(payment: Row[Any]) -> None:
    """Raises PaymentNotUnapplied unless all of this money is here and settles nothing."""
    if payment.unapplied_reason is None or payment.refunded_minor:
        raise PaymentNotUnapplied(
            "the payment settles an invoice, or went back in whole or in part", invoice_id=_text(payment.invoice_id)
        )


def succeed(
    tx: Tx,
    operation_id: UUID,
    *,
    external_payment_id: str,
    amount_minor: int,
    currency: str,
    at: datetime,
    unapplied: BillingError | None = None,
) -> Row[Any]:
    """The money of this operation's intent is here. Raises PaymentAlreadyUsed, InvoiceNotOpen.

    unapplied: why it settles nothing.
    """
    payment = tx.one(
        """
        UPDATE payments SET status = 'succeeded', external_payment_id = %(external_id)s, problem = NULL,
               amount_minor = %(amount_minor)s, currency = %(currency)s, confirmed_at = %(at)s,
               unapplied_reason = %(reason)s,
               applied_at = CASE WHEN %(reason)s::text IS NULL THEN %(at)s::timestamptz END
        WHERE operation_id = %(operation_id)s AND bank_entry_id IS NULL
        RETURNING *
        """,
        operation_id=operation_id,
        external_id=external_payment_id,
        amount_minor=amount_minor,
        currency=currency,
        at=at,
        reason=None if unapplied is None else unapplied.code,
    )
    if unapplied is None:
        _record_success(tx, payment, at=at)
    else:
        _record_unapplied(tx, payment, at=at)
    return payment


def stays_unapplied(tx: Tx, payment: Row[Any], refusal: BillingError, *, at: datetime) -> None:
    """The invoice that this money was meant for cannot be settled with it, and this is why. Told if it is news."""
    changed = tx.maybe(
        """
        UPDATE payments SET unapplied_reason = %(reason)s
        WHERE id = %(id)s AND unapplied_reason <> %(reason)s
        RETURNING *
        """,
        id=payment.id,
        reason=refusal.code,
    )
    if changed is not None:
        _record_unapplied(tx, changed, at=at)


def lock(tx: Tx, payment_id: UUID) -> Row[Any]:
    """A payment, locked; anybody's, for admins. Raises NotFound."""
    row = tx.maybe("SELECT * FROM payments WHERE id = %(id)s FOR UPDATE", id=payment_id)
    if row is None:
        raise NotFound("no such payment")
    return row


def get(tx: Tx, payment_id: UUID) -> Row[Any]:
    """A payment; anybody's, for admins. Raises NotFound."""
    row = tx.maybe("SELECT * FROM payments WHERE id = %(id)s", id=payment_id)
    if row is None:
        raise NotFound("no such payment")
    return row


def apply(
    tx: Tx, payment_id: UUID, *, account_id: UUID, invoice_id: UUID, override_reason: str | None, at: datetime
) -> Row[Any]:
    """Money that settled nothing settles this invoice from now on. Raises InvoiceNotOpen.

    override_reason: why, though it is another amount than the invoice's.
    """
    payment = tx.one(
        """
        UPDATE payments SET unapplied_reason = NULL, account_id = %(account_id)s, invoice_id = %(invoice_id)s,
               applied_at = %(at)s, override_reason = %(override_reason)s
        WHERE id = %(id)s AND unapplied_reason IS NOT NULL
        RETURNING *
        """,
        id=payment_id,
        account_id=account_id,
        invoice_id=invoice_id,
        override_reason=override_reason,
        at=at,
    )
    _record_success(tx, payment, at=at)
    return payment


def drop_intent(tx: Tx, operation_id: UUID) -> None:
    """Nothing came of asking that has to be kept."""
    tx.execute("DELETE FROM payments WHERE operation_id = %(id)s AND status = 'pending'", id=operation_id)


def fail(
    tx: Tx,
    operation_id: UUID,
    refusal: BillingError,
    *,
    at: datetime,
    external_payment_id: str | None = None,
    decline_code: str | None = None,
) -> None:
    """The intent of this operation came to nothing; there may be none."""
    payment = tx.maybe(
        """
        UPDATE payments SET status = 'failed', problem = %(problem)s, confirmed_at = %(at)s,
               external_payment_id = coalesce(%(external_id)s, external_payment_id), decline_code = %(decline_code)s
        WHERE operation_id = %(operation_id)s AND status = 'pending'
        RETURNING *
        """,
        operation_id=operation_id,
        problem=refusal.code,
        at=at,
        external_id=external_payment_id,
        decline_code=decline_code,
    )
    if payment is not None:
        facts = {} if decline_code is None else {"decline_code": decline_code}
        _record(tx, EventKind.PAYMENT_FAILED, payment, at=at, problem=refusal.code, **facts)


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


def create_in_sandbox(
    tx: Tx, *, external_payment_id: str, invoice: Row[Any], succeeded: bool, saves_card: str | None
) -> None:
    """A payment for this invoice, or a failed try, in the ledger of the pretend card provider."""
    tx.execute(
        """
        INSERT INTO sandbox_payments (external_payment_id, account_id, invoice_id, succeeded, amount_minor, currency,
                                      saves_card)
        VALUES (%(external_id)s, %(account_id)s, %(invoice_id)s, %(succeeded)s, %(amount_minor)s, %(currency)s,
                %(saves_card)s)
        """,
        saves_card=saves_card,
        external_id=external_payment_id,
        account_id=invoice.account_id,
        invoice_id=invoice.id,
        succeeded=succeeded,
        amount_minor=invoice.amount_minor,
        currency=invoice.currency,
    )


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


def _record_success(tx: Tx, payment: Row[Any], *, at: datetime) -> None:
    _record(tx, EventKind.PAYMENT_SUCCEEDED, payment, at=at, **_amount(payment))


def _record_unapplied(tx: Tx, payment: Row[Any], *, at: datetime) -> None:
    _record(tx, EventKind.PAYMENT_UNAPPLIED, payment, at=at, reason=payment.unapplied_reason, **_amount(payment))


def _amount(payment: Row[Any]) -> dict[str, Any]:
    return {"amount_minor": payment.amount_minor, "currency": payment.currency}


def _record(tx: Tx, kind: EventKind, payment: Row[Any], *, at: datetime, **data: Any) -> None:
    if payment.account_id is not None:
        facts = {"invoice_id": payment.invoice_id} | data
        events.record(tx, kind, account_id=payment.account_id, subject_id=payment.id, at=at, data=facts)
