"""Operations: what became of a request that was accepted."""

from typing import Any, Final

from sqlalchemy import Row

from api import paging, problems, schemas
from api.accept import Accepted
from api.access import ADMIN, Admin, Customer, Needs, Permission
from api.routing import ACCEPTED, Routes
from api.schemas import AdminOperationDocument, OperationDocument, Page
from api.services import services
from shared import security
from shared.clock import utc_now
from shared.db import audit, operations
from shared.db.engine import Tx
from shared.db.sessions import Audience
from shared.domain.operation import OperationKind, OperationStatus, PrincipalKind
from shared.errors import NotFound

ANYBODY: Final = Needs(audiences=frozenset(Audience), permission=Permission.BILLING_READ, anonymous=True)

routes = Routes("operations", about="What became of a request.")
admin_routes = Routes("admin operations", about="All operations, and a second chance for dead ones.")


@routes.handle("GET", "/operations/<uuid:operation_id>", needs=ANYBODY, answer=OperationDocument)
def read_operation(
    tx: Tx,
    principal: Customer | Admin | None,
    path: schemas.OperationPath,
    header: schemas.PollToken,
    query: schemas.PollQuery,
) -> OperationDocument:
    """An operation: of the own account, for admins any, or by the poll token that a signup was answered with."""
    poll_token = header.poll_token or query.poll_token
    has_token = poll_token is not None and security.is_poll_token(services().settings, path.operation_id, poll_token)
    if has_token:
        operations.admit_anonymous(tx, path.operation_id)
    row = operations.get(tx, path.operation_id)
    if not _may_read(row, principal, has_token=has_token):
        raise NotFound("no such operation")
    return OperationDocument.of(row, **_facts(row))


@admin_routes.handle("GET", "/admin/operations", needs=ADMIN, answer=Page[AdminOperationDocument])
def list_operations(tx: Tx, query: schemas.OperationQuery) -> Page[AdminOperationDocument]:
    """Operations by status and kind."""
    rows = operations.page(
        tx,
        status=query.status,
        kind=query.kind,
        before=paging.id_before(query.cursor),
        limit=query.limit + 1,
    )
    return paging.page(
        Page[AdminOperationDocument],
        rows,
        lambda row: AdminOperationDocument.of(row, **_facts(row)),
        limit=query.limit,
    )


@admin_routes.handle("POST", "/admin/operations/<uuid:operation_id>/retry", needs=ADMIN, answer=ACCEPTED)
def retry_operation(tx: Tx, principal: Admin, path: schemas.OperationPath) -> Accepted:
    """Send a dead operation again, with all its attempts."""
    now = utc_now()
    operations.revive(tx, path.operation_id, now=now)
    row = operations.get(tx, path.operation_id)
    audit.record(
        tx,
        at=now,
        actor_kind=PrincipalKind.ADMIN,
        actor_id=principal.id,
        action="operation.retried",
        account_id=row.account_id,
        subject_kind="operation",
        subject_id=path.operation_id,
        before={"status": OperationStatus.DEAD},
        after={"status": OperationStatus.PENDING},
        operation_id=path.operation_id,
    )
    return Accepted(
        operation_id=path.operation_id,
        kind=OperationKind(row.kind),
        status=OperationStatus.PENDING,
        replayed=False,
    )


def _may_read(row: Row[Any], principal: Customer | Admin | None, *, has_token: bool) -> bool:
    if has_token and row.principal_kind == PrincipalKind.ANONYMOUS:
        return True
    match principal:
        case Admin():
            return True
        case Customer():
            asked_by_admin = row.principal_kind == PrincipalKind.ADMIN
            return row.account_id == principal.account_id and not asked_by_admin
        case None:
            return False


def _facts(row: Row[Any]) -> dict[str, Any]:
    problem = None if row.problem is None else problems.stored_document(row.problem)
    return {"operation_id": row.id, "problem": problem}
