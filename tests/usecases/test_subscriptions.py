"""Cancel, assign, adjust: what customers and admins do to a subscription and its credits."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from shared.domain.credits import MAX_CREDITS
from shared.domain.operation import OperationKind
from shared.domain.requests import AdjustCredits, AssignPlan, CancelSubscription
from tests.factories import Table, cases, on
from tests.office import Customer, Office

PERIODS = """
    SELECT p.slug, s.starts_at, s.ends_at FROM subscription_periods s JOIN plans p ON p.id = s.plan_id
    ORDER BY s.starts_at
    """


@pytest.fixture
def who(office: Office) -> Customer:
    return office.sign_up()


def periods(office: Office) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in office.rows(PERIODS)]


# --- cancel -----------------------------------------------------------------------------------------


def cancellation(office: Office, who: Customer, *, at_period_end: bool) -> UUID:
    request = CancelSubscription(at_period_end=at_period_end)
    return office.accept(OperationKind.CANCEL_SUBSCRIPTION, request, account_id=who.account_id, by=who.user_id)


def test_cancelled_at_its_end_a_subscription_says_when_that_is(office: Office, who: Customer) -> None:
    office.buy(who)
    row = office.execute(cancellation(office, who, at_period_end=True))
    assert datetime.fromisoformat(row.result["ends_at"]) == on("2026-02-10")
    account = office.row("SELECT * FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert (account.status, account.access_ends_at) == ("active", on("2026-02-10"))
    office.tick(on("2026-02-10"))
    account = office.row("SELECT status, status_reason FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert tuple(account) == ("cancelled", "cancelled")
    assert periods(office) == [("starter", on("2026-01-10"), on("2026-02-10"))]


def test_cancelled_now_it_ends_now(office: Office, who: Customer) -> None:
    office.now = on("2026-01-12")
    row = office.execute(cancellation(office, who, at_period_end=False))
    assert datetime.fromisoformat(row.result["ends_at"]) == on("2026-01-12")
    assert periods(office) == [("free-trial", on("2026-01-10"), on("2026-01-12"))]


@pytest.mark.parametrize("at_period_end", [True, False], ids=["at the end", "now"])
def test_executed_twice_it_is_cancelled_once(office: Office, who: Customer, at_period_end: bool) -> None:
    operation_id = cancellation(office, who, at_period_end=at_period_end)
    office.execute(operation_id)
    before = office.dump()
    office.execute(operation_id)
    assert office.dump() == before


def test_what_is_cancelled_cannot_be_cancelled(office: Office, who: Customer) -> None:
    office.cancel(who, at_period_end=False)
    before = office.dump("operations")
    row = office.execute(cancellation(office, who, at_period_end=False))
    assert row.problem["code"] == "no_live_subscription"
    assert office.dump("operations") == before


def test_a_trial_that_is_cancelled_within_its_first_instant_was_never_granted(office: Office, who: Customer) -> None:
    office.cancel(who, at_period_end=False)
    assert periods(office) == []


def test_an_account_that_does_not_exist_has_nothing_to_cancel(office: Office) -> None:
    row = office.ask(OperationKind.CANCEL_SUBSCRIPTION, CancelSubscription())
    assert row.problem["code"] == "not_found"


def test_a_deleted_account_does_not_exist(office: Office, who: Customer) -> None:
    office.change("UPDATE accounts SET deleted_at = now() WHERE id = %(id)s", id=who.account_id)
    row = office.execute(cancellation(office, who, at_period_end=True))
    assert row.problem["code"] == "not_found"


# --- assign -----------------------------------------------------------------------------------------


def test_an_admin_gives_enterprise_at_once(office: Office, who: Customer) -> None:
    office.now = on("2026-01-12")
    row = office.assign(who, "enterprise")
    assert row.status == "succeeded"
    assert periods(office) == [
        ("free-trial", on("2026-01-10"), on("2026-01-12")),
        ("enterprise", on("2026-01-12"), on("2026-02-12")),
    ]
    assert office.balance(who).available_credits == 2_000 + 10_000
    noted = office.row("SELECT * FROM audit_log WHERE action = 'plan.assigned'")
    assert (noted.reason, noted.before, noted.after) == (
        "a good customer",
        {"plan": "free-trial"},
        {"plan": "enterprise", "at_period_end": False},
    )
    before = office.dump()
    office.execute(row.id)
    assert office.dump() == before


def test_an_admin_gives_enterprise_when_the_period_ends(office: Office, who: Customer) -> None:
    office.buy(who)
    office.assign(who, "enterprise", at_period_end=True)
    office.tick(on("2026-02-10"))
    assert periods(office) == [
        ("starter", on("2026-01-10"), on("2026-02-10")),
        ("enterprise", on("2026-02-10"), on("2026-03-10")),
    ]


NOT_GIVEN: Table = {
    "the trial": ("free-trial", "plan_not_assignable"),
    "a plan that does not exist": ("no-such-plan", "not_found"),
}


@pytest.mark.parametrize(("plan", "code"), cases(NOT_GIVEN))
def test_an_admin_does_not_give(office: Office, who: Customer, plan: str, code: str) -> None:
    before = office.dump("operations")
    assert office.assign(who, plan).problem["code"] == code
    assert office.dump("operations") == before


def test_the_system_account_is_given_nothing(office: Office) -> None:
    system = office.row("SELECT id FROM accounts WHERE kind = 'system'").id
    request = AssignPlan(plan="enterprise", reason="because")
    row = office.ask(OperationKind.ASSIGN_PLAN, request, account_id=system, by=office.admin_id)
    assert row.problem["code"] == "not_found"


# --- adjust -----------------------------------------------------------------------------------------


def test_an_admin_gives_credits_with_a_reason(office: Office, who: Customer) -> None:
    row = office.adjust(who, 50, on("2026-03-01"))
    assert row.result["balance_credits"] == 2_050
    given = office.row("SELECT * FROM credit_grants WHERE source = 'adjust'")
    assert (given.amount, given.remaining, given.expires_at) == (50, 50, on("2026-03-01"))
    posted = office.row("SELECT * FROM credit_transactions WHERE kind = 'adjust'")
    assert (posted.amount, posted.reason, posted.source_id) == (50, "goodwill", office.admin_id)
    noted = office.row("SELECT reason, before, after FROM audit_log WHERE action = 'credits.adjusted'")
    assert tuple(noted) == ("goodwill", {"balance_credits": 2_000}, {"balance_credits": 2_050})
    before = office.dump()
    office.execute(row.id)
    assert office.dump() == before


def test_an_admin_takes_credits_in_burn_down_order(office: Office, who: Customer) -> None:
    office.adjust(who, 50)
    office.adjust(who, -2_010)
    posted = office.rows("SELECT amount, balance_after, line FROM credit_transactions WHERE amount < 0 ORDER BY seq")
    assert [tuple(row) for row in posted] == [(-2_000, 50, 0), (-10, 40, 1)]


def test_held_credits_are_not_taken(office: Office, who: Customer) -> None:
    office.hold(who, 1_990, "h", 900)
    row = office.adjust(who, -11)
    assert row.problem["code"] == "insufficient_credits"
    assert (row.problem["available_credits"], row.problem["requested_credits"]) == (10, 11)


NOT_ADJUSTED: Table = {
    "nothing at all": (0, None, "invalid_input"),
    "an absurd gift": (MAX_CREDITS + 1, None, "invalid_input"),
    "an absurd debt": (-MAX_CREDITS - 1, None, "invalid_input"),
    "more than there is": (-2_001, None, "insufficient_credits"),
    "a taking that expires": (-1, on("2026-03-01"), "invalid_input"),
    "a gift that expires at once": (5, on("2026-01-10"), "invalid_input"),
    "a gift that has expired": (5, on("2026-01-10") - timedelta(seconds=1), "invalid_input"),
}


@pytest.mark.parametrize(("amount", "expires_at", "code"), cases(NOT_ADJUSTED))
def test_refused_and_nothing_is_written(
    office: Office, who: Customer, amount: int, expires_at: datetime | None, code: str
) -> None:
    before = office.dump("operations")
    row = office.adjust(who, amount, expires_at)
    assert (row.status, row.problem["code"]) == ("failed", code)
    assert office.dump("operations") == before


def test_an_adjustment_needs_an_admin(office: Office, who: Customer) -> None:
    request = AdjustCredits(amount=5, reason="mine")
    row = office.ask(OperationKind.ADJUST_CREDITS, request, account_id=who.account_id)
    assert row.problem["code"] == "forbidden"


# --- the instant of an operation ------------------------------------------------------------------------


def test_executed_late_it_counts_as_of_its_acceptance(office: Office, who: Customer) -> None:
    operation_id = cancellation(office, who, at_period_end=False)
    office.now = on("2026-01-20")
    office.execute(operation_id)
    assert office.row("SELECT ended_at FROM subscriptions").ended_at == on("2026-01-10")


def test_but_never_before_what_has_happened_since(office: Office, who: Customer) -> None:
    operation_id = cancellation(office, who, at_period_end=False)
    office.now = on("2026-01-15")
    office.adjust(who, 5)
    office.execute(operation_id)
    assert office.row("SELECT ended_at FROM subscriptions").ended_at == on("2026-01-15")
    assert office.row("SELECT acted_at FROM accounts WHERE kind = 'customer'").acted_at == on("2026-01-15")


def test_what_was_due_before_it_is_applied_first(office: Office, who: Customer) -> None:
    office.now = on("2026-02-01")
    office.adjust(who, 5)
    rows = office.rows("SELECT kind, amount, effective_at FROM credit_transactions ORDER BY seq")
    assert [tuple(row) for row in rows] == [
        ("seed", 2_000, on("2026-01-10")),
        ("expire", -2_000, on("2026-01-24")),
        ("adjust", 5, on("2026-02-01")),
    ]
    account = office.row("SELECT status FROM accounts WHERE kind = 'customer'")
    assert account.status == "suspended"


# --- test clocks ----------------------------------------------------------------------------------------


def test_on_a_test_clock_an_operation_counts_as_of_its_instant(office: Office) -> None:
    clock_id = office.make_clock(on("2030-01-31"))
    who = office.sign_up(clock_id=clock_id)
    office.advance_clock(clock_id, on("2030-02-05"))
    office.cancel(who, at_period_end=False)
    assert office.row("SELECT ended_at FROM subscriptions").ended_at == on("2030-02-05")


def test_a_clock_takes_its_accounts_along_and_no_others(office: Office, who: Customer) -> None:
    clock_id = office.make_clock(on("2026-01-10"))
    mine = office.sign_up(clock_id=clock_id)
    other = office.sign_up(clock_id=office.make_clock(on("2026-01-10")))
    row = office.advance_clock(clock_id, on("2026-02-01"))
    assert row.result["accounts"] == 1
    statuses = {row.id: row.status for row in office.rows("SELECT id, status FROM accounts")}
    assert statuses[mine.account_id] == "suspended"
    assert {statuses[one.account_id] for one in (who, other)} == {"trial"}
    before = office.dump()
    office.execute(row.id)
    assert office.dump() == before


def test_a_clock_lives_a_year_in_one_go(office: Office) -> None:
    clock_id = office.make_clock(on("2026-01-31"))
    who = office.sign_up(clock_id=clock_id)
    office.assign(who, "enterprise")
    office.advance_clock(clock_id, on("2027-01-31"))
    starts = [f"{row[1]:%m-%d}" for row in periods(office)]
    assert starts[:4] == ["01-31", "02-28", "03-31", "04-30"]
    assert len(starts) == 13


NOT_ADVANCED: Table = {
    "back": (on("2026-01-09"), "clock_moves_forward"),
    "by more than five years": (on("2031-02-01"), "invalid_input"),
}


@pytest.mark.parametrize(("to", "code"), cases(NOT_ADVANCED))
def test_a_clock_does_not_move(office: Office, to: datetime, code: str) -> None:
    clock_id = office.make_clock(on("2026-01-10"))
    office.sign_up(clock_id=clock_id)
    before = office.dump("operations")
    assert office.advance_clock(clock_id, to).problem["code"] == code
    assert office.dump("operations") == before


def test_a_clock_that_does_not_exist_does_not_move(office: Office) -> None:
    assert office.advance_clock(UUID(int=3), on("2026-02-01")).problem["code"] == "not_found"


def test_a_clock_may_be_set_to_where_it_stands(office: Office) -> None:
    clock_id = office.make_clock(on("2026-01-10"))
    office.sign_up(clock_id=clock_id)
    before = office.dump("operations")
    assert office.advance_clock(clock_id, on("2026-01-10")).status == "succeeded"
    assert office.dump("operations") == before
