"""Signing in and out: two audiences, rotation, reuse, revocation."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import jwt
import pytest
from flask import Flask

from api.auth import ALGORITHM
from shared import security
from shared.clock import utc_now
from shared.ids import new_id
from tests.api.conftest import PASSWORD, Api, Engine
from tests.db.world import Customer

REFUSED = {401, 403}


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def forge(app: Flask, token: str, *, header: dict[str, Any] | None = None, **changed: Any) -> str:
    """The token again with other claims, signed with the system's own key."""
    key = app.config["JWT_SECRET_KEY"]
    headers = {"kid": security.key_id(key)} | (header or {})
    algorithm = headers.pop("alg", ALGORITHM)
    return jwt.encode(claims(token) | changed, "" if algorithm == "none" else key, algorithm, headers=headers)


def test_signing_in_gives_a_pair_that_opens_what_is_ones_own(api: Api, engine: Engine, ada: Customer) -> None:
    tokens = engine.log_in(api, ada)
    assert tokens["token_type"] == "Bearer"
    assert tokens["expires_in_seconds"] == 15 * 60
    account = api.with_token(tokens["access_token"]).get("/account").get_json()
    assert account["id"] == str(ada.account_id)
    found = claims(tokens["access_token"])
    assert (found["aud"], found["sub"], found["type"]) == ("customer", str(ada.user_id), "access")
    life = claims(tokens["refresh_token"])["exp"] - found["iat"]
    assert life == pytest.approx(timedelta(days=30).total_seconds(), abs=5)


@pytest.mark.parametrize("email", ["nobody@example.com", None], ids=["unknown address", "wrong password"])
def test_one_answer_for_unknown_addresses_and_wrong_passwords(
    api: Api, engine: Engine, ada: Customer, email: str | None
) -> None:
    body = {"email": email or engine.email_of(ada), "password": "not the password"}
    answer = api.post("/auth/login", body)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.get_json()["detail"] == "address and password do not fit"


def test_addresses_are_the_same_in_any_case(api: Api, engine: Engine, ada: Customer) -> None:
    answer = api.post("/auth/login", {"email": engine.email_of(ada).upper(), "password": PASSWORD})
    assert answer.status_code == 200


def test_a_customer_cannot_sign_in_as_an_admin(api: Api, engine: Engine, ada: Customer) -> None:
    assert api.post("/admin/auth/login", {"email": engine.email_of(ada), "password": PASSWORD}).status_code == 401


def test_a_refresh_token_is_used_once_and_rotates(api: Api, engine: Engine, ada: Customer) -> None:
    first = engine.log_in(api, ada)
    second = api.with_token(first["refresh_token"]).post("/auth/refresh")
    assert second.status_code == 200
    assert second.get_json()["refresh_token"] != first["refresh_token"]
    assert api.with_token(second.get_json()["access_token"]).get("/account").status_code == 200


def test_using_a_refresh_token_twice_ends_the_session(api: Api, engine: Engine, ada: Customer) -> None:
    stolen = engine.log_in(api, ada)
    other_session = engine.signed_in(api, ada)
    rightful = api.with_token(stolen["refresh_token"]).post("/auth/refresh").get_json()

    assert api.with_token(stolen["refresh_token"]).post("/auth/refresh").status_code == 401
    for token in (stolen["access_token"], rightful["access_token"]):
        assert api.with_token(token).get("/account").status_code == 401
    assert api.with_token(rightful["refresh_token"]).post("/auth/refresh").status_code == 401
    assert other_session.get("/account").status_code == 200
    reason = "SELECT reason FROM audit_log WHERE action = 'session.revoked' AND account_id = %(id)s"
    assert engine.scalar(reason, id=ada.account_id) == "refresh_token_reused"


def test_logging_out_ends_this_session_alone(api: Api, engine: Engine, ada: Customer) -> None:
    tokens, other = engine.log_in(api, ada), engine.signed_in(api, ada)
    mine = api.with_token(tokens["access_token"])
    answer = mine.post("/auth/logout")
    assert (answer.status_code, answer.data) == (204, b"")
    assert mine.get("/account").status_code == 401
    assert api.with_token(tokens["refresh_token"]).post("/auth/refresh").status_code == 401
    assert other.get("/account").status_code == 200


@pytest.mark.parametrize("path", ["/admin/accounts", "/admin/operations", "/admin/auth/logout"])
def test_a_customers_token_on_an_admins_route_is_revoked(api: Api, engine: Engine, ada: Customer, path: str) -> None:
    tokens = engine.log_in(api, ada)
    mine = api.with_token(tokens["access_token"])
    answer = mine.send("POST" if path.endswith("logout") else "GET", path)
    assert (answer.status_code, answer.get_json()["code"]) == (403, "wrong_audience")
    assert mine.get("/account").status_code == 401
    assert api.with_token(tokens["refresh_token"]).post("/auth/refresh").status_code == 401
    audited = "SELECT after->>'path' FROM audit_log WHERE reason = 'wrong_audience' AND actor_id = %(id)s"
    assert engine.scalar(audited, id=ada.user_id) == f"/api/v1{path}"


@pytest.mark.parametrize("path", ["/account", "/credits", "/invoices"])
def test_an_admins_token_on_a_customers_route_is_revoked(admin: Api, engine: Engine, path: str) -> None:
    assert admin.get("/admin/accounts").status_code == 200
    answer = admin.get(path)
    assert (answer.status_code, answer.get_json()["code"]) == (403, "wrong_audience")
    assert admin.get("/admin/accounts").status_code == 401
    audited = "SELECT actor_kind FROM audit_log WHERE reason = 'wrong_audience'"
    assert engine.scalar(audited) == "admin"


