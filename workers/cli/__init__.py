"""The operator's command line, `python -m workers …`.

Each module holds the commands of one concern; `session` opens the database and turns what goes wrong into
one line and exit status 2. Status 1 says that a check found something, or a run failed.
"""

import signal
import sys
from types import FrameType
from typing import Annotated, Final, NoReturn

import typer

from shared import __version__
from workers.cli import accounts, admins, backups, books, explain, operations, processes, schema
from workers.cli.session import Commands

HELP: Final = """
Run and look after the billing engine.

With DATABASE_URL and BROKER_URL unset, a command starts the servers it needs in DATA_DIR, or uses those of a
command that runs already. A new database there is migrated and seeded by itself; any other changes its schema by
`migrate` alone.
"""

app = typer.Typer(
    cls=Commands,
    name="python -m workers",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

START: Final = "Run"
LOOK: Final = "Look"
SET_UP: Final = "Set up"
KEEP: Final = "Keep"

app.command("up", rich_help_panel=START)(processes.up)
app.command("demo", rich_help_panel=START)(processes.demo)
app.command("relay", rich_help_panel=START)(processes.relay)
app.command("run", rich_help_panel=START)(processes.run)
app.command("state", rich_help_panel=LOOK)(books.state)
app.command("check", rich_help_panel=LOOK)(books.check)
app.command("explain", rich_help_panel=LOOK)(explain.explain)
app.add_typer(operations.commands, name="operations", rich_help_panel=LOOK)
app.add_typer(accounts.commands, name="accounts", rich_help_panel=LOOK)
app.command("backup", rich_help_panel=KEEP)(backups.backup)
app.command("restore", rich_help_panel=KEEP)(backups.restore)
app.command("migrate", rich_help_panel=SET_UP)(schema.migrate)
app.command("rollback", rich_help_panel=SET_UP)(schema.rollback)
app.command("seed-plans", rich_help_panel=SET_UP)(schema.seed_plans)
app.command("create-free-trial-plan", rich_help_panel=SET_UP)(schema.create_free_trial_plan)
app.command("create-admin", rich_help_panel=SET_UP)(admins.create_admin)


def main() -> None:
    """Run the command that the arguments name. SIGTERM ends it in order, so that embedded servers stop."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    app()


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _version(wanted: bool) -> None:  # noqa: FBT001 (typer hands it over)
    if wanted:
        typer.echo(f"prepaid {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    del version
