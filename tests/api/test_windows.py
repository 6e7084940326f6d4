"""Moving windows: exact but for a stated slack, together or not at all, in Redis and in memory, never without limit."""

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import redis

from api.windows import (
    BREAKER_SECONDS,
    WINDOW_SECONDS,
    Budget,
    OwnWindows,
    SharedWindows,
    Standing,
    Telling,
    Verdict,
    Window,
    Windows,
)
from shared.config import Settings
from shared.embedded import Valkey

T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
AT = T0.timestamp()
NOWHERE = "redis://127.0.0.1:1/0"


class AskedOneByOne(SharedWindows):
    """Shared windows of which nothing is taken ahead."""

    def take(self, budgets: Sequence[Budget], *, now: float) -> tuple[bool, list[Standing]]:
        taken, counts = self.ask([Telling(Window(budget), 0, now) for budget in budgets], wanted=1, now=now)
        found = zip(budgets, counts, strict=True)
        return taken, [Standing(max(budget.limit - count, 0), leaves) for budget, (count, leaves) in found]


def budget(limit: int, key: str = "ada", name: str = "account") -> Budget:
    return Budget(name=name, key=key, limit=limit)


def windows(url: str, *, timeout_ms: int = 5_000) -> Windows:
    return Windows(Settings(throttle_url=url, throttle_timeout_ms=timeout_ms))


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


@pytest.fixture
def shared(broker_url: str) -> Iterator[AskedOneByOne]:
    windows = AskedOneByOne(broker_url, timeout_seconds=5)
    yield windows
    windows.storage.close()


@pytest.fixture(params=["redis", "memory"])
def kept(request: pytest.FixtureRequest) -> Any:
    """Windows of either sort."""
    return OwnWindows() if request.param == "memory" else request.getfixturevalue("shared")


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server of this test's own, to be ended, frozen and started again."""
    server = Valkey(tmp_path)
    server.start()
    server.wait()
    yield server
    if server.running():
        server.stop()


@pytest.fixture
def silent() -> Iterator[Any]:
    """A server that takes connections and never says a word."""
    with socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        server.setblocking(False)
        yield server


def kill(server: Valkey) -> None:
    """End it at once, and return when it is gone."""
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while server.running():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- a window -----------------------------------------------------------------------------------


def test_as_many_as_the_limit_are_taken_and_not_one_more(kept: Any) -> None:
    took = [kept.take([budget(3)], now=AT + n)[0] for n in range(5)]
    assert took == [True, True, True, False, False]


def test_the_window_moves(kept: Any) -> None:
    for at, expected in [
        (0, True),
        (10, True),
        (10, False),
        (60, False),
        (60.001, True),
        (60.002, False),
        (70.1, True),
    ]:
        assert kept.take([budget(2)], now=AT + at)[0] == expected, at


def test_what_was_refused_does_not_count(kept: Any) -> None:
    kept.take([budget(1)], now=AT)
    assert not any(kept.take([budget(1)], now=AT + n)[0] for n in range(1, 60))
    assert kept.take([budget(1)], now=AT + 60.5)[0]


def test_a_window_says_what_is_left_and_when_there_is_room(kept: Any) -> None:
    for n, left in ((0, 2), (1, 1), (2, 0), (3, 0)):
        _, (standing,) = kept.take([budget(3)], now=AT + n)
        assert (standing.remaining, standing.next_leaves_from) == (left, AT)
    taken, (standing,) = kept.take([budget(3)], now=AT + 61.5)
    assert (taken, standing.remaining, standing.next_leaves_from) == (True, 1, AT + 2)


def test_two_limits_take_together_or_not_at_all(kept: Any) -> None:
    key, account = budget(1, "key", "api_key"), budget(3)
    assert kept.take([key, account], now=AT)[0]
    for n in range(10):
        assert not kept.take([key, account], now=AT + 1 + n)[0]
    _, (standing,) = kept.take([account], now=AT + 12)
    assert standing.remaining == 1, "what a key is refused costs its account nothing"
    assert kept.take([account], now=AT + 13)[0]
    taken, (of_key, of_account) = kept.take([budget(1, "other"), account], now=AT + 14)
    assert (taken, of_key.remaining, of_account.remaining) == (False, 1, 0)


