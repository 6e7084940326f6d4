"""The product: the beat job `roll-renewals`, taken up by real Celery workers from the broker."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Final

from kombu.exceptions import OperationalError

from bench.lab import Lab
from bench.meter import Meter, Run, await_until
from shared.broker import make_celery
from shared.config import Settings
from shared.db.engine import Database
from shared.messages import Job, Queue
from workers.stack import Process

PATIENCE_SECONDS: Final = 1_800


@contextmanager
def celery_workers(settings: Settings, app: str, queue: Queue, processes: int) -> Iterator[Process]:
    """A Celery worker with so many processes, which answers by now."""
    logs = settings.data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    sender = make_celery(settings)

    def answers() -> bool:
        with suppress(OSError, OperationalError):
            return bool(sender.control.ping(destination=["bench@bench"], timeout=0.5, limit=1))
        return False

    worker = Process(
        "bench-worker",
        [
            *(sys.executable, "-m", "celery", "-A", app, "worker", "-n", "bench@bench", "-Q", str(queue)),
            *("-c", str(processes), "--without-gossip", "--without-mingle"),
        ],
        environment={**os.environ, **settings.as_environment()},
        log=logs / "bench-worker.log",
        ready=answers,
    )
    try:
        worker.start()
        worker.wait()
        yield worker
    finally:
        worker.stop()
        sender.control.purge()
        sender.close()


def roll(lab: Lab, settings: Settings, *, accounts: int, processes: int, as_of: datetime) -> Run:
    """Send one message, as beat does, and wait until nothing is due."""
    with lab.opened(settings) as database, celery_workers(settings, "workers.app", Queue.PERIODIC, processes) as worker:
        return roll_with(lab, settings, database, worker, accounts=accounts, as_of=as_of)


def roll_with(
    lab: Lab, settings: Settings, database: Database, worker: Process, *, accounts: int, as_of: datetime
) -> Run:
    """`roll` by workers that run already."""
    with Meter(accounts, postmaster=lab.postmaster(), python=[worker.pid]) as meter:
        send_renewals(settings, as_of=as_of)
        await_until(lambda: not is_due(database, as_of), "the renewals", seconds=PATIENCE_SECONDS)
    return meter.run


def send_renewals(settings: Settings, *, as_of: datetime) -> None:
    """One tick of beat."""
    sender = make_celery(settings)
    sender.send_task(Job.ROLL_RENEWALS.task_name, kwargs={"as_of": as_of.isoformat()})
    sender.close()


def is_due(database: Database, as_of: datetime) -> bool:
    """Whether any committed renewal is left to do.

    Looks from the end, for at the beginning of the index are those that have been done, until a vacuum.
    """
    with database.transaction() as tx:
        last = tx.maybe(
            """
            SELECT FROM accounts
            WHERE next_transition = 'renewal' AND next_transition_at <= %(as_of)s
              AND test_clock_id IS NULL AND parked_at IS NULL AND deleted_at IS NULL
            ORDER BY next_transition_at DESC, id DESC LIMIT 1
            """,
            as_of=as_of,
        )
    return last is not None
