"""Minutes of customers while one fault after another strikes: what was accepted is done, and how soon after a fault.

The system and its faults are the suite's (tests/faults); here they come in turns, in an order that a seed decides, and
what is looked at besides is time. PostgreSQL, which is to be killed as well, is not the lab's, and as durable.
"""

import random
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import cycle, takewhile
from pathlib import Path
from typing import Final

import psutil
from msgspec import Struct

from shared.clock import monotonic, utc_now
from shared.config import Settings
from shared.db.engine import Tx
from tests.faults.brokers import ValkeyBroker
from tests.faults.customers import Customer, EndlessLoad, Patient
from tests.faults.faults import (
    api_is_killed,
    broker_forgets_everything,
    connections_are_cut,
    database_crashes,
    pause,
    table_is_locked,
)
from tests.faults.system import NotQuiet, System, running_system

CROWD: Final = 10
STANDS_STILL_SECONDS: Final = 8
FROZEN_SECONDS: Final = 8
AWAY_SECONDS: Final = 8
REST_SECONDS: Final = 3
RECOVERS_WITHIN_SECONDS: Final = 60
PATIENCE_SECONDS: Final = 180  # of customers, beyond the soak; its beginning and its last fault count in
# As durable as by default; and it remembers when each transaction was committed.
POSTGRES_OPTIONS: Final = ("track_commit_timestamp=on",)
# A request waits for a broker that does not answer as shortly as by default, and an admin stays signed in.
SETTINGS: Final = {
    "throttle_timeout_ms": Settings.model_fields["throttle_timeout_ms"].default,
    "access_token_minutes": 60,
}

Strike = Callable[[System, EndlessLoad], None]


class Fault(Struct, frozen=True, kw_only=True):
    """What strikes. is_kill: of one process, which its supervisor starts again; recovery counts from its death.

    has_backlog: nothing is worked on while it lasts, and a crowd goes on asking.
    """

    strike: Strike
    is_kill: bool = False
    has_backlog: bool = False

    @property
    def name(self) -> str:
        """As people read it."""
        return self.strike.__name__.replace("_", " ")


class Struck(Struct, frozen=True, kw_only=True):
    """A fault that has been. Instants are seconds since the soak began.

    recovery_seconds: from the healing, or from the death of a process, until all that was accepted before was done.
    backlog: how many operations waited when it was healed; drained_per_second: how fast these were done once the first
    of them was.
    """

    name: str
    is_kill: bool
    has_backlog: bool
    began: float
    healed: float
    recovery_seconds: float
    backlog: int
    drained_per_second: float | None


class Results(Struct, frozen=True, kw_only=True):
    """A soak. accepted, done: in each of its seconds; latencies: from acceptance to the commit, in milliseconds."""

    seed: int
    seconds: float
    customers: int
    accepted: list[int]
    done: list[int]
    latencies: list[float]
    calm_latencies: list[float]  # of those that were accepted while no fault was felt
    struck: list[Struck]
    wrong: list[str]

    @property
    def accepted_per_second(self) -> float:
        """Over the whole soak, faults included."""
        return sum(self.accepted) / self.seconds


class Span(Struct, frozen=True, kw_only=True):
    """A fault while it was noted: from when to when."""

    fault: Fault
    began_at: datetime
    healed_at: datetime


class Life(Struct, frozen=True, kw_only=True):
    """An operation that was accepted and is done."""

    accepted_at: datetime
    done_at: datetime


# --- faults -----------------------------------------------------------------------------------


def workers_stand_still(system: System, _load: EndlessLoad) -> None:
    """The workers get SIGSTOP for some seconds: no fault of the broker, and the same backlog to compare with."""
    with _frozen(system.stack["worker-interactive"].freeze, system.stack["worker-interactive"].thaw):
        pause(STANDS_STILL_SECONDS)


def broker_dies_and_returns_with_its_data(system: System, _load: EndlessLoad) -> None:
    """The broker gets SIGKILL, is away for some seconds, and reads its file."""
    system.broker.kill()
    pause(AWAY_SECONDS)
    system.broker.start()


def broker_dies_and_returns_with_nothing(system: System, _load: EndlessLoad) -> None:
    """As before, and its disk is lost."""
    system.broker.kill()
    system.broker.lose_data()
    pause(AWAY_SECONDS)
    system.broker.start()


