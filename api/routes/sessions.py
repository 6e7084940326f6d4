"""Signing in and out, for customers and for admins: two tables, two audiences, one way of doing it."""

from datetime import datetime
from http import HTTPStatus
from math import ceil
from typing import Final
from uuid import UUID

from msgspec.structs import asdict

from api import auth, paging, schemas
from api.access import ADMIN, PUBLIC, REFRESH_TOKEN, Admin, Customer, customer
from api.network import network_of_request
from api.routing import Routes
from api.schemas import LoginBody, Page, SessionDocument, TokensDocument
from api.services import services
from api.throttle import Throttle
from shared import security
from shared.clock import utc_now
from shared.db import sessions, sign_ins
from shared.db.engine import Tx
from shared.db.sessions import Audience
from shared.errors import TooManyAttempts, Unauthenticated

SIGN_IN_REFUSALS: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)
ANY_USER: Final = customer(None, users_only=True)

routes = Routes("auth", about="Signing in, prolonging, signing out.")
admin_routes = Routes("admin auth", about="The same for platform admins, who are no users.")


@routes.handle(
    "POST", "/auth/login", needs=PUBLIC, answer=TokensDocument, refusals=SIGN_IN_REFUSALS, throttle=Throttle.LOGIN
)
def log_in(body: LoginBody) -> TokensDocument:
    """Sign in as a user. After some failures from one network, the next attempt from there has to wait."""
    return _log_in(Audience.CUSTOMER, body)


@routes.handle("POST", "/auth/refresh", needs=REFRESH_TOKEN, answer=TokensDocument, throttle=Throttle.REFRESH)
def refresh() -> TokensDocument:
    """Exchange a refresh token, sent as `Authorization: Bearer`. Using one twice ends its session."""
    return TokensDocument(**asdict(auth.refresh_session(Audience.CUSTOMER)))


@routes.handle("POST", "/auth/logout", needs=ANY_USER, answer=None)
def log_out(tx: Tx, principal: Customer) -> None:
    """End this session; its tokens open nothing any more."""
    if principal.session_id is not None:
        sessions.revoke(tx, principal.session_id, reason="logout", now=utc_now())


@routes.handle("POST", "/auth/logout-all", needs=ANY_USER, answer=None)
def log_out_everywhere(tx: Tx, principal: Customer) -> None:
    """End all sessions of this user, this one too."""
    auth.end_all_sessions(tx, Audience.CUSTOMER, principal.id, account_id=principal.account_id)


@routes.handle("GET", "/auth/sessions", needs=ANY_USER, answer=Page[SessionDocument])
def list_sessions(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[SessionDocument]:
    """Where this user is or was signed in."""
    return _sessions(tx, Audience.CUSTOMER, principal.id, principal.session_id, query)


@admin_routes.handle(
    "POST", "/admin/auth/login", needs=PUBLIC, answer=TokensDocument, refusals=SIGN_IN_REFUSALS, throttle=Throttle.LOGIN
)
def log_in_admin(body: LoginBody) -> TokensDocument:
    """Sign in as an admin."""
    return _log_in(Audience.ADMIN, body)


@admin_routes.handle(
    "POST", "/admin/auth/refresh", needs=REFRESH_TOKEN, answer=TokensDocument, throttle=Throttle.REFRESH
)
def refresh_admin() -> TokensDocument:
    """Exchange an admin's refresh token."""
    return TokensDocument(**asdict(auth.refresh_session(Audience.ADMIN)))


@admin_routes.handle("POST", "/admin/auth/logout", needs=ADMIN, answer=None)
def log_out_admin(tx: Tx, principal: Admin) -> None:
    """End this session of an admin."""
    sessions.revoke(tx, principal.session_id, reason="logout", now=utc_now())


@admin_routes.handle("POST", "/admin/auth/logout-all", needs=ADMIN, answer=None)
def log_out_admin_everywhere(tx: Tx, principal: Admin) -> None:
    """End all sessions of this admin, this one too."""
    auth.end_all_sessions(tx, Audience.ADMIN, principal.id, account_id=None)


@admin_routes.handle("GET", "/admin/auth/sessions", needs=ADMIN, answer=Page[SessionDocument])
def list_admin_sessions(tx: Tx, principal: Admin, query: schemas.PageQuery) -> Page[SessionDocument]:
    """Where this admin is or was signed in."""
    return _sessions(tx, Audience.ADMIN, principal.id, principal.session_id, query)


def _sessions(
    tx: Tx, audience: Audience, principal_id: UUID, current: UUID | None, query: schemas.PageQuery
) -> Page[SessionDocument]:
    before = paging.id_before(query.cursor)
    rows = sessions.page(tx, audience, principal_id, before=before, limit=query.limit + 1)
    return paging.page(
        Page[SessionDocument],
        rows,
        lambda row: SessionDocument.of(row, current=row.id == current),
        limit=query.limit,
    )


def _log_in(audience: Audience, body: LoginBody) -> TokensDocument:
    """The same steps and the same work whether or not anybody has the address, and the same refusal."""
    settings = services().settings
    who = security.sign_in_digest(settings, audience, body.email)
    network = network_of_request()
    now = utc_now()
    with services().database.transaction() as tx:
        wait_until = sign_ins.begin(tx, who=who, network=network, now=now)
        found = sign_ins.by_email(tx, audience, body.email)
    if wait_until is not None:
        raise _too_many(wait_until, now)
    # The hash is checked outside of any transaction: it takes long on purpose, and as long for nobody.
    password_hash = None if found is None else found.password_hash
    if not security.verify_password(settings, password_hash, body.password) or found is None:
        raise Unauthenticated("address and password do not fit")
    new_hash = None
    if security.is_hashed_otherwise(settings, found.password_hash):
        new_hash = security.hash_password(settings, body.password)
    with services().database.transaction() as tx:
        if new_hash is not None:
            sign_ins.rehash_password(tx, audience, found.id, old_hash=found.password_hash, new_hash=new_hash)
        sign_ins.succeed(tx, who=who, network=network, now=now)
        return TokensDocument(**asdict(auth.open_session(tx, audience, found.id, now=utc_now())))


def _too_many(wait_until: datetime, now: datetime) -> TooManyAttempts:
    seconds = max(1, ceil((wait_until - now).total_seconds()))
    return TooManyAttempts("too many sign-ins have failed; try again later", retry_after_seconds=seconds)
