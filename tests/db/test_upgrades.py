"""Upgrades without downtime: a step is one that the release before can live with, and what a step down loses is listed.

While a release is brought in, processes of the one before still run on the schema that the migration has left. So a
step adds and does not take away, until no release that still runs uses what is taken (CONTRIBUTING.md, "Migrate").
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import Engine, event

from api.app import create_app
from shared.clock import utc_now
from shared.config import PROJECT_DIR, Settings
from shared.db import checks
from shared.db.migrations import run
from tests.db.test_migrations import REVISIONS, STEPS, connected, opened
from tests.db.world import populate
from tests.factories import cases
from tests.office import Office

Row = dict[str, Any]
Rows = dict[str, list[Row]]

# Steps up to this one were made before there was anything to upgrade: to be raised until the first release, not after.
UNBOUND = "0010"
BOUND = [(before, after) for before, after in STEPS if after > UNBOUND]

CONTRACT_STEP = re.compile(r"Contract step: .+ unused since (\d+\.\d+\.\d+)\.")

# What the code of the release before may stumble over, as PostgreSQL spells it.
CONTRACTING = {
    "drops a table, a view or a sequence": r"\bDROP\s+(TABLE|VIEW|MATERIALIZED\s+VIEW|SEQUENCE)\b",
    "drops a column": r"\bDROP\s+(COLUMN\s+)(?!IF\s+NOT)|\bALTER\s+TABLE\s+\S+\s+DROP\s+(?!CONSTRAINT|COLUMN)\w",
    "drops a function": r"\bDROP\s+(FUNCTION|PROCEDURE|ROUTINE)\b",
    "drops a type": r"\bDROP\s+(TYPE|DOMAIN)\b",
    "renames": r"\bRENAME\b",
    "requires a value": r"\bSET\s+NOT\s+NULL\b",
    "adds a required column without a default": (
        r"\bADD\s+COLUMN\s+(?:(?!\bDEFAULT\b|\bGENERATED\b|\bADD\b|;).)*?\bNOT\s+NULL\b"
        r"(?!(?:(?!\bADD\b|;|,\s*$).)*\b(DEFAULT|GENERATED)\b)"
    ),
    "takes a default away": r"\bDROP\s+DEFAULT\b",
    "changes a type": r"\bALTER\s+(COLUMN\s+)?\w+\s+(SET\s+DATA\s+)?TYPE\b",
    "empties a table": r"\bTRUNCATE\b",
}


def contracting(sql: str) -> list[str]:
    """What of an upgrade's SQL the release before may stumble over."""
    bare = re.sub(r"--[^\n]*|/\*.*?\*/", "", sql, flags=re.DOTALL)
    return [what for what, pattern in CONTRACTING.items() if re.search(pattern, bare, re.IGNORECASE | re.DOTALL)]


def contract_release(docstring: str | None) -> str | None:
    """The release since which nothing uses what a contract step takes away; None if it declares to be no such step."""
    declared = CONTRACT_STEP.search(" ".join((docstring or "").split()))
    return None if declared is None else declared[1]


def docstring_of(revision: str) -> str | None:
    (path,) = (Path(run.__file__).parent / "versions").glob(f"{revision}_*.py")
    return import_module(f"shared.db.migrations.versions.{path.stem}").__doc__


def releases() -> set[str]:
    return set(re.findall(r"^## (\d+\.\d+\.\d+)", (PROJECT_DIR / "CHANGELOG.md").read_text(), flags=re.MULTILINE))


@contextmanager
def statements() -> Iterator[list[str]]:
    """Whatever SQL is sent to a database meanwhile."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def rows(connection: psycopg.Connection) -> Rows:
    """Every row of every table but alembic's."""
    tables = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1"
    ).fetchall()
    return {
        name: [row for (row,) in connection.execute(f"SELECT to_jsonb(t) FROM {name} t").fetchall()]
        for (name,) in tables
    }


