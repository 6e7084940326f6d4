"""What surrounds the routes: problems, health, metrics, documentation, headers."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api import problems
from shared import errors, security
from shared.config import Settings
from shared.db.engine import Database
from shared.errors import BillingError
from tests.api.conftest import Api, Engine
from tests.api.routes import BODIES, routes_of
from tests.db.world import Customer, populate

# --- problems ---------------------------------------------------------------------------------


def leaves(kind: type[BillingError] = BillingError) -> Iterator[type[BillingError]]:
    below = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    if not below:
        yield kind
    for child in below:
        yield from leaves(child)


@pytest.mark.parametrize("kind", list(leaves()), ids=lambda kind: kind.__name__)
def test_every_refusal_has_a_status_and_an_explanation(api: Api, kind: type[BillingError]) -> None:
    status = problems.status_of(kind)
    assert 400 <= status < 600
    explained = api.client.get(f"/problems/{kind.code}")
    assert (explained.status_code, explained.get_json()["status"]) == (200, status)


def test_no_two_refusals_share_a_code() -> None:
    codes = [kind.code for kind in problems.refusals()]
    assert len(codes) == len(set(codes))


def test_the_members_of_a_problem_cannot_be_replaced() -> None:
    found = problems.document(409, "conflict", "it is so", status=200, type="x", fact=1)
    assert found == {
        "type": "/problems/conflict",
        "title": "Conflict",
        "status": 409,
        "detail": "it is so",
        "code": "conflict",
        "fact": 1,
    }


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/v1", "/api/v1/", "/api/v1/plans/", "/api//v1/plans", "/problems/none", "/.env"]
)
def test_what_is_not_there_is_a_problem(api: Api, path: str) -> None:
    answer = api.client.get(path)
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")
    assert answer.get_json(force=True)["code"] == "not_found"


def test_a_method_that_is_not_answered_names_those_that_are(api: Api) -> None:
    answer = api.send("DELETE", "/account")
    assert (answer.status_code, answer.get_json(force=True)["code"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://127.0.0.1:1/nowhere", None], ids=["cannot be reached", "is not set"]
)
def test_without_a_database_the_answer_is_503(variant: Any, url: str | None) -> None:
    client = variant(database_url=url)
    for path in ("/api/v1/plans", "/readyz"):
        answer = client.get(path)
        assert (answer.status_code, answer.content_type) == (503, "application/problem+json")
        assert "127.0.0.1" not in answer.text
    assert client.get("/readyz").headers["Retry-After"]
    assert client.get("/healthz").status_code == 200


def test_a_request_that_waits_too_long_for_a_lock_is_a_503(customer: Api, database: Database, ada: Customer) -> None:
    with database.transaction() as tx:
        tx.execute("SELECT FROM accounts WHERE id = %(id)s FOR UPDATE", id=ada.account_id)
        answer = customer.post("/credits/consume", {"amount": 1}, key="one")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "unavailable")
    assert customer.post("/credits/consume", {"amount": 1}, key="one").status_code == 200


def test_a_defect_is_a_problem_without_its_inside(customer: Api, engine: Engine) -> None:
    engine.execute_sql("ALTER TABLE sites RENAME COLUMN name TO secret_name")
    try:
        body = {"name": "Shop", "domain": "shop.example.com"}
        answer = customer.client.post("/api/v1/sites", json=body, headers=customer.headers)
        assert (answer.status_code, answer.content_type) == (500, "application/problem+json")
        assert answer.get_json(force=True)["code"] == "internal_error"
        assert not re.search(r"sites|column|psycopg|line \d", answer.text)
    finally:
        engine.execute_sql("ALTER TABLE sites RENAME COLUMN secret_name TO name")


# --- health and metrics -----------------------------------------------------------------------


def test_ready_when_everything_answers(api: Api, broker_url: str) -> None:
    answer = api.client.get("/readyz")
    assert answer.status_code == 200
    assert answer.get_json()["parts"] == {"database": "ok", "migrations": "ok", "broker": "ok"}
    assert api.client.get("/healthz").get_json() == {"status": "ok"}


def test_not_ready_without_a_broker(api: Api, variant: Any) -> None:
    answer = variant(broker_url="redis://127.0.0.1:1/0").get("/readyz")
    problem = answer.get_json(force=True)
    assert (answer.status_code, problem["code"], problem["detail"]) == (503, "not_ready", "not ready: broker")
    assert problem["parts"]["database"] == "ok"


def test_not_ready_before_the_migrations(variant: Any, empty_url: str) -> None:
    answer = variant(database_url=empty_url).get("/readyz")
    assert answer.status_code == 503
    assert answer.get_json(force=True)["detail"] == "not ready: migrations"


def measured(client: FlaskClient) -> dict[str, float]:
    """Each sample by its name and labels."""
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_show_requests_by_route_and_status(api: Api, customer: Api) -> None:
    name = 'billing_http_request_duration_seconds_count{method="GET",route="/api/v1/account",status="200"}'
    before = measured(api.client).get(name, 0)
    customer.get("/account")
    api.client.get("/no/such/address")
    after = measured(api.client)
    assert after[name] == before + 1
    assert not [sample for sample in after if "no/such" in sample], "addresses that are made up are no labels"


def test_metrics_show_what_the_database_holds(api: Api, engine: Engine, database: Database, settings: Settings) -> None:
    with database.transaction() as tx:
        populate(tx, settings)
    engine.execute_sql(
        """UPDATE accounts SET next_transition_at = now() - interval '1 hour'
           WHERE test_clock_id IS NULL AND next_transition_at IS NOT NULL"""
    )
    api.post("/signup", BODIES["POST /signup"])
    found = measured(api.client)
    assert found["billing_database_up"] == 1
    assert found['billing_operations_unfinished{kind="sign_up",status="pending"}'] == 1
    assert 0 <= found['billing_operations_oldest_age_seconds{kind="sign_up",status="pending"}'] < 60
    assert found['billing_operations_recent{kind="sign_up",status="succeeded"}'] > 5
    assert found['billing_job_oldest_overdue_seconds{job="expire-trials"}'] == pytest.approx(3_600, abs=60)
    assert found['billing_job_oldest_overdue_seconds{job="roll-renewals"}'] == 0
    assert (found["billing_ledger_drift_credits"], found["billing_accounts_parked"]) == (0, 0)


def test_metrics_show_a_ledger_that_drifts(api: Api, engine: Engine, ada: Customer) -> None:
    engine.execute_sql("UPDATE accounts SET balance_credits = balance_credits + 7 WHERE id = %(id)s", id=ada.account_id)
    assert measured(api.client)["billing_ledger_drift_credits"] == 7


def test_metrics_without_a_database_still_show_requests(variant: Any) -> None:
    found = measured(variant(database_url="postgresql+psycopg://127.0.0.1:1/nowhere"))
    assert found["billing_database_up"] == 0


# --- documentation ----------------------------------------------------------------------------


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_the_document_describes_every_route(app: Flask, documented: dict[str, Any]) -> None:
    assert documented["openapi"].startswith("3.1.")
    described = {
        (method.upper(), path.removeprefix("/api/v1")) for path, item in documented["paths"].items() for method in item
    }
    assert described == {(route.method, route.template) for route in routes_of(app)}


def test_the_document_holds_together(documented: dict[str, Any]) -> None:
    operations = [operation for item in documented["paths"].values() for operation in item.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    for reference in references(documented):
        node = documented
        for part in reference.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/")]
        assert node
    schemes = documented["components"]["securitySchemes"].keys()
    for operation in operations:
        assert operation["summary"]
        assert all(name in schemes for needed in operation.get("security", []) for name in needed)
    for path, item in documented["paths"].items():
        for operation in item.values():
            named = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
    assert "ValidationErrorModel" not in json.dumps(documented)


def test_the_document_says_what_a_request_takes(documented: dict[str, Any]) -> None:
    consume = documented["paths"]["/api/v1/credits/consume"]["post"]
    (key,) = [p for p in consume["parameters"] if p["in"] == "header"]
    assert (key["name"], key["required"]) == ("Idempotency-Key", True)
    assert consume["security"] == [{"token": []}, {"api-key": []}]
    assert {"200", "401", "402", "403", "409", "422"} <= consume["responses"].keys()
    body = documented["components"]["schemas"]["ConsumeBody"]
    assert body["additionalProperties"] is False
    assert body["properties"]["amount"]["maximum"] == 10**12


def test_the_pages_load_nothing_from_elsewhere(api: Api) -> None:
    page = api.client.get("/docs")
    assert page.status_code == 200
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "://" not in page.text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 4
    for path in loaded:
        with api.client.get(path) as asset:
            assert asset.status_code == 200, path
    assert api.client.get("/docs/assets/../../__init__.py").status_code == 404


def test_without_the_sandbox_there_are_no_pretend_payments_and_no_clocks(variant: Any, database: Database) -> None:
    client = variant(billing_sandbox=False)
    assert not [
        path for path in client.get("/openapi.json").get_json()["paths"] if "sandbox" in path or "clock" in path
    ]
    assert client.post("/api/v1/sandbox/payments", json={}).status_code == 404
    assert client.post("/api/v1/admin/test-clocks", json={}).status_code == 404
    body = BODIES["POST /signup"] | {"test_clock_id": "01a00000-0000-7000-8000-000000000000"}
    answer = client.post("/api/v1/signup", json=body)
    assert (answer.status_code, answer.get_json(force=True)["code"]) == (422, "invalid_input")


# --- headers ----------------------------------------------------------------------------------


def test_answers_are_neither_stored_nor_sniffed(api: Api) -> None:
    headers = api.get("/plans").headers
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert headers["X-Request-Id"] != api.get("/plans").headers["X-Request-Id"]


# --- secrets ----------------------------------------------------------------------------------


def test_a_password_fits_its_own_hash_alone(settings: Settings) -> None:
    kept = security.hash_password(settings, "correct horse battery")
    assert kept.startswith("$argon2id$")
    assert security.verify_password(settings, kept, "correct horse battery")
    assert not security.verify_password(settings, kept, "correct horse batterz")
    assert not security.verify_password(settings, None, "correct horse battery")
    assert not security.verify_password(settings, "no hash at all", "correct horse battery")
    assert kept != security.hash_password(settings, "correct horse battery")


def test_keys_for_two_purposes_have_nothing_in_common(settings: Settings) -> None:
    keys = {security.signing_key(settings, purpose) for purpose in ("tokens", "poll-token", "request-hash")}
    assert len(keys) == 3
    other = settings.model_copy(update={"secret_key": settings.secret_key.__class__("another secret, long enough")})
    assert security.signing_key(other, "tokens") not in keys
