"""The only module that reads a clock; everything else takes `now` or `as_of` as an argument."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The present instant, aware UTC."""
    return datetime.now(UTC)
