"""The customer leaves, when the period ends or now."""

from datetime import datetime
from typing import Any

from shared.db import account_state
from shared.db.account_state import Change
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import CancelSubscription


def cancel_subscription(
    tx: Tx, operation: Operation, request: CancelSubscription, rules: Rules, *, now: datetime
) -> dict[str, Any]:
    """When access ends. Raises NoLiveSubscription."""
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    state = lifecycle.cancel(account.state, at=account.now, at_period_end=request.at_period_end)
    account_state.write(tx, [Change(account.loaded, state)], rules)
    sub = state.subscriptions[-1]
    ends_at = sub.ended_at or lifecycle.access_ends_at(state, rules)
    return {
        "account_id": str(sub.account_id),
        "subscription_id": str(sub.id),
        "ends_at": ends_at.isoformat() if ends_at else None,
    }
