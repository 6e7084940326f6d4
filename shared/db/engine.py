"""Connections and transactions. The database has the last word; here its refusals get their names.

SQL in this package is written as SQL, in psycopg's style (`%(name)s`); docs/adr/0002 says why.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from functools import partial
from select import POLLIN, poll
from typing import Any, Final, TypeVar

import msgspec
import psycopg
from msgspec import Struct
from psycopg import Error as PsycopgError
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb, set_json_dumps
from sqlalchemy import Connection, Row, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidRequestError, OperationalError
from sqlalchemy.pool import NullPool
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from shared import errors

__all__ = ["ActAs", "Database", "Jsonb", "Tx", "is_transient", "with_retries"]

set_json_dumps(msgspec.json.encode)  # instants and ids, too

S = TypeVar("S", bound=Struct)
T = TypeVar("T")

# A constraint that a correct program can run into, and the refusal that it means. Any other one
# that is violated is a defect and surfaces as such.
REFUSALS: Final[dict[str, tuple[type[errors.BillingError], str]]] = {
    "user_email_unique": (errors.EmailTaken, "this address signs in to an account already"),
    "admin_email_unique": (errors.EmailTaken, "an admin with this address exists"),
    "payment_settles_once": (errors.PaymentAlreadyUsed, "this payment has settled an invoice before"),
    "invoice_paid_once": (errors.InvoiceNotOpen, "the invoice is paid"),
    "subscription_plan_assignable": (errors.PlanNotAssignable, "this plan may not be taken this way"),
    "invoice_plan_assignable": (errors.PlanNotAssignable, "this plan may not be taken this way"),
    "bank_transfer_one_pending_per_invoice": (
        errors.TransferPending,
        "a bank transfer for this invoice waits for a decision",
    ),
    "site_domain_unique_in_account": (errors.Conflict, "the account has a site with this domain"),
}

ASK_AGAIN: Final = 3  # at most so many times
ASKS_FOR_ANOTHER_TRY: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock

# What the pool says when the server ends connections as fast as they are opened.
POOL_GAVE_UP: Final = "This connection is closed"

# Lost connections, the two ways in which PostgreSQL asks for another try, and what it lacks: time, connections, memory,
# disk (which it calls an internal error, too).
TRANSIENT_SQLSTATES: Final = frozenset(
    {"40001", "40P01", "55P03", "57P01", "57P02", "57P03", "57014", "53100", "53200", "53300", "58030", "XX000"}
)


# A server whose machine or network is gone answers nothing and ends nothing. A local socket knows none of these.
NOTICE_A_LOST_SERVER: Final = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # ms
}


class Tx:
    """An open transaction. Whoever opened it commits; nothing below does."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def rows(self, sql: str, **params: Any) -> Sequence[Row[Any]]:
        """All rows."""
        return self.connection.exec_driver_sql(sql, params).fetchall()

    def maybe(self, sql: str, **params: Any) -> Row[Any] | None:
        """The only row, or None."""
        return self.connection.exec_driver_sql(sql, params).one_or_none()

    def one(self, sql: str, **params: Any) -> Row[Any]:
        """The only row; anything else is a defect."""
        return self.connection.exec_driver_sql(sql, params).one()

    def scalar(self, sql: str, **params: Any) -> Any:
        """The only column of the only row."""
        return self.connection.exec_driver_sql(sql, params).scalar_one()

    def execute(self, sql: str, **params: Any) -> int:
        """How many rows were touched."""
        return self.connection.exec_driver_sql(sql, params).rowcount

    def now(self) -> datetime:
        """The instant at which this transaction began, by the one clock that all processes share."""
        at: datetime = self.scalar("SELECT now()")
        return at

    def structs(self, kind: type[S], sql: str, **params: Any) -> list[S]:
        """All rows as structs, for large sets. The columns are those of `kind`, in its order; `kind` is array-like."""
        with _sqlalchemy_errors(sql, self._driver), self._driver.cursor(binary=True) as cursor:
            rows = cursor.execute(sql.encode(), params).fetchall()
        return msgspec.convert(rows, list[kind])  # type: ignore[valid-type] # a type that is known at run time

    def copy(self, sql: str, types: Mapping[str, str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Run a `COPY … FROM STDIN (FORMAT BINARY)`. types: of the columns, exactly, for the format has no others."""
        with _sqlalchemy_errors(sql, self._driver), self._driver.cursor() as cursor, cursor.copy(sql.encode()) as copy:
            copy.set_types(list(types.values()))
            for row in rows:
                copy.write_row(row)

    def read_one_instant(self) -> None:
        """From here on read the database as it is now, whatever others commit, and write nothing. First of all only."""
        self.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    @property
    def copies(self) -> bool:
        """Whether rows can come by COPY. Of whoever is under row-level security PostgreSQL takes INSERT alone."""
        info = self.connection.info  # of the pooled connection, which acts as one role for as long as it lives
        if "copies" not in info:
            info["copies"] = self.connection.exec_driver_sql("SELECT NOT row_security_active('accounts')").scalar_one()
        copies: bool = info["copies"]
        return copies

    @property
    def _driver(self) -> psycopg.Connection[Any]:
        connection = self.connection.connection.driver_connection
        assert isinstance(connection, psycopg.Connection)  # noqa: S101 - narrows what SQLAlchemy leaves open
        return connection

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """What fails inside is undone; what was done before stays."""
        with named_refusals(), self.connection.begin_nested():
            yield


class ActAs(StrEnum):
    """What a process may do in the database, whoever it signed in as; migration 0010 says what that is."""

    API = "prepaid_api"  # sees what the transaction was let in to, and spends by functions
    DUE = "prepaid_due"  # applies what is due of the account that the transaction was let in to
    WORKER = "prepaid_worker"


class Database:
    """A pool of connections to one database. Make one per process, after any fork."""

    def __init__(
        self,
        url: str,
        *,
        act_as: ActAs | None = None,
        pool_size: int = 5,
        application_name: str = "billing",
        statement_timeout_ms: int = 30_000,
        lock_timeout_ms: int = 10_000,
    ) -> None:
        options = (
            f"-c timezone=UTC -c statement_timeout={statement_timeout_ms} -c lock_timeout={lock_timeout_ms} "
            "-c idle_in_transaction_session_timeout=60000"
        )
        acting = f"{options} -c role={act_as}" if act_as else options
        connect_args: dict[str, Any] = NOTICE_A_LOST_SERVER | {
            "application_name": application_name,
            "connect_timeout": 3,
        }
        make_engine = partial(
            create_engine,
            url,
            hide_parameters=True,  # an error that is logged shows the statement, never what was sent with it
        )
        self.url = url
        self._engine = make_engine(
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            pool_recycle=1_800,
            connect_args=connect_args | {"options": acting},
        )
        event.listen(self._engine, "checkout", _refuse_ended)
        self._bare = make_engine(poolclass=NullPool, connect_args=connect_args | {"options": options})
        self._lines = Lines(url, connect_args | {"options": acting})

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """Commit at the end, roll back on any exception. Named constraints raise their typed error."""
        with named_refusals(), self._engine.begin() as connection:
            yield Tx(connection)

    def ask(self, sql: str, **params: Any) -> Any:
        """One statement as a transaction of its own, in one round trip; the only row with its columns' names, or None.

        For what may be asked twice: after a lost connection or a deadlock it is, though the answer may have been
        lost behind a commit.
        """
        for _ in range(ASK_AGAIN):
            try:
                return _first(self._lines.ask(sql, params))
            except DBAPIError as error:
                if error.connection_invalidated:
                    self._lines.close()  # whatever ended one connection has mostly ended all
                elif getattr(error.orig, "sqlstate", None) not in ASKS_FOR_ANOTHER_TRY:
                    raise
        return _first(self._lines.ask(sql, params))

    def ask_all(self, sql: str, **params: Any) -> list[Any]:
        """As `ask`, but all rows, and asked once: it raises what went wrong."""
        return self._lines.ask(sql, params)

    def connect(self) -> Connection:
        """A bare connection as whoever signed in, for migrations' state and maintenance."""
        return self._bare.connect()

    def dispose(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()
        self._lines.close()


class Lines:
    """Connections that stay open, on each of which every statement is a transaction of its own.

    As many as were ever in use at once. A pool that counts, pings and resets takes as long as the statement's parsing.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._options = options
        self._idle: list[psycopg.Cursor[Any]] = []  # taken from and put back to its end, which no two threads share

    def ask(self, sql: str, params: Mapping[str, Any]) -> list[Any]:
        """The rows of a statement."""
        try:
            cursor = self._idle.pop()
        except IndexError:
            cursor = self._open()
        try:
            return cursor.execute(sql.encode(), params).fetchall()
        except PsycopgError as error:
            raise _named(_as_sqlalchemy(error, sql, cursor.connection)) from error
        finally:
            if not cursor.connection.closed:
                self._idle.append(cursor)

    def close(self) -> None:
        """Close all that are not in use."""
        while self._idle:
            self._idle.pop().connection.close()

    def _open(self) -> psycopg.Cursor[Any]:
        try:
            connection = psycopg.connect(self._url, autocommit=True, **self._options)
        except PsycopgError as error:
            raise DBAPIError.instance(None, None, error, PsycopgError) from error  # nothing was lost: not asked again
        return connection.cursor(row_factory=namedtuple_row)


def _first(rows: list[Any]) -> Any:
    return rows[0] if rows else None


def _refuse_ended(driver: psycopg.Connection[Any], _record: object, _proxy: object) -> None:
    """Have the pool open another connection in the place of one that the server has ended while it was idle.

    Nobody has asked, so what there is to read is its last word. That is seen here; a ping would be a round trip more.
    """
    looking = poll()
    looking.register(driver.fileno(), POLLIN)
    if looking.poll(0):
        raise DisconnectionError("the server has ended the connection")


@contextmanager
def _sqlalchemy_errors(sql: str, driver: psycopg.Connection[Any]) -> Iterator[None]:
    """What psycopg raises, as SQLAlchemy would raise it: callers know one family of errors."""
    try:
        yield
    except PsycopgError as error:
        raise _as_sqlalchemy(error, sql, driver) from error


def _as_sqlalchemy(error: PsycopgError, sql: str, driver: psycopg.Connection[Any]) -> DBAPIError:
    wrapped = DBAPIError.instance(
        sql, None, error, PsycopgError, hide_parameters=True, connection_invalidated=driver.closed
    )
    assert isinstance(wrapped, DBAPIError)  # noqa: S101 - narrows what SQLAlchemy leaves open
    return wrapped


@contextmanager
def named_refusals() -> Iterator[None]:
    """Turn the violation of a constraint named in REFUSALS into its typed error."""
    try:
        yield
    except DBAPIError as error:
        named = _named(error)
        if named is error:
            raise
        raise named from error


def _named(error: DBAPIError) -> Exception:
    """The refusal that a violated constraint means; else the error, without the values that PostgreSQL quotes."""
    name = error.orig.diag.constraint_name if isinstance(error.orig, PsycopgError) else None
    if name in REFUSALS:
        refusal, detail = REFUSALS[name]
        return refusal(detail)
    _forget_values(error)
    return error


def _forget_values(error: DBAPIError) -> None:
    """Keep what went wrong and drop the row that PostgreSQL quotes with it: logs are no place for values."""
    if isinstance(error.orig, PsycopgError) and error.orig.diag.message_primary:
        error.orig.args = error.args = (error.orig.diag.message_primary,)


def is_transient(error: BaseException) -> bool:
    """Whether the same work may well succeed in a moment."""
    if isinstance(error, InvalidRequestError):
        return POOL_GAVE_UP in str(error)
    if not isinstance(error, DBAPIError):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    return (
        error.connection_invalidated
        or sqlstate in TRANSIENT_SQLSTATES
        or (isinstance(error, OperationalError) and sqlstate is None)
    )


def with_retries(work: Callable[[], T], *, attempts: int = 4) -> T:
    """Run `work`, and again after a transient fault, with jittered pauses of at most two seconds.

    `work` must open its own transaction. The last fault is raised as it is.
    """
    retrying = Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=0.05, max=2),
        retry=retry_if_exception(is_transient),
        reraise=True,
    )
    return retrying(work)


def jitter() -> float:
    """A random number in [0, 1), for spreading what would otherwise happen at once."""
    return random.random()  # noqa: S311 (spreads load, guards nothing)
