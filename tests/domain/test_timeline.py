"""The rules of docs/rules.md, "Timeline": each row is a short life, and what lies ahead of it.

Lives start on 10 January 2026, on a free trial of 14 days unless a row says otherwise. Dates stand for noon UTC
of that day. Credits are told with the balance after them, periods as `from - to`.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from hypothesis import event, given, settings
from msgspec.structs import replace

from shared.domain.account import FULL_ACCESS
from shared.domain.calendar import Interval
from shared.domain.plan import Assigner, Rollover, TrialEnd
from shared.domain.timeline import LONGEST_OUTLOOK, USUAL_OUTLOOK, EntryKind, TimelineEntry, horizon, timeline
from shared.errors import Conflict, InvalidInput
from shared.ids import new_id
from tests.factories import cases, on, plan, rules
from tests.foretold import TICK, Books, assert_foretold
from tests.lives import History, Life, do, histories

BOUGHT = frozenset({Assigner.CHECKOUT, Assigner.ADMIN})
START = on("2026-01-10")

RULES = rules(
    [
        plan("free-trial", trial_days=14, credits_per_month=2_000),
        plan("soft-trial", trial_days=14, credits_per_month=2_000, trial_end=TrialEnd.DOWNGRADE),
        plan("free", credits_per_month=100),
        plan("starter", price_minor=89_00, credits_per_month=0, assignable_by=BOUGHT),
        plan("growth", price_minor=139_00, credits_per_month=0, assignable_by=BOUGHT),
        plan("strict", price_minor=50_00, credits_per_month=0, grace_days=0, assignable_by=BOUGHT),
        plan("yearly", price_minor=890_00, interval=Interval.YEAR, credits_per_month=1_000, assignable_by=BOUGHT),
        plan("hoard", credit_rollover=Rollover.ALL),
        plan("capped", credit_rollover=Rollover.CAP, credit_rollover_cap=30),
        plan("daily", interval=Interval.DAY, credits_per_month=0),
    ]
)

Story = tuple[Callable[[], Life], str, list[str]]


def day(at: datetime | None) -> str:
    return "" if at is None else at.strftime("%m-%d" if at.year == 2026 else "%Y-%m-%d")


def money(minor: int, currency: str | None) -> str:
    return f"{minor // 100}.{minor % 100:02} {currency}"


def told(entry: TimelineEntry) -> str:
    facts: list[object] = [
        entry.plan,
        entry.amount_minor and money(entry.amount_minor, entry.currency),
        entry.due_at and f"due {day(entry.due_at)}",
        entry.period_starts_at and f"for {day(entry.period_starts_at)} - {day(entry.period_ends_at)}",
        entry.status,
        entry.reason,
        entry.grace_ends_at and f"until {day(entry.grace_ends_at)}",
        None if entry.amount is None else f"{entry.amount:+}",
        None if entry.balance_after is None else f"= {entry.balance_after}",
        entry.expires_at and f"until {day(entry.expires_at)}",
    ]
    return " ".join([day(entry.at), f"{entry.transition}:", entry.kind, *(str(fact) for fact in facts if fact)])


def trial(start_on: str = "free-trial") -> Life:
    return Life.of(RULES, START, start_on=start_on)


def on_plan(slug: str) -> Life:
    """Since the first day, and without the credits of the trial."""
    life = trial()
    life.assign(START, slug)
    life.adjust(START, -2_000)
    return life


def cancelled() -> Life:
    life = on_plan("starter")
    life.cancel(on("2026-01-12"))
    return life


def paid_ahead() -> Life:
    life = on_plan("starter")
    life.buy(on("2026-01-12"), "starter")
    return life


def growing() -> Life:
    life = on_plan("starter")
    life.buy(on("2026-01-12"), "growth")
    return life


def undecided_growth() -> Life:
    """A checkout of another plan, which nobody has paid."""
    life = on_plan("free")
    life.adjust(START, -100)
    life.assign(START, "starter")
    life.checkout(on("2026-01-12"), "growth")
    return life


def transfer_in_trial() -> Life:
    life = trial()
    life.checkout(on("2026-01-20"), "starter")
    life.submit(on("2026-01-21"))
    return life


def transfer_in_grace() -> Life:
    life = on_plan("starter")
    life.until(on("2026-02-11"))
    life.submit(on("2026-02-12"))
    return life


def suspended_with_a_gift() -> Life:
    life = trial()
    life.adjust(START, 50, on("2026-03-01"))
    life.adjust(START, 7)
    life.until(on("2026-01-25"))
    return life


def ended() -> Life:
    life = trial()
    life.cancel_now(on("2026-01-11"))
    life.until(on("2026-01-24"))
    return life


STORIES: dict[str, Story] = {
    "an unpaid trial suspends at its end, and its credits expire": (
        trial,
        "2027-01-01",
        [
            "01-24 trial_end: subscription_ended trial_expired",
            "01-24 trial_end: account_status_changed suspended trial_expired",
            "01-24 grant_expiry: credits_expired -2000 = 0",
        ],
    ),
    "the instant until which one looks is seen, too": (
        trial,
        "2026-01-24",
        [
            "01-24 trial_end: subscription_ended trial_expired",
            "01-24 trial_end: account_status_changed suspended trial_expired",
            "01-24 grant_expiry: credits_expired -2000 = 0",
        ],
    ),
    "what comes later is not": (trial, "2026-01-24 11:59:59", []),
    "a trial that downgrades goes on as free, month after month": (
        lambda: trial("soft-trial"),
        "2026-02-24",
        [
            "01-24 trial_end: period_opened free for 01-24 - 02-24",
            "01-24 trial_end: subscription_activated",
            "01-24 trial_end: account_status_changed active",
            "01-24 grant_expiry: credits_expired -2000 = 0",
            "01-24 credit_month: credits_seeded +100 = 100 until 02-24",
            "02-24 renewal: period_opened free for 02-24 - 03-24",
            "02-24 grant_expiry: credits_expired -100 = 0",
            "02-24 credit_month: credits_seeded +100 = 100 until 03-24",
        ],
    ),
    "a period that nobody pays is invoiced, has its grace, and ends there": (
        lambda: on_plan("starter"),
        "2027-01-01",
        [
            "02-10 renewal: period_opened starter for 02-10 - 03-10",
            "02-10 renewal: invoice_opened starter 89.00 USD due 02-10 for 02-10 - 03-10",
            "02-10 renewal: subscription_past_due until 02-17",
            "02-10 renewal: account_status_changed past_due",
            "02-17 grace_end: period_cut starter for 02-10 - 02-17",
            "02-17 grace_end: invoice_voided starter 89.00 USD due 02-10 for 02-10 - 03-10",
            "02-17 grace_end: subscription_ended payment_overdue",
            "02-17 grace_end: account_status_changed suspended payment_overdue",
        ],
    ),
    "without grace it is cut where it starts, which is to say that it was never granted": (
        lambda: on_plan("strict"),
        "2027-01-01",
        [
            "02-10 renewal: period_opened strict for 02-10 - 03-10",
            "02-10 renewal: invoice_opened strict 50.00 USD due 02-10 for 02-10 - 03-10",
            "02-10 renewal: subscription_past_due until 02-10",
            "02-10 renewal: account_status_changed past_due",
            "02-10 grace_end: period_cut strict for 02-10 - 02-10",
            "02-10 grace_end: invoice_voided strict 50.00 USD due 02-10 for 02-10 - 03-10",
            "02-10 grace_end: subscription_ended payment_overdue",
            "02-10 grace_end: account_status_changed suspended payment_overdue",
        ],
    ),
    "a period that is paid ahead just opens": (
        paid_ahead,
        "2026-03-01",
        ["02-10 renewal: period_opened starter for 02-10 - 03-10"],
    ),
    "so does one of another plan": (
        growing,
        "2026-03-01",
        ["02-10 renewal: period_opened growth for 02-10 - 03-10"],
    ),
    "an invoice that decides nothing is void at the renewal": (
        undecided_growth,
        "2026-02-10",
        [
            "02-10 renewal: period_opened starter for 02-10 - 03-10",
            "02-10 renewal: invoice_voided growth 139.00 USD due 02-10 for 02-10 - 03-10",
            "02-10 renewal: invoice_opened starter 89.00 USD due 02-10 for 02-10 - 03-10",
            "02-10 renewal: subscription_past_due until 02-17",
            "02-10 renewal: account_status_changed past_due",
        ],
    ),
    "a cancellation ends with the period": (
        cancelled,
        "2027-01-01",
        [
            "02-10 cancellation: subscription_ended cancelled",
            "02-10 cancellation: account_status_changed cancelled cancelled",
        ],
    ),
    "a trial waits for an undecided transfer, as long as it may": (
        transfer_in_trial,
        "2027-01-01",
        [
            "01-24 trial_end: period_extended free-trial for 01-10 - 02-03",
            "01-24 trial_end: subscription_past_due until 02-03",
            "01-24 trial_end: account_status_changed past_due",
            "01-24 grant_expiry: credits_expired -2000 = 0",
            "02-03 grace_end: subscription_ended trial_expired",
            "02-03 grace_end: account_status_changed suspended trial_expired",
        ],
    ),
    "so does a period": (
        transfer_in_grace,
        "2027-01-01",
        [
            "02-17 grace_end: grace_extended until 02-27",
            "02-27 grace_end: period_cut starter for 02-10 - 02-27",
            "02-27 grace_end: invoice_voided starter 89.00 USD due 02-10 for 02-10 - 03-10",
            "02-27 grace_end: subscription_ended payment_overdue",
            "02-27 grace_end: account_status_changed suspended payment_overdue",
        ],
    ),
    "a yearly plan seeds each month": (
        lambda: on_plan("yearly"),
        "2026-03-10",
        [
            "02-10 grant_expiry: credits_expired -1000 = 0",
            "02-10 credit_month: credits_seeded +1000 = 1000 until 03-10",
            "03-10 grant_expiry: credits_expired -1000 = 0",
            "03-10 credit_month: credits_seeded +1000 = 1000 until 04-10",
        ],
    ),
    "credits that roll over stay, up to the cap": (
        lambda: on_plan("capped"),
        "2026-02-10",
        [
            "02-10 renewal: period_opened capped for 02-10 - 03-10",
            "02-10 grant_expiry: credits_expired -70 = 30",
            "02-10 grant_expiry: credits_carried_over +30 until 03-10",
            "02-10 credit_month: credits_seeded +100 = 130 until 03-10",
        ],
    ),
    "or for ever": (
        lambda: on_plan("hoard"),
        "2026-02-10",
        [
            "02-10 renewal: period_opened hoard for 02-10 - 03-10",
            "02-10 credit_month: credits_seeded +100 = 200",
        ],
    ),
    "after the end of everything, what was given for a while still expires": (
        suspended_with_a_gift,
        "2027-01-01",
        ["03-01 grant_expiry: credits_expired -50 = 7"],
    ),
    "and then there is nothing left to come": (ended, "2031-01-01", []),
}


@pytest.mark.parametrize(("live", "until", "expected"), cases(STORIES))
def test_what_lies_ahead(live: Callable[[], Life], until: str, expected: list[str]) -> None:
    life = live()
    assert [told(entry) for entry in timeline(life.state, RULES, until=on(until))] == expected


@pytest.mark.parametrize("story", STORIES)
def test_it_comes_as_foretold(story: str) -> None:
    live, until, _ = STORIES[story]
    assert_comes_as_foretold(live(), on(until))


def test_what_is_due_and_not_written_yet_is_told_as_it_will_be_written() -> None:
    life = trial()
    foreseen = list(timeline(life.state, RULES, until=on("2026-03-01")))
    assert [day(entry.at) for entry in foreseen] == ["01-24"] * 3
    life.now = on("2026-02-15")  # and no job has been there
    assert list(timeline(life.state, RULES, until=life.now)) == foreseen


def test_only_what_is_stored_is_told_by_its_id() -> None:
    life = undecided_growth()
    (stored,) = life.open_invoices
    entries = list(timeline(life.state, RULES, until=on("2027-01-01")))
    voided = [entry.invoice_id for entry in entries if entry.kind is EntryKind.INVOICE_VOIDED]
    assert voided == [stored.id, None], "the second is opened by then, and has no id yet"
    assert {entry.invoice_id for entry in entries} == {stored.id, None}


def test_looking_ahead_changes_nothing() -> None:
    life = on_plan("starter")
    before = life.state
    assert list(timeline(before, RULES, until=on("2027-01-01"))) == list(
        timeline(before, RULES, until=on("2027-01-01"))
    )
    assert life.state is before


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    ids = 0

    def counted() -> object:
        nonlocal ids
        ids += 1
        return new_id()

    life = on_plan("hoard")
    counting = rules(RULES.plans.values(), new_id=counted)
    entries = timeline(life.state, counting, until=START + LONGEST_OUTLOOK)
    assert [next(entries).kind for _ in range(2)] == ["period_opened", "credits_seeded"]
    assert ids == 1, "one seed"


def test_the_longest_outlook_on_the_shortest_plan_is_bounded() -> None:
    entries = list(timeline(on_plan("daily").state, RULES, until=START + LONGEST_OUTLOOK))
    assert len(entries) == LONGEST_OUTLOOK.days


def test_where_a_job_would_park_the_account_the_timeline_ends() -> None:
    life = on_plan("free")
    broken = replace(life.state, subscriptions=(replace(life.live, time_zone="Mars/Olympus"),))
    entries = timeline(broken, RULES, until=on("2026-02-10"))
    with pytest.raises(Conflict) as refused:
        next(entries)
    assert refused.value.data == {
        "transition": "renewal",
        "due_at": "2026-02-10T12:00:00+00:00",
        "problem": "invalid_schedule",
    }


OUTLOOKS = {
    "a year, unless stated": (None, START + USUAL_OUTLOOK),
    "as far as asked for": (on("2026-02-01"), on("2026-02-01")),
    "only what is due": (START, START),
    "five years": (START + LONGEST_OUTLOOK, START + LONGEST_OUTLOOK),
}


@pytest.mark.parametrize(("until", "expected"), cases(OUTLOOKS))
def test_how_far_one_looks(until: datetime | None, expected: datetime) -> None:
    assert horizon(START, until) == expected


@pytest.mark.parametrize(
    "until",
    [
        pytest.param(START - TICK, id="what has passed"),
        pytest.param(START + LONGEST_OUTLOOK + TICK, id="more than five years"),
    ],
)
def test_how_far_one_does_not(until: datetime) -> None:
    with pytest.raises(InvalidInput) as refused:
        horizon(START, until)
    assert "must lie between" in refused.value.detail
    assert refused.value.data == {
        "now_at": "2026-01-10T12:00:00+00:00",
        "latest": (START + LONGEST_OUTLOOK).isoformat(),
    }


@settings(max_examples=120, derandomize=True)
@given(histories())
def test_whatever_was_done_what_follows_is_foretold(history: History) -> None:
    """After every deed of a generated life, until the next one, and for more than a year at its end."""
    life = history.begin()
    for gap, deed in [*history.deeds, (timedelta(days=400), "nothing")]:
        at = life.now + gap
        assert_comes_as_foretold(life, at)
        do(life, deed, at)
    event(f"ended {life.account.status}")


def assert_comes_as_foretold(life: Life, until: datetime) -> None:
    entries = list(timeline(life.state, life.rules, until=until))
    ends_at = life.access_ends_at()
    lost_at = next((e.at for e in entries if e.status is not None and e.status not in FULL_ACCESS), None)
    assert lost_at == (ends_at if ends_at is not None and ends_at <= until else None), "as the gate says"
    assert_foretold(entries, observed=lambda: Books.of_life(life), live_until=life.until, until=until)
