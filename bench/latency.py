"""What people notice of a rollover: how long a signup takes, and how long spending credits waits for a batch."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from itertools import takewhile
from typing import Final

import httpx
from msgspec import Struct

from bench.lab import Lab
from bench.meter import await_until, timed
from bench.product import is_due, send_renewals
from shared.config import Settings
from shared.db import credits
from shared.db.engine import Database
from shared.db.plans import load_rules
from shared.ids import new_id
from workers.demo import PASSWORD
from workers.stack import Stack

SIGNUPS: Final = 200
WARM_UP: Final = 5
PATIENCE_SECONDS: Final = 60


class Latencies(Struct, frozen=True, kw_only=True):
    """In milliseconds. `longest_batch` is the age that a batch's transaction was seen to reach."""

    signups_idle: list[float]
    signups_during: list[float]
    consumptions_during: list[float]
    rolled: int
    longest_batch: float | None = None  # kept results may be older than this figure

    @property
    def ratio(self) -> float:
        """How much longer the median signup takes during a rollover."""
        return statistics.median(self.signups_during) / statistics.median(self.signups_idle)


def percentile(values: Sequence[float], of_100: int) -> float:
    """The value that so many of a hundred do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * of_100 // 100)]


def measure(lab: Lab, settings: Settings, *, accounts: int, as_of: datetime) -> Latencies:
    """Sign up on the whole system, idle and then while it rolls `accounts` accounts, which need not finish."""
    # Beat's first ticks come after an interval; this rollover is started by hand.
    settings = settings.model_copy(update={"api_bind": "127.0.0.1:0", "beat_interval_seconds": 3_600})
    with lab.opened(settings) as database, Stack(settings) as stack:
        sign_up(stack.url, WARM_UP)
        idle = sign_up(stack.url, SIGNUPS)
        send_renewals(settings, as_of=as_of)
        await_until(lambda: rolled(database, accounts, as_of), "the first batch", seconds=PATIENCE_SECONDS)
        before = rolled(database, accounts, as_of)
        consumptions: list[float] = []
        batches: list[float] = []
        done = threading.Event()
        others = [
            threading.Thread(target=_consume, args=(database, settings, as_of, done, consumptions)),
            threading.Thread(target=_watch_batches, args=(database, done, batches)),
        ]
        for thread in others:
            thread.start()
        try:
            during = sign_up(stack.url, SIGNUPS, while_=lambda: is_due(database, as_of))
        finally:
            done.set()
            for thread in others:
                thread.join()
        after = rolled(database, accounts, as_of)
    return Latencies(
        signups_idle=idle,
        signups_during=during,
        consumptions_during=consumptions,
        longest_batch=max(batches),
        rolled=after - before,
    )


def sign_up(url: str, count: int, *, while_: Callable[[], bool] = lambda: True) -> list[float]:
    """How long each of `count` signups took, from the request until the account is there; in milliseconds."""
    seconds: list[float] = []
    with httpx.Client(base_url=url, timeout=30) as client:
        for _ in takewhile(lambda _: while_(), range(count)):
            with timed(seconds):
                _sign_up(client)
    return [1_000 * one for one in seconds]


def _sign_up(client: httpx.Client) -> None:
    body = {"account_name": "Bench", "email": f"{new_id().hex}@example.com", "password": PASSWORD}
    accepted = client.post("/api/v1/signup", json=body, headers={"Idempotency-Key": new_id().hex}).raise_for_status()
    token = {"X-Poll-Token": accepted.json()["poll_token"]}

    def status() -> str:
        operation = client.get(accepted.headers["Location"], headers=token).raise_for_status()
        return str(operation.json()["status"])

    while (now := status()) == "pending":
        time.sleep(0.005)  # an operation is polled, by any client
    if now != "succeeded":
        raise RuntimeError(f"a signup ended as {now}")


def rolled(database: Database, accounts: int, as_of: datetime) -> int:
    """How many accounts have been renewed."""
    with database.transaction() as tx:
        due: int = tx.scalar(
            """
            SELECT count(*) FROM accounts
            WHERE next_transition = 'renewal' AND next_transition_at <= %(as_of)s
              AND test_clock_id IS NULL AND parked_at IS NULL AND deleted_at IS NULL
            """,
            as_of=as_of,
        )
    return accounts - due


def _consume(
    database: Database, settings: Settings, as_of: datetime, done: threading.Event, milliseconds: list[float]
) -> None:
    """Spend a credit of the account that is first in the batch under way, again and again."""
    while not done.is_set():
        with database.transaction() as tx:
            first = tx.maybe(
                """
                SELECT id FROM accounts
                WHERE next_transition = 'renewal' AND next_transition_at <= %(as_of)s
                  AND test_clock_id IS NULL AND parked_at IS NULL AND deleted_at IS NULL
                ORDER BY next_transition_at, id LIMIT 1
                """,
                as_of=as_of,
            )
        if first is None:
            return
        seconds: list[float] = []
        with timed(seconds), database.transaction() as tx:
            asker = credits.of_account(tx, first.id, partial(load_rules, settings=settings))
            credits.consume(asker, 1, key=f"bench-{len(milliseconds)}", reason=None, now=as_of)
        milliseconds.extend(1_000 * one for one in seconds)


def _watch_batches(database: Database, done: threading.Event, milliseconds: list[float]) -> None:
    """Look at the age of the oldest transaction of a worker, fifty times a second."""
    while not done.wait(0.02):
        with database.transaction() as tx:
            age = tx.scalar(
                """
                SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'billing-worker'
                """
            )
        milliseconds.append(1_000 * float(age or 0))