def test_a_limit_that_was_lowered_binds_at_once(kept: Any) -> None:
    for n in range(10):
        kept.take([budget(10)], now=AT + n)
    taken, (standing,) = kept.take([budget(4)], now=AT + 10)
    assert (taken, standing.remaining, standing.next_leaves_from) == (False, 0, AT + 6)
    assert not kept.take([budget(4)], now=AT + 66)[0]
    assert kept.take([budget(4)], now=AT + 66.5)[0]


@pytest.mark.parametrize("seed", range(20))
def test_memory_redis_and_the_library_agree(shared: AskedOneByOne, seed: int) -> None:
    choose = random.Random(seed)
    own, limit, now = OwnWindows(), choose.choice([1, 2, 5, 17]), AT
    for _ in range(200):
        now += choose.choice([0.0, 0.001, 1.0, 7.5, 30.0, 59.999, 60.0, 61.0]) * choose.random()
        expected = shared.lua_acquire_moving_window(["oracle"], [now, limit, WINDOW_SECONDS, 1]) == 1
        mine = shared.take([budget(limit)], now=now)
        assert mine[0] == expected
        assert own.take([budget(limit)], now=now) == mine


def test_no_minute_sees_more_than_the_limit(kept: Any) -> None:
    choose, taken, now = random.Random(7), [], AT
    for _ in range(2_000):
        now += choose.random() / 2
        if kept.take([budget(25)], now=now)[0]:
            taken.append(now)
    assert len(taken) > 200
    for number, first in enumerate(taken):
        assert sum(first <= at <= first + WINDOW_SECONDS for at in taken[number:]) <= 25


def test_a_request_is_one_round_trip_and_leaves_nothing_for_longer_than_a_minute(
    valkey: Valkey,
) -> None:
    process = windows(valkey.url)
    process.take([budget(9), budget(9, "key")], now=T0)
    with redis.Redis.from_url(valkey.url) as client:
        client.config_resetstat()
        process.take([budget(9), budget(9, "key")], now=T0)
        asked = {name: row["calls"] for name, row in client.info("commandstats").items()}
        assert asked["cmdstat_evalsha"] == 1
        assert not asked.keys() & {"cmdstat_eval", "cmdstat_script|load", "cmdstat_script|exists", "cmdstat_multi"}
        names = client.keys("throttle:*")
        assert isinstance(names, list)
        assert len(names) == 2
        assert all(0 < int(client.ttl(name)) <= WINDOW_SECONDS for name in names)


def test_memory_forgets_whoever_has_gone() -> None:
    own = OwnWindows()
    for n in range(1_000):
        own.take([budget(1, f"address-{n}")], now=AT)
    own.take([budget(1)], now=AT + WINDOW_SECONDS + 1)
    assert len(own._windows) == 1


# --- several processes --------------------------------------------------------------------------


def test_processes_share_a_limit_however_they_race(broker_url: str) -> None:
    processes = [windows(broker_url) for _ in range(2)]
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda n: processes[n % 2].take([budget(25)], now=T0), range(100)))
    assert sum(verdict.taken for verdict in verdicts) == 25
    assert all(verdict.shared for verdict in verdicts)


# --- ahead of asking ----------------------------------------------------------------------------


def slack(limit: int, slack: int, key: str = "ada") -> Budget:
    return Budget(name="account", key=key, limit=limit, slack=slack)


def calls(client: redis.Redis) -> int:
    """How often a script has run."""
    stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


def test_far_from_the_limit_a_process_asks_nobody_and_tells_of_all_at_once(valkey: Valkey) -> None:
    process = windows(valkey.url)
    process.take([slack(600, 12)], now=T0)
    process.tell()
    with redis.Redis.from_url(valkey.url) as client:
        client.config_resetstat()
        verdicts = [
            process.take([slack(600, 12, key), slack(60, 1, f"{key} too")], now=T0) for key in ("ada", "ben", "eve")
        ]
        assert calls(client) == 0
        assert [verdict.remaining for verdict in verdicts] == [59, 59, 59]
        assert all(verdict.taken and verdict.shared for verdict in verdicts)
        process.tell()
        assert calls(client) == 1
        assert [client.llen(f"throttle:{key}") for key in ("ada", "ada too", "ben", "ben too")] == [2, 1, 1, 1]
        assert 0 < int(client.ttl("throttle:ben")) <= WINDOW_SECONDS


