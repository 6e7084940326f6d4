"""An admin gives an account a plan; the only way to enterprise."""

from datetime import datetime
from typing import Any

from shared.db import account_state, audit
from shared.db.account_state import Change
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import AssignPlan
from shared.errors import NotFound


def assign_plan(tx: Tx, operation: Operation, request: AssignPlan, rules: Rules, *, now: datetime) -> dict[str, Any]:
    """Assign at once or when the period ends. Raises NotFound, PlanNotAssignable."""
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    plan = rules.plan_by_slug(request.plan)
    if plan is None:
        raise NotFound(f"no plan is called {request.plan}")
    before = account.state.live
    state = lifecycle.assign_plan(account.state, rules, plan, at=account.now, at_period_end=request.at_period_end)
    account_state.write(tx, [Change(account.loaded, state)], rules)
    audit.record(
        tx,
        at=account.now,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action="plan.assigned",
        account_id=state.account.id,
        subject_kind="account",
        subject_id=state.account.id,
        reason=request.reason,
        before={"plan": rules.plans[before.plan_id].slug if before else None},
        after={"plan": plan.slug, "at_period_end": request.at_period_end},
        operation_id=operation.id,
    )
    return {"account_id": str(state.account.id), "plan": plan.slug, "at_period_end": request.at_period_end}
