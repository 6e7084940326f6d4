"""Looking ahead over HTTP: what was foretold comes on a test clock, on pages, and for the right people."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import msgspec
import pytest

from api.schemas import TimelineEntryDocument
from shared.clock import utc_now
from shared.domain.timeline import LONGEST_OUTLOOK, TimelineEntry
from tests.api.conftest import Api, Engine
from tests.db.world import START, Customer
from tests.foretold import Books, assert_foretold

PATH = "/subscription/timeline"
UNTIL = START + timedelta(days=150)


@pytest.fixture
def cleo(engine: Engine) -> Customer:
    """A customer on a test clock, in the trial, since the last of January."""
    return engine.sign_up(at=START)


@pytest.fixture
def on_clock(api: Api, engine: Engine, cleo: Customer) -> Api:
    """The API for Cleo, the owner of her account."""
    return engine.signed_in(api, cleo)


def asked(api: Api, **query: object) -> dict[str, Any]:
    answer = api.get(PATH, query_string={name: str(value) for name, value in query.items()})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.get_json()
    return found


def pages(api: Api, **query: object) -> Iterator[dict[str, Any]]:
    page = asked(api, **query)
    yield page
    while (cursor := page["next_cursor"]) is not None:
        page = asked(api, **query, cursor=cursor)
        assert page["next_cursor"] != cursor, "each page leads on"
        yield page


def row(document: dict[str, Any]) -> SimpleNamespace:
    """A document as a row would have it."""

    def value(name: str, given: Any) -> Any:
        if given is None or not name.endswith("_at"):
            return UUID(given) if name == "id" else given
        return datetime.fromisoformat(given)

    return SimpleNamespace(**{name: value(name, given) for name, given in document.items()})


def books(api: Api) -> Books:
    """What the API tells of the account."""

    def listed(path: str) -> list[SimpleNamespace]:
        return [row(item) for item in reversed(api.get(f"{path}?limit=100").get_json()["items"])]

    subscription = api.get("/subscription").get_json()
    return Books.of(
        account=row(api.get("/account").get_json()),
        subscription=row(subscription),
        periods=[row(period) for period in subscription["periods"]],
        invoices=listed("/invoices"),
        ledger=listed("/credits/transactions"),
        grants=listed("/credits/grants"),
    )


def buy(api: Api, engine: Engine, plan: str) -> None:
    checkout = engine.finish(api.post("/invoices", {"plan": plan, "payment_method": "sandbox"}))
    body = {"invoice_id": checkout["invoice_id"]}
    charge = api.post("/sandbox/payments", body | {"outcome": "succeeded"}).get_json()["external_payment_id"]
    engine.finish(api.post("/payments", body | {"provider": "sandbox", "external_payment_id": charge}))


def trial(api: Api, engine: Engine) -> None:
    pass


def paid(api: Api, engine: Engine) -> None:
    buy(api, engine, "starter")


def paid_ahead(api: Api, engine: Engine) -> None:
    buy(api, engine, "starter")
    buy(api, engine, "growth")


def leaving(api: Api, engine: Engine) -> None:
    buy(api, engine, "starter")
    engine.finish(api.post("/subscription/cancel", {}))


def awaiting_a_transfer(api: Api, engine: Engine) -> None:
    checkout = engine.finish(api.post("/invoices", {"plan": "starter", "payment_method": "bank_transfer"}))
    engine.finish(api.post("/bank-transfers", {"invoice_id": checkout["invoice_id"]}))


@pytest.mark.parametrize(
    "live", [trial, paid, paid_ahead, leaving, awaiting_a_transfer], ids=lambda live: live.__name__
)
def test_the_clock_brings_what_was_foretold(
    on_clock: Api, admin: Api, engine: Engine, cleo: Customer, live: Callable[[Api, Engine], None]
) -> None:
    live(on_clock, engine)
    foretold = asked(on_clock, until=UNTIL.isoformat())
    assert (foretold["now_at"], foretold["until"]) == ("2026-01-31T09:00:00Z", "2026-06-30T09:00:00Z")
    assert foretold["next_cursor"] is None

    def advance(to: datetime) -> None:
        body = {"to": to.isoformat()}
        result = engine.finish(admin.post(f"/admin/test-clocks/{cleo.clock_id}/advance", body))
        assert result["now_at"] == body["to"]

    assert_foretold(
        [msgspec.convert(item, TimelineEntry) for item in foretold["items"]],
        observed=lambda: books(on_clock),
        live_until=advance,
        until=UNTIL,
    )
    assert asked(on_clock, until=UNTIL.isoformat())["items"] == []


def test_what_a_customer_reads(on_clock: Api, engine: Engine) -> None:
    buy(on_clock, engine, "starter")
    opened = next(item for item in asked(on_clock)["items"] if item["kind"] == "invoice_opened")
    assert opened == {
        "at": "2026-02-28T09:00:00Z",  # ten o'clock in Berlin, as ever
        "transition": "renewal",
        "kind": "invoice_opened",
        "plan": "starter",
        "period_starts_at": "2026-02-28T09:00:00Z",
        "period_ends_at": "2026-03-31T08:00:00Z",
        "invoice_id": None,
        "amount_minor": 8_900,
        "currency": "USD",
        "due_at": "2026-02-28T09:00:00Z",
    } | dict.fromkeys(["status", "reason", "grace_ends_at", "amount", "balance_after", "expires_at"])


def test_an_entry_is_told_in_full() -> None:
    assert tuple(TimelineEntryDocument.model_fields) == TimelineEntry.__struct_fields__


def test_without_an_instant_one_sees_a_year(on_clock: Api) -> None:
    assert asked(on_clock)["until"] == "2027-02-01T09:00:00Z"


def test_an_instant_is_understood_in_any_offset(on_clock: Api) -> None:
    for text in ("2026-03-01T00:00:00Z", "2026-03-01T01:00:00+01:00", "2026-02-28T19:00-05:00"):
        assert asked(on_clock, until=text)["until"] == "2026-03-01T00:00:00Z", text


# --- pages ------------------------------------------------------------------------------------


@pytest.fixture
def daily(on_clock: Api, admin: Api, engine: Engine, cleo: Customer) -> Api:
    """Cleo's API, on a plan that opens a period each day."""
    engine.execute_sql("UPDATE plans SET interval = 'day' WHERE slug = 'free'")
    engine.finish(admin.post(f"/admin/accounts/{cleo.account_id}/plan", {"plan": "free", "reason": "to see"}))
    return on_clock


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 72, 500])
def test_pages_leave_nothing_out_and_repeat_nothing(daily: Api, limit: int) -> None:
    query = {"until": (START + timedelta(days=60)).isoformat()}
    (whole,) = pages(daily, **query, limit=500)
    assert len(whole["items"]) == 60 + 1 + 2 + 2, "a period a day; the trial's credits; two months seeded, and expired"
    found = list(pages(daily, **query, limit=limit))
    assert [item for page in found for item in page["items"]] == whole["items"]
    assert all(len(page["items"]) == limit for page in found[:-1])
    assert 0 < len(found[-1]["items"]) <= limit


