"""What a measurement costs: seconds, and the processor time and memory of the processes that take part."""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import psutil
from msgspec import Struct

from shared.clock import monotonic

SAMPLE_SECONDS = 0.1


class Run(Struct, frozen=True, kw_only=True):
    """One run over `accounts` accounts."""

    accounts: int
    seconds: float
    python_seconds: float
    postgres_seconds: float
    peak_megabytes: float

    @property
    def rate(self) -> float:
        """Accounts per second."""
        return self.accounts / self.seconds


class Meter:
    """Watches processes while a `with` block runs; `run` afterwards says what they took.

    postmaster, python: process numbers; their descendants count with them. A process that starts and ends
    between two looks is missed.
    """

    def __init__(self, accounts: int, *, postmaster: int, python: Sequence[int]) -> None:
        self._accounts = accounts
        self._roots = {"postgres": [postmaster], "python": list(python)}
        self._first: dict[tuple[str, int], float] = {}
        self._last: dict[tuple[str, int], float] = {}
        self._peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._look(beginning=True)
        self._started = monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._seconds = monotonic() - self._started
        self._done.set()
        self._thread.join()
        self._look()

    @property
    def run(self) -> Run:
        """What was measured."""
        return Run(
            accounts=self._accounts,
            seconds=self._seconds,
            python_seconds=self._spent("python"),
            postgres_seconds=self._spent("postgres"),
            peak_megabytes=self._peak,
        )

    def _spent(self, group: str) -> float:
        return sum(last - self._first[key] for key, last in self._last.items() if key[0] == group)

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self, *, beginning: bool = False) -> None:
        for group, roots in self._roots.items():
            for process in _with_descendants(roots):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    key = group, process.pid
                    self._last[key] = times.user + times.system
                    # Who was not there at the beginning began at nothing.
                    self._first.setdefault(key, self._last[key] if beginning else 0.0)
                    if group == "python":
                        self._peak = max(self._peak, process.memory_info().rss / 2**20)


def _with_descendants(roots: Iterable[int]) -> Iterator[psutil.Process]:
    for root in roots:
        with suppress(psutil.Error):
            process = psutil.Process(root)
            yield process
            yield from process.children(recursive=True)


def machine() -> dict[str, str]:
    """On what it was measured."""
    return {
        "processors": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.system(),
        "python": platform.python_version(),
        "celery": version("celery"),
        "psycopg": version("psycopg"),
    }


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append how many seconds the block took."""
    started = monotonic()
    yield
    into.append(monotonic() - started)


def await_until(condition: Callable[[], Any], what: str, *, seconds: float) -> None:
    """Look twenty times a second until it holds. Raises TimeoutError."""
    deadline = monotonic() + seconds
    while not condition():
        if monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.05)
