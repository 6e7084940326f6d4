"""Whatever is sent is answered with a problem that says what is wrong, and changes nothing."""

import json
from io import BytesIO
from typing import Any

import pytest
from flask import Flask

from shared.domain.credits import MAX_CREDITS
from tests.api.conftest import Api, Engine
from tests.api.routes import (
    BODIES,
    NEEDS_KEY,
    POLLING,
    PUBLIC,
    RAW,
    ROUTES_WITH_BODY,
    SIGNED,
    WITHOUT_BODY,
    Route,
    routes_of,
)

ROUTES = pytest.mark.parametrize("route", ROUTES_WITH_BODY, ids=lambda route: route.name)
HUGE = 10**30
NO_JSON = ("", "{", "nonsense", '{"a": }', "\x00", b"\xff\xfe", "[" * 20_000, '{"a": "\\ud800"}', "{'a': 1}", "{} {}")


@pytest.fixture
def ask(customer: Api, admin: Api) -> Any:
    """Send to a route with the credential it needs."""

    def send(route: Route, body: Any = None, **options: Any) -> Any:
        api = admin if route.for_admins else customer
        key = "a-key" if route.name in NEEDS_KEY else None
        return api.send(route.method, route.path(), body, key=key, **options)

    return send


def raw(content: bytes | str, content_type: str = "application/json") -> dict[str, Any]:
    return {"data": content, "content_type": content_type}


def test_every_route_is_in_the_tables(app: Flask) -> None:
    expecting_a_body = {route.name for route in routes_of(app) if route.method in {"POST", "PATCH"}}
    assert expecting_a_body == BODIES.keys() | WITHOUT_BODY | RAW


def test_every_route_but_the_public_ones_wants_a_credential(app: Flask, api: Api) -> None:
    for route in routes_of(app):
        body = BODIES.get(route.name)
        answer = api.send(route.method, route.path(), body)
        if route.name == POLLING:
            assert answer.status_code == 404
        elif route.name not in PUBLIC | SIGNED:
            assert (answer.status_code, answer.get_json()["code"]) == (401, "unauthenticated"), route.name


def test_no_route_takes_an_unknown_api_key(app: Flask, api: Api) -> None:
    nobody = api.with_key("bk_00000000_unknown")
    for route in routes_of(app):
        if route.name not in PUBLIC | SIGNED:
            answer = nobody.send(route.method, route.path(), BODIES.get(route.name))
            assert answer.status_code == 401, route.name


def test_an_unknown_id_is_not_found(app: Flask, ask: Any) -> None:
    for route in routes_of(app):
        if "{" in route.template or route.name in {"POST /payments", "POST /bank-transfers", "POST /sandbox/payments"}:
            answer = ask(route, BODIES.get(route.name))
            assert (answer.status_code, answer.get_json()["code"]) == (404, "not_found"), route.name


def test_what_is_no_id_is_not_found(app: Flask, customer: Api, admin: Api) -> None:
    for route in routes_of(app):
        if "{" in route.template:
            for nonsense in ("1", "x" * 2_000, "..%2f..", "%00", "0" * 32):
                api = admin if route.for_admins else customer
                assert api.send(route.method, route.path(nonsense)).status_code == 404, route.name


@ROUTES
def test_what_is_no_json_is_refused(ask: Any, route: Route) -> None:
    for content in NO_JSON:
        answer = ask(route, **raw(content))
        assert (answer.status_code, answer.get_json()["code"]) == (400, "malformed_json"), content


@ROUTES
def test_what_is_no_object_is_refused(ask: Any, route: Route) -> None:
    for content in ("[]", "null", '"text"', "1", "true", '"{}"'):
        assert_invalid(ask(route, **raw(content)))


@ROUTES
def test_only_json_is_read(ask: Any, route: Route) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = ask(route, **raw(json.dumps(BODIES[route.name]), content_type))
        assert (answer.status_code, answer.get_json()["code"]) == (415, "unsupported_media_type"), content_type


@ROUTES
def test_a_body_that_is_too_large_is_refused(ask: Any, route: Route) -> None:
    limit = 512 * 1024 if route.name == "POST /credits/consume-batch" else 64 * 1024
    answer = ask(route, **raw(json.dumps(BODIES[route.name]) + " " * limit))
    assert (answer.status_code, answer.get_json()["code"]) == (413, "body_too_large")


def test_a_body_that_comes_in_chunks_is_no_way_around_the_limit(api: Api) -> None:
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    for size, status in ((1_000, 400), (65_536, 413), (300_000, 413)):
        stream = BytesIO(b"x" * size)
        answer = api.post("/signup", input_stream=stream, content_type="application/json", environ_overrides=chunked)
        assert answer.status_code == status, size


