"""Signing in and out, for customers and for admins: two tables, two audiences, one way of doing it."""

from http import HTTPStatus
from typing import Any, Final

from msgspec.structs import asdict
from sqlalchemy import Row

from api import auth
from api.access import ADMIN, PUBLIC, REFRESH_TOKEN, Admin, Customer, customer
from api.routing import Routes
from api.schemas import LoginBody, TokensDocument
from api.services import services
from shared import security
from shared.clock import utc_now
from shared.db import admins, sessions, users
from shared.db.engine import Tx
from shared.db.sessions import Audience
from shared.errors import Unauthenticated

UNAUTHORIZED: Final = (HTTPStatus.UNAUTHORIZED,)

routes = Routes("auth", about="Signing in, prolonging, signing out.")
admin_routes = Routes("admin auth", about="The same for platform admins, who are no users.")


@routes.handle("POST", "/auth/login", needs=PUBLIC, answer=TokensDocument, refusals=UNAUTHORIZED)
def log_in(body: LoginBody) -> TokensDocument:
    """Sign in as a user."""
    with services().database.transaction() as tx:
        user = users.by_email(tx, body.email)
    return _log_in(Audience.CUSTOMER, user, body.password)


@routes.handle("POST", "/auth/refresh", needs=REFRESH_TOKEN, answer=TokensDocument)
def refresh() -> TokensDocument:
    """Exchange a refresh token, sent as `Authorization: Bearer`. Using one twice ends its session."""
    return TokensDocument(**asdict(auth.refresh_session(Audience.CUSTOMER)))


@routes.handle("POST", "/auth/logout", needs=customer(None, users_only=True), answer=None)
def log_out(tx: Tx, principal: Customer) -> None:
    """End this session; its tokens open nothing any more."""
    if principal.session_id is not None:
        sessions.revoke(tx, principal.session_id, reason="logout", now=utc_now())


@admin_routes.handle("POST", "/admin/auth/login", needs=PUBLIC, answer=TokensDocument, refusals=UNAUTHORIZED)
def log_in_admin(body: LoginBody) -> TokensDocument:
    """Sign in as an admin."""
    with services().database.transaction() as tx:
        admin = admins.by_email(tx, body.email)
    return _log_in(Audience.ADMIN, admin, body.password)


@admin_routes.handle("POST", "/admin/auth/refresh", needs=REFRESH_TOKEN, answer=TokensDocument)
def refresh_admin() -> TokensDocument:
    """Exchange an admin's refresh token."""
    return TokensDocument(**asdict(auth.refresh_session(Audience.ADMIN)))


@admin_routes.handle("POST", "/admin/auth/logout", needs=ADMIN, answer=None)
def log_out_admin(tx: Tx, principal: Admin) -> None:
    """End this session of an admin."""
    sessions.revoke(tx, principal.session_id, reason="logout", now=utc_now())


def _log_in(audience: Audience, found: Row[Any] | None, password: str) -> TokensDocument:
    # The hash is checked outside of any transaction: it takes long on purpose, and as long for nobody.
    if not security.verify_password(None if found is None else found.password_hash, password) or found is None:
        raise Unauthenticated("address and password do not fit")
    with services().database.transaction() as tx:
        return TokensDocument(**asdict(auth.open_session(tx, audience, found.id, now=utc_now())))
