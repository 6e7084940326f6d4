"""What other parts are told: once, about whom, and at the instant at which it happened."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shared.db import credits
from shared.errors import InsufficientCredits
from tests.factories import Table, cases, on
from tests.office import Customer, Office

Story = Callable[[Office, Customer], Any]

GIFT_ENDS_AT = on("2026-01-20")
SUBJECTS = """
    SELECT id, 'subscription' AS subject FROM subscriptions WHERE account_id = %(id)s
    UNION ALL SELECT id, 'payment' FROM payments WHERE account_id = %(id)s
    UNION ALL SELECT id, 'bank_transfer' FROM bank_transfers WHERE account_id = %(id)s
    """


def told(office: Office, who: Customer, kinds: str = "%") -> list[str]:
    """What was told, each with its day; of credits also how many were left of the threshold. The first word of each
    kind is what the subject is.
    """
    subjects = {row.id: row.subject for row in office.rows(SUBJECTS, id=who.account_id)}
    rows = office.rows(
        "SELECT * FROM events WHERE account_id = %(id)s AND kind LIKE %(kinds)s ORDER BY id",
        id=who.account_id,
        kinds=kinds,
    )
    lines = []
    for row in rows:
        line = f"{row.occurred_at:%m-%d} {row.kind}"
        if row.kind.startswith("credits."):
            assert subjects[row.subject_id] == "subscription"
            line += f" {row.data['balance_credits']} of {row.data['threshold_credits']}"
        else:
            assert row.kind.startswith(f"{subjects[row.subject_id]}.")
        lines.append(line)
    return lines


def low(office: Office, who: Customer) -> list[str]:
    return told(office, who, "credits.%")


# --- credits run out ------------------------------------------------------------------------------------


@pytest.fixture
def who(office: Office) -> Customer:
    """100 credits a month, and none of a trial: low below 20. The month's credits are row 1 of the ledger."""
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    who = office.sign_up()
    office.assign(who, "free")
    return who


def spend(office: Office, who: Customer, *amounts: int) -> None:
    """Each under a key that is new."""
    for amount in amounts:
        before = office.row("SELECT count(*) AS rows FROM credit_transactions").rows
        office.consume(who, amount, f"call {before}")


def batch(office: Office, who: Customer, *amounts: int, whole: bool = False) -> None:
    items = [credits.Item(key=f"item {number}", amount=amount) for number, amount in enumerate(amounts)]
    with office.database.transaction() as tx:
        credits.consume_batch(office.asker(tx, who), items, all_or_nothing=whole, now=office.now)


def over_two_grants(office: Office, who: Customer, amount: int) -> None:
    office.adjust(who, 50)
    spend(office, who, 50 + amount)


def capture(office: Office, who: Customer, amount: int) -> None:
    office.capture(who, office.hold(who, amount, "hold"), amount)


def take(office: Office, who: Customer, amount: int) -> None:
    assert office.adjust(who, -amount).status == "succeeded"


def in_a_batch(office: Office, who: Customer, amount: int) -> None:
    batch(office, who, amount - 10, 10)


def reverse_a_gift(office: Office, who: Customer, amount: int) -> None:
    office.adjust(who, amount)
    spend(office, who, amount)
    assert office.reverse(who, 2).status == "succeeded"


TAKING: Table = {
    "a consumption": (spend,),
    "a consumption of several grants": (over_two_grants,),
    "a capture": (capture,),
    "an adjustment": (take,),
    "a batch": (in_a_batch,),
    "a reversal": (reverse_a_gift,),
}


@pytest.mark.parametrize("taking", cases(TAKING))
@pytest.mark.parametrize(
    ("amount", "lines"),
    [
        pytest.param(80, [], id="at the threshold nothing is told"),
        pytest.param(81, ["01-12 credits.low 19 of 20"], id="below it the account runs low"),
        pytest.param(99, ["01-12 credits.low 1 of 20"], id="with one credit left it is not out of them"),
        pytest.param(
            100,
            ["01-12 credits.exhausted 0 of 1", "01-12 credits.low 0 of 20"],
            id="all at once both are told",
        ),
    ],
)
def test_it_is_told_by(
    office: Office, who: Customer, taking: Callable[[Office, Customer, int], None], amount: int, lines: list[str]
) -> None:
    office.now += timedelta(days=2)
    taking(office, who, amount)
    assert sorted(low(office, who)) == lines


def ask_too_much(office: Office, who: Customer) -> None:
    with pytest.raises(InsufficientCredits):
        spend(office, who, 101)


QUIET: Table = {
    "a hold takes nothing": (lambda office, who: office.hold(who, 100, "hold"),),
    "a consumption that is refused takes nothing": (ask_too_much,),
    "an adjustment that is refused takes nothing": (lambda office, who: office.adjust(who, -101),),
    "a batch that is refused as a whole takes nothing": (lambda office, who: batch(office, who, 90, 11, whole=True),),
    "a cancellation takes nothing": (lambda office, who: office.cancel(who, at_period_end=False),),
}


