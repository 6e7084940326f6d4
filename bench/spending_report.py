"""What spending costs, as a table for people, JSON for machines, a plot, and the README's own lines."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.markdown import Markdown

from bench.latency import percentile
from bench.load import Load
from bench.spending import GRANTS, LEDGER_ROWS, Results, rate

RESULTS: Final = Path(__file__).parent / "results" / "spending.json"
PLOT: Final = RESULTS.with_suffix(".svg")


def save(results: Results) -> None:
    """Write the JSON document and the plot."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(_thinned(results)), indent=1) + b"\n")
    PLOT.write_text(_plot(results))


def load() -> Results:
    """What the last saved run measured."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=Results)


def print_tables(results: Results, console: Console) -> None:
    """Everything, for people."""
    console.print(Markdown(markdown(results)))


def markdown(results: Results) -> str:
    """The README's tables."""
    many, one = results.spreads
    lines = [
        f"| credits taken per second, in the database | over {many.accounts:,} accounts | of one account |",
        "| --- | ---: | ---: |",
        f"| bare UPDATE and INSERT, a transaction | {rate(many.limit):,.0f} | {rate(one.limit):,.0f} |",
        f"| the same as one statement | {rate(many.one_statement):,.0f} | {rate(one.one_statement):,.0f} |",
        f"| `consume_credits` | {_share(results, 0)} | {_share(results, 1)} |",
        "",
        "| over HTTP, 16 connections | requests/s | median | 99 % |",
        "| --- | ---: | ---: | ---: |",
        "| a bare route: validate, one statement | " + " | ".join(_figures(results.http.bare)) + " |",
        "| `POST /credits/consume` | " + " | ".join(_figures(results.http.product, results.http.bare)) + " |",
        "",
        "| | measured |",
        "| --- | --- |",
        *_rows(results),
    ]
    return "\n".join(lines)


def http_share(results: Results) -> float:
    """The route's rate over the bare one's."""
    return _rate(results.http.product) / _rate(results.http.bare)


def late_share(results: Results) -> float:
    """The route's 99th percentile over the bare one's."""
    return _late(results.http.product) / _late(results.http.bare)


def batch_gain(results: Results) -> float:
    """How many times cheaper an item of a batch is than a call of its own."""
    return statistics.median(results.single_call_us) / statistics.median(results.batch_item_us)


def age_cost(results: Results) -> float:
    """What a call costs on the old account, over what it costs on the new one."""
    return statistics.median(results.old_account_us) / statistics.median(results.new_account_us)


def _rows(results: Results) -> Iterator[str]:
    yield (
        f"| an item of a batch of 1,000 | {statistics.median(results.batch_item_us):,.0f} µs; "
        f"a call of its own takes {batch_gain(results):,.0f} times as long |"
    )
    yield (
        f"| an account with {LEDGER_ROWS:,} ledger rows and {GRANTS} grants | "
        f"{age_cost(results):.2f} times the time of a new one |"
    )


def _share(results: Results, number: int) -> str:
    spread = results.spreads[number]
    ours = rate(spread.product)
    return f"{ours:,.0f} ({ours / rate(spread.limit):.0%}, {ours / rate(spread.one_statement):.0%})"


def _figures(loads: Sequence[Load], beside: Sequence[Load] | None = None) -> list[str]:
    rate, late = f"{_rate(loads):,.0f}", f"{_late(loads):.0f} ms"
    if beside is not None:
        rate += f" ({_rate(loads) / _rate(beside):.0%})"
        late += f" ({_late(loads) / _late(beside):.2f} times)"
    middle = statistics.median(percentile(one.milliseconds, 50) for one in loads)
    return [rate, f"{middle:.0f} ms", late]


def _rate(loads: Sequence[Load]) -> float:
    return statistics.median(one.rate for one in loads)


def _late(loads: Sequence[Load]) -> float:
    return statistics.median(percentile(one.milliseconds, 99) for one in loads)


def _thinned(results: Results) -> Results:
    """Of ten thousand latencies every percentile, which is all that is read of them."""

    def thin(values: Sequence[float]) -> list[float]:
        return [round(percentile(values, of_100), 3) for of_100 in range(100)]

    def thinned(loads: Sequence[Load]) -> list[Load]:
        return [msgspec.structs.replace(one, milliseconds=thin(one.milliseconds)) for one in loads]

    return msgspec.structs.replace(
        results,
        http=msgspec.structs.replace(
            results.http, bare=thinned(results.http.bare), product=thinned(results.http.product)
        ),
        new_account_us=thin(results.new_account_us),
        old_account_us=thin(results.old_account_us),
    )


def _plot(results: Results) -> str:
    import pygal  # type: ignore[import-untyped] # noqa: PLC0415 (its import hook disturbs what is imported later)

    many, one = results.spreads
    plot = pygal.Bar(
        title="Credits taken per second",
        x_labels=[f"database, {many.accounts:,} accounts", "database, one account", "HTTP"],
        style=pygal.style.CleanStyle,
        js=[],
        disable_xml_declaration=True,
        value_formatter=lambda value: f"{value:,.0f}",
        print_values=True,
    )
    plot.add("bare, a transaction", [round(rate(many.limit)), round(rate(one.limit)), None])
    bare = round(_rate(results.http.bare))
    plot.add("bare, one statement", [round(rate(many.one_statement)), round(rate(one.one_statement)), bare])
    ours = round(_rate(results.http.product))
    plot.add("product", [round(rate(many.product)), round(rate(one.product)), ours])
    svg: str = plot.render(is_unicode=True)
    return svg
