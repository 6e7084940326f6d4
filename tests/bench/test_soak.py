"""The soak measures what it says, in seconds here: everything asked for is answered, done, and seen."""

from pathlib import Path

import pytest

from bench import operations, soak
from bench.lab import lab

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("faults")]

SIZE = operations.Size(rounds=1, seconds=0.3, warm_up_seconds=0.1, operations=30, starts=5)


def test_accepting_and_executing_are_measured_beside_bare_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "ACCOUNTS", 200)
    with lab(tmp_path) as place:
        rates = operations.measure(place, SIZE, lambda _: None)
    assert [one.name for one in rates.accepting] == ["insert", "insert and publish", "product"]
    assert all(one.rate > 0 and one.python_us > 0 for one in (*rates.accepting, *rates.working))
    assert [one.runs[0].accounts for one in rates.working] == [30, 30, 30]
    assert len(rates.starts_bare) == len(rates.starts_product) == 5


def test_a_short_soak_loses_nothing_and_sees_its_fault(tmp_path: Path) -> None:
    soaked = soak.run(tmp_path, seconds=1, seed=1, say=lambda _: None)
    assert soaked.wrong == []
    assert [one.name for one in soaked.struck] == ["workers stand still"]
    (still,) = soaked.struck
    assert still.backlog > 0
    assert still.recovery_seconds > 0
    assert sum(soaked.accepted) == sum(soaked.done) == len(soaked.latencies) > still.backlog
    assert max(soaked.latencies) > 1_000, "somebody waited while the workers stood still"
