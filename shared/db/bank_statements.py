"""Bank statements: files as they were handed in, and the entries that they brought, each once."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import Row

from shared.db.bulk import insert_new
from shared.db.engine import Tx
from shared.domain.statement import BankEntry, StatementFormat
from shared.errors import InvalidStatement, NotFound

ENTRY_TYPES: Final = {
    "id": "uuid",
    "statement_id": "uuid",
    "external_id": "text",
    "iban": "text",
    "transaction_id": "text",
    "amount_minor": "bigint",
    "currency": "text",
    "booked_on": "date",
    "value_on": "date",
    "payer_name": "text",
    "payer_iban": "text",
    "reference": "text",
    "remittance": "text",
    "returned": "boolean",
}


class StoredEntry(BankEntry, frozen=True, kw_only=True):
    """An entry as a row: with its ids, and the statement that brought it first."""

    id: UUID
    statement_id: UUID
    external_id: str


def insert(
    tx: Tx,
    *,
    statement_id: UUID,
    operation_id: UUID,
    format: StatementFormat,  # noqa: A002 (what it is called everywhere)
    content: bytes,
    content_hash: bytes,
    uploaded_by: UUID,
) -> None:
    """Keep a file, byte by byte, with the operation that is to import it."""
    tx.execute(
        """
        INSERT INTO bank_statements (id, operation_id, format, content, content_hash, uploaded_by)
        VALUES (%(id)s, %(operation_id)s, %(format)s, %(content)b, %(content_hash)s, %(uploaded_by)s)
        """,
        id=statement_id,
        operation_id=operation_id,
        format=str(format),
        content=content,
        content_hash=content_hash,
        uploaded_by=uploaded_by,
    )


def get(tx: Tx, statement_id: UUID) -> Row[Any]:
    """A statement with its content. Raises NotFound."""
    row = tx.maybe("SELECT * FROM bank_statements WHERE id = %(id)s", id=statement_id)
    if row is None:
        raise NotFound("no such bank statement")
    return row


def require(tx: Tx, statement_id: UUID) -> None:
    """Raises NotFound when there is no such statement."""
    if not tx.scalar("SELECT EXISTS (SELECT FROM bank_statements WHERE id = %(id)s)", id=statement_id):
        raise NotFound("no such bank statement")


def insert_new_entries(tx: Tx, entries: Sequence[StoredEntry]) -> list[StoredEntry]:
    """Insert the entries that no statement has brought before; those, in their order.

    Raises InvalidStatement when a known external id comes with other money or another booking day: the bank uses its
    ids again, and one of the two entries would be lost.
    """
    new = insert_new(tx, "bank_entries", ENTRY_TYPES, entries, conflict="(external_id)", key="external_id")
    _require_same(tx, [entry for entry in entries if entry.external_id not in new])
    return [entry for entry in entries if entry.external_id in new]


def page(tx: Tx, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """Statements and what became of each, without their content, newest first."""
    return tx.rows(
        """
        SELECT s.id, s.operation_id, s.format, octet_length(s.content) AS size_bytes,
               encode(s.content_hash, 'hex') AS sha256, s.uploaded_by, s.created_at, o.status, o.result, o.problem
        FROM bank_statements s JOIN operations o ON o.id = s.operation_id
        WHERE s.id < %(before)s ORDER BY s.id DESC LIMIT %(limit)s
        """,
        before=before,
        limit=limit,
    )


def entries_page(tx: Tx, statement_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The entries that a statement brought, the last of the file first, with their payments."""
    return tx.rows(
        """
        SELECT e.*, p.id AS payment_id, p.account_id, p.invoice_id, p.unapplied_reason, p.applied_at, p.refunded_minor
        FROM bank_entries e LEFT JOIN payments p ON p.bank_entry_id = e.id
        WHERE e.statement_id = %(statement_id)s AND e.id < %(before)s ORDER BY e.id DESC LIMIT %(limit)s
        """,
        statement_id=statement_id,
        before=before,
        limit=limit,
    )


def entry_of(row: Row[Any]) -> BankEntry:
    """An entry from a row that has its columns."""
    return msgspec.convert(row, BankEntry, from_attributes=True)


def origin_of(tx: Tx, bank_entry_id: UUID) -> Row[Any]:
    """The value date of an entry, and the admin who brought it."""
    return tx.one(
        """
        SELECT e.value_on, s.uploaded_by FROM bank_entries e JOIN bank_statements s ON s.id = e.statement_id
        WHERE e.id = %(id)s
        """,
        id=bank_entry_id,
    )


def _require_same(tx: Tx, known: Sequence[StoredEntry]) -> None:
    if not known:
        return
    reused = tx.rows(
        """
        SELECT e.transaction_id, e.external_id, e.booked_on, e.amount_minor, e.currency
        FROM unnest(%(external_ids)b::text[], %(amounts)b::bigint[], %(currencies)b::text[], %(days)b::date[])
            AS v (external_id, amount_minor, currency, booked_on)
        JOIN bank_entries e ON e.external_id = v.external_id
            AND (e.amount_minor, e.currency, e.booked_on) <> (v.amount_minor, v.currency, v.booked_on)
        ORDER BY e.external_id LIMIT 1
        """,
        external_ids=[entry.external_id for entry in known],
        amounts=[entry.amount_minor for entry in known],
        currencies=[entry.currency for entry in known],
        days=[entry.booked_on for entry in known],
    )
    for row in reused:
        told = (row.transaction_id or row.external_id)[:40]
        raise InvalidStatement(
            f"transaction id {told!r} came before, on {row.booked_on} over {row.amount_minor} {row.currency} (in minor "
            "units), and stands for another entry now; ask the bank for ids that are used once",
            transaction_id=told,
        )
