"""Each fault shows while it lasts, in `/readyz` and in `/metrics`; what is frozen keeps nobody waiting."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
import redis
from flask.testing import FlaskClient

from api import metrics, throttle
from api.probe import ABANDON_SECONDS, Probe
from api.windows import ALONE_SECONDS
from shared.clock import monotonic, utc_now
from shared.domain.operation import PAYLOAD_VERSION
from shared.messages import Queue
from tests.api.conftest import Api, Engine
from tests.api.routes import BODIES
from tests.factories import cases

AGE = "billing_job_last_run_age_seconds"

Degraded = dict[str, str]
Samples = dict[str, float]


def asked(client: FlaskClient) -> tuple[int, Degraded]:
    answer = client.get("/readyz")
    return answer.status_code, answer.get_json(force=True)["degraded"]


def measured(client: FlaskClient) -> Samples:
    """Each sample by its name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture
def well(engine: Engine, broker_url: str) -> Engine:
    """A system all of whose processes run."""
    for job in ("expire-trials", "roll-renewals", "relay"):
        engine.execute_sql(
            """INSERT INTO job_runs (job, started_at, finished_at, duration_ms, items)
               VALUES (%(job)s, now(), now(), 3, 0)""",
            job=job,
        )
    return engine


def test_when_all_is_well_nothing_is_degraded(api: Api, well: Engine) -> None:
    api.get("/plans")
    assert asked(api.client) == (200, {})
    found = measured(api.client)
    assert (found["billing_database_up"], found["billing_broker_up"]) == (1, 1)
    assert {queue: found[f'billing_queue_messages{{queue="{queue}"}}'] for queue in Queue} == dict.fromkeys(Queue, 0)
    assert (found["billing_operations_unbegun_age_seconds"], found["billing_accounts_parked"]) == (0, 0)
    assert abs(found["billing_clock_skew_seconds"]) < 5
    assert 0 <= found[f'{AGE}{{job="relay"}}'] < 60


def test_before_anything_has_run_that_is_said(api: Api, engine: Engine) -> None:
    assert asked(api.client) == (200, {"beat": "no job has run yet", "relay": "no relay has run yet"})


FAULTS = {
    "beat, or all workers of periodic": (
        "UPDATE job_runs SET finished_at = now() - interval '6 minutes' WHERE job <> 'relay'",
        {"beat": r"no job has run for 36\d s"},
        {f'{AGE}{{job="roll-renewals"}}': 360},
    ),
    "the relay": (
        "UPDATE job_runs SET finished_at = now() - interval '2 minutes' WHERE job = 'relay'",
        {"relay": r"silent for 12\d s"},
        {f'{AGE}{{job="relay"}}': 120},
    ),
    "all workers of interactive": (
        "UPDATE operations SET created_at = now() - interval '3 minutes' WHERE status = 'pending'",
        {"workers": r"an operation waits for one since 18\d s"},
        {"billing_operations_unbegun_age_seconds": 180},
    ),
    "an operation that keeps failing": (
        """UPDATE operations SET status = 'dead', next_send_at = NULL, problem = '{"code": "operation_dead"}'
           WHERE status = 'pending'""",
        {"dead": "operations: 1"},
        {'billing_operations_unfinished{kind="open_invoice",status="dead"}': 1},
    ),
    "an account that keeps failing": (
        "UPDATE accounts SET parked_at = now(), parked_reason = 'broken' WHERE kind = 'customer'",
        {"parked": "accounts: 1"},
        {"billing_accounts_parked": 1},
    ),
    "the payment provider": (
        """UPDATE operations SET last_error = 'ProviderDown: no answer', kind = 'confirm_payment',
           created_at = now() - interval '1 hour' WHERE status = 'pending'""",
        {"provider": "confirm_payment: 1"},
        {
            'billing_operations_waiting{kind="confirm_payment",waits_for="provider"}': 1,
            "billing_operations_unbegun_age_seconds": 0,
        },
    ),
    "the mail server": (
        """UPDATE operations SET last_error = 'ProviderDown: no answer', kind = 'send_mail'
           WHERE status = 'pending'""",
        {"provider": "send_mail: 1"},
        {'billing_operations_waiting{kind="send_mail",waits_for="provider"}': 1},
    ),
    "a payload of a newer release": (
        f"UPDATE operations SET payload_version = {PAYLOAD_VERSION + 1} WHERE status = 'pending'",
        {"release": "open_invoice: 1"},
        {'billing_operations_waiting{kind="open_invoice",waits_for="release"}': 1},
    ),
    "a payload that only our workers cannot read": (
        "UPDATE operations SET last_error = 'NewerPayload: version 1' WHERE status = 'pending'",
        {"release": "open_invoice: 1"},
        {'billing_operations_waiting{kind="open_invoice",waits_for="release"}': 1},
    ),
    "a kind of a newer release": (
        "UPDATE operations SET kind = 'mint_tokens' WHERE status = 'pending'",
        {"release": "mint_tokens: 1"},
        {'billing_operations_waiting{kind="mint_tokens",waits_for="release"}': 1},
    ),
}


