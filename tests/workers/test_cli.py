"""The operator's command line: what each command does, says and refuses, and with which exit status."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from typer.testing import CliRunner

from shared import __version__, security
from shared.clock import utc_now
from shared.config import PROJECT_DIR, Settings
from shared.db import account_state, credits, operations
from shared.db.checks import CHECKS
from shared.db.engine import Database, Tx
from shared.db.migrations import run as migrations
from shared.db.plans import load_rules
from shared.domain.operation import OperationKind, PrincipalKind
from shared.domain.plan import SEED_PLANS
from shared.embedded import Postgres, Valkey
from shared.ids import new_id
from shared.messages import Job
from tests.db.world import Customer, World, populate
from tests.workers.conftest import Run, is_one_line, runner_for
from workers.cli import admins as admin_commands
from workers.cli import app

PASSWORD = "correct horse battery"


@pytest.fixture
def customer(database: Database, settings: Settings) -> Customer:
    """An account on the wall clock, in its trial."""
    with database.transaction() as tx:
        return World(tx, settings).sign_up(at=None)


def process(settings: Settings, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "workers", *arguments],
        cwd=PROJECT_DIR,
        env={**os.environ, **settings.as_environment(), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err


def kill_operation(tx: Tx) -> UUID:
    """An operation that kept failing."""
    operation_id, now = new_id(), utc_now()
    operations.accept(
        tx,
        operation_id=operation_id,
        kind=OperationKind.SIGN_UP,
        payload={"email": "ada@example.com", "password_hash": "very secret"},
        payload_version=1,
        account_id=None,
        principal_kind=PrincipalKind.ANONYMOUS,
        principal_id=None,
        idempotency_scope=None,
        idempotency_key=None,
        request_hash=b"hash",
        first_send_after=timedelta(),
        now=now,
    )
    operations.postpone(
        tx, operation_id, attempts=5, max_attempts=5, error="KeyError('x')", base=timedelta(seconds=30), now=now
    )
    return operation_id


# --- in general ---------------------------------------------------------------------------------


COMMANDS = [
    *(["up"], ["demo"], ["relay"], ["run"], ["state"], ["check"], ["explain"]),
    *(["migrate"], ["rollback"], ["seed-plans"], ["create-free-trial-plan"], ["create-admin"]),
    ["backup"],
    ["restore"],
    *(["operations", name] for name in ("list", "show", "retry")),
    *(["accounts", name] for name in ("show", "unpark", "refresh")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 5


def test_the_help_lists_every_command() -> None:
    listed = set(re.findall(r"^│ (\w[a-z-]+) {2,}\S", CliRunner().invoke(app, ["--help"]).stdout, flags=re.MULTILINE))
    assert listed == {command[0] for command in COMMANDS}


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert CliRunner().invoke(app, ["--version"]).stdout == f"prepaid {__version__}\n"


NEED_SCHEMA = [
    ["state"],
    ["check"],
    ["seed-plans"],
    ["create-free-trial-plan"],
    ["operations", "list"],
    ["accounts", "refresh", "--all"],
    ["run", "release-holds"],
]


@pytest.mark.parametrize("command", NEED_SCHEMA, ids=" ".join)
def test_a_database_without_tables_is_told_in_one_line(run_on_empty: Run, command: list[str]) -> None:
    result = run_on_empty(*command)
    assert result.exit_code == 2
    assert is_one_line(result)
    assert "run `python -m workers migrate`" in result.stderr


@pytest.mark.parametrize(
    ("revision", "advice"),
    [
        pytest.param("0001", "run `python -m workers migrate`", id="an older schema"),
        pytest.param("9999", "run a newer release", id="a newer schema"),
    ],
)
def test_a_schema_of_another_release_is_refused(
    monkeypatch: pytest.MonkeyPatch, scratch_url: str, revision: str, advice: str
) -> None:
    database = Database(scratch_url)
    with database.transaction() as tx:
        tx.execute("UPDATE alembic_version SET version_num = %(revision)s", revision=revision)
    database.dispose()
    result = runner_for(monkeypatch, scratch_url, "redis://unused")("state")
    assert result.exit_code == 2
    assert is_one_line(result)
    assert f"is at {revision}" in result.stderr
    assert advice in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        pytest.param(
            "DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/x", "see DATABASE_URL", id="nobody listens there"
        ),
        pytest.param("DATABASE_URL", "postgresql://127.0.0.1:port/x", "looks like postgresql://", id="no URL at all"),
        pytest.param("DATABASE_URL", "mysql://127.0.0.1/x", "DATABASE_URL must be a PostgreSQL URL", id="another kind"),
        pytest.param("ENVIRONMENT", "production", "set SECRET_KEY", id="production without a secret"),
        pytest.param("BATCH_SIZE", "many", "BATCH_SIZE: ", id="a setting that is no number"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    result = run("state")
    assert result.exit_code == 2
    assert is_one_line(result)
    assert told in result.stderr
    assert "secret@" not in result.stderr


@pytest.mark.parametrize("command", ["up", "demo"])
def test_nothing_is_tried_out_in_production(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("SECRET_KEY", "s" * 32)
    monkeypatch.setenv("SELLER_NAME", "Ada Ltd")
    monkeypatch.setenv("SELLER_ADDRESS", "12 St James's Square|London")
    monkeypatch.setenv("SELLER_IBAN", "GB29NWBK60161331926819")
    result = run(command)
    assert result.exit_code == 2
    assert is_one_line(result)
    assert "never runs with ENVIRONMENT=production" in result.stderr


def test_a_role_that_may_not_read_is_told_so(run: Run, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    database = Database(str(settings.database_url))
    with database.transaction() as tx:
        tx.execute("CREATE ROLE stranger LOGIN")
    try:
        stranger = re.sub(r"://[^/]*?@", "://stranger@", str(settings.database_url))
        monkeypatch.setenv("DATABASE_URL", stranger)
        result = run("state")
    finally:
        with database.transaction() as tx:
            tx.execute("DROP ROLE stranger")
        database.dispose()
    assert result.exit_code == 2
    assert is_one_line(result)
    assert "permission denied" in result.stderr


# --- schema, plans and admins -------------------------------------------------------------------


def test_migrate_brings_an_empty_database_up_and_rollback_takes_it_back(run_on_empty: Run) -> None:
    head, previous = migrations.revisions()[-1], migrations.revisions()[-2]
    assert run_on_empty("migrate").stdout == f"the database is at {head} (was empty)\n"
    assert run_on_empty("migrate").stdout == f"the database is at {head}\n"

    assert run_on_empty("rollback", "--yes").stdout == f"the database is at {previous} (was {head})\n"
    assert run_on_empty("rollback", "--yes", "--to", "base").stdout.startswith("the database is at base")
    nothing_left = run_on_empty("rollback", "--yes")
    assert nothing_left.exit_code == 2
    assert is_one_line(nothing_left)


def test_rollback_asks_first(run_on_empty: Run) -> None:
    run_on_empty("migrate")
    refused = run_on_empty("rollback", stdin="n\n")
    assert refused.exit_code == 1
    assert "Data may be lost" in refused.stdout
    assert "(was" not in run_on_empty("migrate").stdout

    assert run_on_empty("rollback", stdin="y\n").exit_code == 0
    assert "(was" in run_on_empty("migrate").stdout


def test_rollback_to_what_does_not_exist_names_what_does(run_on_empty: Run) -> None:
    run_on_empty("migrate")
    result = run_on_empty("rollback", "--yes", "--to", "nowhere")
    assert result.exit_code == 2
    assert is_one_line(result)
    assert ", ".join(migrations.revisions()) in result.stderr


def test_seed_plans_adds_what_is_missing(run_on_empty: Run) -> None:
    run_on_empty("migrate")
    assert run_on_empty("create-free-trial-plan").stdout == "added: free-trial\n"
    assert run_on_empty("create-free-trial-plan").stdout == "added: nothing\nthere already: free-trial\n"

    others = ", ".join(plan.slug for plan in SEED_PLANS if plan.slug != "free-trial")
    assert run_on_empty("seed-plans").stdout == f"added: {others}\nthere already: free-trial\n"
    assert run_on_empty("seed-plans").stdout.startswith("added: nothing\n")


def test_create_admin_takes_the_password_from_standard_input(run: Run, database: Database) -> None:
    result = run("create-admin", "--email", "Root@Example.com", "--password-stdin", stdin=f"{PASSWORD}\n")
    assert result.exit_code == 0
    with database.transaction() as tx:
        admin = tx.one("SELECT id, email, password_hash FROM admins")
        audited = tx.one("SELECT actor_kind, subject_id FROM audit_log WHERE action = 'admin.created'")
    assert admin.email == "root@example.com"
    assert security.verify_password(Settings(), admin.password_hash, PASSWORD)
    assert (audited.actor_kind, audited.subject_id) == ("system", admin.id)
    assert PASSWORD not in result.output


def test_create_admin_asks_for_what_is_not_stated(
    run: Run, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_commands, "at_terminal", lambda: True)
    result = run("create-admin", stdin=f"root@example.com\n{PASSWORD}\nmistyped\n{PASSWORD}\n{PASSWORD}\n")
    assert result.exit_code == 0
    with database.transaction() as tx:
        assert security.verify_password(Settings(), tx.scalar("SELECT password_hash FROM admins"), PASSWORD)
    assert PASSWORD not in result.output


@pytest.mark.parametrize(
    ("arguments", "stdin", "told"),
    [
        pytest.param(["--email", "root@example.com", "--password-stdin"], "short\n", "10 to 256", id="short password"),
        pytest.param(["--email", "root@example.com", "--password-stdin"], "", "10 to 256", id="no password"),
        pytest.param(["--email", "root@example.com", "--password-stdin"], "Password123!", "tried first", id="common"),
        pytest.param(["--email", "root", "--password-stdin"], PASSWORD, "no email address", id="no address"),
        pytest.param(["--email", "root@example.com"], PASSWORD, "--password-stdin", id="nobody to ask"),
    ],
)
def test_create_admin_refuses(run: Run, database: Database, arguments: list[str], stdin: str, told: str) -> None:
    result = run("create-admin", *arguments, stdin=stdin)
    assert result.exit_code == 2
    assert is_one_line(result)
    assert told in result.stderr
    with database.transaction() as tx:
        assert tx.scalar("SELECT count(*) FROM admins") == 0


def test_create_admin_refuses_a_second_one_with_the_address(run: Run) -> None:
    arguments = ("create-admin", "--email", "root@example.com", "--password-stdin")
    run(*arguments, stdin=PASSWORD)
    result = run(*arguments, stdin=PASSWORD)
    assert result.exit_code == 2
    assert is_one_line(result)


def test_a_password_is_never_an_argument(run: Run) -> None:
    assert run("create-admin", "--email", "root@example.com", "--password", PASSWORD).exit_code == 2


# --- state and check ----------------------------------------------------------------------------


def test_state_counts_everything(run: Run, database: Database, settings: Settings) -> None:
    with database.transaction() as tx:
        populate(tx, settings)
    document = json.loads(run("state", "--json").stdout)

    with database.transaction() as tx:
        for section, table, count in [
            ("accounts", "accounts WHERE kind = 'customer'", "accounts"),
            ("subscriptions", "subscriptions", "subscriptions"),
            ("invoices", "invoices", "invoices"),
            ("payments", "payments", "payments"),
            ("bank_transfers", "bank_transfers", "bank_transfers"),
            ("operations", "operations", "operations"),
        ]:
            assert sum(row[count] for row in document[section]) == tx.scalar(f"SELECT count(*) FROM {table}") > 0
    assert document["revision"] == migrations.head_revision()
    assert {row["plan"] for row in document["plans"]} == {plan.slug for plan in SEED_PLANS}
    (enterprise,) = [row for row in document["plans"] if row["plan"] == "enterprise"]
    assert (enterprise["assignable_by"], enterprise["live_subscriptions"]) == ("admin", 1)
    assert {row["job"] for row in document["overdue"]} == {str(job) for job in Job} - {str(Job.RELAY_OPERATIONS)}


def test_state_tells_what_is_late(run: Run, database: Database, settings: Settings) -> None:
    now = utc_now()
    with database.transaction() as tx:
        late = World(tx, settings, now=now - timedelta(days=20)).sign_up(at=None)
        World(tx, settings, now=now - timedelta(hours=2)).sign_up(at=None)
        parked = World(tx, settings, now=now - timedelta(days=30)).sign_up(at=None)
        account_state.park(tx, parked.account_id, at=now, reason="odd")
        kill_operation(tx)
        tx.execute(
            """
            UPDATE operations SET status = 'pending', result = NULL, finished_at = NULL, next_send_at = created_at
            WHERE account_id = %(id)s
            """,
            id=late.account_id,
        )
    document = json.loads(run("state", "--json").stdout)

    overdue = {row["job"]: row for row in document["overdue"]}
    due = {job: row["due"] for job, row in overdue.items() if row["due"]}
    assert due == {"expire-trials": 1}
    assert 6 * 86_400 <= overdue["expire-trials"]["late_seconds"] < 7 * 86_400
    (waiting,) = document["backlog"]
    assert (waiting["pending"], waiting["to_be_sent"], waiting["dead"]) == (1, 1, 1)
    assert 20 * 86_400 <= waiting["oldest_pending_seconds"] < 21 * 86_400
    assert [row["account_id"] for row in document["parked"]] == [str(parked.account_id)]


def test_state_is_readable(run: Run, database: Database, settings: Settings) -> None:
    nothing = run("state").stdout
    assert "accounts: none" in nothing
    with database.transaction() as tx:
        populate(tx, settings)
    result = run("state")
    assert result.exit_code == 0
    for word in ("free-trial", "past_due", "bank transfers", "expire-trials", "confirm_payment"):
        assert word in result.stdout, word


def test_check_of_healthy_books_says_how_many_rules_hold(run: Run, database: Database, settings: Settings) -> None:
    with database.transaction() as tx:
        populate(tx, settings)
    result = run("check")
    assert (result.exit_code, result.stdout) == (0, f"all {len(CHECKS)} invariants hold\n")
    assert json.loads(run("check", "--json").stdout) == {
        "ok": True,
        "checks": len(CHECKS),
        "findings": [],
        "warnings": [],
    }


def test_check_of_broken_books_names_row_and_repair(run: Run, database: Database, customer: Customer) -> None:
    with database.transaction() as tx:
        tx.execute(
            "UPDATE accounts SET balance_credits = balance_credits + 7 WHERE id = %(id)s", id=customer.account_id
        )
    result = run("check")
    assert result.exit_code == 1
    assert "broken: balance_is_sum_of_ledger" in result.stdout
    assert str(customer.account_id) in result.stdout
    assert "repair: The ledger decides: UPDATE accounts SET balance_credits" in result.stdout
    assert f"2 of {len(CHECKS)} invariants are broken" in result.stdout

    machine = run("check", "--json")
    assert machine.exit_code == 1
    document = json.loads(machine.stdout)
    assert document["ok"] is False
    (finding,) = [finding for finding in document["findings"] if finding["check"] == "balance_is_sum_of_ledger"]
    assert finding["found"] == 1
    assert finding["rows"] == [
        {"account_id": str(customer.account_id), "balance_credits": 2_007, "ledger_credits": 2_000}
    ]


def test_what_waits_for_somebody_breaks_no_rule(run: Run, database: Database) -> None:
    with database.transaction() as tx:
        operation_id = kill_operation(tx)
    result = run("check")
    assert result.exit_code == 0
    assert "warning: operation_dead" in result.stdout
    assert str(operation_id) in result.stdout
    document = json.loads(run("check", "--json").stdout)
    assert document["ok"] is True
    assert [warning["check"] for warning in document["warnings"]] == ["operation_dead"]


# --- operations ---------------------------------------------------------------------------------


def test_operations_are_listed_newest_first(run: Run, database: Database, customer: Customer) -> None:
    with database.transaction() as tx:
        dead = kill_operation(tx)
    rows = json.loads(run("operations", "list", "--json").stdout)
    assert [row["status"] for row in rows] == ["dead", "succeeded"]
    assert rows[0]["id"] == str(dead)

    only_dead = json.loads(run("operations", "list", "--status", "dead", "--kind", "sign_up", "--json").stdout)
    assert [row["id"] for row in only_dead] == [str(dead)]
    assert json.loads(run("operations", "list", "--kind", "assign_plan", "--json").stdout) == []
    assert len(json.loads(run("operations", "list", "--limit", 1, "--json").stdout)) == 1
    assert str(dead) in run("operations", "list").stdout


def test_an_operation_is_shown_without_its_secrets(run: Run, database: Database) -> None:
    with database.transaction() as tx:
        operation_id = kill_operation(tx)
    for arguments in (["--json"], []):
        result = run("operations", "show", operation_id, *arguments)
        assert "ada@example.com" in result.stdout
        assert "KeyError" in result.stdout
        assert "very secret" not in result.stdout


def test_a_dead_operation_gets_all_its_attempts_again(run: Run, database: Database) -> None:
    with database.transaction() as tx:
        operation_id = kill_operation(tx)
    assert run("operations", "retry", operation_id).stdout == "1 operation will be sent again by the relay\n"

    with database.transaction() as tx:
        row = operations.get(tx, operation_id)
        audited = tx.one("SELECT subject_id FROM audit_log WHERE action = 'operation.retried'")
    assert (row.status, row.attempts, row.problem) == ("pending", 0, None)
    assert row.next_send_at <= utc_now()
    assert audited.subject_id == operation_id

    again = run("operations", "retry", operation_id)
    assert again.exit_code == 2
    assert "only a dead one can be retried" in again.stderr


def test_all_dead_operations_are_retried_at_once(run: Run, database: Database, customer: Customer) -> None:
    with database.transaction() as tx:
        for _ in range(3):
            kill_operation(tx)
    assert run("operations", "retry", "--all-dead").stdout == "3 operations will be sent again by the relay\n"
    assert run("operations", "retry", "--all-dead").stdout == "0 operations will be sent again by the relay\n"
    with database.transaction() as tx:
        rows = tx.rows("SELECT status, count(*) AS n FROM operations GROUP BY status")
    assert {row.status: row.n for row in rows} == {"pending": 3, "succeeded": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["operations", "retry"], id="retry nothing"),
        pytest.param(["operations", "retry", str(UUID(int=1)), "--all-dead"], id="retry one and all"),
        pytest.param(["operations", "retry", str(UUID(int=1))], id="retry an unknown one"),
        pytest.param(["operations", "show", str(UUID(int=1))], id="show an unknown one"),
        pytest.param(["accounts", "show", str(UUID(int=1))], id="show an unknown account"),
        pytest.param(["accounts", "show", "00000000-0000-7000-8000-000000000000"], id="show the system account"),
        pytest.param(["accounts", "show", "nobody@example.com"], id="show an unknown address"),
        pytest.param(["accounts", "show", "nonsense"], id="show nonsense"),
        pytest.param(["explain", str(UUID(int=1))], id="explain an unknown account"),
        pytest.param(["explain", "nobody@example.com", "--csv"], id="explain an unknown address"),
        pytest.param(["explain", "nonsense", "--json"], id="explain nonsense"),
        pytest.param(["accounts", "refresh"], id="refresh nothing"),
        pytest.param(["accounts", "refresh", "x", "--all"], id="refresh one and all"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert is_one_line(result)


# --- accounts -----------------------------------------------------------------------------------


def test_an_account_is_shown_by_id_and_by_address(run: Run, database: Database, customer: Customer) -> None:
    with database.transaction() as tx:
        email = tx.scalar("SELECT email FROM users WHERE id = %(id)s", id=customer.user_id)
    document = json.loads(run("accounts", "show", customer.account_id, "--json").stdout)
    assert document == json.loads(run("accounts", "show", email.upper(), "--json").stdout)
    assert document["account"]["owner"] == email
    assert document["credits"]["available_credits"] == 2_000
    assert document["subscription"]["plan"] == "free-trial"
    assert [row["kind"] for row in document["ledger"]] == ["seed"]
    assert len(document["periods"]) == 1
    readable = run("accounts", "show", customer.account_id).stdout
    for word in ("free-trial", email, "trial_end", "seed", "invoices: none"):
        assert word in readable


def test_what_lies_ahead_of_an_account_is_shown_on_request(run: Run, customer: Customer) -> None:
    until = (utc_now() + timedelta(days=30)).isoformat()
    document = json.loads(run("accounts", "show", customer.account_id, "--until", until, "--json").stdout)
    trial_ends_at = document["subscription"]["trial_ends_at"]
    assert document["ahead"] == [
        {"at": trial_ends_at, "transition": transition, "kind": kind, "facts": facts}
        for transition, kind, facts in (
            ("trial_end", "subscription_ended", {"reason": "trial_expired"}),
            ("trial_end", "account_status_changed", {"status": "suspended", "reason": "trial_expired"}),
            ("grant_expiry", "credits_expired", {"amount": -2_000, "balance_after": 0}),
        )
    ]
    assert "ahead" not in json.loads(run("accounts", "show", customer.account_id, "--json").stdout)
    assert "subscription_ended" in run("accounts", "show", customer.account_id, "--until", until).stdout


@pytest.mark.parametrize(
    ("until", "told"),
    [
        pytest.param("soon", "such as 2027-01-31T09:00:00Z", id="no instant"),
        pytest.param("2027-01-31T09:00:00", "such as 2027-01-31T09:00:00Z", id="no offset"),
        pytest.param("2020-01-31T09:00:00Z", "must lie between", id="what has passed"),
        pytest.param("2199-01-31T09:00:00Z", "must lie between", id="for ever"),
    ],
)
def test_how_far_one_can_look_is_told_in_one_line(run: Run, customer: Customer, until: str, told: str) -> None:
    result = run("accounts", "show", customer.account_id, "--until", until)
    assert result.exit_code == 2
    assert is_one_line(result)
    assert told in result.stderr


def test_unpark_hands_an_account_back(run: Run, database: Database, customer: Customer) -> None:
    not_parked = run("accounts", "unpark", customer.account_id)
    assert not_parked.exit_code == 2
    assert is_one_line(not_parked)

    with database.transaction() as tx:
        account_state.park(tx, customer.account_id, at=utc_now(), reason="odd")
    assert "warning: account_parked" in run("check").stdout
    assert run("accounts", "unpark", customer.account_id).exit_code == 0

    with database.transaction() as tx:
        assert tx.scalar("SELECT count(*) FROM accounts WHERE parked_at IS NOT NULL") == 0
        assert tx.scalar("SELECT count(*) FROM audit_log WHERE action = 'account.unparked'") == 1


@pytest.mark.parametrize("everybody", [True, False])
def test_refresh_repairs_schedules_after_a_change_of_terms(
    run: Run, database: Database, settings: Settings, everybody: bool
) -> None:
    with database.transaction() as tx:
        ids = populate(tx, settings)
        tx.execute("UPDATE plans SET grace_days = 3 WHERE slug = 'starter'")
        tx.execute(
            "UPDATE subscriptions SET renews_at = now() WHERE account_id = %(id)s AND status = 'active'", id=ids["card"]
        )
    before = json.loads(run("check", "--json").stdout)
    assert [finding["check"] for finding in before["findings"]] == ["schedule_follows_from_state"]
    stale = {row["account_id"] for row in before["findings"][0]["rows"]}
    assert str(ids["card"]) in stale

    if everybody:
        assert run("accounts", "refresh", "--all").stdout == f"refreshed: {len(ids)}\n"
    else:
        for account_id in stale:
            assert run("accounts", "refresh", account_id).stdout == "refreshed: 1\n"
    assert json.loads(run("check", "--json").stdout)["ok"] is True


# --- processes ----------------------------------------------------------------------------------


def test_a_job_is_run_by_hand_until_nothing_is_due(settings: Settings, database: Database, broker_url: str) -> None:
    now = utc_now()
    with database.transaction() as tx:
        world = World(tx, settings, now=now - timedelta(days=20))
        customers = [world.sign_up(at=None) for _ in range(3)]

    too_early = process(settings, "run", "expire-trials", "--as-of", (now - timedelta(days=7)).isoformat())
    assert finished(too_early)[:2] == (0, "expire-trials: 0 done\n")
    assert finished(process(settings, "run", "expire-trials", BATCH_SIZE="2"))[:2] == (0, "expire-trials: 3 done\n")

    with database.transaction() as tx:
        statuses = tx.rows("SELECT id, status FROM accounts WHERE kind = 'customer'")
    assert {row.id: row.status for row in statuses} == {c.account_id: "suspended" for c in customers}


def test_holds_are_released_by_hand(settings: Settings, database: Database, customer: Customer) -> None:
    with database.transaction() as tx:
        then = utc_now() - timedelta(hours=1)
        asker = credits.of_account(tx, customer.account_id, partial(load_rules, settings=settings))
        credits.place_hold(asker, 10, key="hold", ttl_seconds=60, now=then)
    assert finished(process(settings, "run", "release-holds"))[:2] == (0, "release-holds: 1 done\n")
    with database.transaction() as tx:
        assert tx.scalar("SELECT status FROM holds") == "expired"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["expire-trials", "--as-of", "2026-01-01"], "no instant with its zone", id="a naive instant"),
        pytest.param(["expire-trials", "--as-of", "yesterday"], "no instant with its zone", id="no instant"),
        pytest.param(["relay-operations", "--as-of", "2026-01-01T00:00:00Z"], "no --as-of", id="the relay"),
    ],
)
def test_a_job_refuses(run: Run, arguments: list[str], told: str) -> None:
    result = run("run", *arguments)
    assert result.exit_code == 2
    assert is_one_line(result)
    assert told in result.stderr


def test_a_job_refuses_a_future_instant(settings: Settings, database: Database) -> None:
    status, _, err = finished(process(settings, "run", "expire-trials", "--as-of", "2999-01-01T00:00:00Z"))
    assert status == 2
    assert err.startswith("error: a job acts as of an aware instant that has come")
    assert err.count("\n") == 1


def waiting_messages(broker_url: str) -> int:
    with redis.Redis.from_url(broker_url) as client:
        return int(client.llen("interactive"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_relay_sends_until_it_is_told_to_end(
    settings: Settings, database: Database, broker_url: str, number: signal.Signals, run: Run
) -> None:
    if not broker_url.startswith("redis://"):
        pytest.skip("looks into Redis")
    with database.transaction() as tx:
        kill_operation(tx)
    run("operations", "retry", "--all-dead")
    child = process(settings, "relay", LOG_FORMAT="json")
    assert child.stderr is not None
    events = (json.loads(line)["event"] for line in child.stderr if line.startswith("{"))
    assert "relay_sent" in events
    assert waiting_messages(broker_url) == 1

    child.send_signal(number)
    assert "relay_stopped" in events
    assert child.wait(timeout=10) == 0
    finished(child)


def test_a_job_sends_what_the_relay_would(settings: Settings, database: Database, broker_url: str, run: Run) -> None:
    if not broker_url.startswith("redis://"):
        pytest.skip("looks into Redis")
    with database.transaction() as tx:
        kill_operation(tx)
    run("operations", "retry", "--all-dead")
    assert finished(process(settings, "run", "relay-operations"))[:2] == (0, "relay-operations: 1 done\n")
    assert waiting_messages(broker_url) == 1


# --- embedded servers ---------------------------------------------------------------------------


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Settings]:
    """The settings of somebody who has set nothing up."""
    with embedded_in(tmp_path) as settings:
        yield settings


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The settings of somebody who has."""
    with embedded_in(tmp_path_factory.mktemp("embedded")) as settings:
        status, out, _ = finished(process(settings, "migrate"))
        assert (status, out) == (0, f"the database is at {migrations.head_revision()} (was empty)\n")
        yield settings


