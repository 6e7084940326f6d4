"""Terms that no calendar holds: a typed refusal, and nothing is written."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row

from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.requests import OpenInvoice, SignUp
from tests.factories import Table, cases, on
from tests.office import Customer, Office

LAST_YEAR = on("9999-01-31")
LONGEST = "UPDATE plans SET interval = 'year', interval_count = 366"


def sign_up(office: Office, clock_id: UUID, **terms: str) -> Row[Any]:
    request = SignUp(account_name="Ada", email="ada@example.com", password_hash="hash", test_clock_id=clock_id, **terms)
    return office.ask(OperationKind.SIGN_UP, request)


SIGNUPS: Table = {
    "an unknown zone": (LAST_YEAR, {"time_zone": "Mars/Olympus"}),
    "a zone of this machine": (LAST_YEAR, {"time_zone": "localtime"}),
    "no zone": (LAST_YEAR, {"time_zone": ""}),
    "a trial that ends after the last day there is": (on("9999-12-20"), {}),
    "a day that is over in its zone": (on("9999-12-31 23:00"), {"time_zone": "Pacific/Apia"}),
}


@pytest.mark.parametrize(("at", "terms"), cases(SIGNUPS))
def test_nobody_signs_up_to(office: Office, at: datetime, terms: dict[str, str]) -> None:
    clock_id = office.make_clock(at)
    before = office.dump("operations")
    row = sign_up(office, clock_id, **terms)
    assert (row.status, row.problem["code"]) == ("failed", "invalid_schedule")
    assert office.dump("operations") == before


def checkout(office: Office, who: Customer) -> Row[Any]:
    request = OpenInvoice(plan="growth", payment_method=PaymentMethod.MANUAL)
    return office.ask(OperationKind.OPEN_INVOICE, request, account_id=who.account_id, by=who.user_id)


def assign(office: Office, who: Customer) -> Row[Any]:
    return office.assign(who, "growth")


def assign_next(office: Office, who: Customer) -> Row[Any]:
    return office.assign(who, "growth", at_period_end=True)


@pytest.mark.parametrize("ask", [checkout, assign, assign_next])
def test_a_period_that_ends_after_the_last_day_there_is(
    office: Office, ask: Callable[[Office, Customer], Row[Any]]
) -> None:
    who = office.sign_up(clock_id=office.make_clock(LAST_YEAR))
    office.buy(who)
    office.change(f"{LONGEST} WHERE slug = 'growth'")
    before = office.dump("operations")
    row = ask(office, who)
    assert (row.status, row.problem["code"]) == ("failed", "invalid_schedule")
    assert office.dump("operations") == before


def test_a_clock_stops_before_the_last_day_there_is(office: Office) -> None:
    clock_id = office.make_clock(LAST_YEAR)
    office.assign(office.sign_up(clock_id=clock_id), "free")
    assert office.advance_clock(clock_id, on("9999-10-15")).status == "succeeded"
    before = office.dump("operations")
    row = office.advance_clock(clock_id, on("9999-12-31 23:00"))
    assert (row.status, row.problem["code"]) == ("failed", "invalid_schedule")
    assert office.dump("operations") == before


def test_the_longest_plan_there_can_be_is_lived_like_any_other(office: Office) -> None:
    office.change(LONGEST)
    office.change("UPDATE plans SET trial_days = 365 WHERE slug = 'free-trial'")
    clock_id = office.make_clock(on("2199-12-31 23:59"))
    for plan in ("free", "starter"):
        who = office.sign_up(clock_id=clock_id)
        assert office.assign(who, plan).status == "succeeded"
    office.buy(who)
    assert office.advance_clock(clock_id, on("2204-12-31")).status == "succeeded"
    rows = office.rows("SELECT status, parked_at FROM accounts WHERE kind = 'customer'")
    assert [tuple(row) for row in rows] == [("active", None)] * 2