@pytest.mark.parametrize(("cause", "degraded", "samples"), cases(FAULTS))
def test_what_is_wrong_is_said_and_measured(
    api: Api, well: Engine, customer: Api, cause: str, degraded: Degraded, samples: Samples
) -> None:
    customer.post("/invoices", BODIES["POST /invoices"])
    well.execute_sql(cause)
    status, found = asked(api.client)
    assert status == 200, "another API process would do no better"
    assert found == {name: found.get(name) for name in degraded}
    for name, text in degraded.items():
        assert re.fullmatch(text, found[name])
    values = measured(api.client)
    assert {name: values[name] for name in samples if "age_seconds" not in name} == {
        name: value for name, value in samples.items() if "age_seconds" not in name
    }
    assert {name: values[name] for name in samples} == pytest.approx(samples, abs=9)


def test_a_new_operation_that_waits_for_a_moment_is_nothing(api: Api, well: Engine, customer: Api) -> None:
    customer.post("/invoices", BODIES["POST /invoices"])
    assert asked(api.client) == (200, {})


def test_a_clock_that_is_off_is_seen(api: Api, well: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "utc_now", lambda: utc_now() + timedelta(seconds=90))
    assert measured(api.client)["billing_clock_skew_seconds"] == pytest.approx(90, abs=1)
    status, found = asked(api.client)
    assert (status, list(found)) == (200, ["clock"])
    assert found["clock"].startswith("+90.0 s") or found["clock"].startswith("+89.")


def test_without_the_redis_that_counts_each_process_says_that_it_is_alone(
    variant: Any, well: Engine, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = variant(throttle_url="redis://127.0.0.1:1/0")
    assert asked(client) == (200, {})
    client.get("/api/v1/plans")
    status, found = asked(client)
    assert (status, list(found)) == (200, ["throttle"])
    monkeypatch.setattr(throttle, "utc_now", lambda: utc_now() + timedelta(seconds=ALONE_SECONDS))
    assert asked(client) == (200, {})


# --- releases ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revision", "status"),
    [
        pytest.param("9999", 200, id="a newer one leaves a schema that this release can go on with"),
        pytest.param("0001", 503, id="an older one lacks what this release needs"),
        pytest.param("0000_of_theirs", 503, id="one that is neither is no schema of ours"),
    ],
)
def test_a_schema_may_be_newer_than_this_release_and_not_older(
    api: Api, well: Engine, revision: str, status: int
) -> None:
    ours = well.scalar("SELECT version_num FROM alembic_version")
    well.execute_sql("UPDATE alembic_version SET version_num = %(revision)s", revision=revision)
    try:
        answer = api.client.get("/readyz")
    finally:
        well.execute_sql("UPDATE alembic_version SET version_num = %(ours)s", ours=ours)
    found = answer.get_json(force=True)
    assert (answer.status_code, found["parts"]["database"]) == (status, "ok")
    if status == 200:
        assert found["parts"]["migrations"] == "ok"
        assert found["degraded"] == {"release": f"the database is at 9999, and this release knows {ours}"}
    else:
        assert found["parts"]["migrations"] == f"at {revision}, not at {ours}"
        assert api.client.get("/healthz").status_code == 200


