"""Nobody is without a limit: who counts for what, what a refusal says, and what is known before the database is asked.

Every application here starts with nothing counted. Limits are small where they are tried, and plenty elsewhere.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
import redis
import structlog
from flask import Flask
from werkzeug.test import TestResponse

from api import throttle
from api.app import create_app
from api.network import network_of
from api.services import EXTENSION
from api.throttle import HEADERS, Memory, Throttle, Throttler
from api.windows import Budget
from shared.clock import utc_now
from shared.config import Settings
from tests.api.conftest import PASSWORD, Api, Engine
from tests.api.routes import BODIES, NEEDS_KEY, Route, routes_of
from tests.api.test_app import measured
from tests.db.world import Customer

NOWHERE = "redis://127.0.0.1:1/0"
LOGIN = {"email": "nobody@example.com", "password": "long enough for this"}
Start = Callable[..., Api]


@pytest.fixture
def start(
    settings: Settings, broker_url: str, app: Flask, documented: dict[str, Any], engine: Engine
) -> Iterator[Start]:
    """Start an API process with other settings; what was counted before is forgotten."""
    started: list[Flask] = []

    def start(*, forget: bool = True, **changed: Any) -> Api:
        if forget:
            for counting in (app, *started):
                counting.extensions[throttle.EXTENSION].windows.tell()
            forget_counts(broker_url)
        process = create_app(settings.model_copy(update={"api_threads": 2} | changed))
        started.append(process)
        return Api(process, process.test_client(use_cookies=False), documented, {})

    yield start
    for process in started:
        process.extensions[EXTENSION].dispose()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let throttling see a later instant."""

    def set_forward(seconds: float) -> None:
        moved = timedelta(seconds=seconds)
        monkeypatch.setattr(throttle, "utc_now", lambda: utc_now() + moved)

    return set_forward


def forget_counts(broker_url: str) -> None:
    with redis.Redis.from_url(broker_url) as client:
        client.flushdb()


def plans_allow(engine: Engine, limit: int) -> None:
    engine.execute_sql("UPDATE plans SET requests_per_minute = %(limit)s", limit=limit)


def using(api: Api, credential: Api) -> Api:
    """Somebody's credential on another API process."""
    return Api(api.app, api.client, api.documented, credential.headers)


def another_key(customer: Api) -> Api:
    scopes = ["billing:read", "credits:consume", "credits:read"]
    return customer.with_key(customer.post("/api-keys", {"name": "another", "scopes": scopes}).get_json()["key"])


def statuses(ask: Callable[[], TestResponse], times: int) -> list[int]:
    return [ask().status_code for _ in range(times)]


def shown(answer: TestResponse) -> tuple[int, int]:
    """The limit, and what is left of it."""
    return int(answer.headers["RateLimit-Limit"]), int(answer.headers["RateLimit-Remaining"])


def from_address(address: str, **more: str) -> dict[str, Any]:
    return {"environ_overrides": {"REMOTE_ADDR": address, **more}}


# --- accounts and their keys ----------------------------------------------------------------------


def test_a_plan_says_how_many_requests_a_minute_it_allows(api: Api, engine: Engine) -> None:
    engine.execute_sql("UPDATE plans SET requests_per_minute = 77 WHERE slug = 'starter'")
    plans = {plan["slug"]: plan for plan in api.get("/plans").get_json()["items"]}
    assert plans["starter"]["requests_per_minute"] == 77


def test_two_accounts_do_not_share_a_budget(start: Start, engine: Engine, customer: Api, stranger: Api) -> None:
    plans_allow(engine, 3)
    api = start()
    ada, other = using(api, customer), using(api, stranger)
    assert statuses(lambda: ada.get("/account"), 4) == [200, 200, 200, 429]
    assert statuses(lambda: other.get("/account"), 3) == [200, 200, 200]


def test_the_keys_and_users_of_an_account_share_its_budget(
    start: Start, engine: Engine, customer: Api, user_key: Api
) -> None:
    second_key = another_key(customer)
    plans_allow(engine, 6)
    api = start()
    for number, credential in enumerate((customer, user_key, second_key) * 2):
        assert shown(using(api, credential).get("/credits")) == (6, 5 - number)
    for credential in (customer, user_key, second_key):
        assert using(api, credential).get("/credits").status_code == 429


