"""The second wall: a process acting as the API's role sees what its transaction was let in to, and writes little.

Each test connects as the role and tries. `database` acts as the owner of the tables, whom no policy concerns.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import psycopg
import pytest
from msgspec import Struct
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from bench import population
from shared.clock import utc_now
from shared.config import Settings
from shared.db import account_state, accounts, api_keys, checks, credits, ledger, operations, sessions, sites
from shared.db.engine import ActAs, Database, Tx
from shared.db.migrations import run
from shared.db.plans import load_rules
from shared.db.sessions import Audience
from shared.ids import new_id
from tests.db.test_query_plans import ExplainingTx
from tests.db.world import World

DENIED = "42501"  # of missing privileges and of rows that a policy refuses alike

Attempts = Mapping[str, str]


class Tenant(Struct, frozen=True):
    """An account with an owner who is signed in, and a key for everything."""

    account_id: UUID
    user_id: UUID
    session_id: UUID
    key_hash: bytes


@contextmanager
def acting(database: Database, role: ActAs, **options: Any) -> Iterator[Database]:
    other = Database(database.url, act_as=role, application_name="tests", **options)
    try:
        yield other
    finally:
        other.dispose()


@pytest.fixture
def tenants(database: Database, settings: Settings) -> list[Tenant]:
    """Two of them, each with rows in many tables."""
    with database.transaction() as tx:
        world = World(tx, settings)
        return [_tenant(tx, world, number) for number in range(2)]


@pytest.fixture
def admin_session(database: Database, tenants: list[Tenant]) -> tuple[UUID, UUID]:
    """The session of an admin, and the admin."""
    with database.transaction() as tx:
        admin_id: UUID = tx.scalar("SELECT id FROM admins")
        session_id = new_id()
        now = utc_now()
        sessions.create(
            tx,
            session_id=session_id,
            audience=Audience.ADMIN,
            principal_id=admin_id,
            now=now,
            expires_at=now + timedelta(1),
        )
    return session_id, admin_id


def _tenant(tx: Tx, world: World, number: int) -> Tenant:
    customer = world.sign_up(at=None)
    world.pay(customer, world.open_invoice(customer, "starter"))
    now = utc_now()
    session_id, key_hash = new_id(), sha256(f"key {number}".encode()).digest()
    sessions.create(
        tx,
        session_id=session_id,
        audience=Audience.CUSTOMER,
        principal_id=customer.user_id,
        now=now,
        expires_at=now + timedelta(1),
    )
    sessions.add_refresh_token(tx, refresh_token_id=new_id(), session_id=session_id, expires_at=now + timedelta(1))
    site = sites.create(tx, site_id=new_id(), account_id=customer.account_id, name="shop", domain="shop.example")
    api_keys.create(
        tx,
        api_key_id=new_id(),
        account_id=customer.account_id,
        site_id=site.id,
        name="all",
        prefix="bk",
        key_hash=key_hash,
        scopes=["credits:consume", "credits:read"],
        created_by=customer.user_id,
        expires_at=None,
    )
    asker = credits.of_account(tx, customer.account_id, lambda _: world.rules)
    credits.place_hold(asker, 5, key="hold", ttl_seconds=600, now=now)
    return Tenant(customer.account_id, customer.user_id, session_id, key_hash)


def admit(tx: Tx, tenant: Tenant) -> None:
    assert sessions.live_user(tx, tenant.session_id, tenant.user_id, now=utc_now()) is not None


def refused(database: Database, attempt: str, tenant: Tenant | None, **params: Any) -> str | None:
    """With which state PostgreSQL refuses this of whoever was let in; None when it does not."""
    try:
        with database.transaction() as tx:
            if tenant is not None:
                admit(tx, tenant)
            tx.execute(attempt, **params)
    except DBAPIError as error:
        state: str | None = getattr(error.orig, "sqlstate", None)
        return state
    return None


def attempts(table: Attempts) -> pytest.MarkDecorator:
    """One test for each, named after what it is about."""
    return pytest.mark.parametrize("attempt", [pytest.param(attempt, id=name) for name, attempt in table.items()])


def tables_with_accounts(tx: Tx) -> Sequence[str]:
    rows = tx.rows(
        """
        SELECT c.relname AS name FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'account_id'
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND NOT a.attisdropped ORDER BY c.relname
        """
    )
    return [row.name for row in rows]


def seen(tx: Tx) -> dict[str, set[UUID]]:
    """Whose rows a transaction sees, by table, where it sees any and may ask."""
    found = {"accounts": {row.id for row in tx.rows("SELECT id FROM accounts")}}
    for table in tables_with_accounts(tx):
        if tx.scalar("SELECT has_column_privilege(%(table)s::text, 'account_id', 'SELECT')", table=table):
            found[table] = {row.account_id for row in tx.rows(f"SELECT DISTINCT account_id FROM {table}")}
    return {table: whose for table, whose in found.items() if whose}


# --- who sees what ------------------------------------------------------------------------------------


def test_who_was_not_let_in_sees_nobody(database: Database, tenants: list[Tenant]) -> None:
    with acting(database, ActAs.API) as api, api.transaction() as tx:
        assert seen(tx) == {}
        for table in ("users", "sessions", "refresh_tokens", "admins", "refunds"):
            assert tx.rows(f"SELECT id FROM {table}") == []


def test_who_was_let_in_sees_one_account_whatever_is_asked(database: Database, tenants: list[Tenant]) -> None:
    """Not one of these statements has a scope of its own: the first wall is down."""
    with acting(database, ActAs.API) as api:
        for tenant in tenants:
            with api.transaction() as tx:
                admit(tx, tenant)
                own = seen(tx)
                assert all(whose == {tenant.account_id} for whose in own.values()), own
                assert own.keys() >= {
                    "accounts", "users", "sites", "api_keys", "subscriptions", "subscription_periods", "invoices",
                    "payments", "credit_grants", "credit_transactions", "holds", "operations", "events",
                }  # fmt: skip
                assert [row.id for row in tx.rows("SELECT id FROM sessions")] == [tenant.session_id]
                assert len(tx.rows("SELECT id FROM refresh_tokens")) == 1
                assert tx.rows("SELECT id FROM admins") == []
            with api.transaction() as tx:
                assert api_keys.live(tx, tenant.key_hash, now=utc_now()) is not None
                assert seen(tx) == own


@pytest.mark.parametrize("table", ["credit_transactions", "users", "accounts"])
def test_without_its_policy_a_table_is_shut_and_without_the_wall_it_is_open(
    scratch_url: str, settings: Settings, table: str
) -> None:
    """That the tests above can fail."""
    database = Database(scratch_url)
    with database.transaction() as tx:
        world = World(tx, settings)
        first, _ = [_tenant(tx, world, number) for number in range(2)]
    whose = {}
    for name, change in (
        ("shut", f"DROP POLICY of_the_account ON {table}"),
        ("open", f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"),
    ):
        with database.transaction() as tx:
            tx.execute(change)
        with acting(database, ActAs.API) as api, api.transaction() as tx:
            admit(tx, first)
            whose[name] = len(seen(tx).get(table, ()))
    assert whose["shut"] == 0
    assert whose["open"] >= 2
    database.dispose()


def test_an_admin_sees_everybody_but_no_credentials(
    database: Database, tenants: list[Tenant], admin_session: tuple[UUID, UUID]
) -> None:
    with acting(database, ActAs.API) as api, api.transaction() as tx:
        assert sessions.live_admin(tx, *admin_session, now=utc_now()) is not None
        everybody = {tenant.account_id for tenant in tenants}
        assert seen(tx)["payments"] == everybody
        assert seen(tx)["credit_transactions"] == everybody
        assert "sites" not in seen(tx)
        assert [row.id for row in tx.rows("SELECT id FROM sessions")] == [admin_session[0]]


@pytest.mark.parametrize(
    "change",
    ["UPDATE sessions SET revoked_at = now(), revoked_reason = 'x'", "UPDATE sessions SET expires_at = now()"],
    ids=["revoked", "expired"],
)
def test_a_session_that_has_ended_lets_nobody_in(database: Database, tenants: list[Tenant], change: str) -> None:
    with database.transaction() as tx:
        tx.execute(change)
    tenant, other = tenants
    with acting(database, ActAs.API) as api, api.transaction() as tx:
        assert sessions.live_user(tx, tenant.session_id, tenant.user_id, now=utc_now()) is None
        assert sessions.live_user(tx, other.session_id, tenant.user_id, now=utc_now()) is None
        assert api_keys.live(tx, b"no such key", now=utc_now()) is None
        assert seen(tx) == {}


def test_an_operation_that_nobody_signed_in_for_is_seen_by_its_id_alone(
    database: Database, tenants: list[Tenant]
) -> None:
    with database.transaction() as tx:
        signups = [row.id for row in tx.rows("SELECT id FROM operations WHERE principal_kind = 'anonymous'")]
        (own, *_) = [row.id for row in tx.rows("SELECT id FROM operations WHERE principal_kind = 'user'")]
    with acting(database, ActAs.API) as api:
        for operation_id, found in ((signups[0], [signups[0]]), (own, []), (new_id(), [])):
            with api.transaction() as tx:
                operations.admit_anonymous(tx, operation_id)
                assert [row.id for row in tx.rows("SELECT id FROM operations")] == found
                assert seen(tx).keys() <= {"operations"}


def test_a_provider_lets_in_to_what_it_names_and_no_other(database: Database, tenants: list[Tenant]) -> None:
    first, other = tenants
    with database.transaction() as tx:
        paid = {row.account_id: row for row in tx.rows("SELECT * FROM payments")}
    with acting(database, ActAs.API) as api:
        for statement, whose in (
            (f"SELECT admit_payer('{first.account_id}', '{paid[first.account_id].invoice_id}')", {first.account_id}),
            (f"SELECT admit_payer('{first.account_id}', '{paid[other.account_id].invoice_id}')", None),
            (f"SELECT admit_payer_of('sandbox', '{paid[other.account_id].external_payment_id}')", {other.account_id}),
            (f"SELECT admit_payer_of('stripe', '{paid[other.account_id].external_payment_id}')", None),
        ):
            with api.transaction() as tx:
                tx.execute(statement)
                assert seen(tx).get("payments") == whose


# --- the setting --------------------------------------------------------------------------------------


def test_setting_the_setting_opens_nothing(database: Database, tenants: list[Tenant]) -> None:
    first, second = tenants
    with acting(database, ActAs.API, pool_size=1) as api:
        with api.transaction() as tx:
            admit(tx, first)
            admitted: str = tx.scalar("SELECT current_setting('prepaid.admitted')")
            kind, own, digest = admitted.split(" ")
            assert (kind, own) == ("account", str(first.account_id))
        forged = {
            "an account alone": str(second.account_id),
            "no digest": f"account {second.account_id}",
            "another account's digest": f"account {second.account_id} {digest}",
            "another kind's digest": f"admin {first.account_id} {digest}",
            "an earlier transaction's": admitted,
        }
        for how, value in forged.items():
            for is_local in (True, False):
                with api.transaction() as tx:
                    tx.execute(
                        "SELECT set_config('prepaid.admitted', %(value)s, %(local)s)", value=value, local=is_local
                    )
                    assert seen(tx) == {}, how
                    assert tx.scalar("SELECT admitted('admin')") is None, how


FORBIDDEN_TO_KNOW: Attempts = {
    "what admissions are signed with": "SELECT secret FROM admission_secret",
    "the function that admits": "SELECT admit('account', gen_random_uuid())",
    "a user's hash": "SELECT password_hash FROM users",
    "a user's hash, in passing": "SELECT * FROM users",
    "users by their hash": "SELECT id FROM users WHERE password_hash = 'hash'",
    "an admin's hash": "SELECT password_hash FROM admins",
    "a signup's hash": "SELECT password_hash FROM signups",
    "a signup": "SELECT id FROM signups",
    "the hash on its way to a worker": "SELECT payload FROM operations",
    "a key's hash": "SELECT key_hash FROM api_keys",
    "whose trials were given": "SELECT mailbox_digest FROM trials",
}


@attempts(FORBIDDEN_TO_KNOW)
def test_the_api_cannot_read(database: Database, tenants: list[Tenant], attempt: str) -> None:
    with acting(database, ActAs.API) as api:
        assert refused(api, attempt, tenants[0]) == DENIED


FORBIDDEN_TO_DO: Attempts = {
    f"{verb} {table}": statement
    for table in (
        "credit_transactions", "subscription_periods", "payments", "subscriptions", "accounts", "credit_grants",
        "holds", "hold_allocations", "invoices", "invoice_numbers", "bank_transfers", "refunds", "events",
        "bank_entries", "trials", "admins", "sessions", "plans", "job_runs", "admission_secret",
    )
    for verb, statement in {
        "insert into": f"INSERT INTO {table} DEFAULT VALUES",
        "delete from": f"DELETE FROM {table}",
        "truncate": f"TRUNCATE {table} CASCADE",
    }.items()
} | {
    "balance": "UPDATE accounts SET balance_credits = 1000000",
    "gate": "UPDATE accounts SET access_ends_at = NULL",
    "ledger": "UPDATE credit_transactions SET amount = 1",
    "grant": "UPDATE credit_grants SET remaining = amount",
    "period": "UPDATE subscription_periods SET ends_at = ends_at + interval '1 year'",
    "subscription": "UPDATE subscriptions SET renews_at = renews_at + interval '1 year'",
    "payment": "UPDATE payments SET status = 'succeeded'",
    "invoice": "UPDATE invoices SET status = 'paid'",
    "longer session": "UPDATE sessions SET expires_at = 'infinity'",
    "used token": "UPDATE refresh_tokens SET used_at = NULL",
    "own password": "UPDATE users SET password_hash = 'mine'",
    "scopes": "UPDATE api_keys SET scopes = '{credits:consume}'",
    "key of another account": "UPDATE api_keys SET account_id = gen_random_uuid()",
    "operation's request": "UPDATE operations SET payload = '{}'",
    "a policy": "CREATE POLICY mine ON users TO prepaid_api USING (true)",
    "the wall": "ALTER TABLE users DISABLE ROW LEVEL SECURITY",
    "a function": "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "the function below a function": "SELECT release_hold(%(account_id)s, gen_random_uuid(), now())",
    "giving": "SELECT adjust_credits(%(account_id)s, 1, 'k', gen_random_uuid(), NULL, NULL, 'x', now(), false)",
}  # fmt: skip


@attempts(FORBIDDEN_TO_DO)
def test_the_api_cannot_write(database: Database, tenants: list[Tenant], attempt: str) -> None:
    with acting(database, ActAs.API) as api:
        assert refused(api, attempt, tenants[0], account_id=tenants[0].account_id) == DENIED


OTHERS: Attempts = {
    "user": "INSERT INTO users (id, account_id, email, password_hash, role) "
    "VALUES (gen_random_uuid(), %(other)s, 'eve@example.com', 'x', 'owner')",
    "site": "INSERT INTO sites (id, account_id, name, domain) VALUES (gen_random_uuid(), %(other)s, 'x', 'x.example')",
    "key": "INSERT INTO api_keys (id, account_id, name, prefix, key_hash, scopes, created_by) "
    "VALUES (gen_random_uuid(), %(other)s, 'x', 'x', 'x', '{credits:read}', %(user)s)",
    "operation": "INSERT INTO operations (id, kind, status, payload, payload_version, account_id, principal_kind, "
    "request_hash, next_send_at, created_at) VALUES (gen_random_uuid(), 'adjust_credits', 'pending', '{}', 1, "
    "%(other)s, 'system', '', now(), now())",
    "operation of nobody": "INSERT INTO operations (id, kind, status, payload, payload_version, account_id, "
    "principal_kind, request_hash, next_send_at, created_at) VALUES (gen_random_uuid(), 'adjust_credits', 'pending', "
    "'{}', 1, NULL, 'anonymous', '', now(), now())",
    "audit": "INSERT INTO audit_log (id, at, actor_kind, action, account_id, subject_kind) "
    "VALUES (gen_random_uuid(), now(), 'system', 'x', %(other)s, 'x')",
    "session's token": "INSERT INTO refresh_tokens (id, session_id, expires_at) "
    "VALUES (gen_random_uuid(), %(session)s, now())",
    "bank statement": "INSERT INTO bank_statements (id, operation_id, format, content, content_hash, uploaded_by) "
    "VALUES (gen_random_uuid(), gen_random_uuid(), 'csv', 'x', 'x', gen_random_uuid())",
}


@attempts(OTHERS)
def test_nothing_is_written_for_another_account(database: Database, tenants: list[Tenant], attempt: str) -> None:
    first, other = tenants
    with acting(database, ActAs.API) as api:
        params = {"other": other.account_id, "user": other.user_id, "session": other.session_id}
        assert refused(api, attempt, first, **params) == DENIED


def test_what_is_changed_is_ones_own(database: Database, tenants: list[Tenant]) -> None:
    first, other = tenants
    with acting(database, ActAs.API) as api, api.transaction() as tx:
        admit(tx, first)
        for statement in (
            "UPDATE users SET role = 'viewer'",
            "UPDATE sites SET name = 'mine'",
            "UPDATE api_keys SET revoked_at = now()",
            "UPDATE sessions SET revoked_at = now(), revoked_reason = 'x'",
        ):
            assert tx.execute(statement) == 1, statement
        assert tx.execute("UPDATE operations SET attempts = 0") == 0, "that is for admins"
    with acting(database, ActAs.API) as api, api.transaction() as tx:
        admit(tx, other)
        assert tx.scalar("SELECT role FROM users") == "owner"


# --- spending -----------------------------------------------------------------------------------------

CONSUME = """
    SELECT * FROM consume_credits(ROW(%(session_id)s, %(user_id)s, %(key_hash)s, %(allowed)s)::credential, 10, %(key)s,
                                  'admin', gen_random_uuid(), NULL, %(now)s, false)
    """


def spend(
    api: Database, *, session_id: Any = None, user_id: Any = None, key_hash: Any = None, allowed: list[str]
) -> Any:
    who = {"session_id": session_id, "user_id": user_id, "key_hash": key_hash, "allowed": allowed}
    return api.ask(CONSUME, key=str(new_id()), now=utc_now(), **who)


def test_spending_takes_a_credential_and_finds_the_account_by_it(database: Database, tenants: list[Tenant]) -> None:
    first, _ = tenants
    with acting(database, ActAs.API) as api:
        by_user = spend(api, session_id=first.session_id, user_id=first.user_id, allowed=["owner"])
        by_key = spend(api, key_hash=first.key_hash, allowed=["credits:consume"])
        assert (by_user.outcome, by_user.account_id, by_user.asker_id) == ("consumed", first.account_id, first.user_id)
        assert (by_key.outcome, by_key.account_id) == ("consumed", first.account_id)
        assert by_key.balance_credits == by_user.balance_credits - 10
        for who in (
            {"session_id": first.session_id, "user_id": tenants[1].user_id},
            {"session_id": first.session_id},
            {"key_hash": b"guessed"},
            {},
        ):
            assert spend(api, **who, allowed=["owner", "credits:consume"]) is None
    with database.transaction() as tx:
        told = tx.rows("SELECT source, source_id FROM credit_transactions WHERE kind = 'consume' ORDER BY seq")
        assert [(row.source, row.source_id) for row in told] == [
            ("user", first.user_id),
            ("api_key", by_key.asker_id),
        ], "whoever asked, not who was said to"


def test_whose_role_or_scope_does_not_suffice_takes_nothing(database: Database, tenants: list[Tenant]) -> None:
    first, _ = tenants
    with acting(database, ActAs.API) as api:
        for row in (
            spend(api, session_id=first.session_id, user_id=first.user_id, allowed=["editor"]),
            spend(api, key_hash=first.key_hash, allowed=["billing:read"]),
        ):
            assert (row.permitted, row.outcome) == (False, "not_found")
    with database.transaction() as tx:
        assert tx.scalar("SELECT count(*) FROM credit_transactions WHERE kind = 'consume'") == 0


# --- what is due --------------------------------------------------------------------------------------


def test_what_is_due_is_applied_to_the_account_that_was_let_in_and_to_no_other(
    database: Database, settings: Settings, tenants: list[Tenant]
) -> None:
    first, other = tenants
    later = utc_now() + timedelta(days=40)
    with database.transaction() as tx:
        tx.execute("UPDATE sessions SET expires_at = %(at)s", at=later + timedelta(1))
        before = account_state.read(tx, [other.account_id])
    with acting(database, ActAs.DUE) as due:
        with due.transaction() as tx:
            account_state.catch_up(tx, first.account_id, load_rules(tx, settings), now=later)
            assert account_state.read(tx, [first.account_id]) == [], "nobody was let in"
        with due.transaction() as tx:
            admit(tx, first)
            account_state.catch_up(tx, other.account_id, load_rules(tx, settings), now=later)
            account_state.catch_up(tx, first.account_id, load_rules(tx, settings), now=later)
    with database.transaction() as tx:
        assert not account_state.is_due(tx, first.account_id, now=later)
        assert account_state.is_due(tx, other.account_id, now=later)
        assert account_state.read(tx, [other.account_id]) == before
    with database.transaction() as tx:
        assert checks.run_checks(tx, settings) == []


NOT_DUE: Attempts = {
    "a hash": "SELECT password_hash FROM users",
    "a user": "SELECT id FROM users",
    "a key": "SELECT id FROM api_keys",
    "a session": "SELECT id FROM sessions",
    "an operation's request": "SELECT payload FROM operations",
    "a payment": "INSERT INTO payments DEFAULT VALUES",
    "a key of one's own": "INSERT INTO api_keys DEFAULT VALUES",
    "the ledger": "UPDATE credit_transactions SET amount = 1",
    "an admission": "SELECT admit_admin(gen_random_uuid(), gen_random_uuid(), now())",
    "another account's period": "INSERT INTO subscription_periods (subscription_id, account_id, plan_id, phase, "
    "period_index, starts_at, ends_at) SELECT gen_random_uuid(), %(other)s, id, 0, 0, now(), 'infinity' FROM plans",
}


@attempts(NOT_DUE)
def test_who_applies_what_is_due_does_nothing_else(database: Database, tenants: list[Tenant], attempt: str) -> None:
    first, other = tenants
    with acting(database, ActAs.DUE) as due:
        assert refused(due, attempt, first, other=other.account_id) == DENIED


# --- workers ------------------------------------------------------------------------------------------

NOT_A_WORKERS: Attempts = {
    "a user's hash": "SELECT password_hash FROM users",
    "an admin": "SELECT id FROM admins",
    "a signup's hash": "SELECT password_hash FROM signups",
    "a key": "SELECT id FROM api_keys",
    "a session": "SELECT id FROM sessions",
    "opening a session": "INSERT INTO sessions DEFAULT VALUES",
    "making a key": "INSERT INTO api_keys DEFAULT VALUES",
    "making an admin": "INSERT INTO admins DEFAULT VALUES",
    "a role": "UPDATE users SET role = 'owner'",
    "what admissions are signed with": "SELECT secret FROM admission_secret",
    "a site": "INSERT INTO sites DEFAULT VALUES",
}


@attempts(NOT_A_WORKERS)
def test_a_worker_does_not_reach(database: Database, tenants: list[Tenant], attempt: str) -> None:
    with acting(database, ActAs.WORKER) as worker:
        assert refused(worker, attempt, None) == DENIED


# --- logins -------------------------------------------------------------------------------------------


@pytest.fixture
def login(database: Database, worker_id: str) -> Iterator[str]:
    """A login of its own that may become nobody yet."""
    name = f"{make_url(database.url).database}_{worker_id}_login"
    with _superuser(database) as superuser:
        superuser.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 'login'").format(Identifier(name)))
        yield name
        superuser.execute(SQL("DROP ROLE {}").format(Identifier(name)))


@contextmanager
def _superuser(database: Database) -> Iterator[psycopg.Connection[Any]]:
    url = make_url(database.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def as_login(database: Database, login: str, role: str, act_as: ActAs) -> Database:
    with _superuser(database) as superuser:
        superuser.execute(SQL("GRANT {} TO {}").format(Identifier(role), Identifier(login)))
    url = make_url(database.url).set(username=login, password="login").render_as_string(hide_password=False)
    return Database(url, act_as=act_as)


def test_a_login_of_the_apis_becomes_nobody_else(database: Database, tenants: list[Tenant], login: str) -> None:
    api = as_login(database, login, ActAs.API, ActAs.API)
    with api.transaction() as tx:
        admit(tx, tenants[0])
        assert seen(tx)["accounts"] == {tenants[0].account_id}
    for role in (ActAs.WORKER, ActAs.DUE, "postgres"):
        assert refused(api, f"SET ROLE {role}", None) == DENIED
    with api.transaction() as tx:
        tx.execute("RESET ROLE")
        tx.execute("SET ROLE NONE")
        assert seen(tx) == {}, "the login itself sees no more than its role"
    for role in (ActAs.WORKER, ActAs.DUE):
        other = Database(api.url, act_as=role)
        with pytest.raises(OperationalError, match="permission denied to set role"), other.transaction():
            pass
        other.dispose()
    api.dispose()


def test_a_worker_that_policies_are_not_lifted_off_does_the_same_by_them(
    database: Database, settings: Settings, tenants: list[Tenant], login: str
) -> None:
    """Where nobody may give BYPASSRLS: rows come by INSERT, and every row is seen."""
    database_of_worker = as_login(database, login, ActAs.WORKER, ActAs.WORKER)
    with database_of_worker.transaction() as tx:
        assert tx.copies
    later = utc_now() + timedelta(days=40)
    with database_of_worker.transaction() as tx:
        tx.execute("SET ROLE NONE")  # a member of the role, to whom its policies apply and its attributes do not
        tx.connection.info.pop("copies")
        assert not tx.copies
        assert seen(tx)["accounts"] >= {tenant.account_id for tenant in tenants}
        for tenant in tenants:
            account_state.catch_up(tx, tenant.account_id, load_rules(tx, settings), now=later)
    database_of_worker.dispose()


# --- a pool -------------------------------------------------------------------------------------------


def test_nothing_of_a_tenant_is_left_on_a_connection(database: Database, tenants: list[Tenant]) -> None:
    """Eight threads share two pooled connections and four others; some transactions fail, some are rolled back."""
    with acting(database, ActAs.API, pool_size=1) as api:

        def take_turns(seed: int) -> int:
            chance = random.Random(seed)
            for _ in range(60):
                tenant = chance.choice(tenants)
                with suppress(ZeroDivisionError, DBAPIError), api.transaction() as tx:
                    assert tx.scalar("SELECT admitted('account')") is None
                    assert tx.scalar("SELECT count(*) FROM accounts") == 0
                    if chance.random() < 0.2:
                        continue
                    admit(tx, tenant)
                    if chance.random() < 0.3:
                        with suppress(DBAPIError), tx.savepoint():
                            admit(tx, chance.choice(tenants))
                            tx.scalar("SELECT 1 / 0")
                    assert seen(tx)["credit_transactions"] == {tenant.account_id}
                    match chance.randrange(4):
                        case 0:
                            raise ZeroDivisionError
                        case 1:
                            tx.scalar("SELECT 1 / 0")
                        case 2:
                            tx.execute("SET SESSION prepaid.admitted = 'account'")
                        case _:
                            pass
                row = spend(api, key_hash=tenant.key_hash, allowed=["credits:consume"])
                assert row.account_id == tenant.account_id
                assert api.ask("SELECT admitted('account') AS whose, count(*) AS n FROM accounts").n == 0
            return seed

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(take_turns, range(8))) == list(range(8))


# --- the catalogue ------------------------------------------------------------------------------------


def test_every_table_with_an_account_is_behind_the_wall(database: Database) -> None:
    with database.transaction() as tx:
        walled = {
            row.relname: row.policies
            for row in tx.rows(
                """
                SELECT c.relname, ARRAY(
                    SELECT role::regrole::text FROM pg_policy p, unnest(p.polroles) AS role WHERE p.polrelid = c.oid
                ) AS policies
                FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relrowsecurity
                """
            )
        }
        readable = {
            row.relname
            for row in tx.rows(
                """
                SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
                  AND (has_any_column_privilege('prepaid_api', oid, 'SELECT, INSERT, UPDATE'))
                """
            )
        }
        assert walled.keys() >= {*tables_with_accounts(tx), "accounts", "sessions", "refresh_tokens", "admins"}
    for table, roles in walled.items():
        assert "prepaid_worker" in roles, table
        assert ("prepaid_api" in roles) == (table in readable), table
    nobodys = {"plans", "plan_assigners", "test_clocks", "job_runs", "alembic_version"}
    assert readable - walled.keys() == nobodys | {"provider_events", "sign_in_attempts"}


def test_nobody_shadows_a_table_for_whoever_has_the_connection_next(template: str, empty_url: str) -> None:
    run.upgrade(empty_url)
    database = Database(empty_url)
    for role in ActAs:
        with acting(database, role) as process:
            assert refused(process, "CREATE TEMPORARY TABLE accounts (id uuid)", None) == DENIED
    database.dispose()


def test_no_function_of_the_owners_is_anybodys(database: Database) -> None:
    with database.transaction() as tx:
        rows = tx.rows(
            """
            SELECT p.oid::regprocedure::text AS name,
                   has_function_privilege('prepaid_worker', p.oid, 'EXECUTE') AS open,
                   p.proconfig IS NOT NULL OR p.proname = 'admitted' AS fixed
            FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef
            """
        )
    assert len(rows) > 20
    assert [row.name for row in rows if row.open or not row.fixed] == []


# --- plans --------------------------------------------------------------------------------------------


def test_behind_the_wall_pages_are_still_read_by_their_indexes(scratch_url: str) -> None:
    database = Database(scratch_url)
    account_id = UUID("019a0000-0000-7000-8000-000000000007")
    now = population.STARTED_AT
    key_hash = sha256(b"key").digest()
    with database.transaction() as tx:
        population.fill(tx, 5_000)
        tx.execute(
            """
            INSERT INTO holds (id, account_id, status, amount, idempotency_key, held_at, expires_at, resolved_at)
            SELECT gen_random_uuid(), id, 'released', 1, 'past', created_at, created_at + interval '1 hour', created_at
            FROM accounts WHERE kind = 'customer'
            """
        )
        tx.execute(
            "INSERT INTO users (id, account_id, email, password_hash, role) VALUES (%(id)s, %(id)s, 'a', 'x', 'owner')",
            id=account_id,
        )
        api_keys.create(
            tx,
            api_key_id=new_id(),
            account_id=account_id,
            site_id=None,
            name="x",
            prefix="x",
            key_hash=key_hash,
            scopes=["credits:read"],
            created_by=account_id,
            expires_at=None,
        )
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    with acting(database, ActAs.API) as api, api.transaction() as plain:
        assert api_keys.live(plain, key_hash, now=now) is not None
        tx = ExplainingTx(plain)
        tx.rows("SELECT id FROM accounts WHERE id = %(id)s", id=account_id)
        assert len(credits.transactions_page(tx, account_id, before=10, limit=20)) == 2
        assert len(credits.grants_page(tx, account_id, before=UUID(int=2**128 - 1), limit=20)) == 1
        tx.rows("SELECT * FROM subscriptions WHERE account_id = %(id)s AND status <> 'ended'", id=account_id)
        tx.rows("SELECT * FROM subscription_periods WHERE account_id = %(id)s", id=account_id)
        tx.rows("SELECT * FROM events WHERE account_id = %(id)s ORDER BY id DESC LIMIT 5", id=account_id)
        assert ledger.newest_seq(plain, account_id) == 2
        assert accounts.get(plain, account_id).id == account_id
        assert tx.statements == 6
        assert tx.read_whole == []
    database.dispose()
