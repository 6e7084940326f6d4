"""A server of its own, and as many copies of a book of business as there are measurements.

Nobody's DATABASE_URL or BROKER_URL is touched. Every measurement starts from the same files: the book is made
once, vacuumed and analysed, and copied for each run, so that no run finds the dead rows of another.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url

from bench.population import fill
from shared.config import Settings
from shared.db import plans
from shared.db.engine import Database, Tx
from shared.db.migrations import run as migrations
from shared.domain.plan import SEED_PLANS
from shared.embedded import servers

# Durability is PostgreSQL's default: fsync and synchronous_commit are on. What is set is what anybody with a
# million accounts sets, so that the cache holds the indexes and no checkpoint falls into every other run.
POSTGRES_OPTIONS: Final = ("shared_buffers=1GB", "max_wal_size=8GB", "checkpoint_timeout=30min")
DURABLE: Final = ("fsync=on", "synchronous_commit=on", *POSTGRES_OPTIONS)


class Lab:
    """The servers while they run, and databases on them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._books: set[int] = set()

    @contextmanager
    def book(self, count: int) -> Iterator[Settings]:
        """Settings that name a fresh database with `count` accounts, all due at one instant."""
        if count not in self._books:
            self.make(f"book_{count}", partial(fill, count=count))
            self._books.add(count)
        with self._connect() as server:
            server.execute("DROP DATABASE IF EXISTS bench WITH (FORCE)")
            server.execute(
                SQL("CREATE DATABASE bench TEMPLATE {} STRATEGY file_copy").format(Identifier(f"book_{count}"))
            )
            server.execute("CHECKPOINT")
        yield self.settings.model_copy(update={"database_url": self._url("bench")})

    @contextmanager
    def opened(self, settings: Settings) -> Iterator[Database]:
        """Connections to the database that `settings` name, without a limit to what a statement may take."""
        assert settings.database_url is not None  # noqa: S101 - a book has one
        database = Database(settings.database_url, application_name="bench", statement_timeout_ms=0)
        try:
            yield database
        finally:
            database.dispose()

    def postmaster(self) -> int:
        """The process whose children are PostgreSQL's."""
        return int((self.settings.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])

    def make(self, name: str, prepare: Callable[[Tx], None]) -> Settings:
        """A fresh database of that name: migrated, seeded, prepared, vacuumed and analysed."""
        with self._connect() as server:
            server.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))
            server.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        migrations.upgrade(self._url(name))
        settings = self.settings.model_copy(update={"database_url": self._url(name)})
        with self.opened(settings) as database:
            with database.transaction() as tx:
                plans.seed(tx, SEED_PLANS)
                prepare(tx)
            with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM (FREEZE, ANALYZE)")
        return settings

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._url("postgres", driver="postgresql"), autocommit=True)

    def _url(self, name: str, *, driver: str = "postgresql+psycopg") -> str:
        assert self.settings.database_url is not None  # noqa: S101 - the lab's servers have one
        url = make_url(self.settings.database_url).set(drivername=driver, database=name)
        return url.render_as_string(hide_password=False)


@contextmanager
def lab(data_dir: Path) -> Iterator[Lab]:
    """The lab, with its servers' files under `data_dir`.

    Requests are counted, as in production. All come from one address, which is therefore allowed more than anybody.
    """
    settings = Settings(
        database_url=None,
        broker_url=None,
        data_dir=data_dir,
        billing_sandbox=True,
        signups_per_minute=1_000_000,
        anonymous_requests_per_minute=1_000_000,
    )
    with servers(settings, postgres_options=POSTGRES_OPTIONS) as running:
        yield Lab(running)
