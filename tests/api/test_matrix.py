"""Every route for every kind of principal, against a declared table of who gets in.

The table says it again, by hand, and not by what the routes declare: a route that is missing from it fails, and so does
one whose declaration was changed without the table. Whoever is not let in is told 401 or 403 with the right code.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple

import pytest
from flask import Flask

from api import auth
from shared.clock import utc_now
from shared.db import admins
from shared.db.sessions import Audience
from shared.ids import new_id
from tests.api.conftest import PASSWORD, PASSWORD_HASH, Api, Engine
from tests.api.routes import BODIES, NEEDS_KEY, Route, routes_of
from tests.api.tokens import forge, relabel
from tests.db.world import Customer

# --- who gets in --------------------------------------------------------------------------------


class Door(NamedTuple):
    """Who gets in. roles: first letters of owner, admin, editor, developer, viewer. during: of suspended, cancelled."""

    roles: str = ""
    scope: str | None = None
    during: str = ""
    admins: bool = False
    anybody: bool = False
    unasked: bool = False  # no credential is looked at
    refresh_of: Audience | None = None


READING: Final = "sc"
PAYING: Final = "s"
USING: Final = ""

ALL: Final = "oaedv"
BUILDERS: Final = "oaed"
DEVELOPERS: Final = "oad"
MANAGERS: Final = "oa"

UNASKED: Final = Door(unasked=True)
ADMINS: Final = Door(admins=True)
BILLING: Final = Door(ALL, "billing:read", READING)
CREDITS: Final = Door(ALL, "credits:read", READING)
SPENDING: Final = Door(BUILDERS, "credits:consume", USING)
CHECKOUT: Final = Door(MANAGERS, None, PAYING)
SITES: Final = Door(ALL, None, READING)
SITE_CHANGES: Final = Door(BUILDERS, None, USING)
KEYS: Final = Door(DEVELOPERS, None, READING)
KEY_CHANGES: Final = Door(DEVELOPERS, None, USING)
PEOPLE: Final = Door(MANAGERS, None, READING)
PEOPLE_CHANGES: Final = Door(MANAGERS, None, USING)
ONESELF: Final = Door(ALL, None, READING)

MATRIX: Final[dict[str, Door]] = {
    "POST /signup": UNASKED,
    "GET /plans": UNASKED,
    "POST /webhooks/stripe": UNASKED,
    "POST /invitations/accept": UNASKED,
    "POST /auth/login": UNASKED,
    "POST /auth/verify-email": UNASKED,
    "POST /auth/refresh": Door(refresh_of=Audience.CUSTOMER),
    "POST /auth/logout": ONESELF,
    "POST /auth/logout-all": ONESELF,
    "GET /auth/sessions": ONESELF,
    "GET /operations/{operation_id}": BILLING._replace(admins=True, anybody=True),
    "GET /account": BILLING,
    "GET /subscription": BILLING,
    "GET /subscription/timeline": BILLING,
    "POST /subscription/cancel": CHECKOUT,
    "GET /events": BILLING,
    "GET /invoices": BILLING,
    "POST /invoices": CHECKOUT,
    "GET /invoices/{invoice_id}": BILLING,
    "GET /invoices/{invoice_id}/document": BILLING,
    "GET /invoices/{invoice_id}/receipt": BILLING,
    "POST /invoices/{invoice_id}/checkout": CHECKOUT,
    "GET /payments": BILLING,
    "POST /payments": CHECKOUT,
    "POST /sandbox/payments": CHECKOUT,
    "GET /bank-transfers": BILLING,
    "POST /bank-transfers": CHECKOUT,
    "GET /bank-transfers/{bank_transfer_id}": BILLING,
    "GET /credits": CREDITS,
    "GET /credits/grants": CREDITS,
    "GET /credits/transactions": CREDITS,
    "GET /credits/transactions.csv": CREDITS,
    "GET /credits/transactions/{seq}": CREDITS,
    "GET /credits/holds/{hold_id}": CREDITS,
    "POST /credits/consume": SPENDING,
    "POST /credits/consume-batch": SPENDING,
    "POST /credits/holds": SPENDING,
    "POST /credits/holds/{hold_id}/capture": SPENDING,
    "POST /credits/holds/{hold_id}/release": SPENDING,
    "GET /sites": SITES,
    "POST /sites": SITE_CHANGES,
    "GET /sites/{site_id}": SITES,
    "PATCH /sites/{site_id}": SITE_CHANGES,
    "DELETE /sites/{site_id}": SITE_CHANGES,
    "GET /api-keys": KEYS,
    "POST /api-keys": KEY_CHANGES,
    "POST /api-keys/{api_key_id}/rotate": KEY_CHANGES,
    "DELETE /api-keys/{api_key_id}": KEY_CHANGES._replace(during=READING),
    "GET /members": PEOPLE,
    "PATCH /members/{member_id}": PEOPLE_CHANGES,
    "DELETE /members/{member_id}": PEOPLE_CHANGES._replace(during=READING),
    "GET /members/invitations": PEOPLE,
    "POST /members/invitations": PEOPLE_CHANGES,
    "DELETE /members/invitations/{invitation_id}": PEOPLE_CHANGES._replace(during=READING),
    "POST /admin/auth/login": UNASKED,
    "POST /admin/auth/refresh": Door(refresh_of=Audience.ADMIN),
    "POST /admin/auth/logout": ADMINS,
    "POST /admin/auth/logout-all": ADMINS,
    "GET /admin/auth/sessions": ADMINS,
    "GET /admin/accounts": ADMINS,
    "GET /admin/accounts/{account_id}": ADMINS,
    "POST /admin/accounts/{account_id}/plan": ADMINS,
    "POST /admin/accounts/{account_id}/credits": ADMINS,
    "GET /admin/accounts/{account_id}/credits/transactions": ADMINS,
    "GET /admin/accounts/{account_id}/credits/transactions/{seq}": ADMINS,
    "POST /admin/accounts/{account_id}/credits/transactions/{seq}/reverse": ADMINS,
    "GET /admin/accounts/{account_id}/events": ADMINS,
    "GET /admin/bank-transfers": ADMINS,
    "POST /admin/bank-transfers/{bank_transfer_id}/approve": ADMINS,
    "POST /admin/bank-transfers/{bank_transfer_id}/reject": ADMINS,
    "GET /admin/invoices/{invoice_id}/document": ADMINS,
    "GET /admin/invoices/{invoice_id}/receipt": ADMINS,
    "POST /admin/invoices/{invoice_id}/payments": ADMINS,
    "GET /admin/bank-statements": ADMINS,
    "POST /admin/bank-statements": ADMINS,
    "GET /admin/bank-statements/{statement_id}/entries": ADMINS,
    "GET /admin/payments/unapplied": ADMINS,
    "GET /admin/payments/{payment_id}": ADMINS,
    "POST /admin/payments/{payment_id}/apply": ADMINS,
    "POST /admin/payments/{payment_id}/refunds": ADMINS,
    "GET /admin/audit": ADMINS,
    "GET /admin/operations": ADMINS,
    "POST /admin/operations/{operation_id}/retry": ADMINS,
    "POST /admin/test-clocks": ADMINS,
    "GET /admin/test-clocks/{test_clock_id}": ADMINS,
    "POST /admin/test-clocks/{test_clock_id}/advance": ADMINS,
}

# --- who tries ----------------------------------------------------------------------------------


class Stage:
    """Ada's account and a platform admin, and credentials of theirs, made anew for each request."""

    def __init__(self, app: Flask, api: Api, engine: Engine) -> None:
        self.app = app
        self.api = api
        self.engine = engine
        self.ada = engine.sign_up()
        self.admin_id = new_id()
        self.others = {"/auth/login": engine.email_of(engine.sign_up()), "/admin/auth/login": "other@example.com"}
        with engine.database.transaction() as tx:
            admins.create(tx, admin_id=self.admin_id, email="root@example.com", password_hash=PASSWORD_HASH)
            admins.create(tx, admin_id=new_id(), email="other@example.com", password_hash=PASSWORD_HASH)

    def tokens(self, audience: Audience) -> auth.Tokens:
        principal_id = self.ada.user_id if audience is Audience.CUSTOMER else self.admin_id
        with self.app.app_context(), self.engine.database.transaction() as tx:
            return auth.open_session(tx, audience, principal_id, now=utc_now())

    def access(self, audience: Audience = Audience.CUSTOMER) -> str:
        return self.tokens(audience).access_token

    def key(self, *scopes: str, site: bool = False) -> str:
        owner = self.api.with_token(self.access())
        body: dict[str, Any] = {"name": "a key", "scopes": list(scopes or SCOPES)}
        if site:
            made = owner.post("/sites", {"name": "Shop", "domain": f"{new_id()}.example.com"})
            body["site_id"] = made.get_json()["id"]
        key: str = owner.post("/api-keys", body).get_json()["key"]
        return key

    def change(self, sql: str) -> None:
        ids = {"account_id": self.ada.account_id, "user_id": self.ada.user_id, "admin_id": self.admin_id}
        for statement in sql.split(";"):
            self.engine.execute_sql(statement, **ids, now=utc_now())

    def ask(self, route: Route, headers: Mapping[str, str]) -> Any:
        """Send what fits the route; nothing has the ids that it names. To log in, somebody else's password is right."""
        body = BODIES.get(route.name)
        if route.template in self.others:
            body = {"email": self.others[route.template], "password": PASSWORD}
        key = "a-key" if route.name in NEEDS_KEY else None
        return self.api.send(route.method, route.path(), body, key=key, headers=headers)


