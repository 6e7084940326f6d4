"""The rules of docs/rules.md, "Dates": where periods start and end.

Instants in the tables are written as the wall clock of the zone showed them, with its offset.
"""

from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import relativedelta
from dateutil.tz import resolve_imaginary
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.domain import calendar
from shared.domain.calendar import Interval, boundary, period_containing
from shared.errors import InvalidSchedule

TICK = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

Table = dict[str, tuple[object, ...]]
Schedule = tuple[datetime, Interval, int, str]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def rules(table: Table) -> list[Any]:
    """A table of rows by the rule that each one shows, as parameters with that rule for id."""
    return [pytest.param(*row, id=rule) for rule, row in table.items()]


# --- The calendar, in UTC -----------------------------------------------------------------------

CALENDAR: Table = {
    "boundary 0 is the anchor": ("2025-01-31", "month", 1, 0, "2025-01-31"),
    "a month keeps its day": ("2025-01-15", "month", 1, 1, "2025-02-15"),
    "a month after December is in the next year": ("2025-12-15", "month", 1, 1, "2026-01-15"),
    "December is a month like any other": ("2025-11-30", "month", 1, 1, "2025-12-30"),
    "the 31st clamps to 28 February": ("2025-01-31", "month", 1, 1, "2025-02-28"),
    "the 31st clamps to 29 February in a leap year": ("2024-01-31", "month", 1, 1, "2024-02-29"),
    "the 31st is back after February": ("2025-01-31", "month", 1, 2, "2025-03-31"),
    "the 31st clamps to 30 April": ("2025-01-31", "month", 1, 3, "2025-04-30"),
    "the 31st clamps to 30 April in a leap year": ("2024-01-31", "month", 1, 3, "2024-04-30"),
    "the 31st is back in December": ("2025-01-31", "month", 1, 11, "2025-12-31"),
    "the 30th clamps in February alone": ("2025-01-30", "month", 1, 1, "2025-02-28"),
    "the 30th stays the 30th in a month of 31": ("2025-01-30", "month", 1, 2, "2025-03-30"),
    "the 29th clamps in a common February": ("2025-01-29", "month", 1, 1, "2025-02-28"),
    "the 29th fits a leap February": ("2024-01-29", "month", 1, 1, "2024-02-29"),
    "28 February is not the end of a month": ("2025-02-28", "month", 1, 1, "2025-03-28"),
    "29 February is not the end of a month": ("2024-02-29", "month", 1, 1, "2024-03-29"),
    "30 April is not the end of a month": ("2025-04-30", "month", 1, 1, "2025-05-30"),
    "a quarter clamps": ("2025-01-31", "month", 3, 1, "2025-04-30"),
    "a quarter is back on its day": ("2025-01-31", "month", 3, 2, "2025-07-31"),
    "a half-year clamps in the next year": ("2025-08-31", "month", 6, 1, "2026-02-28"),
    "13 months cross a year": ("2025-01-31", "month", 13, 1, "2026-02-28"),
    "29 February yearly clamps to 28 February": ("2024-02-29", "year", 1, 1, "2025-02-28"),
    "29 February yearly stays clamped": ("2024-02-29", "year", 1, 3, "2027-02-28"),
    "29 February yearly is back in a leap year": ("2024-02-29", "year", 1, 4, "2028-02-29"),
    "29 February every four years never clamps": ("2024-02-29", "year", 4, 1, "2028-02-29"),
    "28 February yearly stays in a leap year": ("2024-02-28", "year", 1, 4, "2028-02-28"),
    "2100 is no leap year": ("2000-02-29", "year", 1, 100, "2100-02-28"),
    "2400 is a leap year": ("2000-02-29", "year", 100, 4, "2400-02-29"),
    "1900 was no leap year": ("1896-02-29", "year", 1, 4, "1900-02-28"),
    "2000 was a leap year": ("1996-02-29", "year", 1, 4, "2000-02-29"),
    "no drift over three centuries": ("2025-01-31", "month", 1, 12 * 300 + 1, "2325-02-28"),
    "a week is seven days": ("2025-12-29", "week", 1, 1, "2026-01-05"),
    "a fortnight crosses a leap day": ("2024-02-26", "week", 2, 1, "2024-03-11"),
    "weeks count for a century": ("2025-01-01", "week", 1, 5218, "2125-01-03"),
    "a day after 28 February": ("2025-02-28", "day", 1, 1, "2025-03-01"),
    "a day after 28 February in a leap year": ("2024-02-28", "day", 1, 1, "2024-02-29"),
    "30 days are not a month": ("2025-01-01", "day", 30, 1, "2025-01-31"),
    "days count for a century": ("2025-01-01", "day", 1, 36524, "2125-01-01"),
    "the last day there is": ("9998-12-31", "year", 1, 1, "9999-12-31"),
    "a day before the last day there is": ("9999-12-30", "day", 1, 1, "9999-12-31"),
    "the first day there is": ("0001-01-01", "month", 1, 1, "0001-02-01"),
}  # fmt: skip


