"""What holds of every life, whatever is done in it and whenever somebody looks.

Generated lives: any interval, anchor and zone, grace from 0 to 28 days, every rollover, trials that
suspend or downgrade, payments early, late and in advance, transfers submitted and rejected, changes of
plan, cancellations, adjustments, at the same instant or months apart.
"""

from datetime import datetime, timedelta

from hypothesis import event, given, settings
from hypothesis import strategies as st

from shared.domain import lifecycle
from shared.domain.account import AccountState, Action, require_access
from shared.errors import BillingError
from tests.lives import History, as_loaded, assert_sound, do, gaps, histories, loses_access_at, stages

BOUNDED = settings(max_examples=120, derandomize=True)
TICK = timedelta(microseconds=1)


@BOUNDED
@given(histories())
def test_an_account_is_sound_at_every_stage(history: History) -> None:
    for life in stages(history):
        assert_sound(life)
    event(f"ended {life.account.status}")


@BOUNDED
@given(histories())
def test_access_ends_exactly_when_the_gate_says(history: History) -> None:
    """`access_ends_at` against the first loss of access that is found by letting time pass."""
    for life in stages(history):
        lost_at = loses_access_at(life.state, life.rules)
        assert life.access_ends_at() == lost_at
        if lost_at is not None:
            assert is_open(life.state, lost_at, now=lost_at - TICK)
            assert not is_open(life.state, lost_at, now=lost_at)
            for now in (lost_at - TICK, lost_at):  # and a worker that has been there changes nothing
                swept = as_loaded(lifecycle.advance(life.state, life.rules, as_of=now))
                ends_at = lifecycle.access_ends_at(swept, life.rules)
                assert is_open(swept, ends_at, now=now) is (now < lost_at)


def is_open(state: AccountState, access_ends_at: datetime | None, *, now: datetime) -> bool:
    try:
        require_access(Action.USE, status=state.account.status, access_ends_at=access_ends_at, now=now)
    except BillingError:
        return False
    return True


@BOUNDED
@given(histories(), st.lists(gaps, max_size=8), st.lists(st.integers(1, 5), max_size=8))
def test_an_engine_that_slept_ends_where_one_that_never_did(
    history: History, naps: list[timedelta], passes: list[int]
) -> None:
    """However time is cut into ticks, and ticks into passes: the same states, rows and instants."""
    slept, ticked = history.begin(), history.begin()
    for gap, deed in [*history.deeds, (timedelta(days=100), "nothing")]:
        at = slept.now + gap
        for nap in naps:
            ticked.until(min(ticked.now + nap, at))
        for steps in passes:
            ticked.until(at, steps=steps)
        for life in (slept, ticked):
            do(life, deed, at)
        assert ticked.state == slept.state
    assert ticked.subscriptions == slept.subscriptions
    assert ticked.periods == slept.periods
    assert ticked.invoices == slept.invoices
    assert ticked.grants == slept.grants
    assert ticked.ledger == slept.ledger
