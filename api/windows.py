"""Requests counted in moving windows: in Redis for all processes, or by one process alone while there is no Redis.

A window holds the instants of the requests that it took within the last minute. So a limit is kept exactly, wherever a
minute begins, and all windows together hold no more than the requests of a minute. Several windows take a request
together or not at all.

Far from a limit that leaves some slack, a process takes requests ahead of asking, and tells Redis of many at once. So
all processes together may take as much beyond the limit as each of them has slack, and a process by itself nothing.
"""

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from math import ceil
from threading import Lock, Timer
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
TELL_SECONDS: Final = 0.1  # what was taken ahead is told after so long
ASK_SHARE: Final = 10  # of a limit the last tenth is asked for, request by request
KEY_PREFIX: Final = "throttle"

log = structlog.get_logger(__name__)

# Lists as the library keeps them, the newest request first. In: now, the window's length, how many requests to take
# (one or none); then of each list its limit, how many requests were taken of it ahead, and when the last of them was.
# Out: whether all of them took the request; then of each how many it holds, and the instant of the request that makes
# room for one when it leaves.
_TAKE: Final = b"""
local now, length, wanted = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local since = now - length
local counts, room = {}, wanted == 1
for i, key in ipairs(KEYS) do
    local limit, ahead, at = tonumber(ARGV[1 + 3 * i]), tonumber(ARGV[2 + 3 * i]), ARGV[3 + 3 * i]
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
    for _ = 1, ahead do
        redis.call('LPUSH', key, at)
    end
    if ahead > 0 then redis.call('EXPIRE', key, length) end
    counts[i] = count + ahead
    room = room and counts[i] < limit
end
local answer = {room and 1 or 0}
for i, key in ipairs(KEYS) do
    if room then
        redis.call('LPUSH', key, now)
        redis.call('EXPIRE', key, length)
        counts[i] = counts[i] + 1
    end
    table.insert(answer, counts[i])
    table.insert(answer, redis.call('LINDEX', key, math.min(counts[i], tonumber(ARGV[1 + 3 * i])) - 1) or now)
end
return answer
"""


class Budget(Struct, frozen=True, kw_only=True):
    """What somebody may do in a minute. name: of the rule, as people read it. key: of whoever it is about.

    slack: how many requests a process may have taken that it has not told of yet.
    """

    name: str
    key: str
    limit: int
    slack: int = 0


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


class Window(Struct):
    """What a process knows of a shared window: how many requests it held when Redis was asked, and what came on top.

    ahead: taken here, and not known to Redis. told: those of them of which Redis is being told. last_at: when this
    process last had to do with it.
    """

    budget: Budget
    count: int = 0
    next_leaves_from: float | None = None
    ahead: int = 0
    told: int = 0
    last_at: float = 0.0

    @property
    def is_far_from_its_limit(self) -> bool:
        """Whether a request may be taken without asking."""
        budget = self.budget
        near = budget.limit - budget.limit // ASK_SHARE
        return self.ahead < budget.slack and self.count + self.ahead < near

    def standing(self, now: float) -> Standing:
        """As far as this process knows."""
        leaves = now if self.next_leaves_from is None else self.next_leaves_from
        return Standing(max(self.budget.limit - self.count - self.ahead, 0), leaves)


class Telling(Struct, frozen=True):
    """What Redis is told of a window: so many requests that were taken ahead, the last of them at this instant."""

    window: Window
    ahead: int
    last_at: float


