"""Bank statements: handed in by admins as the bank has made them."""

from hashlib import sha256

from api import paging, schemas
from api.accept import Accepted, accept
from api.access import ADMIN, Admin
from api.routing import ACCEPTED, Routes
from api.schemas import BankEntryDocument, BankStatementDocument, Page
from shared.db import bank_statements
from shared.db.engine import Tx
from shared.domain.operation import OperationKind
from shared.domain.requests import ImportBankStatement
from shared.errors import InvalidStatement
from shared.ids import new_id

admin_routes = Routes("admin bank statements", about="What the bank says of our account.")


@admin_routes.handle(
    "POST",
    "/admin/bank-statements",
    needs=ADMIN,
    answer=ACCEPTED,
    max_body_bytes=schemas.MAX_STATEMENT_BYTES,
)
def import_bank_statement(
    tx: Tx,
    principal: Admin,
    query: schemas.BankStatementQuery,
    header: schemas.OptionalKey,
    raw: schemas.BankStatementFile,
) -> Accepted:
    """Hand in a bank's file. Each entry comes in once, however often it is sent; exact matches settle by themselves."""
    content = raw.get_data()
    if not content:
        raise InvalidStatement("the file is empty; export the statement again")
    statement_id, content_hash = new_id(), sha256(content)
    accepted = accept(
        tx,
        OperationKind.IMPORT_BANK_STATEMENT,
        ImportBankStatement(statement_id=statement_id),
        principal=principal,
        account_id=None,
        body=schemas.HandedInStatement(format=query.format, sha256=content_hash.hexdigest()),
        key=header.idempotency_key,
    )
    if not accepted.replayed:
        bank_statements.insert(
            tx,
            statement_id=statement_id,
            operation_id=accepted.operation_id,
            format=query.format,
            content=content,
            content_hash=content_hash.digest(),
            uploaded_by=principal.id,
        )
    return accepted


@admin_routes.handle("GET", "/admin/bank-statements", needs=ADMIN, answer=Page[BankStatementDocument])
def list_bank_statements(tx: Tx, query: schemas.PageQuery) -> Page[BankStatementDocument]:
    """The files that were handed in, and what became of each."""
    rows = bank_statements.page(tx, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[BankStatementDocument], rows, BankStatementDocument.of_row, limit=query.limit)


@admin_routes.handle(
    "GET", "/admin/bank-statements/<uuid:statement_id>/entries", needs=ADMIN, answer=Page[BankEntryDocument]
)
def list_bank_entries(tx: Tx, path: schemas.BankStatementPath, query: schemas.PageQuery) -> Page[BankEntryDocument]:
    """The entries that a file brought, the last of it first; those that an earlier file had are in that one's list."""
    bank_statements.require(tx, path.statement_id)
    rows = bank_statements.entries_page(
        tx, path.statement_id, before=paging.id_before(query.cursor), limit=query.limit + 1
    )
    return paging.page(Page[BankEntryDocument], rows, BankEntryDocument.of, limit=query.limit)
