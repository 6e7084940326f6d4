"""The whole system as real processes on private ports, with everything in reach that a fault needs."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import httpx
import msgspec
from sqlalchemy.exc import DBAPIError

from shared.clock import monotonic
from shared.config import PROJECT_DIR, Settings
from shared.db import admins, checks, operations, plans
from shared.db.engine import Database, Tx, is_transient
from shared.db.migrations import run
from shared.domain.operation import PAYLOAD_VERSION, OperationKind, PrincipalKind
from shared.domain.plan import SEED_PLANS
from shared.domain.requests import SignUp
from shared.embedded import Postgres
from shared.ids import new_id
from shared.security import hash_password
from tests.factories import GENEROUS, PLENTY
from tests.faults.brokers import Broker
from tests.faults.customers import PASSWORD, Patient, Promise
from workers.stack import Stack

T = TypeVar("T")

SABOTAGE: Final = Path(__file__).parent / "sabotage"
QUIET_WITHIN_SECONDS: Final = 120

# What is not over yet: accepted work, and what was due of accounts on the wall clock.
UNFINISHED: Final = """
    SELECT kind || ' ' || id || ', ' || attempts || ' attempts, ' || sends || ' sends: ' || coalesce(last_error, '')
    FROM operations WHERE status = 'pending' AND created_at <= now()
    UNION ALL
    SELECT next_transition || ' of account ' || id FROM accounts
    WHERE next_transition_at <= now() AND test_clock_id IS NULL AND parked_at IS NULL
"""


class NotQuiet(AssertionError):
    """Something that was accepted or due did not come to its end."""


class System:
    """A stack that runs on servers of its own. Faults are done to it; whatever it promised meanwhile must come true."""

    def __init__(self, stack: Stack, database: Database, postgres: Postgres, broker: Broker, sabotage: Path) -> None:
        self.stack = stack
        self.database = database
        self.postgres = postgres
        self.broker = broker
        self._sabotage = sabotage
        self._admin_email = f"{new_id().hex}@example.com"
        self._password_hash = hash_password(stack.settings, PASSWORD)
        with database.transaction() as tx:
            admins.create(tx, admin_id=new_id(), email=self._admin_email, password_hash=self._password_hash)

    def admin(self, *, give_up_at: float) -> Patient:
        """A platform admin, at work with the API."""
        admin = Patient(self.stack.url, give_up_at=give_up_at)
        admin.log_in("/admin/auth/login", self._admin_email)
        return admin

    def sign_up(self) -> int:
        """The status that a signup is answered with now."""
        signup = {"account_name": "Ada", "email": f"{new_id().hex}@example.com", "password": PASSWORD}
        return httpx.post(f"{self.stack.url}/api/v1/signup", json=signup, timeout=20).status_code

    def accept_signup(self, *, at: datetime) -> UUID:
        """A signup that was accepted at an instant that has passed, as it counts however late it is executed."""
        signup = SignUp(
            account_name="Late", email=f"{new_id().hex}@example.com", password_hash=self._password_hash, time_zone="UTC"
        )
        with self.database.transaction() as tx:
            operation_id, _ = operations.accept(
                tx,
                operation_id=new_id(),
                kind=OperationKind.SIGN_UP,
                payload=msgspec.to_builtins(signup),
                payload_version=PAYLOAD_VERSION,
                account_id=None,
                principal_kind=PrincipalKind.ANONYMOUS,
                principal_id=None,
                idempotency_scope=None,
                idempotency_key=None,
                request_hash=b"",
                first_send_after=timedelta(),
                now=at,
            )
        return operation_id

    # --- what may go wrong ------------------------------------------------------------------------

    def sabotage(self, name: str, content: str = "") -> Path:
        """Set a trap, see sabotage/sitecustomize.py."""
        trap = self._sabotage / name
        unfinished = self._sabotage / f".{name}"
        unfinished.write_text(content)
        unfinished.rename(trap)
        return trap

    def traps(self) -> list[str]:
        """Those that nobody has walked into."""
        return sorted(trap.name for trap in self._sabotage.iterdir())

    def disarm(self) -> None:
        """Remove every trap."""
        for trap in self._sabotage.iterdir():
            trap.unlink(missing_ok=True)

    def heal(self) -> None:
        """End every fault that is left, as one is by a test that has failed."""
        self.disarm()
        self.broker.thaw()
        for process in self.stack:
            process.thaw()
        if not self.postgres.running():
            self.start_database()
        if not self.broker.running():
            self.broker.start()

    def stop_database(self) -> None:
        """End PostgreSQL as a power cut would."""
        os.kill(self.postmaster_pid, signal.SIGQUIT)
        wait_for(lambda: not self.postgres.running(), "PostgreSQL to be gone")

    def start_database(self) -> None:
        """Start PostgreSQL, which recovers."""
        self.postgres.start()
        self.postgres.wait()

    @property
    def postmaster_pid(self) -> int:
        """The server's first process."""
        return int((self.postgres.folder / "data" / "postmaster.pid").read_text().splitlines()[0])

    def disconnect_everybody(self) -> None:
        """Terminate every connection but this one."""
        with self.database.transaction() as tx:
            tx.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                "AND pid <> pg_backend_pid()"
            )

    # --- what must come true ----------------------------------------------------------------------

    def wait_until_quiet(self, *, within_seconds: float = QUIET_WITHIN_SECONDS) -> float:
        """Return, after so many seconds, when nothing is unfinished. Raises NotQuiet."""
        started = monotonic()
        while unfinished := self.unfinished():
            if monotonic() - started > within_seconds:
                raise NotQuiet("\n".join(unfinished))
            threading.Event().wait(0.1)
        return monotonic() - started

    def recovered_after(self, healed_at: datetime) -> float:
        """Seconds from `healed_at` until the last of what was accepted before it was done; 0 when all was done."""
        last: datetime = self.read(
            lambda tx: tx.scalar(
                "SELECT max(finished_at) FROM operations WHERE created_at <= %(healed_at)s", healed_at=healed_at
            )
        )
        return max(0.0, (last - healed_at).total_seconds())

    def now(self) -> datetime:
        """The instant, by the database's clock."""
        return self.read(lambda tx: tx.now())

    def degraded(self) -> dict[str, str]:
        """What the API says of the system's health."""
        answer: dict[str, dict[str, str]] = httpx.get(f"{self.stack.url}/readyz", timeout=10).json()
        return answer["degraded"]

    def measured(self) -> dict[str, float]:
        """Each sample of the API's metrics, by its name and labels."""
        lines = httpx.get(f"{self.stack.url}/metrics", timeout=10).text.splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def refused_requests(self) -> float:
        """How many requests were answered that a part of the system cannot be reached."""
        return sum(
            value
            for name, value in self.measured().items()
            if name.startswith("billing_http_request_duration_seconds_count") and 'status="503"' in name
        )

    def unfinished(self) -> list[str]:
        """What was accepted or due and is not done."""
        return [row[0] for row in self.read(lambda tx: tx.rows(UNFINISHED))]

    def findings(self) -> list[checks.Finding]:
        """Every broken invariant."""
        return self.read(lambda tx: checks.run_checks(tx, self.stack.settings))

    def broken_promises(self, promises: list[Promise]) -> list[str]:
        """Of accepted operations, those that are gone, or ended otherwise than they must."""
        rows = self.read(
            lambda tx: tx.rows(
                "SELECT id, status, problem ->> 'code' AS code FROM operations WHERE id = ANY (%(ids)s)",
                ids=[promise.operation_id for promise in promises],
            )
        )
        ended = {row.id: row.code or row.status for row in rows}
        return [
            f"{promise.what}, operation {promise.operation_id}: {ended.get(promise.operation_id, 'forgotten')}, "
            f"not {' or '.join(sorted(promise.ends))}"
            for promise in promises
            if ended.get(promise.operation_id) not in promise.ends
        ]

    def read(self, ask: Callable[[Tx], T]) -> T:
        """What a transaction of the suite's own finds; asked again when a fault took its connection."""
        deadline = monotonic() + QUIET_WITHIN_SECONDS
        while True:
            try:
                with self.database.transaction() as tx:
                    return ask(tx)
            except DBAPIError as error:
                if not is_transient(error) or monotonic() > deadline:
                    raise
                threading.Event().wait(0.2)


