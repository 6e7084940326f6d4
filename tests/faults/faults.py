"""The faults: each is done to a system under load, is seen while it lasts, and is over when its function returns.

Where a fault ends a process for good, it is started again at once, as whatever supervises processes does.
"""

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import psutil
import pytest
from kombu.exceptions import OperationalError
from sqlalchemy.exc import DBAPIError

from shared.broker import make_celery, send_all
from shared.domain.operation import OperationKind
from tests.faults.customers import Load
from tests.faults.system import System, is_ready, wait_for

Strike = Callable[[System, Load], None]

FROZEN_SECONDS: Final = 30
LOCKED_SECONDS: Final = 10


def worker_dies_before_the_transaction(system: System, load: Load) -> None:
    """A worker process gets SIGKILL when it has taken a message and done nothing, twice."""
    _spring(system, "die-at-before-transaction-1", "die-at-before-transaction-2")


def worker_dies_inside_the_transaction(system: System, load: Load) -> None:
    """A worker process gets SIGKILL when it has done the work and not committed, twice."""
    _spring(system, "die-at-inside-transaction-1", "die-at-inside-transaction-2")


def worker_dies_between_commit_and_acknowledgement(system: System, load: Load) -> None:
    """A worker process gets SIGKILL when it has committed, and the broker does not know, twice."""
    _spring(system, "die-at-after-commit-1", "die-at-after-commit-2")


def workers_are_killed_with_all_their_children(system: System, load: Load) -> None:
    """The worker and its processes get SIGKILL at any moment, three times; its messages are nobody's then."""
    worker = system.stack["worker-interactive"]
    for _ in range(3):
        worker.kill()
        worker.start()
        worker.wait()
        pause(0.5)


def worker_is_asked_to_end(system: System, load: Load) -> None:
    """The worker gets SIGTERM under load: it finishes what it does and hands back what it has taken."""
    worker = system.stack["worker-interactive"]
    worker.stop()
    begun = system.read(
        lambda tx: tx.scalar("SELECT count(*) FROM operations WHERE status = 'pending' AND attempts > 0")
    )
    if begun:
        raise AssertionError(f"{begun} operations were begun and not finished")
    worker.start()
    worker.wait()


def broker_dies_and_returns_with_its_data(system: System, load: Load) -> None:
    """The broker gets SIGKILL, is away for three seconds, and reads its file."""
    system.broker.kill()
    wait_for(lambda: not is_ready(system.stack.url), "the API to say that the broker is away")
    pause(3)
    system.broker.start()


def broker_dies_and_returns_with_nothing(system: System, load: Load) -> None:
    """The broker gets SIGKILL, and its disk is lost."""
    system.broker.kill()
    system.broker.lose_data()
    wait_for(lambda: not is_ready(system.stack.url), "the API to say that the broker is away")
    system.broker.start()


def broker_forgets_everything(system: System, load: Load) -> None:
    """FLUSHALL, five times while messages are under way, and once while some wait."""
    for _ in range(5):
        system.broker.forget()
        pause(0.2)
    worker = system.stack["worker-interactive"]
    worker.freeze()
    try:
        wait_for(lambda: bool(_pending(system)) or not load.alive, "a message to wait")
        pause(0.2)
        system.broker.forget()
    finally:
        worker.thaw()


def broker_freezes(system: System, load: Load) -> None:
    """The broker gets SIGSTOP for thirty seconds: it takes connections and answers nobody."""
    system.broker.freeze()
    try:
        wait_for(lambda: not is_ready(system.stack.url), "the API to say that the broker is away")
        pause(FROZEN_SECONDS)
    finally:
        system.broker.thaw()


def messages_come_three_times_in_any_order(system: System, load: Load) -> None:
    """Every operation is sent twice more, once about now and once in the end, each time in an order that dice make."""
    dice = random.Random(7)
    sent: set[UUID] = set()
    with make_celery(system.stack.settings, sends_only=True) as celery:

        def send(operation_ids: set[UUID]) -> None:
            messages = [(kind.task_name, operation_id) for operation_id, kind in _kinds(system, operation_ids).items()]
            dice.shuffle(messages)
            with suppress(OperationalError):  # a connection of this process that an earlier fault has ended
                send_all(celery, messages)
                sent.update(operation_ids)

        worker = system.stack["worker-interactive"]
        while load.alive:
            worker.freeze()  # so that they come at once, to both of its processes
            try:
                pause(0.1)
                send({promise.operation_id for promise in load.promises()} - sent)
            finally:
                worker.thaw()
            pause(0.2)
        send(sent)


