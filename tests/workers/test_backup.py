"""Backups: taken while people write, restored into another server, and refused in one line when they cannot be."""

import json
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from api.app import create_app
from api.services import EXTENSION
from shared.clock import monotonic, utc_now
from shared.config import Settings
from shared.db import checks
from shared.db.engine import ActAs, Database
from shared.db.migrations import run as migrations
from shared.embedded import Postgres
from shared.errors import InvalidInput, NotReady
from tests.db.test_migrations import connected, contents, opened, schema
from tests.db.test_upgrades import rows
from tests.db.world import populate
from tests.factories import cases
from tests.office import Office
from tests.workers.conftest import Run, is_one_line, runner_for
from workers import backup

OTHER = "postgresql+psycopg://postgres@/{name}?host={folder}"


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A second cluster, in which none of our roles has ever been."""
    server = Postgres(tmp_path_factory.mktemp("other") / "postgres", ("fsync=off",))
    server.folder.mkdir()
    server.start()
    server.wait()
    yield server
    server.stop()


@pytest.fixture
def empty_elsewhere(other_server: Postgres) -> Iterator[str]:
    """The URL of an empty database in the second cluster."""
    url = make_url(other_server.url)
    with connected(other_server.url) as connection:
        connection.execute("CREATE DATABASE restored TEMPLATE template0")
    yield url.set(database="restored").render_as_string(hide_password=False)
    with connected(other_server.url) as connection:
        connection.execute("DROP DATABASE restored WITH (FORCE)")


@pytest.fixture
def kept(run: Run, database: Database, settings: Settings, tmp_path: Path) -> Path:
    """A backup of accounts in every situation."""
    with database.transaction() as tx:
        populate(tx, settings)
    file = tmp_path / "kept.dump"
    result = run("backup", file)
    assert result.exit_code == 0, result.stderr
    return file


class Writers:
    """Customers who sign up, spend and pay, as fast as they can, until they are told to stop."""

    def __init__(self, office: Office, count: int) -> None:
        self._office = office
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._writing = [self._pool.submit(self._write) for _ in range(count)]

    def _write(self) -> int:
        written = 0
        while not self._stop.is_set():
            who = self._office.sign_up()
            self._office.consume(who, 30, "call")
            self._office.capture(who, self._office.hold(who, 100, "held"), 60)
            self._office.buy(who)
            written += 1
        return written

    def end(self) -> int:
        """How many customers came."""
        self._stop.set()
        written = sum(one.result(timeout=60) for one in self._writing)
        self._pool.shutdown()
        return written


def ledger(url: str) -> set[tuple[Any, ...]]:
    with connected(url) as connection:
        return set(connection.execute("SELECT account_id, seq, amount, balance_after FROM credit_transactions"))


def test_a_backup_that_is_made_while_people_write_is_restored_into_another_server_whole(
    run: Run,
    database: Database,
    settings: Settings,
    tmp_path: Path,
    empty_elsewhere: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with database.transaction() as tx:
        populate(tx, settings)
    office, file = Office(database, settings, now=utc_now()), tmp_path / "busy.dump"
    writers = Writers(office, 3)
    try:
        deadline = monotonic() + 30
        while len(ledger(database.url)) < 100:
            assert monotonic() < deadline
        before = ledger(database.url)
        made = run("backup", file, "--json")
        after = ledger(database.url)
    finally:
        customers = writers.end()
    assert made.exit_code == 0, made.stderr
    assert customers > 3
    assert before < after, "people wrote meanwhile"
    assert json.loads(made.stdout) | {"seconds": 0, "bytes": 0, "began_at": ""} == {
        "file": str(file),
        "bytes": 0,
        "began_at": "",
        "seconds": 0,
        "revision": migrations.head_revision(),
        "postgresql": backup.server_version(database),
        "tables": len(contents(database.url)),
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "it holds everything there is to know about customers"

    restored = runner_for(monkeypatch, empty_elsewhere, "redis://unused")("restore", file, "--json")
    assert restored.exit_code == 0, restored.stderr
    told = json.loads(restored.stdout)
    assert (told["ok"], told["findings"], told["revision"]) == (True, [], migrations.head_revision())
    assert before <= ledger(empty_elsewhere) <= after, "all that was there, and nothing torn"

    assert schema(empty_elsewhere) == schema(database.url), "constraints, triggers, policies and privileges came along"
    assert_roles_are_guarded(empty_elsewhere)
    with opened(empty_elsewhere) as there:
        found = Office(there, settings, now=utc_now())
        found.consume(found.sign_up(), 5, "after")
        assert found.findings() == []
    app = create_app(settings.model_copy(update={"database_url": empty_elsewhere}))
    assert app.test_client().get("/readyz").status_code == 200
    app.extensions[EXTENSION].database.dispose()


def assert_roles_are_guarded(url: str) -> None:
    for role in ActAs:
        database = Database(url, act_as=role)
        with pytest.raises(Exception, match="permission denied"), database.transaction() as tx:
            tx.execute("UPDATE credit_transactions SET amount = 0")
        database.dispose()


def test_whoever_restores_owns_everything_and_need_be_no_superuser(
    kept: Path, other_server: Postgres, empty_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(empty_elsewhere) as connection:
        connection.execute("""
            CREATE ROLE landlord LOGIN;
            DO $$ BEGIN
                CREATE ROLE prepaid_api NOLOGIN; CREATE ROLE prepaid_worker NOLOGIN; CREATE ROLE prepaid_due NOLOGIN;
            EXCEPTION WHEN duplicate_object THEN NULL; END $$;
            GRANT prepaid_api, prepaid_worker, prepaid_due TO landlord;
            ALTER DATABASE restored OWNER TO landlord;
            """)
    url = make_url(empty_elsewhere).set(username="landlord").render_as_string(hide_password=False)
    try:
        result = runner_for(monkeypatch, url, "redis://unused")("restore", kept)
        assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, f"all {len(checks.CHECKS)} invariants hold")
        with connected(empty_elsewhere) as connection:
            owners = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
            assert owners.fetchall() == [("landlord",)]
    finally:
        with connected(empty_elsewhere) as connection:
            connection.execute("REASSIGN OWNED BY landlord TO postgres; DROP OWNED BY landlord")
            connection.execute("ALTER DATABASE restored OWNER TO postgres")
            connection.execute("DROP ROLE landlord")


def test_a_file_holds_every_row(kept: Path, database: Database, empty_elsewhere: str) -> None:
    with opened(empty_elsewhere) as there:
        backup.restore(there, kept, on_table=lambda _: None)
    assert contents(empty_elsewhere) == contents(database.url)


def test_a_backup_of_an_older_release_is_brought_up_to_this_one(
    scratch_url: str, settings: Settings, tmp_path: Path, empty_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(scratch_url) as older:
        with older.transaction() as tx:
            populate(tx, settings)
        migrations.downgrade(scratch_url, "0008")
        backup.dump(older, tmp_path / "older.dump", on_table=lambda _: None)
    result = runner_for(monkeypatch, empty_elsewhere, "redis://unused")("restore", tmp_path / "older.dump")
    assert result.exit_code == 0, result.stderr
    assert f"at {migrations.head_revision()}, brought from 0008" in result.stdout


def test_progress_is_told_beside_the_answer(run: Run, database: Database, tmp_path: Path) -> None:
    result = run("backup", tmp_path / "kept.dump", "--json")
    told = [line.split() for line in result.stderr.splitlines()]
    assert [number for number, _ in told] == [str(number) for number in range(1, len(told) + 1)]
    assert {name for _, name in told} == set(contents(database.url))
    assert json.loads(result.stdout)["tables"] == len(contents(database.url))


def test_a_restored_database_whose_books_are_broken_is_told_so(
    run: Run,
    database: Database,
    settings: Settings,
    tmp_path: Path,
    empty_elsewhere: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with database.transaction() as tx:
        populate(tx, settings)
        tx.execute("SET LOCAL session_replication_role = replica")
        tx.execute("UPDATE accounts SET balance_credits = balance_credits + 1 WHERE balance_credits > 0")
    assert run("backup", tmp_path / "broken.dump").exit_code == 0
    elsewhere = runner_for(monkeypatch, empty_elsewhere, "redis://unused")
    result = elsewhere("restore", tmp_path / "broken.dump", "--json")
    assert result.exit_code == 1
    assert "balance_is_sum_of_ledger" in {finding["check"] for finding in json.loads(result.stdout)["findings"]}


# --- what cannot be ---------------------------------------------------------------------------


def test_no_file_is_written_over(run: Run, kept: Path) -> None:
    before = kept.read_bytes()
    result = run("backup", kept)
    assert (result.exit_code, is_one_line(result)) == (2, True)
    assert "is there already" in result.stderr
    assert kept.read_bytes() == before


def test_a_database_without_tables_is_no_backup(run_on_empty: Run, tmp_path: Path) -> None:
    result = run_on_empty("backup", tmp_path / "nothing.dump")
    assert (result.exit_code, is_one_line(result)) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(run: Run, tmp_path: Path) -> None:
    result = run("backup", tmp_path / "no" / "such.dump")
    assert (result.exit_code, is_one_line(result)) == (2, True)
    assert "is no folder" in result.stderr


def test_a_dump_that_fails_leaves_no_file_behind(
    run: Run, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = a_tool(tmp_path / "bin", "pg_dump", f"pg_dump (PostgreSQL) {backup.server_version(database)}.0", status=1)
    monkeypatch.setenv("PATH", f"{broken}:{os.environ['PATH']}")
    result = run("backup", tmp_path / "kept.dump")
    assert (result.exit_code, is_one_line(result)) == (2, True)
    assert "pg_dump failed: pg_dump: error: the disk is full" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_into_a_database_that_is_not_empty_nothing_is_restored(run: Run, kept: Path, database: Database) -> None:
    before = contents(database.url)
    result = run("restore", kept)
    assert (result.exit_code, is_one_line(result)) == (2, True)
    assert "is not empty" in result.stderr
    assert contents(database.url) == before


def a_tool(folder: Path, name: str, version: str, *, status: int = 0) -> Path:
    """A folder with a program of PostgreSQL's in it that says to be of this version."""
    folder.mkdir()
    program = folder / name
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" && exit\n'
        f'echo "{name}: error: the disk is full" >&2\nexit {status}\n'
    )
    program.chmod(0o755)
    return folder


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the server from a wheel, which has these programs too."""

    def missing() -> Path:
        raise NotReady("no wheel")

    monkeypatch.setattr(backup, "postgres_install", missing)


def test_without_the_tools_it_is_said_what_to_install(
    run: Run, tmp_path: Path, no_wheel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("backup", tmp_path / "kept.dump")
    assert (result.exit_code, is_one_line(result)) == (2, True)
    assert "there is no pg_dump; install PostgreSQL's client programs of version" in result.stderr


def test_tools_that_are_older_than_the_server_are_not_used(
    run: Run, tmp_path: Path, no_wheel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_tool(tmp_path / "bin", "pg_dump", "pg_dump (PostgreSQL) 9.6 (Debian)")
    monkeypatch.setenv("PATH", str(folder))
    result = run("backup", tmp_path / "kept.dump")
    assert (result.exit_code, is_one_line(result)) == (2, True)
    assert "pg_dump is of version 9, and the server of" in result.stderr


def test_of_several_tools_the_servers_own_is_used(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = backup.server_version(database)
    newer = a_tool(tmp_path / "bin", "pg_dump", f"pg_dump (PostgreSQL) {server + 2}.1")
    monkeypatch.setenv("PATH", f"{newer}:{os.environ['PATH']}")
    assert backup.find_tool("pg_dump", server) != str(newer / "pg_dump")
    assert backup.find_tool("pg_dump", server + 1) == str(newer / "pg_dump")


WRONG = {
    "no file": (None, "is no file"),
    "text": (b"hello", "cannot be read as a backup"),
    "nothing": (b"", "cannot be read as a backup"),
    "the beginning of one": (1_000, "cannot be read as a backup"),
}


@pytest.mark.parametrize(("content", "told"), cases(WRONG))
def test_a_file_that_is_no_backup_is_refused(
    kept: Path, empty_elsewhere: str, monkeypatch: pytest.MonkeyPatch, content: bytes | int | None, told: str
) -> None:
    file = kept.with_name("wrong.dump")
    if content is not None:
        file.write_bytes(kept.read_bytes()[:content] if isinstance(content, int) else content)
    result = runner_for(monkeypatch, empty_elsewhere, "redis://unused")("restore", file)
    assert (result.exit_code, is_one_line(result)) == (2, True)
    assert told in result.stderr
    assert schema(empty_elsewhere) == {}


def test_a_file_that_is_damaged_leaves_the_database_empty(kept: Path, empty_elsewhere: str) -> None:
    content = bytearray(kept.read_bytes())
    content[-4_000:-3_600] = bytes(400)
    kept.write_bytes(content)
    filled: list[str] = []
    with opened(empty_elsewhere) as there, pytest.raises(NotReady, match="pg_restore failed"):
        backup.restore(there, kept, on_table=filled.append)
    assert "accounts" in filled, "it was seen late"
    assert schema(empty_elsewhere) == {}


def test_a_dump_of_some_other_database_is_refused(
    empty_url: str, tmp_path: Path, empty_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(empty_url) as connection:
        connection.execute("CREATE TABLE accounts (mine text); CREATE TABLE alembic_version (version_num text)")
    with opened(empty_url) as theirs, pytest.raises(InvalidInput, match=r"some other database.*operations"):
        backup.dump(theirs, tmp_path / "theirs.dump", on_table=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_backup_of_a_newer_release_is_refused(
    scratch_url: str, tmp_path: Path, empty_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(scratch_url) as newer:
        with newer.transaction() as tx:
            tx.execute("UPDATE alembic_version SET version_num = '9999'")
        backup.dump(newer, tmp_path / "newer.dump", on_table=lambda _: None)
    result = runner_for(monkeypatch, empty_elsewhere, "redis://unused")("restore", tmp_path / "newer.dump")
    assert (result.exit_code, is_one_line(result)) == (2, True)
    assert "is at 9999, which this release does not know" in result.stderr
    assert schema(empty_elsewhere) == {}


def test_a_backup_of_a_newer_server_is_refused(
    kept: Path, empty_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(empty_elsewhere) as there:
        ours = backup.server_version(there)
        monkeypatch.setattr(backup, "server_version", lambda _: ours - 1)
        with pytest.raises(InvalidInput, match=f"was made from PostgreSQL {ours}, and this server is {ours - 1}"):
            backup.restore(there, kept, on_table=lambda _: None)
    assert schema(empty_elsewhere) == {}


def test_who_may_not_make_roles_is_told_and_the_database_stays_empty(
    kept: Path, other_server: Postgres, empty_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(empty_elsewhere) as connection:
        connection.execute("CREATE ROLE tenant LOGIN; ALTER DATABASE restored OWNER TO tenant")
    url = make_url(empty_elsewhere).set(username="tenant").render_as_string(hide_password=False)
    try:
        result = runner_for(monkeypatch, url, "redis://unused")("restore", kept)
        assert (result.exit_code, is_one_line(result)) == (2, True)
        assert "may not make or become the role" in result.stderr
        assert schema(empty_elsewhere) == {}
    finally:
        with connected(empty_elsewhere) as connection:
            connection.execute("ALTER DATABASE restored OWNER TO postgres; REASSIGN OWNED BY tenant TO postgres")
            connection.execute("DROP OWNED BY tenant; DROP ROLE tenant")


def test_no_password_is_on_a_command_line(
    kept: Path, empty_elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(empty_elsewhere).set(password="very secret").render_as_string(hide_password=False)
    started: list[tuple[list[str], dict[str, str]]] = []
    popen = subprocess.Popen

    def note(command: list[str], **options: Any) -> Any:
        started.append((command, options.get("env") or {}))
        return popen(command, **options)

    monkeypatch.setattr("workers.backup.subprocess.Popen", note)
    with opened(url) as there:
        backup.restore(there, kept, on_table=lambda _: None)
    assert [command for command, _ in started if "very secret" in " ".join(map(str, command))] == []
    assert [environment["PGPASSWORD"] for _, environment in started if "PGPASSWORD" in environment] == ["very secret"]


def test_rows_of_everything_are_in_the_file(kept: Path, database: Database) -> None:
    with psycopg.connect(make_url(database.url).set(drivername="postgresql").render_as_string(False)) as connection:
        tables = {table for table, found in rows(connection).items() if found}
    assert tables <= set(backup.read_contents(kept, server=backup.server_version(database)).tables)
