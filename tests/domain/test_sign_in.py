"""How long to wait after failed sign-ins."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from shared.domain.sign_in import FAILURES_OF_ALL, LONGEST_DELAY, Attempts, next_try_at
from tests.factories import Table, cases, on

NOW = on("2026-01-10")


def attempts(**known: Any) -> Attempts:
    nothing: dict[str, Any] = {
        "failures": 0,
        "failed_at": None,
        "succeeded_at": None,
        "failures_of_all": 0,
        "failed_at_of_all": None,
    }
    return Attempts(**nothing | known)


def of_all(failed: int, **known: Any) -> Attempts:
    return attempts(failures_of_all=failed, failed_at_of_all=NOW, **known)


WAITS: Table = {
    "nothing has failed": (attempts(), None),
    "four mistakes": (attempts(failures=4, failed_at=NOW), None),
    "five": (attempts(failures=5, failed_at=NOW), timedelta(seconds=10)),
    "six": (attempts(failures=6, failed_at=NOW), timedelta(seconds=20)),
    "ten": (attempts(failures=10, failed_at=NOW), timedelta(seconds=320)),
    "twelve": (attempts(failures=12, failed_at=NOW), LONGEST_DELAY),
    "a million": (attempts(failures=10**6, failed_at=NOW), LONGEST_DELAY),
    "others, below the cap": (of_all(FAILURES_OF_ALL - 1), None),
    "others, at the cap": (of_all(FAILURES_OF_ALL), LONGEST_DELAY),
    "others, and the network is known": (of_all(FAILURES_OF_ALL, succeeded_at=NOW), None),
    "others, and own failures from a known network": (
        of_all(FAILURES_OF_ALL, succeeded_at=NOW, failures=5, failed_at=NOW),
        timedelta(seconds=10),
    ),
    "both: the longer wait counts": (of_all(FAILURES_OF_ALL, failures=5, failed_at=NOW), LONGEST_DELAY),
}


@pytest.mark.parametrize(("known", "wait"), cases(WAITS))
def test_the_next_try(known: Attempts, wait: timedelta | None) -> None:
    expected: datetime | None = None if wait is None else NOW + wait
    assert next_try_at(known) == expected
