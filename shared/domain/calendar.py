"""Decides when billing periods start and end: boundaries counted from an anchor, in a local time zone.

Pure: no clock, no state but the cache of time zones. Source: docs/rules.md, "Dates".
"""

from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import lru_cache
from zoneinfo import ZoneInfo

from shared.errors import InvalidSchedule

# Length of each month in a common year; the leading zero lets January be 1.
_MONTH_DAYS = (0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

# Files beside the IANA zones that mean something else on another machine, or count leap seconds.
_NOT_IANA = frozenset({"Factory", "localtime", "posix", "posixrules", "right"})


class Interval(StrEnum):
    """Unit of a billing interval; `interval_count` of them make one period."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


def boundary(anchor_at: datetime, interval: Interval | str, interval_count: int, k: int, tz: str) -> datetime:
    """Start of period `k` (k >= 0), aware UTC, which is also the end of period k - 1.

    anchor_at: first start, aware; boundary 0 is exactly this instant. tz: an IANA name.
    Counted from the anchor on the calendar of `tz`, never from the previous boundary:
    31 Jan gives 28 Feb, then 31 Mar again. Local wall time is kept; one in a spring gap moves
    forward by the gap, an ambiguous one takes the first. Strictly increasing in k: a daily
    boundary on a day which the zone skipped lies halfway between its neighbours.

    Raises InvalidSchedule: unknown interval or zone, count < 1, k < 0, naive anchor, result
    outside the years 1 to 9999.
    Source: docs/rules.md, "Dates".
    """
    months, days = _step(interval, interval_count)
    zone = _zone(tz)
    if type(k) is not int or k < 0:
        raise InvalidSchedule(f"k must be a whole number, 0 or more, got {k!r}")
    anchor_at = _utc(anchor_at, "anchor_at")
    try:
        return _boundary(anchor_at, anchor_at.astimezone(zone), months, days, k)
    except OverflowError as error:
        raise _out_of_range(anchor_at, tz) from error


def period_containing(
    anchor_at: datetime, interval: Interval | str, interval_count: int, at: datetime, tz: str
) -> tuple[int, datetime, datetime]:
    """The period `(k, starts_at, ends_at)` with starts_at <= at < ends_at, both aware UTC.

    starts_at is boundary(k) and ends_at boundary(k + 1); see `boundary` for the arguments.
    Constant time: k is estimated from the local dates, then corrected by at most a step or two
    (the hour or a clamped day: one down; a day which the zone repeated: one up).

    Raises InvalidSchedule: as `boundary` does; `at` naive or before the anchor.
    Source: docs/rules.md, "Dates".
    """
    months, days = _step(interval, interval_count)
    zone = _zone(tz)
    # To UTC before comparing: two datetimes that share a zone compare wall times and ignore the fold.
    anchor_at, at = _utc(anchor_at, "anchor_at"), _utc(at, "at")
    if at < anchor_at:
        raise InvalidSchedule(f"at {at} is before the anchor {anchor_at}")
    try:
        wall, now = anchor_at.astimezone(zone), at.astimezone(zone)
        if months:
            k = ((now.year - wall.year) * 12 + now.month - wall.month) // months
        else:
            k = (now.toordinal() - wall.toordinal()) // days
        starts_at = _boundary(anchor_at, wall, months, days, k)
        ends_at = starts_at if starts_at > at else _boundary(anchor_at, wall, months, days, k + 1)
        while starts_at > at:
            k, ends_at = k - 1, starts_at
            starts_at = _boundary(anchor_at, wall, months, days, k)
        while ends_at <= at:
            k, starts_at = k + 1, ends_at
            ends_at = _boundary(anchor_at, wall, months, days, k + 1)
        return k, starts_at, ends_at
    except OverflowError as error:
        raise _out_of_range(anchor_at, tz) from error


def _boundary(anchor_at: datetime, wall: datetime, months: int, days: int, k: int) -> datetime:
    """Boundary k, aware UTC; `wall` is `anchor_at` in the local zone. Raises OverflowError."""
    if k == 0:
        return anchor_at
    if months:
        year, month = divmod(wall.year * 12 + wall.month - 1 + months * k, 12)
        if year > 9999:
            raise OverflowError("year beyond 9999")
        day, month = wall.day, month + 1
        if day > 28 and day > _MONTH_DAYS[month]:
            leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
            day = 29 if leap else _MONTH_DAYS[month]
        # Built anew, not replace(): half the cost, and the fold starts at 0.
        due = datetime(year, month, day, wall.hour, wall.minute, wall.second, wall.microsecond, wall.tzinfo)
        return due.astimezone(UTC)
    due = wall + timedelta(days=days * k)  # adds on the wall clock and clears the fold
    due_at = due.astimezone(UTC)
    if days == 1 and due_at.astimezone(due.tzinfo).day != due.day:  # a gap moved it into the next day
        next_at = (due + timedelta(days=1)).astimezone(UTC)
        if next_at <= due_at:  # the gap swallowed the whole day: halfway between the neighbours
            before_at = _boundary(anchor_at, wall, months, days, k - 1)
            return before_at + (next_at - before_at) / 2
    return due_at


@lru_cache(maxsize=1024, typed=True)
def _step(interval: Interval | str, interval_count: int) -> tuple[int, int]:
    """The length of a period as (months, days), one of which is 0. Raises InvalidSchedule."""
    if type(interval_count) is not int or interval_count < 1:
        raise InvalidSchedule(f"interval_count must be a positive whole number, got {interval_count!r}")
    match interval:
        case Interval.DAY:
            return 0, interval_count
        case Interval.WEEK:
            return 0, 7 * interval_count
        case Interval.MONTH:
            return interval_count, 0
        case Interval.YEAR:
            return 12 * interval_count, 0
        case _:
            raise InvalidSchedule(f"interval must be one of {', '.join(Interval)}, got {interval!r}")


@lru_cache(maxsize=1024)
def _zone(tz: object) -> tzinfo:
    """The zone of an IANA name; "UTC" is datetime.UTC itself, to which conversion is free."""
    if tz == "UTC":
        return UTC
    try:
        if isinstance(tz, str) and tz.partition("/")[0] not in _NOT_IANA:
            return ZoneInfo(tz)
    except (KeyError, OSError, ValueError) as error:  # absent; a folder or unreadable; malformed
        raise InvalidSchedule(f"unknown time zone {tz!r}") from error
    raise InvalidSchedule(f"unknown time zone {tz!r}")


def _utc(value: object, name: str) -> datetime:
    """The same instant with the zone datetime.UTC. Raises InvalidSchedule."""
    if isinstance(value, datetime) and value.tzinfo is UTC:
        return value
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidSchedule(f"{name} must be an aware datetime, got {value!r}")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise InvalidSchedule(f"{name} {value} is outside the years 1 to 9999 in UTC") from error


def _out_of_range(anchor_at: datetime, tz: str) -> InvalidSchedule:
    return InvalidSchedule(f"the schedule from {anchor_at} in {tz} leaves the years 1 to 9999")