# --- an upgrade only adds ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "found"),
    cases(
        {
            "a table": ("CREATE TABLE a (b integer NOT NULL)", []),
            "a column": ("ALTER TABLE a ADD COLUMN b integer", []),
            "a required column with a default": (
                "ALTER TABLE a ADD COLUMN b integer NOT NULL DEFAULT 3, ADD c text",
                [],
            ),
            "a default, said first": ("ALTER TABLE a ADD COLUMN b integer DEFAULT 3 NOT NULL", []),
            "a generated column": (
                "ALTER TABLE a ADD COLUMN b boolean NOT NULL GENERATED ALWAYS AS (c = 0) STORED",
                [],
            ),
            "a constraint that goes": ("ALTER TABLE a DROP CONSTRAINT b", []),
            "an index that goes": ("DROP INDEX b", []),
            "what a comment says": ("CREATE INDEX b ON a (c) -- before we DROP TABLE a\n", []),
            "a table that goes": ("DROP TABLE a", ["drops a table, a view or a sequence"]),
            "a column that goes": ("ALTER TABLE a\n  DROP COLUMN b", ["drops a column"]),
            "a column that goes, in short": ("ALTER TABLE a DROP b", ["drops a column"]),
            "a function that goes": ("drop function a(uuid)", ["drops a function"]),
            "a domain that goes": ("DROP DOMAIN a", ["drops a type"]),
            "a column by another name": ("ALTER TABLE a RENAME COLUMN b TO c", ["renames"]),
            "a table by another name": ("ALTER TABLE a RENAME TO b", ["renames"]),
            "a column that becomes required": ("ALTER TABLE a ALTER b SET NOT NULL", ["requires a value"]),
            "a required column": (
                "ALTER TABLE a ADD COLUMN b integer NOT NULL",
                ["adds a required column without a default"],
            ),
            "a required column among others": (
                "ALTER TABLE a ADD COLUMN b integer NOT NULL, ADD COLUMN c integer NOT NULL DEFAULT 3",
                ["adds a required column without a default"],
            ),
            "another type": ("ALTER TABLE a ALTER COLUMN b TYPE bigint", ["changes a type"]),
            "another type, in full": ("ALTER TABLE a ALTER b SET DATA TYPE bigint", ["changes a type"]),
            "a default that goes": ("ALTER TABLE a ALTER b DROP DEFAULT", ["takes a default away"]),
            "all rows that go": ("TRUNCATE a", ["empties a table"]),
        }
    ),
)
def test_what_the_release_before_may_stumble_over_is_recognised(sql: str, found: list[str]) -> None:
    assert contracting(sql) == found


@pytest.mark.parametrize(
    ("docstring", "release"),
    [
        ("Add a table.", None),
        ("Drop the column.\n\nContract step: accounts.b is unused since 1.4.0.\n", "1.4.0"),
        ("Drop it.\n\nContract step: the function consume_credits\nis unused since 2.0.1.", "2.0.1"),
        ("Contract step: nobody needs it any more.", None),
        (None, None),
    ],
)
def test_a_contract_step_names_the_release_that_stopped_using_it(docstring: str | None, release: str | None) -> None:
    assert contract_release(docstring) == release


@pytest.mark.parametrize(("before", "after"), BOUND)
def test_an_upgrade_takes_nothing_away_unless_it_says_since_when_that_is_unused(
    empty_url: str, before: str, after: str
) -> None:
    release = contract_release(docstring_of(after))
    if release is not None:
        assert release in releases(), "a release that was made"
        return
    run.upgrade(empty_url, before)
    with statements() as sent:
        run.upgrade(empty_url, after)
    assert len(sent) > 3
    assert {what: sql for sql in sent for what in contracting(sql)} == {}


# Columns and functions as code that does not know the next release meets them.
INTERFACE = """
    SELECT 'column ' || c.relname || '.' || a.attname,
           jsonb_build_object(
               'type', CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod)
                            ELSE format_type(a.atttypid, a.atttypmod) END,
               'required', (a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''))
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND a.attnum > 0
      AND NOT a.attisdropped AND c.relname <> 'alembic_version'
    UNION ALL
    SELECT 'function ' || p.oid::regprocedure,
           jsonb_build_object('answers', pg_get_function_result(p.oid), 'arguments', pg_get_function_arguments(p.oid))
    FROM pg_proc p WHERE pronamespace = 'public'::regnamespace AND prorettype <> 'trigger'::regtype
      AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')
    UNION ALL
    SELECT 'may ' || r.rolname || ' ' || privilege || ' ' || c.relname, '{}'
    FROM pg_class c, pg_roles r, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v')
      AND r.rolname IN ('prepaid_api', 'prepaid_worker') AND has_table_privilege(r.oid, c.oid, privilege)
    """


