"""How commands answer: tables for people, one JSON document for machines."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNLIMITED_WIDTH: Final = 240  # where nobody looks at a screen, nothing is cut

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]


def console() -> Console:
    """Standard output, in the width of the terminal if there is one."""
    return Console() if sys.stdout.isatty() else Console(width=UNLIMITED_WIDTH)


def print_json(value: object) -> None:
    """One JSON document. Instants are ISO 8601, ids are text."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table | Text:
    """Rows under their column names, or a line that says that there are none."""
    if not rows:
        return Text.assemble((f"{title}: ", "bold"), ("none", "dim"))
    result = Table(title=Text(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for name, value in rows[0].items():
        result.add_column(name, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(shown(value)) for value in row.values()))
    return result


def facts(title: str, row: dict[str, Any]) -> Table:
    """One row, a line per column; empty ones are left out."""
    result = Table(title=Text(title, "bold"), title_justify="left", box=None, show_header=False)
    for name, value in row.items():
        if value is not None:
            result.add_row(Text(name, "dim"), Text(shown(value)))
    return result


def shown(value: object) -> str:
    """A value as people read it."""
    match value:
        case None:
            return ""
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%SZ}"
        case bool():
            return "yes" if value else "no"
        case dict() | list():
            return msgspec.json.encode(value).decode()
        case tuple():
            return " … ".join(shown(part) for part in value)
        case _:
            return str(value)
