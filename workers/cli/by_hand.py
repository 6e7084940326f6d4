"""One of beat's jobs by hand. To import this is to load Celery's app, which wants its settings in place."""

from shared.db import job_runs
from shared.domain.lifecycle import Transition
from shared.messages import Job
from shared.usecases.release_expired_holds import release_expired_holds
from workers.runtime import runtime
from workers.task import Pass, parse_as_of, run_job
from workers.tasks.operations import relay_operations
from workers.tasks.subscriptions import advancing


def run_by_hand(job: Job, *, as_of: str | None) -> int:
    """Run the job until nothing is due; how many items it took up. Raises FutureInstant."""
    try:
        if job is Job.RELAY_OPERATIONS:
            relay_operations.run()
        else:
            run_job(job, _pass_of(job), as_of=parse_as_of(as_of))
        with runtime().database.transaction() as tx:
            (newest,) = (row for row in job_runs.latest(tx) if row.job == job)
        items: int = newest.items
        return items
    finally:
        runtime().database.dispose()


def _pass_of(job: Job) -> Pass:
    for transition in Transition:
        if transition.job is job:
            return advancing(transition)
    return release_expired_holds