def test_a_plan_that_is_changed_counts_from_the_next_request_on(start: Start, engine: Engine, customer: Api) -> None:
    plans_allow(engine, 5)
    ada = using(start(), customer)
    assert shown(ada.get("/account")) == (5, 4)
    plans_allow(engine, 50)
    assert shown(ada.get("/account")) == (5, 3), "this request learns of it"
    assert shown(ada.get("/account")) == (50, 47)


def test_only_who_is_known_is_counted_ahead_of_asking(settings: Settings) -> None:
    throttler = Throttler(settings.model_copy(update={"api_key_requests_per_minute": 60}))
    of_account = throttler.of_account(UUID(int=1), 600, UUID(int=2))
    assert [(budget.limit, budget.slack) for budget in of_account] == [(60, 1), (600, 12)]
    of_others = [throttler.of_nobody(b"key"), throttler.of_admin(UUID(int=3))]
    of_others += [throttler.of_network(name, "192.0.2.1") for name in ("anonymous", "preflight", *tuple(Throttle)[1:])]
    assert {budget.slack for budget in of_others} == {0}


def test_an_account_without_a_plan_has_what_an_address_has(start: Start, engine: Engine, customer: Api) -> None:
    engine.execute_sql("SET LOCAL session_replication_role = replica; DELETE FROM subscriptions")
    ada = using(start(anonymous_requests_per_minute=17), customer)
    assert shown(ada.get("/account")) == (17, 16)


def test_a_key_may_have_a_budget_of_its_own_within_its_accounts(
    start: Start, engine: Engine, customer: Api, user_key: Api
) -> None:
    second_key = another_key(customer)
    plans_allow(engine, 5)
    api = start(api_key_requests_per_minute=2)
    first, second, user = (using(api, credential) for credential in (user_key, second_key, customer))
    assert statuses(lambda: first.get("/credits"), 6) == [200, 200, 429, 429, 429, 429]
    refused = first.get("/credits")
    assert (refused.get_json()["budget"], shown(refused)) == ("api_key", (2, 0))
    assert statuses(lambda: second.get("/credits"), 3) == [200, 200, 429], "the account lost nothing by it"
    assert statuses(lambda: user.get("/credits"), 2) == [200, 429]
    assert user.get("/credits").get_json()["budget"] == "account"


def test_admins_are_limited_too_each_by_himself(start: Start, admin: Api, engine: Engine) -> None:
    api = start(admin_requests_per_minute=2)
    assert statuses(lambda: using(api, admin).get("/admin/accounts"), 4) == [200, 200, 429, 429]
    assert using(api, admin).get("/admin/accounts").get_json()["budget"] == "admin"


# --- what a refusal says --------------------------------------------------------------------------


def test_a_refusal_says_how_long_to_wait(start: Start, engine: Engine, customer: Api) -> None:
    plans_allow(engine, 1)
    ada = using(start(), customer)
    first = ada.get("/account")
    assert (shown(first), "Retry-After" in first.headers) == ((1, 0), False)
    answer = ada.get("/account")
    problem = answer.get_json()
    assert (answer.status_code, problem["code"], problem["budget"]) == (429, "too_many_requests", "account")
    assert problem["requests_per_minute"] == 1
    wait = int(answer.headers["Retry-After"])
    assert 55 <= wait <= 60
    assert answer.headers["RateLimit-Reset"] == str(wait) == str(problem["retry_after_seconds"])


def test_the_log_says_who_was_refused(start: Start, engine: Engine, customer: Api, ada: Customer) -> None:
    plans_allow(engine, 1)
    api = using(start(), customer)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        assert statuses(lambda: api.get("/account"), 2) == [200, 429]
    told = [line.get("throttled") for line in logs if line["event"] == "request"]
    assert told == [None, f"{{{ada.account_id}}}:account"]


