"""Credits while a caller waits: consume, hold, capture, release, and reading where they went."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.config import Settings
from tests.api.conftest import Api, Engine
from tests.db.world import START, Customer

TRIAL_CREDITS = 2_000
REPLAYED = "Idempotent-Replayed"


def balance(api: Api) -> tuple[int, int, int, int]:
    """Balance, held, expired, available."""
    answer = api.get("/credits").get_json()
    parts = ("balance", "held", "expired", "available")
    found = tuple(int(answer[f"{part}_credits"]) for part in parts)
    return found[0], found[1], found[2], found[3]


@pytest.mark.parametrize("principal", ["customer", "user_key"])
def test_consuming_takes_credits_and_says_what_is_left(request: pytest.FixtureRequest, principal: str) -> None:
    api: Api = request.getfixturevalue(principal)
    answer = api.post("/credits/consume", {"amount": 120, "reason": "a call"}, key="one")
    assert (answer.status_code, answer.get_json()) == (200, {"consumed_credits": 120, "balance_credits": 1_880})
    assert balance(api) == (1_880, 0, 0, 1_880)
    row = api.get("/credits/transactions").get_json()["items"][0]
    assert (row["kind"], row["amount"], row["balance_after"], row["reason"]) == ("consume", -120, 1_880, "a call")
    assert row["source"] == ("user" if principal == "customer" else "api_key")
    assert api.get("/credits/grants").get_json()["items"][0]["remaining"] == 1_880


def test_one_key_consumes_once(customer: Api) -> None:
    first = customer.post("/credits/consume", {"amount": 10}, key="one")
    customer.post("/credits/consume", {"amount": 5}, key="two")
    again = customer.post("/credits/consume", {"amount": 10}, key="one")
    assert (again.status_code, again.get_json(), again.headers[REPLAYED]) == (200, first.get_json(), "true")
    assert REPLAYED not in first.headers
    answer = customer.post("/credits/consume", {"amount": 11}, key="one")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "idempotency_key_reused")
    assert balance(customer)[0] == TRIAL_CREDITS - 15


def test_too_few_credits_are_refused_with_the_facts(customer: Api) -> None:
    answer = customer.post("/credits/consume", {"amount": TRIAL_CREDITS + 1}, key="one")
    problem = answer.get_json()
    assert (answer.status_code, problem["code"]) == (402, "insufficient_credits")
    assert (problem["available_credits"], problem["requested_credits"]) == (TRIAL_CREDITS, TRIAL_CREDITS + 1)
    assert balance(customer)[0] == TRIAL_CREDITS, "nothing was taken"
    assert customer.post("/credits/consume", {"amount": TRIAL_CREDITS}, key="one").status_code == 200, (
        "a key that failed is free"
    )


def test_many_at_once_never_take_more_than_there_is(customer: Api) -> None:
    def consume(number: int) -> int:
        return customer.post("/credits/consume", {"amount": 300}, key=f"call-{number}").status_code

    with ThreadPoolExecutor(4) as threads:
        statuses = list(threads.map(consume, range(10)))
    assert sorted(statuses) == [200] * 6 + [402] * 4
    assert balance(customer)[3] == TRIAL_CREDITS - 6 * 300


def test_a_hold_is_captured_in_part_and_the_rest_is_free(customer: Api) -> None:
    placed = customer.post("/credits/holds", {"amount": 50}, key="call")
    hold = placed.get_json()
    assert (placed.status_code, hold["status"], hold["amount"]) == (201, "open", 50)
    path = placed.headers["Location"].removeprefix("/api/v1")
    assert balance(customer) == (TRIAL_CREDITS, 50, 0, TRIAL_CREDITS - 50)

    answer = customer.post(f"{path}/capture", {"amount": 51})
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_input")
    captured = customer.post(f"{path}/capture", {"amount": 30})
    assert captured.get_json() == {"consumed_credits": 30, "balance_credits": TRIAL_CREDITS - 30}
    again = customer.post(f"{path}/capture", {"amount": 30})
    assert (again.get_json(), again.headers[REPLAYED]) == (captured.get_json(), "true")

    assert balance(customer) == (TRIAL_CREDITS - 30, 0, 0, TRIAL_CREDITS - 30)
    read = customer.get(path).get_json()
    assert (read["status"], read["captured_amount"]) == ("captured", 30)
    for action, body in (("capture", {"amount": 29}), ("release", None)):
        answer = customer.post(f"{path}/{action}", body)
        assert (answer.status_code, answer.get_json()["code"]) == (409, "hold_not_open")


def test_a_released_hold_gives_everything_back(customer: Api) -> None:
    hold = customer.post("/credits/holds", {"amount": 50}, key="call").get_json()
    released = customer.post(f"/credits/holds/{hold['id']}/release")
    assert (released.status_code, released.get_json()["status"]) == (200, "released")
    assert customer.post(f"/credits/holds/{hold['id']}/release").headers[REPLAYED] == "true"
    assert balance(customer) == (TRIAL_CREDITS, 0, 0, TRIAL_CREDITS)
    answer = customer.post(f"/credits/holds/{hold['id']}/capture", {"amount": 1})
    assert (answer.status_code, answer.get_json()["code"]) == (409, "hold_not_open")


def test_one_key_holds_once(customer: Api) -> None:
    first = customer.post("/credits/holds", {"amount": 50}, key="call")
    again = customer.post("/credits/holds", {"amount": 50}, key="call")
    assert (again.status_code, again.get_json(), again.headers[REPLAYED]) == (201, first.get_json(), "true")
    assert customer.post("/credits/holds", {"amount": 51}, key="call").status_code == 409
    assert balance(customer)[1] == 50


def test_held_credits_are_nobody_elses(customer: Api) -> None:
    customer.post("/credits/holds", {"amount": TRIAL_CREDITS}, key="call")
    for path in ("/credits/consume", "/credits/holds"):
        answer = customer.post(path, {"amount": 1}, key="another")
        assert (answer.status_code, answer.get_json()["available_credits"]) == (402, 0)


def test_a_hold_expires_by_its_date(customer: Api, engine: Engine) -> None:
    hold = customer.post("/credits/holds", {"amount": 50, "ttl_seconds": 60}, key="call").get_json()
    engine.execute_sql("UPDATE holds SET held_at = held_at - interval '1 hour', expires_at = now()")
    assert customer.get(f"/credits/holds/{hold['id']}").get_json()["status"] == "expired"
    assert balance(customer) == (TRIAL_CREDITS, 0, 0, TRIAL_CREDITS), "no job has been there"
    answer = customer.post(f"/credits/holds/{hold['id']}/capture", {"amount": 1})
    assert (answer.status_code, answer.get_json()["code"]) == (409, "hold_not_open")


@pytest.mark.parametrize(("ttl_seconds", "status"), [(1, 201), (86_400, 201), (86_401, 422), (0, 422)])
def test_a_hold_lasts_a_day_at_most(customer: Api, ttl_seconds: int, status: int) -> None:
    answer = customer.post("/credits/holds", {"amount": 1, "ttl_seconds": ttl_seconds}, key="call")
    assert answer.status_code == status


def test_a_hold_that_states_no_time_lasts_as_the_settings_say(
    customer: Api, engine: Engine, settings: Settings
) -> None:
    customer.post("/credits/holds", {"amount": 1}, key="call")
    lasts = engine.scalar("SELECT extract(epoch FROM expires_at - held_at)::int FROM holds")
    assert lasts == settings.hold_ttl_seconds == 900


def pages(api: Api, path: str, limit: int) -> list[dict[str, Any]]:
    """All items of a list, page by page."""
    found, query = [], f"limit={limit}"
    while True:
        answer = api.get(f"{path}?{query}").get_json()
        assert len(answer["items"]) <= limit
        found += answer["items"]
        if answer["next_cursor"] is None:
            return found
        query = f"limit={limit}&cursor={answer['next_cursor']}"


@pytest.mark.parametrize("limit", [1, 2, 6, 7, 100])
def test_the_ledger_is_read_page_by_page_newest_first(customer: Api, limit: int) -> None:
    for number in range(6):
        customer.post("/credits/consume", {"amount": 1 + number}, key=f"call-{number}")
    rows = pages(customer, "/credits/transactions", limit)
    assert [row["seq"] for row in rows] == [7, 6, 5, 4, 3, 2, 1]
    assert rows[0]["balance_after"] == TRIAL_CREDITS - 21


def test_a_cursor_stays_in_its_place_when_rows_are_added(customer: Api) -> None:
    for number in range(3):
        customer.post("/credits/consume", {"amount": 1}, key=f"call-{number}")
    first = customer.get("/credits/transactions?limit=2").get_json()
    customer.post("/credits/consume", {"amount": 1}, key="later")
    second = customer.get(f"/credits/transactions?limit=2&cursor={first['next_cursor']}").get_json()
    assert [row["seq"] for row in first["items"] + second["items"]] == [4, 3, 2, 1]
    assert second["next_cursor"] is None


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_lists_of_things_are_read_page_by_page(customer: Api, limit: int) -> None:
    for number in range(3):
        customer.post("/sites", {"name": str(number), "domain": f"{number}.example.com"})
    assert [site["name"] for site in pages(customer, "/sites", limit)] == ["2", "1", "0"]


def test_an_account_on_a_test_clock_lives_in_its_time(api: Api, engine: Engine) -> None:
    dan: Customer = engine.sign_up(at=START)
    api = engine.signed_in(api, dan)
    assert api.get("/account").get_json()["now_at"] == START.isoformat().replace("+00:00", "Z")
    placed = api.post("/credits/holds", {"amount": 5, "ttl_seconds": 60}, key="call").get_json()
    assert placed["held_at"] == START.isoformat().replace("+00:00", "Z")
    assert api.get(f"/credits/holds/{placed['id']}").get_json()["status"] == "open", "long ago by the wall clock"

    engine.execute_sql("UPDATE test_clocks SET now_at = now_at + interval '14 days'")
    assert api.get("/account").get_json()["access"] == "read_and_pay"
    assert balance(api) == (TRIAL_CREDITS, 0, TRIAL_CREDITS, 0), "the trial's credits are over, swept or not"
    answer = api.post("/credits/consume", {"amount": 1}, key="late")
    assert answer.get_json()["code"] == "account_suspended"
