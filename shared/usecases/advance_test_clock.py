"""Time passes on a test clock, and its accounts live through it; the same code as the wall clock's jobs."""

from datetime import datetime, timedelta
from typing import Any, Final

from shared.db import account_state, operations, test_clocks
from shared.db.engine import Tx
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import AdvanceTestClock
from shared.errors import InvalidInput

LONGEST_ADVANCE: Final = timedelta(days=5 * 366)
MAX_ACCOUNTS: Final = 1_000


def advance_test_clock(
    tx: Tx, operation: Operation, request: AdvanceTestClock, rules: Rules, *, now: datetime
) -> dict[str, Any]:
    """Set the clock forward and bring its accounts up to it. Raises NotFound, ClockMovesForward, InvalidInput.

    What waits for an operation, such as a charge that comes due on the way, follows when that is executed.
    """
    del operation, now
    stood_at = test_clocks.set_forward(tx, request.test_clock_id, request.to)
    if request.to - stood_at > LONGEST_ADVANCE:
        raise InvalidInput(f"advance by at most {LONGEST_ADVANCE.days} days at a time")
    ids = account_state.lock(tx, test_clocks.accounts_on(tx, request.test_clock_id))
    if len(ids) > MAX_ACCOUNTS:
        raise InvalidInput(f"a test clock serves at most {MAX_ACCOUNTS} accounts")
    changes = account_state.advanced(tx, ids, rules, as_of=request.to)
    account_state.write(tx, changes, rules)
    operations.send_what_is_due_on(tx, ids, clock_at=request.to)
    return {
        "test_clock_id": str(request.test_clock_id),
        "now_at": request.to.isoformat(),
        "accounts": len(changes),
    }
