"""An admin gives or takes credits, with a reason."""

from datetime import datetime
from typing import Any

from shared.db import audit, credits
from shared.db.engine import Tx
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import AdjustCredits
from shared.errors import Forbidden, NotFound


def adjust_credits(
    tx: Tx, operation: Operation, request: AdjustCredits, rules: Rules, *, now: datetime
) -> dict[str, Any]:
    """The new balance. Raises InsufficientCredits, InvalidInput."""
    if operation.principal_id is None:
        raise Forbidden("credits are adjusted by an admin")
    if operation.account_id is None:
        raise NotFound("the operation names no account")
    adjusted = credits.adjust(
        credits.of_account(tx, operation.account_id, lambda _tx: rules),
        request.amount,
        key=operation.id.hex,
        admin_id=operation.principal_id,
        reason=request.reason,
        expires_at=request.expires_at,
        now=now,
    )
    audit.record(
        tx,
        at=adjusted.at,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action="credits.adjusted",
        account_id=operation.account_id,
        subject_kind="account",
        subject_id=operation.account_id,
        reason=request.reason,
        before={"balance_credits": adjusted.balance_before},
        after={"balance_credits": adjusted.balance_credits},
        operation_id=operation.id,
    )
    return {"account_id": str(operation.account_id), "balance_credits": adjusted.balance_credits}
