"""What a tick costs when nothing is due: one probe of an index for each job."""

import statistics
from datetime import timedelta
from typing import Final

from bench.lab import Lab
from bench.meter import timed
from bench.population import DUE_AT
from shared.config import Settings
from shared.db.plans import load_rules
from shared.domain.lifecycle import Transition
from shared.usecases.advance_due_accounts import advance_due_accounts
from shared.usecases.release_expired_holds import release_expired_holds

TICKS: Final = 50


def measure(lab: Lab, settings: Settings) -> dict[str, float]:
    """Milliseconds of an idle pass of each job, its transaction included; the median of TICKS."""
    as_of = DUE_AT - timedelta(seconds=1)
    results = {}
    with lab.opened(settings) as database:
        for transition in Transition:
            seconds: list[float] = []
            for _ in range(TICKS):
                with timed(seconds), database.transaction() as tx:
                    rules = load_rules(tx, settings)
                    if advance_due_accounts(tx, rules, transition, as_of=as_of, limit=settings.batch_size):
                        raise RuntimeError("something was due")
            results[str(transition.job)] = 1_000 * statistics.median(seconds)
        seconds = []
        for _ in range(TICKS):
            with timed(seconds), database.transaction() as tx:
                release_expired_holds(tx, load_rules(tx, settings), as_of, settings.batch_size)
        results["release-holds"] = 1_000 * statistics.median(seconds)
    return results