@pytest.mark.parametrize(("anchor", "interval", "count", "k", "expected"), rules(CALENDAR))
def test_boundaries_on_the_calendar(anchor: str, interval: str, count: int, k: int, expected: str) -> None:
    time = "T23:59:59.999999+00:00"
    assert boundary(at(anchor + time), interval, count, k, "UTC") == at(expected + time)
    assert boundary(at(anchor + time), Interval(interval), count, k, "UTC") == at(expected + time)


# --- Wall clocks ---------------------------------------------------------------------------------

NY, PARIS, APIA, LORD_HOWE = "America/New_York", "Europe/Paris", "Pacific/Apia", "Australia/Lord_Howe"

WALL_CLOCKS: Table = {
    # The day is the local one.
    "the 31st in New York, though 1 February in UTC":
        ("2025-01-31T23:30-05:00", "month", 1, 1, NY, "2025-02-28T23:30-05:00"),
    "the 1st in Auckland, though 31 January in UTC":
        ("2025-02-01T00:30+13:00", "month", 1, 1, "Pacific/Auckland", "2025-03-01T00:30+13:00"),
    "a zone of quarter hours":
        ("2025-01-31T12:00+05:45", "month", 1, 1, "Asia/Kathmandu", "2025-02-28T12:00+05:45"),
    "the anchor may be written in any zone":
        ("2025-01-15T23:30+00:00", "month", 1, 6, PARIS, "2025-07-16T00:30+02:00"),
    # Wall time is kept.
    "09:00 stays 09:00 in spring":
        ("2025-03-15T09:00+01:00", "month", 1, 1, PARIS, "2025-04-15T09:00+02:00"),
    "09:00 stays 09:00 in autumn":
        ("2025-10-15T09:00+02:00", "month", 1, 1, PARIS, "2025-11-15T09:00+01:00"),
    "a spring day has 23 hours":
        ("2025-03-29T12:00+01:00", "day", 1, 1, PARIS, "2025-03-30T12:00+02:00"),
    "an autumn day has 25 hours":
        ("2025-10-25T12:00+02:00", "day", 1, 1, PARIS, "2025-10-26T12:00+01:00"),
    "a week keeps the hour":
        ("2025-03-24T12:00+01:00", "week", 1, 1, PARIS, "2025-03-31T12:00+02:00"),
    "New York, summer to winter":
        ("2024-07-15T09:00-04:00", "month", 1, 6, NY, "2025-01-15T09:00-05:00"),
    "the southern winter":
        ("2025-01-15T09:00+11:00", "month", 1, 6, "Australia/Sydney", "2025-07-15T09:00+10:00"),
    "summer time in centuries":
        ("2024-01-15T09:00-05:00", "month", 1, 12 * 476 + 6, NY, "2500-07-15T09:00-04:00"),
    "a zone that moved for good":
        ("2016-01-15T09:00+02:00", "year", 1, 1, "Europe/Istanbul", "2017-01-15T09:00+03:00"),
    # Spring gaps: forward by the gap, and back on the wall time afterwards.
    "a gap of an hour moves forward by it":
        ("2025-02-09T02:30-05:00", "month", 1, 1, NY, "2025-03-09T03:30-04:00"),
    "after a gap the wall time is back":
        ("2025-02-09T02:30-05:00", "month", 1, 2, NY, "2025-04-09T02:30-04:00"),
    "the first instant of a gap":
        ("2025-02-09T02:00-05:00", "month", 1, 1, NY, "2025-03-09T03:00-04:00"),
    "the end of a gap exists":
        ("2025-02-09T03:00-05:00", "month", 1, 1, NY, "2025-03-09T03:00-04:00"),
    "a day before the gap":
        ("2025-02-28T02:30+01:00", "month", 1, 1, PARIS, "2025-03-28T02:30+01:00"),
    "a year after the day of a gap":
        ("2024-03-31T03:30+02:00", "year", 1, 1, PARIS, "2025-03-31T03:30+02:00"),
    "a gap, yearly":
        ("2024-03-30T02:30+01:00", "year", 1, 1, PARIS, "2025-03-30T03:30+02:00"),
    "a gap, weekly":
        ("2025-03-23T02:30+01:00", "week", 1, 1, PARIS, "2025-03-30T03:30+02:00"),
    "a gap, daily":
        ("2025-03-29T02:30+01:00", "day", 1, 1, PARIS, "2025-03-30T03:30+02:00"),
    "a gap, daily, the day after":
        ("2025-03-29T02:30+01:00", "day", 1, 2, PARIS, "2025-03-31T02:30+02:00"),
    "a gap of half an hour":
        ("2024-09-06T02:15+10:30", "month", 1, 1, LORD_HOWE, "2024-10-06T02:45+11:00"),
    "a gap at midnight":
        ("2018-10-04T00:00-03:00", "month", 1, 1, "America/Sao_Paulo", "2018-11-04T01:00-02:00"),
    "a gap across midnight":
        ("1919-03-29T23:45-05:00", "day", 1, 1, "America/Toronto", "1919-03-31T00:45-04:00"),
    # Autumn folds: the first of the two.
    "an ambiguous hour takes the first":
        ("2025-10-02T01:30-04:00", "month", 1, 1, NY, "2025-11-02T01:30-04:00"),
    "the end of a fold is not ambiguous":
        ("2025-10-02T02:00-04:00", "month", 1, 1, NY, "2025-11-02T02:00-05:00"),
    "ambiguous in Paris":
        ("2025-01-26T02:30+01:00", "month", 1, 9, PARIS, "2025-10-26T02:30+02:00"),
    "ambiguous, daily":
        ("2025-10-25T02:30+02:00", "day", 1, 1, PARIS, "2025-10-26T02:30+02:00"),
    "ambiguous, daily, the day after":
        ("2025-10-25T02:30+02:00", "day", 1, 2, PARIS, "2025-10-27T02:30+01:00"),
    "a fold of half an hour":
        ("2024-03-07T01:45+11:00", "month", 1, 1, LORD_HOWE, "2024-04-07T01:45+11:00"),
    "ambiguous at midnight":
        ("2025-01-26T00:30-01:00", "month", 1, 9, "Atlantic/Azores", "2025-10-26T00:30+00:00"),
    # An anchor in the second pass of a fold is itself; what follows counts its wall time.
    "an anchor in the second pass stays there":
        ("2024-11-03T01:30-05:00", "month", 1, 0, NY, "2024-11-03T01:30-05:00"),
    "a month after the second pass":
        ("2024-11-03T01:30-05:00", "month", 1, 1, NY, "2024-12-03T01:30-05:00"),
    "the second pass, ambiguous again, takes the first":
        ("2024-11-03T01:30-05:00", "year", 1, 6, NY, "2030-11-03T01:30-04:00"),
    "the second pass, ambiguous again, takes the first, weekly":
        ("2024-11-03T01:30-05:00", "week", 52, 1, NY, "2025-11-02T01:30-04:00"),
    "a day after the second pass":
        ("2024-11-03T01:30-05:00", "day", 1, 1, NY, "2024-11-04T01:30-05:00"),
    # Whole days skipped or repeated: the date line moved.
    "a skipped day moves to the next, monthly":
        ("2011-11-30T10:00-10:00", "month", 1, 1, APIA, "2011-12-31T10:00+14:00"),
    "after a skipped day the 30th is back":
        ("2011-11-30T10:00-10:00", "month", 1, 2, APIA, "2012-01-30T10:00+14:00"),
    "a skipped day moves to the next, yearly":
        ("2010-12-30T10:00-10:00", "year", 1, 1, APIA, "2011-12-31T10:00+14:00"),
    "a skipped day moves to the next, weekly":
        ("2011-12-23T10:00-10:00", "week", 1, 1, APIA, "2011-12-31T10:00+14:00"),
    "a skipped day moves to the next, every two days":
        ("2011-12-28T10:00-10:00", "day", 2, 1, APIA, "2011-12-31T10:00+14:00"),
    "every two days, after a skipped day":
        ("2011-12-28T10:00-10:00", "day", 2, 2, APIA, "2012-01-01T10:00+14:00"),
    "daily, before a skipped day":
        ("2011-12-28T10:00-10:00", "day", 1, 1, APIA, "2011-12-29T10:00-10:00"),
    "daily, a skipped day lies halfway":
        ("2011-12-28T10:00-10:00", "day", 1, 2, APIA, "2011-12-29T22:00-10:00"),
    "daily, after a skipped day":
        ("2011-12-28T10:00-10:00", "day", 1, 3, APIA, "2011-12-31T10:00+14:00"),
    "daily at midnight, a skipped day lies halfway":
        ("2011-12-29T00:00-10:00", "day", 1, 1, APIA, "2011-12-29T12:00-10:00"),
    "daily at midnight, after a skipped day":
        ("2011-12-29T00:00-10:00", "day", 1, 2, APIA, "2011-12-31T00:00+14:00"),
    "Kwajalein skipped a day":
        ("1993-08-20T08:00-12:00", "day", 1, 1, "Pacific/Kwajalein", "1993-08-20T20:00-12:00"),
    "a repeated day takes the first":
        ("1969-09-29T12:00+11:00", "day", 1, 1, "Pacific/Kwajalein", "1969-09-30T12:00+11:00"),
    "the period over a repeated day is long":
        ("1969-09-29T12:00+11:00", "day", 1, 2, "Pacific/Kwajalein", "1969-10-01T12:00-12:00"),
}  # fmt: skip