SCOPES: Final = ("billing:read", "credits:consume", "credits:read")
Answer = tuple[int, str]
IN: Final = (0, "in")
WHO_ARE_YOU: Final = (401, "unauthenticated")
NOT_YOU: Final = (403, "forbidden")
OTHER_SIDE: Final = (403, "wrong_audience")
STANDINGS: Final = {"s": (403, "account_suspended"), "c": (403, "account_cancelled")}


class Principal(NamedTuple):
    """What is presented, made anew for each request; what happened before; and what each door answers."""

    present: Callable[[Stage], dict[str, str]]
    expected: Callable[[Door], Answer]
    before: str = ""


def bearer(token: Callable[[Stage], str]) -> Callable[[Stage], dict[str, str]]:
    return lambda stage: {"Authorization": f"Bearer {token(stage)}"}


def one_key(*scopes: str, site: bool = False) -> Callable[[Stage], dict[str, str]]:
    made: dict[int, str] = {}

    def present(stage: Stage) -> dict[str, str]:
        if id(stage) not in made:
            made.clear()
            made[id(stage)] = stage.key(*scopes, site=site)
        return {"X-API-Key": made[id(stage)]}

    return present


def nobody(door: Door) -> Answer:
    return IN if door.unasked or door.anybody else WHO_ARE_YOU


