"""Payments: a customer says that one was made, and the provider is asked."""

from api import paging, schemas
from api.accept import Accepted, accept
from api.access import Customer, Permission, customer
from api.routes.invoices import require_provider
from api.routing import ACCEPTED, Routes
from api.schemas import Page, PaymentDocument
from shared.db import invoices, payments
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.domain.operation import OperationKind
from shared.domain.requests import ConfirmPayment

routes = Routes("payments", about="Payments made at a provider.")


@routes.handle("POST", "/payments", needs=customer(Permission.BILLING_PAY, Action.PAY), answer=ACCEPTED)
def confirm_payment(tx: Tx, principal: Customer, header: schemas.OptionalKey, body: schemas.PaymentBody) -> Accepted:
    """Have a payment confirmed; the provider is asked, and what it says counts."""
    require_provider(body.provider)
    invoices.get(tx, principal.account_id, body.invoice_id)
    return accept(
        tx,
        OperationKind.CONFIRM_PAYMENT,
        ConfirmPayment(
            invoice_id=body.invoice_id, provider=body.provider, external_payment_id=body.external_payment_id
        ),
        principal=principal,
        account_id=principal.account_id,
        body=body,
        key=header.idempotency_key,
    )


@routes.handle("GET", "/payments", needs=customer(Permission.BILLING_READ), answer=Page[PaymentDocument])
def list_payments(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[PaymentDocument]:
    """What providers were asked, and what they said."""
    rows = payments.page(tx, principal.account_id, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[PaymentDocument], rows, PaymentDocument.of, limit=query.limit)
