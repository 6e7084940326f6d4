"""The application: routes, refusals, tokens, health, metrics and documentation put together."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from flask import Flask, request
from flask.sessions import SessionInterface, SessionMixin
from flask_openapi3.models.info import Info
from flask_openapi3.models.security_scheme import SecurityScheme
from flask_openapi3.openapi import OpenAPI
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.middleware.proxy_fix import ProxyFix

from api import auth, broker, docs, headers, health, metrics, problems, schemas, throttle
from api.access import API_KEY_HEADER
from api.routes import (
    accounts,
    admin,
    api_keys,
    audit,
    bank_statements,
    bank_transfers,
    credits,
    documents,
    events,
    invoices,
    members,
    operations,
    payments,
    refunds,
    sandbox,
    sessions,
    sites,
    subscriptions,
    unapplied,
    webhooks,
)
from api.services import EXTENSION, Services
from shared import __version__
from shared.config import Settings, get_settings

ABOUT: Final = """\
Accounts, subscriptions, payments and prepaid credits.

Whatever takes work is answered with 202 and done once: read the operation at `Location` until it has succeeded or
failed, and send an `Idempotency-Key` so that asking again is safe. Reading, consuming and holding credits are answered
at once. Refusals are problem documents (RFC 9457) with a stable `code`. Amounts of money are integers in minor units,
instants are RFC 3339 in UTC.

Requests are counted, an account's together, by its plan. Each answer says in `RateLimit-Limit`, `RateLimit-Remaining`
and `RateLimit-Reset` (seconds) how that stands; beyond it, 429 and `Retry-After`. Cookies are ignored. Pages of other
origins may call this API where it lists them; a browser's preflight may be kept for two hours.
"""

ROUTES: Final = (
    accounts.routes,
    sessions.routes,
    subscriptions.routes,
    invoices.routes,
    documents.routes,
    payments.routes,
    webhooks.routes,
    bank_transfers.routes,
    credits.routes,
    events.routes,
    sites.routes,
    api_keys.routes,
    members.routes,
    operations.routes,
    sessions.admin_routes,
    bank_transfers.admin_routes,
    bank_statements.admin_routes,
    unapplied.admin_routes,
    documents.admin_routes,
    admin.routes,
    refunds.routes,
    events.admin_routes,
    operations.admin_routes,
    audit.routes,
)
SANDBOX_ROUTES: Final = (sandbox.routes,)

TOKEN: Final = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
SECURITY_SCHEMES: Final[dict[str, SecurityScheme | dict[str, Any]]] = {
    "token": TOKEN | {"description": "a user's access token"},
    "admin-token": TOKEN | {"description": "an admin's access token"},
    "refresh-token": TOKEN | {"description": "a refresh token"},
    "api-key": {"type": "apiKey", "in": "header", "name": API_KEY_HEADER},
}


class NoSessions(SessionInterface):
    """Flask's cookies are neither read nor written."""

    def open_session(self, app: Flask, request: Any) -> SessionMixin | None:  # noqa: ARG002 (Flask's signature)
        """None at all."""
        return None


def create_app(settings: Settings | None = None) -> Flask:
    """The API. Nothing is connected to before the first request, so a process may fork after this."""
    settings = settings or get_settings()
    app = OpenAPI(
        "api",
        info=Info(title="Prepaid billing", version=__version__, description=ABOUT),
        security_schemes=SECURITY_SCHEMES,
        validation_error_model=schemas.Problem,
        doc_ui=False,
        static_folder=None,
    )
    app.extensions[EXTENSION] = Services(settings)
    app.url_map.merge_slashes = False
    app.session_interface = NoSessions()
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    if settings.trusted_proxies:
        proxies = settings.trusted_proxies
        # Flask's documented way to wrap an application; a checker sees a method overwritten.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]
    auth.install(app, settings)
    problems.install(app)
    broker.install(app, settings)
    health.install(app, settings)
    headers.install(app, settings)
    metrics.install(app)
    throttle.install(app, settings)
    larger_bodies: dict[str, int] = {}
    app.before_request(partial(_bound_body, larger_bodies))
    for routes in ROUTES + (SANDBOX_ROUTES if settings.billing_sandbox else ()):
        app.register_api(routes)
    for endpoint, view in app.view_functions.items():
        if (limit := getattr(view, "max_body_bytes", None)) is not None:
            larger_bodies[endpoint] = limit
    docs.install(app)
    return app


def _bound_body(larger_bodies: Mapping[str, int]) -> None:
    """Refuse by its length what is not worth reading. larger_bodies: endpoints that take more, and how much."""
    larger = larger_bodies.get(request.endpoint or "")
    if larger is not None:
        request.max_content_length = max(larger, request.max_content_length or 0)
    if (request.content_length or 0) > (request.max_content_length or 0):
        raise RequestEntityTooLarge
