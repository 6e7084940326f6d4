"""docs/backup.md, "To a moment": the database is brought back to an instant, from a base backup and archived WAL."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.clock import utc_now
from shared.config import PROJECT_DIR, Settings
from shared.db import checks, plans
from shared.db.engine import Database
from shared.db.migrations import run
from shared.domain.plan import SEED_PLANS
from shared.embedded import Postgres, postgres_install
from tests.db.test_migrations import opened
from tests.office import Office
from workers.demo import eventually

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("processes")]

PROCEDURE = (PROJECT_DIR / "docs" / "backup.md").read_text()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Where WAL is kept, far from the server."""
    folder = tmp_path / "archive"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def server(tmp_path: Path, archive: Path) -> Iterator[Postgres]:
    """A server that archives its WAL, set up as the document says."""
    server = Postgres(tmp_path / "first" / "postgres")
    server.folder.mkdir(parents=True)
    server.start()
    server.stop()
    configure(server, archive, "archive_mode", "archive_command", "archive_timeout")
    server.start()
    server.wait()
    yield server
    if server.running():
        server.stop()


def configure(server: Postgres, archive: Path, *names: str, **further: str) -> None:
    """Write settings as the document writes them, for this archive."""
    lines = [line.strip() for line in PROCEDURE.splitlines() if line.strip().partition(" = ")[0] in names]
    assert len(lines) == len(names)
    lines += [f"{name} = '{value}'" for name, value in further.items()]
    with (server.folder / "data" / "postgresql.conf").open("a") as config:
        config.write("\n".join(lines).replace("/srv/wal", str(archive)) + "\n")


def ledger(database: Database) -> set[tuple[object, ...]]:
    with database.transaction() as tx:
        return {tuple(row) for row in tx.rows("SELECT account_id, seq, amount FROM credit_transactions")}


def test_the_database_is_brought_back_to_a_moment(
    server: Postgres, archive: Path, tmp_path: Path, settings: Settings
) -> None:
    run.upgrade(server.url)
    second = Postgres(tmp_path / "second" / "postgres")
    second.folder.mkdir(parents=True)
    data = second.folder / "data"
    with opened(server.url) as database:
        with database.transaction() as tx:
            plans.seed(tx, SEED_PLANS)
        office = Office(database, settings, now=utc_now())
        who = office.sign_up()
        office.consume(who, 10, "before the base backup")
        subprocess.run(
            [
                postgres_install() / "bin" / "pg_basebackup",
                f"--pgdata={data}",
                "--checkpoint=fast",
                "--dbname",
                server.url.replace("postgresql+psycopg", "postgresql"),
            ],
            check=True,
        )
        office.consume(who, 20, "after it")
        with database.transaction() as tx:
            moment = tx.scalar("SELECT clock_timestamp()::text")
        then = ledger(database)
        office.consume(who, 30, "by mistake")
        assert ledger(database) > then
        with database.transaction() as tx:
            written = tx.scalar("SELECT pg_walfile_name(pg_switch_wal())")
        eventually(lambda: (archive / written).exists() or None, "the WAL to be archived")
    server.stop()
    shutil.rmtree(server.folder)

    owner = archive.parent.stat() if os.geteuid() else (tmp_path / "archive" / written).stat()
    for path in (data, *data.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    configure(second, archive, "restore_command", "recovery_target_action", recovery_target_time=moment)
    (data / "recovery.signal").touch()
    second.start()
    second.wait()
    try:
        with opened(second.url) as restored:

            def writable() -> bool | None:
                with restored.transaction() as tx:
                    return None if tx.scalar("SELECT pg_is_in_recovery()") else True

            eventually(writable, "the recovery to end")
            assert ledger(restored) == then
            with restored.transaction() as tx:
                assert checks.run_checks(tx, settings) == []
            office = Office(restored, settings, now=utc_now())
            office.consume(who, 40, "from then on")
            assert office.findings() == []
    finally:
        second.stop()