class Ahead:
    """The windows that this process knows, and the requests that it has taken of them ahead of asking."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._windows: dict[str, Window] = {}
        self._swept_at = 0.0

    def take(self, budgets: Sequence[Budget], *, now: float) -> list[Standing] | None:
        """Count a request if all of these windows are far from their limits; None: ask."""
        with self._lock:
            self._sweep(now)
            windows = [self._window(budget) for budget in budgets]
            if not all(window.is_far_from_its_limit for window in windows):
                return None
            for window in windows:
                window.ahead += 1
                window.last_at = now
            return [window.standing(now) for window in windows]

    def tell(self, budgets: Sequence[Budget], *, now: float) -> list[Telling]:
        """What is to be told of these windows along with a question about them. `heard` has to follow."""
        with self._lock:
            windows = [self._window(budget) for budget in budgets]
            for window in windows:
                window.last_at = now
            return [_telling(window) for window in windows]

    def tell_all(self) -> list[Telling]:
        """What is to be told of all. `heard` has to follow."""
        with self._lock:
            return [_telling(window) for window in self._windows.values() if window.ahead > window.told]

    def heard(self, tellings: Sequence[Telling], counts: Sequence[tuple[int, float]]) -> None:
        """Redis knows of it now, and has said of each window how many requests it holds, and which leaves next."""
        with self._lock:
            for telling, (count, next_leaves_from) in zip(tellings, counts, strict=True):
                window = telling.window
                window.ahead -= telling.ahead
                window.told -= telling.ahead
                window.count, window.next_leaves_from = count, next_leaves_from

    def _window(self, budget: Budget) -> Window:
        window = self._windows.get(budget.key)
        if window is None:
            window = self._windows[budget.key] = Window(budget)
        window.budget = budget
        return window

    def _sweep(self, now: float) -> None:
        """Forget, once a minute, the windows that have been left alone for one."""
        if abs(now - self._swept_at) < WINDOW_SECONDS:
            return
        since = now - WINDOW_SECONDS
        self._windows = {
            key: window for key, window in self._windows.items() if window.ahead or window.last_at >= since
        }
        self._swept_at = now


def _telling(window: Window) -> Telling:
    telling = Telling(window, window.ahead - window.told, window.last_at)
    window.told = window.ahead
    return telling


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

    def ask(self, tellings: Sequence[Telling], *, wanted: int, now: float) -> tuple[bool, list[tuple[int, float]]]:
        """Tell of what was taken ahead, and take one request more or none; raises RedisError.

        Whether that was taken, and of each window how many requests it holds, and from when the one is that makes room
        for one when it leaves.
        """
        keys = [self.prefixed_key(telling.window.budget.key) for telling in tellings]
        of_each = ((telling.window.budget.limit, telling.ahead, telling.last_at) for telling in tellings)
        taken, *found = self._take(keys, [now, WINDOW_SECONDS, wanted, *chain.from_iterable(of_each)])
        return bool(taken), [(int(count), float(at)) for count, at in zip(found[::2], found[1::2], strict=True)]


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
        self._ahead = Ahead()
        self._own = OwnWindows()
        self._lock = Lock()
        self._failed_at: float | None = None
        self._will_tell = False
        self._telling = Lock()
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
        shared = self._take_ahead(budgets, at) or self._ask_redis(budgets, at)
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

    def tell(self) -> None:
        """Tell Redis now what was taken ahead. Never raises."""
        with self._telling:
            self._will_tell = False
            tellings = self._ahead.tell_all()
            if tellings and self._shared is not None:
                self._ask(self._shared, tellings, wanted=0, at=max(telling.last_at for telling in tellings))

    def _take_ahead(self, budgets: Sequence[Budget], at: float) -> tuple[bool, list[Standing]] | None:
        if self._shared is None or self._failed_at is not None:
            return None
        standings = self._ahead.take(budgets, now=at)
        if standings is None:
            return None
        if not self._will_tell:
            self._will_tell = True
            teller = Timer(TELL_SECONDS, self.tell)
            teller.daemon = True
            teller.start()
        return True, standings

    def _ask_redis(self, budgets: Sequence[Budget], at: float) -> tuple[bool, list[Standing]] | None:
        if self._shared is None or not self._may_ask(at):
            return None
        tellings = self._ahead.tell(budgets, now=at)
        answer = self._ask(self._shared, tellings, wanted=1, at=at)
        if answer is None:
            return None
        taken, counts = answer
        found = zip(budgets, counts, strict=True)
        return taken, [Standing(max(budget.limit - count, 0), leaves) for budget, (count, leaves) in found]

    def _ask(
        self, shared: SharedWindows, tellings: Sequence[Telling], *, wanted: int, at: float
    ) -> tuple[bool, list[tuple[int, float]]] | None:
        try:
            taken, counts = shared.ask(tellings, wanted=wanted, now=at)
        except RedisError as error:
            with self._lock:
                known, self._failed_at = self._failed_at is not None, at
                self._ahead = Ahead()
            if not known:
                log.warning("throttle_without_redis", error=repr(error))
            return None
        self._ahead.heard(tellings, counts)
        if self._failed_at is not None:
            with self._lock:
                self._failed_at = None
                self._own = OwnWindows()
            log.info("throttle_with_redis_again")
        return taken, counts

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
