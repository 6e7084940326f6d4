"""Servers and databases for tests: real ones, a pair per run, a database and a broker slot per worker.

A run uses embedded servers, or those that TEST_DATABASE_URL (a superuser's) and TEST_BROKER_URL name; never
DATABASE_URL and BROKER_URL. A test that asks for `database` finds it as migrations and seed left it. Nor is Stripe
ever asked: a worker has a server of its own that stands in for it.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import psycopg
import pytest
import redis
from msgspec import structs
from psycopg.sql import SQL, Composable, Identifier
from sqlalchemy import make_url

from shared.config import Settings
from shared.db import plans
from shared.db.engine import Database
from shared.db.migrations import run
from shared.domain.plan import SEED_PLANS
from shared.embedded import Postgres, Valkey
from shared.embedded import servers as embedded_servers
from tests.factories import GENEROUS, PLENTY
from tests.faults import outcomes
from tests.faults.faults import FAULTS
from workers.local_stripe import LocalStripe

# What a test run writes need not survive a power cut.
POSTGRES_OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")
TEMPLATE_LOCK = 7_201_002

hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--faults-table=README.md` writes what the suite of faults has found into a document."""
    parser.addoption("--faults-table", type=Path, metavar="FILE", help="write the table of faults into this document")


def pytest_configure(config: pytest.Config) -> None:
    """The run has a folder, which its workers learn of; a terminated run cleans up like a finished one."""
    os.environ.pop("DATABASE_URL", None)
    os.environ.pop("BROKER_URL", None)
    if not hasattr(config, "workerinput"):
        os.environ["TEST_RUN_DIR"] = tempfile.mkdtemp(prefix="prepaid-tests-")
        # pytest's own folder belongs to all runs of a user, each of which closes it to the users that servers run as.
        config.option.basetemp = config.option.basetemp or os.path.join(os.environ["TEST_RUN_DIR"], "tmp")  # noqa: PTH118
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The controller leaves last and removes what the workers could not."""
    if hasattr(config, "workerinput"):
        return
    folder = Path(os.environ["TEST_RUN_DIR"])
    if (document := config.getoption("--faults-table")) is not None:
        outcomes.write_table(document, FAULTS)
    for server in (Postgres(folder / "postgres"), Valkey(folder / "valkey")):
        if server.running():
            server.stop()
    if "TEST_DATABASE_URL" in os.environ:
        with _connect(os.environ["TEST_DATABASE_URL"]) as connection:
            made = connection.execute(
                "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [_name("")]
            ).fetchall()
            for (name,) in made:
                connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Settings]:
    """Settings whose URLs name the run's PostgreSQL, in some database of it, and the run's broker."""
    wanted = Settings(
        database_url=os.environ.get("TEST_DATABASE_URL"),
        broker_url=os.environ.get("TEST_BROKER_URL"),
        data_dir=Path(os.environ["TEST_RUN_DIR"]),
        billing_sandbox=True,
    )
    with embedded_servers(wanted, postgres_options=POSTGRES_OPTIONS) as settings:
        yield settings


@pytest.fixture(scope="session")
def template(servers: Settings) -> str:
    """Name of a migrated and seeded database to copy from. The first worker to ask makes it."""
    name = _name("template")
    with _connect(servers.database_url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [TEMPLATE_LOCK])
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchall():
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
            url = _url(servers, name)
            run.upgrade(url)
            with _opened(url) as database, database.transaction() as tx:
                plans.seed(tx, [structs.replace(plan, requests_per_minute=PLENTY) for plan in SEED_PLANS])
    return name


@pytest.fixture(scope="session")
def settings(servers: Settings, template: str, worker_id: str) -> Settings:
    """The settings of this worker: a database of its own, and a slot of its own in the broker."""
    assert servers.broker_url is not None
    name = _name(worker_id)
    _copy(servers, template, name)
    slot = 1 + int(worker_id.removeprefix("gw").replace("master", "0"))
    broker_url = servers.broker_url
    if broker_url.startswith("redis://"):
        broker_url = f"{broker_url.rpartition('/')[0]}/{slot}"
    return servers.model_copy(update={"database_url": _url(servers, name), "broker_url": broker_url, **GENEROUS})


@pytest.fixture(scope="session")
def reset_sql(settings: Settings) -> str:
    """Statements that bring this worker's database back to its first state.

    Deleting a few rows is a hundred times faster than truncating tables or copying the template.
    """
    with _connect(settings.database_url) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        ).fetchall()
        connection.execute("CREATE SCHEMA pristine")
        statements: list[Composable] = [
            SQL("SET LOCAL session_replication_role = replica")
        ]  # no trigger guards the ledger
        for table in tables:
            statements.append(SQL("DELETE FROM {}").format(Identifier(*table)))
            if connection.execute(SQL("SELECT FROM {} LIMIT 1").format(Identifier(*table))).fetchall():
                names = {"table": Identifier(*table), "kept": Identifier("pristine", *table)}
                connection.execute(SQL("CREATE TABLE {kept} AS TABLE {table}").format(**names))
                statements.append(SQL("INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE {kept}").format(**names))
        return SQL("; ").join(statements).as_string(connection)


@pytest.fixture(scope="session")
def pool(settings: Settings) -> Iterator[Database]:
    """The connections of this worker, kept from test to test. Tests ask for `database`."""
    with _opened(settings.database_url) as database:
        yield database


@pytest.fixture
def database(pool: Database, reset_sql: str) -> Database:
    """A migrated and seeded database without anything else. Tests open transactions as the case needs."""
    with pool.transaction() as tx:
        tx.connection.exec_driver_sql(reset_sql)
    return pool


@pytest.fixture
def scratch_url(servers: Settings, template: str, worker_id: str) -> Iterator[str]:
    """URL of a migrated and seeded database for this test alone, which may change its very schema."""
    name = _name(f"{worker_id}_scratch")
    _copy(servers, template, name)
    yield _url(servers, name)
    _drop(servers, name)


@pytest.fixture
def empty_url(servers: Settings, worker_id: str) -> Iterator[str]:
    """URL of a database without tables, for this test alone."""
    name = _name(f"{worker_id}_empty")
    _copy(servers, "template0", name)
    yield _url(servers, name)
    _drop(servers, name)


@pytest.fixture
def broker_url(settings: Settings) -> str:
    """A broker without messages."""
    assert settings.broker_url is not None
    if settings.broker_url.startswith("redis://"):
        with redis.Redis.from_url(settings.broker_url) as client:
            client.flushdb()
    return settings.broker_url


@pytest.fixture(scope="session")
def stripe_server(worker_id: str) -> Iterator[LocalStripe]:
    """This worker's Stripe. Tests ask for `stripe`."""
    folder = Path(os.environ["TEST_RUN_DIR"]) / f"stripe-{worker_id}"
    folder.mkdir()
    with LocalStripe(folder) as server:
        yield server


@pytest.fixture
def stripe(stripe_server: LocalStripe) -> LocalStripe:
    """A Stripe account that was asked for nothing in this test, and fails at nothing."""
    stripe_server.asked.clear()
    stripe_server.faults.clear()
    return stripe_server


def _name(suffix: str) -> str:
    """A database of this run: `prepaid_tests_x1y2_gw0`."""
    run_name = Path(os.environ["TEST_RUN_DIR"]).name.replace("-", "_")
    return f"{run_name}_{suffix}"


def _url(servers: Settings, name: str) -> str:
    assert servers.database_url is not None
    return make_url(servers.database_url).set(database=name).render_as_string(hide_password=False)


def _connect(url: str | None) -> psycopg.Connection:
    assert url is not None
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


@contextmanager
def _opened(url: str | None) -> Iterator[Database]:
    assert url is not None
    database = Database(url, application_name="tests")
    try:
        yield database
    finally:
        database.dispose()


def _copy(servers: Settings, template: str, name: str) -> None:
    with _connect(servers.database_url) as connection:
        connection.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template)))


def _drop(servers: Settings, name: str) -> None:
    with _connect(servers.database_url) as connection:
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
