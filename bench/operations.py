"""What it costs to accept an operation and to execute one, beside bare routes and a bare task."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from flask_jwt_extended import create_access_token
from msgspec import Struct

from api.app import create_app
from bench.lab import Lab
from bench.load import Load, ask, load, post
from bench.meter import Meter, Run, await_until
from bench.population import fill
from bench.product import celery_workers
from bench.spending import CONNECTIONS, serving
from shared import security
from shared.broker import Message, make_celery, send_all
from shared.clock import utc_now
from shared.config import Settings
from shared.db import operations
from shared.db.engine import Database, Tx
from shared.db.sessions import Audience
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import PAYLOAD_VERSION, OperationKind, PrincipalKind
from shared.domain.requests import CancelSubscription, OpenInvoice
from shared.ids import new_id
from shared.messages import Queue

ACCOUNTS: Final = 10_000
PROCESSES: Final = 2
PATIENCE_SECONDS: Final = 300
WORKER: Final = "workers.app"
WATCHED_WORKER: Final = "bench.watched_workers"
BARE_WORKER: Final = "bench.bare_work"
PRODUCT: Final = "api.app:create_app()"
BARE: Final = "bench.bare_work:create_app()"
BARE_TASK: Final = "bench.insert"
BODY: Final = b'{"plan": "starter", "payment_method": "bank_transfer"}'
PAYLOADS: Final[dict[OperationKind, Struct]] = {
    OperationKind.CANCEL_SUBSCRIPTION: CancelSubscription(at_period_end=True),
    OperationKind.OPEN_INVOICE: OpenInvoice(plan="starter", payment_method=PaymentMethod.BANK_TRANSFER),
}

# What bench/bare_work.py writes, which is imported by its own processes alone: its Celery app reads the environment.
BARE_TABLES: Final = """
    CREATE TABLE bare_asked (
        id uuid PRIMARY KEY, payload jsonb NOT NULL, asked_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE bare_begun (
        id uuid PRIMARY KEY, begun_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    """

# Every account of the book has an owner who is signed in.
_SIGN_IN: Final = (
    """
    INSERT INTO users (id, account_id, email, password_hash, role)
    SELECT id, id, id || '@example.com', 'none', 'owner' FROM accounts WHERE kind = 'customer'
    """,
    """
    INSERT INTO sessions (id, audience, user_id, created_at, expires_at)
    SELECT id, 'customer', id, now(), now() + interval '1 day' FROM users
    """,
)


class Size(Struct, frozen=True, kw_only=True):
    """How much is measured. operations: in each queue that is worked off; starts: requests one after another."""

    rounds: int = 3
    seconds: float = 5
    warm_up_seconds: float = 1.5
    operations: int = 1_500
    starts: int = 150


class Answers(Struct, frozen=True, kw_only=True):
    """A load on one route, and the processor time that each of its requests took."""

    load: Load
    python_us: float
    postgres_us: float


class Contender(Struct, frozen=True, kw_only=True):
    """What is measured of one name, a round each."""

    name: str
    answers: list[Answers] = []
    runs: list[Run] = []

    @property
    def rate(self) -> float:
        """The median, per second."""
        return statistics.median([one.load.rate for one in self.answers] or [one.rate for one in self.runs])

    @property
    def python_us(self) -> float:
        """The median of Python's processor time for one."""
        return statistics.median(
            [one.python_us for one in self.answers] or [1e6 * one.python_seconds / one.accounts for one in self.runs]
        )

    @property
    def postgres_us(self) -> float:
        """The median of PostgreSQL's processor time for one."""
        return statistics.median(
            [one.postgres_us for one in self.answers]
            or [1e6 * one.postgres_seconds / one.accounts for one in self.runs]
        )


class Results(Struct, frozen=True, kw_only=True):
    """Both comparisons, and how long an idle worker waits for its message, in milliseconds."""

    accepting: list[Contender]
    working: list[Contender]
    starts_bare: list[float]  # published inside the request
    starts_product: list[float]  # published afterwards, by a thread


def measure(place: Lab, size: Size, say: Callable[[str], None]) -> Results:
    """Everything, one after another. say: told what is measured."""
    say("accepting")
    accepting = accept_rates(place, size)
    say("working")
    working = work_rates(place, size)
    say("starting")
    settings = place.make("starting", prepare)
    bare, product = _bare_request("/insert-and-publish"), _product_request(settings, "start")
    return Results(
        accepting=accepting,
        working=working,
        starts_bare=starts(place, settings, size, BARE, BARE_WORKER, bare, _BARE_STARTS),
        starts_product=starts(place, settings, size, PRODUCT, WATCHED_WORKER, product, _PRODUCT_STARTS),
    )


def prepare(tx: Tx) -> None:
    """Accounts in the middle of their first month, whose owners are signed in, and the bare tables."""
    fill(tx, ACCOUNTS, started_at=utc_now() - timedelta(days=1), time_zones=("UTC",))
    for statement in _SIGN_IN:
        tx.execute(statement)
    tx.connection.exec_driver_sql(BARE_TABLES)


# --- accepting --------------------------------------------------------------------------------


def accept_rates(place: Lab, size: Size) -> list[Contender]:
    """The bare routes and the product's in turn, each alone on the machine; nobody works on what is accepted."""
    settings = place.make("accepting", prepare)
    insert, publish, product = (Contender(name=name) for name in ("insert", "insert and publish", "product"))
    for number in range(size.rounds):
        for contender, server, make in (
            (insert, BARE, _bare_request("/insert")),
            (publish, BARE, _bare_request("/insert-and-publish")),
            (product, PRODUCT, _product_request(settings, f"run-{number}")),
        ):
            contender.answers.append(_answers(place, settings, size, server, make))
            _purge(settings)
    return [insert, publish, product]


def _answers(place: Lab, settings: Settings, size: Size, server: str, make: Callable[[int], bytes]) -> Answers:
    asked = 0

    def counted(_number: int) -> bytes:
        nonlocal asked
        asked += 1
        return make(asked)

    with serving(settings, server) as (address, process):
        load(address, counted, clients=CONNECTIONS, seconds=size.warm_up_seconds)
        before = asked
        with Meter(1, postmaster=place.postmaster(), python=[process.pid]) as meter:
            answered = load(address, counted, clients=CONNECTIONS, seconds=size.seconds)
    return Answers(
        load=answered,
        python_us=1e6 * meter.run.python_seconds / (asked - before),
        postgres_us=1e6 * meter.run.postgres_seconds / (asked - before),
    )


def _bare_request(path: str) -> Callable[[int], bytes]:
    return lambda _number: post(path, BODY, {})


def _product_request(settings: Settings, run: str) -> Callable[[int], bytes]:
    """A checkout by one account after another, under a key, as careful clients send it."""
    tokens = list(_tokens(settings))

    def make(number: int) -> bytes:
        headers = {"Authorization": f"Bearer {tokens[number % ACCOUNTS]}", "Idempotency-Key": f"{run}-{number}"}
        return post("/api/v1/invoices", BODY, headers)

    return make


def _tokens(settings: Settings) -> Iterator[str]:
    """An access token of each owner."""
    server = create_app(settings)
    with server.app_context():
        key_id = security.key_id(server.config["JWT_SECRET_KEY"])
        for number in range(1, ACCOUNTS + 1):
            identity = str(_account(number))
            claims = {"aud": str(Audience.CUSTOMER), "sid": identity, "jti": identity}
            yield create_access_token(identity, additional_claims=claims, additional_headers={"kid": key_id})


def _account(number: int) -> UUID:
    return UUID(f"019a0000-0000-7000-8000-{number:012x}")


def _purge(settings: Settings) -> None:
    with make_celery(settings) as sender:
        sender.control.purge()


# --- working ----------------------------------------------------------------------------------


def work_rates(place: Lab, size: Size) -> list[Contender]:
    """How fast two processes work off a queue of bare tasks, and of two kinds of operations."""
    settings = place.make("working", prepare)
    bare = Contender(name="bare task")
    product = {kind: Contender(name=str(kind)) for kind in PAYLOADS}
    with place.opened(settings) as database:
        for number in range(size.rounds):
            bare.runs.append(_work_bare(place, settings, database, size.operations))
            for block, (kind, contender) in enumerate(product.items()):
                first = 1 + block * ACCOUNTS // len(PAYLOADS) + number * size.operations
                accounts = [_account(first + offset) for offset in range(size.operations)]
                contender.runs.append(_work_operations(place, settings, database, kind, accounts))
    return [bare, *product.values()]


def _work_bare(place: Lab, settings: Settings, database: Database, count: int) -> Run:
    with database.transaction() as tx:
        tx.execute("TRUNCATE bare_begun")
    messages = [(BARE_TASK, new_id()) for _ in range(count)]
    return _work_off(place, settings, database, BARE_WORKER, messages, "SELECT count(*) < %(count)s FROM bare_begun")


def _work_operations(
    place: Lab, settings: Settings, database: Database, kind: OperationKind, accounts: Sequence[UUID]
) -> Run:
    """Raises RuntimeError when one does not succeed."""
    with database.transaction() as tx:
        ids = [_accept(tx, kind, account_id) for account_id in accounts]
    messages = [(kind.task_name, operation_id) for operation_id in ids]
    left = "SELECT count(*) > 0 FROM operations WHERE status = 'pending'"
    run = _work_off(place, settings, database, WORKER, messages, left)
    with database.transaction() as tx:
        ended = tx.rows("SELECT DISTINCT status, problem FROM operations WHERE id = ANY (%(ids)s)", ids=ids)
    if [row.status for row in ended] != ["succeeded"]:
        raise RuntimeError(f"operations of the kind {kind} ended otherwise: {ended}")
    return run


def _accept(tx: Tx, kind: OperationKind, account_id: UUID) -> UUID:
    operation_id, now = new_id(), utc_now()
    operations.accept(
        tx,
        operation_id=operation_id,
        kind=kind,
        payload=msgspec.to_builtins(PAYLOADS[kind]),
        payload_version=PAYLOAD_VERSION,
        account_id=account_id,
        principal_kind=PrincipalKind.USER,
        principal_id=account_id,
        idempotency_scope=str(account_id),
        idempotency_key=str(operation_id),
        request_hash=b"",
        first_send_after=timedelta(),
        now=now,
    )
    return operation_id


def _work_off(
    place: Lab, settings: Settings, database: Database, app: str, messages: Sequence[Message], left: str
) -> Run:
    """A worker stands still while all are queued. left: asks whether any is not done."""

    def is_left() -> Any:
        with database.transaction() as tx:
            return tx.scalar(left, count=len(messages))

    with celery_workers(settings, app, Queue.INTERACTIVE, PROCESSES) as worker:
        worker.freeze()
        with make_celery(settings) as sender:
            send_all(sender, messages)
        with Meter(len(messages), postmaster=place.postmaster(), python=[worker.pid]) as meter:
            worker.thaw()
            await_until(lambda: not is_left(), f"{app} to be through", seconds=PATIENCE_SECONDS)
    return meter.run


# --- starting ---------------------------------------------------------------------------------

_BARE_STARTS: Final = """
    SELECT extract(epoch FROM b.begun_at - a.asked_at) AS seconds FROM bare_asked a JOIN bare_begun b USING (id)
    """
_PRODUCT_STARTS: Final = """
    SELECT extract(epoch FROM b.begun_at - o.created_at) AS seconds FROM operations o JOIN bare_begun b USING (id)
    """


def starts(
    place: Lab, settings: Settings, size: Size, server: str, worker: str, make: Callable[[int], bytes], begun: str
) -> list[float]:
    """Milliseconds from the beginning of a request's transaction until an idle worker has its message in hand."""
    with (
        place.opened(settings) as database,
        celery_workers(settings, worker, Queue.INTERACTIVE, PROCESSES),
        serving(settings, server) as (address, _),
    ):

        def waits() -> list[float]:
            with database.transaction() as tx:
                return [1_000 * float(row.seconds) for row in tx.rows(begun)]

        def one_more(number: int) -> None:
            ask(address, make(number))
            await_until(lambda: len(waits()) > number, "a worker to begin", seconds=PATIENCE_SECONDS)

        for number in range(size.starts):
            one_more(number)
        return waits()