@pytest.mark.parametrize(("before", "after"), BOUND)
def test_what_the_release_before_reads_writes_and_calls_is_there_after_a_step(
    empty_url: str, before: str, after: str
) -> None:
    if contract_release(docstring_of(after)) is not None:
        return
    run.upgrade(empty_url, before)
    with connected(empty_url) as connection:
        was = dict(connection.execute(INTERFACE).fetchall())
        run.upgrade(empty_url, after)
        now = dict(connection.execute(INTERFACE).fetchall())
    assert len(was) > 100
    assert {name: (fact, now.get(name)) for name, fact in was.items() if now.get(name) != fact} == {}
    tables = {name.removeprefix("column ").partition(".")[0] for name in was if name.startswith("column ")}
    added = {name: fact for name, fact in now.items() if name not in was and name.startswith("column ")}
    assert [
        name
        for name, fact in added.items()
        if fact["required"] and name.removeprefix("column ").partition(".")[0] in tables
    ] == []


WRITABLE = """
    SELECT a.attname FROM pg_attribute a WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
      AND a.attgenerated = '' ORDER BY a.attnum
    """


@pytest.mark.parametrize(("before", "after"), BOUND)
def test_rows_as_the_release_before_writes_them_are_taken_after_a_step(
    scratch_url: str, settings: Settings, before: str, after: str
) -> None:
    if contract_release(docstring_of(after)) is not None:
        return
    with opened(scratch_url) as database, database.transaction() as tx:
        populate(tx, settings)
    run.downgrade(scratch_url, before)
    with connected(scratch_url) as connection:
        known = {
            table: [name for (name,) in connection.execute(WRITABLE, [table]).fetchall()] for table in rows(connection)
        }
        written = rows(connection)
        run.upgrade(scratch_url, after)
        with connection.transaction(force_rollback=True):
            # Nothing refers to anything meanwhile; what a row itself must be is still asked.
            connection.execute("SET LOCAL session_replication_role = replica")
            for table, columns in known.items():
                connection.execute(SQL("DELETE FROM {}").format(Identifier(table)))
                sql = SQL(
                    "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE "
                    "SELECT {columns} FROM jsonb_populate_recordset(NULL::{table}, %s::jsonb)"
                ).format(table=Identifier(table), columns=SQL(", ").join(map(Identifier, columns)))
                connection.execute(sql, [msgspec.json.encode(written[table]).decode()])
            again = rows(connection)
    for table, columns in known.items():
        assert in_order(written[table], columns) == in_order(again[table], columns)


def in_order(found: list[Row], columns: list[str]) -> list[str]:
    """Rows as text, with these columns alone."""
    return sorted(str({name: row[name] for name in columns}) for row in found)


# --- a release on a schema that is newer than itself ------------------------------------------

NEXT = "9999"


@pytest.fixture
def newer(scratch_url: str) -> str:
    """A database as the next release leaves it: every table has columns that this one does not know, and one is new."""
    with connected(scratch_url) as connection, connection.transaction():
        for table in rows(connection):
            connection.execute(
                f"ALTER TABLE {table} ADD COLUMN next_note text, ADD COLUMN next_mark integer NOT NULL DEFAULT 7"
            )
        connection.execute("CREATE TABLE next_things (id uuid PRIMARY KEY, account_id uuid REFERENCES accounts (id))")
        connection.execute("ALTER TABLE next_things ENABLE ROW LEVEL SECURITY")
        connection.execute("UPDATE alembic_version SET version_num = %s", [NEXT])
    return scratch_url


def test_this_release_goes_on_with_a_schema_of_the_next(newer: str, settings: Settings) -> None:
    settings = settings.model_copy(update={"database_url": newer})
    with opened(newer) as database:
        with database.transaction() as tx:
            assert len(populate(tx, settings)) > 10, "every kind of operation"
        office = Office(database, settings, now=utc_now())
        who = office.sign_up()
        office.consume(who, 30, "call")
        assert office.balance(who).balance_credits == 1_970
        office.buy(who)
        assert office.tick(office.now + timedelta(days=40)) > 0
        assert office.findings() == []


