"""What every answer says to browsers: nothing to sniff, keep, frame or load, and for whose pages it is."""

import re
from typing import Final

import structlog
from flask import Flask, Response, request
from flask_cors import CORS

from api.access import API_KEY_HEADER
from api.throttle import HEADERS as RATE_LIMIT_HEADERS
from shared.config import Settings
from shared.ids import new_id

REQUEST_ID: Final = "X-Request-Id"
POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
SECURITY: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OWN_MAY_DIFFER: Final = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
STRICT_TRANSPORT: Final = "max-age=31536000"
READABLE: Final = ("Location", "Content-Disposition", "Idempotent-Replayed", "Retry-After", REQUEST_ID)
PREFLIGHT_SECONDS: Final = 7_200
HARMLESS_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,63}")


def install(app: Flask, settings: Settings) -> None:
    """Number the requests of this application, and put headers on its answers."""
    believes_ids = settings.trusted_proxies > 0
    always = dict(SECURITY)
    if settings.environment == "production":
        always["Strict-Transport-Security"] = STRICT_TRANSPORT

    @app.before_request
    def name_request() -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=_request_id(believes_ids))

    @app.after_request
    def put_headers(response: Response) -> Response:
        response.headers[REQUEST_ID] = structlog.contextvars.get_contextvars()["request_id"]
        response.headers.extend(always)
        for name, value in OWN_MAY_DIFFER.items():
            response.headers.setdefault(name, value)
        if "Cookie" in request.headers:
            response.headers["Clear-Site-Data"] = '"cookies"'
        return response

    if settings.cors_origins:
        CORS(
            app,
            resources=r"/api/.*",
            origins=list(settings.cors_origins),
            methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", API_KEY_HEADER, "Content-Type", "Idempotency-Key"],
            expose_headers=[*READABLE, *RATE_LIMIT_HEADERS],
            supports_credentials=False,
            send_wildcard=True,
            always_send=False,
            max_age=PREFLIGHT_SECONDS,
        )


def _request_id(believes_ids: bool) -> str:  # noqa: FBT001 (the setting, as it stands)
    """The proxy's id of this request, if it is one, or a new one: nobody else writes into our logs."""
    given = request.headers.get(REQUEST_ID, "") if believes_ids else ""
    return given if HARMLESS_ID.fullmatch(given) else new_id().hex
