"""What is true of every answer: headers for browsers, other origins, cookies, request ids, bodies too large to read."""

import json
from collections.abc import Callable, Iterator
from io import RawIOBase
from typing import Any

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient

from api.app import create_app
from api.headers import POLICY
from api.services import EXTENSION
from shared.config import Settings
from tests.api.conftest import Api
from tests.api.routes import BODIES, routes_of
from tests.factories import Table, cases

APP = "https://app.example.com"
OTHER = "http://localhost:3000"
COOKIES = {"Cookie": "session=abc; admin=1; access_token_cookie=x"}
Variant = Callable[..., FlaskClient]


@pytest.fixture
def variant(settings: Settings, api: Api) -> Iterator[Variant]:
    """Make the application with other settings, as `production` would run it or not."""
    made: list[Flask] = []

    def make(**changed: Any) -> FlaskClient:
        made.append(create_app(settings.model_copy(update=changed)))
        return made[-1].test_client(use_cookies=False)

    yield make
    for app in made:
        app.extensions[EXTENSION].database.dispose()


# --- every answer -----------------------------------------------------------------------------------

ANSWERS: Table = {
    "an answer": ("GET", "/api/v1/plans", {}, 200),
    "no credential": ("GET", "/api/v1/account", {}, 401),
    "no such address": ("GET", "/api/v1/nothing", {}, 404),
    "no such method": ("PUT", "/api/v1/account", {}, 405),
    "no JSON": ("POST", "/api/v1/signup", {"data": "{", "content_type": "application/json"}, 400),
    "another type": ("POST", "/api/v1/signup", {"data": "x", "content_type": "text/plain"}, 415),
    "too large": ("POST", "/api/v1/signup", {"data": "x" * 70_000, "content_type": "application/json"}, 413),
    "does not fit": ("POST", "/api/v1/signup", {"json": {}}, 422),
    "a preflight": ("OPTIONS", "/api/v1/account", {}, 200),
    "a page": ("GET", "/docs", {}, 200),
    "a script": ("GET", "/docs/start.js", {}, 200),
    "the document": ("GET", "/openapi.json", {}, 200),
    "a problem explained": ("GET", "/problems/not_found", {}, 200),
    "health": ("GET", "/healthz", {}, 200),
    "metrics": ("GET", "/metrics", {}, 200),
    "outside": ("GET", "/", {}, 404),
}


@pytest.mark.parametrize(("method", "path", "options", "status"), cases(ANSWERS))
@pytest.mark.parametrize("environment", ["development", "production"])
def test_every_answer_says_what_a_browser_must_not_do(
    variant: Variant, environment: str, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    answer = variant(environment=environment).open(path, method=method, **options)
    assert answer.status_code == status
    headers = answer.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Request-Id"]
    assert ("Strict-Transport-Security" in headers) == (environment == "production")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert (headers["Content-Security-Policy"] == POLICY) == (path != "/docs")
    assert not [name for name, _ in headers if name.startswith(("Access-Control-", "Set-Cookie"))]


def test_a_file_of_the_pages_may_be_kept(api: Api) -> None:
    with api.client.get("/docs/assets/css/swagger-ui.css") as answer:
        assert "max-age=86400" in answer.headers["Cache-Control"]


# --- cookies ----------------------------------------------------------------------------------------


def test_a_cookie_opens_nothing_anywhere_and_is_to_be_dropped(app: Flask, api: Api, customer: Api) -> None:
    token = customer.headers["Authorization"].removeprefix("Bearer ")
    cookies = {"Cookie": f"session={token}; access_token_cookie={token}"}
    for route in routes_of(app):
        body = BODIES.get(route.name)
        without = api.send(route.method, route.path(), body)
        answer = api.send(route.method, route.path(), body, headers=cookies)
        assert answer.status_code == without.status_code, route.name
        assert answer.headers["Clear-Site-Data"] == '"cookies"', route.name
        assert "Clear-Site-Data" not in without.headers


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/docs", "/openapi.json", "/healthz", "/metrics", "/"])
def test_other_addresses_say_so_too(api: Api, path: str) -> None:
    assert api.client.get(path, headers=COOKIES).headers["Clear-Site-Data"] == '"cookies"'


def test_beside_a_token_a_cookie_changes_nothing(customer: Api) -> None:
    answer = customer.get("/account", headers=COOKIES)
    assert (answer.status_code, answer.headers["Clear-Site-Data"]) == (200, '"cookies"')
    assert answer.get_json()["id"] == customer.get("/account").get_json()["id"]


# --- other origins ----------------------------------------------------------------------------------


def preflight(client: FlaskClient, origin: str, **more: str) -> Any:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-api-key"}
    named = {name.replace("_", "-"): value for name, value in more.items()}
    return client.options("/api/v1/credits/consume", headers={"Origin": origin} | asks | named)


def test_no_origin_is_allowed_unless_it_is_listed(variant: Variant) -> None:
    for client in (variant(), variant(cors_origins=(APP,))):
        for answer in (client.get("/api/v1/plans", headers={"Origin": OTHER}), preflight(client, OTHER)):
            assert not [name for name, _ in answer.headers if name.startswith("Access-Control-Allow")]


@pytest.mark.parametrize("origin", [APP, OTHER])
def test_a_listed_origin_may_ask_and_read(variant: Variant, origin: str) -> None:
    client = variant(cors_origins=(APP, OTHER))
    allowed = preflight(client, origin).headers
    assert allowed["Access-Control-Allow-Origin"] == origin
    assert allowed["Access-Control-Allow-Headers"] == "authorization, x-api-key"
    assert set(allowed["Access-Control-Allow-Methods"].split(", ")) == {"GET", "POST", "PATCH", "DELETE"}
    assert allowed["Access-Control-Max-Age"] == "7200"
    for path, status in (("/api/v1/plans", 200), ("/api/v1/account", 401), ("/api/v1/nothing", 404)):
        answer = client.get(path, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, origin)
        readable = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"Retry-After", "RateLimit-Remaining", "Location", "X-Request-Id"} <= set(readable)
        assert answer.headers["Vary"] == "Origin"