def test_the_longest_outlook_comes_in_pages(daily: Api) -> None:
    until = (START + LONGEST_OUTLOOK).isoformat()
    assert len(asked(daily, until=until)["items"]) == 100, "unless stated"
    found = list(pages(daily, until=until, limit=500))
    assert [len(page["items"]) for page in found] == [500, 500, 500, 451]


def test_what_was_written_between_two_pages_is_not_missed(
    daily: Api, admin: Api, engine: Engine, cleo: Customer
) -> None:
    query = {"until": (START + timedelta(days=30)).isoformat(), "limit": 10}
    whole = [item for page in pages(daily, **query) for item in page["items"]]
    first = asked(daily, **query)
    to = START + timedelta(days=5)
    engine.finish(admin.post(f"/admin/test-clocks/{cleo.clock_id}/advance", {"to": to.isoformat()}))
    second = asked(daily, **query, cursor=first["next_cursor"])
    assert first["items"] + second["items"] == whole[:20]


# --- what makes no sense ----------------------------------------------------------------------

MALFORMED = {
    "nothing": "",
    "nonsense": "soon",
    "a day": "2027-03-01",
    "a number": "1803859200",
    "without an offset": "2027-03-01T00:00:00",
    "with the plus unescaped, so that it is a space": "2027-03-01T00:00:00+01:00",
    "a day that no month has": "2027-02-30T00:00:00Z",
    "an hour that no day has": "2027-02-03T25:00:00Z",
    "an offset that no zone has": "2027-02-03T00:00:00-99:99",
    "another age": "1027-03-01T00:00:00Z",
    "before there is time": "0001-01-01T00:00:00%2B14:00",
    "after there is time": "9999-12-31T23:59:59-14:00",
    "two of them": "2027-03-01T00:00:00Z&until=2027-03-02T00:00:00Z",
    "with a null character": "2027-03-01T00:00:00Z%00",
    "with digits of another script": "\u0662\u0660\u0662\u0667-03-01T00:00:00Z",
    "a novel": "2027-03-01T00:00:00Z" + "0" * 5_000,
}