def message_comes_again_while_it_is_executed(system: System, load: Load) -> None:
    """A worker takes four seconds over an operation, which is sent to the others meanwhile, again and again."""
    system.sabotage("linger-1", "4")
    wait_for(lambda: not system.traps(), "a worker to linger")
    with make_celery(system.stack.settings, sends_only=True) as celery:
        for _ in range(8):
            kinds = _kinds(system, _pending(system))
            with suppress(OperationalError):
                send_all(celery, [(kind.task_name, operation_id) for operation_id, kind in kinds.items()])
            pause(0.5)


def database_crashes(system: System, load: Load) -> None:
    """PostgreSQL ends as at a power cut, is away for two seconds, and recovers."""
    system.stop_database()
    wait_for(lambda: not is_ready(system.stack.url), "the API to say that the database is away")
    pause(2)
    system.start_database()


def connections_are_cut(system: System, load: Load) -> None:
    """Every connection to PostgreSQL is terminated, ten times."""
    for _ in range(10):
        system.disconnect_everybody()
        pause(0.3)


def table_is_locked(system: System, load: Load) -> None:
    """Somebody locks the table of accounts for ten seconds."""
    with system.database.transaction() as tx:
        tx.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        wait_for(lambda: not is_ready(system.stack.url), "the API to say that the database keeps it waiting")
        pause(LOCKED_SECONDS)


def disk_is_full(system: System, load: Load) -> None:
    """No file of the database may grow, for five seconds: PostgreSQL refuses what needs another page."""
    if shutil.which("prlimit") is None:
        pytest.skip("no `prlimit` of util-linux on this machine, with which to fill a disk")
    refused = system.refused_requests()
    with _no_room_for_operations(system):
        with suppress(DBAPIError):
            while True:  # there are pages that the table was given in advance
                _fill(system, rows=1)
        wait_for(lambda: system.sign_up() == HTTPStatus.SERVICE_UNAVAILABLE, "a signup that finds no page with room")
        pause(5)
    if not refused < system.refused_requests():
        raise AssertionError("requests that could not be written down are not to be seen in /metrics")


def api_dies_between_commit_and_publish(system: System, load: Load) -> None:
    """A process of the API gets SIGKILL when an operation is written down, before its message is sent, twice."""
    _spring(system, "die-at-before-publish-1", "die-at-before-publish-2")


def api_is_killed(system: System, load: Load) -> None:
    """The API and all its processes get SIGKILL, and are started again."""
    api = system.stack["api"]
    api.kill()
    api.start()
    api.wait()


def everything_runs_twice(system: System, load: Load) -> None:
    """Two beats, two relays and two sets of workers, until the customers have lived."""
    twins = [system.stack.another(name) for name in ("beat", "relay", "worker-interactive", "worker-periodic")]
    try:
        for twin in twins:
            twin.start()
        for twin in twins:
            twin.wait()
        wait_for(lambda: not load.alive, "the customers to have lived", within_seconds=60)
        pause(2)  # both beats tick every second
    finally:
        for twin in twins:
            twin.stop()


def relay_and_beat_are_dead_while_a_worker_dies(system: System, load: Load) -> None:
    """Nobody sends anything again but Celery itself, and a worker process dies of SIGKILL inside a transaction."""
    with _only_celery(system):
        _spring(system, "die-at-inside-transaction-1")
        wait_for(lambda: not load.alive, "the customers to have lived", within_seconds=60)
        wait_for(lambda: not _pending(system), "everything accepted to be done, by Celery alone")


