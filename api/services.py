"""What an API process holds: settings, database, publisher. Made at the first use, so never before a fork."""

from functools import cached_property, partial
from threading import Lock
from typing import Any, Final

from flask import current_app

from api.access import Permission
from api.together import Together
from shared.broker import Publisher
from shared.config import Settings
from shared.db.credits import KeyConsumption, consume_by_keys
from shared.db.engine import ActAs, Database
from shared.errors import NotReady

EXTENSION: Final = "billing"

# A person waits: what takes longer than this is given up and answered as a problem.
STATEMENT_TIMEOUT_MS: Final = 5_000
LOCK_TIMEOUT_MS: Final = 3_000

# Used when an account spends that something is due of and no job has got to it, so seldom.
DUE_CONNECTIONS: Final = 2


class Services:
    """The settings of an application, and the connections of its process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = Lock()

    @cached_property
    def _database(self) -> Database:
        return self._connected(self.settings.database_url, ActAs.API, pool_size=self.settings.api_threads)

    @cached_property
    def _due_database(self) -> Database:
        url = self.settings.due_database_url or self.settings.database_url
        return self._connected(url, ActAs.DUE, pool_size=DUE_CONNECTIONS)

    def _connected(self, url: str | None, act_as: ActAs, *, pool_size: int) -> Database:
        if url is None:
            raise NotReady("DATABASE_URL is not set and no embedded database was started")
        return Database(
            url,
            act_as=act_as,
            pool_size=pool_size,
            application_name="billing-api",
            statement_timeout_ms=STATEMENT_TIMEOUT_MS,
            lock_timeout_ms=LOCK_TIMEOUT_MS,
        )

    @cached_property
    def _publisher(self) -> Publisher:
        return Publisher(self.settings)

    @cached_property
    def _consuming(self) -> Together[KeyConsumption, Any]:
        return Together(partial(consume_by_keys, self._database, scope=str(Permission.CREDITS_CONSUME)))

    @property
    def database(self) -> Database:
        """The pool of this process. Raises NotReady without a URL."""
        with self._lock:
            return self._database

    @property
    def due_database(self) -> Database:
        """A second, small pool, for applying what is due of an account before it spends. Raises NotReady likewise."""
        with self._lock:
            return self._due_database

    def dispose(self) -> None:
        """Close the connections to the database."""
        for database in (self.database, self.due_database):
            database.dispose()

    @property
    def consuming(self) -> Together[KeyConsumption, Any]:
        """Consumes for API keys, together with what other threads consume at this moment. Raises as `database`."""
        with self._lock:
            return self._consuming

    @property
    def publisher(self) -> Publisher:
        """Hands messages to the broker without waiting for it."""
        with self._lock:
            return self._publisher


def services() -> Services:
    """Those of the application that answers this request."""
    found: Services = current_app.extensions[EXTENSION]
    return found
