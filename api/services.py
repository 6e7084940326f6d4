"""What an API process holds: settings, database, publisher. Made at the first use, so never before a fork."""

from functools import cached_property
from threading import Lock
from typing import Final

from flask import current_app

from shared.broker import Publisher
from shared.config import Settings
from shared.db.engine import ActAs, Database
from shared.errors import NotReady

EXTENSION: Final = "billing"

# A person waits: what takes longer than this is given up and answered as a problem.
STATEMENT_TIMEOUT_MS: Final = 5_000
LOCK_TIMEOUT_MS: Final = 3_000


class Services:
    """The settings of an application, and the connections of its process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = Lock()

    @cached_property
    def _database(self) -> Database:
        if self.settings.database_url is None:
            raise NotReady("DATABASE_URL is not set and no embedded database was started")
        return Database(
            self.settings.database_url,
            act_as=ActAs.API,
            pool_size=self.settings.api_threads,
            application_name="billing-api",
            statement_timeout_ms=STATEMENT_TIMEOUT_MS,
            lock_timeout_ms=LOCK_TIMEOUT_MS,
        )

    @cached_property
    def _publisher(self) -> Publisher:
        return Publisher(self.settings)

    @property
    def database(self) -> Database:
        """The pool of this process. Raises NotReady without a URL."""
        with self._lock:
            return self._database

    @property
    def publisher(self) -> Publisher:
        """Hands messages to the broker without waiting for it."""
        with self._lock:
            return self._publisher


def services() -> Services:
    """Those of the application that answers this request."""
    found: Services = current_app.extensions[EXTENSION]
    return found