def test_the_api_of_this_release_is_ready_and_answers_on_a_schema_of_the_next(newer: str, settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"database_url": newer}))
    client = app.test_client()
    ready = client.get("/readyz")
    assert (ready.status_code, ready.get_json()["parts"]["migrations"]) == (200, "ok")
    assert NEXT in ready.get_json()["degraded"]["release"]
    body = {"account_name": "Ada", "email": "ada@example.com", "password": "correct horse battery"}
    accepted = client.post("/api/v1/signup", json=body)
    assert accepted.status_code == 202, accepted.text
    polled = client.get(accepted.headers["Location"], headers={"X-Poll-Token": accepted.get_json()["poll_token"]})
    assert polled.status_code == 200, polled.text
    assert client.get("/api/v1/plans").status_code == 200
    app.extensions["billing"].database.dispose()


# --- a step down ------------------------------------------------------------------------------

# What a step down loses of a database that has everything, and brings back to what it was before there was such a
# thing when it goes up again. `rows` go, `columns` are as the step makes them, all else is as it was.
LOSES: dict[str, dict[str, Any]] = {
    "0010": {"columns": {"admission_secret": {"secret"}}},  # another one is made; nothing that it signed lasts
    "0009": {
        "rows": {
            "invitations": "who was invited",
            "signups": "signups that wait for their address to be confirmed",
            "sign_in_attempts": "who has to wait after failed sign-ins",
        },
        "columns": {"api_keys": {"replaced_by"}},
    },
    "0008": {"columns": {"plans": {"requests_per_minute"}}},
    "0007": {
        "rows": {
            "bank_entries": "statements",
            "bank_statements": "statements",
            "provider_events": "webhooks",
            "checkouts": "payments that are being made",
            "provider_customers": "saved cards",
            "refunds": "money that went back",
            "payments": "money that settles nothing",
            "events": "what happened to such money",
        },
        "columns": {
            "accounts": {"saved_payment_method"},
            "sandbox_payments": {"saves_card"},
            "credit_transactions": {"kind", "reverses_seq"},
            "payments": {
                "applied_at",
                "override_reason",
                "bank_entry_id",
                "operation_id",
                "refunded_minor",
                "attempt",
                "customer_ref",
                "payment_method_ref",
                "decline_code",
            },
        },
    },
    "0004": {"rows": {"events": "what happened to accounts"}},
}

# What `check` says afterwards, and of how many rows: an operation imported a statement that is gone, and money of that
# statement counts as applied when it came.
AFTERWARDS = {"operation_result_exists": 1, "payment_matches_its_invoice": 1}

# A row for each table that the healthy world leaves empty.
FURTHER = """
INSERT INTO sessions (id, audience, user_id, created_at, expires_at)
    SELECT gen_random_uuid(), 'customer', id, now(), now() + interval '1 day' FROM users LIMIT 1;
INSERT INTO refresh_tokens (id, session_id, expires_at) SELECT gen_random_uuid(), id, expires_at FROM sessions;
INSERT INTO invitations (id, account_id, email, role, invited_by, created_at, expires_at)
    SELECT gen_random_uuid(), account_id, 'new@example.com', 'viewer', id, now(), now() + interval '1 day'
    FROM users LIMIT 1;
INSERT INTO signups (id, account_name, email, password_hash, time_zone, created_at, expires_at)
    VALUES (gen_random_uuid(), 'Eve', 'eve@example.com', 'hash', 'UTC', now(), now() + interval '1 day');
INSERT INTO sign_in_attempts (who, network, failures, failed_at, expires_at)
    VALUES ('who', '127.0.0.1', 3, now(), now() + interval '1 day');
INSERT INTO provider_customers (account_id, provider, customer_ref) SELECT id, 'stripe', id::text FROM accounts LIMIT 1;
INSERT INTO checkouts (provider, external_payment_id, account_id, invoice_id, saves_method, next_ask_at)
    SELECT 'stripe', 'pi_1', account_id, id, true, now() FROM invoices LIMIT 1;
INSERT INTO provider_events (provider, event_id, type, occurred_at, ignored)
    VALUES ('stripe', 'evt_1', 'payment_intent.succeeded', now(), 'not ours');
INSERT INTO sandbox_payments (external_payment_id, account_id, invoice_id, succeeded, amount_minor, currency,
                              saves_card)
    SELECT 'card_1', account_id, id, true, amount_minor, currency, 'good' FROM invoices LIMIT 1;
INSERT INTO job_runs (job, started_at, finished_at, duration_ms, items) VALUES ('expire-trials', now(), now(), 3, 1);
UPDATE accounts SET saved_payment_method = 'stripe' WHERE id = (SELECT account_id FROM provider_customers);
UPDATE payments SET override_reason = 'close enough' WHERE external_payment_id = 'exact';
UPDATE payments SET attempt = 1, customer_ref = 'cus_1', payment_method_ref = 'pm_1', decline_code = 'expired_card'
    WHERE id = (SELECT max(id::text)::uuid FROM payments WHERE provider = 'sandbox' AND status = 'succeeded');
UPDATE plans SET requests_per_minute = 77;
INSERT INTO api_keys (id, account_id, name, prefix, key_hash, scopes, created_by, created_at, expires_at, replaced_by)
    SELECT gen_random_uuid(), account_id, 'Old', 'bk_11111111', 'other', scopes, created_by, created_at, now(), id
    FROM api_keys LIMIT 1;
"""


