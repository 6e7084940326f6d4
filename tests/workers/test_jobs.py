"""The beat jobs' tasks: what is due is done, and running one twice changes nothing the second time."""

import json
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from shared.broker import queue_depth
from shared.clock import utc_now
from shared.db import checkouts, credits
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.requests import SignUp
from shared.errors import FutureInstant
from shared.messages import Job, Queue
from tests.factories import Table, cases
from tests.office import Customer, Office
from tests.workers.conftest import Worker


def ago(**span: float) -> Any:
    return utc_now() - timedelta(**span)


# --- something due for each job ---------------------------------------------------------------------------------


def trial(office: Office) -> Customer:
    office.now = ago(days=20)
    return office.sign_up()


def unpaid(office: Office) -> Customer:
    office.now = ago(days=34)
    who = office.sign_up()
    office.buy(who)
    office.tick(ago(days=10))
    return who


def overdue(office: Office) -> Customer:
    office.now = ago(days=45)
    who = office.sign_up()
    office.buy(who)
    office.tick(ago(days=13))
    return who


def leaving(office: Office) -> Customer:
    who = unpaid(office)
    office.now = ago(days=9)
    office.cancel(who)
    return who


def gifted(office: Office) -> Customer:
    office.now = ago(days=3)
    who = office.sign_up()
    office.adjust(who, 5, ago(days=1))
    return who


def yearly(office: Office) -> Customer:
    office.change("UPDATE plans SET interval = 'year', credit_rollover = 'all' WHERE slug = 'starter'")
    return unpaid(office)


def holding(office: Office) -> Customer:
    office.now = ago(hours=1)
    who = office.sign_up()
    with office.database.transaction() as tx:
        credits.place_hold(office.asker(tx, who), 100, key="hold", ttl_seconds=60, now=office.now)
    return who


def waiting(office: Office) -> None:
    request = SignUp(account_name="Ada", email="ada@example.com", password_hash="hash")
    office.accept(OperationKind.SIGN_UP, request, at=ago(seconds=10))


def forgettable(office: Office) -> None:
    office.change(
        """
        INSERT INTO signups (id, account_name, email, password_hash, time_zone, created_at, expires_at)
        SELECT gen_random_uuid(), 'Bob', 'bob@example.com', 'hash', 'UTC', now() - interval '2 days',
               now() + n * interval '1 h'
        FROM unnest(ARRAY[-1, 1]) AS n
        """
    )
    office.change(
        """
        INSERT INTO sign_in_attempts (who, network, failures, failed_at, expires_at)
        SELECT 'who', n::text, 1, now(), now() + n * interval '1 h' FROM unnest(ARRAY[-1, 1]) AS n
        """
    )


def checked_out(office: Office) -> None:
    office.now = ago(minutes=11)
    who = office.sign_up()
    invoice_id = office.open_invoice(who, method=PaymentMethod.STRIPE)
    with office.database.transaction() as tx:
        checkouts.open_checkout(
            tx,
            PaymentMethod.STRIPE,
            "pi_1",
            account_id=who.account_id,
            invoice_id=invoice_id,
            saves_method=False,
            now=office.now,
        )


OUTCOME = "SELECT status FROM accounts WHERE kind = 'customer'"

DUE: Table = {
    Job.EXPIRE_TRIALS: (trial, OUTCOME, "suspended"),
    Job.ROLL_RENEWALS: (unpaid, OUTCOME, "past_due"),
    Job.SUSPEND_OVERDUE: (overdue, OUTCOME, "suspended"),
    Job.CANCEL_DUE: (leaving, OUTCOME, "cancelled"),
    Job.SEED_CREDITS: (yearly, "SELECT balance_credits FROM accounts WHERE kind = 'customer'", 2_000),
    Job.EXPIRE_CREDITS: (gifted, "SELECT balance_credits FROM accounts WHERE kind = 'customer'", 2_000),
    Job.RELEASE_HOLDS: (holding, "SELECT status FROM holds", "expired"),
    Job.ASK_PROVIDERS: (checked_out, "SELECT count(*) FROM operations WHERE kind = 'confirm_payment'", 1),
    Job.FORGET_EXPIRED: (
        forgettable,
        "SELECT (SELECT count(*) FROM signups) + (SELECT count(*) FROM sign_in_attempts)",
        2,
    ),
    Job.RELAY_OPERATIONS: (waiting, "SELECT sends FROM operations WHERE kind = 'sign_up'", 1),
}