def dead(door: Door) -> Answer:
    """A credential that is none (any more) is worse than none: it is not taken for nobody's."""
    return IN if door.unasked else WHO_ARE_YOU


def dead_token_of(audience: Audience) -> Callable[[Door], Answer]:
    """We did sign it, so we know whose side it was on."""

    def expected(door: Door) -> Answer:
        on_other_side = door.admins if audience is Audience.CUSTOMER else bool(door.roles)
        both = door.admins and bool(door.roles)
        return OTHER_SIDE if on_other_side and not both else dead(door)

    return expected


def user(role: str, standing: str = "") -> Callable[[Door], Answer]:
    def expected(door: Door) -> Answer:
        if door.unasked or door.refresh_of is not None:
            return IN if door.unasked else WHO_ARE_YOU
        if not door.roles:
            return OTHER_SIDE
        if role not in door.roles:
            return NOT_YOU
        return STANDINGS[standing] if standing and standing not in door.during else IN

    return expected


def key(scope: str, standing: str = "") -> Callable[[Door], Answer]:
    def expected(door: Door) -> Answer:
        if door.unasked or door.refresh_of is not None:
            return IN if door.unasked else WHO_ARE_YOU
        if door.scope != scope:
            return NOT_YOU
        return STANDINGS[standing] if standing and standing not in door.during else IN

    return expected


def platform_admin(door: Door) -> Answer:
    if door.unasked or door.refresh_of is not None:
        return IN if door.unasked else WHO_ARE_YOU
    return IN if door.admins else OTHER_SIDE


def refresh_token_of(audience: Audience) -> Callable[[Door], Answer]:
    def expected(door: Door) -> Answer:
        if door.refresh_of is not None:
            return IN if door.refresh_of is audience else OTHER_SIDE
        return dead(door)

    return expected


