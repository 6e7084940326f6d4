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


@pytest.mark.parametrize("principal", ["customer", "user_key"])
def test_many_at_once_never_take_more_than_there_is(
    request: pytest.FixtureRequest, customer: Api, principal: str
) -> None:
    api: Api = request.getfixturevalue(principal)

    def consume(number: int) -> int:
        return api.post("/credits/consume", {"amount": 300}, key=f"call-{number}").status_code

    with ThreadPoolExecutor(4) as threads:
        statuses = list(threads.map(consume, range(10)))
    assert sorted(statuses) == [200] * 6 + [402] * 4
    assert balance(customer)[3] == TRIAL_CREDITS - 6 * 300


def test_an_account_that_somebody_is_at_keeps_no_other_waiting(
    engine: Engine, ada: Customer, user_key: Api, stranger: Api
) -> None:
    answer = stranger.post("/api-keys", {"name": "backend", "scopes": ["credits:consume"]})
    strangers_key = stranger.with_key(answer.get_json()["key"])
    with ThreadPoolExecutor(1) as threads:
        with engine.database.transaction() as tx:
            tx.execute("SELECT FROM accounts WHERE id = %(id)s FOR NO KEY UPDATE", id=ada.account_id)
            waiting = threads.submit(user_key.post, "/credits/consume", {"amount": 10}, key="one")
            for number in range(5):
                assert strangers_key.post("/credits/consume", {"amount": 10}, key=f"{number}").status_code == 200
            assert not waiting.done()
        assert waiting.result(10).get_json()["balance_credits"] == TRIAL_CREDITS - 10


def test_spending_with_a_key_is_a_use_of_it(customer: Api, user_key: Api) -> None:
    def last_used_at() -> str | None:
        last: str | None = customer.get("/api-keys").get_json()["items"][0]["last_used_at"]
        return last

    assert user_key.post("/credits/consume", {"amount": 2_001}, key="one").status_code == 402
    first = last_used_at()
    assert first is not None
    assert user_key.post("/credits/holds", {"amount": 1}, key="one").status_code == 201
    assert last_used_at() == first, "a minute has not gone by"


def test_a_hold_with_a_key_is_a_use_of_it(customer: Api, user_key: Api) -> None:
    assert user_key.post("/credits/holds", {"amount": 1}, key="one").status_code == 201
    assert customer.get("/api-keys").get_json()["items"][0]["last_used_at"] is not None


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


def test_what_was_done_under_a_key_is_answered_though_the_account_was_suspended_since(api: Api, engine: Engine) -> None:
    dan: Customer = engine.sign_up(at=START)
    api = engine.signed_in(api, dan)
    first = api.post("/credits/consume", {"amount": 30}, key="call")
    engine.execute_sql("UPDATE test_clocks SET now_at = now_at + interval '15 days'")
    again = api.post("/credits/consume", {"amount": 30}, key="call")
    assert (again.status_code, again.headers[REPLAYED]) == (200, "true")
    assert again.get_json()["consumed_credits"] == first.get_json()["consumed_credits"]
    assert api.post("/credits/consume", {"amount": 30}, key="another").status_code == 403


# --- batches ------------------------------------------------------------------------------------------


def batch(api: Api, *items: tuple[str, int], **options: Any) -> Any:
    body = {"items": [{"key": key, "amount": amount} for key, amount in items], **options}
    return api.post("/credits/consume-batch", body)


@pytest.mark.parametrize("principal", ["customer", "user_key"])
def test_a_batch_takes_what_it_can_and_says_what_became_of_each(request: pytest.FixtureRequest, principal: str) -> None:
    api: Api = request.getfixturevalue(principal)
    api.post("/credits/consume", {"amount": 7}, key="before")
    answer = batch(api, ("a", 1_900), ("before", 7), ("b", 100), ("before-not", 93), ("c", 1))
    found = answer.get_json()
    assert answer.status_code == 200
    assert [
        (item["key"], item["consumed_credits"], item["balance_credits"], item["replayed"]) for item in found["items"]
    ] == [
        ("a", 1_900, 93, False),
        ("before", 7, 1_993, True),
        ("b", 0, None, False),
        ("before-not", 93, 0, False),
        ("c", 0, None, False),
    ]
    problem = found["items"][2]["problem"]
    assert (problem["code"], problem["requested_credits"]) == ("insufficient_credits", 100)
    assert (found["balance_credits"], found["available_credits"]) == (0, 0)
    assert balance(api) == (0, 0, 0, 0)


def test_all_or_nothing_takes_nothing_when_one_is_refused(customer: Api) -> None:
    answer = batch(customer, ("a", 10), ("b", TRIAL_CREDITS), all_or_nothing=True)
    problem = answer.get_json()
    assert (answer.status_code, problem["code"], problem["item"], problem["key"]) == (
        402,
        "insufficient_credits",
        1,
        "b",
    )
    assert balance(customer)[0] == TRIAL_CREDITS
    assert batch(customer, ("a", 10), ("b", 1), all_or_nothing=True).get_json()["balance_credits"] == TRIAL_CREDITS - 11


def test_a_batch_sent_again_takes_nothing_more(customer: Api) -> None:
    items = [(f"call-{number}", 2) for number in range(1_000)]
    first = batch(customer, *items).get_json()
    again = batch(customer, *items).get_json()
    assert [item["replayed"] for item in first["items"]] == [False] * 1_000
    assert [item | {"replayed": False} for item in again["items"]] == first["items"]
    assert all(item["replayed"] for item in again["items"])
    assert balance(customer)[0] == 0


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([], id="none"),
        pytest.param([{"key": f"{n}", "amount": 1} for n in range(1_001)], id="more than a thousand"),
        pytest.param([{"key": "a", "amount": 1}, {"key": "a", "amount": 1}], id="one key for two"),
        pytest.param([{"key": "a", "amount": 0}], id="nothing"),
        pytest.param([{"key": "a", "amount": -1}], id="less than nothing"),
        pytest.param([{"key": "a", "amount": 1.5}], id="a part of a credit"),
        pytest.param([{"key": "a", "amount": 10**12 + 1}], id="absurdly many"),
        pytest.param([{"key": "a b", "amount": 1}], id="a key with a space"),
        pytest.param([{"amount": 1}], id="no key"),
        pytest.param([{"key": "good", "amount": 1}, {"key": "bad", "amount": "1"}], id="one bad among good ones"),
    ],
)
def test_no_batch_is(customer: Api, items: list[Any]) -> None:
    answer = customer.post("/credits/consume-batch", {"items": items})
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_input")
    assert balance(customer)[0] == TRIAL_CREDITS


# --- reversals ----------------------------------------------------------------------------------------


def test_an_admin_reverses_a_row_once(customer: Api, admin: Api, engine: Engine) -> None:
    customer.post("/credits/consume", {"amount": 30}, key="call")
    account_id = customer.get("/account").get_json()["id"]
    path = f"/admin/accounts/{account_id}/credits/transactions/2/reverse"
    accepted = admin.post(path, {"reason": "the model failed"})
    assert accepted.status_code == 202
    assert engine.finish(accepted)["reversed_credits"] == 30
    assert balance(customer)[0] == TRIAL_CREDITS
    assert engine.finish(admin.post(path, {"reason": "again"}))["code"] == "already_reversed"
    assert customer.post(path, {"reason": "mine"}).status_code == 403