@ROUTES
def test_unknown_fields_are_refused(ask: Any, route: Route) -> None:
    answer = ask(route, BODIES[route.name] | {"is_admin": True})
    assert_invalid(answer, "is_admin")


@ROUTES
def test_no_field_takes_another_type(ask: Any, route: Route) -> None:
    for name, value in BODIES[route.name].items():
        others: list[Any] = [{}, {"$ne": 1}, [[]], 1.5, float("inf")]
        others += [1, True] if isinstance(value, str) else ["1", "", "text"]
        if isinstance(value, int) and not isinstance(value, bool):
            others += [True, False, 1.0, HUGE, -HUGE]
        if isinstance(value, bool):
            others += [0, 1]
        for other in others:
            assert_invalid(ask(route, BODIES[route.name] | {name: other}), name)


@ROUTES
def test_no_text_holds_control_characters_or_a_novel(ask: Any, route: Route) -> None:
    for name, value in BODIES[route.name].items():
        if not isinstance(value, str):
            continue
        novel = ask(route, BODIES[route.name] | {name: value + "a" * 5_000})
        assert_invalid(novel, name)
        assert len(novel.text) < 2_000, "what was sent is not sent back"
        if name != "password":
            assert_invalid(ask(route, BODIES[route.name] | {name: f"{value}\x00"}), name)
            assert_invalid(ask(route, BODIES[route.name] | {name: ""}), name)


@ROUTES
def test_what_is_required_is_required(ask: Any, route: Route) -> None:
    schema = {"at_period_end", "payer_name", "transferred_on", "note", "override_reason", "expires_at", "ttl_seconds"}
    schema |= {"overlap_hours"}
    schema |= {"all_or_nothing"}
    schema |= {"save_payment_method", "saves_card"}
    schema |= {"payment_method"} if route.name.endswith("/checkout") else set()
    optional = schema | ({"reason"} if route.name == "POST /credits/consume" else set())
    if route.name.endswith("/refunds"):
        optional |= {"amount_minor", "transfer_reference"}
    if route.method == "PATCH":
        assert_invalid(ask(route, {}))
        return
    for name in BODIES[route.name].keys() - optional:
        assert_invalid(ask(route, {k: v for k, v in BODIES[route.name].items() if k != name}), name)


