"""How long to wait after failed sign-ins: growing for the network that failed, and no lever to lock others out.

Source: docs/rules.md, "Identity".
"""

from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

FREE_FAILURES: Final = 5  # people mistype
FIRST_DELAY: Final = timedelta(seconds=10)
LONGEST_DELAY: Final = timedelta(minutes=15)
FAILURES_COUNT_FOR: Final = timedelta(hours=24)  # after the last of them

# An attack from many networks, each of which stays below its own limit.
FAILURES_OF_ALL: Final = 100
FAILURES_OF_ALL_COUNT_FOR: Final = timedelta(hours=1)

# From a network that has signed in within this time, only its own failures count.
NETWORK_KNOWN_FOR: Final = timedelta(days=90)


class Attempts(Struct, frozen=True, kw_only=True):
    """What is known of sign-ins with one address: from one network, and of late from all."""

    failures: int
    failed_at: datetime | None
    succeeded_at: datetime | None
    failures_of_all: int
    failed_at_of_all: datetime | None


def next_try_at(attempts: Attempts) -> datetime | None:
    """The instant before which another attempt is not looked at; None when there is none."""
    own = None
    if attempts.failed_at is not None and attempts.failures >= FREE_FAILURES:
        doublings = min(attempts.failures - FREE_FAILURES, 16)
        own = attempts.failed_at + min(FIRST_DELAY * (1 << doublings), LONGEST_DELAY)
    if attempts.succeeded_at is not None or attempts.failed_at_of_all is None:
        return own
    if attempts.failures_of_all < FAILURES_OF_ALL:
        return own
    of_all = attempts.failed_at_of_all + LONGEST_DELAY
    return of_all if own is None else max(own, of_all)
