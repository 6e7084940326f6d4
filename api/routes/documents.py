"""Invoices and receipts to print, for customers and for admins."""

from functools import partial
from http import HTTPStatus
from typing import Final
from uuid import UUID

from api import schemas
from api.access import ADMIN, Customer, Permission, customer
from api.documents import as_html, as_pdf
from api.documents.html import CONTENT_SECURITY_POLICY
from api.routing import File, Rendered, Routes
from api.schemas import DocumentFormat
from api.services import services
from shared.config import Settings
from shared.db import invoices
from shared.db.engine import Tx
from shared.domain.printable import PrintableDocument, PrintableInvoice, Seller, invoice_document, receipt_document

FILES: Final = (File("application/pdf", is_binary=True), File("text/html"))
READS: Final = customer(Permission.BILLING_READ)
NOT_PAID: Final = (HTTPStatus.CONFLICT,)

routes = Routes("documents", about="Invoices and receipts to print, as PDF or as HTML.")
admin_routes = Routes("admin documents", about="Invoices and receipts of any account, as PDF or as HTML.")


@routes.handle("GET", "/invoices/<uuid:invoice_id>/document", needs=READS, answer=FILES)
def print_invoice(tx: Tx, principal: Customer, path: schemas.InvoicePath, query: schemas.DocumentQuery) -> Rendered:
    """The invoice as it stands; while it is open, with how to pay it."""
    return _laid_out(invoice_document(_printable(tx, principal.account_id, path.invoice_id)), query.format)


@routes.handle("GET", "/invoices/<uuid:invoice_id>/receipt", needs=READS, answer=FILES, refusals=NOT_PAID)
def print_receipt(tx: Tx, principal: Customer, path: schemas.InvoicePath, query: schemas.DocumentQuery) -> Rendered:
    """The receipt of a paid invoice."""
    return _laid_out(receipt_document(_printable(tx, principal.account_id, path.invoice_id)), query.format)


@admin_routes.handle("GET", "/admin/invoices/<uuid:invoice_id>/document", needs=ADMIN, answer=FILES)
def print_any_invoice(tx: Tx, path: schemas.InvoicePath, query: schemas.DocumentQuery) -> Rendered:
    """The invoice as its customer gets it."""
    account_id = invoices.account_of(tx, path.invoice_id)
    return _laid_out(invoice_document(_printable(tx, account_id, path.invoice_id)), query.format)


@admin_routes.handle("GET", "/admin/invoices/<uuid:invoice_id>/receipt", needs=ADMIN, answer=FILES, refusals=NOT_PAID)
def print_any_receipt(tx: Tx, path: schemas.InvoicePath, query: schemas.DocumentQuery) -> Rendered:
    """The receipt as its customer gets it."""
    account_id = invoices.account_of(tx, path.invoice_id)
    return _laid_out(receipt_document(_printable(tx, account_id, path.invoice_id)), query.format)


def _printable(tx: Tx, account_id: UUID, invoice_id: UUID) -> PrintableInvoice:
    return invoices.printable(tx, account_id, invoice_id, seller=_seller(services().settings))


def _seller(settings: Settings) -> Seller:
    return Seller(
        name=settings.seller_name,
        address=settings.seller_address_lines,
        tax_id=settings.seller_tax_id,
        registration=settings.seller_registration,
        email=settings.seller_email,
        iban=settings.seller_iban,
        bic=settings.seller_bic,
    )


def _laid_out(document: PrintableDocument, wanted: DocumentFormat) -> Rendered:
    if wanted is DocumentFormat.HTML:
        return Rendered(
            make=partial(as_html, document),
            content_type="text/html; charset=utf-8",
            file_name=f"{document.file_stem}.html",
            content_security_policy=CONTENT_SECURITY_POLICY,
        )
    return Rendered(
        make=partial(as_pdf, document), content_type="application/pdf", file_name=f"{document.file_stem}.pdf"
    )