ABSURD: dict[str, tuple[str, list[Any]]] = {
    "POST /credits/consume": ("amount", [0, -1, MAX_CREDITS + 1, HUGE, 2**63, 1e3, None]),
    "POST /credits/holds": ("amount", [0, -1, MAX_CREDITS + 1, HUGE, 2**63, 1e3, None]),
    "POST /credits/holds/{hold_id}/capture": ("amount", [0, -1, MAX_CREDITS + 1, HUGE, 2**63, 1e3, None]),
    "POST /admin/accounts/{account_id}/credits": ("amount", [0, MAX_CREDITS + 1, -MAX_CREDITS - 1, HUGE, -HUGE]),
    "POST /admin/bank-transfers/{bank_transfer_id}/approve": ("amount_minor", [0, -1, 10**11 + 1, HUGE]),
    "POST /admin/invoices/{invoice_id}/payments": ("amount_minor", [0, -1, 10**11 + 1, HUGE]),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_amounts_are_refused(ask: Any, name: str) -> None:
    field, amounts = ABSURD[name]
    for amount in amounts:
        assert_invalid(ask(Route(*name.split(" ")), BODIES[name] | {field: amount}), field)


SIGNUPS = {
    "no address": {"email": "ada"},
    "an address with a name": {"email": "Ada <ada@example.com>"},
    "two addresses": {"email": "ada@example.com,bob@example.com"},
    "no domain": {"email": "ada@localhost"},
    "an endless address": {"email": f"{'a' * 300}@example.com"},
    "a short password": {"password": "xK9#mQ2$v"},
    "a long password": {"password": "xK9#mQ2$v" * 29},
    "a common password": {"password": "P@ssw0rd123"},
    "a password that is a row of keys": {"password": "qwertyuiop12"},
    "a password of digits": {"password": "3141592653589793"},
    "a password that repeats": {"password": "xK9#m2xK9#m2"},
    "a password that says the address": {"password": "example.com12"},
    "an unknown zone": {"time_zone": "Mars/Olympus"},
    "a zone outside of the database": {"time_zone": "../../etc/passwd"},
    "an offset": {"time_zone": "+01:00"},
    "a blank name": {"account_name": "   "},
    "a name of two lines": {"account_name": "Ada\nLovelace"},
    "no such clock": {"test_clock_id": "not-an-id"},
}


@pytest.mark.parametrize("wrong", SIGNUPS)
def test_a_signup_that_makes_no_sense_is_refused(api: Api, wrong: str) -> None:
    (field,) = SIGNUPS[wrong]
    answer = api.post("/signup", BODIES["POST /signup"] | SIGNUPS[wrong])
    assert_invalid(answer, field)
    assert str(SIGNUPS[wrong][field]) not in answer.text, "what was sent is not sent back"


DATES: dict[str, tuple[str, str, Any]] = {
    "an instant without a zone": ("POST /admin/test-clocks", "now_at", "2026-01-31T09:00:00"),
    "a day for an instant": ("POST /admin/test-clocks", "now_at", "2026-01-31"),
    "a number for an instant": ("POST /admin/test-clocks", "now_at", 1_770_000_000),
    "the distant past": ("POST /admin/test-clocks", "now_at", "0001-01-01T00:00:00+14:00"),
    "the distant future": ("POST /admin/test-clocks", "now_at", "9999-12-31T23:59:59-14:00"),
    "no such day": ("POST /bank-transfers", "transferred_on", "2026-02-30"),
    "an instant for a day": ("POST /bank-transfers", "transferred_on", "2026-02-03T00:00:00Z"),
    "a day of another age": ("POST /bank-transfers", "transferred_on", "1026-02-03"),
}


@pytest.mark.parametrize("wrong", DATES)
def test_dates_that_make_no_sense_are_refused(ask: Any, wrong: str) -> None:
    name, field, value = DATES[wrong]
    assert_invalid(ask(Route(*name.split(" ")), BODIES[name] | {field: value}), field)


def test_what_is_no_host_name_is_no_domain(customer: Api) -> None:
    for domain in ("shop", "-a.example.com", "a..b", "shop.example.com/", "https://a.b", "a b.c", "ä.de", "a." * 130):
        assert_invalid(customer.post("/sites", {"name": "Shop", "domain": domain}), "domain")


def test_only_known_scopes_can_be_given(customer: Api) -> None:
    for scopes in ([], ["admin"], ["credits:consume"] * 4, "credits:consume", [1], None):
        assert_invalid(customer.post("/api-keys", {"name": "backend", "scopes": scopes}), "scopes")


@pytest.mark.parametrize("name", ["POST /credits/consume", "POST /invoices"])
def test_keys_that_are_none_are_refused(customer: Api, name: str) -> None:
    route = Route(*name.split(" "))
    for key in ("", " ", "a b", "ä", "k" * 201, "tab\there"):
        answer = customer.send(route.method, route.path(), BODIES[name], key=key)
        assert_invalid(answer, "Idempotency-Key")


@pytest.mark.parametrize("name", sorted(NEEDS_KEY))
def test_consuming_and_holding_want_a_key(customer: Api, name: str) -> None:
    route = Route(*name.split(" "))
    assert_invalid(customer.send(route.method, route.path(), BODIES[name]), "Idempotency-Key")


@pytest.mark.parametrize(
    "path",
    [
        "/invoices",
        "/payments",
        "/bank-transfers",
        "/credits/grants",
        "/credits/transactions",
        "/events",
        "/sites",
        "/api-keys",
    ],
)
def test_queries_that_make_no_sense_are_refused(customer: Api, path: str) -> None:
    for query in ("limit=0", "limit=101", "limit=x", "limit=1.5", "limit=1&limit=2", "cursor=", "cursor=x", "page=2"):
        assert_invalid(customer.get(f"{path}?{query}"))
    for cursor in ("%00", "AAAA", "A" * 22 + "%0a", "Z" * 43, "%ff"):
        assert_invalid(customer.get(f"{path}?cursor={cursor}"))


@pytest.mark.parametrize(
    "path", ["/admin/operations?status=done", "/admin/operations?kind=x", "/admin/bank-transfers?status=open"]
)
def test_filters_of_unknown_values_are_refused(admin: Api, path: str) -> None:
    assert_invalid(admin.get(path))


def test_nothing_of_this_left_a_trace(ask: Any, engine: Engine) -> None:
    before = engine.scalar("SELECT count(*) FROM operations")
    for route in ROUTES_WITH_BODY:
        ask(route, BODIES[route.name] | {"unknown": 1})
    assert engine.scalar("SELECT count(*) FROM operations") == before


def assert_invalid(answer: Any, field: str | None = None) -> None:
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_input"), answer.text
    if field is not None:
        fields = {error["field"].split(".")[0] for error in answer.get_json()["errors"]}
        assert fields == {field}, answer.text
