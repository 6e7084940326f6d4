"""Each migration goes up and down without a trace, keeps what there is, and takes its turn."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from shared.clock import monotonic
from shared.config import Settings
from shared.db import checks, plans
from shared.db.engine import Database
from shared.db.migrations import run
from shared.domain.account import SYSTEM_ACCOUNT_ID
from shared.domain.plan import SEED_PLANS
from tests.db.world import populate

REVISIONS = run.revisions()
STEPS = list(zip([None, *REVISIONS[:-1]], REVISIONS, strict=True))

# Everything that a migration can make, and how it is defined. What belongs to an extension is not ours.
SCHEMA = """
    SELECT 'column ' || attrelid::regclass || '.' || attname,
           concat_ws(' ', format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
                     pg_get_expr(adbin, adrelid))
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm') AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'relation ' || oid::regclass,
           concat_ws(' ', relkind, relpersistence, relrowsecurity, relforcerowsecurity, reloptions,
                     coalesce(relacl, acldefault('r', relowner)),
                     CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid) END)
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind <> 'i'
    UNION ALL
    SELECT 'constraint ' || conrelid::regclass || '.' || conname,
           concat_ws(' ', pg_get_constraintdef(oid), convalidated)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'index ' || indexrelid::regclass, concat_ws(' ', pg_get_indexdef(indexrelid), indisvalid)
    FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'trigger ' || tgrelid::regclass || '.' || tgname, concat_ws(' ', pg_get_triggerdef(oid), tgenabled)
    FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT 'function ' || p.oid::regprocedure, concat_ws(' ', pg_get_functiondef(p.oid), proacl)
    FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')
    UNION ALL
    SELECT 'policy ' || tablename || '.' || policyname, concat_ws(' ', permissive, roles, cmd, qual, with_check)
    FROM pg_policies WHERE schemaname = 'public'
    UNION ALL
    SELECT 'enum ' || t.typname, string_agg(enumlabel, ' ' ORDER BY enumsortorder)
    FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid GROUP BY t.typname
    """
OWN_TABLE = "alembic_version"


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection]:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        yield connection


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url, application_name="tests")
    yield database
    database.dispose()


def schema(url: str) -> dict[str, str]:
    with connected(url) as connection:
        rows = connection.execute(SCHEMA).fetchall()
    return {name: definition for name, definition in rows if OWN_TABLE not in name}


def contents(url: str) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    with connected(url) as connection:
        tables = [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        return {
            table: [row for (row,) in connection.execute(f"SELECT t::text FROM {table} t ORDER BY 1").fetchall()]
            for table in tables
        }


def revision(url: str) -> str | None:
    with opened(url) as database, database.connect() as connection:
        return run.current_revision(connection)


def test_from_nothing_to_the_newest_and_back_to_nothing(empty_url: str) -> None:
    assert revision(empty_url) is None
    nothing = schema(empty_url)
    assert nothing == {}

    run.upgrade(empty_url)
    assert revision(empty_url) == run.head_revision() == REVISIONS[-1]
    assert "column accounts.balance_credits" in schema(empty_url)

    run.downgrade(empty_url, "base")
    assert revision(empty_url) is None
    assert schema(empty_url) == nothing


@pytest.mark.parametrize(("before", "after"), STEPS)
def test_a_step_down_undoes_a_step_up(empty_url: str, before: str | None, after: str) -> None:
    if before is not None:
        run.upgrade(empty_url, before)
    below = schema(empty_url)
    run.upgrade(empty_url, after)
    above = schema(empty_url)
    assert above != below

    run.downgrade(empty_url, "-1")
    assert schema(empty_url) == below
    assert revision(empty_url) == before

    run.upgrade(empty_url, after)
    assert schema(empty_url) == above


def test_an_upgrade_of_what_is_newest_changes_nothing(scratch_url: str) -> None:
    before = schema(scratch_url)
    run.upgrade(scratch_url)
    assert schema(scratch_url) == before


def test_accounts_survive_a_step_down_and_up(scratch_url: str, settings: Settings) -> None:
    """All but the tables themselves, which the first migration makes and whose undoing takes them away.

    Money that went back is not known below the migration that brings refunds; the balances are the same.
    """
    with opened(scratch_url) as database, database.transaction() as tx:
        refunded = str(populate(tx, settings, with_statements=False)["refunded"])
        for plan in SEED_PLANS:  # a column of a later migration, which fills it as the catalogue does
            limits = {"slug": plan.slug, "limit": plan.requests_per_minute}
            tx.execute("UPDATE plans SET requests_per_minute = %(limit)s WHERE slug = %(slug)s", **limits)
    kept = contents(scratch_url)
    assert len(kept["accounts"]) > 10

    run.downgrade(scratch_url, REVISIONS[0])
    run.upgrade(scratch_url)

    now = contents(scratch_url)
    assert kept.pop("admission_secret") != now.pop("admission_secret"), "it is good for one transaction, so not kept"
    for table in ("events", "refunds"):
        assert (bool(kept.pop(table)), now.pop(table)) == (True, []), "a table of a later migration"
    for tables in (kept, now):
        tables["plans"] = [
            row.rpartition(",")[0] for row in tables["plans"]
        ]  # requests a minute: the catalogue's again
        for table in ("payments", "credit_transactions"):
            tables[table] = [row for row in tables[table] if refunded not in row]
    assert now == kept
    with opened(scratch_url) as database, database.transaction() as tx:
        assert checks.run_checks(tx, settings) == []


def test_a_step_down_from_statements_takes_unapplied_money_and_keeps_what_was_settled(
    scratch_url: str, settings: Settings
) -> None:
    with opened(scratch_url) as database, database.transaction() as tx:
        populate(tx, settings)
    run.downgrade(scratch_url, "0006")
    with connected(scratch_url) as connection:
        found = connection.execute(
            "SELECT external_payment_id FROM payments WHERE external_payment_id IN ('exact', 'unknown')"
        )
        assert found.fetchall() == [("exact",)]


def test_seeding_again_adds_nothing_and_keeps_what_was_changed(scratch_url: str) -> None:
    with opened(scratch_url) as database:
        with database.transaction() as tx:
            tx.execute("UPDATE plans SET price_minor = 99 WHERE slug = 'starter'")
            tx.execute("DELETE FROM plan_assigners WHERE plan_slug = 'starter'")
        before = contents(scratch_url)
        with database.transaction() as tx:
            assert plans.seed(tx, SEED_PLANS) == []
        assert contents(scratch_url) == before


def test_migrating_again_keeps_the_one_system_account(scratch_url: str) -> None:
    run.upgrade(scratch_url)
    with opened(scratch_url) as database, database.transaction() as tx:
        (system,) = tx.rows("SELECT id, balance_credits FROM accounts WHERE kind = 'system'")
    assert (system.id, system.balance_credits) == (SYSTEM_ACCOUNT_ID, 0)


def test_a_migration_that_fails_leaves_nothing(empty_url: str) -> None:
    with connected(empty_url) as connection:
        connection.execute("CREATE TABLE operations (mine text)")  # stands in the way of the first migration
    before = schema(empty_url)

    with pytest.raises(DBAPIError, match="already exists"):
        run.upgrade(empty_url)

    assert schema(empty_url) == before
    assert revision(empty_url) is None


def test_two_upgrades_at_once_take_turns(empty_url: str) -> None:
    start = threading.Barrier(3)

    def upgrade() -> None:
        start.wait(timeout=10)
        run.upgrade(empty_url)

    with ThreadPoolExecutor() as pool:
        for upgrading in [pool.submit(upgrade) for _ in range(3)]:
            upgrading.result(timeout=60)
    assert revision(empty_url) == run.head_revision()


def test_an_upgrade_waits_for_the_one_that_runs(empty_url: str) -> None:
    with connected(empty_url) as running, ThreadPoolExecutor() as pool:
        running.execute("SELECT pg_advisory_lock(%s)", [run.MIGRATION_LOCK])
        upgrading = pool.submit(run.upgrade, empty_url)
        waits_for_lock = """
            SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database AND d.datname = current_database()
            WHERE locktype = 'advisory' AND NOT granted
            """
        deadline = monotonic() + 10
        while running.execute(waits_for_lock).fetchone() == (0,):
            assert monotonic() < deadline, "the upgrade did not wait"
        assert revision(empty_url) is None

        running.execute("SELECT pg_advisory_unlock(%s)", [run.MIGRATION_LOCK])
        upgrading.result(timeout=60)
    assert revision(empty_url) == run.head_revision()


def test_revisions_are_one_line_in_the_order_of_their_names() -> None:
    assert sorted(set(REVISIONS)) == REVISIONS