@pytest.mark.parametrize(("anchor", "interval", "count", "k", "tz", "expected"), rules(WALL_CLOCKS))
def test_boundaries_on_the_wall_clock(
    anchor: str, interval: str, count: int, *, k: int, tz: str, expected: str
) -> None:
    got = boundary(at(anchor), interval, count, k, tz)
    assert got.astimezone(ZoneInfo(tz)).isoformat() == at(expected).astimezone(ZoneInfo(tz)).isoformat()
    assert got == at(expected)  # the offset written in the table is the zone's
    assert got.tzinfo is UTC


CONTAINING: Table = {
    "the anchor is inside": ("2025-01-31", "month", 1, "2025-01-31", 0, "2025-01-31", "2025-02-28"),
    "the last day": ("2025-01-31", "month", 1, "2025-02-27", 0, "2025-01-31", "2025-02-28"),
    "an end is the next start": ("2025-01-31", "month", 1, "2025-02-28", 1, "2025-02-28", "2025-03-31"),
    "the clamped period is long": ("2025-01-31", "month", 1, "2025-03-30", 1, "2025-02-28", "2025-03-31"),
    "inside a quarter": ("2025-01-31", "month", 3, "2025-06-15", 1, "2025-04-30", "2025-07-31"),
    "a leap anchor, yearly": ("2024-02-29", "year", 1, "2027-12-31", 3, "2027-02-28", "2028-02-29"),
    "every two years": ("2024-02-29", "year", 2, "2027-12-31", 1, "2026-02-28", "2028-02-29"),
    "the seventh day": ("2025-01-06", "week", 1, "2025-01-12", 0, "2025-01-06", "2025-01-13"),
    "fortnights": ("2025-01-06", "week", 2, "2025-01-20", 1, "2025-01-20", "2025-02-03"),
    "every ten days": ("2025-01-01", "day", 10, "2025-03-01", 5, "2025-02-20", "2025-03-02"),
    "all of time": ("0001-01-31", "month", 1, "9999-11-30", 119_986, "9999-11-30", "9999-12-31"),
}  # fmt: skip


