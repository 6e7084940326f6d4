"""The audit log, for admins."""

from msgspec import convert

from api import paging, schemas
from api.access import ADMIN
from api.routing import Routes
from api.schemas import AuditDocument, Page
from shared.db import audit
from shared.db.engine import Tx

routes = Routes("admin audit", about="Who decided what, when and why.")


@routes.handle("GET", "/admin/audit", needs=ADMIN, answer=Page[AuditDocument])
def list_decisions(tx: Tx, query: schemas.AuditQuery) -> Page[AuditDocument]:
    """Decisions with actor, reason, before and after, newest first."""
    wanted = convert(query, audit.Filter, from_attributes=True)
    rows = audit.page(tx, wanted, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[AuditDocument], rows, AuditDocument.of, limit=query.limit)
