"""Cancel and assign; and the beat jobs that move subscriptions through time."""

from datetime import datetime

from shared.domain.lifecycle import Transition
from shared.domain.operation import OperationKind
from shared.domain.plan import Rules
from shared.domain.requests import AssignPlan, CancelSubscription
from shared.usecases import advance_due_accounts, assign_plan, cancel_subscription
from workers.task import Pass, Tx, job_task, operation_task


def advancing(transition: Transition) -> Pass:
    """The pass of a job that takes up accounts whose next transition is this one."""

    def one_pass(tx: Tx, rules: Rules, as_of: datetime, limit: int) -> int:
        return advance_due_accounts.advance_due_accounts(tx, rules, transition, as_of=as_of, limit=limit)

    return one_pass


cancel_subscription_task = operation_task(
    OperationKind.CANCEL_SUBSCRIPTION, CancelSubscription, cancel_subscription.cancel_subscription
)
assign_plan_task = operation_task(OperationKind.ASSIGN_PLAN, AssignPlan, assign_plan.assign_plan)
job_tasks = [job_task(transition.job, advancing(transition)) for transition in Transition]
