"""API keys: shown once, listed by their prefix, rotated, revoked."""

from datetime import timedelta
from http import HTTPStatus

from api import paging, schemas
from api.access import Customer, Permission, customer
from api.routing import Routes
from api.schemas import ApiKeyDocument, NewApiKeyDocument, Page
from shared import security
from shared.clock import utc_now
from shared.db import api_keys, audit, sites
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.errors import InvalidInput
from shared.ids import new_id

READS = customer(Permission.API_KEYS_READ)
WRITES = customer(Permission.API_KEYS_WRITE, Action.USE)
# Taking access away is never refused, not even to an account that may only read.
REVOKES = customer(Permission.API_KEYS_WRITE)

routes = Routes("API keys", about="Credentials for programs.")


@routes.handle("POST", "/api-keys", needs=WRITES, answer=NewApiKeyDocument, status=HTTPStatus.CREATED)
def create_api_key(tx: Tx, principal: Customer, body: schemas.ApiKeyBody) -> NewApiKeyDocument:
    """Make a key; it is shown in this answer and never again."""
    if body.expires_at is not None and body.expires_at <= utc_now():
        raise InvalidInput("a key expires in the future or not at all")
    if body.site_id is not None:
        sites.get(tx, principal.account_id, body.site_id)
    new = security.new_api_key()
    row = api_keys.create(
        tx,
        api_key_id=new_id(),
        account_id=principal.account_id,
        site_id=body.site_id,
        name=body.name,
        prefix=new.prefix,
        key_hash=new.key_hash,
        scopes=sorted(set(body.scopes)),
        created_by=principal.id,
        expires_at=body.expires_at,
    )
    return NewApiKeyDocument.of(row, key=new.key)


@routes.handle("GET", "/api-keys", needs=READS, answer=Page[ApiKeyDocument])
def list_api_keys(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[ApiKeyDocument]:
    """The account's keys, revoked ones too."""
    rows = api_keys.page(tx, principal.account_id, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[ApiKeyDocument], rows, ApiKeyDocument.of, limit=query.limit)


@routes.handle(
    "POST",
    "/api-keys/<uuid:api_key_id>/rotate",
    needs=WRITES,
    answer=NewApiKeyDocument,
    status=HTTPStatus.CREATED,
)
def rotate_api_key(
    tx: Tx, principal: Customer, path: schemas.ApiKeyPath, body: schemas.RotateApiKeyBody
) -> NewApiKeyDocument:
    """Replace a key by another one with the same name, scopes, site and expiry; it is shown in this answer alone.

    The old one works for `overlap_hours` more, so that a program can be told the new one without a pause.
    """
    now = utc_now()
    new = security.new_api_key()
    row = api_keys.rotate(
        tx,
        principal.account_id,
        path.api_key_id,
        new_id=new_id(),
        prefix=new.prefix,
        key_hash=new.key_hash,
        rotated_by=principal.id,
        now=now,
        overlap=timedelta(hours=body.overlap_hours),
    )
    audit.record(
        tx,
        at=now,
        actor_kind=principal.kind,
        actor_id=principal.id,
        action="api_key.rotated",
        account_id=principal.account_id,
        subject_kind="api_key",
        subject_id=path.api_key_id,
        after={"replaced_by": row.id, "overlap_hours": body.overlap_hours},
    )
    return NewApiKeyDocument.of(row, key=new.key)


@routes.handle(
    "DELETE",
    "/api-keys/<uuid:api_key_id>",
    needs=REVOKES,
    answer=None,
)
def revoke_api_key(tx: Tx, principal: Customer, path: schemas.ApiKeyPath) -> None:
    """Revoke a key, and the one that it replaced: they open nothing from the next request on."""
    api_keys.revoke(tx, principal.account_id, path.api_key_id, now=utc_now())