def broker_freezes(system: System, _load: EndlessLoad) -> None:
    """The broker gets SIGSTOP for some seconds: it takes connections and answers nobody."""
    with _frozen(system.broker.freeze, system.broker.thaw):
        pause(FROZEN_SECONDS)


def worker_process_is_killed(system: System, _load: EndlessLoad) -> None:
    """One of the processes that execute operations gets SIGKILL; its parent starts another."""
    first, *_ = psutil.Process(system.stack["worker-interactive"].pid).children()
    first.kill()


def worker_is_killed_with_its_children(system: System, _load: EndlessLoad) -> None:
    """The worker and its processes get SIGKILL; what they had taken is nobody's then."""
    _kill(system, "worker-interactive")


def relay_is_killed(system: System, _load: EndlessLoad) -> None:
    """The relay gets SIGKILL."""
    _kill(system, "relay")


def beat_is_killed(system: System, _load: EndlessLoad) -> None:
    """Beat gets SIGKILL."""
    _kill(system, "beat")


FIRST: Final = Fault(strike=workers_stand_still, has_backlog=True)
FAULTS: Final = (
    Fault(strike=worker_process_is_killed, is_kill=True),
    Fault(strike=worker_is_killed_with_its_children, is_kill=True),
    Fault(strike=api_is_killed, is_kill=True),
    Fault(strike=relay_is_killed, is_kill=True),
    Fault(strike=beat_is_killed, is_kill=True),
    Fault(strike=broker_dies_and_returns_with_its_data, has_backlog=True),
    Fault(strike=broker_dies_and_returns_with_nothing, has_backlog=True),
    Fault(strike=broker_forgets_everything),
    Fault(strike=broker_freezes, has_backlog=True),
    Fault(strike=database_crashes),
    Fault(strike=connections_are_cut),
    Fault(strike=table_is_locked),
)


@contextmanager
def _frozen(freeze: Callable[[], None], thaw: Callable[[], None]) -> Iterator[None]:
    freeze()
    try:
        yield
    finally:
        thaw()


def _kill(system: System, name: str) -> None:
    process = system.stack[name]
    process.kill()
    process.start()


# --- the soak ---------------------------------------------------------------------------------


class Crowd:
    """Customers whom an admin gives a credit each, again and again, without waiting for what was asked before."""

    def __init__(self, load: EndlessLoad, admin: Patient) -> None:
        self._load = load
        self._admin = admin
        self._customers: list[Customer] = [load.welcome() for _ in range(CROWD)]

    @contextmanager
    def asking(self) -> Iterator[None]:
        """It asks while the block runs."""
        is_over = threading.Event()
        thread = threading.Thread(target=self._ask, args=(is_over,))
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _ask(self, is_over: threading.Event) -> None:
        try:
            for customer in takewhile(lambda _: not is_over.is_set(), cycle(self._customers)):
                path = f"/admin/accounts/{customer.account_id}/credits"
                self._admin.begin(path, {"amount": 1, "reason": "the soak"})
                customer.books.adjusted += 1
        except AssertionError as error:  # told in the verdict, as a customer's
            self._load.failures.append(f"the crowd: {error}")


def run(folder: Path, *, seconds: float, seed: int, say: Callable[[str], None]) -> Results:
    """Customers for so many seconds, and faults as many as there is time for, but one at least.

    say: told each fault. What was lost, done twice or is wrong otherwise is in the results.
    """
    broker = ValkeyBroker(folder / "broker")
    with running_system(folder, broker, postgres_options=POSTGRES_OPTIONS, **SETTINGS) as system:
        give_up_at = monotonic() + seconds + PATIENCE_SECONDS
        admin = system.admin(give_up_at=give_up_at)
        load = EndlessLoad(system.stack.url, admin, seed=seed, seconds=seconds, give_up_at=give_up_at)
        crowd = Crowd(load, admin)
        started_at = utc_now()
        load.start()
        try:
            dice = random.Random(seed)  # noqa: S311 (the order of faults is to come again with its seed)
            spans = list(_strikes(system, load, crowd, dice, say=say))
        finally:
            system.heal()
            load.join()
        say("verdict")
        ended_at = utc_now()
        wrong = _verdict(system, load)
        lives = system.read(_lives)
    return _results(seed, started_at, ended_at, load, spans, lives, wrong)


def _strikes(
    system: System, load: EndlessLoad, crowd: Crowd, dice: random.Random, *, say: Callable[[str], None]
) -> Iterator[Span]:
    waiting = [FIRST]
    while not load.is_over:
        if not waiting:
            waiting = dice.sample(FAULTS, len(FAULTS))
        fault = waiting.pop()
        say(fault.name)
        yield _strike(system, load, crowd, fault)
        pause(REST_SECONDS)


