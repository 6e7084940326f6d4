"""Bank transfers: submissions and their one decision."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.domain.bank_transfer import BankTransferStatus
from shared.domain.requests import ApproveBankTransfer
from shared.errors import NotFound


def submit(
    tx: Tx,
    *,
    bank_transfer_id: UUID,
    account_id: UUID,
    invoice_id: UUID,
    payer_name: str | None,
    transferred_on: date | None,
    note: str | None,
    submitted_by: UUID,
    at: datetime,
) -> None:
    """A customer's word that money is on its way. Raises TransferPending."""
    tx.execute(
        """
        INSERT INTO bank_transfers (id, account_id, invoice_id, status, payer_name, transferred_on, note,
                                    submitted_by, submitted_at)
        VALUES (%(id)s, %(account_id)s, %(invoice_id)s, 'pending', %(payer_name)s, %(transferred_on)s, %(note)s,
                %(submitted_by)s, %(at)s)
        """,
        id=bank_transfer_id,
        account_id=account_id,
        invoice_id=invoice_id,
        payer_name=payer_name,
        transferred_on=transferred_on,
        note=note,
        submitted_by=submitted_by,
        at=at,
    )


def account_of(tx: Tx, bank_transfer_id: UUID) -> UUID:
    """Whose transfer it is, so that the account can be locked first. Raises NotFound."""
    row = tx.maybe("SELECT account_id FROM bank_transfers WHERE id = %(id)s", id=bank_transfer_id)
    if row is None:
        raise NotFound("no such bank transfer")
    account_id: UUID = row.account_id
    return account_id


def lock(tx: Tx, account_id: UUID, bank_transfer_id: UUID) -> Row[Any]:
    """A transfer of this account, locked. Raises NotFound."""
    row = tx.maybe(
        "SELECT * FROM bank_transfers WHERE id = %(id)s AND account_id = %(account_id)s FOR UPDATE",
        id=bank_transfer_id,
        account_id=account_id,
    )
    if row is None:
        raise NotFound("no such bank transfer")
    return row


def lock_pending(tx: Tx, invoice_id: UUID) -> Row[Any] | None:
    """The transfer for this invoice that waits for a decision, locked."""
    return tx.maybe(
        "SELECT * FROM bank_transfers WHERE invoice_id = %(invoice_id)s AND status = 'pending' FOR UPDATE",
        invoice_id=invoice_id,
    )


def approve(tx: Tx, request: ApproveBankTransfer, *, payment_id: UUID, decided_by: UUID, at: datetime) -> None:
    """Write the decision that the money came."""
    tx.execute(
        """
        UPDATE bank_transfers SET status = 'approved', decided_by = %(decided_by)s, decided_at = %(at)s,
               received_amount_minor = %(amount_minor)s, received_currency = %(currency)s, value_on = %(value_on)s,
               bank_transaction_id = %(bank_transaction_id)s, override_reason = %(override_reason)s,
               payment_id = %(payment_id)s
        WHERE id = %(id)s
        """,
        id=request.bank_transfer_id,
        decided_by=decided_by,
        at=at,
        amount_minor=request.amount_minor,
        currency=request.currency,
        value_on=request.value_on,
        bank_transaction_id=request.bank_transaction_id,
        override_reason=request.override_reason,
        payment_id=payment_id,
    )


def reject(tx: Tx, bank_transfer_id: UUID, *, reason: str, decided_by: UUID, at: datetime) -> None:
    """Write the decision that it did not."""
    tx.execute(
        """
        UPDATE bank_transfers SET status = 'rejected', decided_by = %(decided_by)s, decided_at = %(at)s,
               rejection_reason = %(reason)s
        WHERE id = %(id)s
        """,
        id=bank_transfer_id,
        decided_by=decided_by,
        at=at,
        reason=reason,
    )


def get(tx: Tx, account_id: UUID, bank_transfer_id: UUID) -> Row[Any]:
    """A transfer of this account. Raises NotFound."""
    row = tx.maybe(
        "SELECT * FROM bank_transfers WHERE id = %(id)s AND account_id = %(account_id)s",
        id=bank_transfer_id,
        account_id=account_id,
    )
    if row is None:
        raise NotFound("no such bank transfer")
    return row


def page(tx: Tx, account_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The account's transfers, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT * FROM bank_transfers WHERE account_id = %(account_id)s AND id < %(before)s
        ORDER BY id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )


def page_by_status(
    tx: Tx, status: BankTransferStatus, *, before: UUID, limit: int, now: datetime
) -> Sequence[Row[Any]]:
    """Everybody's transfers of one status with what each should bring, newest first; for admins.

    age_days: whole days from the submission to the account's now.
    """
    return tx.rows(
        """
        SELECT t.*, i.amount_minor, i.currency, i.reference, i.due_at, i.status AS invoice_status,
               floor(extract(epoch FROM account_now(t.account_id, %(now)s) - t.submitted_at) / 86400)::int AS age_days
        FROM bank_transfers t
        JOIN invoices i ON i.id = t.invoice_id
        WHERE t.status = %(status)s AND t.id < %(before)s
        ORDER BY t.id DESC LIMIT %(limit)s
        """,
        status=str(status),
        before=before,
        limit=limit,
        now=now,
    )
