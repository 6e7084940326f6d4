"""Money that is here and settles nothing yet: brought by statements, listed with what it may be for."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Row

from shared.db import bank_statements, events
from shared.db.bulk import insert_new
from shared.db.engine import Tx
from shared.domain.event import Event, EventKind
from shared.domain.invoice import InvoiceStatus, PaymentMethod, invoice_number
from shared.domain.matching import Candidate, UnappliedReason, near_references, references_in
from shared.domain.payment import PaymentStatus
from shared.domain.statement import BankEntry

# Names are compared with those of so many open invoices over the amount, the newest ones.
MAX_SAME_AMOUNT: Final = 200

PAYMENT_TYPES: Final = {
    "id": "uuid",
    "account_id": "uuid",
    "invoice_id": "uuid",
    "operation_id": "uuid",
    "provider": "text",
    "external_payment_id": "text",
    "status": "text",
    "amount_minor": "bigint",
    "currency": "text",
    "confirmed_at": "timestamptz",
    "unapplied_reason": "text",
    "bank_entry_id": "uuid",
}


class EntryPayment(Struct, frozen=True, kw_only=True):
    """The payment of an entry. Account and invoice are those that it is meant for, if it says so.

    fallback_id: the entry's external id, for when the bank gave its transaction id to an entry of another account.
    """

    id: UUID
    account_id: UUID | None
    invoice_id: UUID | None
    operation_id: UUID
    external_payment_id: str
    amount_minor: int
    currency: str
    confirmed_at: datetime
    unapplied_reason: UnappliedReason
    bank_entry_id: UUID
    fallback_id: str
    provider: PaymentMethod = PaymentMethod.BANK_TRANSFER
    status: PaymentStatus = PaymentStatus.SUCCEEDED


class NamedInvoice(Candidate, frozen=True, kw_only=True):
    """An invoice that money may be for, with what an admin recognises it by."""

    account_id: UUID
    account_name: str
    invoice_number: str


def insert_or_link(tx: Tx, payments: Sequence[EntryPayment]) -> list[EntryPayment]:
    """Give each new entry its payment; those that were made for it, in their order.

    Money that an admin knew before, by the bank's id, is linked and stays what it is.
    """
    made = _insert(tx, payments)
    known = [payment for payment in payments if payment.bank_entry_id not in made]
    linked = _link(tx, known)
    # Known to the bank by an id that another entry has taken: of another account of ours, or this one's old bank.
    others = [
        replace(payment, external_payment_id=payment.fallback_id)
        for payment in known
        if payment.bank_entry_id not in linked
    ]
    made |= _insert(tx, others)
    return [payment for payment in payments if payment.bank_entry_id in made]


def tell(tx: Tx, payments: Sequence[EntryPayment], *, at: datetime) -> None:
    """Tell the accounts that this money was meant for, where they are known: it is here, and settles nothing."""
    events.insert(
        tx,
        [
            Event(
                account_id=payment.account_id,
                kind=EventKind.PAYMENT_UNAPPLIED,
                subject_id=payment.id,
                data={
                    "invoice_id": payment.invoice_id,
                    "reason": payment.unapplied_reason,
                    "amount_minor": payment.amount_minor,
                    "currency": payment.currency,
                },
                occurred_at=at,
            )
            for payment in payments
            if payment.account_id is not None
        ],
    )


def page(tx: Tx, *, before: UUID | None, after: UUID | None, limit: int) -> Sequence[Row[Any]]:
    """Unapplied payments with their entries: newest first from `before` on, or else oldest first from `after` on.

    What went back in full is unapplied no more.
    """
    condition, order = ("p.id > %(after)s", "ASC") if before is None else ("p.id < %(before)s", "DESC")
    return tx.rows(
        f"""
        SELECT p.*, e.iban, e.transaction_id, e.booked_on, e.value_on, e.payer_name, e.payer_iban, e.reference,
               e.remittance, e.returned, e.statement_id
        FROM payments p LEFT JOIN bank_entries e ON e.id = p.bank_entry_id
        WHERE p.unapplied_reason IS NOT NULL AND p.refunded_minor < p.amount_minor AND {condition}
        ORDER BY p.id {order} LIMIT %(limit)s
        """,  # noqa: S608 (constants of this function)
        before=before,
        after=after,
        limit=limit,
    )


def entry_of(row: Row[Any]) -> BankEntry | None:
    """The entry of a payment of a page, over the money that the payment says; None if it stands on no statement."""
    return None if row.bank_entry_id is None else bank_statements.entry_of(row)


def invoices_named(tx: Tx, references: Collection[str]) -> dict[str, NamedInvoice]:
    """The invoices that have these references, by reference."""
    return {invoice.reference: invoice for invoice in _candidates(tx, references, [])}


def candidates(tx: Tx, entries: Sequence[BankEntry]) -> list[list[NamedInvoice]]:
    """For each entry the invoices that it may be for: named, nearly named, or open over the amount; in one query."""
    references = [{*references_in(entry), *near_references(entry)} for entry in entries]
    found = _candidates(tx, set().union(*references), {(entry.amount_minor, entry.currency) for entry in entries})
    by_reference = {invoice.reference: invoice for invoice in found}
    by_money: dict[tuple[int, str], list[NamedInvoice]] = {}
    for invoice in found:
        if invoice.status is InvoiceStatus.OPEN:
            by_money.setdefault((invoice.amount_minor, invoice.currency), []).append(invoice)
    return [
        list(
            {
                invoice.invoice_id: invoice
                for invoice in (
                    *(by_reference[reference] for reference in wanted if reference in by_reference),
                    *by_money.get((entry.amount_minor, entry.currency), ()),
                )
            }.values()
        )
        for entry, wanted in zip(entries, references, strict=True)
    ]


def _candidates(tx: Tx, references: Collection[str], money: Iterable[tuple[int, str]]) -> list[NamedInvoice]:
    wanted = list(money)
    rows = tx.rows(
        """
        WITH found AS (
            SELECT id FROM invoices WHERE reference = ANY (%(references)s)
            UNION
            SELECT i.id FROM unnest(%(amounts)s::bigint[], %(currencies)s::text[]) AS m (amount_minor, currency)
            CROSS JOIN LATERAL (
                SELECT id FROM invoices
                WHERE status = 'open' AND currency = m.currency AND amount_minor = m.amount_minor
                ORDER BY id DESC LIMIT %(most)s
            ) i
        )
        SELECT i.id, i.account_id, i.number_year, i.number, i.reference, i.amount_minor, i.currency, i.status,
               a.name AS account_name, t.payer_name
        FROM found JOIN invoices i USING (id) JOIN accounts a ON a.id = i.account_id
        LEFT JOIN bank_transfers t ON t.invoice_id = i.id AND t.status = 'pending'
        """,
        references=list(references),
        amounts=[amount for amount, _ in wanted],
        currencies=[currency for _, currency in wanted],
        most=MAX_SAME_AMOUNT,
    )
    return [
        NamedInvoice(
            invoice_id=row.id,
            account_id=row.account_id,
            account_name=row.account_name,
            invoice_number=invoice_number(row.number_year, row.number),
            reference=row.reference,
            amount_minor=row.amount_minor,
            currency=row.currency,
            status=InvoiceStatus(row.status),
            payer_names=tuple(name for name in (row.account_name, row.payer_name) if name is not None),
        )
        for row in rows
    ]


def _insert(tx: Tx, payments: Sequence[EntryPayment]) -> set[UUID]:
    """Insert those whose money is not known yet; their entries."""
    return insert_new(
        tx,
        "payments",
        PAYMENT_TYPES,
        payments,
        conflict="(provider, external_payment_id) WHERE status = 'succeeded'",
        key="bank_entry_id",
    )


def _link(tx: Tx, payments: Sequence[EntryPayment]) -> set[UUID]:
    """Tell payments that were known before which entry they came with; the entries that found theirs."""
    if not payments:
        return set()
    rows = tx.rows(
        """
        UPDATE payments p SET bank_entry_id = v.bank_entry_id
        FROM unnest(%(external_ids)s::text[], %(entry_ids)s::uuid[]) AS v (external_payment_id, bank_entry_id)
        WHERE p.provider = 'bank_transfer' AND p.status = 'succeeded' AND p.bank_entry_id IS NULL
          AND p.external_payment_id = v.external_payment_id
        RETURNING p.bank_entry_id
        """,
        external_ids=[payment.external_payment_id for payment in payments],
        entry_ids=[payment.bank_entry_id for payment in payments],
    )
    return {row.bank_entry_id for row in rows}