def relay_and_beat_are_dead_while_workers_are_killed(system: System, load: Load) -> None:
    """As before, and the worker is killed with all its children while it executes: the broker alone hands over."""
    with _only_celery(system):
        system.sabotage("linger-1", "60")
        wait_for(lambda: not system.traps(), "a worker to linger")
        worker = system.stack["worker-interactive"]
        worker.kill()
        worker.start()
        wait_for(lambda: not load.alive, "the customers to have lived", within_seconds=60)
        wait_for(lambda: not _pending(system), "everything accepted to be done, by the broker alone")


@contextmanager
def _only_celery(system: System) -> Iterator[None]:
    resting = [system.stack[name] for name in ("relay", "beat")]
    for process in resting:
        process.kill()
    try:
        yield
    finally:
        for process in resting:
            process.start()


FAULTS: Final[tuple[Strike, ...]] = (
    worker_dies_before_the_transaction,
    worker_dies_inside_the_transaction,
    worker_dies_between_commit_and_acknowledgement,
    workers_are_killed_with_all_their_children,
    worker_is_asked_to_end,
    relay_and_beat_are_dead_while_a_worker_dies,
    api_dies_between_commit_and_publish,
    api_is_killed,
    broker_dies_and_returns_with_its_data,
    broker_dies_and_returns_with_nothing,
    broker_forgets_everything,
    broker_freezes,
    messages_come_three_times_in_any_order,
    message_comes_again_while_it_is_executed,
    database_crashes,
    connections_are_cut,
    table_is_locked,
    disk_is_full,
    everything_runs_twice,
)


def pause(seconds: float) -> None:
    """Let a fault last."""
    threading.Event().wait(seconds)


def _spring(system: System, *traps: str) -> None:
    for trap in traps:
        system.sabotage(trap)
    wait_for(lambda: not system.traps(), f"somebody to walk into {traps}")


def _pending(system: System) -> list[UUID]:
    rows = system.read(lambda tx: tx.rows("SELECT id FROM operations WHERE status = 'pending'"))
    return [row.id for row in rows]


def _kinds(system: System, operation_ids: Collection[UUID]) -> dict[UUID, OperationKind]:
    rows = system.read(
        lambda tx: tx.rows("SELECT id, kind FROM operations WHERE id = ANY (%(ids)s)", ids=list(operation_ids))
    )
    return {row.id: OperationKind(row.kind) for row in rows}


# Of 1.6 kB, so that four fill a page; together more than a segment of the log, whose files are never smaller.
FILLER_ROWS: Final = 12_000
FILLER: Final = """
    INSERT INTO operations (id, kind, status, payload, payload_version, principal_kind, request_hash, created_at,
                            finished_at, problem)
    SELECT gen_random_uuid(), 'sign_up', 'failed', jsonb_build_object('filler', array_agg(gen_random_uuid())), 1,
           'anonymous', '', now(), now(), '{"code": "email_taken", "detail": "filler"}'
    FROM generate_series(1, %(rows)s) AS row, generate_series(1, 36) GROUP BY row
"""


@contextmanager
def _no_room_for_operations(system: System) -> Iterator[None]:
    """Let no process of the server write a file larger than the table of operations is, which thereby cannot grow."""
    _fill(system, rows=FILLER_ROWS)
    size = system.read(lambda tx: int(tx.scalar("SELECT pg_relation_size('operations')")))
    server = psutil.Process(system.postmaster_pid)
    _limit_files(server, size)
    try:
        yield
    finally:
        _limit_files(server, None)


def _fill(system: System, *, rows: int) -> None:
    with system.database.transaction() as tx:
        tx.execute(FILLER, rows=rows)


def _limit_files(server: psutil.Process, size: int | None) -> None:
    """By util-linux's `prlimit`, as the server's own user: not even root may do it to others everywhere."""
    owner: dict[str, Any] = {"user": server.uids().real, "group": server.gids().real, "extra_groups": ()}
    as_owner = owner if os.geteuid() == 0 else {}
    for process in (server, *server.children()):
        command = ["prlimit", f"--pid={process.pid}", f"--fsize={'unlimited' if size is None else size}:"]
        subprocess.run(command, check=process.pid == server.pid, stderr=subprocess.DEVNULL, **as_owner)
