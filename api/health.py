"""Whether this process lives, whether it can do its work, and what else works less well than it should."""

from http import HTTPStatus
from typing import Final

import structlog
from flask import Blueprint, Flask, Response, current_app, jsonify
from msgspec import Struct

from api import broker, problems
from api.degraded import degraded, without_database
from api.probe import Probe
from api.services import EXTENSION as SERVICES
from api.services import Services
from shared.config import Settings
from shared.db.migrations.run import Standing, current_revision, head_revision, standing
from shared.errors import NotReady

EXTENSION: Final = "billing-database-probe"
DATABASE_WAIT_SECONDS: Final = 4.0  # a connection that gets no answer takes three

log = structlog.get_logger(__name__)
routes = Blueprint("health", __name__)


class Found(Struct, frozen=True):
    """What the database tells. degraded: what works less well, and why."""

    revision: str | None
    degraded: dict[str, str]


def install(app: Flask, settings: Settings) -> None:
    """Answer `/healthz` and `/readyz`."""
    services: Services = app.extensions[SERVICES]

    def ask() -> Found:
        with services.database.connect() as connection:
            revision = current_revision(connection)
        if standing(revision) in {Standing.OLDER, Standing.FOREIGN}:
            return Found(revision, {})
        with services.database.transaction() as tx:
            return Found(revision, degraded(tx, settings))

    app.extensions[EXTENSION] = Probe("database", ask, wait_seconds=DATABASE_WAIT_SECONDS)
    app.register_blueprint(routes)


@routes.get("/healthz")
def live() -> Response:
    """The process answers."""
    return jsonify(status="ok")


@routes.get("/readyz")
def ready() -> Response:
    """Database, migrations and broker are as they must be; a problem names the parts that are not.

    `degraded` tells people what else does not work as it should. Another API process would do no better, so a proxy
    need not care.
    """
    probe: Probe[Found] = current_app.extensions[EXTENSION]
    found = probe.answer()
    parts = _database(found) | {"broker": "does not answer" if broker.depths() is None else "ok"}
    worse = without_database() | ({} if found is None else found.degraded)
    missing = [name for name, state in parts.items() if state != "ok"]
    if not missing:
        return jsonify(status="ok", parts=parts, degraded=worse)
    detail = f"not ready: {', '.join(missing)}"
    return problems.response(HTTPStatus.SERVICE_UNAVAILABLE, NotReady.code, detail, parts=parts, degraded=worse)


def _database(found: Found | None) -> dict[str, str]:
    """Its parts. A schema that is newer than this release is one that it can go on with, while it is replaced."""
    if found is None:
        return {"database": "cannot be reached", "migrations": "unknown"}
    if standing(found.revision) in {Standing.CURRENT, Standing.NEWER}:
        return {"database": "ok", "migrations": "ok"}
    return {"database": "ok", "migrations": f"at {found.revision}, not at {head_revision()}"}
