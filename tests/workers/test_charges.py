"""Charging a saved card for renewals: when it is tried, what a decline leaves, and what an outage does not."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import pytest

from shared.clock import utc_now
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.requests import CancelSubscription
from shared.errors import ProviderDown
from shared.messages import Job
from shared.providers.sandbox import GOOD_CARD, SandboxProvider
from tests.factories import on
from tests.office import Customer, Office
from tests.workers.conftest import Worker

START, RENEWAL = on("2026-01-10"), on("2026-02-10")
WEAK_CARD, LOST_CARD = "insufficient_funds", "lost_card"


@pytest.fixture
def paying(office: Office) -> Callable[[str], Customer]:
    """A customer who has paid for a month from START, and left this card."""

    def pay(card: str) -> Customer:
        office.now = START
        who = office.sign_up()
        office.buy(who, saves_card=card)
        return who

    return pay


def scheduled(office: Office) -> list[tuple[UUID, datetime]]:
    """The charges that wait, and when each is due."""
    rows = office.rows(
        "SELECT id, created_at FROM operations WHERE kind = 'charge_invoice' AND status = 'pending' ORDER BY created_at"
    )
    return [(row.id, row.created_at) for row in rows]


def attempts(office: Office) -> list[tuple[int, str, str | None]]:
    rows = office.rows("SELECT attempt, status, decline_code FROM payments WHERE attempt IS NOT NULL ORDER BY attempt")
    return [tuple(row) for row in rows]


def test_a_renewal_is_charged_and_keeps_its_dates(
    worker: Worker, office: Office, paying: Callable[[str], Customer]
) -> None:
    who = paying(GOOD_CARD)
    office.tick(RENEWAL)
    ((charge, due_at),) = scheduled(office)
    assert due_at == RENEWAL
    assert office.state(who).account.status == "past_due"
    row = worker.perform(charge)
    assert (row.status, row.result["charged"]) == ("succeeded", True)
    state = office.state(who)
    assert (state.account.status, state.account.payment_method) == ("active", "sandbox")
    assert state.live is not None
    assert state.live.current_period_ends_at == on("2026-03-10")
    assert attempts(office) == [(1, "succeeded", None)]
    assert office.row("SELECT paid_at FROM invoices WHERE purpose = 'renewal'").paid_at == RENEWAL
    before = office.dump()
    worker.perform(charge)
    assert office.dump() == before


def test_a_soft_decline_is_tried_again_on_the_schedule_within_grace(
    worker: Worker, office: Office, paying: Callable[[str], Customer]
) -> None:
    who = paying(WEAK_CARD)
    office.tick(RENEWAL)
    tried = []
    while waiting := scheduled(office):
        ((charge, due_at),) = waiting
        tried.append(due_at)
        row = worker.perform(charge)
        assert (row.status, row.problem["code"], row.problem["decline_code"]) == (
            "failed",
            "payment_declined",
            WEAK_CARD,
        )
    assert tried == [on("2026-02-10"), on("2026-02-11"), on("2026-02-13"), on("2026-02-15")]
    assert attempts(office) == [(n, "failed", WEAK_CARD) for n in (1, 2, 3, 4)]
    assert office.row("SELECT count(*) AS told FROM events WHERE kind = 'payment.failed'").told == 4
    office.tick(on("2026-02-16"))
    assert office.state(who).account.status == "past_due"
    office.tick(on("2026-02-17"))
    assert office.state(who).account.status == "suspended"


def test_a_hard_decline_ends_the_attempts(worker: Worker, office: Office, paying: Callable[[str], Customer]) -> None:
    paying(LOST_CARD)
    office.tick(RENEWAL)
    ((charge, _),) = scheduled(office)
    row = worker.perform(charge)
    assert (row.problem["decline_code"], row.problem["next_attempt_at"]) == (LOST_CARD, None)
    assert scheduled(office) == []


@pytest.mark.parametrize(
    ("days", "grace_days", "tried"),
    [
        pytest.param((), 7, 1, id="no schedule"),
        pytest.param((1,), 7, 2, id="one day"),
        pytest.param((2, 9), 7, 2, id="a day after grace is none"),
        pytest.param((1, 3, 5), 3, 2, id="the end of grace is none"),
    ],
)
def test_the_schedule_is_a_setting_and_ends_with_grace(
    worker: Worker,
    office: Office,
    paying: Callable[[str], Customer],
    days: tuple[int, ...],
    grace_days: int,
    tried: int,
) -> None:
    office.change(f"UPDATE plans SET grace_days = {grace_days} WHERE slug = 'starter'")
    worker.set(charge_retry_days=days)
    paying(WEAK_CARD)
    office.tick(RENEWAL)
    while waiting := scheduled(office):
        worker.perform(waiting[0][0])
    assert len(attempts(office)) == tried
    made = office.row("SELECT count(*) AS asked FROM operations WHERE kind = 'charge_invoice'")
    assert made.asked == tried, "and none is scheduled that would come to nothing"


def test_an_engine_that_slept_charges_what_fell_due_before_it_suspends(
    worker: Worker, office: Office, paying: Callable[[str], Customer]
) -> None:
    who = paying(GOOD_CARD)
    office.tick(on("2026-04-20"))
    for renewal in ("2026-02-10", "2026-03-10", "2026-04-10"):
        assert office.state(who).account.status == "past_due"
        ((charge, due_at),) = scheduled(office)
        assert due_at == on(renewal)
        assert worker.perform(charge).status == "succeeded"
        office.tick(on("2026-04-20"))
    state = office.state(who)
    assert (state.account.status, scheduled(office)) == ("active", [])
    assert state.live is not None
    assert state.live.current_period_ends_at == on("2026-05-10")
    seeds = office.rows("SELECT effective_at FROM credit_grants WHERE amount = 1000 ORDER BY effective_at")
    assert [row.effective_at for row in seeds] == [on(f"2026-0{month}-10") for month in (1, 2, 3, 4)]


def test_a_slow_retry_waits_for_its_day_though_other_jobs_run(
    worker: Worker, office: Office, paying: Callable[[str], Customer]
) -> None:
    who = paying(WEAK_CARD)
    office.tick(RENEWAL)
    worker.perform(scheduled(office)[0][0])
    office.tick(on("2026-03-30"))
    assert office.state(who).account.status == "past_due", "grace does not end before the attempts that lie within it"
    while waiting := scheduled(office):
        worker.perform(waiting[0][0])
    office.tick(on("2026-03-30"))
    assert office.state(who).account.status == "suspended"


def test_a_provider_that_is_down_delays_an_attempt_and_uses_none_up(
    worker: Worker, office: Office, paying: Callable[[str], Customer], monkeypatch: pytest.MonkeyPatch
) -> None:
    who = paying(GOOD_CARD)
    office.tick(RENEWAL)
    ((charge, _),) = scheduled(office)

    def down(*_: object) -> None:
        raise ProviderDown("no answer")

    with monkeypatch.context() as outage:
        outage.setattr(SandboxProvider, "charge", down)
        for _ in range(worker.runtime.settings.operation_max_attempts + 3):
            row = worker.perform(charge)
            assert (row.status, row.attempts, row.last_error) == ("pending", 0, "ProviderDown: no answer")
            assert row.next_send_at > utc_now()
    assert attempts(office) == [(1, "pending", None)]
    office.tick(on("2026-06-01"))
    assert office.state(who).account.status == "past_due"
    assert worker.perform(charge).status == "succeeded"
    assert attempts(office) == [(1, "succeeded", None)]


def test_an_answer_that_was_lost_is_asked_for_again_though_the_invoice_was_paid_meanwhile(
    worker: Worker, office: Office, paying: Callable[[str], Customer], monkeypatch: pytest.MonkeyPatch
) -> None:
    who = paying(GOOD_CARD)
    office.tick(RENEWAL)
    ((charge, _),) = scheduled(office)
    answer = SandboxProvider.charge

    def lose_answer(*arguments: object) -> None:
        answer(*arguments)  # type: ignore[arg-type]
        raise ProviderDown("the line broke")

    with monkeypatch.context() as outage:
        outage.setattr(SandboxProvider, "charge", lose_answer)
        worker.perform(charge)
    office.now = on("2026-02-11")
    office.pay(who, office.row("SELECT id FROM invoices WHERE purpose = 'renewal'").id)
    row = worker.perform(charge)
    assert (row.status, row.problem["code"]) == ("failed", "invoice_not_open")
    kept = office.row("SELECT status, unapplied_reason FROM payments WHERE attempt = 1")
    assert tuple(kept) == ("succeeded", "invoice_not_open"), "charged twice, and visible"


UNCHARGED: dict[str, Callable[[Office, Customer], None]] = {
    "it was paid otherwise": lambda office, who: office.pay(
        who, office.row("SELECT id FROM invoices WHERE purpose = 'renewal'").id
    ),
    "the customer has left": lambda office, who: office.cancel(who, at_period_end=False),
}


@pytest.mark.parametrize("happens", UNCHARGED.values(), ids=UNCHARGED)
def test_nothing_is_charged_when(
    worker: Worker, office: Office, paying: Callable[[str], Customer], happens: Callable[[Office, Customer], None]
) -> None:
    who = paying(GOOD_CARD)
    office.tick(RENEWAL)
    ((charge, _),) = scheduled(office)
    happens(office, who)
    row = worker.perform(charge)
    assert (row.status, row.result["charged"]) == ("succeeded", False)
    assert attempts(office) == []


def test_nothing_is_charged_to_those_who_pay_another_way(office: Office, paying: Callable[[str], Customer]) -> None:
    who = paying(GOOD_CARD)
    ahead = office.open_invoice(who, method=PaymentMethod.BANK_TRANSFER)
    office.tick(RENEWAL)
    assert scheduled(office) == [], "they chose a bank transfer for this one"
    office.execute(office.approval(who, office.submit(who, ahead)))
    office.tick(on("2026-03-10"))
    assert scheduled(office) == [], "and that is how they pay now"


def test_who_cancels_is_not_charged_for_what_comes_after(office: Office, paying: Callable[[str], Customer]) -> None:
    who = paying(GOOD_CARD)
    office.ask(OperationKind.CANCEL_SUBSCRIPTION, CancelSubscription(), account_id=who.account_id, by=who.user_id)
    office.tick(RENEWAL)
    assert scheduled(office) == []


def test_a_test_clock_brings_charges_and_goes_on_after_them(worker: Worker, office: Office) -> None:
    clock_id = office.make_clock(START)
    who = office.sign_up(clock_id=clock_id)
    office.buy(who, saves_card=WEAK_CARD)
    office.advance_clock(clock_id, on("2026-02-20"))
    tried = []
    while waiting := scheduled(office):
        ((charge, due_at),) = waiting
        tried.append(due_at)
        assert office.row("SELECT next_send_at <= now() AS due FROM operations WHERE id = %(id)s", id=charge).due
        worker.perform(charge)
    assert tried == [on("2026-02-10"), on("2026-02-11"), on("2026-02-13"), on("2026-02-15")]
    assert office.state(who).account.status == "suspended", "no job looks at it, and it has come to the clock's instant"


def test_no_charge_is_sent_before_its_day(worker: Worker, office: Office) -> None:
    clock_id = office.make_clock(START)
    who = office.sign_up(clock_id=clock_id)
    office.buy(who, saves_card=WEAK_CARD)
    office.advance_clock(clock_id, RENEWAL)
    worker.perform(scheduled(office)[0][0])
    ((charge, due_at),) = scheduled(office)
    assert due_at == on("2026-02-11")
    office.change("UPDATE operations SET next_send_at = '2100-01-01' WHERE status = 'pending'")
    office.advance_clock(clock_id, on("2026-02-10 23:00"))
    assert office.operation(charge).next_send_at.year == 2100
    office.advance_clock(clock_id, on("2026-02-11 13:00"))
    assert office.operation(charge).next_send_at <= utc_now()
    worker.run(Job.RELAY_OPERATIONS)
    assert office.operation(charge).sends == 1