@contextmanager
def running_system(
    folder: Path,
    broker: Broker,
    *,
    environment: Mapping[str, str] | None = None,
    postgres_options: tuple[str, ...] = (),
    **overrides: Any,
) -> Iterator[System]:
    """A system that has started, with its plans, in `folder`. environment: that its processes get besides."""
    wanted = Settings(data_dir=folder, api_bind="127.0.0.1:0", billing_sandbox=True, beat_interval_seconds=1)
    wanted = wanted.model_copy(update={**GENEROUS, **overrides})
    postgres = Postgres(folder / "postgres", postgres_options)
    postgres.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sabotage = folder / "sabotage"
    sabotage.mkdir()
    with ExitStack() as at_the_end:
        at_the_end.callback(lambda: postgres.stop() if postgres.running() else None)
        postgres.start()
        postgres.wait()
        at_the_end.callback(broker.stop)
        broker.start()
        run.upgrade(postgres.url)
        database = Database(postgres.url, application_name="faults", pool_size=20)
        at_the_end.callback(database.dispose)
        with database.transaction() as tx:
            plans.seed(tx, SEED_PLANS)
            tx.execute("UPDATE plans SET requests_per_minute = %(plenty)s", plenty=PLENTY)
        trapped = {
            "SABOTAGE_DIR": str(sabotage),
            "PYTHONPATH": os.pathsep.join((str(SABOTAGE), str(PROJECT_DIR))),
            **(environment or {}),
        }
        settings = wanted.model_copy(update={"database_url": postgres.url, "broker_url": broker.url})
        stack = at_the_end.enter_context(Stack(settings, environment=trapped))
        yield System(stack, database, postgres, broker, sabotage)


def is_ready(url: str) -> bool:
    """Whether the API says that it can do its work."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], bool], what: str, *, within_seconds: float = 30) -> float:
    """Return, after so many seconds, when it is true."""
    started = monotonic()
    while not condition():
        if monotonic() - started > within_seconds:
            raise AssertionError(f"waited {within_seconds} s in vain for {what}")
        threading.Event().wait(0.05)
    return monotonic() - started