@pytest.mark.parametrize(("anchor", "interval", "count", "inside", "k", "starts", "ends"), rules(CONTAINING))
def test_period_containing(
    anchor: str, interval: str, count: int, *, inside: str, k: int, starts: str, ends: str
) -> None:
    zero = "T00:00+00:00"
    got = period_containing(at(anchor + zero), interval, count, at(inside + zero), "UTC")
    assert got == (k, at(starts + zero), at(ends + zero))
    assert got[1].tzinfo is UTC
    assert got[2].tzinfo is UTC


def test_period_is_half_open() -> None:
    anchor, second = at("2025-01-31T09:00+00:00"), at("2025-02-28T09:00+00:00")
    assert period_containing(anchor, "month", 1, second - TICK, "UTC") == (0, anchor, second)
    assert period_containing(anchor, "month", 1, second, "UTC")[:2] == (1, second)


def test_periods_around_a_skipped_day_are_half_days() -> None:
    anchor = at("2011-12-28T10:00-10:00")
    ladder = [at(f"2011-12-{text}") for text in ("29T10:00-10:00", "29T22:00-10:00", "31T10:00+14:00")]
    for k, (starts_at, ends_at) in enumerate(pairwise(ladder), start=1):
        for inside_at in (starts_at, starts_at + HOUR, ends_at - HOUR, ends_at - TICK):
            assert period_containing(anchor, "day", 1, inside_at, APIA) == (k, starts_at, ends_at)