@pytest.mark.parametrize("wrong", MALFORMED)
def test_what_is_no_instant_is_refused(customer: Api, wrong: str) -> None:
    answer = customer.get(f"{PATH}?until={MALFORMED[wrong]}")
    problem = answer.get_json()
    assert (answer.status_code, problem["code"]) == (422, "invalid_input"), answer.text
    assert [error["field"] for error in problem["errors"]] == ["until"]
    assert len(answer.text) < 1_000, "what was sent is not sent back"


def test_the_refusal_says_how_an_instant_is_written(customer: Api) -> None:
    (error,) = customer.get(f"{PATH}?until=2027-03-01T00:00:00+01:00").get_json()["errors"]
    assert "such as 2027-01-31T09:00:00Z" in error["message"]
    assert "%2B" in error["message"]


FAR = {
    "a moment ago": lambda now: now - timedelta(seconds=1),
    "years ago": lambda now: now - timedelta(days=800),
    "more than five years ahead": lambda now: now + LONGEST_OUTLOOK + timedelta(minutes=1),
    "the end of the century": lambda now: now.replace(year=2099),
}


@pytest.mark.parametrize("wrong", FAR)
def test_one_looks_ahead_and_not_for_ever(customer: Api, wrong: str) -> None:
    answer = customer.get(PATH, query_string={"until": FAR[wrong](utc_now()).isoformat()})
    problem = answer.get_json()
    assert (answer.status_code, problem["code"]) == (422, "invalid_input")
    assert "between the account's now and 1830 days later" in problem["detail"]
    span = datetime.fromisoformat(problem["latest"]) - datetime.fromisoformat(problem["now_at"])
    assert span == LONGEST_OUTLOOK


def test_on_a_test_clock_the_past_is_the_clocks(on_clock: Api) -> None:
    assert asked(on_clock, until=START.isoformat())["items"] == []
    answer = on_clock.get(PATH, query_string={"until": (START - timedelta(seconds=1)).isoformat()})
    assert answer.get_json()["now_at"] == "2026-01-31T09:00:00+00:00"


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=501", "limit=-1", "limit=x", "limit=1.5", "limit=1&limit=2", "from=2027-03-01T00:00:00Z"),
        *("cursor=", "cursor=x", "cursor=%00", "cursor=AAAA", f"cursor={'A' * 22}", f"cursor={'A' * 16}%0a"),
    ],
)
def test_other_queries_that_make_no_sense_are_refused(customer: Api, query: str) -> None:
    answer = customer.get(f"{PATH}?{query}")
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_input"), answer.text


def test_any_place_at_all_leads_somewhere(customer: Api) -> None:
    everything = asked(customer)["items"]
    assert everything
    for cursor, items in (("A" * 16, everything), ("_" * 16, [])):
        assert asked(customer, cursor=cursor)["items"] == items


# --- who may ----------------------------------------------------------------------------------


def test_each_account_sees_its_own_future(customer: Api, stranger: Api, engine: Engine, ada: Customer) -> None:
    buy(customer, engine, "starter")
    hers, theirs = ({item["kind"] for item in asked(api)["items"]} for api in (customer, stranger))
    assert "invoice_opened" in hers
    assert theirs == {"subscription_ended", "account_status_changed", "credits_expired"}
    answer = stranger.get(f"{PATH}?account_id={ada.account_id}")
    assert (answer.status_code, answer.get_json()["errors"][0]["field"]) == (422, "account_id")


@pytest.mark.parametrize("principal", ["customer", "user_key"])
def test_a_suspended_account_may_look_ahead(
    request: pytest.FixtureRequest, engine: Engine, ada: Customer, principal: str
) -> None:
    api: Api = request.getfixturevalue(principal)
    before = asked(api)["items"]
    engine.suspend(ada)
    assert asked(api)["items"] == before != []


def test_so_may_a_cancelled_one(customer: Api, engine: Engine) -> None:
    engine.finish(customer.post("/subscription/cancel", {"at_period_end": False}))
    assert customer.get("/account").get_json()["access"] == "read"
    assert [item["kind"] for item in asked(customer)["items"]] == ["credits_expired"]


def test_a_key_for_credits_alone_may_not(customer: Api) -> None:
    made = customer.post("/api-keys", {"name": "one", "scopes": ["credits:read", "credits:consume"]})
    answer = customer.with_key(made.get_json()["key"]).get(PATH)
    assert (answer.status_code, answer.get_json()["permission"]) == (403, "billing:read")
