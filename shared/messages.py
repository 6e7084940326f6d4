"""The wire between processes: names of queues and tasks. A message carries an operation id, or nothing.

Names are explicit and stay: renaming a function must not change what is on the wire. The tasks that
execute operations are named after their kind, `OperationKind.task_name`.
"""

from enum import StrEnum


class Queue(StrEnum):
    """Two lanes, so that a backlog of renewals never delays a person who waits."""

    INTERACTIVE = "interactive"
    PERIODIC = "periodic"


class Job(StrEnum):
    """The beat jobs. Each is a sweep over due rows: running it twice, or twice at once, is harmless."""

    EXPIRE_TRIALS = "expire-trials"
    ROLL_RENEWALS = "roll-renewals"
    SUSPEND_OVERDUE = "suspend-overdue"
    CANCEL_DUE = "cancel-due"
    SEED_CREDITS = "seed-credits"
    EXPIRE_CREDITS = "expire-credits"
    RELEASE_HOLDS = "release-holds"
    ASK_PROVIDERS = "ask-providers"
    FORGET_EXPIRED = "forget-expired"
    RELAY_OPERATIONS = "relay-operations"

    @property
    def task_name(self) -> str:
        """The Celery task that runs this job."""
        return f"billing.{self.value.replace('-', '_')}"
