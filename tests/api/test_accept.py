"""Accepted means durable: keys, replays, polling, and a broker that need not be there."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
import redis

from api.app import create_app
from api.services import EXTENSION
from shared.broker import Publisher
from shared.clock import monotonic
from shared.config import Settings
from shared.messages import Queue
from tests.api.conftest import PASSWORD, Api, Engine
from tests.api.routes import BODIES, SOME_ID
from tests.db.world import Customer
from workers.demo import eventually

SIGNUP = BODIES["POST /signup"] | {"password": PASSWORD}
CHECKOUT = BODIES["POST /invoices"]
REPLAYED = "Idempotent-Replayed"


def test_a_signup_is_accepted_polled_and_done(api: Api, engine: Engine) -> None:
    accepted = api.post("/signup", SIGNUP)
    answer = accepted.get_json()
    assert (accepted.status_code, answer["kind"], answer["status"]) == (202, "sign_up", "pending")
    assert accepted.headers["Location"] == f"/api/v1/operations/{answer['operation_id']}"
    assert REPLAYED not in accepted.headers
    path, token = f"/operations/{answer['operation_id']}", answer["poll_token"]
    assert api.get(path, headers={"X-Poll-Token": token}).get_json()["status"] == "pending"

    result = engine.finish(accepted)
    done = api.get(f"{path}?poll_token={token}").get_json()
    assert (done["status"], done["result"], done["problem"]) == ("succeeded", result, None)
    assert result["plan"] == "free-trial"

    tokens = api.post("/auth/login", {"email": SIGNUP["email"], "password": PASSWORD}).get_json()
    me = api.with_token(tokens["access_token"])
    assert me.get("/account").get_json()["id"] == result["account_id"]
    assert me.get(path).get_json()["status"] == "succeeded", "and its owner needs no token to poll"


def test_no_password_is_kept(api: Api, engine: Engine) -> None:
    accepted = api.post("/signup", SIGNUP, key="a")
    assert PASSWORD not in engine.scalar("SELECT operations::text FROM operations")
    engine.finish(accepted)
    assert "argon2" not in engine.scalar("SELECT operations::text FROM operations")


def test_a_signup_reads_as_absent_without_its_token(api: Api, stranger: Api) -> None:
    answers = [api.post("/signup", SIGNUP | {"email": f"{name}@example.com"}).get_json() for name in "ab"]
    path = f"/operations/{answers[0]['operation_id']}"
    for token in (None, "", "x", answers[1]["poll_token"], answers[0]["poll_token"][:-1], "ä"):
        headers = {} if token is None else {"X-Poll-Token": token}
        assert api.get(path, headers=headers).status_code == 404
    assert stranger.get(path).status_code == 404


def test_a_refused_signup_tells_the_poller_why(api: Api, engine: Engine, ada: Customer) -> None:
    accepted = api.post("/signup", SIGNUP | {"email": engine.email_of(ada)})
    engine.finish(accepted)
    answer = accepted.get_json()
    polled = api.get(f"/operations/{answer['operation_id']}", headers={"X-Poll-Token": answer["poll_token"]}).get_json()
    assert (polled["status"], polled["result"]) == ("failed", None)
    assert (polled["problem"]["code"], polled["problem"]["status"]) == ("email_taken", 409)
    assert polled["problem"]["type"] == "/problems/email_taken"


def test_the_same_key_and_body_are_the_same_operation(customer: Api, engine: Engine) -> None:
    first = customer.post("/invoices", CHECKOUT, key="once")
    again = customer.post("/invoices", dict(reversed(CHECKOUT.items())), key="once")
    assert again.status_code == 202
    assert again.get_json() == first.get_json()
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers[REPLAYED] == "true"

    engine.finish(first)
    later = customer.post("/invoices", CHECKOUT, key="once")
    assert (later.headers[REPLAYED], later.get_json()["status"]) == ("true", "succeeded")


def test_the_same_key_with_another_request_is_refused(customer: Api, engine: Engine) -> None:
    customer.post("/invoices", CHECKOUT, key="once")
    others: list[tuple[str, Any]] = [
        ("/invoices", CHECKOUT | {"plan": "growth"}),
        ("/subscription/cancel", {}),
    ]
    for path, body in others:
        answer = customer.post(path, body, key="once")
        assert (answer.status_code, answer.get_json()["code"]) == (409, "idempotency_key_reused")
    assert engine.scalar("SELECT count(*) FROM operations WHERE kind <> 'sign_up'") == 1


def test_a_signups_key_covers_the_password(api: Api) -> None:
    first = api.post("/signup", SIGNUP, key="once")
    assert api.post("/signup", SIGNUP, key="once").get_json() == first.get_json()
    answer = api.post("/signup", SIGNUP | {"password": "another password"}, key="once")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "idempotency_key_reused")


def test_keys_of_two_accounts_do_not_meet(customer: Api, stranger: Api) -> None:
    first = customer.post("/invoices", CHECKOUT, key="once")
    second = stranger.post("/invoices", CHECKOUT, key="once")
    assert second.status_code == 202
    assert second.get_json()["operation_id"] != first.get_json()["operation_id"]


def test_without_a_key_each_request_is_one_of_its_own(customer: Api) -> None:
    answers = [customer.post("/invoices", CHECKOUT).get_json()["operation_id"] for _ in range(2)]
    assert len(set(answers)) == 2


def test_one_key_sent_at_once_is_accepted_once(customer: Api, engine: Engine) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: customer.post("/invoices", CHECKOUT, key="once"), range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.get_json()["operation_id"] for answer in answers}) == 1
    assert [answer.headers.get(REPLAYED) for answer in answers].count(None) == 1
    assert engine.scalar("SELECT count(*) FROM operations WHERE kind = 'open_invoice'") == 1


def test_a_key_of_200_visible_characters_is_a_key(customer: Api) -> None:
    key = "".join(chr(33 + number % 94) for number in range(200))
    assert customer.post("/invoices", CHECKOUT, key=key).status_code == 202


def test_a_worker_is_woken_once_per_operation(customer: Api, settings: Settings, broker_url: str) -> None:
    with redis.Redis.from_url(broker_url) as client:
        before = client.llen(str(Queue.INTERACTIVE))
        for _ in range(3):
            customer.post("/invoices", CHECKOUT, key="once")
        woken = eventually(lambda: client.llen(str(Queue.INTERACTIVE)) or None, "the message")
        assert (before, woken) == (0, 1)
        client.flushdb()


@pytest.mark.parametrize("broker_url", ["redis://127.0.0.1:1/0", "redis://192.0.2.1:6379/0"], ids=["dead", "frozen"])
def test_a_broker_that_is_not_there_costs_a_request_nothing(
    api: Api, engine: Engine, settings: Settings, broker_url: str
) -> None:
    app = create_app(settings.model_copy(update={"broker_url": broker_url}))
    deaf = Api(app, app.test_client(use_cookies=False), api.documented, {})
    started = monotonic()
    for number in range(5):
        assert deaf.post("/signup", SIGNUP | {"email": f"{number}@example.com"}).status_code == 202
    assert monotonic() - started < 2
    assert engine.scalar("SELECT count(*) FROM operations WHERE next_send_at IS NOT NULL") == 5
    app.extensions[EXTENSION].database.dispose()


def test_what_is_sent_is_what_was_committed(customer: Api, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def send(_: Publisher, task_name: str, operation_id: UUID) -> None:
        seen.append((task_name, engine.scalar("SELECT status FROM operations WHERE id = %(id)s", id=operation_id)))

    monkeypatch.setattr(Publisher, "send", send)
    customer.post("/invoices", CHECKOUT)
    assert seen == [("billing.open_invoice", "pending")]


def test_an_operation_that_nobody_asked_for_is_not_found(customer: Api, admin: Api) -> None:
    assert customer.get(f"/operations/{SOME_ID}").status_code == 404
    assert admin.get(f"/operations/{SOME_ID}").status_code == 404


def test_admins_read_any_operation_and_customers_none_of_theirs(
    customer: Api, admin: Api, engine: Engine, ada: Customer
) -> None:
    own = customer.post("/invoices", CHECKOUT).get_json()["operation_id"]
    assert admin.get(f"/operations/{own}").status_code == 200
    body = BODIES["POST /admin/accounts/{account_id}/credits"]
    given = admin.post(f"/admin/accounts/{ada.account_id}/credits", body).get_json()["operation_id"]
    assert admin.get(f"/operations/{given}").status_code == 200
    assert customer.get(f"/operations/{given}").status_code == 404


def test_a_key_without_the_scope_polls_nothing(customer: Api) -> None:
    operation_id = customer.post("/invoices", CHECKOUT).get_json()["operation_id"]
    made = customer.post("/api-keys", {"name": "one", "scopes": ["credits:consume"]}).get_json()
    assert customer.with_key(made["key"]).get(f"/operations/{operation_id}").status_code == 403


def test_an_account_has_a_bounded_backlog_of_its_own(
    customer: Api, stranger: Api, admin: Api, engine: Engine, ada: Customer, settings: Settings
) -> None:
    accepted = [customer.post("/invoices", CHECKOUT, key=f"{n}") for n in range(settings.account_backlog_limit)]
    assert {answer.status_code for answer in accepted} == {202}

    refused = customer.post("/invoices", CHECKOUT, key="another")
    assert (refused.status_code, refused.get_json()["code"]) == (429, "backlog_full")
    assert refused.headers["Retry-After"] == "1"
    waiting = "SELECT count(*) FROM operations WHERE status = 'pending'"
    assert engine.scalar(waiting) == settings.account_backlog_limit, "and nothing of it is kept"

    assert customer.post("/invoices", CHECKOUT, key="0").headers[REPLAYED] == "true"
    assert stranger.post("/invoices", CHECKOUT).status_code == 202
    gift = {"amount": 1, "reason": "they wait"}
    assert admin.post(f"/admin/accounts/{ada.account_id}/credits", gift).status_code == 202

    engine.finish(accepted[0])
    engine.finish(accepted[1])
    assert customer.post("/invoices", CHECKOUT, key="another").status_code == 202
