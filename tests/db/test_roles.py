"""What a process may not do in the database, as whichever role it acts: an append-only table is only appended to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Composed, Identifier
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from shared.clock import utc_now
from shared.config import Settings
from shared.db import members, sign_ins, signups, trials
from shared.db.engine import ActAs, Database, Tx
from shared.db.migrations import run
from shared.ids import new_id
from tests.db.world import Healthy, copy

APPEND_ONLY = {
    "credit_transactions": "credit_transaction_append_only",
    "events": "event_append_only",
    "audit_log": "audit_append_only",
}
CHANGES = ("UPDATE {0} SET account_id = account_id", "DELETE FROM {0}", "TRUNCATE {0}")
ROLES = (None, *ActAs)

changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.partition(" ")[0])
tables = pytest.mark.parametrize("table", APPEND_ONLY)


@contextmanager
def acting(healthy: Healthy, role: ActAs | None) -> Iterator[Tx]:
    """A transaction of a process that acts as this role; as the owner of the tables without one."""
    database = Database(healthy.database.url, act_as=role, application_name="tests")
    try:
        with database.transaction() as tx:
            yield tx
    finally:
        database.dispose()


@tables
@changes
@pytest.mark.parametrize("role", ROLES, ids=str)
def test_what_is_only_appended_to_is_changed_by_nobody(
    healthy: Healthy, role: ActAs | None, change: str, table: str
) -> None:
    with pytest.raises(DBAPIError) as refusal, acting(healthy, role) as tx:
        tx.execute(change.format(table))
    assert isinstance(refusal.value.orig, psycopg.Error)
    if role is None:  # whoever owns a table may do anything with it, but for its triggers
        assert refusal.value.orig.diag.constraint_name == APPEND_ONLY[table]
    else:
        assert refusal.value.orig.sqlstate == "42501", "no privilege, whatever triggers say"


@pytest.mark.parametrize("role", list(ActAs))
def test_no_process_switches_triggers_off(healthy: Healthy, role: ActAs) -> None:
    for attempt in (
        "ALTER TABLE credit_transactions DISABLE TRIGGER credit_transaction_append_only",
        "DROP TRIGGER credit_transaction_append_only ON credit_transactions",
        "SET LOCAL session_replication_role = replica",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE sql AS 'SELECT NULL'",
        "DROP TABLE credit_transactions",
    ):
        with pytest.raises(DBAPIError) as refusal, acting(healthy, role) as tx:
            tx.execute(attempt)
        assert getattr(refusal.value.orig, "sqlstate", None) == "42501", attempt


@pytest.mark.parametrize("role", list(ActAs))
def test_no_process_rewrites_what_is_for_sale(healthy: Healthy, role: ActAs) -> None:
    for attempt in (
        "UPDATE plans SET price_minor = 0",
        "INSERT INTO plan_assigners SELECT id, slug, 'checkout' FROM plans WHERE slug = 'enterprise'",
        "DELETE FROM accounts",
    ):
        with pytest.raises(DBAPIError) as refusal, acting(healthy, role) as tx:
            tx.execute(attempt)
        assert getattr(refusal.value.orig, "sqlstate", None) == "42501", attempt


def test_what_a_bank_has_said_is_written_by_workers_alone_and_changed_by_nobody(healthy: Healthy) -> None:
    for role, attempt in (
        (ActAs.API, copy("bank_entries", "transaction_id = 'exact'", "'id', gen_random_uuid(), 'external_id', 'new'")),
        (ActAs.API, "UPDATE bank_entries SET amount_minor = 1"),
        (ActAs.WORKER, "UPDATE bank_entries SET amount_minor = 1"),
        (ActAs.WORKER, "DELETE FROM bank_entries"),
        (ActAs.API, "UPDATE bank_statements SET content = 'x'"),
        (ActAs.WORKER, "UPDATE bank_statements SET content = 'x'"),
    ):
        with pytest.raises(DBAPIError) as refusal, acting(healthy, role) as tx:
            tx.execute(attempt)
        assert getattr(refusal.value.orig, "sqlstate", None) == "42501", (role, attempt)


def test_a_worker_may_do_what_its_tasks_for_people_do(healthy: Healthy) -> None:
    now = utc_now()
    with acting(healthy, ActAs.WORKER) as tx:
        assert members.open_invitation(tx, new_id(), now=now) is None
        assert signups.open_signup(tx, new_id(), now=now) is None
        assert signups.forget(tx, now=now, limit=10) == 0
        assert sign_ins.forget(tx, now=now, limit=10) == 0
        assert not trials.give(tx, healthy_owner(tx, healthy), healthy.ids["card"])


@pytest.mark.parametrize(
    ("role", "attempt"),
    [
        (ActAs.API, "DELETE FROM sign_in_attempts"),
        (ActAs.API, "DELETE FROM trials"),
        (ActAs.API, "INSERT INTO trials SELECT * FROM trials"),
        (ActAs.API, "UPDATE signups SET password_hash = 'mine'"),
        (ActAs.WORKER, "UPDATE signups SET password_hash = 'mine'"),
        (ActAs.WORKER, "UPDATE invitations SET role = 'owner'"),
        (ActAs.WORKER, "UPDATE trials SET mailbox_digest = ''"),
    ],
)
def test_no_process_does_more_to_people_than_it_has_to(healthy: Healthy, role: ActAs, attempt: str) -> None:
    with pytest.raises(DBAPIError) as refusal, acting(healthy, role) as tx:
        tx.execute(attempt)
    assert getattr(refusal.value.orig, "sqlstate", None) == "42501"


def healthy_owner(tx: Tx, healthy: Healthy) -> str:
    email: str = tx.scalar("SELECT email FROM users WHERE account_id = %(card)s", **healthy.ids)
    return email


# --- whoever migrates ---------------------------------------------------------------------------------


@pytest.fixture
def owner(servers: Settings, worker_id: str) -> Iterator[tuple[Composed, str]]:
    """A login that owns an empty database and is no superuser: its name, and the database's URL."""
    name = f"{Path(os.environ['TEST_RUN_DIR']).name.replace('-', '_')}_{worker_id}_owner"
    server = make_url(str(servers.database_url)).set(drivername="postgresql")
    role, database = Composed([Identifier(name)]), Identifier(name)
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as superuser:
        superuser.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 'owner'").format(role))
        superuser.execute(SQL("CREATE DATABASE {} OWNER {}").format(database, role))
        url = make_url(str(servers.database_url)).set(username=name, password="owner", database=name)
        yield role, url.render_as_string(hide_password=False)
        superuser.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(database))
        superuser.execute(SQL("DROP ROLE {}").format(role))