@pytest.mark.parametrize(
    ("job", "make", "outcome", "expected"), [pytest.param(job, *row, id=job) for job, row in DUE.items()]
)
def test_run_twice_it_changes_nothing_the_second_time(
    worker: Worker,
    office: Office,
    broker_url: str,
    job: Job,
    make: Callable[[Office], Any],
    outcome: str,
    expected: object,
) -> None:
    make(office)
    before = office.dump("job_runs")
    worker.run(job)
    after = office.dump("job_runs")
    assert after != before
    (done,) = office.row(outcome)
    assert done == expected
    worker.run(job)
    assert office.dump("job_runs") == after
    run = office.row("SELECT items, finished_at >= started_at AS in_order FROM job_runs WHERE job = %(job)s", job=job)
    assert tuple(run) == (0, True)


def test_there_is_a_case_for_every_job() -> None:
    assert set(DUE) == set(Job)


def test_all_of_them_run_twice_change_nothing_the_second_time(worker: Worker, office: Office, broker_url: str) -> None:
    for make in (unpaid, overdue, leaving, trial, gifted, holding, forgettable, waiting):
        make(office)
    for job in Job:
        worker.run(job)
    after = office.dump("job_runs")
    for job in [*Job, *reversed(Job)]:
        worker.run(job)
    assert office.dump("job_runs") == after


def test_with_nothing_due_a_job_notes_that_it_ran(worker: Worker, office: Office, broker_url: str) -> None:
    before = office.dump("job_runs")
    for job in Job:
        worker.run(job)
    assert office.dump("job_runs") == before
    runs = office.rows("SELECT job, items FROM job_runs")
    assert {run.job: run.items for run in runs} == {str(job): 0 for job in Job}


def test_a_job_goes_on_until_nothing_is_due_however_small_its_batches(worker: Worker, office: Office) -> None:
    people = [trial(office) for _ in range(5)]
    worker.set(batch_size=2)
    worker.run(Job.EXPIRE_TRIALS)
    assert office.row("SELECT items FROM job_runs").items == len(people)
    assert {row.status for row in office.rows(OUTCOME)} == {"suspended"}


def test_two_workers_run_a_job_at_once_to_one_effect(worker: Worker, office: Office) -> None:
    office.now = ago(days=100)
    for _ in range(12):
        office.assign(office.sign_up(), "free")
    worker.set(batch_size=3)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(worker.run, [Job.EXPIRE_CREDITS] * 2))
    for job in Job:
        if job is not Job.RELAY_OPERATIONS:
            worker.run(job)
    rows = office.rows("SELECT count(*) AS made FROM subscription_periods GROUP BY account_id")
    assert [row.made for row in rows] == [4] * 12


def test_accounts_on_a_test_clock_are_passed_by(worker: Worker, office: Office, broker_url: str) -> None:
    clock_id = office.make_clock(ago(days=50))
    who = office.sign_up(clock_id=clock_id)
    with office.database.transaction() as tx:
        credits.place_hold(office.asker(tx, who), 100, key="hold", ttl_seconds=60, now=utc_now())
    before = office.dump("job_runs")
    for job in Job:
        worker.run(job)
    assert office.dump("job_runs") == before


def test_one_account_that_fails_is_parked_and_the_others_go_on(worker: Worker, office: Office) -> None:
    people = [trial(office) for _ in range(5)]
    poisoned = people[2]
    broken = "UPDATE accounts SET ledger_seq = 0 WHERE id = %(id)s"
    office.change(broken, id=poisoned.account_id)
    worker.run(Job.EXPIRE_TRIALS)
    rows = office.rows("SELECT id, status, parked_reason FROM accounts WHERE kind = 'customer'")
    assert {row.id: row.status for row in rows} == {
        who.account_id: "trial" if who is poisoned else "suspended" for who in people
    }
    (reason,) = [row.parked_reason for row in rows if row.id == poisoned.account_id]
    assert "credit_transactions_pkey" in reason
    worker.run(Job.EXPIRE_TRIALS)
    assert office.row("SELECT items FROM job_runs").items == 0
    office.change("UPDATE accounts SET ledger_seq = 1 WHERE id = %(id)s", id=poisoned.account_id)