def _strike(system: System, load: EndlessLoad, crowd: Crowd, fault: Fault) -> Span:
    """Strike, and return when what was accepted before the healing is done, or too much time has passed."""
    began_at = utc_now()
    if fault.has_backlog:
        with crowd.asking():
            fault.strike(system, load)
    else:
        fault.strike(system, load)
    healed_at = utc_now()
    deadline = monotonic() + RECOVERS_WITHIN_SECONDS
    while system.read(lambda tx: tx.scalar(_WAITS, at=healed_at)) and monotonic() < deadline:
        pause(0.1)
    return Span(fault=fault, began_at=began_at, healed_at=healed_at)


_WAITS: Final = "SELECT EXISTS (SELECT FROM operations WHERE status = 'pending' AND created_at <= %(at)s)"


def _verdict(system: System, load: EndlessLoad) -> list[str]:
    """As the suite's: what was lost, done twice, or breaks an invariant."""
    wrong = list(load.failures)
    try:
        system.wait_until_quiet()
    except NotQuiet as error:
        wrong += str(error).splitlines()
    wrong += system.broken_promises(load.promises())
    wrong += system.read(load.wrong_books)
    return wrong + [str(finding) for finding in system.findings()]


# --- what was seen ----------------------------------------------------------------------------


def _lives(tx: Tx) -> list[Life]:
    """Of all operations that somebody asked for, in the order of their acceptance."""
    rows = tx.rows(
        """
        SELECT created_at AS accepted_at, pg_xact_commit_timestamp(xmin) AS done_at FROM operations
        WHERE principal_kind <> 'system' AND finished_at IS NOT NULL ORDER BY created_at
        """
    )
    return [Life(accepted_at=row.accepted_at, done_at=row.done_at) for row in rows]


def _results(
    seed: int,
    started_at: datetime,
    ended_at: datetime,
    load: EndlessLoad,
    spans: Sequence[Span],
    lives: Sequence[Life],
    wrong: list[str],
) -> Results:
    def second(at: datetime) -> float:
        return (at - started_at).total_seconds()

    seconds = second(ended_at)
    lives = [life for life in lives if started_at <= life.accepted_at <= ended_at]
    struck = [_struck(span, lives, second) for span in spans]
    return Results(
        seed=seed,
        seconds=seconds,
        customers=len(load.customers),
        accepted=_each_second([second(life.accepted_at) for life in lives], seconds),
        done=_each_second([second(life.done_at) for life in lives], seconds),
        latencies=[_milliseconds(life) for life in lives],
        calm_latencies=[_milliseconds(life) for life in lives if _is_calm(second(life.accepted_at), struck)],
        struck=struck,
        wrong=wrong,
    )


def _struck(span: Span, lives: Sequence[Life], second: Callable[[datetime], float]) -> Struck:
    counts_from = span.began_at if span.fault.is_kill else span.healed_at
    accepted = [life.accepted_at for life in lives]

    def left(at: datetime) -> list[datetime]:
        """When those were done that were accepted by then and not done; in order."""
        return sorted(life.done_at for life in lives[: bisect_right(accepted, at)] if life.done_at > at)

    waited, backlog = left(counts_from), left(span.healed_at)
    drained = (backlog[-1] - backlog[0]).total_seconds() if len(backlog) > 1 else 0.0
    return Struck(
        name=span.fault.name,
        is_kill=span.fault.is_kill,
        has_backlog=span.fault.has_backlog,
        began=second(span.began_at),
        healed=second(span.healed_at),
        recovery_seconds=(waited[-1] - counts_from).total_seconds() if waited else 0.0,
        backlog=len(backlog),
        drained_per_second=(len(backlog) - 1) / drained if span.fault.has_backlog and drained else None,
    )


def _is_calm(second: float, struck: Sequence[Struck]) -> bool:
    return not any(one.began <= second <= one.healed + one.recovery_seconds for one in struck)


def _milliseconds(life: Life) -> float:
    return 1_000 * (life.done_at - life.accepted_at).total_seconds()


def _each_second(instants: Sequence[float], seconds: float) -> list[int]:
    counts = [0] * (int(seconds) + 1)
    for instant in instants:
        if instant < len(counts):
            counts[int(instant)] += 1
    return counts