def test_what_was_taken_ahead_is_told_in_a_moment(broker_url: str) -> None:
    one, other = windows(broker_url), windows(broker_url)
    for _ in range(5):
        one.take([slack(600, 12)], now=T0)
    with redis.Redis.from_url(broker_url) as client:
        deadline = time.monotonic() + 10
        while client.llen("throttle:ada") < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert other.take([budget(600)], now=T0).remaining == 594


def test_a_process_is_ahead_by_its_slack_and_no_more(broker_url: str) -> None:
    process = windows(broker_url)
    process._will_tell = True  # nobody tells
    with redis.Redis.from_url(broker_url) as client:
        for n in range(1, 13):
            process.take([slack(600, 12)], now=T0)
            assert (n, client.llen("throttle:ada")) == (n, 0)
        process.take([slack(600, 12)], now=T0)
        assert client.llen("throttle:ada") == 13, "told along with the question"


def test_two_limits_are_taken_ahead_together_or_not_at_all(broker_url: str) -> None:
    process = windows(broker_url)
    process._will_tell = True  # nobody tells
    process.take([slack(600, 12, "key")], now=T0)
    assert process.take([slack(600, 12, "key"), budget(3)], now=T0).remaining == 2
    with redis.Redis.from_url(broker_url) as client:
        assert [client.llen(f"throttle:{key}") for key in ("key", "ada")] == [2, 1]