SIMILAR = [
    "https://app.example.com.evil.example",
    "https://evil-app.example.com",
    "https://appXexample.com",
    "http://app.example.com",
    "https://app.example.com:8443",
    "null",
    "*",
    "",
]


@pytest.mark.parametrize("origin", SIMILAR)
def test_a_similar_origin_is_another(variant: Variant, origin: str) -> None:
    client = variant(cors_origins=(APP,))
    assert "Access-Control-Allow-Origin" not in preflight(client, origin).headers


@pytest.mark.parametrize("origins", [(APP,), ("*",)])
def test_credentials_of_a_browser_are_never_asked_for(variant: Variant, origins: tuple[str, ...]) -> None:
    client = variant(cors_origins=origins)
    for answer in (client.get("/api/v1/plans", headers={"Origin": APP}), preflight(client, APP)):
        assert answer.headers["Access-Control-Allow-Origin"] == ("*" if origins == ("*",) else APP)
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "Access-Control-Allow-Private-Network" not in answer.headers


def test_only_the_api_is_for_other_origins(variant: Variant) -> None:
    client = variant(cors_origins=("*",))
    for path in ("/docs", "/openapi.json", "/metrics", "/healthz", "/problems/not_found"):
        assert "Access-Control-Allow-Origin" not in client.get(path, headers={"Origin": APP}).headers


# --- request ids ------------------------------------------------------------------------------------

IDS: Table = {
    "of letters and digits": ("0af7651916cd43dd8448eb211c80319c", True),
    "a UUID": ("01a00000-0000-7000-8000-000000000000", True),
    "too short": ("1234567", False),
    "too long": ("a" * 65, False),
    "empty": ("", False),
    "with a space": ("abcd efgh ijkl", False),
    "with quotes": ('abcdefgh"', False),
    "beginning like an option": ("--abcdefgh", False),
    "markup": ("<script>alert</script>", False),
    "beyond ASCII": ("abcdefghé", False),
    "another alphabet's digits": ("abcdefgh\u0661\u0662", False),
}


@pytest.mark.parametrize(("given", "kept"), cases(IDS))
def test_a_trusted_proxy_may_name_a_request_if_the_name_is_harmless(
    variant: Variant, given: str, *, kept: bool
) -> None:
    headers = {"X-Request-Id": given.encode().decode("latin-1")}
    behind, bare = variant(trusted_proxies=1), variant()
    assert (behind.get("/healthz", headers=headers).headers["X-Request-Id"] == given) == kept
    assert bare.get("/healthz", headers=headers).headers["X-Request-Id"] != given


def test_logs_and_answers_have_one_id(variant: Variant) -> None:
    client = variant(trusted_proxies=1)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        answer = client.get("/api/v1/plans", headers={"X-Request-Id": "proxy-0123456789"})
    assert answer.headers["X-Request-Id"] == "proxy-0123456789"
    assert {line.get("request_id") for line in logs} == {"proxy-0123456789"}


# --- bodies -----------------------------------------------------------------------------------------


class Poisoned(RawIOBase):
    """A body that nobody is to read."""

    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: Any) -> int:
        pytest.fail("the body was read")


def unread(length: int) -> dict[str, Any]:
    """A body of so many bytes, none of which may be read."""
    return {
        "content_type": "application/json",
        "environ_overrides": {"CONTENT_LENGTH": str(length), "wsgi.input": Poisoned(), "REMOTE_ADDR": "192.0.2.99"},
    }


BODIES_OF_AT_MOST = {
    "/signup": 64 * 1024,
    "/auth/login": 64 * 1024,
    "/nothing": 64 * 1024,
    "/webhooks/stripe": 512 * 1024,
    "/credits/consume-batch": 512 * 1024,
}


@pytest.mark.parametrize("path", BODIES_OF_AT_MOST)
def test_a_body_that_is_too_large_is_refused_unread(api: Api, path: str) -> None:
    for length in (BODIES_OF_AT_MOST[path] + 1, 100 * 1024 * 1024, 2**63):
        answer = api.post(path, **unread(length))
        assert (answer.status_code, answer.get_json(force=True)["code"]) == (413, "body_too_large"), length


def test_a_throttled_request_is_refused_unread(variant: Variant, broker_url: str) -> None:
    client = variant(signups_per_minute=1)
    body = BODIES["POST /signup"]
    first = client.post("/api/v1/signup", json=body, environ_overrides={"REMOTE_ADDR": "192.0.2.99"})
    assert first.status_code == 202
    assert client.post("/api/v1/signup", **unread(len(json.dumps(body)))).status_code == 429