SUSPENDED: Final = "UPDATE accounts SET access_ends_at = %(now)s WHERE id = %(account_id)s"
CANCELLED: Final = "UPDATE accounts SET status = 'cancelled' WHERE id = %(account_id)s"
ACCOUNT_DELETED: Final = "UPDATE accounts SET deleted_at = now() WHERE id = %(account_id)s"
USER_DELETED: Final = "UPDATE users SET deleted_at = now() WHERE id = %(user_id)s"
DISABLED: Final = "UPDATE admins SET disabled_at = now() WHERE id = %(admin_id)s"
REVOKED: Final = "UPDATE sessions SET revoked_at = now(), revoked_reason = 'test'"
OVER: Final = "UPDATE sessions SET expires_at = now()"
ROLE: Final = "UPDATE users SET role = '{}' WHERE id = %(user_id)s"
OWNER: Final = bearer(Stage.access)


def after(sql: str, audience: Audience = Audience.CUSTOMER) -> Callable[[Stage], dict[str, str]]:
    """A fresh token, and then this happens."""

    def present(stage: Stage) -> dict[str, str]:
        token = stage.access(audience)
        stage.change(sql)
        return {"Authorization": f"Bearer {token}"}

    return present


def forged(**changes: Any) -> Callable[[Stage], dict[str, str]]:
    return bearer(lambda stage: forge(stage.app, stage.access(), **changes))


def long_ago() -> Any:
    return utc_now() - timedelta(hours=1)


PRINCIPALS: Final[dict[str, Principal]] = {
    "nobody": Principal(lambda _: {}, nobody),
    **{
        role: Principal(OWNER, user(role[0]), ROLE.format(role))
        for role in ("owner", "admin", "editor", "developer", "viewer")
    },
    **{f"key for {scope}": Principal(one_key(scope), key(scope)) for scope in SCOPES},
    "platform admin": Principal(bearer(lambda stage: stage.access(Audience.ADMIN)), platform_admin),
    "owner, suspended": Principal(OWNER, user("o", "s"), SUSPENDED),
    "owner, cancelled": Principal(OWNER, user("o", "c"), CANCELLED),
    "viewer, suspended": Principal(OWNER, user("v", "s"), f"{SUSPENDED}; {ROLE.format('viewer')}"),
    "owner of a deleted account": Principal(OWNER, dead_token_of(Audience.CUSTOMER), ACCOUNT_DELETED),
    "deleted user": Principal(OWNER, dead_token_of(Audience.CUSTOMER), USER_DELETED),
    "revoked session": Principal(after(REVOKED), dead_token_of(Audience.CUSTOMER)),
    "session that is over": Principal(after(OVER), dead_token_of(Audience.CUSTOMER)),
    "disabled admin": Principal(
        bearer(lambda stage: stage.access(Audience.ADMIN)), dead_token_of(Audience.ADMIN), DISABLED
    ),
    "admin's revoked session": Principal(after(REVOKED, Audience.ADMIN), dead_token_of(Audience.ADMIN)),
    "refresh token of a user": Principal(
        bearer(lambda stage: stage.tokens(Audience.CUSTOMER).refresh_token), refresh_token_of(Audience.CUSTOMER)
    ),
    "refresh token of an admin": Principal(
        bearer(lambda stage: stage.tokens(Audience.ADMIN).refresh_token), refresh_token_of(Audience.ADMIN)
    ),
    "expired token": Principal(bearer(lambda stage: forge(stage.app, stage.access(), exp=long_ago())), dead),
    "forged: no algorithm": Principal(forged(header={"alg": "none"}), dead),
    "forged: another algorithm": Principal(forged(header={"alg": "HS512"}), dead),
    "forged: said to be RS256": Principal(bearer(lambda stage: relabel(stage.access(), alg="RS256")), dead),
    "forged: an admin by claim": Principal(forged(aud="admin"), dead_token_of(Audience.ADMIN)),
    "no such key": Principal(lambda _: {"X-API-Key": "bk_00000000_unknown"}, dead),
}
KEY_LOSSES: Final = {
    "revoked key": "UPDATE api_keys SET revoked_at = now()",
    "expired key": "UPDATE api_keys SET expires_at = now()",
    "key of a deleted site": "UPDATE sites SET deleted_at = now()",
    "key of a deleted account": ACCOUNT_DELETED,
}
PRINCIPALS.update({what: Principal(one_key(site=True), dead, sql) for what, sql in KEY_LOSSES.items()})
PRINCIPALS.update(
    {
        "key, suspended": Principal(one_key("credits:consume"), key("credits:consume", "s"), SUSPENDED),
        "key, cancelled": Principal(one_key("billing:read"), key("billing:read", "c"), CANCELLED),
    }
)