def test_period_containing_counts_real_time_over_a_repeated_day() -> None:
    """Alaska lived 18 October 1867 twice: an hour after the anchor the local date is a day before it."""
    anchor = datetime(1867, 10, 19, 0, 0, tzinfo=UTC)
    assert (anchor + HOUR).astimezone(ZoneInfo("America/Juneau")).date() < anchor.astimezone(
        ZoneInfo("America/Juneau")
    ).date()
    k, starts_at, ends_at = period_containing(anchor, "day", 1, anchor + HOUR, "America/Juneau")
    assert (k, starts_at, ends_at) == (0, anchor, boundary(anchor, "day", 1, 1, "America/Juneau"))


def test_the_two_passes_of_a_fold_are_two_anchors() -> None:
    """Datetimes that share a zone are equal, and hash alike, whatever their fold: neither may decide."""
    zone = ZoneInfo(NY)
    first = datetime(2024, 11, 3, 1, 30, tzinfo=zone)
    second = first.replace(fold=1)
    assert first == second
    assert boundary(first, "month", 1, 0, NY) == at("2024-11-03T05:30+00:00")
    assert boundary(second, "month", 1, 0, NY) == at("2024-11-03T06:30+00:00")
    assert period_containing(first, "day", 1, second, NY)[1] == at("2024-11-03T05:30+00:00")
    with pytest.raises(InvalidSchedule, match="before the anchor"):
        period_containing(second, "day", 1, first, NY)


@pytest.mark.parametrize("interval", list(Interval))
@pytest.mark.parametrize("tz", ["UTC", NY, APIA])
def test_period_containing_takes_constant_time(monkeypatch: pytest.MonkeyPatch, interval: Interval, tz: str) -> None:
    calls = 0
    inner = calendar._boundary

    def counted(anchor_at: datetime, wall: datetime, months: int, days: int, k: int) -> datetime:
        nonlocal calls
        calls += 1
        return inner(anchor_at, wall, months, days, k)

    monkeypatch.setattr(calendar, "_boundary", counted)
    anchor = at("0002-01-31T22:00+00:00")
    for year in (2, 1999, 9998):
        for day in (1, 28, 31):
            calls = 0
            period_containing(anchor, interval, 1, datetime(year, 12, day, 23, tzinfo=UTC), tz)
            assert 2 <= calls <= 3


# --- Bad input: a typed error that names what is wrong -------------------------------------------

GOOD = at("2025-01-31T09:00+00:00")
LAST = at("9999-12-31T23:00+00:00")

