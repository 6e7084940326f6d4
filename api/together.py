"""Questions of several threads put as one: whoever comes while one is under way is asked along with the next.

Nobody waits for company. A question that comes when none is under way is put at once, by itself.
"""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final, Generic, TypeVar

MOST: Final = 16  # questions at once, so that the first is not kept waiting for the last

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Waiting(Generic[Question, Answer]):
    """A thread's question. woken: held until it has an answer, or is to put what is asked next."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: Answer | None = None
        self.leads = False
        self.woken = Lock()
        self.woken.acquire()


class Together(Generic[Question, Answer]):
    """Puts questions through one thread at a time, of those that wait for an answer themselves.

    put: answers as many questions as there are, in their order; with None where one has to be asked in another way.
    """

    def __init__(self, put: Callable[[Sequence[Question]], Sequence[Answer | None]]) -> None:
        self._put = put
        self._lock = Lock()
        self._waiting: deque[Waiting[Question, Answer]] = deque()
        self._is_led = False

    def ask(self, question: Question) -> Answer | None:
        """The answer, or None; what `put` raises, to the thread that put it, while all others get None."""
        mine: Waiting[Question, Answer] = Waiting(question)
        with self._lock:
            self._waiting.append(mine)
            mine.leads = not self._is_led
            self._is_led = True
        if not mine.leads:
            mine.woken.acquire()
        if mine.leads:
            self._lead()
        return mine.answer

    def _lead(self) -> None:
        """Put what waits, one's own question first, and hand on the lead."""
        with self._lock:
            asked = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
        answers: Sequence[Answer | None] = [None] * len(asked)
        try:
            answers = self._put([one.question for one in asked])
        finally:
            with self._lock:
                self._is_led = bool(self._waiting)
                if self._is_led:
                    self._waiting[0].leads = True
                    self._waiting[0].woken.release()
            for one, answer in zip(asked, answers, strict=True):
                one.answer = answer
                one.woken.release()
