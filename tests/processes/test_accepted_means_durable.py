"""The whole system as real processes, with faults: what was answered 202 happens, once."""

import signal

import httpx
import pytest

from shared.clock import monotonic
from tests.processes.conftest import System
from workers.demo import eventually

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("processes")]


def test_a_signup_with_the_broker_dead_is_accepted_and_done_when_it_is_back(system: System) -> None:
    before = system.accounts()
    system.kill_broker()

    started = monotonic()
    answers = [system.sign_up() for _ in range(3)]
    waited_seconds = monotonic() - started

    assert [answer.status_code for answer in answers] == [202, 202, 202]
    assert waited_seconds < 5, "a dead broker must not make requests wait"
    assert system.accounts() == before

    system.start_broker()
    system.eventually_has_accounts(before + 3)


def test_a_backlog_of_periodic_work_delays_no_signup(system: System) -> None:
    before = system.accounts()
    system.stack["worker-periodic"].send(signal.SIGSTOP)
    try:
        assert system.sign_up().status_code == 202
        system.eventually_has_accounts(before + 1)
    finally:
        system.stack["worker-periodic"].send(signal.SIGCONT)


def test_without_beat_the_relay_still_sends_and_without_the_relay_beat_does(system: System) -> None:
    before = system.accounts()
    for name in ("beat", "relay"):
        process = system.stack[name]
        process.kill()
        system.stack["worker-interactive"].send(signal.SIGSTOP)
        assert system.sign_up().status_code == 202
        system.forget_all_messages()
        system.stack["worker-interactive"].send(signal.SIGCONT)
        before += 1
        system.eventually_has_accounts(before)
        process.start()


def test_the_api_is_ready_only_while_its_database_and_broker_are(system: System) -> None:
    ready = f"{system.stack.url}/readyz"
    assert httpx.get(ready).status_code == 200
    system.kill_broker()
    answer = httpx.get(ready, timeout=10)
    assert answer.status_code == 503
    assert answer.headers["Content-Type"] == "application/problem+json"
    system.start_broker()
    eventually(lambda: True if httpx.get(ready, timeout=10).status_code == 200 else None, "the API to be ready again")