@pytest.mark.parametrize("story", cases(QUIET))
def test_nothing_is_told_since(office: Office, who: Customer, story: Story) -> None:
    story(office, who)
    assert (low(office, who), office.balance(who).balance_credits) == ([], 100)


def test_nothing_is_told_of_an_expiry(office: Office, who: Customer) -> None:
    office.adjust(who, 30, GIFT_ENDS_AT)
    spend(office, who, 100)
    assert low(office, who) == []
    office.tick(GIFT_ENDS_AT)
    assert (low(office, who), office.balance(who).balance_credits) == ([], 0)


def test_nothing_is_told_of_what_comes_back_and_expires(office: Office, who: Customer) -> None:
    office.adjust(who, 100, GIFT_ENDS_AT)
    office.now += timedelta(days=1)
    spend(office, who, 190)
    assert low(office, who) == ["01-11 credits.low 10 of 20"]
    office.adjust(who, 60)
    office.tick(on("2026-01-21"))
    office.reverse(who, 3)
    assert low(office, who) == ["01-11 credits.low 10 of 20"]


def test_who_falls_below_by_an_expiry_is_told_when_all_is_gone(office: Office, who: Customer) -> None:
    office.adjust(who, 10)
    office.adjust(who, 30, GIFT_ENDS_AT)
    spend(office, who, 100)
    office.tick(GIFT_ENDS_AT)
    spend(office, who, 10)
    assert low(office, who) == ["01-20 credits.exhausted 0 of 1"]


def test_one_after_the_other_each_is_told_once(office: Office, who: Customer) -> None:
    spend(office, who, 81, 1, 1, 17)
    assert low(office, who) == ["01-10 credits.low 19 of 20", "01-10 credits.exhausted 0 of 1"]


def test_a_replay_tells_nothing(office: Office, who: Customer) -> None:
    office.consume(who, 81, "call")
    before = office.dump("holds")
    office.consume(who, 81, "call")
    assert office.dump("holds") == before


@pytest.mark.parametrize("taking", [spend, over_two_grants, capture, take])
def test_in_one_month_it_is_told_once_though_more_came_and_went(
    office: Office, who: Customer, taking: Callable[[Office, Customer, int], None]
) -> None:
    spend(office, who, 81, 19)
    first = low(office, who)
    assert len(first) == 2
    office.now += timedelta(days=1)
    office.adjust(who, 100)
    taking(office, who, 100)
    assert (low(office, who), office.balance(who).balance_credits) == (first, 0)


def test_in_the_next_month_it_is_told_again(office: Office, who: Customer) -> None:
    spend(office, who, 100)
    office.now = on("2026-02-10")
    spend(office, who, 81)
    office.now = on("2026-03-10") - timedelta(seconds=1)
    spend(office, who, 19)
    office.now = on("2026-03-10")
    spend(office, who, 100)
    assert low(office, who)[2:] == [
        "02-10 credits.low 19 of 20",
        "03-10 credits.exhausted 0 of 1",
        "03-10 credits.low 0 of 20",
        "03-10 credits.exhausted 0 of 1",
    ]


def test_its_key_names_subscription_phase_and_month(office: Office) -> None:
    who = office.sign_up()
    spend(office, who, 1_601)
    office.assign(who, "free")
    office.now = on("2026-03-15")
    spend(office, who, 100)
    subscription_id = office.row("SELECT id FROM subscriptions").id
    rows = office.rows("SELECT key FROM events WHERE kind LIKE 'credits.%%' ORDER BY kind, id")
    assert [row.key for row in rows] == [
        f"credits.exhausted:{subscription_id}:1:2",
        f"credits.low:{subscription_id}:0:0",
        f"credits.low:{subscription_id}:1:2",
    ]


THRESHOLDS: Table = {
    "a fifth of the month's credits": ("growth", 20, 1_600, "399 of 400"),
    "rounded down": ("free", 20, 84, "19 of 20"),
    "another share of them": ("growth", 50, 1_000, "999 of 1000"),
    "all of them": ("growth", 100, 0, "1999 of 2000"),
}


@pytest.mark.parametrize(("plan", "percent", "quiet", "line"), cases(THRESHOLDS))
def test_the_threshold_is(office: Office, plan: str, percent: int, quiet: int, line: str) -> None:
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    office.change("UPDATE plans SET credits_per_month = 104 WHERE slug = 'free'")
    office.settings = office.settings.model_copy(update={"low_credits_percent": percent})
    who = office.sign_up()
    office.assign(who, plan)
    if quiet:
        spend(office, who, quiet)
    assert low(office, who) == []
    spend(office, who, 1)
    assert low(office, who) == [f"01-10 credits.low {line}"]


