"""Requests counted in moving windows: in Redis for all processes, or by one process alone while there is no Redis.

A window holds the instants of the requests that it took within the last minute. So a limit is kept exactly, wherever a
minute begins, and all windows together hold no more than the requests of a minute. Several windows take a request
together or not at all.
"""

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from math import ceil
from threading import Lock
from typing import Any, Final

import structlog
from limits.storage import RedisStorage
from msgspec import Struct
from redis import RedisError
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from shared.config import Settings

WINDOW_SECONDS: Final = 60
BREAKER_SECONDS: Final = 5.0
ALONE_SECONDS: Final = 15.0
KEY_PREFIX: Final = "throttle"

log = structlog.get_logger(__name__)

# Lists as the library keeps them, the newest request first. In: now, the window's length, and the limit of each list.
# Out: whether all of them took the request; then of each how many more it would take, and the instant of the request
# that makes room for one when it leaves.
_TAKE: Final = b"""
local now, length = ARGV[1], tonumber(ARGV[2])
local since = now - length
local counts, room = {}, true
for i, key in ipairs(KEYS) do
    local held = redis.call('LLEN', key)
    local count = held
    if held > 0 and tonumber(redis.call('LINDEX', key, -1)) < since then
        local low, high = 0, held - 1
        while low < high do
            local middle = math.floor((low + high) / 2)
            if tonumber(redis.call('LINDEX', key, middle)) < since then high = middle else low = middle + 1 end
        end
        count = low
        redis.call('LTRIM', key, 0, count - held - 1)
    end
    counts[i] = count
    room = room and count < tonumber(ARGV[2 + i])
end
local answer = {room and 1 or 0}
for i, key in ipairs(KEYS) do
    local limit = tonumber(ARGV[2 + i])
    if room then
        redis.call('LPUSH', key, now)
        redis.call('EXPIRE', key, length)
        counts[i] = counts[i] + 1
    end
    table.insert(answer, math.max(limit - counts[i], 0))
    table.insert(answer, redis.call('LINDEX', key, math.min(counts[i], limit) - 1) or now)
end
return answer
"""


class Budget(Struct, frozen=True, kw_only=True):
    """What somebody may do in a minute. name: of the rule, as people read it. key: of whoever it is about."""

    name: str
    key: str
    limit: int


class Verdict(Struct, frozen=True, kw_only=True):
    """What came of a request. budget: of those it counted for, the one that has least left.

    reset_seconds: until there is room for one more than now. shared: as all processes have counted.
    """

    budget: Budget
    taken: bool
    remaining: int
    reset_seconds: int
    shared: bool


class Standing(Struct, frozen=True):
    """How a window stands. next_leaves_from: when the request was made whose leaving makes room for one."""

    remaining: int
    next_leaves_from: float


class SharedWindows(RedisStorage):
    """The library's Redis storage, whose windows take a request together, and say how they stand, in one round trip."""

    _take: Script

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        options: dict[str, Any] = {  # nothing is tried again: whoever asks has a window of its own to go on with
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "retry": Retry(NoBackoff(), 0),
        }
        super().__init__(url, key_prefix=KEY_PREFIX, **options)

    def initialize_storage(self, _uri: str) -> None:
        """Make the scripts known; nothing is connected to."""
        super().initialize_storage(_uri)
        self._take = self.get_connection().register_script(_TAKE)

    def take(self, budgets: Sequence[Budget], *, now: float) -> tuple[bool, list[Standing]]:
        """Count a request, unless a budget is used up; raises RedisError."""
        keys = [self.prefixed_key(budget.key) for budget in budgets]
        taken, *found = self._take(keys, [now, WINDOW_SECONDS, *(budget.limit for budget in budgets)])
        return bool(taken), [Standing(int(n), float(at)) for n, at in zip(found[::2], found[1::2], strict=True)]


