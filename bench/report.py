"""What was measured, as a table for people, JSON for machines, a plot, and the README's own lines."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from bench.latency import Latencies, percentile
from bench.meter import Run
from bench.profile import Cost

RESULTS: Final = Path(__file__).parent / "results" / "renewals.json"
PLOT: Final = RESULTS.with_suffix(".svg")
MEGABYTE: Final = 2**20


class Series(Struct, frozen=True, kw_only=True):
    """Runs of one contender: `limit`, `product` or `habit`, with so many processes."""

    contender: str
    processes: int
    runs: list[Run]

    @property
    def accounts(self) -> int:
        """Accounts in each run."""
        return self.runs[0].accounts

    @property
    def rate(self) -> float:
        """Median of accounts per second."""
        return statistics.median(run.rate for run in self.runs)

    @property
    def python_us(self) -> float:
        """Median processor time of Python for one account, in microseconds."""
        return 1e6 * statistics.median(run.python_seconds / run.accounts for run in self.runs)

    @property
    def postgres_us(self) -> float:
        """Median processor time of PostgreSQL for one account, in microseconds."""
        return 1e6 * statistics.median(run.postgres_seconds / run.accounts for run in self.runs)

    @property
    def peak_megabytes(self) -> float:
        """The largest process of all runs."""
        return max(run.peak_megabytes for run in self.runs)


class Month(Struct, frozen=True, kw_only=True):
    """One of several renewals in a row on the same tables."""

    rate: float
    table_bytes: int


class Batch(Struct, frozen=True, kw_only=True):
    """How fast two processes renew in batches of so many accounts, and how long each batch holds its locks."""

    size: int
    rate: float

    @property
    def milliseconds(self) -> float:
        """From claim to commit, in each of two processes."""
        return 1_000 * self.size / (self.rate / 2)


class Results(Struct, frozen=True, kw_only=True):
    """Everything that one `make bench` measured."""

    machine: dict[str, str]
    settings: dict[str, str]
    renewals: list[Series]
    batches: list[Batch]
    batches_accounts: int
    months: list[Month]
    months_accounts: int
    idle_milliseconds: dict[str, float]
    idle_accounts: int
    latencies: Latencies
    latencies_accounts: int
    profile: dict[str, Cost]
    profile_accounts: int

    def series(self, contender: str, processes: int, accounts: int | None = None) -> Series:
        """The series of that name; of any size unless `accounts` says which."""
        return next(
            one
            for one in self.renewals
            if (one.contender, one.processes) == (contender, processes) and accounts in {None, one.accounts}
        )


def save(results: Results) -> None:
    """Write the JSON document and the plot."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    PLOT.write_text(_plot(results))


