"""Whether this process lives, and whether it can do its work."""

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaiting
from functools import lru_cache
from http import HTTPStatus
from threading import Lock
from typing import Final

import structlog
from flask import Blueprint, Flask, Response, current_app, jsonify
from sqlalchemy.exc import SQLAlchemyError

from api import problems
from api.services import services
from shared.broker import make_celery, queue_depth
from shared.config import Settings
from shared.db.migrations.run import current_revision, head_revision
from shared.errors import NotReady
from shared.messages import Queue

BROKER_WAIT_SECONDS: Final = 1.0
EXTENSION: Final = "billing-broker-probe"

log = structlog.get_logger(__name__)
routes = Blueprint("health", __name__)


class BrokerProbe:
    """Asks the broker from a thread of its own, because a frozen one takes longer than anybody waits."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._asked: Future[int] | None = None

    def answers(self) -> bool:
        """Whether the broker has answered within a second."""
        with self._lock:
            if self._executor is None:  # at the first use, so never before a fork
                self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broker-probe")
            if self._asked is None or self._asked.done():
                self._asked = self._executor.submit(self._ask)
            asked = self._asked
        try:
            asked.result(BROKER_WAIT_SECONDS)
        except StillWaiting:
            return False
        except Exception as error:  # noqa: BLE001 (whatever a transport raises, the broker has not answered)
            log.warning("broker_not_ready", error=type(error).__name__)
            return False
        return True

    def _ask(self) -> int:
        with make_celery(self._settings, sends_only=True) as celery:
            return queue_depth(celery, Queue.INTERACTIVE)


def install(app: Flask, settings: Settings) -> None:
    """Answer `/healthz` and `/readyz`."""
    app.extensions[EXTENSION] = BrokerProbe(settings)
    app.register_blueprint(routes)


@routes.get("/healthz")
def live() -> Response:
    """The process answers."""
    return jsonify(status="ok")


@routes.get("/readyz")
def ready() -> Response:
    """Database, migrations and broker are as they must be; a problem names the parts that are not."""
    probe: BrokerProbe = current_app.extensions[EXTENSION]
    parts = _database() | {"broker": "ok" if probe.answers() else "does not answer"}
    missing = [name for name, state in parts.items() if state != "ok"]
    if not missing:
        return jsonify(status="ok", parts=parts)
    detail = f"not ready: {', '.join(missing)}"
    return problems.response(HTTPStatus.SERVICE_UNAVAILABLE, NotReady.code, detail, parts=parts)


@lru_cache(maxsize=1)
def _head() -> str:
    return head_revision()


def _database() -> dict[str, str]:
    try:
        with services().database.connect() as connection:
            revision = current_revision(connection)
    except (SQLAlchemyError, NotReady) as error:
        log.warning("database_not_ready", error=type(error).__name__)
        return {"database": "cannot be reached", "migrations": "unknown"}
    head = _head()
    return {"database": "ok", "migrations": "ok" if revision == head else f"at {revision}, not at {head}"}
