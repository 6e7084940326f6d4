"""What every command starts with: settings, servers, a database at the right revision; and how it fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer
from alembic.util import CommandError
from msgspec import Struct
from psycopg.errors import InsufficientPrivilege
from pydantic import ValidationError
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from typer.core import TyperGroup

from shared.config import Settings, explain
from shared.db import plans
from shared.db.engine import Database
from shared.db.migrations import run as migrations
from shared.domain.plan import SEED_PLANS
from shared.embedded import servers
from shared.errors import BillingError, NotReady

FAILED: Final = 2
UNUSED_BROKER: Final = "redis://127.0.0.1:0/0"  # for a command that sends nothing, so that no broker is started
EXPECTED: Final = (BillingError, ValidationError, CommandError, DBAPIError)


class Session(Struct, frozen=True):
    """Settings whose URLs are filled in, and the database that they name."""

    settings: Settings
    database: Database


class Commands(TyperGroup):
    """The root of the commands: what goes wrong as expected is told in one line, with what to do next."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. An unexpected error is a defect and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            told = _told(error)
            if told is None:
                raise
            typer.secho(f"error: {told}", fg=typer.colors.RED, err=True)
            raise typer.Exit(FAILED) from error


@contextmanager
def session(
    *, broker: bool = False, needs_schema: bool = True, statement_timeout_ms: int = 30_000
) -> Iterator[Session]:
    """Servers that answer, embedded ones if need be, and a database whose schema is this release's.

    broker: whether one is needed. An embedded database is migrated and seeded by the way; of another one
    NotReady is raised when its schema is not this release's and `needs_schema`.
    """
    settings = Settings()
    _require_url(settings)
    with _servers(settings, broker=broker) as ready:
        url = str(ready.database_url)
        database = Database(
            url, pool_size=2, application_name="billing-operator", statement_timeout_ms=statement_timeout_ms
        )
        try:
            if needs_schema and settings.database_url is None and revision(database) is None:
                _set_up(url, database)
            if needs_schema:
                require_schema(database)
            yield Session(ready, database)
        finally:
            database.dispose()


def revision(database: Database) -> str | None:
    """The revision that the database is at; None before the first."""
    with database.connect() as connection:
        return migrations.current_revision(connection)


def require_schema(database: Database) -> None:
    """Raises NotReady, with what to do, unless the schema is this release's."""
    current, needed = revision(database), migrations.head_revision()
    if current == needed:
        return
    if current is None:
        raise NotReady(
            "the database has no tables yet; run `python -m workers migrate`, then `python -m workers seed-plans`"
        )
    if current in migrations.revisions():
        raise NotReady(f"the database is at {current}, this release needs {needed}; run `python -m workers migrate`")
    raise NotReady(f"the database is at {current}, which this release does not know; run a newer release")


def _require_url(settings: Settings) -> None:
    try:
        if settings.database_url is not None:
            make_url(settings.database_url)
    except (ArgumentError, ValueError):
        told = "DATABASE_URL cannot be read; it looks like postgresql://user:password@host:5432/database"
        raise NotReady(told) from None  # the cause would repeat the password


@contextmanager
def _servers(settings: Settings, *, broker: bool) -> Iterator[Settings]:
    if not broker and settings.broker_url is None:
        settings = settings.model_copy(update={"broker_url": UNUSED_BROKER})
    with servers(settings) as ready:
        yield ready


def _set_up(url: str, database: Database) -> None:
    migrations.upgrade(url)
    with database.transaction() as tx:
        plans.seed(tx, SEED_PLANS)


def _told(error: Exception) -> str | None:
    """One line about an expected error; None for one that is not."""
    match error:
        case BillingError():
            return error.detail
        case ValidationError():
            return explain(error)
        case OperationalError():
            return f"the database cannot be used: {_first_line(error.orig)}; see DATABASE_URL"
        case DBAPIError(orig=InsufficientPrivilege()):
            return f"the database refuses: {_first_line(error.orig)}; connect as the owner of the tables"
        case CommandError():
            return f"{error}; the revisions are base, {', '.join(migrations.revisions())}"
        case _:
            return None


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".:")
