"""Who may do what: roles, scopes, the account's standing, and other people's things."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from flask import Flask

from api.access import PERMISSIONS, Needs, Permission
from shared.clock import utc_now
from shared.db.sessions import Audience
from shared.domain.account import Action
from shared.domain.member import Role
from tests.api.conftest import Api, Engine
from tests.api.routes import BODIES, NEEDS_KEY, PUBLIC, SIGNED, TAKING_AWAY, Route, routes_of
from tests.db.world import Customer

SCOPES = ("billing:read", "credits:consume", "credits:read")


def needs_of(app: Flask, route: Route) -> Needs:
    """What a route declares."""
    path = f"/api/v1{route.path()}"
    endpoint, _ = app.url_map.bind("").match(path, route.method)
    view: Any = app.view_functions[endpoint]
    needs: Needs = view.needs
    return needs


def ask(api: Api, route: Route) -> Any:
    key = "a-key" if route.name in NEEDS_KEY else None
    return api.send(route.method, route.path(), BODIES.get(route.name), key=key)


def customers_routes(app: Flask) -> list[tuple[Route, Needs]]:
    found = [
        (route, needs_of(app, route)) for route in routes_of(app) if not route.name.startswith("POST /auth/logout")
    ]
    return [(route, needs) for route, needs in found if Audience.CUSTOMER in needs.audiences]


def test_every_route_declares_what_it_needs(app: Flask) -> None:
    for route in routes_of(app):
        needs = needs_of(app, route)
        if route.name in PUBLIC | SIGNED:
            assert needs == Needs()
        elif route.template.endswith("/auth/refresh"):
            assert needs == Needs(refresh_token=True)
        elif route.for_admins:
            assert needs.audiences == {Audience.ADMIN}
        else:
            assert Audience.CUSTOMER in needs.audiences
            writes = route.method != "GET" and route.name not in TAKING_AWAY
            assert (needs.action is not Action.READ) == writes, route.name


@pytest.mark.parametrize("role", list(Role))
def test_a_role_opens_what_its_permissions_say(
    app: Flask, customer: Api, engine: Engine, ada: Customer, role: Role
) -> None:
    engine.execute_sql("UPDATE users SET role = %(role)s WHERE id = %(id)s", role=str(role), id=ada.user_id)
    for route, needs in customers_routes(app):
        allowed = needs.permission is None or needs.permission in PERMISSIONS[role]
        assert (ask(customer, route).status_code != 403) == allowed, route.name


def test_only_owners_and_admins_pay_and_only_those_who_build_make_keys() -> None:
    def holders(permission: Permission) -> set[str]:
        return {str(role) for role in Role if permission in PERMISSIONS[role]}

    assert holders(Permission.BILLING_PAY) == {"owner", "admin"}
    assert holders(Permission.API_KEYS_WRITE) == {"owner", "admin", "developer"}
    assert holders(Permission.CREDITS_CONSUME) == {"owner", "admin", "editor", "developer"}
    assert holders(Permission.BILLING_READ) == set(Role)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_opens_what_its_scope_says(app: Flask, customer: Api, scope: str) -> None:
    answer = customer.post("/api-keys", {"name": "one", "scopes": [scope]})
    key = customer.with_key(answer.get_json()["key"])
    for route, needs in customers_routes(app):
        assert (ask(key, route).status_code != 403) == (needs.permission == scope), route.name


def test_no_key_reaches_an_admins_route_or_signs_out(app: Flask, user_key: Api) -> None:
    for route in routes_of(app):
        if (route.for_admins and Audience.ADMIN in needs_of(app, route).audiences) or route.name == "POST /auth/logout":
            answer = ask(user_key, route)
            assert (answer.status_code, answer.get_json()["code"]) == (403, "forbidden"), route.name
    assert user_key.get("/credits").status_code == 200, "and it goes on working"


STANDINGS: dict[str, tuple[Callable[[Engine, Customer], None], set[Action], str]] = {
    "suspended": (Engine.suspend, {Action.READ, Action.PAY}, "account_suspended"),
    "cancelled": (Engine.cancel, {Action.READ}, "account_cancelled"),
}


@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize("principal", ["customer", "user_key"])
def test_an_accounts_standing_bites_at_the_next_request(
    app: Flask, request: pytest.FixtureRequest, engine: Engine, ada: Customer, principal: str, standing: str
) -> None:
    api: Api = request.getfixturevalue(principal)
    lose, allowed, code = STANDINGS[standing]
    assert api.post("/credits/consume", {"amount": 1}, key="before").status_code == 200
    lose(engine, ada)
    answer = api.post("/credits/consume", {"amount": 1}, key="after")
    assert (answer.status_code, answer.get_json()["code"]) == (403, code)
    for route, needs in customers_routes(app):
        if principal == "user_key" and needs.permission not in SCOPES:
            continue
        answer = ask(api, route)
        refused = answer.status_code == 403 and answer.get_json()["code"] == code
        assert refused == (needs.action not in allowed), route.name


def test_the_account_says_what_the_gate_would(customer: Api, engine: Engine, ada: Customer) -> None:
    assert customer.get("/account").get_json()["access"] == "full"
    engine.suspend(ada)
    assert customer.get("/account").get_json()["access"] == "read_and_pay"
    assert customer.get("/account").get_json()["status"] == "trial", "no worker has been there"
    engine.cancel(ada)
    assert customer.get("/account").get_json()["access"] == "read"


def test_a_key_is_shown_once_and_kept_as_a_hash(customer: Api, engine: Engine) -> None:
    made = customer.post("/api-keys", {"name": "backend", "scopes": list(SCOPES)})
    assert made.status_code == 201
    key = made.get_json()["key"]
    assert key.startswith(made.get_json()["prefix"])
    (listed,) = customer.get("/api-keys").get_json()["items"]
    assert "key" not in listed
    assert listed["last_used_at"] is None
    kept = engine.scalar("SELECT api_keys::text FROM api_keys")
    assert key not in kept
    assert key.removeprefix(listed["prefix"]) not in kept

    assert customer.with_key(key).get("/credits").status_code == 200
    assert customer.get("/api-keys").get_json()["items"][0]["last_used_at"] is not None


LOSSES: dict[str, str] = {
    "revoked": "UPDATE api_keys SET revoked_at = now()",
    "expired": "UPDATE api_keys SET expires_at = now()",
    "of a deleted site": "UPDATE sites SET deleted_at = now()",
    "of a deleted account": "UPDATE accounts SET deleted_at = now() WHERE kind = 'customer'",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_key_that_is_lost_opens_nothing_at_the_next_request(customer: Api, engine: Engine, loss: str) -> None:
    site_id = customer.post("/sites", {"name": "Shop", "domain": "shop.example.com"}).get_json()["id"]
    body = {"name": "one", "scopes": list(SCOPES), "site_id": site_id}
    key = customer.with_key(customer.post("/api-keys", body).get_json()["key"])
    assert key.get("/credits").status_code == 200
    engine.execute_sql(LOSSES[loss])
    assert key.get("/credits").status_code == 401


def test_revoking_a_key_twice_is_revoking_it_once(customer: Api, engine: Engine, ada: Customer) -> None:
    made = customer.post("/api-keys", {"name": "one", "scopes": list(SCOPES)}).get_json()
    path = f"/api-keys/{made['id']}"
    engine.suspend(ada)
    assert customer.send("DELETE", path).status_code == 204, "a suspended account may take access away"
    revoked_at = customer.get("/api-keys").get_json()["items"][0]["revoked_at"]
    assert customer.send("DELETE", path).status_code == 204
    assert customer.get("/api-keys").get_json()["items"][0]["revoked_at"] == revoked_at
    assert customer.with_key(made["key"]).get("/credits").status_code == 401


def test_a_key_is_made_for_the_future(customer: Api) -> None:
    body = {"name": "one", "scopes": ["credits:read"], "expires_at": utc_now().isoformat()}
    assert customer.post("/api-keys", body).status_code == 422


def test_another_tenants_things_are_not_found(customer: Api, stranger: Api, engine: Engine, ada: Customer) -> None:
    site = customer.post("/sites", {"name": "Shop", "domain": "shop.example.com"}).get_json()["id"]
    key = customer.post("/api-keys", {"name": "one", "scopes": list(SCOPES)}).get_json()["id"]
    hold = customer.post("/credits/holds", {"amount": 5}, key="h").get_json()["id"]
    checkout = customer.post("/invoices", {"plan": "starter", "payment_method": "bank_transfer"})
    invoice = engine.finish(checkout)["invoice_id"]
    submitted = customer.post("/bank-transfers", {"invoice_id": invoice})
    transfer = engine.finish(submitted)["bank_transfer_id"]
    operation = submitted.get_json()["operation_id"]

    theirs: list[tuple[str, str, Any]] = [
        ("GET", f"/sites/{site}", None),
        ("PATCH", f"/sites/{site}", {"name": "Mine"}),
        ("DELETE", f"/sites/{site}", None),
        ("DELETE", f"/api-keys/{key}", None),
        ("GET", f"/credits/holds/{hold}", None),
        ("POST", f"/credits/holds/{hold}/capture", {"amount": 1}),
        ("POST", f"/credits/holds/{hold}/release", None),
        ("GET", f"/invoices/{invoice}", None),
        ("GET", f"/bank-transfers/{transfer}", None),
        ("GET", f"/operations/{operation}", None),
        ("POST", "/payments", {"invoice_id": invoice, "provider": "sandbox", "external_payment_id": "x"}),
        ("POST", "/bank-transfers", {"invoice_id": invoice}),
        ("POST", "/sandbox/payments", {"invoice_id": invoice, "outcome": "succeeded"}),
        ("POST", "/api-keys", {"name": "mine", "scopes": list(SCOPES), "site_id": site}),
    ]
    for method, path, body in theirs:
        answer = stranger.send(method, path, body)
        assert (answer.status_code, answer.get_json()["code"]) == (404, "not_found"), (method, path)
    for path in ("/sites", "/api-keys", "/invoices", "/bank-transfers", "/payments"):
        assert stranger.get(path).get_json()["items"] == [], path

    assert customer.get(f"/sites/{site}").get_json()["name"] == "Shop"
    assert customer.get(f"/credits/holds/{hold}").get_json()["status"] == "open"
    assert customer.get(f"/operations/{operation}").status_code == 200


def test_a_site_is_deleted_softly_and_its_domain_is_free_again(customer: Api, engine: Engine) -> None:
    body = {"name": "Shop", "domain": "Shop.Example.com"}
    made = customer.post("/sites", body)
    assert (made.status_code, made.get_json()["domain"]) == (201, "shop.example.com")
    path = made.headers["Location"].removeprefix("/api/v1")
    assert customer.post("/sites", body).status_code == 409
    assert customer.send("PATCH", path, {"name": "Store"}).get_json()["name"] == "Store"
    answer = customer.send("DELETE", path)
    assert (answer.status_code, answer.data) == (204, b"")
    assert customer.get(path).status_code == 404
    assert customer.send("DELETE", path).status_code == 404
    assert customer.post("/sites", body).status_code == 201
    assert engine.scalar("SELECT count(*) FROM sites") == 2


def test_the_system_account_is_nobodys_to_read(admin: Api, engine: Engine) -> None:
    system: UUID = engine.scalar("SELECT id FROM accounts WHERE kind = 'system'")
    assert admin.get("/admin/accounts").get_json()["items"] == []
    assert admin.get(f"/admin/accounts/{system}").status_code == 404
    for path in ("plan", "credits"):
        body = BODIES[f"POST /admin/accounts/{{account_id}}/{path}"]
        assert admin.post(f"/admin/accounts/{system}/{path}", body).status_code == 404
