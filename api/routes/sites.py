"""Sites: where the customer's product runs."""

from http import HTTPStatus

from api import paging, schemas
from api.access import Customer, Permission, customer
from api.routing import PREFIX, Answer, Routes
from api.schemas import Page, SiteDocument
from shared.clock import utc_now
from shared.db import sites
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.ids import new_id

READS = customer(Permission.SITES_READ)
WRITES = customer(Permission.SITES_WRITE, Action.USE)

routes = Routes("sites", about="Where the product runs.")


@routes.handle("POST", "/sites", needs=WRITES, answer=SiteDocument, status=HTTPStatus.CREATED)
def create_site(tx: Tx, principal: Customer, body: schemas.SiteBody) -> Answer:
    """Add a site."""
    row = sites.create(tx, site_id=new_id(), account_id=principal.account_id, name=body.name, domain=body.domain)
    return Answer(body=SiteDocument.of(row), location=f"{PREFIX}/sites/{row.id}")


@routes.handle("GET", "/sites", needs=READS, answer=Page[SiteDocument])
def list_sites(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[SiteDocument]:
    """The account's sites."""
    rows = sites.page(tx, principal.account_id, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[SiteDocument], rows, SiteDocument.of, limit=query.limit)


@routes.handle("GET", "/sites/<uuid:site_id>", needs=READS, answer=SiteDocument)
def read_site(tx: Tx, principal: Customer, path: schemas.SitePath) -> SiteDocument:
    """A site."""
    return SiteDocument.of(sites.get(tx, principal.account_id, path.site_id))


@routes.handle("PATCH", "/sites/<uuid:site_id>", needs=WRITES, answer=SiteDocument)
def change_site(tx: Tx, principal: Customer, path: schemas.SitePath, body: schemas.SiteChangeBody) -> SiteDocument:
    """Rename a site or move it to another domain."""
    return SiteDocument.of(sites.update(tx, principal.account_id, path.site_id, name=body.name, domain=body.domain))


@routes.handle("DELETE", "/sites/<uuid:site_id>", needs=WRITES, answer=None)
def delete_site(tx: Tx, principal: Customer, path: schemas.SitePath) -> None:
    """Delete a site; API keys that are bound to it stop working."""
    sites.delete(tx, principal.account_id, path.site_id, now=utc_now())
