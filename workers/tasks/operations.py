"""The relay's second trigger: a beat tick that sends what is not done."""

from typing import Any

from shared.clock import utc_now
from shared.db import job_runs
from shared.messages import Job
from workers.app import app
from workers.relay import Relay
from workers.runtime import runtime


@app.task(name=Job.RELAY_OPERATIONS.task_name, ignore_result=True)
def relay_operations(**_: Any) -> None:
    """One round of the relay."""
    started_at = utc_now()
    sent = Relay(runtime().settings, runtime().database).send_due(now=started_at)
    finished_at = utc_now()
    duration_ms = int((finished_at - started_at).total_seconds() * 1_000)
    with runtime().database.transaction() as tx:
        job_runs.record(
            tx,
            Job.RELAY_OPERATIONS,
            started_at=started_at,
            finished_at=finished_at,
            duration_ms=duration_ms,
            items=sent,
        )
