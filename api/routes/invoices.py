"""Invoices: checkout, and what is owed with how to pay it."""

from decimal import Decimal
from typing import Any, Final

from segno import helpers
from sqlalchemy import Row

from api import paging, schemas
from api.accept import Accepted, accept
from api.access import Customer, Permission, customer
from api.routing import ACCEPTED, Routes
from api.schemas import InvoiceDocument, Page, PayableInvoiceDocument, PaymentInstructions
from api.services import services
from shared.config import Settings
from shared.db import invoices
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.domain.invoice import InvoiceStatus, PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.requests import OpenInvoice
from shared.errors import Forbidden
from shared.providers import provider_for

EPC_CURRENCY: Final = "EUR"
EPC_NAME_LENGTH: Final = 70
EPC_MAX_AMOUNT_MINOR: Final = 99_999_999_999

routes = Routes("invoices", about="Checkout, and what is owed.")


@routes.handle("POST", "/invoices", needs=customer(Permission.BILLING_PAY, Action.PAY), answer=ACCEPTED)
def open_invoice(tx: Tx, principal: Customer, header: schemas.OptionalKey, body: schemas.InvoiceBody) -> Accepted:
    """Check out a plan: open the invoice that brings it."""
    if body.payment_method is not PaymentMethod.BANK_TRANSFER:
        require_provider(body.payment_method)
    return accept(
        tx,
        OperationKind.OPEN_INVOICE,
        OpenInvoice(plan=body.plan, payment_method=body.payment_method),
        principal=principal,
        account_id=principal.account_id,
        body=body,
        key=header.idempotency_key,
    )


@routes.handle("GET", "/invoices", needs=customer(Permission.BILLING_READ), answer=Page[InvoiceDocument])
def list_invoices(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[InvoiceDocument]:
    """The account's invoices."""
    rows = invoices.page(tx, principal.account_id, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[InvoiceDocument], rows, _document, limit=query.limit)


@routes.handle(
    "GET",
    "/invoices/<uuid:invoice_id>",
    needs=customer(Permission.BILLING_READ),
    answer=PayableInvoiceDocument,
)
def read_invoice(tx: Tx, principal: Customer, path: schemas.InvoicePath) -> PayableInvoiceDocument:
    """An invoice; while it is open, with how to pay it by bank transfer."""
    row = invoices.get(tx, principal.account_id, path.invoice_id)
    return PayableInvoiceDocument.of(
        row,
        number=_number(row),
        payment_instructions=_instructions(row, services().settings) if row.status == InvoiceStatus.OPEN else None,
    )


def require_provider(method: PaymentMethod) -> None:
    """Raises Forbidden for what is an admin's to say, ProviderUnavailable for what cannot be confirmed here."""
    if method is PaymentMethod.MANUAL:
        raise Forbidden("only an admin records payments that were made some other way")
    provider_for(method, services().settings, services().database)


def _document(row: Row[Any]) -> InvoiceDocument:
    return InvoiceDocument.of(row, number=_number(row))


def _number(row: Row[Any]) -> str:
    return f"{row.number_year}-{row.number:08d}"


def _instructions(row: Row[Any], settings: Settings) -> PaymentInstructions:
    return PaymentInstructions(
        beneficiary=settings.seller_name,
        iban=settings.seller_iban,
        bic=settings.seller_bic,
        amount_minor=row.amount_minor,
        currency=row.currency,
        reference=row.reference,
        epc_qr_svg=_epc_qr_svg(row, settings),
    )


def _epc_qr_svg(row: Row[Any], settings: Settings) -> str | None:
    """The QR code that banking apps read, which knows euros alone."""
    if row.currency != EPC_CURRENCY or row.amount_minor > EPC_MAX_AMOUNT_MINOR:
        return None
    code = helpers.make_epc_qr(
        name=settings.seller_name[:EPC_NAME_LENGTH],
        iban=settings.seller_iban,
        bic=settings.seller_bic,
        amount=Decimal(row.amount_minor) / 100,
        reference=row.reference,
    )
    return code.svg_inline(scale=4)
