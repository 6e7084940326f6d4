"""Invoices: gapless numbers, references, and reading them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from msgspec.structs import asdict
from sqlalchemy import Row

from shared.db.bulk import insert_many, update_many
from shared.db.engine import Tx
from shared.domain.invoice import Invoice, creditor_reference
from shared.errors import NotFound

INVOICE_TYPES: Final = {
    "id": "uuid",
    "account_id": "uuid",
    "subscription_id": "uuid",
    "purpose": "text",
    "plan_id": "uuid",
    "assigned_by": "text",
    "status": "text",
    "number_year": "integer",
    "number": "integer",
    "reference": "text",
    "amount_minor": "bigint",
    "currency": "text",
    "payment_method": "text",
    "period_starts_at": "timestamptz",
    "period_ends_at": "timestamptz",
    "opened_at": "timestamptz",
    "due_at": "timestamptz",
    "paid_at": "timestamptz",
    "voided_at": "timestamptz",
}
UPDATE_TYPES: Final = {
    "id": "uuid",
    "status": "text",
    "payment_method": "text",
    "paid_at": "timestamptz",
    "voided_at": "timestamptz",
}


def update(tx: Tx, invoices: Sequence[Invoice]) -> None:
    """Write what may change of an invoice: its state and how it is paid."""
    update_many(tx, "invoices", UPDATE_TYPES, invoices, key=("id",))


def number_and_insert(tx: Tx, invoices: Sequence[Invoice]) -> None:
    """Give each invoice the next number of its year, and insert it.

    The year's counter stays locked until the commit: whoever rolls back leaves no hole.
    """
    if not invoices:
        return
    next_numbers = {}
    for year, count in sorted(Counter(invoice.opened_at.year for invoice in invoices).items()):
        last = tx.scalar(
            """
            INSERT INTO invoice_numbers (year, last_number) VALUES (%(year)s, %(count)s)
            ON CONFLICT (year) DO UPDATE SET last_number = invoice_numbers.last_number + excluded.last_number
            RETURNING last_number
            """,
            year=year,
            count=count,
        )
        next_numbers[year] = iter(range(last - count + 1, last + 1))
    rows = [_numbered(invoice, next(next_numbers[invoice.opened_at.year])) for invoice in invoices]
    insert_many(tx, "invoices", INVOICE_TYPES, rows)


def get(tx: Tx, account_id: UUID, invoice_id: UUID) -> Row[Any]:
    """An invoice of this account with its plan's slug. Raises NotFound."""
    row = tx.maybe(
        """
        SELECT i.*, p.slug AS plan FROM invoices i JOIN plans p ON p.id = i.plan_id
        WHERE i.id = %(id)s AND i.account_id = %(account_id)s
        """,
        id=invoice_id,
        account_id=account_id,
    )
    if row is None:
        raise NotFound("no such invoice")
    return row


def account_of(tx: Tx, invoice_id: UUID) -> UUID:
    """Whose invoice it is; for admins. Raises NotFound."""
    row = tx.maybe("SELECT account_id FROM invoices WHERE id = %(id)s", id=invoice_id)
    if row is None:
        raise NotFound("no such invoice")
    account_id: UUID = row.account_id
    return account_id


class _NumberedInvoice(Invoice, frozen=True, kw_only=True):
    """An invoice as a row: with its number and reference."""

    number_year: int
    number: int
    reference: str


def _numbered(invoice: Invoice, number: int) -> _NumberedInvoice:
    year = invoice.opened_at.year
    return _NumberedInvoice(
        **asdict(invoice), number_year=year, number=number, reference=creditor_reference(year, number)
    )


def page(tx: Tx, account_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The account's invoices with their plans' slugs, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT i.*, p.slug AS plan FROM invoices i JOIN plans p ON p.id = i.plan_id
        WHERE i.account_id = %(account_id)s AND i.id < %(before)s
        ORDER BY i.id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )
