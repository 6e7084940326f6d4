"""When each beat job last ran, and the relay last made its rounds, so that silence can be seen."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.messages import Job

RELAY: Final = "relay"  # stands among the jobs, and is none: a process that never ends


def record(tx: Tx, job: Job | str, *, finished_at: datetime, duration_ms: int, items: int) -> None:
    """Note a run; the newest is kept."""
    tx.execute(
        """
        INSERT INTO job_runs (job, started_at, finished_at, duration_ms, items)
        VALUES (%(job)s, %(started_at)s, %(finished_at)s, %(duration_ms)s, %(items)s)
        ON CONFLICT (job) DO UPDATE SET started_at = excluded.started_at, finished_at = excluded.finished_at,
               duration_ms = excluded.duration_ms, items = excluded.items
        WHERE job_runs.started_at <= excluded.started_at
        """,
        job=str(job),
        started_at=finished_at - timedelta(milliseconds=duration_ms),
        finished_at=finished_at,
        duration_ms=duration_ms,
        items=items,
    )


def latest(tx: Tx) -> Sequence[Row[Any]]:
    """The newest run of each job, and the newest round of the relay."""
    return tx.rows("SELECT * FROM job_runs ORDER BY job")