def test_who_waits_as_long_as_was_said_is_served(
    start: Start, engine: Engine, customer: Api, clock: Callable[[float], None]
) -> None:
    plans_allow(engine, 2)
    ada = using(start(), customer)
    ada.get("/account")
    clock(30)
    ada.get("/account")
    wait = int(ada.get("/account").headers["Retry-After"])
    assert 28 <= wait <= 31
    clock(30 + wait - 2)
    assert ada.get("/account").status_code == 429
    clock(30 + wait)
    assert statuses(lambda: ada.get("/account"), 2) == [200, 429], "the window has moved by one request"


# --- processes, and Redis -------------------------------------------------------------------------


def test_processes_share_every_budget(start: Start, engine: Engine, customer: Api) -> None:
    plans_allow(engine, 3)
    one, other = start(login_attempts_per_minute=3), start(login_attempts_per_minute=3)
    asked = [using(process, customer).get("/account").status_code for process in (one, other, one, other, one)]
    assert asked == [200, 200, 200, 429, 429]
    tried = [process.post("/auth/login", LOGIN).status_code for process in (one, other, other, one)]
    assert tried == [401, 401, 401, 429]


def test_without_redis_nobody_is_unlimited_and_a_metric_says_so(start: Start, engine: Engine, customer: Api) -> None:
    plans_allow(engine, 2)
    api = start(throttle_url=NOWHERE, login_attempts_per_minute=1)
    before = measured(api.client)
    assert statuses(lambda: using(api, customer).get("/account"), 3) == [200, 200, 429]
    assert statuses(lambda: api.post("/auth/login", LOGIN), 2) == [401, 429]
    after = measured(api.client)
    name = "billing_throttle_fallback_total"
    assert after[name] - before.get(name, 0) == 5
    for budget in ("account", "login"):
        name = f'billing_throttled_requests_total{{budget="{budget}"}}'
        assert after[name] - before.get(name, 0) == 1


# --- network addresses ----------------------------------------------------------------------------


STRICT: dict[str, tuple[str, str, Any]] = {
    "login": ("login_attempts_per_minute", "/auth/login", LOGIN),
    "an admin's login": ("login_attempts_per_minute", "/admin/auth/login", LOGIN),
    "signup": ("signups_per_minute", "/signup", BODIES["POST /signup"]),
    "refresh": ("refreshes_per_minute", "/auth/refresh", None),
    "an admin's refresh": ("refreshes_per_minute", "/admin/auth/refresh", None),
    "webhook": ("webhooks_per_minute", "/webhooks/stripe", None),
}


@pytest.mark.parametrize("name", STRICT)
def test_what_strangers_may_send_is_limited_by_address(
    start: Start, name: str, customer: Api, user_key: Api, admin: Api
) -> None:
    setting, path, body = STRICT[name]
    api = start(**{setting: 2})
    for _ in range(2):
        assert api.post(path, body, **from_address("192.0.2.1")).status_code not in {429, 500}
    for somebody in (api, using(api, customer), using(api, user_key), using(api, admin)):
        refused = somebody.post(path, body, **from_address("192.0.2.1"))
        assert refused.status_code == 429, "whatever is presented along with it"
        assert refused.get_json()["budget"] == name.removeprefix("an admin's ")
    assert api.post(path, body, **from_address("192.0.2.2")).status_code != 429


def test_customers_and_admins_sign_in_out_of_one_budget(start: Start) -> None:
    api = start(login_attempts_per_minute=2)
    paths = ("/auth/login", "/admin/auth/login", "/auth/login", "/admin/auth/login")
    assert [api.post(path, LOGIN).status_code for path in paths] == [401, 401, 429, 429]


def test_signing_in_rightly_counts_as_well(start: Start, engine: Engine, ada: Customer) -> None:
    api = start(login_attempts_per_minute=2)
    body = {"email": engine.email_of(ada), "password": PASSWORD}
    assert statuses(lambda: api.post("/auth/login", body), 3) == [200, 200, 429]


def test_who_presents_nothing_is_limited_by_address(start: Start) -> None:
    api = start(anonymous_requests_per_minute=4)
    paths = ["/plans", "/account", "/no/such/address", f"/operations/{UUID(int=1)}"]
    assert [api.get(path).status_code for path in paths] == [200, 401, 404, 404]
    assert [api.get(path).status_code for path in paths] == [429] * 4
    assert api.client.get("/openapi.json").status_code == 429
    assert api.client.get("/docs").status_code == 429
    assert api.get("/plans", **from_address("192.0.2.2")).status_code == 200


