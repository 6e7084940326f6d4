"""The relay: sends again whatever is not done, with a pause, and never more than the broker should hold."""

import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any
from uuid import UUID

import pytest
import redis

from shared.clock import monotonic, utc_now
from shared.db import operations
from shared.domain.operation import OperationKind
from shared.domain.requests import SignUp
from shared.errors import NotFound
from shared.ids import new_id
from shared.messages import Queue
from tests.office import Office
from tests.workers.conftest import Worker

BASE = timedelta(seconds=30)


@pytest.fixture
def sent(broker_url: str) -> Any:
    """Reads the names of the tasks in a queue with the operations they are about, oldest first."""

    def read(name: Queue = Queue.INTERACTIVE) -> list[tuple[str, str]]:
        with redis.Redis.from_url(broker_url) as client:
            messages = [json.loads(message) for message in client.lrange(name, 0, -1)]
        return [(one["headers"]["task"], body_of(one)[0][0]) for one in reversed(messages)]

    return read


def body_of(message: dict[str, Any]) -> Any:
    """Arguments, keyword arguments and what Celery adds."""
    return json.loads(b64decode(message["body"]))


def accept(office: Office, *, minutes_ago: float = 1) -> UUID:
    request = SignUp(account_name="Ada", email=f"{new_id()}@example.com", password_hash="hash")
    return office.accept(OperationKind.SIGN_UP, request, at=utc_now() - timedelta(minutes=minutes_ago))


def relay(worker: Worker, **settings: Any) -> Any:
    made = import_module("workers.relay").Relay
    return made(worker.runtime.settings.model_copy(update=settings), worker.office.database)


def test_what_is_due_is_sent_oldest_first_and_put_off(worker: Worker, office: Office, sent: Any) -> None:
    now = utc_now()
    third, first, second = (accept(office, minutes_ago=minutes) for minutes in (1, 3, 2))
    assert relay(worker).send_due(now=now) == 3
    assert sent() == [("billing.sign_up", str(operation_id)) for operation_id in (first, second, third)]
    for operation_id in (first, second, third):
        row = office.operation(operation_id)
        assert (row.status, row.sends) == ("pending", 1)
        assert now + BASE <= row.next_send_at <= now + 1.5 * BASE
    assert relay(worker).send_due(now=now) == 0
    assert len(sent()) == 3


def test_what_is_sent_and_not_done_is_sent_again_after_a_growing_pause(
    worker: Worker, office: Office, sent: Any
) -> None:
    operation_id = accept(office)
    now = utc_now()
    for sends in range(1, 7):
        assert relay(worker).send_due(now=now) == 1
        pause = office.operation(operation_id).next_send_at - now
        least = min(BASE * 2 ** (sends - 1), timedelta(minutes=10))
        assert least <= pause <= 1.5 * least
        assert relay(worker).send_due(now=now + pause - timedelta(microseconds=1)) == 0
        now += pause
    assert len(sent()) == 6


def test_what_has_an_answer_or_is_dead_or_is_not_due_is_not_sent(worker: Worker, office: Office, sent: Any) -> None:
    done, refused, dead, later = (accept(office) for _ in range(4))
    office.execute(done)
    with office.database.transaction() as tx:
        operations.fail(tx, refused, NotFound("no"), now=utc_now())
        operations.postpone(tx, dead, attempts=5, max_attempts=5, error="broken", base=BASE, now=utc_now())
    office.change("UPDATE operations SET next_send_at = now() + interval '1 hour' WHERE id = %(id)s", id=later)
    assert relay(worker).send_due(now=utc_now()) == 0
    assert sent() == []


def test_two_relays_send_each_operation_once(worker: Worker, office: Office, sent: Any) -> None:
    accepted = {str(accept(office)) for _ in range(5)}
    now = utc_now()
    with office.database.transaction() as tx:
        claimed = operations.claim_to_send(tx, now=now, base=BASE, limit=3)
        assert len(claimed) == 3
        assert relay(worker).send_due(now=now) == 2
    assert {operation_id for _, operation_id in sent()} == accepted - {str(operation_id) for operation_id, _ in claimed}


def test_above_its_depth_nothing_is_added_to_the_queue(worker: Worker, office: Office, sent: Any) -> None:
    accept(office)
    assert relay(worker).send_due(now=utc_now()) == 1
    operation_id = accept(office)
    assert relay(worker, relay_queue_limit=1).send_due(now=utc_now()) == 0
    assert office.operation(operation_id).sends == 0
    assert relay(worker, relay_queue_limit=2).send_due(now=utc_now()) == 1


def test_without_a_broker_nothing_is_claimed(worker: Worker, office: Office) -> None:
    operation_id = accept(office)
    before = office.operation(operation_id)
    assert relay(worker, broker_url="redis://127.0.0.1:1/0").send_due(now=utc_now()) == 0
    assert office.operation(operation_id) == before


def test_what_the_broker_did_not_take_is_due_again_soon(
    worker: Worker, office: Office, sent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation_id = accept(office)
    now = utc_now()

    def lost(*_: Any) -> None:
        raise ConnectionError("the broker went away")

    with monkeypatch.context() as patch:
        patch.setattr(import_module("workers.relay"), "send_all", lost)
        assert relay(worker).send_due(now=now) == 0
    row = office.operation(operation_id)
    assert (row.status, row.next_send_at) == ("pending", now + timedelta(seconds=5))
    assert relay(worker).send_due(now=now + timedelta(seconds=5)) == 1
    assert sent() == [("billing.sign_up", str(operation_id))]


def test_a_message_carries_the_operations_id_and_nothing_else(worker: Worker, office: Office, broker_url: str) -> None:
    operation_id = accept(office)
    relay(worker).send_due(now=utc_now())
    with redis.Redis.from_url(broker_url) as client:
        (raw,) = client.lrange(Queue.INTERACTIVE, 0, -1)
    arguments, named, _ = body_of(json.loads(raw))
    assert (arguments, named) == ([str(operation_id)], {})


@contextmanager
def running(runs: Any) -> Iterator[None]:
    """A relay that runs meanwhile."""
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        ends = pool.submit(runs.run, stop)
        try:
            yield
        finally:
            stop.set()
            ends.result(timeout=10)
    runs.close()


def heartbeat(office: Office) -> tuple[int, bool]:
    """What the relay has noted, as soon as it has; how many it sent, and whether its instants are in order."""
    deadline = monotonic() + 10
    while not (
        noted := office.rows("SELECT items, finished_at >= started_at AS in_order FROM job_runs WHERE job = 'relay'")
    ):
        assert monotonic() < deadline, "no heartbeat"
    (row,) = noted
    return row.items, row.in_order


def test_a_relay_that_runs_notes_that_it_does(worker: Worker, office: Office, sent: Any) -> None:
    accept(office)
    with running(relay(worker)):
        assert heartbeat(office) == (1, True)
    assert len(sent()) == 1


def test_a_relay_without_a_broker_still_notes_that_it_runs(worker: Worker, office: Office) -> None:
    with running(relay(worker, broker_url="redis://127.0.0.1:1/0")):
        assert heartbeat(office) == (0, True)