def test_with_a_share_of_nothing_an_account_never_runs_low(office: Office, who: Customer) -> None:
    office.settings = office.settings.model_copy(update={"low_credits_percent": 0})
    office.assign(who, "growth")
    spend(office, who, 2_100)
    assert low(office, who) == ["01-10 credits.exhausted 0 of 1"]


def test_the_threshold_follows_the_plan(office: Office, who: Customer) -> None:
    office.assign(who, "starter")
    spend(office, who, 901)
    assert low(office, who) == ["01-10 credits.low 199 of 200"]


def test_who_has_no_subscription_is_told_nothing(office: Office, who: Customer) -> None:
    office.cancel(who, at_period_end=False)
    take(office, who, 100)
    assert low(office, who) == []


# --- subscriptions, payments, bank transfers ----------------------------------------------------------------


def nothing(office: Office, who: Customer) -> None:
    """A trial that nobody does anything about."""


def no_trial(office: Office, who: Customer) -> None:
    """An admin's plan replaces the trial."""
    office.assign(who, "free")


def buy(office: Office, who: Customer) -> None:
    office.now = on("2026-01-15")
    office.buy(who)


def pay_late(office: Office, who: Customer) -> None:
    buy(office, who)
    office.tick(on("2026-02-15"))
    office.now = on("2026-02-18")
    office.pay(who, office.row("SELECT id FROM invoices WHERE status = 'open'").id)


def pay_ahead(office: Office, who: Customer) -> None:
    buy(office, who)
    office.now = on("2026-02-01")
    office.buy(who)


def change_plan(office: Office, who: Customer) -> None:
    buy(office, who)
    office.now = on("2026-02-01")
    office.buy(who, "growth", 139_00)


def leave(office: Office, who: Customer) -> None:
    buy(office, who)
    office.now = on("2026-01-20")
    office.cancel(who)


def leave_now(office: Office, who: Customer) -> None:
    buy(office, who)
    office.now = on("2026-01-20")
    office.cancel(who, at_period_end=False)


def come_back(office: Office, who: Customer) -> None:
    buy(office, who)
    office.tick(on("2026-03-01"))
    office.buy(who)


def submit(office: Office, who: Customer) -> Any:
    office.now = on("2026-01-15")
    return office.submit(who, office.open_invoice(who))


def approve(office: Office, who: Customer) -> None:
    transfer_id = submit(office, who)
    office.now = on("2026-01-18")
    assert office.execute(office.approval(who, transfer_id)).status == "succeeded"


def approve_after_the_trial(office: Office, who: Customer) -> None:
    transfer_id = submit(office, who)
    office.tick(on("2026-01-28"))
    assert office.execute(office.approval(who, transfer_id)).status == "succeeded"


def reject(office: Office, who: Customer) -> None:
    transfer_id = submit(office, who)
    office.now = on("2026-01-18")
    assert office.execute(office.rejection(who, transfer_id)).status == "succeeded"


def reject_after_the_trial(office: Office, who: Customer) -> None:
    transfer_id = submit(office, who)
    office.tick(on("2026-01-28"))
    assert office.execute(office.rejection(who, transfer_id)).status == "succeeded"


def fail_to_pay(office: Office, who: Customer) -> None:
    office.now = on("2026-01-15")
    invoice_id = office.open_invoice(who)
    payment = office.card_payment(who, invoice_id, succeeded=False)
    assert office.execute(office.confirmation(who, invoice_id, payment)).status == "failed"


BOUGHT = [
    "01-10 subscription.started",
    "01-15 payment.succeeded",
    "01-15 subscription.plan_changed",
    "01-15 subscription.activated",
]