@contextmanager
def embedded_in(folder: Path) -> Iterator[Settings]:
    yield Settings(database_url=None, broker_url=None, data_dir=folder)
    for server in (Postgres(folder / "postgres"), Valkey(folder / "valkey")):
        if server.running():
            server.stop()


def test_a_newcomer_needs_no_setting_up(newcomer: Settings) -> None:
    status, out, _ = finished(process(newcomer, "state", "--json"))
    document: dict[str, Any] = json.loads(out)
    assert status == 0
    assert document["revision"] == migrations.head_revision()
    assert len(document["plans"]) == len(SEED_PLANS)
    assert not Postgres(newcomer.data_dir / "postgres").running()
    assert not (newcomer.data_dir / "valkey").exists(), "looking at the state needs no broker"


def test_sigterm_stops_the_servers_of_a_command(embedded: Settings) -> None:
    child = process(embedded, "rollback")  # asks, and waits for an answer
    assert child.stdout is not None
    assert child.stdout.read(9) == "Roll back"
    assert Postgres(embedded.data_dir / "postgres").running()

    child.terminate()
    assert finished(child)[0] == 128 + signal.SIGTERM
    assert not Postgres(embedded.data_dir / "postgres").running()


def test_what_was_rolled_back_is_not_migrated_by_the_way(embedded: Settings) -> None:
    assert finished(process(embedded, "rollback", "--yes"))[0] == 0
    status, _, err = finished(process(embedded, "state"))
    assert status == 2
    assert "run `python -m workers migrate`" in err
