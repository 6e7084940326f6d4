"""Adjust and reverse credits; release holds that expired."""

from shared.domain.operation import OperationKind
from shared.domain.requests import AdjustCredits, ReverseCredits
from shared.messages import Job
from shared.usecases import adjust_credits, release_expired_holds, reverse_credits
from workers.task import job_task, operation_task

adjust_credits_task = operation_task(OperationKind.ADJUST_CREDITS, AdjustCredits, adjust_credits.adjust_credits)
reverse_credits_task = operation_task(OperationKind.REVERSE_CREDITS, ReverseCredits, reverse_credits.reverse_credits)
release_holds_task = job_task(Job.RELEASE_HOLDS, release_expired_holds.release_expired_holds)
