"""The only module that reads a clock; everything else takes `now` or `as_of` as an argument."""

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The present instant, aware UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds that only go forward, for measuring how long something takes."""
    return time.monotonic()