STORIES: Table = {
    "a trial starts": (nothing, "2026-01-10", ["01-10 subscription.started"]),
    "a trial that nobody paid ends": (
        nothing,
        "2026-01-24",
        ["01-10 subscription.started", "01-24 subscription.ended"],
    ),
    "a purchase activates": (buy, "2026-01-15", BOUGHT),
    "a period that was paid ahead renews": (
        pay_ahead,
        "2026-02-15",
        [*BOUGHT, "02-01 payment.succeeded", "02-15 subscription.renewed"],
    ),
    "a period without a price renews": (
        no_trial,
        "2026-03-09",
        ["01-10 subscription.started", "01-10 subscription.plan_changed", "02-10 subscription.renewed"],
    ),
    "an unpaid period is past due": (buy, "2026-02-15", [*BOUGHT, "02-15 subscription.past_due"]),
    "and ends with its grace": (
        buy,
        "2026-04-01",
        [*BOUGHT, "02-15 subscription.past_due", "02-22 subscription.ended"],
    ),
    "paid within its grace it is active again": (
        pay_late,
        "2026-02-22",
        [*BOUGHT, "02-15 subscription.past_due", "02-18 payment.succeeded", "02-18 subscription.activated"],
    ),
    "another plan takes over at the renewal": (
        change_plan,
        "2026-02-15",
        [*BOUGHT, "02-01 payment.succeeded", "02-15 subscription.plan_changed", "02-15 subscription.renewed"],
    ),
    "a cancellation is scheduled": (
        leave,
        "2026-02-14",
        [*BOUGHT, "01-20 subscription.cancellation_scheduled"],
    ),
    "and ends the subscription with its period": (
        leave,
        "2026-03-01",
        [*BOUGHT, "01-20 subscription.cancellation_scheduled", "02-15 subscription.ended"],
    ),
    "cancelled at once it ends at once": (leave_now, "2026-03-01", [*BOUGHT, "01-20 subscription.ended"]),
    "who comes back has another subscription": (
        come_back,
        "2026-03-01",
        [
            *BOUGHT,
            "02-15 subscription.past_due",
            "02-22 subscription.ended",
            "03-01 payment.succeeded",
            "03-01 subscription.started",
            "03-01 subscription.activated",
        ],
    ),
    "a bank transfer is submitted": (
        submit,
        "2026-01-15",
        ["01-10 subscription.started", "01-15 bank_transfer.submitted"],
    ),
    "a bank transfer defers the end of a trial": (
        submit,
        "2026-01-30",
        ["01-10 subscription.started", "01-15 bank_transfer.submitted", "01-24 subscription.past_due"],
    ),
    "and the trial ends when nobody decides": (
        submit,
        "2026-03-01",
        [
            "01-10 subscription.started",
            "01-15 bank_transfer.submitted",
            "01-24 subscription.past_due",
            "02-03 subscription.ended",
        ],
    ),
    "a bank transfer is approved": (
        approve,
        "2026-01-18",
        [
            "01-10 subscription.started",
            "01-15 bank_transfer.submitted",
            "01-18 payment.succeeded",
            "01-18 subscription.plan_changed",
            "01-18 subscription.activated",
            "01-18 bank_transfer.approved",
        ],
    ),
    "a bank transfer is approved after the trial": (
        approve_after_the_trial,
        "2026-01-28",
        [
            "01-10 subscription.started",
            "01-15 bank_transfer.submitted",
            "01-24 subscription.past_due",
            "01-28 payment.succeeded",
            "01-28 subscription.plan_changed",
            "01-28 subscription.activated",
            "01-28 bank_transfer.approved",
        ],
    ),
    "a bank transfer is rejected": (
        reject,
        "2026-01-18",
        ["01-10 subscription.started", "01-15 bank_transfer.submitted", "01-18 bank_transfer.rejected"],
    ),
    "a bank transfer is rejected after the trial": (
        reject_after_the_trial,
        "2026-01-28",
        [
            "01-10 subscription.started",
            "01-15 bank_transfer.submitted",
            "01-24 subscription.past_due",
            "01-28 subscription.ended",
            "01-28 bank_transfer.rejected",
        ],
    ),
    "a payment fails": (fail_to_pay, "2026-01-15", ["01-10 subscription.started", "01-15 payment.failed"]),
}


@pytest.mark.parametrize(("story", "until", "lines"), cases(STORIES))
def test_told_of(office: Office, story: Story, until: str, lines: list[str]) -> None:
    who = office.sign_up()
    story(office, who)
    office.tick(on(until))
    assert told(office, who) == lines


@pytest.mark.parametrize(("story", "until", "lines"), cases(STORIES))
def test_told_the_same_however_often_the_jobs_ran_of(
    office: Office, story: Story, until: str, lines: list[str]
) -> None:
    who = office.sign_up()
    story(office, who)
    while office.now < on(until):
        office.tick(min(office.now + timedelta(days=1, hours=7), on(until)))
    office.tick(on(until))
    assert told(office, who) == lines


def facts(office: Office, kind: str) -> dict[str, Any]:
    data: dict[str, Any] = office.row("SELECT data FROM events WHERE kind = %(kind)s", kind=kind).data
    return data


def test_an_event_says_what_one_wants_to_know(office: Office) -> None:
    who = office.sign_up()
    pay_late(office, who)
    first, second = (str(row.id) for row in office.rows("SELECT id FROM invoices ORDER BY id"))
    assert facts(office, "subscription.started")["trial"] is True
    assert facts(office, "subscription.past_due")["invoice_id"] == second
    rows = office.rows("SELECT data FROM events WHERE kind = 'payment.succeeded' ORDER BY id")
    assert [row.data for row in rows] == [
        {"invoice_id": invoice_id, "amount_minor": 89_00, "currency": "USD"} for invoice_id in (first, second)
    ]
