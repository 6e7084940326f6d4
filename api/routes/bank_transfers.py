"""Bank transfers: submitted by customers, decided by admins."""

from api import paging, schemas
from api.accept import Accepted, accept
from api.access import ADMIN, Admin, Customer, Permission, customer
from api.routing import ACCEPTED, Routes
from api.schemas import AdminBankTransferDocument, BankTransferDocument, Page
from shared.clock import utc_now
from shared.db import bank_transfers, invoices
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.domain.operation import OperationKind
from shared.domain.requests import ApproveBankTransfer, RejectBankTransfer, SubmitBankTransfer

routes = Routes("bank transfers", about="Money that is on its way.")
admin_routes = Routes("admin bank transfers", about="Deciding on bank transfers.")


@routes.handle(
    "POST",
    "/bank-transfers",
    needs=customer(Permission.BILLING_PAY, Action.PAY),
    answer=ACCEPTED,
)
def submit_bank_transfer(
    tx: Tx, principal: Customer, header: schemas.OptionalKey, body: schemas.BankTransferBody
) -> Accepted:
    """Say that a transfer for an open invoice is on its way."""
    invoices.get(tx, principal.account_id, body.invoice_id)
    return accept(
        tx,
        OperationKind.SUBMIT_BANK_TRANSFER,
        SubmitBankTransfer(
            invoice_id=body.invoice_id,
            payer_name=body.payer_name,
            transferred_on=body.transferred_on,
            note=body.note,
        ),
        principal=principal,
        account_id=principal.account_id,
        body=body,
        key=header.idempotency_key,
    )


@routes.handle("GET", "/bank-transfers", needs=customer(Permission.BILLING_READ), answer=Page[BankTransferDocument])
def list_bank_transfers(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[BankTransferDocument]:
    """The account's bank transfers."""
    rows = bank_transfers.page(tx, principal.account_id, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[BankTransferDocument], rows, BankTransferDocument.of, limit=query.limit)


@routes.handle(
    "GET",
    "/bank-transfers/<uuid:bank_transfer_id>",
    needs=customer(Permission.BILLING_READ),
    answer=BankTransferDocument,
)
def read_bank_transfer(tx: Tx, principal: Customer, path: schemas.BankTransferPath) -> BankTransferDocument:
    """A bank transfer."""
    return BankTransferDocument.of(bank_transfers.get(tx, principal.account_id, path.bank_transfer_id))


@admin_routes.handle("GET", "/admin/bank-transfers", needs=ADMIN, answer=Page[AdminBankTransferDocument])
def list_bank_transfers_by_status(tx: Tx, query: schemas.BankTransferQuery) -> Page[AdminBankTransferDocument]:
    """Everybody's bank transfers of one status, with what each invoice expects."""
    rows = bank_transfers.page_by_status(
        tx, query.status, before=paging.id_before(query.cursor), limit=query.limit + 1, now=utc_now()
    )
    return paging.page(Page[AdminBankTransferDocument], rows, AdminBankTransferDocument.of, limit=query.limit)


@admin_routes.handle("POST", "/admin/bank-transfers/<uuid:bank_transfer_id>/approve", needs=ADMIN, answer=ACCEPTED)
def approve_bank_transfer(
    tx: Tx,
    principal: Admin,
    path: schemas.BankTransferPath,
    header: schemas.OptionalKey,
    body: schemas.ApproveBody,
) -> Accepted:
    """The money came: settle the invoice."""
    return accept(
        tx,
        OperationKind.APPROVE_BANK_TRANSFER,
        ApproveBankTransfer(bank_transfer_id=path.bank_transfer_id, **dict(body)),
        principal=principal,
        account_id=bank_transfers.account_of(tx, path.bank_transfer_id),
        body=body,
        key=header.idempotency_key,
    )


@admin_routes.handle("POST", "/admin/bank-transfers/<uuid:bank_transfer_id>/reject", needs=ADMIN, answer=ACCEPTED)
def reject_bank_transfer(
    tx: Tx,
    principal: Admin,
    path: schemas.BankTransferPath,
    header: schemas.OptionalKey,
    body: schemas.RejectBody,
) -> Accepted:
    """No such money came."""
    return accept(
        tx,
        OperationKind.REJECT_BANK_TRANSFER,
        RejectBankTransfer(bank_transfer_id=path.bank_transfer_id, reason=body.reason),
        principal=principal,
        account_id=bank_transfers.account_of(tx, path.bank_transfer_id),
        body=body,
        key=header.idempotency_key,
    )
