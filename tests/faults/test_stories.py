"""Faults that last, or that are told by a story of their own."""

import os
import subprocess
import sys
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import msgspec
import pytest

from shared.clock import monotonic, utc_now
from shared.config import PROJECT_DIR
from shared.messages import Job
from tests.faults.customers import Load
from tests.faults.faults import broker_forgets_everything
from tests.faults.system import System, wait_for

pytestmark = pytest.mark.processes

TRIAL = timedelta(days=14)
DATED = timedelta(days=40)
LONGER_THAN_ANY_PAUSE_SECONDS = 12  # the relay notes that it is there every ten


def lives(system: System, *, seed: int, customers: int = 12) -> Load:
    give_up_at = monotonic() + 120
    admin = system.admin(give_up_at=give_up_at)
    return Load(system.stack.url, admin, seed=seed, customers=customers, give_up_at=give_up_at)


def nothing_was_lost(system: System, load: Load) -> None:
    load.join()
    assert load.failures == []
    system.wait_until_quiet()
    assert system.broken_promises(load.promises()) == []
    assert system.read(load.wrong_books) == []
    assert system.findings() == []


def statuses(system: System, operation_ids: list[UUID]) -> list[tuple[str, datetime | None]]:
    """Status of each account that these signups made, and the end of its subscription."""
    rows = system.read(
        lambda tx: tx.rows(
            """
            SELECT a.status, (SELECT s.ended_at FROM subscriptions s WHERE s.account_id = a.id) AS ended_at
            FROM operations o JOIN accounts a ON a.id = o.account_id WHERE o.id = ANY (%(ids)s)
            """,
            ids=operation_ids,
        )
    )
    return [(row.status, row.ended_at) for row in rows]


def jobs_run(system: System, job: Job) -> None:
    """Return when the job has run from its beginning to its end since now, whatever clock it believes."""

    def newest() -> object:
        return system.read(lambda tx: tx.scalar("SELECT xmin FROM job_runs WHERE job = %(job)s", job=str(job)))

    def another(before: object) -> bool:
        return newest() != before

    for _ in range(2):  # the first may have begun before
        wait_for(partial(another, newest()), f"{job} to run")


def test_beat_is_dead_for_days_and_a_worker_dies_while_it_catches_up(system: System) -> None:
    system.stack["beat"].kill()
    signed_up_at = utc_now() - DATED
    signups = [system.accept_signup(at=signed_up_at + timedelta(hours=number)) for number in range(30)]
    wait_for(lambda: len(statuses(system, signups)) == 30, "the relay to have them executed")
    assert {status for status, _ in statuses(system, signups)} == {"trial"}

    for number in range(2):
        system.sabotage(f"die-at-inside-batch-{number}")
    system.stack["beat"].start()
    wait_for(lambda: not system.traps(), "a worker to die in a batch, twice", within_seconds=60)
    system.wait_until_quiet()

    assert sorted(statuses(system, signups)) == [
        ("suspended", signed_up_at + timedelta(hours=number) + TRIAL) for number in range(30)
    ], "each ends when it was due, whenever the jobs ran"
    assert system.findings() == []


@pytest.mark.parametrize("hours", [2, -2], ids=["ahead", "behind"])
def test_workers_and_relay_whose_clock_is_wrong_do_nothing_early_and_nothing_late(system: System, hours: int) -> None:
    hour = timedelta(hours=1)
    for process in ("celery", "relay"):
        system.sabotage(f"clock-{process}", str(hours * 3600))
    over = system.accept_signup(at=utc_now() - TRIAL - hour)
    running = system.accept_signup(at=utc_now() - TRIAL + hour)
    load = lives(system, seed=100 + hours)
    load.start()
    broker_forgets_everything(system, load)
    nothing_was_lost(system, load)
    jobs_run(system, Job.EXPIRE_TRIALS)
    assert [status for status, _ in statuses(system, [over])] == ["suspended"]
    assert [status for status, _ in statuses(system, [running])] == ["trial"]
    system.disarm()


def test_whatever_is_dead_is_seen_while_it_is_and_not_any_more(system: System) -> None:
    names = ("relay", "beat", "worker-periodic", "worker-interactive")
    for name in names:
        system.stack[name].kill()
    signup = system.accept_signup(at=utc_now())

    def ages() -> dict[str, float]:
        measured = system.measured()
        jobs = {job: f'billing_job_last_run_age_seconds{{job="{job}"}}' for job in ("relay", "roll-renewals")}
        return {job: measured[name] for job, name in jobs.items()} | {
            "unbegun": measured["billing_operations_unbegun_age_seconds"]
        }

    wait_for(lambda: min(ages().values()) > LONGER_THAN_ANY_PAUSE_SECONDS, "all of it to show in /metrics")
    assert "beat" in system.degraded()

    for name in names:
        system.stack[name].start()
    system.wait_until_quiet()
    assert len(statuses(system, [signup])) == 1
    wait_for(lambda: max(ages().values()) < LONGER_THAN_ANY_PAUSE_SECONDS, "all of it to be well again")
    assert system.degraded() == {}


def test_a_poisonous_operation_is_parked_and_delays_nobody(system: System) -> None:
    load = lives(system, seed=200)
    worker = system.stack["worker-interactive"]
    worker.freeze()
    operation_id = system.accept_signup(at=utc_now())
    trap = system.sabotage(f"poison-{operation_id}")
    worker.thaw()
    load.start()

    def status() -> object:
        return system.read(lambda tx: tx.scalar("SELECT status FROM operations WHERE id = %(id)s", id=operation_id))

    wait_for(lambda: status() == "dead", "the operation to be given up", within_seconds=90)
    nothing_was_lost(system, load)
    assert system.degraded()["dead"] == "operations: 1"
    listed = command(system, "operations", "list", "--status", "dead", "--json")
    assert [operation["id"] for operation in listed] == [str(operation_id)]
    assert "ended, and the last one without a word" in listed[0]["last_error"]

    trap.unlink()
    admin = system.admin(give_up_at=monotonic() + 60)
    admin.ask("POST", f"/admin/operations/{operation_id}/retry")
    system.wait_until_quiet()
    assert len(statuses(system, [operation_id])) == 1
    admin.close()
    assert system.findings() == []


def command(system: System, *arguments: str) -> list[dict[str, str]]:
    """What the operator's command line answers."""
    environment = {**os.environ, **system.stack.settings.as_environment()}
    output = subprocess.run(
        [sys.executable, "-m", "workers", *arguments],
        cwd=PROJECT_DIR,
        env=environment,
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    answer: list[dict[str, str]] = msgspec.json.decode(output)
    return answer
