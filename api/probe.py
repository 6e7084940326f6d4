"""Asking something that may be frozen, without waiting for it."""

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillWaiting
from threading import Lock, Thread
from typing import Final, Generic, TypeVar

import structlog

from shared.clock import monotonic

ABANDON_SECONDS: Final = 30.0

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Probe(Generic[T]):
    """Asks from a thread of its own, because what is frozen takes longer than anybody waits.

    Whoever comes while it is being asked waits for the same answer. A question that is open for ABANDON_SECONDS is
    given up and put anew, so that a connection which died without a word hides nothing for longer.
    """

    def __init__(self, name: str, ask: Callable[[], T], *, wait_seconds: float) -> None:
        self._name = name
        self._ask = ask
        self._wait_seconds = wait_seconds
        self._lock = Lock()
        self._asked: Future[T] | None = None
        self._asked_at = 0.0

    def answer(self) -> T | None:
        """What it answered within `wait_seconds`; None when it did not, or failed."""
        with self._lock:
            now = monotonic()
            if self._asked is None or self._asked.done() or now - self._asked_at > ABANDON_SECONDS:
                self._asked, self._asked_at = Future(), now
                Thread(target=self._put, args=(self._asked,), name=f"probe-{self._name}", daemon=True).start()
            asked = self._asked
        try:
            return asked.result(self._wait_seconds)
        except StillWaiting:
            log.warning("probe_without_answer", of=self._name, error="silence")
        except Exception as error:  # noqa: BLE001 (whatever was raised, there is no answer)
            log.warning("probe_without_answer", of=self._name, error=type(error).__name__)
        return None

    def _put(self, asked: Future[T]) -> None:
        try:
            asked.set_result(self._ask())
        except BaseException as error:  # noqa: BLE001 (handed to whoever waits for it)
            asked.set_exception(error)
