"""Whoever asks while others wait is asked along with them; at once when nobody does. Each gets an answer of its own."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from api.together import MOST, Together


class Asked:
    """What was put together. While `open` is unset, whoever puts questions waits; a negative one fails."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[int]] = []
        self.at_once = 0

    def put(self, questions: Sequence[int]) -> list[int | None]:
        self.at_once += 1
        assert self.at_once == 1, "one statement at a time"
        self.batches.append(list(questions))
        assert self.open.wait(10)
        self.at_once -= 1
        if min(questions) < 0:
            raise ValueError("negative")
        return [2 * question if question else None for question in questions]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def ask_behind(
    threads: ThreadPoolExecutor, together: Together[int, int], asked: Asked, questions: Sequence[int]
) -> list[Future[int | None]]:
    """The first question is under way, and the others have come meanwhile, in their order."""
    answers = []
    for number, question in enumerate(questions):
        answers.append(threads.submit(together.ask, question))
        until(lambda number=number: bool(asked.batches) and len(together._waiting) == number)  # type: ignore[misc]
    return answers


def test_who_comes_alone_is_asked_at_once() -> None:
    asked = Asked()
    asked.open.set()
    together = Together(asked.put)
    assert [together.ask(1), together.ask(2), together.ask(0)] == [2, 4, None]
    assert asked.batches == [[1], [2], [0]]


def test_who_comes_while_others_wait_is_asked_with_the_next() -> None:
    asked = Asked()
    together = Together(asked.put)
    with ThreadPoolExecutor(8) as threads:
        answers = ask_behind(threads, together, asked, [1, 2, 3, 4])
        asked.open.set()
        assert [answer.result(10) for answer in answers] == [2, 4, 6, 8]
    assert asked.batches == [[1], [2, 3, 4]]


def test_only_so_many_are_asked_at_once() -> None:
    asked = Asked()
    together = Together(asked.put)
    questions = list(range(1, MOST + 5))
    with ThreadPoolExecutor(len(questions)) as threads:
        answers = ask_behind(threads, together, asked, questions)
        asked.open.set()
        assert [answer.result(10) for answer in answers] == [2 * question for question in questions]
    assert [len(batch) for batch in asked.batches] == [1, MOST, 3]


def test_what_fails_fails_for_who_put_it_and_the_others_ask_by_themselves() -> None:
    asked = Asked()
    together = Together(asked.put)
    with ThreadPoolExecutor(8) as threads:
        first, leading, following = ask_behind(threads, together, asked, [1, -1, 3])
        asked.open.set()
        assert first.result(10) == 2
        with pytest.raises(ValueError, match="negative"):
            leading.result(10)
        assert following.result(10) is None
    assert together.ask(5) == 10, "it goes on"


def test_everybody_gets_an_answer_of_his_own() -> None:
    asked = Asked()
    asked.open.set()
    together = Together(asked.put)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(together.ask, range(1, 4_001)))
    assert answers == [2 * question for question in range(1, 4_001)]
    assert sorted(question for batch in asked.batches for question in batch) == list(range(1, 4_001))
