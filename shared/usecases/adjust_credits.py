"""An admin gives or takes credits, with a reason."""

from datetime import datetime
from typing import Any

from shared.db import account_state, audit
from shared.db.account_state import Change
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.credits import MAX_CREDITS
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import AdjustCredits
from shared.errors import Forbidden, InvalidInput


def adjust_credits(
    tx: Tx, operation: Operation, request: AdjustCredits, rules: Rules, *, now: datetime
) -> dict[str, Any]:
    """The new balance. Raises InsufficientCredits, InvalidInput."""
    if operation.principal_id is None:
        raise Forbidden("credits are adjusted by an admin")
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    if not 0 < abs(request.amount) <= MAX_CREDITS:
        raise InvalidInput("an adjustment is not zero and not absurd")
    if request.expires_at is not None and (request.amount < 0 or request.expires_at <= account.now):
        raise InvalidInput("only credits that are given can expire, and only in the future")
    state = lifecycle.adjust_credits(
        account.state,
        rules,
        request.amount,
        admin_id=operation.principal_id,
        reason=request.reason,
        idempotency_key=f"adjust:{operation.id.hex}",
        expires_at=request.expires_at,
        at=account.now,
    )
    account_state.write(tx, [Change(account.loaded, state)], rules)
    audit.record(
        tx,
        at=account.now,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action="credits.adjusted",
        account_id=state.account.id,
        subject_kind="account",
        subject_id=state.account.id,
        reason=request.reason,
        before={"balance_credits": account.state.account.balance_credits},
        after={"balance_credits": state.account.balance_credits},
        operation_id=operation.id,
    )
    return {"account_id": str(state.account.id), "balance_credits": state.account.balance_credits}
