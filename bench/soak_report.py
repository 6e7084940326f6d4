"""Operations beside bare work, and a soak, as tables for people, JSON for machines, a plot, and the README's lines."""

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.markdown import Markdown

from bench import operations, soak
from bench.latency import percentile
from bench.operations import Contender
from bench.soak import Struck

RESULTS: Final = Path(__file__).parent / "results" / "soak.json"
PLOT: Final = RESULTS.with_suffix(".svg")
PERCENTILES: Final = (50, 95, 99)
SMOOTHED_SECONDS: Final = 3
LABELS: Final = {
    "insert": "a bare route: validate, insert",
    "insert and publish": "the same, and publish inside the request",
    "product": "`POST /invoices`, as shipped",
    "bare task": "a bare Celery task: insert",
    "cancel_subscription": "a cancellation, end to end",
    "open_invoice": "a checkout, end to end",
}


class Results(Struct, frozen=True, kw_only=True):
    """Everything that `python -m bench soak` measured."""

    machine: dict[str, str]
    rates: operations.Results
    soak: soak.Results


def save(results: Results) -> None:
    """Write the JSON document and the plot."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(_thinned(results)), indent=1) + b"\n")
    PLOT.write_text(_plot(results.soak))


def load() -> Results:
    """What the last saved run measured."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=Results)


def print_tables(results: Results, console: Console) -> None:
    """Everything, for people."""
    console.print(Markdown(markdown(results)))
    if results.soak.wrong:
        console.print(f"{len(results.soak.wrong)} things are wrong:", *results.soak.wrong, sep="\n", style="red")


def markdown(results: Results) -> str:
    """The README's tables."""
    insert, publish, product = results.rates.accepting
    lines = [
        "| accepting, 16 connections | requests/s | of insert | of insert and publish | Python µs | PostgreSQL µs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(_row(one, insert, publish) for one in (insert, publish, product)),
        "",
        "| executing, 2 processes | operations/s | of the bare task | Python µs | PostgreSQL µs |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(_row(one, results.rates.working[0]) for one in results.rates.working),
        "",
        f"| {results.soak.seconds / 60:.0f} minutes of faults | measured |",
        "| --- | --- |",
        *_rows(results),
        "",
        "| fault | lasted | recovered in | backlog | drained |",
        "| --- | ---: | ---: | ---: | ---: |",
        *map(_fault_row, results.soak.struck),
    ]
    return "\n".join(lines)


def accept_share(results: Results, beside: int) -> float:
    """The product's rate of accepting over that of a bare route: 0 inserts alone, 1 publishes as well."""
    return results.rates.accepting[-1].rate / results.rates.accepting[beside].rate


def work_share(results: Results) -> float:
    """The rate of the cheapest kind of operation over that of the bare task."""
    bare, *product = results.rates.working
    return max(one.rate for one in product) / bare.rate


def added_to_start(results: Results) -> float:
    """How many milliseconds later an idle worker begins than with a message that is sent inside a bare request."""
    return percentile(results.rates.starts_product, 50) - percentile(results.rates.starts_bare, 50)


def slowest_kill(results: Results) -> float:
    """Seconds of the longest recovery from the kill of one process."""
    return max((one.recovery_seconds for one in results.soak.struck if one.is_kill), default=0.0)


def drain_share(results: Results) -> float | None:
    """The slowest drain after the broker's return over that after workers stood still; None if there was none."""
    normal, *others = [one for one in results.soak.struck if one.drained_per_second is not None]
    rates = [one.drained_per_second for one in others if one.drained_per_second is not None]
    return min(rates) / normal.drained_per_second if rates and normal.drained_per_second else None


def _row(one: Contender, *beside: Contender) -> str:
    shares = ["" if one is bare else f"{one.rate / bare.rate:.0%}" for bare in beside]
    cells = [LABELS[one.name], f"{one.rate:,.0f}", *shares, f"{one.python_us:,.0f}", f"{one.postgres_us:,.0f}"]
    return f"| {' | '.join(cells)} |"


