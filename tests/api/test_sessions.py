"""Signing in and out: two audiences, rotation, reuse, revocation, and secrets that change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import jwt
import pytest
import redis
from flask import Flask
from pydantic import SecretStr

from api import auth
from api.app import create_app
from api.auth import ALGORITHM, CLOCK_SKEW_SECONDS
from api.services import EXTENSION
from shared import security
from shared.clock import utc_now
from shared.config import Settings
from shared.ids import new_id
from tests.api.conftest import PASSWORD, Api, Engine
from tests.api.routes import BODIES
from tests.api.tokens import claims, forge, relabel, tamper
from tests.db.world import Customer

REFUSED = {401, 403}


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


def test_a_token_that_is_known_is_refused_when_its_time_has_run_out(
    customer: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert customer.get("/account").status_code == 200
    for seconds, status in ((-5, 200), (CLOCK_SKEW_SECONDS + 1, 401)):
        at = utc_now() + timedelta(minutes=15, seconds=seconds)
        monkeypatch.setattr(auth, "utc_now", lambda at=at: at)
        assert customer.get("/account").status_code == status


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


def test_logging_out_everywhere_ends_all_sessions_of_this_user_alone(
    api: Api, engine: Engine, ada: Customer, stranger: Api, admin: Api
) -> None:
    tokens, other = engine.log_in(api, ada), engine.signed_in(api, ada)
    answer = api.with_token(tokens["access_token"]).post("/auth/logout-all")
    assert (answer.status_code, answer.data) == (204, b"")
    assert api.with_token(tokens["access_token"]).get("/account").status_code == 401
    assert other.get("/account").status_code == 401
    assert api.with_token(tokens["refresh_token"]).post("/auth/refresh").status_code == 401
    assert stranger.get("/account").status_code == 200
    assert admin.get("/admin/accounts").status_code == 200
    assert engine.signed_in(api, ada).get("/account").status_code == 200, "signing in again is possible"
    audited = "SELECT (actor_id, after->>'sessions')::text FROM audit_log WHERE action = 'session.all_revoked'"
    assert engine.scalar(audited) == f"({ada.user_id},2)"


def test_an_admin_logs_out_everywhere(api: Api, engine: Engine, admin: Api, customer: Api) -> None:
    assert admin.get("/admin/auth/sessions").get_json()["items"][0]["current"] is True
    assert admin.post("/admin/auth/logout-all").status_code == 204
    assert admin.get("/admin/accounts").status_code == 401
    assert customer.get("/account").status_code == 200
    assert engine.scalar("SELECT actor_kind FROM audit_log WHERE action = 'session.all_revoked'") == "admin"


def test_one_sees_where_one_is_and_was_signed_in(api: Api, engine: Engine, ada: Customer, stranger: Api) -> None:
    gone = engine.signed_in(api, ada)
    assert gone.post("/auth/logout").status_code == 204
    prolonged = engine.log_in(api, ada)
    assert api.with_token(prolonged["refresh_token"]).post("/auth/refresh").status_code == 200
    here = engine.signed_in(api, ada)
    now, before, first = here.get("/auth/sessions").get_json()["items"]
    assert [now["current"], before["current"], first["current"]] == [True, False, False]
    assert (now["revoked_at"], now["last_used_at"]) == (None, now["created_at"])
    assert before["last_used_at"] > before["created_at"]
    assert (first["revoked_at"] is not None, first["revoked_reason"]) == (True, "logout")
    page = here.get("/auth/sessions?limit=2").get_json()
    assert here.get(f"/auth/sessions?cursor={page['next_cursor']}").get_json()["items"] == [first]
    assert len(stranger.get("/auth/sessions").get_json()["items"]) == 1


def test_what_was_revoked_stays_so_when_the_broker_forgets_everything(
    api: Api, engine: Engine, ada: Customer, settings: Settings
) -> None:
    tokens = engine.log_in(api, ada)
    assert api.with_token(tokens["access_token"]).post("/auth/logout").status_code == 204
    with redis.Redis.from_url(str(settings.broker_url)) as broker:
        broker.flushdb()
    assert api.with_token(tokens["access_token"]).get("/account").status_code == 401
    assert api.with_token(tokens["refresh_token"]).post("/auth/refresh").status_code == 401


# --- secrets that change ------------------------------------------------------------------------

OLD, NEW = "the secret of yesterday that was long enough", "the secret of today that is just as long"


@contextmanager
def deployed(settings: Settings, documented: dict[str, Any], *, secret: str, previous: str | None) -> Iterator[Api]:
    """The API after a restart with these secrets."""
    secrets = {"secret_key": SecretStr(secret), "secret_key_previous": previous and SecretStr(previous)}
    app = create_app(settings.model_copy(update=secrets))
    try:
        yield Api(app, app.test_client(use_cookies=False), documented, {})
    finally:
        app.extensions[EXTENSION].database.dispose()


def test_a_new_secret_signs_and_an_old_one_is_known_for_as_long_as_it_is_stated(
    settings: Settings, documented: dict[str, Any], engine: Engine, ada: Customer
) -> None:
    with deployed(settings, documented, secret=OLD, previous=None) as before:
        tokens = engine.log_in(before, ada)
    with deployed(settings, documented, secret=NEW, previous=f" one from long before , {OLD}") as overlapping:
        assert overlapping.with_token(tokens["access_token"]).get("/account").status_code == 200
        refreshed = overlapping.with_token(tokens["refresh_token"]).post("/auth/refresh").get_json()
    kids = [jwt.get_unverified_header(each["access_token"])["kid"] for each in (tokens, refreshed)]
    keys = [
        security.signing_key(settings.model_copy(update={"secret_key": SecretStr(s)}), "tokens") for s in (OLD, NEW)
    ]
    assert kids == [security.key_id(key) for key in keys], "what is new is signed with the new one alone"
    with deployed(settings, documented, secret=NEW, previous=None) as later:
        assert later.with_token(tokens["access_token"]).get("/account").status_code == 401
        assert later.with_token(refreshed["access_token"]).get("/account").status_code == 200


def test_an_old_secret_under_the_new_ones_name_signs_nothing(
    settings: Settings, documented: dict[str, Any], engine: Engine, ada: Customer
) -> None:
    with deployed(settings, documented, secret=OLD, previous=None) as before:
        token = engine.log_in(before, ada)["access_token"]
    with deployed(settings, documented, secret=NEW, previous=OLD) as api:
        kid = security.key_id(api.app.config["JWT_SECRET_KEY"])
        assert api.with_token(relabel(token, kid=kid)).get("/account").status_code == 401


def test_a_signup_from_before_is_polled_and_repeated_after_a_change_of_secrets(
    settings: Settings, documented: dict[str, Any], engine: Engine
) -> None:
    with deployed(settings, documented, secret=OLD, previous=None) as before:
        first = before.post("/signup", BODIES["POST /signup"], key="k")
    poll = {"X-Poll-Token": first.get_json()["poll_token"]}
    path = f"/operations/{first.get_json()['operation_id']}"
    with deployed(settings, documented, secret=NEW, previous=OLD) as overlapping:
        assert overlapping.get(path, headers=poll).status_code == 200
        again = overlapping.post("/signup", BODIES["POST /signup"], key="k")
        assert again.headers["Idempotent-Replayed"] == "true"
    with deployed(settings, documented, secret=NEW, previous=None) as later:
        assert later.get(path, headers=poll).status_code == 404
        assert later.post("/signup", BODIES["POST /signup"], key="k").status_code == 409


# --- the other side -----------------------------------------------------------------------------


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
    "no algorithm, and no signature": lambda _, token: relabel(token, alg="none").rpartition(".")[0] + ".",
    "said to be signed with a public key": lambda _, token: relabel(token, alg="RS256"),
    "said to be of an algorithm of ours, in small letters": lambda _, token: relabel(token, alg="hs256"),
    "a key of the sender's own choice": lambda _, token: relabel(token, jwk={"kty": "oct", "k": "AAAA"}, kid=None),
    "unknown key id": lambda app, token: forge(app, token, header={"kid": "another"}),
    "no key id": lambda app, token: forge(app, token, header={"kid": None}),
    "a path for a key id": lambda _, token: relabel(token, kid="../../dev/null"),
    "a list for a key id": lambda _, token: relabel(token, kid=["a"]),
    "other claims under the old signature": lambda _, token: tamper(token, sub=str(new_id())),
    "an admin by other claims": lambda _, token: tamper(token, aud="admin"),
    "no expiry": lambda app, token: forge(app, token, exp=None),
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


SKEWS: dict[str, tuple[str, int, int]] = {
    "expired within the skew": ("exp", -(CLOCK_SKEW_SECONDS - 5), 200),
    "expired beyond it": ("exp", -(CLOCK_SKEW_SECONDS + 5), 401),
    "valid from within the skew on": ("nbf", CLOCK_SKEW_SECONDS - 5, 200),
    "valid from beyond it on": ("nbf", CLOCK_SKEW_SECONDS + 5, 401),
    "issued within the skew": ("iat", CLOCK_SKEW_SECONDS - 5, 200),
    "issued beyond it": ("iat", CLOCK_SKEW_SECONDS + 5, 401),
}


@pytest.mark.parametrize("skew", SKEWS)
def test_clocks_may_differ_by_a_little(app: Flask, api: Api, engine: Engine, ada: Customer, skew: str) -> None:
    claim, seconds, status = SKEWS[skew]
    changed: dict[str, Any] = {claim: utc_now() + timedelta(seconds=seconds)}
    token = forge(app, engine.log_in(api, ada)["access_token"], **changed)
    assert api.with_token(token).get("/account").status_code == status


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