def test_a_transient_fault_parks_nobody(worker: Worker, office: Office) -> None:
    trial(office)
    office.change("CREATE SEQUENCE faults; GRANT USAGE ON SEQUENCE faults TO prepaid_worker")
    office.change(
        """
        CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('faults') = 1 THEN
                RAISE EXCEPTION 'a fault' USING ERRCODE = '40001';
            END IF;
            RETURN NEW;
        END
        $$
        """
    )
    office.change("CREATE TRIGGER fault BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION fault()")
    try:
        worker.run(Job.EXPIRE_TRIALS)
    finally:
        office.change("DROP TRIGGER fault ON accounts; DROP FUNCTION fault(); DROP SEQUENCE faults")
    assert tuple(office.row("SELECT status, parked_at FROM accounts WHERE kind = 'customer'")) == ("suspended", None)


# --- as of when -------------------------------------------------------------------------------------------------


def test_a_job_acts_as_of_the_instant_it_is_told(worker: Worker, office: Office) -> None:
    who = trial(office)
    worker.run(Job.EXPIRE_TRIALS, as_of=office.now + timedelta(days=13))
    assert office.state(who).account.status == "trial"
    worker.run(Job.EXPIRE_TRIALS, as_of=office.now + timedelta(days=15))
    assert office.state(who).account.status == "suspended"


REFUSED: Table = {
    "an instant that has not come": (timedelta(minutes=5), True),
    "one without a zone": (timedelta(days=-5), False),
}


@pytest.mark.parametrize(("offset", "aware"), cases(REFUSED))
def test_refused_as_of(worker: Worker, office: Office, *, offset: timedelta, aware: bool) -> None:
    as_of = utc_now() + offset
    with pytest.raises(FutureInstant):
        worker.run(Job.EXPIRE_TRIALS, as_of=as_of if aware else as_of.replace(tzinfo=None))


# --- on the wire ------------------------------------------------------------------------------------------------


def test_jobs_have_a_lane_of_their_own(celery_app: Celery) -> None:
    for job in Job:
        assert celery_app.amqp.router.route({}, job.task_name)["queue"].name == Queue.PERIODIC


def messages(broker_url: str) -> list[dict[str, Any]]:
    """What waits in the lane of the jobs: headers, and arguments by name."""
    with redis.Redis.from_url(broker_url) as client:
        waiting = [json.loads(one) for one in client.lrange(Queue.PERIODIC, 0, -1)]
    return [{**one["headers"], "kwargs": json.loads(b64decode(one["body"]))[1]} for one in waiting]


def test_a_run_with_more_to_do_than_a_batch_calls_for_one_other_run(
    worker: Worker, office: Office, broker_url: str
) -> None:
    for _ in range(5):
        trial(office)
    worker.set(batch_size=2)
    as_of = ago(minutes=1)
    worker.run(Job.EXPIRE_TRIALS, as_of=as_of)
    (message,) = messages(broker_url)
    assert (message["task"], message["kwargs"]) == (Job.EXPIRE_TRIALS.task_name, {"as_of": as_of.isoformat()})
    assert queue_depth(worker.app, Queue.INTERACTIVE) == 0


def test_a_run_with_less_to_do_than_a_batch_calls_for_none(worker: Worker, office: Office, broker_url: str) -> None:
    trial(office)
    worker.set(batch_size=2)
    worker.run(Job.EXPIRE_TRIALS)
    assert messages(broker_url) == []


def test_a_run_ends_with_its_time_and_the_other_one_goes_on(
    worker: Worker, office: Office, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [trial(office) for _ in range(3)]
    worker.set(batch_size=1)
    monkeypatch.setattr(import_module("workers.task"), "JOB_SECONDS", -1)
    for done in range(1, len(people) + 1):
        worker.run(Job.EXPIRE_TRIALS)
        assert len(office.rows("SELECT FROM accounts WHERE status = 'suspended'")) == done
        assert len(messages(broker_url)) == done


def test_without_a_broker_a_run_does_its_work_alone(
    worker: Worker, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("nobody listens")

    people = [trial(office) for _ in range(3)]
    worker.set(batch_size=1)
    monkeypatch.setattr(worker.app, "send_task", refuse)
    worker.run(Job.EXPIRE_TRIALS)
    assert len(office.rows("SELECT FROM accounts WHERE status = 'suspended'")) == len(people)