@pytest.mark.parametrize("limit", [50, 60, 120, 600])
def test_a_process_by_itself_keeps_a_limit_exactly_and_says_what_is_left(broker_url: str, limit: int) -> None:
    process = windows(broker_url)
    verdicts = [process.take([slack(limit, limit // 50)], now=after(n / 100)) for n in range(limit + 20)]
    assert took(verdicts) == [True] * limit + [False] * 20
    assert [verdict.remaining for verdict in verdicts] == [*range(limit - 1, -1, -1), *[0] * 20]
    assert verdicts[-1].reset_seconds == 60 - int((limit + 19) / 100)


def test_who_has_heard_nothing_takes_its_slack_beyond_the_limit_and_is_refused(broker_url: str) -> None:
    one, late = windows(broker_url), windows(broker_url)
    late.take([slack(100, 2)], now=T0)
    late.tell()
    took_all = sum(one.take([slack(100, 2)], now=after(1)).taken for _ in range(200))
    one.tell()
    assert took_all == 99
    assert took([late.take([slack(100, 2)], now=after(2)) for _ in range(5)]) == [True, True, False, False, False]


@pytest.mark.parametrize("seed", range(8))
def test_no_minute_sees_more_than_the_limit_and_the_slack_of_every_process(broker_url: str, seed: int) -> None:
    choose, taken, now = random.Random(seed), [], 0.0
    processes = [windows(broker_url) for _ in range(3)]
    for process in processes:
        process._will_tell = True  # who tells when is up to the dice
    for _ in range(2_500):
        now += choose.random() / choose.choice([4, 40])
        process = choose.choice(processes)
        if choose.random() < 0.05:
            process.tell()
            process._will_tell = True
        if process.take([slack(100, 2)], now=after(now)).taken:
            taken.append(now)
    assert len(taken) > 200
    first = 0
    for number, at in enumerate(taken):
        while taken[first] <= at - WINDOW_SECONDS:
            first += 1
        assert number - first + 1 <= 100 + 3 * 2


def test_processes_that_hear_of_each_other_keep_the_limit_exactly(broker_url: str) -> None:
    processes = [windows(broker_url) for _ in range(3)]
    verdicts = []
    for n in range(700):
        verdicts.append(processes[n % 3].take([slack(600, 12)], now=T0))
        if n % 30 == 29:
            for process in processes:
                process.tell()
    assert sum(took(verdicts)) == 600


def test_processes_that_race_stay_within_the_limit_and_their_slack(broker_url: str) -> None:
    processes = [windows(broker_url) for _ in range(3)]
    with ThreadPoolExecutor(12) as threads:
        verdicts = list(threads.map(lambda n: processes[n % 3].take([slack(500, 10)], now=T0), range(1_500)))
    assert 500 <= sum(took(verdicts)) <= 500 + 3 * 10


def test_what_could_not_be_told_is_lost_and_the_process_goes_on_alone(valkey: Valkey) -> None:
    process = windows(valkey.url)
    assert process.take([slack(600, 12)], now=T0).shared
    kill(valkey)
    assert process.take([slack(600, 12)], now=T0).shared, "nobody has noticed"
    process.tell()
    verdict = process.take([slack(600, 12)], now=T0)
    assert (verdict.taken, verdict.shared, verdict.remaining) == (True, False, 599)
    assert took(take_all(process, 3, now=after(1), key="eve")) == [True, True, True, False], "exactly"


def test_a_process_forgets_windows_that_are_left_alone(broker_url: str) -> None:
    process = windows(broker_url)
    for n in range(100):
        process.take([slack(600, 12, f"account-{n}")], now=T0)
    process.tell()
    process.take([slack(600, 12)], now=after(WINDOW_SECONDS + 1))
    assert len(process._ahead._windows) == 1


# --- without Redis ------------------------------------------------------------------------------


def take_all(windows: Windows, limit: int, *, now: datetime, key: str = "ada") -> list[Verdict]:
    return [windows.take([budget(limit, key)], now=now) for _ in range(limit + 1)]


def took(verdicts: list[Verdict]) -> list[bool]:
    return [verdict.taken for verdict in verdicts]


@pytest.mark.parametrize("url", [NOWHERE, "amqp://guest@host//"])
def test_without_redis_a_process_keeps_the_limit_by_itself(url: str) -> None:
    named = {"throttle_url": url} if url.startswith("redis") else {"broker_url": url}
    verdicts = take_all(Windows(Settings.model_validate(named)), 3, now=T0)
    assert took(verdicts) == [True, True, True, False]
    assert not any(verdict.shared for verdict in verdicts)


def test_redis_that_is_killed_and_comes_back(valkey: Valkey) -> None:
    process = windows(valkey.url)
    assert process.take([budget(2)], now=T0).shared
    kill(valkey)
    verdicts = take_all(process, 2, now=after(1))
    assert took(verdicts) == [True, True, False], "still limited"
    assert not any(verdict.shared for verdict in verdicts)
    valkey.start()
    valkey.wait()
    assert not process.take([budget(2)], now=after(2)).shared, "nobody asks for a while"
    assert process.take([budget(2)], now=after(2 + BREAKER_SECONDS)).shared


def test_redis_that_freezes_costs_one_time_out(valkey: Valkey) -> None:
    process = windows(valkey.url, timeout_ms=500)
    assert process.take([budget(3)], now=T0).shared
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        verdicts = take_all(process, 3, now=after(1))
        assert 0.5 <= time.monotonic() - began < 1
    finally:
        os.kill(valkey.pid, signal.SIGCONT)
    assert took(verdicts) == [True, True, True, False]
    assert process.take([budget(3)], now=after(1 + BREAKER_SECONDS)).shared


def connections(silent: Any) -> int:
    """How many were made since the last look."""
    made = 0
    while True:
        try:
            silent.accept()[0].close()
        except BlockingIOError:
            return made
        made += 1


def test_redis_that_never_answers_is_asked_by_one_request_at_a_time(silent: Any) -> None:
    process = windows(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout_ms=200)
    process.take([budget(9)], now=T0)
    assert connections(silent) == 1
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: process.take([budget(9)], now=after(1)), range(100)))
        assert connections(silent) == 0
        began = time.monotonic()
        list(threads.map(lambda _: process.take([budget(9)], now=after(BREAKER_SECONDS)), range(100)))
    assert time.monotonic() - began < 1
    assert connections(silent) == 1


def test_a_clock_that_is_set_back_does_not_keep_redis_from_being_asked(valkey: Valkey) -> None:
    process = windows(valkey.url)
    kill(valkey)
    process.take([budget(2)], now=after(86_400))
    valkey.start()
    valkey.wait()
    assert process.take([budget(2)], now=T0).shared


def test_what_redis_refuses_is_no_outage(broker_url: str) -> None:
    with redis.Redis.from_url(broker_url) as client:
        client.set("throttle:ada", "no list")
    verdict = windows(broker_url).take([budget(1)], now=T0)
    assert (verdict.taken, verdict.shared) == (True, False)


def test_a_socket_is_named_as_celery_names_it(tmp_path: Path) -> None:
    process = Windows(Settings(broker_url=f"redis+socket://{tmp_path}/redis.sock?virtual_host=3"))
    assert process._shared is not None
    named = process._shared.storage.get_connection_kwargs()
    assert (named["path"], named["db"]) == (f"{tmp_path}/redis.sock", 3)
