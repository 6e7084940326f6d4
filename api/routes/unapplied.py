"""Unapplied payments: money that is here and waits for an admin to say what it is for."""

from collections.abc import Sequence
from datetime import date
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from api import paging, schemas
from api.accept import Accepted, accept
from api.access import ADMIN, Admin
from api.routing import ACCEPTED, Routes
from api.schemas import (
    BankEntryFacts,
    Page,
    SuggestionDocument,
    UnappliedOrder,
    UnappliedPage,
    UnappliedPaymentDocument,
)
from shared.clock import utc_now
from shared.db import invoices, payments, unapplied
from shared.db.engine import Tx
from shared.domain.matching import suggestions
from shared.domain.operation import OperationKind
from shared.domain.requests import ApplyPayment
from shared.domain.statement import BankEntry

admin_routes = Routes("admin unapplied payments", about="Money that is here and settles nothing yet.")


@admin_routes.handle("GET", "/admin/payments/unapplied", needs=ADMIN, answer=UnappliedPage)
def list_unapplied_payments(tx: Tx, query: schemas.UnappliedQuery) -> Page[UnappliedPaymentDocument]:
    """Everybody's unapplied money, the oldest first unless asked otherwise, and which invoices it may be for."""
    newest_first = query.order is UnappliedOrder.NEWEST
    rows = unapplied.page(
        tx,
        before=paging.id_before(query.cursor) if newest_first else None,
        after=None if newest_first else paging.id_after(query.cursor),
        limit=query.limit + 1,
    )
    suggested = _suggested(tx, rows[: query.limit])
    today = utc_now().date()
    return paging.page(
        UnappliedPage, rows, lambda row: _document(row, suggested.get(row.id, []), today=today), limit=query.limit
    )


@admin_routes.handle("POST", "/admin/payments/<uuid:payment_id>/apply", needs=ADMIN, answer=ACCEPTED)
def apply_payment(
    tx: Tx, principal: Admin, path: schemas.PaymentPath, header: schemas.OptionalKey, body: schemas.ApplyBody
) -> Accepted:
    """Settle an open invoice with unapplied money; a bank transfer that waits for it is approved with that."""
    return accept(
        tx,
        OperationKind.APPLY_PAYMENT,
        ApplyPayment(
            payment_id=payments.get(tx, path.payment_id).id,
            invoice_id=body.invoice_id,
            override_reason=body.override_reason,
        ),
        principal=principal,
        account_id=invoices.account_of(tx, body.invoice_id),
        body=body,
        key=header.idempotency_key,
    )


def _suggested(tx: Tx, rows: Sequence[Row[Any]]) -> dict[UUID, list[SuggestionDocument]]:
    """What the payments of a page may be for, by payment; those that stand on no statement are left out."""
    entries: dict[UUID, BankEntry] = {row.id: entry for row in rows if (entry := unapplied.entry_of(row)) is not None}
    candidates = unapplied.candidates(tx, list(entries.values()))
    return {
        payment_id: _suggestions(entry, invoices_found)
        for (payment_id, entry), invoices_found in zip(entries.items(), candidates, strict=True)
    }


def _suggestions(entry: BankEntry, candidates: Sequence[unapplied.NamedInvoice]) -> list[SuggestionDocument]:
    by_id = {candidate.invoice_id: candidate for candidate in candidates}
    return [
        SuggestionDocument.of(by_id[found.invoice_id], score=found.score, reasons=list(found.reasons))
        for found in suggestions(entry, candidates)
    ]


def _document(row: Row[Any], suggested: list[SuggestionDocument], *, today: date) -> UnappliedPaymentDocument:
    since = row.confirmed_at.date() if row.value_on is None else row.value_on
    return UnappliedPaymentDocument.of(
        row,
        age_days=max((today - since).days, 0),
        entry=None if row.bank_entry_id is None else BankEntryFacts.of(row),
        suggestions=suggested,
    )