def _rows(results: Results) -> Iterator[str]:
    soaked = results.soak
    yield f"| accepted operations | {sum(soaked.accepted):,}, {soaked.accepted_per_second:,.0f}/s |"
    yield f"| lost, done twice, or wrong otherwise | {len(soaked.wrong)} |"
    for what, latencies in (("while no fault was felt", soaked.calm_latencies), ("of all", soaked.latencies)):
        figures = ", ".join(f"{percentile(latencies, of_100):,.0f}" for of_100 in PERCENTILES) if latencies else "-"
        yield f"| accepted until done, {what}: 50, 95, 99 % | {figures} ms |"
    yield f"| longest recovery from the kill of one process | {slowest_kill(results):.1f} s |"
    share = drain_share(results)
    if share is not None:
        yield f"| slowest drain after the broker's return, over that after workers stood still | {share:.0%} |"
    rates = results.rates
    yield (
        f"| until an idle worker begins, median: published in a bare request, and ours | "
        f"{percentile(rates.starts_bare, 50):.1f} and {percentile(rates.starts_product, 50):.1f} ms |"
    )


def _fault_row(one: Struck) -> str:
    drained = "" if one.drained_per_second is None else f"{one.drained_per_second:,.0f}/s"
    backlog = f"{one.backlog:,}" if one.has_backlog else ""
    return f"| {one.name} | {one.healed - one.began:.1f} s | {one.recovery_seconds:.1f} s | {backlog} | {drained} |"


def _thinned(results: Results) -> Results:
    """Of thousands of latencies every percentile, which is all that is read of them."""

    def thin(values: Sequence[float]) -> list[float]:
        return [round(percentile(values, of_100), 3) for of_100 in range(100)] if values else []

    def thinned(one: Contender) -> Contender:
        answers = [
            msgspec.structs.replace(
                answers, load=msgspec.structs.replace(answers.load, milliseconds=thin(answers.load.milliseconds))
            )
            for answers in one.answers
        ]
        return msgspec.structs.replace(one, answers=answers)

    rates = msgspec.structs.replace(
        results.rates,
        accepting=[thinned(one) for one in results.rates.accepting],
        starts_bare=thin(results.rates.starts_bare),
        starts_product=thin(results.rates.starts_product),
    )
    soaked = msgspec.structs.replace(
        results.soak, latencies=thin(results.soak.latencies), calm_latencies=thin(results.soak.calm_latencies)
    )
    return msgspec.structs.replace(results, rates=rates, soak=soaked)


def _plot(soaked: soak.Results) -> str:
    """Accepted and done by the second, and the faults as bars below."""
    import pygal  # type: ignore[import-untyped] # noqa: PLC0415 (its import hook disturbs what is imported later)

    plot = pygal.XY(
        title="Operations per second while faults strike",
        x_title="seconds",
        style=pygal.style.CleanStyle,
        js=[],
        disable_xml_declaration=True,
        show_dots=False,
        allow_interruptions=True,
        legend_at_bottom=True,
    )
    plot.add("accepted", _smoothed(soaked.accepted))
    plot.add("done", _smoothed(soaked.done))
    plot.add("a fault lasts", list(_bars([(one.began, one.healed) for one in soaked.struck], at=-1)))
    plot.add(
        "until all accepted before is done",
        list(_bars([(one.healed, one.healed + one.recovery_seconds) for one in soaked.struck], at=-2)),
    )
    svg: str = plot.render(is_unicode=True)
    return svg


def _smoothed(counts: Sequence[int]) -> list[tuple[float, float]]:
    """Means of some seconds each."""
    edges = range(0, len(counts) + 1, SMOOTHED_SECONDS)
    return [(first + SMOOTHED_SECONDS / 2, statistics.fmean(counts[first:end])) for first, end in pairwise(edges)]


def _bars(spans: Sequence[tuple[float, float]], *, at: float) -> Iterator[Any]:
    for began, ended in spans:
        yield began, at
        yield max(ended, began + 0.3), at  # what is over at once is to be seen, too
        yield None
