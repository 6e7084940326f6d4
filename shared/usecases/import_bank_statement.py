"""Import a bank's file: each entry once, a payment for all money that came in, and the exact matches on their way.

Three steps. The file is loaded in one transaction and read in none, for that takes seconds; what it says is written in
another, whole or not at all.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from shared.db import audit, bank_statements, operations, unapplied
from shared.db.bank_statements import StoredEntry
from shared.db.engine import Tx
from shared.db.unapplied import EntryPayment, NamedInvoice
from shared.domain.matching import UnappliedReason, meant_for, references_in
from shared.domain.operation import Operation, OperationKind
from shared.domain.plan import Rules
from shared.domain.requests import ApplyPayment, ImportBankStatement
from shared.domain.statement import BankEntry, StatementFormat, external_ids
from shared.errors import InvalidStatement


class StatementFile(Struct, frozen=True, kw_only=True):
    """What is to be read."""

    format: StatementFormat
    content: bytes


def load_file(tx: Tx, operation: Operation, request: ImportBankStatement, rules: Rules) -> StatementFile:  # noqa: ARG001 (as a task calls it)
    """The file that was handed in. Raises NotFound."""
    statement = bank_statements.get(tx, request.statement_id)
    return StatementFile(format=StatementFormat(statement.format), content=bytes(statement.content))


def import_entries(
    tx: Tx,
    operation: Operation,
    request: ImportBankStatement,
    entries: Sequence[BankEntry],
    rules: Rules,
    *,
    now: datetime,
) -> dict[str, Any]:
    """Write what is new in a file's entries, which are in its order; how many of what there were.

    Raises InvalidStatement, and imports nothing, when an entry is of another account than the seller's, or when the
    bank uses an id again. Source: docs/rules.md, "Statements".
    """
    _require_our_account(entries, rules.seller_iban)
    stored = [
        StoredEntry(id=rules.new_id(), statement_id=request.statement_id, external_id=external_id, **asdict(entry))
        for entry, external_id in zip(entries, external_ids(entries), strict=True)
    ]
    new = bank_statements.insert_new_entries(tx, stored)
    came_in = [entry for entry in new if entry.amount_minor > 0]
    invoices = unapplied.invoices_named(tx, {reference for entry in came_in for reference in references_in(entry)})
    made = unapplied.insert_or_link(tx, [_payment(operation, entry, invoices, rules, at=now) for entry in came_in])
    settling = [payment for payment in made if _settles_by_itself(payment, rules)]
    unapplied.tell(tx, [payment for payment in made if not _settles_by_itself(payment, rules)], at=now)
    _have_applied(tx, settling, rules, at=now)
    counts = {
        "entries": len(stored),
        "new": len(new),
        "duplicates": len(stored) - len(new),
        "money_in": sum(entry.amount_minor > 0 for entry in stored),
        "money_out": sum(entry.amount_minor < 0 for entry in stored),
        "settling": len(settling),
        "unapplied": len(made) - len(settling),
    }
    audit.record(
        tx,
        at=now,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action="bank_statement.imported",
        subject_kind="bank_statement",
        subject_id=request.statement_id,
        after=counts,
        operation_id=operation.id,
    )
    return {"statement_id": str(request.statement_id)} | counts


def _require_our_account(entries: Sequence[BankEntry], seller_iban: str) -> None:
    for entry in entries:
        if entry.iban != seller_iban:
            raise InvalidStatement(
                f"the file has an entry of {entry.iban}, and SELLER_IBAN is {seller_iban}; export the statement of "
                "that account",
                iban=entry.iban,
            )


def _payment(
    operation: Operation, entry: StoredEntry, invoices: dict[str, NamedInvoice], rules: Rules, *, at: datetime
) -> EntryPayment:
    invoice, reason = meant_for(entry, invoices)
    return EntryPayment(
        id=rules.new_id(),
        account_id=None if invoice is None else invoice.account_id,
        invoice_id=None if invoice is None else invoice.invoice_id,
        operation_id=operation.id,
        external_payment_id=entry.transaction_id or entry.external_id,
        amount_minor=entry.amount_minor,
        currency=entry.currency,
        confirmed_at=at,
        unapplied_reason=reason,
        bank_entry_id=entry.id,
        fallback_id=entry.external_id,
    )


def _settles_by_itself(payment: EntryPayment, rules: Rules) -> bool:
    return rules.statement_auto_settle and payment.unapplied_reason is UnappliedReason.MATCHED


def _have_applied(tx: Tx, settling: Sequence[EntryPayment], rules: Rules, *, at: datetime) -> None:
    """One operation for each payment, under its account's lock, so that no account waits for a whole file."""
    operations.schedule(
        tx,
        OperationKind.APPLY_PAYMENT,
        [
            (
                rules.new_id(),
                payment.account_id,
                ApplyPayment(payment_id=payment.id, invoice_id=payment.invoice_id),
                str(payment.id),
                at,
            )
            for payment in settling
            if payment.invoice_id is not None
        ],
    )