@pytest.fixture
def stage(app: Flask, api: Api, engine: Engine) -> Stage:
    return Stage(app, api, engine)


def test_the_matrix_has_every_route_and_no_other(app: Flask) -> None:
    assert {route.name for route in routes_of(app)} == MATRIX.keys()


@pytest.mark.filterwarnings("ignore:The HMAC key is 32 bytes long")
@pytest.mark.parametrize("who", PRINCIPALS)
def test_a_door_opens_to_those_that_the_matrix_names(app: Flask, stage: Stage, who: str) -> None:
    principal = PRINCIPALS[who]
    if "key" in who:
        principal.present(stage)  # made while it may be made
    if principal.before:
        stage.change(principal.before)
    wrong = []
    for route in routes_of(app):
        answer = stage.ask(route, principal.present(stage))
        expected = principal.expected(MATRIX[route.name])
        found = (answer.status_code, (answer.get_json(silent=True) or {}).get("code"))
        let_in = answer.status_code not in {401, 403} and answer.status_code < 500
        if not (let_in if expected == IN else found == expected):
            wrong.append(f"{route.name}: {found} instead of {expected}")
    assert not wrong, "\n".join(wrong)


# --- other people's things ------------------------------------------------------------------------


@pytest.fixture
def things(customer: Api, engine: Engine, ada: Customer) -> dict[str, str]:
    """One of each thing that a customer's route names by its id, all of them Ada's."""
    site = customer.post("/sites", {"name": "Shop", "domain": "shop.example.com"}).get_json()["id"]
    api_key = customer.post("/api-keys", {"name": "one", "scopes": list(SCOPES)}).get_json()["id"]
    hold = customer.post("/credits/holds", {"amount": 5}, key="h").get_json()["id"]
    checkout = customer.post("/invoices", {"plan": "starter", "payment_method": "bank_transfer"})
    invoice = engine.finish(checkout)["invoice_id"]
    submitted = customer.post("/bank-transfers", {"invoice_id": invoice})
    transfer = engine.finish(submitted)["bank_transfer_id"]
    invited = customer.post("/members/invitations", {"email": "bob@example.com", "role": "viewer"})
    return {
        "site_id": site,
        "api_key_id": api_key,
        "hold_id": hold,
        "invoice_id": invoice,
        "bank_transfer_id": transfer,
        "operation_id": submitted.get_json()["operation_id"],
        "member_id": str(ada.user_id),
        "invitation_id": invited.get_json()["id"],
    }


def test_what_is_another_tenants_is_not_there(
    app: Flask, customer: Api, stranger: Api, engine: Engine, things: dict[str, str]
) -> None:
    kept = "SELECT string_agg(t::text, '' ORDER BY t::text) FROM {} t"
    tables = ("sites", "api_keys", "holds", "invoices", "bank_transfers", "invitations", "users")
    before = [engine.scalar(kept.format(table)) for table in tables]
    tried = 0
    for route in routes_of(app):
        if route.for_admins or "{" not in route.template or "{seq}" in route.template:
            continue
        path = route.template.format(**things)  # a KeyError asks for the new thing to be made above
        answer = stranger.send(route.method, path, BODIES.get(route.name))
        assert (answer.status_code, answer.get_json()["code"]) == (404, "not_found"), route.name
        tried += 1
        if route.method == "GET" and not path.endswith("/receipt"):
            assert customer.get(path).status_code == 200, f"{route.name}: its owner finds it"
    assert tried >= 17
    assert [engine.scalar(kept.format(table)) for table in tables] == before


def test_a_row_of_the_ledger_is_ones_own(customer: Api, stranger: Api, engine: Engine) -> None:
    for seq in ("1", "2"):
        customer.post("/credits/consume", {"amount": 7}, key=f"call-{seq}")
    mine = customer.get("/credits/transactions/2").get_json()
    theirs = stranger.get("/credits/transactions/2")
    assert mine["amount"] == -7
    assert theirs.status_code == 404
    assert stranger.get("/credits/transactions/1").get_json()["grant"]["id"] != mine["grant"]["id"]
