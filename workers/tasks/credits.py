"""Adjust credits; release holds that expired."""

from datetime import datetime

from shared.db import credits
from shared.db.engine import Tx
from shared.domain.operation import OperationKind
from shared.domain.plan import Rules
from shared.domain.requests import AdjustCredits
from shared.messages import Job
from shared.usecases import adjust_credits
from workers.task import job_task, operation_task


def release_holds(tx: Tx, _rules: Rules, as_of: datetime, limit: int) -> int:
    """One pass over accounts with expired holds."""
    return credits.release_due_holds(tx, as_of=as_of, limit=limit)


adjust_credits_task = operation_task(
    OperationKind.ADJUST_CREDITS, AdjustCredits, adjust_credits.adjust_credits
)
release_holds_task = job_task(Job.RELEASE_HOLDS, release_holds)
