"""Events: what happened to an account, for those who act on it."""

from uuid import UUID

from api import paging, schemas
from api.access import ADMIN, Customer, Permission, customer
from api.routing import Routes
from api.schemas import EventDocument, Page
from shared.db import accounts, events
from shared.db.engine import Tx

routes = Routes("events", about="What happened to the account.")
admin_routes = Routes("admin events", about="What happened to an account.")


@routes.handle("GET", "/events", needs=customer(Permission.BILLING_READ), answer=Page[EventDocument])
def list_events(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[EventDocument]:
    """What happened, newest first. An event is told once and never changes."""
    return _events_page(tx, principal.account_id, query)


@admin_routes.handle("GET", "/admin/accounts/<uuid:account_id>/events", needs=ADMIN, answer=Page[EventDocument])
def list_any_events(tx: Tx, path: schemas.AccountPath, query: schemas.PageQuery) -> Page[EventDocument]:
    """What happened to an account, newest first."""
    return _events_page(tx, accounts.get(tx, path.account_id).id, query)


def _events_page(tx: Tx, account_id: UUID, query: schemas.PageQuery) -> Page[EventDocument]:
    rows = events.page(tx, account_id, before=paging.seq_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[EventDocument], rows, EventDocument.of_row, limit=query.limit)
