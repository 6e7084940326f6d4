"""Invoices: gapless numbers, references, reading them, and what is printed of one."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from msgspec.structs import asdict
from sqlalchemy import Row

from shared.db import users
from shared.db.bulk import insert_many, update_many
from shared.db.engine import Tx
from shared.domain.invoice import Invoice, InvoiceStatus, PaymentMethod, creditor_reference, invoice_number
from shared.domain.printable import Customer, Payment, PrintableInvoice, Refund, Seller
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
    """An invoice of this account with its plan's slug, and what went back of its payment. Raises NotFound."""
    row = tx.maybe(
        """
        SELECT i.*, p.slug AS plan, coalesce(s.refunded_minor, 0) AS refunded_minor
        FROM invoices i JOIN plans p ON p.id = i.plan_id
        LEFT JOIN payments s ON s.invoice_id = i.id AND s.status = 'succeeded' AND s.unapplied_reason IS NULL
        WHERE i.id = %(id)s AND i.account_id = %(account_id)s
        """,
        id=invoice_id,
        account_id=account_id,
    )
    if row is None:
        raise NotFound("no such invoice")
    return row


def printable(tx: Tx, account_id: UUID, invoice_id: UUID, *, seller: Seller) -> PrintableInvoice:
    """All that is printed of an invoice of this account. Raises NotFound."""
    row = tx.maybe(
        """
        SELECT i.*, p.name AS plan_name, a.name AS account_name, a.time_zone,
               s.id AS payment_id, s.provider, s.external_payment_id, s.amount_minor AS settled_minor,
               s.currency AS settled_currency
        FROM invoices i JOIN plans p ON p.id = i.plan_id JOIN accounts a ON a.id = i.account_id
        LEFT JOIN payments s ON s.invoice_id = i.id AND s.status = 'succeeded' AND s.unapplied_reason IS NULL
        WHERE i.id = %(id)s AND i.account_id = %(account_id)s
        """,
        id=invoice_id,
        account_id=account_id,
    )
    if row is None:
        raise NotFound("no such invoice")
    return PrintableInvoice(
        number=invoice_number(row.number_year, row.number),
        reference=row.reference,
        status=InvoiceStatus(row.status),
        plan_name=row.plan_name,
        amount_minor=row.amount_minor,
        currency=row.currency,
        opened_at=row.opened_at,
        due_at=row.due_at,
        time_zone=row.time_zone,
        seller=seller,
        customer=Customer(name=row.account_name, email=users.owner_email(tx, account_id)),
        period_starts_at=row.period_starts_at,
        period_ends_at=row.period_ends_at,
        paid_at=row.paid_at,
        voided_at=row.voided_at,
        payment=None if row.payment_id is None else _payment(row),
        refunds=() if row.payment_id is None else _refunds(tx, row),
    )


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


def _payment(row: Row[Any]) -> Payment:
    return Payment(
        method=PaymentMethod(row.provider),
        external_payment_id=row.external_payment_id,
        amount_minor=row.settled_minor,
        currency=row.settled_currency,
    )


def _refunds(tx: Tx, row: Row[Any]) -> tuple[Refund, ...]:
    """What has gone back of the payment; what is on its way is not on paper yet."""
    gone_back = tx.rows(
        """
        SELECT amount_minor, confirmed_at FROM refunds WHERE payment_id = %(id)s AND status = 'succeeded'
        ORDER BY confirmed_at, id
        """,
        id=row.payment_id,
    )
    zone = ZoneInfo(row.time_zone)
    return tuple(
        Refund(refunded_on=one.confirmed_at.astimezone(zone).date(), amount_minor=one.amount_minor) for one in gone_back
    )


def _numbered(invoice: Invoice, number: int) -> _NumberedInvoice:
    year = invoice.opened_at.year
    return _NumberedInvoice(
        **asdict(invoice), number_year=year, number=number, reference=creditor_reference(year, number)
    )


def page(tx: Tx, account_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The account's invoices with their plans' slugs, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT i.*, p.slug AS plan, coalesce(s.refunded_minor, 0) AS refunded_minor
        FROM invoices i JOIN plans p ON p.id = i.plan_id
        LEFT JOIN payments s ON s.invoice_id = i.id AND s.status = 'succeeded' AND s.unapplied_reason IS NULL
        WHERE i.account_id = %(account_id)s AND i.id < %(before)s
        ORDER BY i.id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )
