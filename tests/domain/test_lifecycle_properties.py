"""What holds of every life, whatever is done in it and whenever somebody looks.

Generated lives: any interval, anchor and zone, grace from 0 to 28 days, every rollover, trials that
suspend or downgrade, payments early, late and in advance, transfers submitted and rejected, changes of
plan, cancellations, adjustments, at the same instant or months apart.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from uuid import UUID

from hypothesis import event, given, settings
from hypothesis import strategies as st

from shared.domain import lifecycle
from shared.domain.account import Action, require_access
from shared.domain.calendar import Interval
from shared.domain.plan import Assigner, Plan, Rollover, Rules, TrialEnd
from shared.errors import BillingError
from tests.factories import Life, as_loaded, assert_sound, loses_access_at, on, plan, rules

BOUNDED = settings(max_examples=120, derandomize=True)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]
BOUGHT = frozenset({Assigner.CHECKOUT, Assigner.ADMIN})

Deed = Callable[[Life, datetime], object]
History = tuple[Rules, datetime, str, list[tuple[timedelta, Deed]]]


def ids() -> Iterator[UUID]:
    """The same ids for the same decisions, so that whole states can be compared."""
    return (UUID(int=number) for number in count(1))


@st.composite
def plans(draw: st.DrawFn, slug: str, *, priced: bool, trial: bool = False) -> Plan:
    rollover = draw(st.sampled_from(Rollover))
    return plan(
        slug,
        id=UUID(bytes=slug.encode().ljust(16, b".")),
        price_minor=10_00 if priced else 0,
        interval=draw(st.sampled_from(Interval)),
        interval_count=draw(st.integers(1, 3)),
        trial_days=draw(st.integers(1, 45)) if trial else 0,
        trial_end=draw(st.sampled_from(TrialEnd)),
        credits_per_month=draw(st.sampled_from([0, 7, 100])),
        credit_rollover=rollover,
        credit_rollover_cap=draw(st.integers(1, 150)) if rollover is Rollover.CAP else None,
        grace_days=draw(st.integers(0, 28)),
        assignable_by=BOUGHT if priced else frozenset(Assigner),
    )


DEEDS: dict[str, Deed] = {
    "nothing": lambda life, at: life.until(at),
    "checkout one": lambda life, at: life.checkout(at, "one"),
    "checkout two": lambda life, at: life.checkout(at, "two"),
    "checkout free": lambda life, at: life.checkout(at, "free"),
    "buy one": lambda life, at: life.buy(at, "one"),
    "buy two": lambda life, at: life.buy(at, "two"),
    "pay": lambda life, at: life.until(at) or (life.open_invoices and life.pay(at)),
    "pay the oldest": lambda life, at: life.until(at) or (life.open_invoices and life.pay(at, life.open_invoices[0])),
    "submit": lambda life, at: life.until(at) or (life.open_invoices and life.submit(at)),
    "reject": lambda life, at: life.until(at) or (life.open_invoices and life.reject(at)),
    "cancel": lambda life, at: life.cancel(at),
    "cancel now": lambda life, at: life.cancel_now(at),
    "assign one": lambda life, at: life.assign(at, "one"),
    "assign two next": lambda life, at: life.assign_next(at, "two"),
    "assign free next": lambda life, at: life.assign_next(at, "free"),
    "give": lambda life, at: life.adjust(at, 50),
    "give for a while": lambda life, at: life.adjust(at, 50, at + timedelta(days=20)),
    "take": lambda life, at: life.adjust(at, -30),
}
# Weighted towards what leads far; shrinks to nothing.
LIKELY = [*DEEDS, "buy one", "buy two", "pay", "pay", "submit", "submit", "checkout one", "checkout two"]

gaps = st.one_of(
    st.just(timedelta()),
    st.integers(0, 72).map(lambda hours: timedelta(hours=hours)),
    st.integers(0, 60).map(lambda days: timedelta(days=days)),
)
starts = st.one_of(
    st.sampled_from([on("2026-01-31"), on("2028-02-29 00:00"), on("2026-03-28 01:30"), on("2011-12-29 09:00")]),
    st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1), timezones=st.just(on("2026-01-01").tzinfo)),
)


@st.composite
def histories(draw: st.DrawFn) -> History:
    catalogue = [
        draw(plans("free-trial", priced=False, trial=True)),
        draw(plans("free", priced=False)),
        draw(plans("one", priced=True)),
        draw(plans("two", priced=True)),
    ]
    terms = rules(catalogue, transfer_grace_days=draw(st.sampled_from([0, 3, 10])))
    names = draw(st.lists(st.tuples(gaps, st.sampled_from(LIKELY)), max_size=12))
    return terms, draw(starts), draw(st.sampled_from(ZONES)), [(gap, DEEDS[name]) for gap, name in names]


def lived(history: History) -> Iterator[Life]:
    """The life at every stage."""
    terms, start, zone, deeds = history
    life = Life.of(rules(terms.plans.values(), transfer_grace_days=terms.transfer_grace_days), start, time_zone=zone)
    yield life
    for gap, deed in deeds:
        with suppress(BillingError):
            deed(life, life.now + gap)
        yield life


@BOUNDED
@given(histories())
def test_an_account_is_sound_at_every_stage(history: History) -> None:
    for life in lived(history):
        assert_sound(life)
    event(f"ended {life.account.status}")


@BOUNDED
@given(histories())
def test_access_ends_exactly_when_the_gate_says(history: History) -> None:
    """`access_ends_at` against the first loss of access that is found by letting time pass."""
    for life in lived(history):
        lost_at = loses_access_at(life.state, life.rules)
        assert life.access_ends_at() == lost_at
        if lost_at is not None:
            for moment, open_ in ((lost_at - timedelta(microseconds=1), True), (lost_at, False)):
                swept = as_loaded(lifecycle.advance(life.state, life.rules, as_of=moment))
                for state in (life.state, swept):  # swept or not
                    assert passes(Life.access_ends_at(life) if state is life.state else None, state, moment) is open_


def passes(access_ends_at: datetime | None, state: lifecycle.AccountState, now: datetime) -> bool:
    try:
        require_access(Action.USE, status=state.account.status, access_ends_at=access_ends_at, now=now)
    except BillingError:
        return False
    return True


@BOUNDED
@given(histories(), st.lists(gaps, max_size=8), st.lists(st.integers(1, 5), max_size=8))
def test_an_engine_that_slept_ends_where_one_that_never_did(
    history: History, naps: list[timedelta], passes_of: list[int]
) -> None:
    """However time is cut into ticks, and ticks into passes: the same states, rows and instants."""
    terms, start, zone, deeds = history

    def engine() -> Life:
        make = ids()
        own = Rules(
            plans=terms.plans,
            transfer_grace_days=terms.transfer_grace_days,
            invoice_due_days=14,
            new_id=lambda: next(make),
        )
        return Life.of(own, start, time_zone=zone)

    slept, ticked = engine(), engine()
    for gap, deed in [*deeds, (timedelta(days=100), DEEDS["nothing"])]:
        at = slept.now + gap
        for nap in naps:
            ticked.until(min(ticked.now + nap, at))
        for steps in passes_of:
            ticked.until(at, steps=steps)
        for life in (slept, ticked):
            with suppress(BillingError):
                deed(life, at)
        assert ticked.state == slept.state
    assert ticked.subscriptions == slept.subscriptions
    assert ticked.periods == slept.periods
    assert ticked.invoices == slept.invoices
    assert ticked.grants == slept.grants
    assert ticked.ledger == slept.ledger
