"""Keep the books safe: backup and restore."""

from pathlib import Path
from typing import Annotated

import typer

from shared.clock import monotonic, utc_now
from shared.errors import NotReady
from workers import backup as files
from workers.cli.books import BROKEN, CHECK_TIMEOUT_MS, ask_all
from workers.cli.output import AsJson, console, print_json
from workers.cli.session import revision, session

File = Annotated[Path, typer.Argument(help="The file.", dir_okay=False)]


def backup(file: File, *, as_json: AsJson = False) -> None:
    """Write the whole database to a file, as it is now, whatever is written to it meanwhile.

    Nothing else has to be kept: the broker holds wake-ups. The file is PostgreSQL's custom format, so pg_restore reads
    it as well; it holds everything there is to know about customers, and only its owner may read it.
    """
    started, now = monotonic(), utc_now()
    with session(needs_schema=False) as here:
        if revision(here.database) is None:
            raise NotReady("the database has no tables; there is nothing to keep")
        contents = files.dump(here.database, file, on_table=_progress())
    facts = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "began_at": now,
        "seconds": round(monotonic() - started, 1),
        "revision": contents.revision,
        "postgresql": contents.server,
        "tables": len(contents.tables),
    }
    if as_json:
        print_json(facts)
    else:
        typer.echo(f"{file}: {facts['bytes']:,} bytes, {facts['tables']} tables at {contents.revision}")


def restore(file: File, *, as_json: AsJson = False) -> None:
    """Fill an empty database from a backup, and ask every invariant. Exit status 1 when one is broken.

    Wholly or not at all: what fails leaves the database as empty as it was. An older backup is brought up to this
    release's schema. Nothing else may run on the database before that is through.
    """
    started = monotonic()
    with session(needs_schema=False, statement_timeout_ms=CHECK_TIMEOUT_MS) as here:
        contents = files.restore(here.database, file, on_table=_progress())
        at = revision(here.database)
        typer.echo("restored; asking every invariant", err=True)
        verdict = ask_all(here)
    if as_json:
        facts = {"revision": at, "was": contents.revision, "made_at": contents.made_at}
        print_json({"file": str(file), **facts, "seconds": round(monotonic() - started, 1), **verdict.document()})
    else:
        migrated = "" if at == contents.revision else f", brought from {contents.revision}"
        typer.echo(f"{file}: {len(contents.tables)} tables of {contents.made_at}, at {at}{migrated}")
        verdict.report(console())
    if not verdict.ok:
        raise typer.Exit(BROKEN)


def _progress() -> files.OnTable:
    """A line for each table, beside the answer."""
    seen = 0

    def tell(table: str) -> None:
        nonlocal seen
        seen += 1
        typer.echo(f"{seen:>4}  {table}", err=True)

    return tell