def load() -> Results:
    """What the last saved run measured."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=Results)


def print_tables(results: Results, console: Console) -> None:
    """Everything, for people."""
    table = Table(title="Renewals, with the old seed's expiry and the new seed", title_justify="left")
    for heading in ("", "processes", "accounts", "accounts/s", "of the limit", "Python µs", "PostgreSQL µs", "peak MB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for one in results.renewals:
        table.add_row(
            one.contender,
            str(one.processes),
            f"{one.accounts:,}",
            f"{one.rate:,.0f}",
            "" if one.contender == "habit" else f"{share(results, one):.0%}",
            f"{one.python_us:,.0f}",
            f"{one.postgres_us:,.0f}",
            f"{one.peak_megabytes:,.0f}",
        )
    console.print(table)
    table = Table(title=f"Batches of the engine, 2 processes, {results.batches_accounts:,} accounts")
    for heading in ("accounts in a batch", "accounts/s", "ms from claim to commit"):
        table.add_column(heading, justify="right")
    for batch in results.batches:
        table.add_row(f"{batch.size:,}", f"{batch.rate:,.0f}", f"{batch.milliseconds:,.0f}")
    console.print(table)
    table = Table(title=f"Months in a row, {results.months_accounts:,} accounts", title_justify="left")
    for heading in ("month", "accounts/s", "of the first", "tables and indexes, MB"):
        table.add_column(heading, justify="right")
    for number, month in enumerate(results.months, start=1):
        size = f"{month.table_bytes / MEGABYTE:,.0f}"
        table.add_row(str(number), f"{month.rate:,.0f}", f"{month.rate / results.months[0].rate:.0%}", size)
    console.print(table)
    table = Table(title=f"Where the time goes, {results.profile_accounts:,} accounts, one process")
    for heading in ("", "µs per account", "of them Python"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, cost in results.profile.items():
        table.add_row(name, *(f"{1e6 * value / results.profile_accounts:.1f}" for value in (cost.wall, cost.python)))
    console.print(table)
    console.print("\n".join(markdown_rows(results)))


def share(results: Results, one: Series) -> float:
    """The rate of a series over that of the limit with as many processes and accounts."""
    return one.rate / results.series("limit", one.processes, one.accounts).rate


def markdown(results: Results) -> str:
    """The README's tables."""
    sizes = sorted({one.accounts for one in results.renewals if one.contender == "product"})
    lines = [
        "| renewals per second | " + " | ".join(f"{size:,}" for size in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for contender, label in (("limit", "plain SQL, nothing decided"), ("product", "this engine")):
        for processes in (1, 2):
            cells = []
            for size in sizes:
                one = results.series(contender, processes, size)
                cells.append(f"{one.rate:,.0f}" + (f" ({share(results, one):.0%})" if contender == "product" else ""))
            lines.append(f"| {label}, {_processes(processes)} | " + " | ".join(cells) + " |")
    lines += ["", "| | measured |", "| --- | --- |", *markdown_rows(results)]
    return "\n".join(lines)


def markdown_rows(results: Results) -> Iterable[str]:
    """What is one figure each."""
    habit = results.series("habit", 2)
    largest = max(one.accounts for one in results.renewals if one.contender == "product")
    product = results.series("product", 2, largest)
    middle = results.series("product", 2, results.months_accounts)
    late = results.latencies
    per_month = [month.rate for month in results.months]
    yield (
        f"| one Celery task and ORM session per subscription, 2 processes | {habit.rate:,.0f} renewals/s; "
        f"this engine does {middle.rate / habit.rate:,.0f} times as many |"
    )
    yield f"| {largest:,} accounts renewed, 2 processes | {product.accounts / product.rate / 60:.1f} min |"
    yield f"| cost of a renewal at {largest:,} over that at {middle.accounts:,} | {middle.rate / product.rate:.2f} |"
    yield f"| largest worker process at {largest:,} accounts | {product.peak_megabytes:,.0f} MB |"
    yield (
        f"| twelve months in a row, {results.months_accounts:,} accounts: cost of the last over the first | "
        f"{per_month[0] / per_month[-1]:.2f} |"
    )
    yield (
        f"| a tick of all jobs with nothing due, {results.idle_accounts:,} accounts | "
        f"{sum(results.idle_milliseconds.values()):.1f} ms |"
    )
    yield (
        f"| a signup, median and 95 %: idle | {percentile(late.signups_idle, 50):.0f} and "
        f"{percentile(late.signups_idle, 95):.0f} ms |"
    )
    yield (
        f"| a signup while {results.latencies_accounts:,} accounts are rolled | "
        f"{percentile(late.signups_during, 50):.0f} and {percentile(late.signups_during, 95):.0f} ms, "
        f"{late.ratio:.1f} times the idle median |"
    )
    yield (
        f"| spending credits of an account in the batch under way: longest of {len(late.consumptions_during)} waits | "
        f"{max(late.consumptions_during):.0f} ms"
        + (f"; the longest batch took {late.longest_batch:.0f} ms |" if late.longest_batch else " |")
    )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _plot(results: Results) -> str:
    import pygal  # type: ignore[import-untyped] # noqa: PLC0415 (its import hook disturbs what is imported later)

    sizes = sorted({one.accounts for one in results.renewals if one.contender == "product"})
    plot = pygal.Bar(
        title="Renewals per second, by accounts due at one instant",
        x_labels=[f"{size:,}" for size in sizes],
        style=pygal.style.CleanStyle,
        js=[],
        disable_xml_declaration=True,
        value_formatter=lambda value: f"{value:,.0f}",
        print_values=True,
    )
    for contender, processes in (("limit", 1), ("product", 1), ("limit", 2), ("product", 2)):
        rates: Sequence[float] = [round(results.series(contender, processes, size).rate) for size in sizes]
        plot.add(f"{contender}, {_processes(processes)}", rates)
    plot.add("habit, 2 processes", [round(results.series("habit", 2).rate)] * len(sizes))
    svg: str = plot.render(is_unicode=True)
    return svg
