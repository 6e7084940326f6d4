"""The relay's second trigger: a beat tick that sends what is not done."""

from contextlib import closing
from typing import Any

from shared.messages import Job
from workers.app import app
from workers.relay import Relay
from workers.runtime import runtime
from workers.task import RETRY_AFTER_WORKER_LOSS_SECONDS, timed_job


@app.task(
    name=Job.RELAY_OPERATIONS.task_name,
    ignore_result=True,
    max_retries=3,
    default_retry_delay=RETRY_AFTER_WORKER_LOSS_SECONDS,
)
def relay_operations(**_: Any) -> None:
    """One round of the relay."""
    relay = Relay(runtime().settings, runtime().database)
    with timed_job(Job.RELAY_OPERATIONS) as run, closing(relay):
        run.items = relay.send_due()