# --- what is down, and what is frozen ---------------------------------------------------------


@pytest.fixture
def frozen() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("url", ["postgresql+psycopg://127.0.0.1:{port}/nowhere", "postgresql+psycopg://127.0.0.1:1/x"])
def test_without_a_database_there_are_metrics_all_the_same_and_in_time(variant: Any, frozen: int, url: str) -> None:
    client = variant(database_url=url.format(port=frozen))
    started = monotonic()
    found = measured(client)
    assert (found["billing_database_up"], found["billing_broker_up"]) == (0, 1)
    assert "billing_accounts_parked" not in found, "nothing is made up"
    assert monotonic() - started < 8, "Prometheus gives up after ten seconds"
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.get_json(force=True)["parts"] == {
        "database": "cannot be reached",
        "migrations": "unknown",
        "broker": "ok",
    }
    assert [name for name in measured(client) if name.startswith("billing_http_request")]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{port}/0", "redis://127.0.0.1:1/0"])
def test_without_a_broker_there_are_metrics_all_the_same_and_in_time(variant: Any, frozen: int, url: str) -> None:
    client = variant(broker_url=url.format(port=frozen))
    started = monotonic()
    found = measured(client)
    assert monotonic() - started < 3
    assert (found["billing_database_up"], found["billing_broker_up"]) == (1, 0)
    assert not [name for name in found if name.startswith("billing_queue_messages")]


def test_messages_that_wait_are_counted_by_queue(api: Api, well: Engine, send: Callable[[Queue], None]) -> None:
    send(Queue.PERIODIC)
    send(Queue.PERIODIC)
    send(Queue.INTERACTIVE)
    found = measured(api.client)
    assert found['billing_queue_messages{queue="periodic"}'] == 2
    assert found['billing_queue_messages{queue="interactive"}'] == 1


@pytest.fixture
def send(api: Api, broker_url: str) -> Iterator[Callable[[Queue], None]]:
    """Puts a message into a queue that nobody takes from."""
    with redis.Redis.from_url(broker_url) as client:
        yield lambda queue: client.lpush(str(queue), "{}")
        client.flushdb()


# --- asking what may be frozen ----------------------------------------------------------------


def test_whoever_comes_while_it_is_asked_waits_for_the_same_answer() -> None:
    release, asked_times = threading.Event(), []

    def ask() -> str:
        asked_times.append(monotonic())
        release.wait(10)
        return "yes"

    probe = Probe("test", ask, wait_seconds=0.05)
    assert [probe.answer(), probe.answer()] == [None, None]
    assert len(asked_times) == 1
    release.set()
    patient = Probe("test", ask, wait_seconds=5)
    assert patient.answer() == "yes"


def test_a_question_that_stays_open_is_put_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_times: list[float] = []
    stuck = threading.Event()

    def ask() -> str:
        asked_times.append(monotonic())
        if len(asked_times) == 1:
            stuck.wait(10)
        return "yes"

    probe = Probe("test", ask, wait_seconds=0.05)
    assert probe.answer() is None
    monkeypatch.setattr("api.probe.monotonic", lambda: monotonic() + ABANDON_SECONDS + 1)
    assert probe.answer() == "yes"
    stuck.set()


def test_a_question_that_fails_has_no_answer() -> None:
    def ask() -> str:
        raise OSError("no")

    assert Probe("test", ask, wait_seconds=5).answer() is None
