"""The rules of docs/rules.md, "Operations": when to look again, and what a kind is called on the wire."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.operation import LONGEST_BACKOFF, OperationKind, backoff
from shared.domain.requests import REQUESTS
from tests.factories import Table, cases

BASE = timedelta(seconds=30)

BACKOFF: Table = {
    "the base at first": (1, 0.0, 30),
    "the base even before an attempt was counted": (0, 0.0, 30),
    "doubled the second time": (2, 0.0, 60),
    "doubled again": (3, 0.0, 120),
    "at most ten minutes": (6, 0.0, 600),
    "at most ten minutes for ever": (1_000_000, 0.0, 600),
    "with half of it on top at most": (1, 1.0, 45),
    "with the jitter's share on top": (2, 0.5, 75),
}


@pytest.mark.parametrize(("attempts", "jitter", "seconds"), cases(BACKOFF))
def test_an_operation_waits(attempts: int, jitter: float, seconds: int) -> None:
    assert backoff(attempts, base=BASE, jitter=jitter) == timedelta(seconds=seconds)


@settings(max_examples=200, derandomize=True)
@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True), st.integers(30, 3_600))
def test_never_sooner_than_the_base_never_later_than_a_quarter_of_an_hour(
    attempts: int, jitter: float, base_seconds: int
) -> None:
    base = timedelta(seconds=base_seconds)
    wait = backoff(attempts, base=base, jitter=jitter)
    assert min(base, LONGEST_BACKOFF) <= wait <= 1.5 * LONGEST_BACKOFF
    assert wait <= backoff(attempts + 1, base=base, jitter=jitter)


def test_every_kind_has_a_task_of_its_own_and_a_payload() -> None:
    assert len({kind.task_name for kind in OperationKind}) == len(OperationKind)
    assert set(REQUESTS) == set(OperationKind)