BAD_SCHEDULES: Table = {
    "a count of zero": (GOOD, "month", 0, "UTC", "interval_count .* got 0"),
    "a negative count": (GOOD, "day", -1, "UTC", "interval_count .* got -1"),
    "a fractional count": (GOOD, "month", 1.0, "UTC", "interval_count .* got 1.0"),
    "a count that is a truth value": (GOOD, "month", True, "UTC", "interval_count .* got True"),
    "a count in letters": (GOOD, "month", "1", "UTC", "interval_count .* got '1'"),
    "an unknown interval": (GOOD, "fortnight", 1, "UTC", "day, week, month, year, got 'fortnight'"),
    "an interval in capitals": (GOOD, "Month", 1, "UTC", "interval .* got 'Month'"),
    "an empty interval": (GOOD, "", 1, "UTC", "interval .* got ''"),
    "no interval": (GOOD, None, 1, "UTC", "interval .* got None"),
    "an unknown zone": (GOOD, "month", 1, "Mars/Olympus", "time zone 'Mars/Olympus'"),
    "an empty zone": (GOOD, "month", 1, "", "time zone ''"),
    "a folder of zones": (GOOD, "month", 1, "America", "time zone 'America'"),
    "a path out of the zones": (GOOD, "month", 1, "../etc/passwd", "time zone"),
    "an absolute path": (GOOD, "month", 1, "/etc/localtime", "time zone"),
    "a file that is no zone": (GOOD, "month", 1, "zone.tab", "time zone"),
    "a zone with a null": (GOOD, "month", 1, "UTC\0", "time zone"),
    "a zone with an umlaut": (GOOD, "month", 1, "Zürich", "time zone"),
    "a zone without end": (GOOD, "month", 1, "x" * 5000, "time zone"),
    "the machine's own zone": (GOOD, "month", 1, "localtime", "time zone 'localtime'"),
    "a zone with leap seconds": (GOOD, "month", 1, "right/UTC", "time zone 'right/UTC'"),
    "no zone": (GOOD, "month", 1, None, "time zone None"),
    "a naive anchor": (GOOD.replace(tzinfo=None), "month", 1, "UTC", "anchor_at must be an aware"),
    "an anchor without a time": (GOOD.date(), "month", 1, "UTC", "anchor_at must be an aware"),
    "an anchor in letters": ("2025-01-31T09:00Z", "month", 1, "UTC", "anchor_at must be an aware"),
    "a year after the last": (LAST, "year", 1, "UTC", "leaves the years 1 to 9999"),
    "a month after the last": (LAST, "month", 1, "UTC", "leaves the years 1 to 9999"),
    "a day after the last": (LAST, "day", 1, "UTC", "leaves the years 1 to 9999"),
    "an anchor in a local year 10000": (LAST, "month", 1, APIA, "leaves the years 1 to 9999"),
    "an anchor in a local year 0": (at("0001-01-01T00:00+00:00"), "day", 1, NY, "leaves the years 1 to 9999"),
    "an anchor in year 0 of UTC":
        (at("0001-01-01T00:00+01:00"), "day", 1, "UTC", "anchor_at .* outside the years"),
    "a boundary in year 10000 of UTC":
        (at("9999-11-30T23:00-05:00"), "day", 31, NY, "leaves the years 1 to 9999"),
    "a count of a million months": (GOOD, "month", 10**6, "UTC", "leaves the years 1 to 9999"),
    "a count of a billion days": (GOOD, "day", 10**9, "UTC", "leaves the years 1 to 9999"),
    "an absurd count of years": (GOOD, "year", 10**30, "UTC", "leaves the years 1 to 9999"),
    "an absurd count of weeks": (GOOD, "week", 10**30, "UTC", "leaves the years 1 to 9999"),
}  # fmt: skip


@pytest.mark.parametrize(("anchor", "interval", "count", "tz", "message"), rules(BAD_SCHEDULES))
def test_bad_schedules_are_refused(anchor: Any, interval: str, count: int, tz: str, message: str) -> None:
    with pytest.raises(InvalidSchedule, match=message):
        boundary(anchor, interval, count, 1, tz)
    inside = anchor if isinstance(anchor, datetime) and anchor.tzinfo else GOOD
    with pytest.raises(InvalidSchedule, match=message):
        period_containing(anchor, interval, count, inside, tz)