def granted(servers: Settings, role: Composed, statement: str) -> None:
    url = make_url(str(servers.database_url)).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as superuser:
        superuser.execute(SQL(statement).format(role))


def test_an_owner_who_may_become_both_migrates_and_acts(
    template: str, servers: Settings, owner: tuple[Composed, str]
) -> None:
    role, url = owner
    granted(servers, role, "GRANT prepaid_api, prepaid_due, prepaid_worker TO {}")
    run.upgrade(url)
    for act_as in ActAs:
        database = Database(url, act_as=act_as)
        with database.transaction() as tx:
            assert tx.scalar("SELECT current_user") == act_as
        database.dispose()


def test_an_owner_who_may_make_roles_migrates_and_acts(
    template: str, servers: Settings, owner: tuple[Composed, str]
) -> None:
    role, url = owner
    granted(servers, role, "GRANT prepaid_api, prepaid_due, prepaid_worker TO {} WITH ADMIN OPTION")
    run.upgrade(url)
    database = Database(url, act_as=ActAs.WORKER)
    with database.transaction() as tx:
        assert tx.scalar("SELECT count(*) FROM accounts") == 1
    database.dispose()


def test_an_owner_who_may_neither_is_told_what_to_do(
    template: str, servers: Settings, owner: tuple[Composed, str]
) -> None:
    _, url = owner
    with pytest.raises(DBAPIError, match="once, as a superuser: CREATE ROLE prepaid_api NOLOGIN; GRANT prepaid_api TO"):
        run.upgrade(url)
