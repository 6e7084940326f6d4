"""The rules of docs/rules.md, "Credits": in which order grants are spent, and what a month's end keeps."""

from datetime import UTC, datetime, timedelta
from itertools import permutations
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.credits import CreditGrant, burn_down_order, carried_over, spendable, take
from shared.errors import InsufficientCredits
from tests.factories import Table, cases, grant, on

NOW = on("2026-06-15")
BOUNDED = settings(max_examples=150, derandomize=True)

# --- burn-down order ----------------------------------------------------------------------------

FIRST_OF_TWO: Table = {
    "the lower priority number": (
        grant(priority=10, expires_at=None, effective_at=on("2026-05-01")),
        grant(priority=20, expires_at=on("2026-06-16"), effective_at=on("2026-01-01")),
    ),
    "within a priority, the earlier expiry": (
        grant(expires_at=on("2026-07-01"), effective_at=on("2026-05-01")),
        grant(expires_at=on("2026-07-02"), effective_at=on("2026-01-01")),
    ),
    "any expiry before none": (
        grant(expires_at=on("2099-12-31"), effective_at=on("2026-05-01")),
        grant(expires_at=None, effective_at=on("2026-01-01")),
    ),
    "of equal expiry, the older": (
        grant(expires_at=on("2026-07-01"), effective_at=on("2026-01-01")),
        grant(expires_at=on("2026-07-01"), effective_at=on("2026-01-02")),
    ),
    "without expiry, the older": (
        grant(effective_at=on("2026-01-01")),
        grant(effective_at=on("2026-01-02")),
    ),
    "of the same age, the smaller id": (
        grant(id=UUID(int=1)),
        grant(id=UUID(int=2)),
    ),
}


@pytest.mark.parametrize(("first", "second"), cases(FIRST_OF_TWO))
def test_spent_first_is(first: CreditGrant, second: CreditGrant) -> None:
    for pair in permutations([first, second]):
        assert sorted(pair, key=burn_down_order) == [first, second]
        assert take(pair, 101, at=NOW) == [(first, 100), (second, 1)]


# --- what may be taken ----------------------------------------------------------------------------

SPENDABLE: Table = {
    "all that remains": (grant(100, remaining=40), 40),
    "not what is held": (grant(100, remaining=40, held=15), 25),
    "nothing of a grant that is all held": (grant(100, remaining=40, held=40), 0),
    "all until the instant of expiry": (grant(100, expires_at=NOW + timedelta(microseconds=1)), 100),
    "nothing at the instant of expiry, swept or not": (grant(100, expires_at=NOW), 0),
    "nothing after it": (grant(100, expires_at=NOW - timedelta(days=1)), 0),
}


@pytest.mark.parametrize(("one", "expected"), cases(SPENDABLE))
def test_of_a_grant_one_may_spend(one: CreditGrant, expected: int) -> None:
    assert spendable(one, at=NOW) == expected


def test_too_little_is_refused_and_says_how_much_there_is() -> None:
    with pytest.raises(InsufficientCredits) as refused:
        take([grant(60), grant(50, expires_at=NOW), grant(30, held=20)], 71, at=NOW)
    assert refused.value.data == {"available_credits": 70, "requested_credits": 71}


instants = st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC))


@st.composite
def grants(draw: st.DrawFn) -> CreditGrant:
    amount = draw(st.integers(1, 100))
    remaining = draw(st.integers(0, amount))
    return grant(
        amount,
        remaining=remaining,
        held=draw(st.integers(0, remaining)),
        priority=draw(st.sampled_from([10, 20])),
        effective_at=draw(instants),
        expires_at=draw(st.none() | instants),
    )


@BOUNDED
@given(st.lists(grants(), max_size=8), st.integers(0, 300))
def test_what_is_taken_is_the_amount_in_order_and_each_grant_is_emptied_before_the_next(
    them: list[CreditGrant], amount: int
) -> None:
    available = sum(spendable(one, at=NOW) for one in them)
    if available < amount:
        with pytest.raises(InsufficientCredits):
            take(them, amount, at=NOW)
        return
    taken = take(them, amount, at=NOW)
    assert sum(part for _, part in taken) == amount
    assert all(0 < part <= spendable(one, at=NOW) for one, part in taken)
    assert all(part == spendable(one, at=NOW) for one, part in taken[:-1])
    in_order = sorted((one for one in them if spendable(one, at=NOW)), key=burn_down_order)
    assert [one for one, _ in taken] == in_order[: len(taken)]


@BOUNDED
@given(st.lists(grants(), max_size=8), st.integers(0, 200), st.integers(0, 200))
def test_taking_twice_is_taking_the_sum(them: list[CreditGrant], first: int, second: int) -> None:
    available = sum(spendable(one, at=NOW) for one in them)
    if available < first + second:
        return
    at_once = {one.id: part for one, part in take(them, first + second, at=NOW)}
    in_turn: dict[UUID, int] = {}
    rest = {one.id: one for one in them}
    for amount in (first, second):
        for one, part in take(rest.values(), amount, at=NOW):
            in_turn[one.id] = in_turn.get(one.id, 0) + part
            rest[one.id] = grant(
                one.amount,
                id=one.id,
                remaining=one.remaining - part,
                held=one.held,
                priority=one.priority,
                effective_at=one.effective_at,
                expires_at=one.expires_at,
            )
    assert in_turn == at_once


# --- carried over ---------------------------------------------------------------------------------

OLD = grant(100, remaining=40, effective_at=on("2026-04-15"))
NEW = grant(100, remaining=70, effective_at=on("2026-05-15"))

CARRIED: Table = {
    "all of it under the cap": (200, {OLD: 40, NEW: 70}),
    "exactly the cap": (110, {OLD: 40, NEW: 70}),
    "the newest first when the cap is short": (90, {OLD: 20, NEW: 70}),
    "none of the older when the newest fills the cap": (70, {OLD: 0, NEW: 70}),
    "a part of the newest": (50, {OLD: 0, NEW: 50}),
    "nothing under a cap of nothing": (0, {OLD: 0, NEW: 0}),
}


@pytest.mark.parametrize(("cap", "expected"), cases(CARRIED))
def test_of_expiring_seeds_a_cap_carries(cap: int, expected: dict[CreditGrant, int]) -> None:
    for pair in permutations([OLD, NEW]):
        assert carried_over(pair, cap=cap) == {one.id: kept for one, kept in expected.items()}


@BOUNDED
@given(st.lists(grants(), max_size=8), st.integers(0, 500))
def test_a_cap_carries_as_much_as_it_can_and_no_more(them: list[CreditGrant], cap: int) -> None:
    kept = carried_over(them, cap=cap)
    assert set(kept) == {one.id for one in them}
    assert all(0 <= kept[one.id] <= one.remaining for one in them)
    assert sum(kept.values()) == min(cap, sum(one.remaining for one in them))