class _ZoneWithoutOffset(tzinfo):
    """A tzinfo that knows nothing: a datetime that carries it is naive all the same."""

    def utcoffset(self, when: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


@pytest.mark.parametrize(
    "naive",
    [
        pytest.param(at("2025-01-31T09:00"), id="no zone"),
        pytest.param(datetime(2025, 1, 31, tzinfo=_ZoneWithoutOffset()), id="a zone without offset"),
        pytest.param(date(2025, 1, 31), id="a date"),
        pytest.param(None, id="nothing"),
    ],
)
def test_naive_instants_are_refused(naive: datetime) -> None:
    with pytest.raises(InvalidSchedule, match="anchor_at must be an aware datetime"):
        boundary(naive, "month", 1, 0, "UTC")
    with pytest.raises(InvalidSchedule, match=r"^at must be an aware datetime"):
        period_containing(GOOD, "month", 1, naive, "UTC")


@pytest.mark.parametrize("k", [-1, -(10**30), 1.0, True, "1", None])
def test_k_is_a_whole_number_from_zero(k: int) -> None:
    with pytest.raises(InvalidSchedule, match="k must be a whole number"):
        boundary(GOOD, "month", 1, k, "UTC")


@pytest.mark.parametrize("k", [10**5, 10**9, 10**30])
@pytest.mark.parametrize("interval", list(Interval))
def test_a_k_beyond_all_dates_is_refused(interval: Interval, k: int) -> None:
    with pytest.raises(InvalidSchedule, match="leaves the years 1 to 9999"):
        boundary(GOOD, interval, 31, k, NY)


def test_nothing_contains_an_instant_before_the_anchor() -> None:
    assert period_containing(GOOD, "month", 1, GOOD, "UTC")[0] == 0
    with pytest.raises(InvalidSchedule, match="before the anchor"):
        period_containing(GOOD, "month", 1, GOOD - TICK, "UTC")


def test_the_last_period_of_all_must_end() -> None:
    with pytest.raises(InvalidSchedule, match="leaves the years 1 to 9999"):
        period_containing(GOOD, "year", 1, LAST, "UTC")


def test_an_instant_that_the_zone_cannot_write_is_refused() -> None:
    with pytest.raises(InvalidSchedule, match="leaves the years 1 to 9999"):
        period_containing(GOOD, "month", 1, LAST, APIA)
    with pytest.raises(InvalidSchedule, match=r"^at .* outside the years 1 to 9999"):
        period_containing(GOOD, "month", 1, LAST.replace(tzinfo=timezone(-2 * HOUR)), "UTC")


# --- Properties ----------------------------------------------------------------------------------

# A zone and a moment at which its clocks jumped; anchors are drawn near it, and anywhere.
JUMPS = {
    "UTC": "2025-01-01T00:00+00:00",
    "Europe/Paris": "2025-03-30T01:00+00:00",
    "America/New_York": "2025-11-02T06:00+00:00",
    "America/St_Johns": "2006-10-29T02:31+00:00",  # a fold at 00:01
    "America/Sao_Paulo": "2018-11-04T03:00+00:00",  # a gap at midnight
    "America/Toronto": "1919-03-31T04:30+00:00",  # a gap across midnight
    "America/Juneau": "1867-10-19T00:31:13+00:00",  # a day repeated
    "Africa/Casablanca": "2025-02-23T02:00+00:00",  # clocks follow Ramadan
    "Africa/Monrovia": "1972-01-07T00:44:30+00:00",  # seconds in the offset
    "Asia/Kathmandu": "1985-12-31T18:30+00:00",  # a gap of a quarter of an hour
    "Asia/Pyongyang": "2018-05-04T15:00+00:00",
    "Antarctica/Troll": "2025-03-30T01:00+00:00",  # a gap of two hours
    "Australia/Lord_Howe": "2024-10-05T15:30+00:00",  # half an hour
    "Pacific/Apia": "2011-12-30T10:00+00:00",  # a day skipped
    "Pacific/Fakaofo": "2011-12-30T11:00+00:00",
    "Pacific/Kiritimati": "1994-12-31T10:00+00:00",
    "Pacific/Kwajalein": "1993-08-21T12:00+00:00",
}
DAY_SKIPPED = {"Pacific/Apia", "Pacific/Fakaofo", "Pacific/Kiritimati", "Pacific/Kwajalein"}

UTC_INSTANTS = st.datetimes(at("1800-01-01"), at("2500-01-01"), timezones=st.just(UTC))
INTERVALS = st.sampled_from(Interval)
COUNTS = st.integers(1, 14)
relaxed = settings(deadline=None, max_examples=300)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """An anchor, an interval, a count and a zone; half of the anchors lie within days of a jump."""
    tz = draw(st.sampled_from(sorted(JUMPS)))
    interval, count = draw(INTERVALS), draw(COUNTS)
    near = draw(st.booleans())
    if near:
        minutes = draw(st.integers(-4 * 1440, 2 * 1440)) if interval is Interval.DAY else draw(MINUTES)
        return at(JUMPS[tz]) + timedelta(minutes=minutes), interval, count, tz
    return draw(UTC_INSTANTS), interval, count, tz


MINUTES = st.builds(
    lambda days, minutes: -1440 * days + minutes,
    st.sampled_from([0, 1, 7, 14, 28, 29, 30, 31, 59, 61, 90, 92, 365, 366]),
    st.integers(-1560, 1560),
)


def on_skipped_day(schedule: Schedule, k: int) -> bool:
    """Whether boundary k is a daily one on a day that the zone skipped, for which a rule of its own holds."""
    anchor, interval, count, tz = schedule
    if interval is not Interval.DAY or count > 1 or tz not in DAY_SKIPPED:
        return False
    return not wall_exists(anchor.astimezone(ZoneInfo(tz)) + timedelta(days=k))


def wall_exists(wall: datetime) -> bool:
    """Whether the clocks of `wall.tzinfo` ever showed this time."""
    back = wall.astimezone(UTC).astimezone(wall.tzinfo)
    return back.replace(tzinfo=None, fold=0) == wall.replace(tzinfo=None, fold=0)


@relaxed
@given(schedules(), st.integers(0, 500))
def test_boundaries_strictly_increase(schedule: Schedule, k: int) -> None:
    anchor, interval, count, tz = schedule
    for base in (0, k):
        ladder = [boundary(anchor, interval, count, base + i, tz) for i in range(6)]
        assert all(earlier < later for earlier, later in pairwise(ladder))


@relaxed
@given(schedules(), st.integers(1, 500))
def test_boundaries_never_drift(schedule: Schedule, k: int) -> None:
    """The same calendar distance is the same instant, however it is cut into periods."""
    assume(not on_skipped_day(schedule, k))
    anchor, interval, count, tz = schedule
    expected = boundary(anchor, interval, count * k, 1, tz)
    got = boundary(anchor, interval, count, k, tz)
    assert got == expected
    if interval is Interval.YEAR:
        assert got == boundary(anchor, Interval.MONTH, 12 * count, k, tz)
    if interval is Interval.WEEK:
        assert got == boundary(anchor, Interval.DAY, 7 * count, k, tz)


@relaxed
@given(schedules(), st.integers(1, 500))
def test_local_wall_time_is_kept_except_in_gaps(schedule: Schedule, k: int) -> None:
    assume(not on_skipped_day(schedule, k))
    anchor, interval, count, tz = schedule
    zone = ZoneInfo(tz)
    wall, got = anchor.astimezone(zone), boundary(anchor, interval, count, k, tz).astimezone(zone)
    wanted = datetime.combine(got.date(), wall.time(), zone)
    if got.time() == wall.time():
        assert got.fold == 0  # the first, where there are two
        if interval in (Interval.MONTH, Interval.YEAR):
            assert got.day == wall.day or (got.day < wall.day and (got + DAY).day == 1) or tz in DAY_SKIPPED
    else:
        # Only because the clocks never showed it, on that day or (a gap across midnight) the day before.
        assert not wall_exists(wanted) or not wall_exists(wanted - DAY)


@relaxed
@given(schedules(), st.integers(0, 500), st.floats(0, 1, exclude_max=True))
def test_containing_and_boundary_agree(schedule: Schedule, k: int, part: float) -> None:
    anchor, interval, count, tz = schedule
    starts_at, ends_at = (boundary(anchor, interval, count, n, tz) for n in (k, k + 1))
    middle_at = min(starts_at + (ends_at - starts_at) * part, ends_at - TICK)
    for inside_at in (starts_at, middle_at, ends_at - TICK):
        assert period_containing(anchor, interval, count, inside_at, tz) == (k, starts_at, ends_at)


@relaxed
@given(schedules(), st.timedeltas(timedelta(0), timedelta(days=100 * 365)))
def test_every_instant_is_in_one_period(schedule: Schedule, elapsed: timedelta) -> None:
    anchor, interval, count, tz = schedule
    k, starts_at, ends_at = period_containing(anchor, interval, count, anchor + elapsed, tz)
    assert starts_at <= anchor + elapsed < ends_at
    assert k >= 0
    assert starts_at == boundary(anchor, interval, count, k, tz)
    assert ends_at == boundary(anchor, interval, count, k + 1, tz)


@relaxed
@given(schedules(), st.integers(1, 500))
def test_agrees_with_dateutil(schedule: Schedule, k: int) -> None:
    """relativedelta clamps from the anchor and resolve_imaginary moves forward by the gap, as we do.

    They part on daily boundaries of a skipped day, where theirs meets the next one, and at k = 0.
    """
    assume(not on_skipped_day(schedule, k))
    assert boundary(*schedule[:3], k, schedule[3]) == by_dateutil(schedule, k)


@relaxed
@given(schedules(), st.integers(1, 400 * 365))
def test_centuries_later_it_is_the_same(schedule: Schedule, days: int) -> None:
    anchor, interval, count, tz = schedule
    k = max(1, days // (SHORTEST_DAYS[interval] * count))
    before_at, at_k, after_at = (boundary(anchor, interval, count, n, tz) for n in (k - 1, k, k + 1))
    assert before_at < at_k < after_at
    assert period_containing(anchor, interval, count, at_k, tz) == (k, at_k, after_at)
    assert period_containing(anchor, interval, count, at_k - TICK, tz) == (k - 1, before_at, at_k)
    assume(not on_skipped_day(schedule, k))
    assert at_k == by_dateutil(schedule, k)


SHORTEST_DAYS = {Interval.DAY: 1, Interval.WEEK: 7, Interval.MONTH: 28, Interval.YEAR: 365}


def by_dateutil(schedule: Schedule, k: int) -> datetime:
    anchor, interval, count, tz = schedule
    step = relativedelta(**{f"{interval}s": count * k})  # type: ignore[arg-type]
    wall = (anchor.astimezone(ZoneInfo(tz)) + step).replace(fold=0)
    return resolve_imaginary(wall).astimezone(UTC)