def test_a_credential_counts_for_nothing_where_none_is_asked_for(start: Start, customer: Api) -> None:
    api = start(anonymous_requests_per_minute=2, failed_credentials_per_minute=1)
    made_up = api.with_key("bk_none")
    assert statuses(lambda: made_up.get("/plans"), 3) == [200, 200, 429]
    assert using(api, customer).get("/plans").get_json()["budget"] == "anonymous"
    assert using(api, customer).get("/account").status_code == 200


def test_preflights_have_a_budget_of_their_own(start: Start) -> None:
    api = start(preflights_per_minute=2, anonymous_requests_per_minute=1)
    preflight = partial(api.client.options, "/api/v1/account")
    assert statuses(preflight, 3) == [200, 200, 429]
    assert api.get("/plans").status_code == 200


ADDRESSES = [
    ("192.0.2.7", "192.0.2.7"),
    (" 192.0.2.7 ", "192.0.2.7"),
    ("192.0.2.7:51234", "192.0.2.7"),
    ("::ffff:192.0.2.7", "192.0.2.7"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("2001:db8:1:2::", "2001:db8:1:2::/64"),
    ("[2001:db8:1:2::9]:443", "2001:db8:1:2::/64"),
    ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
    ("fe80::1%eth0", "fe80::/64"),
    ("", "unknown"),
    (None, "unknown"),
    ("unknown", "unknown"),
    ("999.1.1.1", "unknown"),
    ("192.0.2.7:1:2", "unknown"),
    ("x" * 5_000, "unknown"),
]


@pytest.mark.parametrize(("address", "network"), ADDRESSES)
def test_a_network_is_an_address_or_64_bits_of_one(address: str | None, network: str) -> None:
    assert network_of(address) == network


FORWARDED = [
    (0, "203.0.113.1", "10.0.0.1"),  # the header is anybody's
    (1, "203.0.113.1", "203.0.113.1"),
    (1, "6.6.6.6, 203.0.113.1", "203.0.113.1"),  # what the client made up comes first
    (2, "6.6.6.6, 203.0.113.1, 10.0.0.9", "203.0.113.1"),
    (2, "203.0.113.1", "10.0.0.1"),  # it did not come through both
    (1, "2001:db8::5", "2001:db8::/64"),
    (1, "nonsense", "unknown"),
]


@pytest.mark.parametrize(("proxies", "header", "network"), FORWARDED)
def test_only_proxies_that_are_trusted_say_where_a_request_is_from(
    start: Start, broker_url: str, proxies: int, header: str, network: str
) -> None:
    api = start(trusted_proxies=proxies)
    api.get("/plans", headers={"X-Forwarded-For": header}, **from_address("10.0.0.1"))
    with redis.Redis.from_url(broker_url) as client:
        assert client.keys("throttle:*:anonymous") == [f"throttle:{{{network}}}:anonymous".encode()]


# --- credentials that nobody has identified yet ---------------------------------------------------


def test_credentials_that_are_nobodys_are_limited_by_address(start: Start, customer: Api, user_key: Api) -> None:
    api = start(failed_credentials_per_minute=3)
    made_up = [api.with_key("bk_none"), api.with_token("none"), api.with_token("a.b.c"), api.with_key("x" * 4_000)]
    assert [somebody.get("/credits").status_code for somebody in made_up] == [401, 401, 401, 429]
    refused = api.with_key("made-up").get("/credits")
    assert (refused.get_json()["budget"], shown(refused)) == ("failed_credential", (3, 0))
    assert refused.headers["Retry-After"]
    elsewhere = from_address("192.0.2.2")
    assert api.with_key("made-up").get("/credits", **elsewhere).status_code == 401


def test_exactly_as_many_failures_as_the_limit_are_looked_up(start: Start) -> None:
    api = start(failed_credentials_per_minute=3)
    tried = [api.with_key(f"made-up-{n}").post("/credits/consume", {"amount": 1}, key="k") for n in range(5)]
    assert [answer.status_code for answer in tried] == [401, 401, 401, 429, 429]
    assert [shown(answer)[1] for answer in tried] == [2, 1, 0, 0, 0]


def test_who_is_known_does_not_suffer_from_strangers_at_the_same_address(
    start: Start, customer: Api, user_key: Api, clock: Callable[[float], None]
) -> None:
    api = start(failed_credentials_per_minute=2)
    assert using(api, user_key).get("/credits").status_code == 200
    for n in range(5):
        api.with_key(f"made-up-{n}").get("/credits")
    assert using(api, user_key).get("/credits").status_code == 200
    assert using(api, customer).get("/credits").status_code == 429, "who is not known yet has to wait"
    clock(61)
    assert using(api, customer).get("/credits").status_code == 200


def test_a_revoked_key_uses_up_nobodys_budget(start: Start, engine: Engine, customer: Api, user_key: Api) -> None:
    plans_allow(engine, 9)
    api = start(failed_credentials_per_minute=5)
    assert shown(using(api, user_key).get("/credits")) == (9, 8)
    engine.execute_sql("UPDATE api_keys SET revoked_at = now()")
    assert statuses(lambda: using(api, user_key).get("/credits"), 7) == [401] * 6 + [429]
    assert shown(using(start(forget=False), customer).get("/credits")) == (9, 6), "the one that told counted for Ada"


def test_who_goes_on_with_a_revoked_key_shuts_nobody_out(
    start: Start, engine: Engine, customer: Api, user_key: Api
) -> None:
    new_key = another_key(customer)
    engine.execute_sql("UPDATE api_keys SET revoked_at = now() WHERE name = 'all'")
    api = start(failed_credentials_per_minute=3)
    assert statuses(lambda: using(api, user_key).get("/credits"), 6) == [401] * 4 + [429] * 2
    assert using(api, new_key).get("/credits").status_code == 200


def test_a_credential_that_is_somebodys_after_all_pays_for_its_request(
    start: Start, engine: Engine, user_key: Api
) -> None:
    plans_allow(engine, 9)
    key = using(start(), user_key)
    key.post("/credits/consume", key="k", data=b"<xml/>", content_type="text/xml")
    assert shown(key.get("/credits")) == (9, 8)
    assert shown(key.get("/credits")) == (9, 7)


def test_at_an_address_that_is_barred_nobody_tries_again_what_has_failed(start: Start) -> None:
    api = start(failed_credentials_per_minute=3)
    keys = [api.with_key(f"made-up-{n}") for n in range(3)]
    assert [key.get("/credits").status_code for key in keys * 2] == [401] * 3 + [429] * 3


def test_what_the_database_cannot_say_is_limited_as_well(start: Start, customer: Api) -> None:
    api = start(database_url="postgresql+psycopg://127.0.0.1:1/nowhere", anonymous_requests_per_minute=2)
    assert statuses(lambda: using(api, customer).get("/account"), 4) == [503, 503, 429, 429]


def test_requests_that_never_get_to_their_credential_are_limited_as_well(start: Start, user_key: Api) -> None:
    api = start(failed_credentials_per_minute=2)
    no_json = {"data": b"<xml/>", "content_type": "text/xml"}
    ask = partial(using(api, user_key).post, "/credits/consume", key="k", **no_json)
    assert statuses(ask, 5) == [415, 415, 415, 429, 429], "once for the address, twice for itself"


def test_a_token_on_the_other_side_is_limited_as_well(start: Start, customer: Api) -> None:
    api = start(failed_credentials_per_minute=2)
    assert statuses(lambda: using(api, customer).get("/admin/accounts"), 5) == [403, 403, 403, 429, 429]


def test_a_flood_is_refused_before_the_database_is_asked(
    start: Start, engine: Engine, user_key: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans_allow(engine, 2)
    api = using(start(), user_key)
    consume = partial(api.post, "/credits/consume", {"amount": 1}, key="k")
    assert statuses(consume, 2) == [200, 200]
    monkeypatch.setattr("api.auth.services", lambda: pytest.fail("the database was asked"))
    assert statuses(consume, 3) == [429] * 3


def test_spending_counts_from_the_first_request_on(start: Start, engine: Engine, customer: Api, user_key: Api) -> None:
    plans_allow(engine, 2)
    api = start()

    def consume(credential: Api, key: str) -> TestResponse:
        return using(api, credential).post("/credits/consume", {"amount": 1}, key=key)

    answers = [consume(user_key, f"k{n}") for n in range(3)]
    assert [(answer.status_code, shown(answer)[1]) for answer in answers] == [(200, 1), (200, 0), (429, 0)]
    late = consume(customer, "late")
    assert (late.status_code, shown(late)) == (200, (2, 0)), "whose it is was known when the credits were taken"
    assert consume(customer, "later").status_code == 429


# --- nobody, nowhere ------------------------------------------------------------------------------


def asked(api: Api, route: Route) -> TestResponse:
    key = "a-key" if route.name in NEEDS_KEY else None
    return api.send(route.method, route.path(), BODIES.get(route.name), key=key)


PRINCIPALS = ("nobody", "customer", "user_key", "admin", "forged token", "unknown key", "two at once", "nonsense")


def presenting(request: pytest.FixtureRequest, api: Api, principal: str) -> Api:
    made_up = {
        "nobody": {},
        "forged token": {"Authorization": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0."},
        "unknown key": {"X-API-Key": "bk_00000000_unknown"},
        "two at once": {"X-API-Key": "bk_00000000_unknown", "Authorization": "Bearer x"},
        "nonsense": {"Authorization": "Basic YTpi"},
    }
    if principal in made_up:
        return Api(api.app, api.client, api.documented, made_up[principal])
    return using(api, request.getfixturevalue(principal))


@pytest.mark.parametrize("principal", PRINCIPALS)
def test_no_principal_bypasses_throttling_on_any_route(
    request: pytest.FixtureRequest, start: Start, engine: Engine, settings: Settings, broker_url: str, principal: str
) -> None:
    credential = presenting(request, start(), principal)
    plans_allow(engine, 1)
    ones = {name: 1 for name in Settings.model_fields if name.endswith("_per_minute")}
    api = using(start(**ones), credential)
    for route in routes_of(api.app):
        forget_counts(broker_url)
        answers = [asked(api, route) for _ in range(3)]
        assert answers[-1].status_code == 429, route.name
        for answer in answers:
            assert all(answer.headers[name].isdigit() for name in HEADERS), route.name


def test_only_health_and_metrics_are_exempt(app: Flask, api: Api) -> None:
    exempt = set()
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<code>", "not_found").replace("<path:name>", "css/swagger-ui.css")
        path = path.replace("<uuid:", "<").replace("<int:", "<")
        answer = api.client.open(path, method="OPTIONS" if "GET" not in (rule.methods or ()) else "GET")
        if not all(name in answer.headers for name in HEADERS):
            exempt.add(rule.rule)
        answer.close()
    assert exempt == {"/healthz", "/readyz", "/metrics"}


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/v2"), ("PUT", "/api/v1/account"), ("GET", "/.env")])
def test_what_is_not_there_is_throttled(api: Api, method: str, path: str) -> None:
    answer = api.client.open(path, method=method)
    assert answer.status_code in {404, 405}
    assert all(name in answer.headers for name in HEADERS)


def test_whatever_strangers_may_send_has_a_stricter_budget(app: Flask) -> None:
    for endpoint, view in app.view_functions.items():
        needs = getattr(view, "needs", None)
        if needs is not None and not needs.audiences:
            (rule,) = app.url_map.iter_rules(endpoint)
            is_strict = vars(view)["throttle"] is not Throttle.CALLER
            assert is_strict == ("POST" in (rule.methods or ())), endpoint


def test_every_route_documents_that_it_may_refuse(documented: dict[str, Any]) -> None:
    for path, item in documented["paths"].items():
        for method, operation in item.items():
            described = operation["responses"]["429"]
            assert described["headers"].keys() == {"Retry-After", *HEADERS}, f"{method} {path}"
            assert described["content"].keys() == {"application/problem+json"}


# --- memory ---------------------------------------------------------------------------------------


def test_a_process_remembers_so_many_credentials_and_forgets_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_REMEMBERED", 2)
    memory, payers = Memory(), (Budget(name="account", key="ada", limit=1),)
    for name in (b"one", b"two", b"three"):
        memory.remember(name, payers)
    assert [memory.payers(name) for name in (b"one", b"two", b"three")] == [(), payers, payers]
