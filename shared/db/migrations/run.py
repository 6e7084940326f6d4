"""Migrate a database up or down, and tell at which revision it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

# Two deployments that migrate at once take turns: a key of PostgreSQL's advisory locks.
MIGRATION_LOCK: Final = 7_201_001


class Standing(StrEnum):
    """How a database's schema compares with what this release was written for."""

    OLDER = "older"  # or none: this release cannot work with it
    CURRENT = "current"
    NEWER = "newer"  # a newer release is being brought in, and left it so that this one can go on
    FOREIGN = "foreign"


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at `url` up to `revision`."""
    with _locked(url) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(url: str, revision: str = "-1") -> None:
    """Bring the database at `url` down to `revision`; `-1` is one step, `base` is before the first."""
    with _locked(url) as connection:
        command.downgrade(_config(connection), revision)


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None before the first."""
    return MigrationContext.configure(connection).get_current_revision()


@lru_cache(maxsize=1)
def head_revision() -> str:
    """The newest revision of this release."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    if head is None:
        raise RuntimeError("this release carries no migrations")
    return head


def revisions() -> list[str]:
    """All revisions, oldest first."""
    script = ScriptDirectory.from_config(_config(None))
    return [step.revision for step in reversed(list(script.walk_revisions()))]


@lru_cache(maxsize=8)
def standing(revision: str | None) -> Standing:
    """How a database at `revision` compares. Revisions are numbered, so one that comes after ours is a newer one's."""
    head = head_revision()
    if revision == head:
        return Standing.CURRENT
    if revision is None or revision in revisions():
        return Standing.OLDER
    return Standing.NEWER if revision > head else Standing.FOREIGN


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _locked(url: str) -> Iterator[Connection]:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:  # closing it gives the lock back
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
        connection.commit()
        yield connection