def test_of_a_database_with_everything_each_step_down_and_up_keeps_all_but_what_is_listed(
    scratch_url: str, settings: Settings
) -> None:
    with opened(scratch_url) as database, database.transaction() as tx:
        populate(tx, settings)
    with connected(scratch_url) as connection:
        connection.execute(FURTHER)
        keys = dict(connection.execute(KEY).fetchall())
        before = rows(connection)
        assert [table for table, found in before.items() if not found] == [], "a table without a row shows nothing"
        for revision in reversed(REVISIONS[1:]):
            was = rows(connection)
            run.downgrade(scratch_url, "-1")
            run.upgrade(scratch_url, "+1")
            now = rows(connection)
            assert (revision, lost(keys, was, now)) == (revision, set(LOSES.get(revision, {}).get("rows", {})))
            assert (revision, changed(keys, was, now)) == (revision, LOSES.get(revision, {}).get("columns", {}))
            run.downgrade(scratch_url, "-1")
        assert rows(connection)["credit_transactions"]
        run.upgrade(scratch_url)
        after = rows(connection)
    kept = {table for table in before if not any(table in loss.get("rows", {}) for loss in LOSES.values())}
    assert {table for table in kept if len(before[table]) == len(after[table])} == kept
    balances = {row["id"]: row["balance_credits"] for row in before["accounts"]}
    assert {row["id"]: row["balance_credits"] for row in after["accounts"]} == balances
    with opened(scratch_url) as database, database.transaction() as tx:
        assert {finding.check: finding.found for finding in checks.run_checks(tx, settings)} == AFTERWARDS


KEY = """
    SELECT c.relname, array_agg(a.attname) FROM pg_index i
    JOIN pg_class c ON c.oid = i.indrelid AND c.relnamespace = 'public'::regnamespace
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indisprimary GROUP BY c.relname
    """


def by_key(found: list[Row], key: list[str]) -> dict[str, Row]:
    """Rows by what tells them from the others of their table, for as long as they are there."""
    return {str([row[name] for name in key]): row for row in found}


def lost(keys: dict[str, list[str]], was: Rows, now: Rows) -> set[str]:
    """Tables that lack rows; none may have more."""
    assert now.keys() == was.keys()
    before = {table: by_key(found, keys[table]).keys() for table, found in was.items()}
    after = {table: by_key(found, keys[table]).keys() for table, found in now.items()}
    assert [table for table in before if not after[table] <= before[table]] == []
    return {table for table in before if before[table] != after[table]}


def changed(keys: dict[str, list[str]], was: Rows, now: Rows) -> dict[str, set[str]]:
    """Columns whose value is another one, in rows that are still there."""
    found: dict[str, set[str]] = {}
    for table, rows_now in now.items():
        before, after = by_key(was[table], keys[table]), by_key(rows_now, keys[table])
        for key, row in after.items():
            if differing := {name for name in row if row[name] != before[key][name]}:
                found.setdefault(table, set()).update(differing)
    return found
