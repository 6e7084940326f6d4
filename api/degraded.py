"""What of the whole system works less well than it should, in words. The numbers are in `/metrics`.

Nothing here says that an API process should not be asked: each of these is somebody else's, or for an operator.
docs/degradation.md tells what goes on all the same.
"""

from datetime import datetime, timedelta
from typing import Final

from api.metrics import clock_skew
from api.throttle import counts_alone
from shared.config import Settings
from shared.db import job_runs
from shared.db import metrics as measured
from shared.db.engine import Tx
from shared.db.migrations.run import Standing, current_revision, head_revision, standing

SILENT_TICKS: Final = 5
RELAY_SILENT: Final = timedelta(seconds=60)
UNBEGUN: Final = timedelta(minutes=2)
CLOCK_SKEW: Final = timedelta(seconds=5)


def without_database() -> dict[str, str]:
    """What this process knows by itself."""
    return {"throttle": "Redis does not answer, and each process counts requests by itself"} if counts_alone() else {}


def degraded(tx: Tx, settings: Settings) -> dict[str, str]:
    """What the database tells, by whose it is; empty when all is well."""
    now = tx.now()
    skew = clock_skew(tx)
    found = [
        ("beat", _beat(tx, settings, now)),
        ("relay", _relay(tx, now)),
        ("workers", _late(measured.oldest_unbegun(tx, now=now), now)),
        ("dead", _counted("operations", measured.dead_operations(tx))),
        ("parked", _counted("accounts", measured.parked_accounts(tx))),
        ("clock", None if abs(skew) <= CLOCK_SKEW else f"{skew.total_seconds():+.1f} s from the database's"),
        ("release", _release(tx)),
        *((row.waits_for, _counted(row.kind, row.operations)) for row in measured.waiting_operations(tx)),
    ]
    told: dict[str, list[str]] = {}
    for name, text in found:
        if text is not None:
            told.setdefault(name, []).append(text)
    return {name: ", ".join(texts) for name, texts in told.items()}


def _beat(tx: Tx, settings: Settings, now: datetime) -> str | None:
    ended = [run.finished_at for run in job_runs.latest(tx) if run.job != job_runs.RELAY]
    silent = timedelta(seconds=SILENT_TICKS * settings.beat_interval_seconds)
    if not ended:
        return "no job has run yet"
    return None if now - max(ended) <= silent else f"no job has run for {_seconds(now - max(ended))}"


def _relay(tx: Tx, now: datetime) -> str | None:
    noted = [run.finished_at for run in job_runs.latest(tx) if run.job == job_runs.RELAY]
    if not noted:
        return "no relay has run yet"
    return None if now - max(noted) <= RELAY_SILENT else f"silent for {_seconds(now - max(noted))}"


def _late(since: datetime | None, now: datetime) -> str | None:
    late = since is not None and now - since > UNBEGUN
    return f"an operation waits for one since {_seconds(now - since)}" if since is not None and late else None


def _release(tx: Tx) -> str | None:
    revision = current_revision(tx.connection)
    newer = standing(revision) is Standing.NEWER
    return f"the database is at {revision}, and this release knows {head_revision()}" if newer else None


def _counted(what: str, count: int) -> str | None:
    return f"{what}: {count}" if count else None


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"
