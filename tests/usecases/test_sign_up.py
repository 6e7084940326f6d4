"""Signing up: an account with its owner, subscription and credits, or nothing at all."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.exc import IntegrityError

from shared.domain.operation import OperationKind
from shared.domain.requests import SignUp
from tests.factories import Table, cases, on
from tests.office import Office

NO_SIGNUP = "DELETE FROM plan_assigners WHERE assigned_by = 'signup'"
NO_TRIAL = "DELETE FROM plan_assigners WHERE plan_slug = 'free-trial'"
NO_PLANS = "DELETE FROM plan_assigners; DELETE FROM plans"


def request(email: str = "ada@example.com", **terms: object) -> SignUp:
    return SignUp(account_name="Ada", email=email, password_hash="hash", **terms)  # type: ignore[arg-type]


def test_a_signup_gets_a_trial_its_period_and_its_credits(office: Office) -> None:
    office.now = on("2026-01-31 09:00")
    who = office.sign_up("ada@example.com", time_zone="Europe/Berlin")
    account = office.row("SELECT * FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert (account.status, account.time_zone, account.balance_credits) == ("trial", "Europe/Berlin", 2_000)
    assert account.access_ends_at == on("2026-02-14 09:00")
    assert (account.next_transition, account.next_transition_at) == ("trial_end", on("2026-02-14 09:00"))
    user = office.row("SELECT * FROM users")
    assert (user.id, user.account_id, user.email, user.role) == (
        who.user_id,
        who.account_id,
        "ada@example.com",
        "owner",
    )
    period = office.row("SELECT starts_at, ends_at FROM subscription_periods")
    assert tuple(period) == (on("2026-01-31 09:00"), on("2026-02-14 09:00"))
    seed = office.row("SELECT kind, amount, balance_after, effective_at FROM credit_transactions")
    assert tuple(seed) == ("seed", 2_000, 2_000, on("2026-01-31 09:00"))
    assert office.row("SELECT action, account_id FROM audit_log") == ("account.signed_up", who.account_id)


def test_the_password_leaves_the_payload(office: Office) -> None:
    office.sign_up()
    assert office.row("SELECT payload ? 'password_hash' AS kept FROM operations").kept is False


def test_executed_twice_it_is_one_account(office: Office) -> None:
    operation_id = office.accept(OperationKind.SIGN_UP, request())
    first = office.execute(operation_id)
    before = office.dump()
    assert office.execute(operation_id) == first
    assert office.dump() == before


def test_an_address_that_is_taken_is_refused_and_nothing_is_written(office: Office) -> None:
    office.sign_up("ada@example.com")
    before = office.dump("operations")
    row = office.ask(OperationKind.SIGN_UP, request("ada@example.com"))
    assert (row.status, row.problem["code"]) == ("failed", "email_taken")
    assert office.dump("operations") == before


REFUSALS: Table = {
    "no plan that may be given at signup": (NO_SIGNUP, {}, "no_signup_plan"),
    "no plan at all": (NO_PLANS, {}, "no_signup_plan"),
    "an unknown time zone": ("", {"time_zone": "Mars/Olympus"}, "invalid_schedule"),
    "an unknown test clock": ("", {"test_clock_id": UUID(int=5)}, "not_found"),
}


@pytest.mark.parametrize(("statements", "terms", "code"), cases(REFUSALS))
def test_refused_and_nothing_is_written(office: Office, statements: str, terms: dict[str, Any], code: str) -> None:
    if statements:
        office.change(statements)
    before = office.dump("operations")
    row = office.ask(OperationKind.SIGN_UP, request(**terms))
    assert (row.status, row.problem["code"]) == ("failed", code)
    assert office.dump("operations") == before


def test_without_a_trial_it_is_the_free_plan_at_once(office: Office) -> None:
    office.change(NO_TRIAL)
    who = office.sign_up()
    account = office.row(
        "SELECT status, balance_credits, access_ends_at FROM accounts WHERE id = %(id)s", id=who.account_id
    )
    assert tuple(account) == ("active", 100, None)


@pytest.mark.parametrize("slug", ["enterprise", "starter"])
def test_the_database_lets_nobody_misconfigure_signups(office: Office, slug: str) -> None:
    with pytest.raises(IntegrityError) as refused:
        office.change(
            "INSERT INTO plan_assigners SELECT id, slug, 'signup' FROM plans WHERE slug = %(slug)s", slug=slug
        )
    rule = "enterprise_by_admin_only" if slug == "enterprise" else "signup_gets_trial_or_free_only"
    assert rule in str(refused.value)


def test_on_a_test_clock_its_instant_counts(office: Office) -> None:
    who = office.sign_up(clock_id=office.make_clock(on("2030-01-31")))
    account = office.row("SELECT acted_at, access_ends_at FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert tuple(account) == (on("2030-01-31"), on("2030-02-14"))


# --- one trial for each mailbox -------------------------------------------------------------------

MAILBOXES: Table = {
    "the same, of a user who was removed": ("ada@example.com", "ada@example.com", "free"),
    "the same with a tag": ("ada@example.com", "ada+again@example.com", "free"),
    "two tags": ("ada+one@example.com", "ada+two+three@example.com", "free"),
    "another one": ("ada@example.com", "ada.b@example.com", "free-trial"),
    "the same name elsewhere": ("ada@example.com", "ada@example.org", "free-trial"),
}


@pytest.mark.parametrize(("first", "second", "plan"), cases(MAILBOXES))
def test_a_mailbox_gets_one_trial(office: Office, first: str, second: str, plan: str) -> None:
    gone = office.sign_up(first)
    office.change("UPDATE users SET deleted_at = now() WHERE id = %(id)s", id=gone.user_id)
    office.change("UPDATE accounts SET deleted_at = now() WHERE id = %(id)s", id=gone.account_id)
    result = office.done(OperationKind.SIGN_UP, request(second))
    assert (result["plan"], result["credits"]) == (plan, 100 if plan == "free" else 2_000)


def test_a_signup_that_fails_uses_up_no_trial(office: Office) -> None:
    office.sign_up("ada@example.com")
    assert office.ask(OperationKind.SIGN_UP, request("bob@example.com", time_zone="Mars/Olympus")).status == "failed"
    assert office.done(OperationKind.SIGN_UP, request("bob@example.com"))["plan"] == "free-trial"


def test_a_plan_without_a_trial_uses_up_none(office: Office) -> None:
    office.change(NO_TRIAL)
    assert office.done(OperationKind.SIGN_UP, request())["plan"] == "free"
    assert office.row("SELECT count(*) AS given FROM trials").given == 0


def test_where_there_is_a_trial_alone_a_second_one_is_refused(office: Office) -> None:
    office.change("DELETE FROM plan_assigners WHERE plan_slug = 'free' AND assigned_by = 'signup'")
    office.sign_up("ada@example.com")
    row = office.ask(OperationKind.SIGN_UP, request("ada+again@example.com"))
    assert (row.status, row.problem["code"]) == ("failed", "no_signup_plan")


def test_trials_are_kept_without_addresses(office: Office) -> None:
    office.sign_up("ada.lovelace@example.com")
    assert "lovelace" not in office.row("SELECT string_agg(t::text, '') AS kept FROM trials t").kept
