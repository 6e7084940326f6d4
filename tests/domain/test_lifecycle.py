"""The rules of docs/rules.md, "Life of an account", each told as a short life.

Lives start on 10 January 2026, on a free trial of 14 days unless a row says otherwise. Dates stand for
noon UTC of that day, in 2026 unless a year is given. A row tells what is done when, until when time then
passes, and what has become of the account by then; what it does not mention it does not look at.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest

from shared.domain import lifecycle
from shared.domain.calendar import Interval
from shared.domain.credits import GrantSource
from shared.domain.invoice import PaymentMethod
from shared.domain.lifecycle import Transition
from shared.domain.plan import Assigner, Rollover, Rules, TrialEnd
from shared.errors import (
    BillingError,
    Conflict,
    InsufficientCredits,
    InvalidSchedule,
    InvoiceAlreadyOpen,
    InvoiceNotOpen,
    NoLiveSubscription,
    PeriodAlreadyPaid,
    PlanNotAssignable,
    TransferPending,
)
from tests.factories import Table, cases, on, plan, rules
from tests.lives import Life, assert_sound

BOUGHT = frozenset({Assigner.CHECKOUT, Assigner.ADMIN})
SIGNED_UP = frozenset({Assigner.SIGNUP})

RULES = rules(
    [
        plan("free-trial", trial_days=14, credits_per_month=2_000, assignable_by=SIGNED_UP),
        plan("soft-trial", trial_days=14, credits_per_month=2_000, trial_end=TrialEnd.DOWNGRADE),
        plan("long-trial", trial_days=40, credits_per_month=500),
        plan("free", credits_per_month=100),
        plan("starter", price_minor=89_00, credits_per_month=1_000, assignable_by=BOUGHT),
        plan("growth", price_minor=139_00, credits_per_month=2_000, assignable_by=BOUGHT),
        plan("strict", price_minor=50_00, grace_days=0, assignable_by=BOUGHT),
        plan("yearly", price_minor=890_00, interval=Interval.YEAR, credits_per_month=1_000, assignable_by=BOUGHT),
        plan("patient", price_minor=700_00, interval=Interval.YEAR, grace_days=28, assignable_by=BOUGHT),
        plan("weekly", price_minor=10_00, interval=Interval.WEEK, grace_days=9, assignable_by=BOUGHT),
        plan("hoard", price_minor=20_00, credit_rollover=Rollover.ALL, assignable_by=BOUGHT),
        plan("capped", credit_rollover=Rollover.CAP, credit_rollover_cap=150, assignable_by=BOUGHT),
        plan("enterprise", credits_per_month=10_000, assignable_by=frozenset({Assigner.ADMIN})),
    ]
)

Story = tuple[list[tuple[Any, ...]], str, Mapping[str, object]]


def when(text: str) -> datetime:
    return on(text if text.startswith("20") else f"2026-{text}")


def told(at: datetime | None) -> str | None:
    """An instant as the tables write it."""
    if at is None:
        return None
    day = at.strftime("%m-%d" if at.year == 2026 else "%Y-%m-%d")
    return day if at.strftime("%H:%M:%S") == "12:00:00" else f"{day} {at:%H:%M}"


def lived(deeds: list[tuple[Any, ...]], until: str, *, under: Rules = RULES, start_on: str = "free-trial") -> Life:
    """A life in which this was done. A first deed `start on` names the plan of the signup, and its day."""
    start = on("2026-01-10")
    if deeds and deeds[0][1] == "start on":
        start, start_on = when(deeds[0][0]), deeds[0][2]
        deeds = deeds[1:]
    life = Life.of(under, start, start_on=start_on)
    for day, verb, *arguments in deeds:
        if verb == "pay for":  # an invoice that is not the newest
            life.until(when(day))
            (invoice,) = [one for one in life.open_invoices if one.plan_id == life.plan(arguments[0]).id]
            life.pay(when(day), invoice)
        else:
            getattr(life, verb)(when(day), *arguments)
    life.until(when(until))
    return life


def became(life: Life) -> dict[str, object]:
    """What a row may mention."""
    account = life.account
    slug = {one.id: one.slug for one in life.rules.plans.values()}
    seeds = [one for one in life.grants.values() if one.source is GrantSource.SEED]
    return {
        "status": str(account.status) + (f" {account.status_reason}" if account.status_reason else ""),
        "access ends": told(life.access_ends_at()),
        "periods": [f"{told(p.starts_at)} - {told(p.ends_at)} {slug[p.plan_id]}" for p in life.period_list()],
        "invoices": [f"{slug[i.plan_id]} {i.status}" for i in life.invoices.values()],
        "seeds": [
            f"{told(one.effective_at)} {one.amount}" + (f" until {told(one.expires_at)}" if one.expires_at else "")
            for one in seeds
        ],
        "ledger": [f"{told(row.effective_at)} {row.kind} {row.amount:+}" for row in life.ledger],
        "balance": account.balance_credits,
        "subscriptions": [
            f"{told(sub.started_at)} - {told(sub.ended_at)} {sub.end_reason}"
            if sub.ended_at
            else f"{told(sub.started_at)} {sub.status}"
            for sub in life.subscriptions.values()
        ],
        "voided": [told(i.voided_at) for i in life.invoices.values() if i.voided_at],
        "renews": told(life.state.live.renews_at) if life.state.live else None,
    }


TRIAL: dict[str, Story] = {
    "a trial gives full access and its credits for its days": (
        [],
        "01-10",
        {
            "status": "trial",
            "access ends": "01-24",
            "periods": ["01-10 - 01-24 free-trial"],
            "seeds": ["01-10 2000 until 01-24"],
            "balance": 2_000,
        },
    ),
    "it is not over a moment before its end": ([], "01-24 11:59:59", {"status": "trial", "balance": 2_000}),
    "an unpaid trial suspends at its end": (
        [],
        "01-24",
        {
            "status": "suspended trial_expired",
            "subscriptions": ["01-10 - 01-24 trial_expired"],
            "balance": 0,
            "access ends": None,
        },
    ),
    "nothing happens after that": (
        [],
        "2028-01-01",
        {
            "periods": ["01-10 - 01-24 free-trial"],
            "ledger": ["01-10 seed +2000", "01-24 expire -2000"],
            "invoices": [],
        },
    ),
    "one that downgrades goes on as free, from its end": (
        [("01-10", "start on", "soft-trial")],
        "03-01",
        {
            "status": "active",
            "access ends": None,
            "periods": ["01-10 - 01-24 soft-trial", "01-24 - 02-24 free", "02-24 - 03-24 free"],
            "seeds": ["01-10 2000 until 01-24", "01-24 100 until 02-24", "02-24 100 until 03-24"],
            "balance": 100,
        },
    ),
    "one longer than a month seeds each credit month, none beyond its end": (
        [("01-10", "start on", "long-trial")],
        "02-19",
        {
            "status": "suspended trial_expired",
            "seeds": ["01-10 500 until 02-10", "02-10 500 until 02-19"],
            "balance": 0,
        },
    ),
    "payment in the trial activates at once and anchors there": (
        [("01-15 09:00", "buy", "starter")],
        "02-01",
        {
            "status": "active",
            "periods": ["01-10 - 01-15 09:00 free-trial", "01-15 09:00 - 02-15 09:00 starter"],
            "invoices": ["starter paid"],
            "renews": "02-15 09:00",
            "subscriptions": ["01-10 active"],
        },
    ),
    "trial credits keep their own expiry": (
        [("01-15", "buy", "starter")],
        "01-30",
        {
            "seeds": ["01-10 2000 until 01-24", "01-15 1000 until 02-15"],
            "ledger": ["01-10 seed +2000", "01-15 seed +1000", "01-24 expire -2000"],
            "balance": 1_000,
        },
    ),
    "cancelled at its end, a trial just ends": (
        [("01-12", "cancel")],
        "01-24",
        {"status": "cancelled cancelled", "periods": ["01-10 - 01-24 free-trial"], "balance": 0},
    ),
    "payment takes a cancellation back": (
        [("01-12", "cancel"), ("01-15", "buy", "starter")],
        "01-30",
        {"status": "active", "renews": "02-15"},
    ),
    "the free plan chosen in a trial begins at its end": (
        [("01-12", "checkout", "free")],
        "01-30",
        {
            "status": "active",
            "access ends": None,
            "invoices": [],
            "periods": ["01-10 - 01-24 free-trial", "01-24 - 02-24 free"],
        },
    ),
    "enterprise assigned in a trial begins at once": (
        [("01-12", "assign", "enterprise")],
        "01-30",
        {"status": "active", "periods": ["01-10 - 01-12 free-trial", "01-12 - 02-12 enterprise"], "balance": 10_000},
    ),
    "enterprise assigned for the end of a trial begins there": (
        [("01-12", "assign_next", "enterprise")],
        "01-30",
        {"status": "active", "periods": ["01-10 - 01-24 free-trial", "01-24 - 02-24 enterprise"]},
    ),
}

TRANSFER_IN_TRIAL: dict[str, Story] = {
    "an undecided transfer defers the suspension": (
        [("01-12", "checkout", "starter"), ("01-14", "submit")],
        "02-03 11:59",
        {"status": "past_due", "access ends": "02-03", "periods": ["01-10 - 02-03 free-trial"]},
    ),
    "the gate knows that before the trial ends": (
        [("01-12", "checkout", "starter"), ("01-14", "submit")],
        "01-14",
        {"status": "trial", "access ends": "02-03"},
    ),
    "by ten days and no more": (
        [("01-12", "checkout", "starter"), ("01-14", "submit")],
        "02-03",
        {
            "status": "suspended trial_expired",
            "periods": ["01-10 - 02-03 free-trial"],
            "invoices": ["starter open"],
        },
    ),
    "trial credits expire with the trial though access goes on": (
        [("01-12", "checkout", "starter"), ("01-14", "submit")],
        "01-25",
        {"status": "past_due", "balance": 0, "seeds": ["01-10 2000 until 01-24"]},
    ),
    "a rejection after the trial's end suspends at once": (
        [("01-12", "checkout", "starter"), ("01-14", "submit"), ("01-28", "reject")],
        "01-28",
        {"status": "suspended trial_expired", "periods": ["01-10 - 01-28 free-trial"]},
    ),
    "a rejection before the trial's end leaves the trial as it was": (
        [("01-12", "checkout", "starter"), ("01-14", "submit"), ("01-20", "reject")],
        "01-24",
        {"status": "suspended trial_expired", "periods": ["01-10 - 01-24 free-trial"]},
    ),
    "an approval while it is deferred activates there": (
        [("01-12", "checkout", "starter"), ("01-14", "submit"), ("01-28", "pay")],
        "02-01",
        {
            "status": "active",
            "periods": ["01-10 - 01-28 free-trial", "01-28 - 02-28 starter"],
            "balance": 1_000,
        },
    ),
    "an approval after the ten days opens a new subscription": (
        [("01-12", "checkout", "starter"), ("01-14", "submit"), ("02-10", "pay")],
        "02-10",
        {
            "status": "active",
            "periods": ["01-10 - 02-03 free-trial", "02-10 - 03-10 starter"],
            "subscriptions": ["01-10 - 02-03 trial_expired", "02-10 active"],
        },
    ),
    "a transfer submitted after the trial's end comes too late": (
        [("01-12", "checkout", "starter"), ("01-24", "submit")],
        "01-24",
        {"status": "suspended trial_expired", "invoices": ["starter open"]},
    ),
    "a transfer delays a downgrade, it does not turn it into a suspension": (
        [("01-10", "start on", "soft-trial"), ("01-12", "checkout", "starter"), ("01-14", "submit")],
        "02-05",
        {
            "status": "active",
            "access ends": None,
            "periods": ["01-10 - 02-03 soft-trial", "02-03 - 03-03 free"],
        },
    ),
    "its rejection downgrades at once": (
        [
            ("01-10", "start on", "soft-trial"),
            ("01-12", "checkout", "starter"),
            ("01-14", "submit"),
            ("01-28", "reject"),
        ],
        "01-28",
        {"status": "active", "periods": ["01-10 - 01-28 soft-trial", "01-28 - 02-28 free"]},
    ),
}

RENEWAL: dict[str, Story] = {
    "without a price the next period opens where the last one ended": (
        [("01-10", "start on", "free")],
        "03-15",
        {
            "status": "active",
            "access ends": None,
            "invoices": [],
            "periods": ["01-10 - 02-10 free", "02-10 - 03-10 free", "03-10 - 04-10 free"],
        },
    ),
    "with a price it opens past due, with an invoice": (
        [("01-10", "buy", "starter")],
        "02-10",
        {
            "status": "past_due",
            "access ends": "02-17",
            "invoices": ["starter paid", "starter open"],
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 starter"],
        },
    ),
    "the gate knows the end of the grace before the renewal": (
        [("01-10", "buy", "starter")],
        "01-11",
        {"status": "active", "access ends": "02-17"},
    ),
    "past due has full access and no new credits": (
        [("01-10", "buy", "starter"), ("01-11", "adjust", 5)],
        "02-11",
        {"status": "past_due", "balance": 5},
    ),
    "not paid, it is suspended at the end of the grace, its invoice void, its period cut": (
        [("01-10", "buy", "starter")],
        "03-01",
        {
            "status": "suspended payment_overdue",
            "invoices": ["starter paid", "starter void"],
            "voided": ["02-17"],
            "periods": ["01-10 - 02-10 starter", "02-10 - 02-17 starter"],
            "subscriptions": ["01-10 - 02-17 payment_overdue"],
        },
    ),
    "paid within the grace, the dates stay and the seed is there": (
        [("01-10", "buy", "starter"), ("02-13", "pay")],
        "02-13",
        {
            "status": "active",
            "access ends": "03-17",
            "renews": "03-10",
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 starter"],
            "seeds": ["01-10 2000 until 01-24", "01-10 1000 until 02-10", "02-13 1000 until 03-10"],
            "balance": 1_000,
        },
    ),
    "paid within the grace, the credit months stay too": (
        [("01-15", "buy", "starter"), ("02-20", "pay"), ("03-16", "pay")],
        "03-16",
        {
            "seeds": [
                "01-10 2000 until 01-24",
                "01-15 1000 until 02-15",
                "02-20 1000 until 03-15",
                "03-16 1000 until 04-15",
            ],
            "access ends": "04-22",
        },
    ),
    "paid at the last moment of the grace counts": (
        [("01-10", "buy", "starter"), ("02-17 11:59", "pay")],
        "02-17",
        {"status": "active"},
    ),
    "without grace it is suspended at the renewal": (
        [("01-10", "buy", "strict")],
        "02-10",
        {
            "status": "suspended payment_overdue",
            "periods": ["01-10 - 02-10 strict"],
            "invoices": ["strict paid", "strict void"],
        },
    ),
    "grace never outlasts the period that is not paid": (
        [("01-10", "buy", "weekly")],
        "01-24",
        {
            "status": "suspended payment_overdue",
            "periods": ["01-10 - 01-17 weekly", "01-17 - 01-24 weekly"],
            "invoices": ["weekly paid", "weekly void"],
        },
    ),
    "paid in advance it just goes on": (
        [("01-10", "buy", "starter"), ("02-01", "buy", "starter")],
        "02-10",
        {
            "status": "active",
            "access ends": "03-17",
            "invoices": ["starter paid", "starter paid"],
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 starter"],
            "balance": 1_000,
        },
    ),
    "the gate knows what is paid in advance": (
        [("01-10", "buy", "starter"), ("02-01", "buy", "starter")],
        "02-01",
        {"access ends": "03-17"},
    ),
    "an advance invoice that stays unpaid is the renewal's invoice": (
        [("01-10", "buy", "starter"), ("02-01", "checkout", "starter")],
        "02-10",
        {"status": "past_due", "invoices": ["starter paid", "starter open"]},
    ),
    "an undecided transfer extends the grace by ten days, once": (
        [("01-10", "buy", "starter"), ("02-11", "submit")],
        "03-01",
        {
            "status": "suspended payment_overdue",
            "periods": ["01-10 - 02-10 starter", "02-10 - 02-27 starter"],
            "invoices": ["starter paid", "starter void"],
        },
    ),
    "and the gate knows": (
        [("01-10", "buy", "starter"), ("02-11", "submit")],
        "02-11",
        {"status": "past_due", "access ends": "02-27"},
    ),
    "but not beyond the unpaid period": (
        [("01-10", "buy", "weekly"), ("01-18", "submit")],
        "02-01",
        {"status": "suspended payment_overdue", "periods": ["01-10 - 01-17 weekly", "01-17 - 01-24 weekly"]},
    ),
    "a rejection within the grace leaves the grace": (
        [("01-10", "buy", "starter"), ("02-11", "submit"), ("02-12", "reject")],
        "02-16",
        {"status": "past_due", "access ends": "02-17"},
    ),
    "a rejection after the grace suspends at once": (
        [("01-10", "buy", "starter"), ("02-11", "submit"), ("02-20", "reject")],
        "02-20",
        {"status": "suspended payment_overdue", "periods": ["01-10 - 02-10 starter", "02-10 - 02-20 starter"]},
    ),
    "a transfer for what was then paid otherwise defers nothing": (
        [("01-10", "buy", "starter"), ("02-01", "checkout", "starter"), ("02-02", "submit"), ("02-03", "pay")],
        "03-12",
        {"status": "past_due", "access ends": "03-17"},
    ),
}

ENDING: dict[str, Story] = {
    "cancelled at its period's end, it runs to there and is not renewed": (
        [("01-10", "buy", "starter"), ("01-20", "cancel")],
        "03-01",
        {
            "status": "cancelled cancelled",
            "periods": ["01-10 - 02-10 starter"],
            "invoices": ["starter paid"],
            "subscriptions": ["01-10 - 02-10 cancelled"],
        },
    ),
    "until then nothing changes but the end": (
        [("01-10", "buy", "starter"), ("01-20", "cancel")],
        "02-09",
        {"status": "active", "access ends": "02-10", "renews": None},
    ),
    "cancelled after paying ahead, it ends with what is paid": (
        [("01-10", "buy", "starter"), ("01-20", "buy", "starter"), ("01-21", "cancel")],
        "03-10",
        {
            "status": "cancelled cancelled",
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 starter"],
            "invoices": ["starter paid", "starter paid"],
        },
    ),
    "cancelled after paying ahead for another plan, it ends with that": (
        [("01-10", "buy", "starter"), ("01-20", "buy", "growth"), ("01-21", "cancel")],
        "03-10",
        {
            "status": "cancelled cancelled",
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 growth"],
        },
    ),
    "cancelled now, it ends now": (
        [("01-10", "buy", "starter"), ("01-20", "cancel_now")],
        "01-20",
        {"status": "cancelled cancelled", "periods": ["01-10 - 01-20 starter"]},
    ),
    "cancelled while past due, it ends now and owes nothing": (
        [("01-10", "buy", "starter"), ("02-12", "cancel")],
        "02-12",
        {"status": "cancelled cancelled", "invoices": ["starter paid", "starter void"]},
    ),
    "credits outlive a cancellation until their own expiry": (
        [("01-10", "buy", "starter"), ("01-20", "cancel_now")],
        "02-20",
        {"ledger": ["01-10 seed +2000", "01-10 seed +1000", "01-24 expire -2000", "02-10 expire -1000"]},
    ),
    "a suspended account that pays gets a new subscription, anchored at the confirmation": (
        [("01-30", "checkout", "starter"), ("02-05 08:30", "pay")],
        "02-06",
        {
            "status": "active",
            "subscriptions": ["01-10 - 01-24 trial_expired", "02-05 08:30 active"],
            "periods": ["01-10 - 01-24 free-trial", "02-05 08:30 - 03-05 08:30 starter"],
            "balance": 1_000,
            "access ends": "03-12 08:30",
        },
    ),
    "so does a cancelled one, whose invoice was open": (
        [("01-10", "checkout", "starter"), ("01-11", "cancel_now"), ("01-15", "pay")],
        "01-15",
        {
            "status": "active",
            "subscriptions": ["01-10 - 01-11 cancelled", "01-15 active"],
            "periods": ["01-10 - 01-11 free-trial", "01-15 - 02-15 starter"],
        },
    ),
    "an admin lifts a suspension with a plan": (
        [("02-01", "assign", "enterprise")],
        "02-01",
        {"status": "active", "periods": ["01-10 - 01-24 free-trial", "02-01 - 03-01 enterprise"]},
    ),
    "a plan that begins with a trial gives no second one": (
        [("02-01", "assign", "long-trial")],
        "02-01",
        {"status": "active", "periods": ["01-10 - 01-24 free-trial", "02-01 - 03-01 long-trial"]},
    ),
    "the free plan lifts a suspension": (
        [("02-01", "checkout", "free")],
        "02-01",
        {"status": "active", "access ends": None, "balance": 100},
    ),
}

PLAN_CHANGE: dict[str, Story] = {
    "an advance invoice for another plan changes to it at the period's end": (
        [("01-10", "buy", "starter"), ("01-20", "buy", "growth")],
        "02-10",
        {
            "status": "active",
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 growth"],
            "invoices": ["starter paid", "growth paid"],
            "balance": 2_000,
            "access ends": "03-17",
        },
    ),
    "nobody paid for it, so it does not happen": (
        [("01-10", "buy", "starter"), ("01-20", "checkout", "growth")],
        "02-10",
        {
            "status": "past_due",
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 starter"],
            "invoices": ["starter paid", "growth void", "starter open"],
            "access ends": "02-17",
        },
    ),
    "a transfer for it is undecided: it happens past due": (
        [("01-10", "buy", "starter"), ("01-20", "checkout", "growth"), ("01-21", "submit")],
        "02-10",
        {
            "status": "past_due",
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 growth"],
            "invoices": ["starter paid", "growth open"],
            "access ends": "02-27",
        },
    ),
    "another choice replaces an unpaid advance invoice": (
        [("01-10", "buy", "starter"), ("01-20", "checkout", "growth"), ("01-21", "checkout", "yearly")],
        "01-21",
        {"invoices": ["starter paid", "growth void", "yearly open"]},
    ),
    "from a free plan it happens on payment": (
        [("01-10", "start on", "free"), ("01-20", "buy", "starter")],
        "02-15",
        {"periods": ["01-10 - 01-20 free", "01-20 - 02-20 starter"], "status": "active"},
    ),
    "to the free plan it happens at the period's end": (
        [("01-10", "buy", "starter"), ("01-20", "checkout", "free")],
        "02-10",
        {
            "status": "active",
            "access ends": None,
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 free"],
            "balance": 100,
        },
    ),
    "an admin changes at the period's end": (
        [("01-10", "buy", "starter"), ("01-20", "assign_next", "enterprise")],
        "02-10",
        {"status": "active", "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 enterprise"], "balance": 10_000},
    ),
    "an admin's change at the period's end voids the advance invoice of the customer": (
        [("01-10", "buy", "starter"), ("01-20", "checkout", "growth"), ("01-21", "assign_next", "enterprise")],
        "02-10",
        {
            "status": "active",
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 enterprise"],
            "invoices": ["starter paid", "growth void"],
        },
    ),
    "an admin changes at once and voids what was owed": (
        [("01-10", "buy", "starter"), ("02-12", "assign", "enterprise")],
        "02-12",
        {
            "status": "active",
            "invoices": ["starter paid", "starter void"],
            "periods": ["01-10 - 02-10 starter", "02-10 - 02-12 starter", "02-12 - 03-12 enterprise"],
        },
    ),
    "an admin's change takes a cancellation back": (
        [("01-10", "buy", "starter"), ("01-20", "cancel"), ("01-21", "assign_next", "growth")],
        "02-10",
        {"status": "past_due", "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 growth"]},
    ),
    "an admin's plan that is the present one just goes on": (
        [("01-10", "buy", "starter"), ("01-20", "checkout", "free"), ("01-21", "assign_next", "starter")],
        "02-10",
        {"status": "past_due", "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 starter"]},
    ),
    "a cancellation takes a change of plan back": (
        [("01-10", "buy", "starter"), ("01-20", "checkout", "free"), ("01-21", "cancel")],
        "02-10",
        {"status": "cancelled cancelled", "periods": ["01-10 - 02-10 starter"]},
    ),
    "payment of an activation invoice supersedes what the subscription owes": (
        [
            ("01-10", "start on", "free"),
            ("01-11", "checkout", "growth"),
            ("01-12", "assign_next", "starter"),
            ("02-11", "pay for", "growth"),
        ],
        "02-12",
        {
            "status": "active",
            "invoices": ["growth paid", "starter void"],
            "periods": ["01-10 - 02-10 free", "02-10 - 02-11 starter", "02-11 - 03-11 growth"],
        },
    ),
}

ROLLOVER: dict[str, Story] = {
    "none: a seed expires when its credit month ends": (
        [("01-10", "start on", "free")],
        "03-10",
        {
            "ledger": [
                "01-10 seed +100",
                "02-10 expire -100",
                "02-10 seed +100",
                "03-10 expire -100",
                "03-10 seed +100",
            ]
        },
    ),
    "all: it does not": (
        [("01-10", "assign", "hoard"), ("02-10", "pay"), ("03-10", "pay")],
        "03-10",
        {"seeds": ["01-10 2000 until 01-24", "01-10 100", "02-10 100", "03-10 100"], "balance": 300},
    ),
    "cap: up to the cap is carried, the newest first": (
        [("01-10", "assign", "capped")],
        "03-10",
        {
            "ledger": [
                "01-10 seed +2000",
                "01-10 seed +100",
                "01-24 expire -1850",
                "02-10 expire -100",
                "02-10 seed +100",
                "03-10 expire -50",
                "03-10 expire -50",
                "03-10 seed +100",
            ],
            "balance": 250,
        },
    ),
    "an adjustment with an expiry is never carried over": (
        [("01-10", "assign", "capped"), ("01-25", "adjust", 70, on("2026-02-01"))],
        "02-01",
        {"balance": 100 + 150},
    ),
    "an adjustment without one outlives every month": (
        [("01-10", "start on", "free"), ("01-11", "adjust", 70)],
        "05-01",
        {"balance": 170},
    ),
}

YEARLY: dict[str, Story] = {
    "a yearly plan seeds twelve times a year": (
        [("01-10", "buy", "yearly")],
        "12-31",
        {
            "periods": ["01-10 - 2027-01-10 yearly"],
            "seeds": ["01-10 2000 until 01-24"]
            + [f"{month:02}-10 1000 until {month + 1:02}-10" for month in range(1, 12)]
            + ["12-10 1000 until 2027-01-10"],
            "access ends": "2027-01-17",
        },
    ),
    "paid late by more than a month, the month that is over is not seeded": (
        [
            ("01-10", "buy", "patient"),
            ("2027-01-12", "submit"),
            ("2027-02-12", "pay"),
        ],
        "2027-02-12",
        {
            "status": "active",
            "balance": 100,
            "seeds": ["01-10 2000 until 01-24"]
            + [f"{month:02}-10 100 until {month + 1:02}-10" for month in range(1, 12)]
            + ["12-10 100 until 2027-01-10", "2027-02-12 100 until 2027-03-10"],
            "renews": "2028-01-10",
        },
    ),
    "a weekly plan seeds monthly": (
        [("01-10", "buy", "weekly"), ("01-16", "buy", "weekly"), ("01-23", "buy", "weekly")],
        "01-30",
        {"seeds": ["01-10 2000 until 01-24", "01-10 100 until 02-10"]},
    ),
}

MONTH_ENDS: dict[str, Story] = {
    "31 January, 28 February, 31 March, 30 April": (
        [("2026-01-31", "start on", "free")],
        "05-01",
        {
            "periods": ["01-31 - 02-28 free", "02-28 - 03-31 free", "03-31 - 04-30 free", "04-30 - 05-31 free"],
            "seeds": [
                "01-31 100 until 02-28",
                "02-28 100 until 03-31",
                "03-31 100 until 04-30",
                "04-30 100 until 05-31",
            ],
        },
    ),
    "a payment on the 31st anchors there": (
        [("2026-01-20", "start on", "free-trial"), ("01-31", "buy", "starter"), ("02-28", "pay"), ("03-31", "pay")],
        "04-01",
        {
            "periods": [
                "01-20 - 01-31 free-trial",
                "01-31 - 02-28 starter",
                "02-28 - 03-31 starter",
                "03-31 - 04-30 starter",
            ]
        },
    ),
    "29 February yearly: the 28th, and the 29th again in a leap year": (
        [("2028-02-29", "start on", "free"), ("2028-02-29", "assign", "patient"), ("2029-02-28", "pay")],
        "2029-03-01",
        {
            "periods": ["2028-02-29 - 2029-02-28 patient", "2029-02-28 - 2030-02-28 patient"],
            "renews": "2030-02-28",
        },
    ),
}

SLEPT: dict[str, Story] = {
    "what fell due in a year is applied in order, each at its instant": (
        [("01-10", "buy", "starter"), ("01-20", "buy", "starter"), ("01-21", "adjust", 7, on("2026-02-20"))],
        "12-31",
        {
            "status": "suspended payment_overdue",
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 starter", "03-10 - 03-17 starter"],
            "invoices": ["starter paid", "starter paid", "starter void"],
            "voided": ["03-17"],
            "ledger": [
                "01-10 seed +2000",
                "01-10 seed +1000",
                "01-21 adjust +7",
                "01-24 expire -2000",
                "02-10 expire -1000",
                "02-10 seed +1000",
                "02-20 expire -7",
                "03-10 expire -1000",
            ],
            "subscriptions": ["01-10 - 03-17 payment_overdue"],
        },
    ),
    "a transfer was awaited, in vain, and the plan that was to follow followed": (
        [
            ("01-10", "start on", "soft-trial"),
            ("01-12", "checkout", "starter"),
            ("01-14", "submit"),
        ],
        "04-30",
        {
            "status": "active",
            "periods": [
                "01-10 - 02-03 soft-trial",
                "02-03 - 03-03 free",
                "03-03 - 04-03 free",
                "04-03 - 05-03 free",
            ],
            "ledger": [
                "01-10 seed +2000",
                "01-24 expire -2000",
                "02-03 seed +100",
                "03-03 expire -100",
                "03-03 seed +100",
                "04-03 expire -100",
                "04-03 seed +100",
            ],
            "balance": 100,
        },
    ),
    "a change of plan and then its end": (
        [("01-10", "buy", "starter"), ("01-20", "buy", "growth"), ("01-21", "cancel")],
        "12-31",
        {
            "status": "cancelled cancelled",
            "periods": ["01-10 - 02-10 starter", "02-10 - 03-10 growth"],
            "ledger": [
                "01-10 seed +2000",
                "01-10 seed +1000",
                "01-24 expire -2000",
                "02-10 expire -1000",
                "02-10 seed +2000",
                "03-10 expire -2000",
            ],
        },
    ),
}

STORIES = [
    pytest.param(*story, id=f"{title}: {rule}")
    for title, table in {
        "trial": TRIAL,
        "transfer in trial": TRANSFER_IN_TRIAL,
        "renewal": RENEWAL,
        "ending": ENDING,
        "plan change": PLAN_CHANGE,
        "rollover": ROLLOVER,
        "yearly": YEARLY,
        "month ends": MONTH_ENDS,
        "slept": SLEPT,
    }.items()
    for rule, story in table.items()
]


@pytest.mark.parametrize(("deeds", "until", "expected"), STORIES)
def test_life(deeds: list[tuple[Any, ...]], until: str, expected: Mapping[str, object]) -> None:
    outcome = became(lived(deeds, until))
    assert {name: outcome[name] for name in expected} == dict(expected)


# --- refusals -------------------------------------------------------------------------------------

TRIALING: list[tuple[Any, ...]] = []
SUSPENDED: list[tuple[Any, ...]] = [("01-25", "until")]
ON_FREE: list[tuple[Any, ...]] = [("01-10", "start on", "free")]
ON_STARTER: list[tuple[Any, ...]] = [("01-10", "buy", "starter")]
PAST_DUE: list[tuple[Any, ...]] = [("01-10", "buy", "starter"), ("02-11", "until")]
PAID_AHEAD: list[tuple[Any, ...]] = [("01-10", "buy", "starter"), ("01-11", "buy", "starter")]
SUBMITTED: list[tuple[Any, ...]] = [("01-10", "checkout", "starter"), ("01-10", "submit")]

REFUSED = {
    "enterprise cannot be bought": (TRIALING, ("checkout", "enterprise"), PlanNotAssignable),
    "the trial cannot be bought": (SUSPENDED, ("checkout", "free-trial"), PlanNotAssignable),
    "the trial cannot be assigned by an admin": (TRIALING, ("assign", "free-trial"), PlanNotAssignable),
    "nor for the end of a period": (TRIALING, ("assign_next", "free-trial"), PlanNotAssignable),
    "the next period cannot be bought while this one is owed": (
        PAST_DUE,
        ("checkout", "starter"),
        InvoiceAlreadyOpen,
    ),
    "nor another plan": (PAST_DUE, ("checkout", "growth"), InvoiceAlreadyOpen),
    "the next period is paid once": (PAID_AHEAD, ("checkout", "starter"), PeriodAlreadyPaid),
    "and by one plan": (PAID_AHEAD, ("checkout", "growth"), PeriodAlreadyPaid),
    "no change to free under a paid next period": (PAID_AHEAD, ("checkout", "free"), PeriodAlreadyPaid),
    "not even an admin's": (PAID_AHEAD, ("assign_next", "enterprise"), PeriodAlreadyPaid),
    "no other plan while a transfer is undecided": (SUBMITTED, ("checkout", "growth"), TransferPending),
    "one undecided transfer per invoice": (SUBMITTED, ("submit",), TransferPending),
    "the free plan is not chosen twice": (ON_FREE, ("checkout", "free"), Conflict),
    "a cancelled account has nothing to cancel": (
        [("01-11", "cancel_now")],
        ("cancel",),
        NoLiveSubscription,
    ),
    "nor has a suspended one": (SUSPENDED, ("cancel_now",), NoLiveSubscription),
    "credits that are not there cannot be taken": (ON_FREE, ("adjust", -101), InsufficientCredits),
}


@pytest.mark.parametrize(("deeds", "deed", "refusal"), cases(REFUSED))
def test_refused(deeds: list[tuple[Any, ...]], deed: tuple[Any, ...], refusal: type[BillingError]) -> None:
    life = lived(deeds, "01-10")
    before = life.state
    verb, *arguments = deed
    with pytest.raises(refusal) as refused:
        getattr(life, verb)(life.now, *arguments)
    assert refused.type is refusal
    assert life.state == before


def test_an_invoice_is_paid_once() -> None:
    life = lived(ON_STARTER, "01-11")
    (paid,) = life.invoices.values()
    with pytest.raises(InvoiceNotOpen):
        life.pay(life.now, paid)


def test_a_void_invoice_is_not_paid() -> None:
    life = lived([("01-10", "checkout", "starter"), ("01-10", "checkout", "growth")], "01-11")
    first, _ = life.invoices.values()
    with pytest.raises(InvoiceNotOpen):
        life.pay(life.now, first)


def test_asking_again_for_the_same_plan_returns_the_open_invoice_with_the_new_method() -> None:
    life = lived([], "01-11")
    first = life.checkout(when("01-11"), "starter")
    again = life.checkout(when("01-12"), "starter", PaymentMethod.BANK_TRANSFER)
    assert first is not None
    assert again is not None
    assert again.id == first.id
    assert [(one.id, one.payment_method) for one in life.invoices.values()] == [(first.id, PaymentMethod.BANK_TRANSFER)]


# --- what an invoice and a settlement say -----------------------------------------------------------


def test_an_activation_invoice_is_due_after_its_days_and_names_no_period() -> None:
    invoice = lived([], "01-11").checkout(when("01-11"), "starter")
    assert invoice is not None
    assert (invoice.purpose, invoice.amount_minor, invoice.currency) == ("activation", 89_00, "USD")
    assert (told(invoice.opened_at), told(invoice.due_at)) == ("01-11", "01-25")
    assert (invoice.subscription_id, invoice.period_starts_at, invoice.period_ends_at) == (None, None, None)


def test_a_renewal_invoice_is_due_at_its_periods_start() -> None:
    life = lived(ON_STARTER, "02-10")
    (invoice,) = life.open_invoices
    assert invoice.purpose == "renewal"
    assert invoice.subscription_id == life.live.id
    dates = (invoice.opened_at, invoice.due_at, invoice.period_starts_at, invoice.period_ends_at)
    assert [told(at) for at in dates] == ["02-10", "02-10", "02-10", "03-10"]


def test_a_price_is_never_edited_under_a_running_subscription() -> None:
    life = lived(ON_STARTER, "01-11")
    dearer = plan("starter", id=life.plan("starter").id, price_minor=99_00, assignable_by=BOUGHT)
    life.rules = rules([*(one for one in RULES.plans.values() if one.slug != "starter"), dearer])
    life.until(when("02-10"))
    (owed,) = life.open_invoices
    assert owed.amount_minor == 89_00
    life.pay(when("02-10"))
    ahead = life.checkout(when("02-11"), "starter")
    assert ahead is not None
    assert ahead.amount_minor == 89_00


def test_a_settlement_leaves_its_mark_on_subscription_and_account() -> None:
    life = lived([("01-10", "checkout", "starter")], "01-11")
    life.pay(when("01-11"), method=PaymentMethod.BANK_TRANSFER)
    (paid,) = life.invoices.values()
    assert (paid.status, told(paid.paid_at), paid.payment_method) == ("paid", "01-11", PaymentMethod.BANK_TRANSFER)
    payment = (PaymentMethod.BANK_TRANSFER, f"payment 1 of {life.account.id}")
    for owner in (life.live, life.account):
        assert (owner.payment_method, owner.external_payment_id) == payment
    assert told(life.live.activated_at) == "01-11"
    assert told(life.live.anchor_at) == "01-11"


# --- one instant ------------------------------------------------------------------------------------

DEEDS_OF_A_MOMENT: list[tuple[Any, ...]] = [
    ("buy", "starter"),
    ("buy", "growth"),
    ("checkout", "free"),
    ("assign", "enterprise"),
    ("assign", "starter"),
    ("cancel_now",),
    ("cancel",),
]


@pytest.mark.parametrize("day", ["01-10", "01-24", "02-10"], ids=["signup", "a trial's end", "a renewal"])
@pytest.mark.parametrize("first", DEEDS_OF_A_MOMENT, ids=" ".join)
def test_deeds_of_one_instant_leave_no_empty_period_and_no_two_with_one_start(first: tuple[Any, ...], day: str) -> None:
    for second, third in product(DEEDS_OF_A_MOMENT, repeat=2):
        life = lived(ON_STARTER if day == "02-10" else TRIALING, day)
        for verb, *arguments in (first, second, third):
            with suppress(BillingError):
                getattr(life, verb)(when(day), *arguments)
        life.until(when("06-01"))
        assert_sound(life)


# --- what is next -----------------------------------------------------------------------------------


NEXT: dict[str, tuple[list[tuple[Any, ...]], str, tuple[str, Transition] | None]] = {
    "a trial's end before its credits' expiry, which falls on it": (TRIALING, "01-10", ("01-24", Transition.TRIAL_END)),
    "a suspended account's credits expire": (
        [("01-12", "adjust", 5, on("2026-06-01"))],
        "01-25",
        ("06-01", Transition.GRANT_EXPIRY),
    ),
    "nothing for a suspended account without credits": (TRIALING, "01-25", None),
    "the trial's credits before the renewal": (ON_STARTER, "01-11", ("01-24", Transition.GRANT_EXPIRY)),
    "the renewal before expiry and seed of the same instant": (ON_STARTER, "01-25", ("02-10", Transition.RENEWAL)),
    "a cancellation in place of the renewal": (
        [*ON_STARTER, ("01-25", "cancel")],
        "01-25",
        ("02-10", Transition.CANCELLATION),
    ),
    "the end of the grace": (PAST_DUE, "02-11", ("02-17", Transition.GRACE_END)),
    "a seed between renewals": ([("01-10", "buy", "yearly")], "02-10", ("03-10", Transition.GRANT_EXPIRY)),
    "a seed when nothing expires with it": (
        [("01-10", "buy", "yearly"), ("02-11", "adjust", -1_000)],
        "02-11",
        ("03-10", Transition.CREDIT_MONTH),
    ),
}


@pytest.mark.parametrize(("deeds", "until", "expected"), cases(NEXT))
def test_next_is(deeds: list[tuple[Any, ...]], until: str, expected: tuple[str, Transition] | None) -> None:
    due = lifecycle.next_transition(lived(deeds, until).state)
    assert (due and (told(due[0]), due[1])) == expected


def test_each_transition_is_stamped_with_the_instant_at_which_it_was_due() -> None:
    life = lived(ON_STARTER, "2027-01-01")
    (overdue,) = life.subscriptions.values()
    assert told(overdue.ended_at) == "02-17"
    assert told(life.account.acted_at) == "02-17"


def test_steps_bound_what_one_pass_does_and_the_rest_stays_due() -> None:
    life = Life.of(RULES, when("01-10"), start_on="free")
    life.until(when("12-31"), steps=4)
    assert told(life.account.acted_at) == "03-10"
    assert lifecycle.next_transition(life.state) == (when("03-10"), Transition.GRANT_EXPIRY)


def test_a_signup_on_a_plan_without_trial_is_active_at_once() -> None:
    life = lived(ON_FREE, "01-10")
    assert (life.account.status, life.live.status, told(life.live.activated_at)) == ("active", "active", "01-10")


# --- terms that no calendar holds -------------------------------------------------------------------


def signed_up(*, at: datetime | None = None, zone: str = "UTC", **terms: Any) -> Life:
    return Life.of(rules([plan("free", **terms)]), at or when("01-10"), start_on="free", time_zone=zone)


NO_CALENDAR: Table = {
    "a zone that does not exist": ({"zone": "Mars/Olympus"},),
    "no zone": ({"zone": ""},),
    "the machine's own zone": ({"zone": "localtime"},),
    "a signup without a zone": ({"at": when("01-10").replace(tzinfo=None)},),
    "a signup on the last day there is": ({"at": on("9999-12-31")},),
    "a trial of a million years": ({"trial_days": 366_000_000},),
    "a count of zero": ({"interval_count": 0},),
    "a count of less than zero": ({"interval_count": -1},),
    "a period of ten thousand years": ({"interval": Interval.YEAR, "interval_count": 10_000},),
    "a period of a billion days": ({"interval": Interval.DAY, "interval_count": 10**9},),
}


@pytest.mark.parametrize("terms", cases(NO_CALENDAR))
def test_nobody_signs_up_to(terms: dict[str, Any]) -> None:
    with pytest.raises(InvalidSchedule):
        signed_up(**terms)


ENDLESS = plan("endless", price_minor=1, interval=Interval.YEAR, interval_count=9_000, assignable_by=BOUGHT)


@pytest.mark.parametrize("verb", ["checkout", "assign"])
def test_a_plan_that_leaves_the_calendar_is_refused_and_nothing_has_happened(verb: str) -> None:
    life = lived(ON_STARTER, "01-12", under=rules([*RULES.plans.values(), ENDLESS]))
    before = life.state
    with pytest.raises(InvalidSchedule):
        getattr(life, verb)(when("01-12"), "endless")
    assert life.state == before
    assert len(life.invoices) == 1


def test_at_the_end_of_the_calendar_a_life_stands_still() -> None:
    life = signed_up(at=on("9999-01-31"))
    life.until(on("9999-12-30"))
    before = life.state
    with pytest.raises(InvalidSchedule):
        life.until(on("9999-12-31"))
    assert life.state == before
    assert [f"{period.starts_at:%m-%d}" for period in life.period_list()][-3:] == ["09-30", "10-31", "11-30"]


@pytest.mark.parametrize("interval", list(Interval))
@pytest.mark.parametrize("price_minor", [0, 100], ids=["free", "paid ahead"])
def test_the_longest_plan_that_can_be_stored_leads_nobody_out_of_the_calendar(
    interval: Interval, price_minor: int
) -> None:
    """Counts go up to 366 (`plan_interval_count_positive`), and instants that come in up to the year 2200."""
    terms: dict[str, Any] = {"interval": interval, "interval_count": 366, "credits_per_month": 0, "grace_days": 28}
    long = plan("long", price_minor=price_minor, **terms)
    life = Life.of(rules([plan("free-trial", trial_days=365), long], transfer_grace_days=60), on("2199-12-31 23:59"))
    if price_minor:
        life.buy(life.now, "long")
        life.buy(life.now, "long")
    else:
        life.assign(life.now, "long")
    assert (life.access_ends_at() is None) == (price_minor == 0)
    life.until(life.live.current_period_ends_at)
    assert (life.access_ends_at() is None) == (price_minor == 0)
    assert_sound(life)
    assert len(life.periods) == 2


def test_local_wall_time_is_kept_across_a_change_of_the_clocks() -> None:
    life = Life.of(RULES, on("2026-03-10 08:00"), start_on="free", time_zone="Europe/Berlin")
    life.until(on("2026-05-01"))
    starts = [period.starts_at.strftime("%m-%d %H:%M") for period in life.period_list()]
    assert starts == ["03-10 08:00", "04-10 07:00"]
    assert life.live.renews_at == on("2026-05-10 07:00")
    assert life.live.renews_at - life.live.current_period_starts_at == timedelta(days=30)
