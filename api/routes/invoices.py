"""Invoices: checkout, and what is owed with how to pay it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Row

from api import paging, schemas
from api.accept import Accepted, accept
from api.access import Customer, Permission, customer
from api.auth import transactions_of
from api.routing import ACCEPTED, Routes
from api.schemas import CheckoutDocument, InvoiceDocument, Page, PayableInvoiceDocument, PaymentInstructions
from api.services import services
from shared.clock import utc_now
from shared.config import Settings
from shared.db import accounts, charges, checkouts, invoices, users
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.domain.epc import epc_code
from shared.domain.invoice import InvoiceStatus, PaymentMethod, invoice_number
from shared.domain.operation import OperationKind
from shared.domain.payment import Checkout, CheckoutRequest
from shared.domain.requests import OpenInvoice
from shared.errors import Forbidden, InvoiceNotOpen
from shared.providers import provider_for

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


@routes.handle(
    "POST",
    "/invoices/<uuid:invoice_id>/checkout",
    needs=customer(Permission.BILLING_PAY, Action.PAY),
    answer=CheckoutDocument,
)
def check_out(principal: Customer, path: schemas.InvoicePath, body: schemas.CheckoutBody) -> CheckoutDocument:
    """Begin to pay an open invoice; again, it goes on with the same payment. The card's data never come here."""
    transaction = transactions_of(principal)
    with transaction() as tx:
        row = invoices.get(tx, principal.account_id, path.invoice_id)
    if row.status != InvoiceStatus.OPEN:
        raise InvoiceNotOpen("the invoice is paid or void", invoice_id=str(row.id))
    method = body.payment_method or PaymentMethod(row.payment_method or PaymentMethod.BANK_TRANSFER)
    if method is PaymentMethod.BANK_TRANSFER:
        return _checkout_document(row, method, payment_instructions=_instructions(row, services().settings))
    require_provider(method)
    checkout = _begin_payment(transaction, row, method, save_payment_method=body.save_payment_method)
    return _checkout_document(
        row,
        method,
        external_payment_id=checkout.external_payment_id,
        client_secret=checkout.client_secret,
        publishable_key=services().settings.stripe_publishable_key,
    )


def _begin_payment(
    transaction: Callable[[], AbstractContextManager[Tx]],
    row: Row[Any],
    method: PaymentMethod,
    *,
    save_payment_method: bool,
) -> Checkout:
    """Ask the provider, outside of any transaction; what it begins is looked into whatever becomes of the browser."""
    provider = provider_for(method, services().settings, services().database)
    with transaction() as tx:
        known = charges.customer(tx, row.account_id, method)
        continues = checkouts.of_invoice(tx, row.id, method)
        name, email = accounts.get(tx, row.account_id).name, users.owner_email(tx, row.account_id)
    if known is not None:
        customer_ref = known.customer_ref
    else:
        customer_ref = provider.customer(row.account_id, name, email or "")
        with transaction() as tx:
            customer_ref = charges.save_customer(tx, row.account_id, method, customer_ref)
    checkout = provider.checkout(
        CheckoutRequest(
            account_id=row.account_id,
            invoice_id=row.id,
            invoice_number=_number(row),
            amount_minor=row.amount_minor,
            currency=row.currency,
            customer_ref=customer_ref,
            save_payment_method=save_payment_method,
            continues=continues,
        )
    )
    with transaction() as tx:
        checkouts.open_checkout(
            tx,
            method,
            checkout.external_payment_id,
            account_id=row.account_id,
            invoice_id=row.id,
            saves_method=save_payment_method,
            now=utc_now(),
        )
    return checkout


def _checkout_document(row: Row[Any], method: PaymentMethod, **ways: Any) -> CheckoutDocument:
    return CheckoutDocument(
        invoice_id=row.id,
        payment_method=method,
        amount_minor=row.amount_minor,
        currency=row.currency,
        due_at=row.due_at,
        **ways,
    )


def require_provider(method: PaymentMethod) -> None:
    """Raises Forbidden for what is an admin's to say, ProviderUnavailable for what cannot be confirmed here."""
    if method is PaymentMethod.MANUAL:
        raise Forbidden("only an admin records payments that were made some other way")
    provider_for(method, services().settings, services().database)


def _document(row: Row[Any]) -> InvoiceDocument:
    return InvoiceDocument.of(row, number=_number(row))


def _number(row: Row[Any]) -> str:
    return invoice_number(row.number_year, row.number)


def _instructions(row: Row[Any], settings: Settings) -> PaymentInstructions:
    code = epc_code(
        beneficiary=settings.seller_name,
        iban=settings.seller_iban,
        bic=settings.seller_bic,
        amount_minor=row.amount_minor,
        currency=row.currency,
        reference=row.reference,
    )
    return PaymentInstructions(
        beneficiary=settings.seller_name,
        iban=settings.seller_iban,
        bic=settings.seller_bic,
        amount_minor=row.amount_minor,
        currency=row.currency,
        reference=row.reference,
        epc_qr_svg=None if code is None else code.svg_inline(scale=4),
    )