class OwnWindows:
    """The same in the memory of this process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._windows: dict[str, deque[float]] = {}
        self._swept_at = 0.0

    def take(self, budgets: Sequence[Budget], *, now: float) -> tuple[bool, list[Standing]]:
        """Count a request, unless a budget is used up."""
        with self._lock:
            self._sweep(now)
            windows = [self._windows.setdefault(budget.key, deque()) for budget in budgets]
            for window in windows:
                while window and window[0] < now - WINDOW_SECONDS:
                    window.popleft()
            taken = all(len(window) < budget.limit for window, budget in zip(windows, budgets, strict=True))
            if taken:
                for window in windows:
                    window.append(now)
            return taken, [_standing(window, budget, now) for window, budget in zip(windows, budgets, strict=True)]

    def _sweep(self, now: float) -> None:
        """Forget, once a minute, whoever has not been here for one."""
        if abs(now - self._swept_at) < WINDOW_SECONDS:
            return
        since = now - WINDOW_SECONDS
        self._windows = {key: window for key, window in self._windows.items() if window and window[-1] >= since}
        self._swept_at = now


def _standing(window: deque[float], budget: Budget, now: float) -> Standing:
    used = min(len(window), budget.limit)
    return Standing(max(budget.limit - len(window), 0), window[-used] if used else now)


class Windows:
    """Counts in Redis, and goes on alone while that fails or keeps silent.

    After a failure nobody asks Redis for BREAKER_SECONDS, and then one request does. While it is alone a process
    applies each limit as it stands, so that no customer is refused for an outage of ours; all processes together let
    through as many times the limit as there are of them.
    """

    def __init__(self, settings: Settings) -> None:
        url = _redis_url(settings)
        seconds = settings.throttle_timeout_ms / 1_000
        self._shared = None if url is None else SharedWindows(url, timeout_seconds=seconds)
        self._own = OwnWindows()
        self._lock = Lock()
        self._failed_at: float | None = None
        if url is None:
            log.warning("throttle_without_redis", hint="BROKER_URL names no Redis: set THROTTLE_URL to one")

    def alone(self, *, now: datetime) -> bool:
        """Whether this process counts by itself although there is a Redis, because that did not answer a moment ago.

        Whoever does not ask does not learn that it answers again, so this is forgotten when nobody has asked for long.
        """
        failed_at = self._failed_at
        return failed_at is not None and abs(now.timestamp() - failed_at) < ALONE_SECONDS

    def take(self, budgets: Sequence[Budget], *, now: datetime) -> Verdict:
        """Count a request for all of these budgets, or for none when one of them is used up. Never raises."""
        at = now.timestamp()
        shared = self._ask_redis(budgets, at)
        taken, standings = shared or self._own.take(budgets, now=at)
        budget, standing = min(
            zip(budgets, standings, strict=True), key=lambda pair: (pair[1].remaining, -pair[1].next_leaves_from)
        )
        return Verdict(
            budget=budget,
            taken=taken,
            remaining=standing.remaining,
            reset_seconds=max(1, ceil(standing.next_leaves_from + WINDOW_SECONDS - at)),
            shared=shared is not None,
        )

    def _ask_redis(self, budgets: Sequence[Budget], at: float) -> tuple[bool, list[Standing]] | None:
        if self._shared is None or not self._may_ask(at):
            return None
        try:
            answer = self._shared.take(budgets, now=at)
        except RedisError as error:
            with self._lock:
                known, self._failed_at = self._failed_at is not None, at
            if not known:
                log.warning("throttle_without_redis", error=repr(error))
            return None
        if self._failed_at is not None:
            with self._lock:
                self._failed_at = None
                self._own = OwnWindows()
            log.info("throttle_with_redis_again")
        return answer

    def _may_ask(self, at: float) -> bool:
        with self._lock:
            if self._failed_at is None:
                return True
            if abs(at - self._failed_at) < BREAKER_SECONDS:
                return False
            self._failed_at = at  # what this request finds is what the others will hear
            return True


def _redis_url(settings: Settings) -> str | None:
    """Where to count: what THROTTLE_URL names, or the broker if that is a Redis."""
    url = settings.throttle_url or settings.broker_url
    if url is None or url.startswith(("amqp://", "amqps://")):
        return None
    return url.replace("redis+socket://", "unix://").replace("virtual_host=", "db=")  # as Celery writes a socket
