"""An admin undoes a posting of the ledger, by rows that point to its rows."""

from datetime import datetime
from typing import Any

from shared.db import audit, credits
from shared.db.engine import Tx
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import ReverseCredits
from shared.errors import Forbidden, NotFound


def reverse_credits(
    tx: Tx, operation: Operation, request: ReverseCredits, rules: Rules, *, now: datetime
) -> dict[str, Any]:
    """How much came back or was taken, and the new balance. Raises NotFound, AlreadyReversed, NotReversible."""
    if operation.principal_id is None:
        raise Forbidden("credits are reversed by an admin")
    if operation.account_id is None:
        raise NotFound("the operation names no account")
    reversal = credits.reverse(
        credits.of_account(tx, operation.account_id, lambda _tx: rules),
        request.seq,
        admin_id=operation.principal_id,
        reason=request.reason,
        now=now,
    )
    audit.record(
        tx,
        at=reversal.at,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action="credits.reversed",
        account_id=operation.account_id,
        subject_kind="account",
        subject_id=operation.account_id,
        reason=request.reason,
        before={"balance_credits": reversal.balance_before, "seq": request.seq},
        after={"balance_credits": reversal.balance_credits, "reversed_credits": reversal.reversed_credits},
        operation_id=operation.id,
    )
    return {
        "account_id": str(operation.account_id),
        "seq": request.seq,
        "reversed_credits": reversal.reversed_credits,
        "expired_credits": reversal.expired_credits,
        "balance_credits": reversal.balance_credits,
    }
