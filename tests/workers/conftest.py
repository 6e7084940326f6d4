"""Tasks in this process: the real Task objects, on the real database, without a worker in between."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from sqlalchemy import Row
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from shared.config import Settings, get_settings
from shared.db.engine import ActAs, Database
from shared.messages import Job
from tests.office import Office
from workers.cli import app


@pytest.fixture(scope="session")
def celery_app(settings: Settings) -> Celery:
    """The workers' app with every task. It reads the environment when it is imported, and never again."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.as_environment().items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        app: Celery = import_module("workers.app").app
        for module in app.conf.imports:
            import_module(module)
    get_settings.cache_clear()
    return app


@pytest.fixture(scope="session")
def worker_database(settings: Settings) -> Iterator[Database]:
    database = Database(str(settings.database_url), act_as=ActAs.WORKER, pool_size=4, application_name="tests-worker")
    yield database
    database.dispose()


class FakeRuntime:
    """What a worker's process holds, with settings that a test may replace."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database


@dataclass
class Worker:
    """Executes tasks as a worker does, at once."""

    app: Celery
    runtime: FakeRuntime
    office: Office

    def perform(self, operation_id: UUID) -> Row[Any]:
        """Deliver the operation's task; the operation's row afterwards."""
        kind = self.office.operation(operation_id).kind
        self.app.tasks[f"billing.{kind}"].run(str(operation_id))
        return self.office.operation(operation_id)

    def run(self, job: Job, as_of: datetime | None = None) -> None:
        """Deliver a beat job's task."""
        self.app.tasks[job.task_name].run(**({} if as_of is None else {"as_of": as_of.isoformat()}))

    def set(self, **settings: Any) -> None:
        self.runtime.settings = self.runtime.settings.model_copy(update=settings)


@pytest.fixture
def worker(
    celery_app: Celery,
    worker_database: Database,
    database: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Worker]:
    runtime = FakeRuntime(settings, worker_database)
    monkeypatch.setattr(import_module("workers.runtime"), "_runtime_of", lambda _pid: runtime)
    with capture_logs():  # no pages of traceback for what a test breaks on purpose
        yield Worker(celery_app, runtime, Office(database, settings))


@pytest.fixture
def office(worker: Worker) -> Iterator[Office]:
    yield worker.office
    assert worker.office.findings() == []


# --- the operator's command line ----------------------------------------------------------------------------

Run = Callable[..., Result]


def runner_for(monkeypatch: pytest.MonkeyPatch, database_url: str, broker_url: str) -> Run:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", broker_url)

    def run(*arguments: object, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, settings: Settings, database: Database) -> Run:
    """Commands on a migrated and seeded database."""
    return runner_for(monkeypatch, str(settings.database_url), str(settings.broker_url))


@pytest.fixture
def run_on_empty(monkeypatch: pytest.MonkeyPatch, settings: Settings, empty_url: str) -> Run:
    """Commands on a database without tables."""
    return runner_for(monkeypatch, empty_url, str(settings.broker_url))


def is_one_line(result: Result) -> bool:
    return result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