def test_a_refresh_token_on_the_other_sides_route_is_revoked(api: Api, engine: Engine, ada: Customer) -> None:
    tokens = engine.log_in(api, ada)
    answer = api.with_token(tokens["refresh_token"]).post("/admin/auth/refresh")
    assert (answer.status_code, answer.get_json()["code"]) == (403, "wrong_audience")
    assert api.with_token(tokens["refresh_token"]).post("/auth/refresh").status_code == 401


def test_tokens_cannot_stand_in_for_each_other(api: Api, engine: Engine, ada: Customer) -> None:
    tokens = engine.log_in(api, ada)
    assert api.with_token(tokens["refresh_token"]).get("/account").status_code == 401
    assert api.with_token(tokens["access_token"]).post("/auth/refresh").status_code == 401


FORGERIES: dict[str, Callable[[Flask, str], str]] = {
    "expired": lambda app, token: forge(app, token, exp=utc_now() - timedelta(minutes=1)),
    "not yet valid": lambda app, token: forge(app, token, nbf=utc_now() + timedelta(minutes=5)),
    "no algorithm": lambda app, token: forge(app, token, header={"alg": "none"}),
    "another algorithm": lambda app, token: forge(app, token, header={"alg": "HS512"}),
    "unknown key id": lambda app, token: forge(app, token, header={"kid": "another"}),
    "signed by another key": lambda _, token: jwt.encode(claims(token), "x" * 32, ALGORITHM),
    "another signature": lambda _, token: token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB"),
    "another user": lambda app, token: forge(app, token, sub=str(new_id())),
    "another session": lambda app, token: forge(app, token, sid=str(new_id())),
    "audience of nobody": lambda app, token: forge(app, token, aud="everybody"),
    "two audiences": lambda app, token: forge(app, token, aud=["customer", "admin"]),
    "no session": lambda app, token: forge(app, token, sid=None),
    "claims of other types": lambda app, token: forge(app, token, sid=1, jti=[]),
    "no token at all": lambda *_: "",
    "nonsense": lambda *_: "a.b.c",
    "far too long": lambda *_: "a" * 5_000,
}


@pytest.mark.filterwarnings("ignore:The HMAC key is 32 bytes long")
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_token_opens_nothing(app: Flask, api: Api, engine: Engine, ada: Customer, forgery: str) -> None:
    token = engine.log_in(api, ada)["access_token"]
    answer = api.with_token(FORGERIES[forgery](app, token)).get("/account")
    assert (answer.status_code, answer.get_json()["code"]) == (401, "unauthenticated")
    assert api.with_token(token).get("/account").status_code == 200, "and harms nobody"


def test_a_customers_claim_to_be_an_admin_is_worth_nothing(app: Flask, api: Api, engine: Engine, ada: Customer) -> None:
    token = forge(app, engine.log_in(api, ada)["access_token"], aud="admin", role="admin", is_admin=True)
    assert api.with_token(token).get("/admin/accounts").status_code == 401


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE users SET deleted_at = now() WHERE id = %(user_id)s",
        "UPDATE accounts SET deleted_at = now() WHERE id = %(account_id)s",
        "UPDATE sessions SET expires_at = now() WHERE user_id = %(user_id)s",
    ],
    ids=["user deleted", "account deleted", "session over"],
)
def test_what_is_gone_is_shut_out_at_the_next_request(api: Api, engine: Engine, ada: Customer, sql: str) -> None:
    tokens = engine.log_in(api, ada)
    engine.execute_sql(sql, user_id=ada.user_id, account_id=ada.account_id)
    assert api.with_token(tokens["access_token"]).get("/account").status_code == 401
    assert api.with_token(tokens["refresh_token"]).post("/auth/refresh").status_code == 401


def test_a_disabled_admin_is_shut_out_at_the_next_request(admin: Api, engine: Engine) -> None:
    engine.execute_sql("UPDATE admins SET disabled_at = now()")
    assert admin.get("/admin/accounts").status_code == 401


def test_cookies_count_for_nothing_and_are_told_to_go(api: Api, engine: Engine, ada: Customer) -> None:
    token = engine.log_in(api, ada)["access_token"]
    cookie = {"Cookie": f"session={token}; access_token_cookie={token}"}
    answer = api.get("/account", headers=cookie)
    assert answer.status_code == 401
    assert answer.headers["Clear-Site-Data"] == '"cookies"'
    answer = api.with_token(token).get("/account", headers=cookie)
    assert answer.status_code == 200
    assert answer.headers["Clear-Site-Data"] == '"cookies"'
    assert "Clear-Site-Data" not in api.get("/plans").headers


def test_two_credentials_are_one_too_many(user_key: Api, customer: Api) -> None:
    answer = user_key.get("/account", headers=customer.headers)
    assert answer.status_code == 401


@pytest.mark.parametrize("scheme", ["Basic", "bearer-ish", "Token"])
def test_only_the_bearer_scheme_is_known(api: Api, engine: Engine, ada: Customer, scheme: str) -> None:
    token = engine.log_in(api, ada)["access_token"]
    assert api.sending(Authorization=f"{scheme} {token}").get("/account").status_code == 401
