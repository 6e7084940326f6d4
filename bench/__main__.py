"""`python -m bench`: measure renewals, spending and operations beside the limit, the habit and the bare thing."""

import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from bench import (
    idle,
    latency,
    limit,
    operations,
    product,
    profile,
    report,
    soak,
    soak_report,
    spending,
    spending_report,
)
from bench.lab import DURABLE, Lab, lab
from bench.meter import Run, machine
from bench.population import DUE_AT, STARTED_AT
from shared.config import PROJECT_DIR
from shared.domain.calendar import Interval, boundary
from shared.messages import Queue
from workers.stack import interruptible

AS_OF: Final = DUE_AT + timedelta(days=1)
HABIT_ACCOUNTS: Final = 2_000
MONTHS: Final = 12
BATCH_SIZES: Final = (250, 500, 1_000, 2_000, 5_000)

console = Console(stderr=True)


app = typer.Typer(help="Benchmarks, each beside the limit and the habit, on one durable server.", no_args_is_help=True)

Rounds = Annotated[int, typer.Option(help="Runs of each kind; medians are reported.", min=1)]
Save = Annotated[bool, typer.Option(help="Keep the results in bench/results, which the README cites.")]


@app.command()
def renewals(
    sizes: Annotated[list[int], typer.Option("--accounts", help="How many are due at one instant; may be repeated.")],
    rounds: Rounds = 3,
    *,
    save: Save = False,
) -> None:
    """Compare renewals with plain SQL and with a task per subscription.

    Takes about three quarters of an hour and 15 GB of disk with the sizes of `make bench`.
    """
    with _place() as place:
        results = measure(place, sorted(sizes), rounds)
    report.print_tables(results, Console())
    if save:
        report.save(results)


@app.command("spending")
def spend(rounds: Rounds = 3, *, save: Save = False) -> None:
    """Compare spending credits with bare statements, and with a bare route over HTTP; takes about eight minutes."""
    with _place() as place:
        results = spending.measure(place, rounds, console.print)
    spending_report.print_tables(results, Console())
    if save:
        spending_report.save(results)


@app.command("soak")
def soak_system(
    minutes: Annotated[float, typer.Option(help="How long customers live among faults.", min=0.1, max=50)] = 3,
    seed: Annotated[int, typer.Option(help="Decides what customers do, and the order of the faults.")] = 1,
    rounds: Rounds = 3,
    *,
    save: Save = False,
) -> None:
    """Compare accepting and executing with bare ones, then let faults strike for some minutes.

    Takes about six minutes besides those. Exit code 1: something was lost, was done twice, or is wrong otherwise.
    """
    with _place() as place:
        rates = operations.measure(place, operations.Size(rounds=rounds), console.print)
    with _folder() as folder:
        soaked = soak.run(folder, seconds=60 * minutes, seed=seed, say=console.print)
    results = soak_report.Results(machine=machine(), rates=rates, soak=soaked)
    soak_report.print_tables(results, Console())
    if save:
        soak_report.save(results)
    if soaked.wrong:
        raise typer.Exit(code=1)


@contextmanager
def _place() -> Iterator[Lab]:
    with _folder() as folder, lab(folder) as place:
        yield place


@contextmanager
def _folder() -> Iterator[Path]:
    """An empty one, which is gone afterwards."""
    folder = PROJECT_DIR / ".data" / "bench"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with interruptible():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(place: Lab, sizes: list[int], rounds: int) -> report.Results:
    """Everything, one after another."""
    runs: dict[tuple[str, int, int], list[Run]] = {}
    for size in sizes:
        for number in range(rounds):
            for processes in (1, 2):
                for name, contender in (("limit", limit.roll_all), ("product", product.roll)):
                    with place.book(size) as settings:
                        run = contender(place, settings, accounts=size, processes=processes, as_of=AS_OF)
                    runs.setdefault((name, processes, size), []).append(run)
                    console.print(
                        f"round {number + 1}: {name}, {processes} processes, {size:,} accounts: {run.rate:,.0f}/s"
                    )
    runs["habit", 2, HABIT_ACCOUNTS] = habits(place, rounds)
    largest, middle = sizes[-1], sizes[len(sizes) // 2]
    console.print("batch sizes")
    batches = [batch(place, sizes[0], size, rounds) for size in BATCH_SIZES]
    console.print(f"{MONTHS} months in a row")
    months = live(place, middle)
    with place.book(largest) as settings:
        console.print("idle ticks")
        idle_milliseconds = idle.measure(place, settings)
        console.print("signups")
        latencies = latency.measure(place, settings, accounts=largest, as_of=AS_OF)
    with place.book(middle) as settings:
        console.print("profile")
        costs = profile.measure(place, settings, as_of=AS_OF)
    return report.Results(
        machine=machine(),
        settings={
            "postgresql": ", ".join(DURABLE),
            "batch_size": str(settings.batch_size),
        },
        renewals=[report.Series(contender=key[0], processes=key[1], runs=value) for key, value in runs.items()],
        batches=batches,
        batches_accounts=sizes[0],
        months=months,
        months_accounts=middle,
        idle_milliseconds=idle_milliseconds,
        idle_accounts=largest,
        latencies=latencies,
        latencies_accounts=largest,
        profile=costs,
        profile_accounts=middle,
    )


def habits(place: Lab, rounds: int) -> list[Run]:
    """Runs of the habit."""
    runs = []
    for number in range(rounds):
        with place.book(HABIT_ACCOUNTS) as settings:
            os.environ.update(settings.as_environment())
            from bench import habit  # noqa: PLC0415 (its Celery app reads the environment when it is loaded)

            runs.append(habit.roll(place, settings, accounts=HABIT_ACCOUNTS, processes=2, as_of=AS_OF))
        console.print(f"round {number + 1}: habit: {runs[-1].rate:,.0f}/s")
    return runs


def batch(place: Lab, accounts: int, size: int, rounds: int) -> report.Batch:
    """The median rate of two processes with batches of that size."""
    rates = []
    for _ in range(rounds):
        with place.book(accounts) as settings:
            sized = settings.model_copy(update={"batch_size": size})
            rates.append(product.roll(place, sized, accounts=accounts, processes=2, as_of=AS_OF).rate)
    return report.Batch(size=size, rate=statistics.median(rates))


def live(place: Lab, accounts: int) -> list[report.Month]:
    """Renew the same accounts month after month."""
    months = []
    with (
        place.book(accounts) as settings,
        place.opened(settings) as database,
        product.celery_workers(settings, "workers.app", Queue.PERIODIC, 2) as worker,
    ):
        for month in range(1, MONTHS + 1):
            as_of = boundary(STARTED_AT, Interval.MONTH, 1, month, "UTC") + timedelta(days=1)
            run = product.roll_with(place, settings, database, worker, accounts=accounts, as_of=as_of)
            with database.transaction() as tx:
                size = tx.scalar("SELECT pg_database_size(current_database())")
            months.append(report.Month(rate=run.rate, table_bytes=size))
            console.print(f"month {month}: {run.rate:,.0f}/s, {size / 2**20:,.0f} MB")
    return months


if __name__ == "__main__":
    app()
