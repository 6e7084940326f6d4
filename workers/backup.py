"""Backups: one file that holds the database as it is at one instant, and an empty database filled from such a file.

PostgreSQL's own `pg_dump` and `pg_restore` do the work, so every file can be read without this engine too. Passwords
are handed to them in the environment, where no list of processes shows them.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from msgspec import Struct
from sqlalchemy import URL, make_url

from shared.db.engine import Database
from shared.db.migrations import run as migrations
from shared.db.migrations.run import Standing
from shared.embedded import postgres_install
from shared.errors import InvalidInput, NotReady

# What the file must hold to be one of ours.
OURS: Final = frozenset({"alembic_version", "accounts", "operations", "credit_transactions"})
LOCK_WAIT_SECONDS: Final = 60

DUMPING: Final = re.compile(r'dumping contents of table "\w+\.(\w+)"')
FILLING: Final = re.compile(r'processing data for table "\w+\.(\w+)"')

OnTable = Callable[[str], None]


class Contents(Struct, frozen=True):
    """What a file holds. server: the major version of the PostgreSQL that it was made from."""

    revision: str
    server: int
    made_at: str
    tables: list[str]


def dump(database: Database, file: Path, *, on_table: OnTable) -> Contents:
    """Write the database to `file`, readable by its owner alone. The database may be written to meanwhile.

    on_table: told each table when its turn has come. The file appears under its name when it is whole.
    Raises InvalidInput for a name that cannot be used, NotReady when the tools or the database are not as needed.
    """
    if file.exists():
        raise InvalidInput(f"{file} is there already; name a file that is not")
    if not file.parent.is_dir():
        raise InvalidInput(f"{file.parent} is no folder")
    server = server_version(database)
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode=0o600))
    try:
        _run(
            [
                find_tool("pg_dump", server),
                "--format=custom",
                "--no-password",
                "--verbose",
                f"--lock-wait-timeout={LOCK_WAIT_SECONDS}s",
                f"--file={unfinished}",
                f"--dbname={_without_password(database.url)}",
            ],
            database.url,
            on_line=_tables(DUMPING, on_table),
        )
        contents = read_contents(unfinished, server=server)
        _keep(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
    return contents


def read_contents(file: Path, *, server: int) -> Contents:
    """What a file holds. server: the major version whose tools read it.

    Raises InvalidInput when it is no backup of this engine, or one that was made by a newer PostgreSQL.
    """
    if not file.is_file():
        raise InvalidInput(f"{file} is no file")
    tool = find_tool("pg_restore", server)
    listed = subprocess.run([tool, "--list", file], capture_output=True, text=True, check=False)
    if listed.returncode:
        raise InvalidInput(f"{file} cannot be read as a backup; {_last_line(listed.stderr)}")
    tables = re.findall(r"^\d+; \d+ \d+ TABLE DATA public (\w+) ", listed.stdout, flags=re.MULTILINE)
    if not OURS.issubset(tables):
        raise InvalidInput(f"{file} is the backup of some other database: it has no {', '.join(OURS - set(tables))}")
    made_from = re.search(r"Dumped from database version: (\d+)", listed.stdout)
    made_at = re.search(r"Archive created at (.+)", listed.stdout)
    rows = subprocess.run(
        [tool, "--data-only", "--table=alembic_version", "--file=-", file], capture_output=True, text=True, check=False
    )
    revision = re.search(r"^COPY public\.alembic_version .*\n(\w+)\n", rows.stdout, flags=re.MULTILINE)
    if made_from is None or revision is None:
        raise InvalidInput(f"{file} is damaged, or no backup of ours: {_last_line(rows.stderr) or 'no revision'}")
    return Contents(
        revision=revision[1], server=int(made_from[1]), made_at=made_at[1] if made_at else "", tables=tables
    )


def restore(database: Database, file: Path, *, on_table: OnTable) -> Contents:
    """Fill an empty database from `file`, wholly or not at all, and bring it up to this release's schema.

    Whoever the database's URL signs in as owns everything. The roles that processes act as are made as migrations make
    them, and what they may do comes with the file. Raises as `dump` does, and InvalidInput for a database that is not
    empty, a file of a newer release, and one of a newer PostgreSQL.
    """
    server = server_version(database)
    contents = read_contents(file, server=server)
    if contents.server > server:
        raise InvalidInput(f"{file} was made from PostgreSQL {contents.server}, and this server is {server}")
    if migrations.standing(contents.revision) not in {Standing.CURRENT, Standing.OLDER}:
        raise InvalidInput(f"{file} is at {contents.revision}, which this release does not know; run the one it is of")
    _require_empty(database)
    make_roles(database)
    _run(
        [
            find_tool("pg_restore", server),
            "--no-owner",
            "--single-transaction",
            "--exit-on-error",
            "--no-password",
            "--verbose",
            f"--dbname={_without_password(database.url)}",
            str(file),
        ],
        database.url,
        on_line=_tables(FILLING, on_table),
    )
    migrations.upgrade(database.url)
    with database.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.commit()
    return contents


def make_roles(database: Database) -> None:
    """Make the roles that processes act as, and nothing else, as migrations do: they belong to the server and stay."""
    try:
        migrations.upgrade(database.url)
    finally:
        migrations.downgrade(database.url, "base")
        with database.transaction() as tx:
            tx.execute("DROP TABLE IF EXISTS alembic_version")


def server_version(database: Database) -> int:
    """The major version of the server."""
    with database.connect() as connection:
        number: int = connection.exec_driver_sql("SELECT current_setting('server_version_num')::int").scalar_one()
    return number // 10_000


def find_tool(name: str, server: int) -> str:
    """A program of PostgreSQL's for a server of this major version: its own if there is one, else a newer one.

    Looked for on PATH, and in the wheel that brings the embedded server. Raises NotReady.
    """
    found: dict[int, str] = {}
    for candidate in _candidates(name):
        told = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"\) (\d+)", told.stdout)
        if version is not None:
            found.setdefault(int(version[1]), candidate)
    fitting = sorted(version for version in found if version >= server)
    if fitting:
        return found[fitting[0]]
    hint = f"install PostgreSQL's client programs of version {server}, and have {name} on PATH"
    if found:
        raise NotReady(f"{name} is of version {max(found)}, and the server of {server}; {hint}")
    raise NotReady(f"there is no {name}; {hint}")


def _candidates(name: str) -> Iterator[str]:
    if (on_path := shutil.which(name)) is not None:
        yield on_path
    with suppress(NotReady):
        yield str(postgres_install() / "bin" / name)


def _require_empty(database: Database) -> None:
    sql = """
        SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname <> 'information_schema' AND NOT starts_with(n.nspname, 'pg_')
          AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
        """
    with database.connect() as connection:
        count: int = connection.exec_driver_sql(sql).scalar_one()
    if count:
        told = f"the database is not empty: it holds {count} tables, views and sequences"
        raise InvalidInput(f"{told}; make a new one, and name it in DATABASE_URL")


def _run(command: Sequence[str], url: str, *, on_line: Callable[[str], None]) -> None:
    """Run a tool to its end. Raises NotReady with what it said last."""
    password = make_url(url).password
    environment = {**os.environ, "PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "billing-backup"}
    if password is not None:
        environment["PGPASSWORD"] = str(password)
    said: list[str] = []
    with _ended(
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ) as child:
        assert child.stderr is not None  # noqa: S101 - narrows what the types leave open
        for line in child.stderr:
            said = [*said[-20:], line.rstrip("\n")]
            on_line(line)
        status = child.wait()
    if status:
        errors = [line for line in said if "error:" in line or "ERROR:" in line]
        raise NotReady(f"{Path(command[0]).name} failed: {(errors or said or ['without a word'])[0]}")


@contextmanager
def _ended(child: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Whatever happens to us, the tool does not go on by itself."""
    with child:
        try:
            yield child
        except BaseException:
            child.terminate()
            raise


def _tables(pattern: re.Pattern[str], on_table: OnTable) -> Callable[[str], None]:
    def look(line: str) -> None:
        if named := pattern.search(line):
            on_table(named[1])

    return look


def _keep(unfinished: Path, file: Path) -> None:
    """Give it its name when all of it is on the disk."""
    with unfinished.open("rb") as content:
        os.fsync(content.fileno())
    unfinished.rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _without_password(url: str) -> str:
    parts = make_url(url)
    bare = URL.create("postgresql", parts.username, None, parts.host, parts.port, parts.database, parts.query)
    return bare.render_as_string(hide_password=False)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
