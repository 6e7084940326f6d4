"""What the suite found, a line for each fault and broker, and the table of it that the README shows."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

BEGIN: Final = "<!-- what the fault suite found -->"
END: Final = "<!-- end of what it found -->"
HEADING: Final = (
    "| what happens, under load | with Valkey | with RabbitMQ |\n| --- | --- | --- |\n"  # accepted, seconds to recover
)


class Outcome(Struct, frozen=True):
    """One fault that was survived.

    recovered_seconds: from its end until all that had been accepted by then was done.
    """

    fault: str
    broker: str
    accepted: int
    recovered_seconds: float


def record(outcome: Outcome) -> None:
    """Keep it until the run ends, whichever of its processes found it."""
    with _file().open("ab") as lines:
        lines.write(msgspec.json.encode(outcome) + b"\n")


def recorded() -> list[Outcome]:
    """What was found in this run."""
    if not _file().exists():
        return []
    return [msgspec.json.decode(line, type=Outcome) for line in _file().read_bytes().splitlines()]


def write_table(readme: Path, faults: Iterable[Callable[..., None]]) -> None:
    """Put what was found into a document, in the place of what it shows."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    found = {(outcome.fault, outcome.broker): outcome for outcome in recorded()}
    rows = "".join(
        f"| {story(fault)} | {_cell(found.get((fault.__name__, 'valkey')))} "
        f"| {_cell(found.get((fault.__name__, 'rabbitmq')))} |\n"
        for fault in faults
    )
    readme.write_text(f"{before}{BEGIN}\n{HEADING}{rows}{END}{after}")


def story(fault: Callable[..., None]) -> str:
    """What happens, in its own words."""
    return " ".join((fault.__doc__ or "").split()).removesuffix(".")


def _cell(outcome: Outcome | None) -> str:
    return "not run" if outcome is None else f"{outcome.accepted} done once, {outcome.recovered_seconds:.1f} s"


def _file() -> Path:
    return Path(os.environ["TEST_RUN_DIR"]) / "outcomes.jsonl"
