"""The beat jobs' work: claim accounts whose next transition is due, decide, write, all as sets.

A claimed account is brought fully up to the instant asked for, whichever kinds of transition that
takes, so the order within an account is kept although the jobs are separate. Only an operation that was
accepted before that instant and is not executed yet stops it there: it may change what comes after it.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

import structlog

from shared.db import account_state
from shared.db.engine import Tx, is_transient
from shared.domain.lifecycle import Transition
from shared.domain.plan import Rules

# One account that slept for years must not make a transaction without end; the next pass goes on.
STEPS_PER_PASS: Final = 200

log = structlog.get_logger(__name__)


def advance_due_accounts(tx: Tx, rules: Rules, transition: Transition, *, as_of: datetime, limit: int) -> int:
    """Advance at most `limit` accounts; how many were claimed. 0 means that nothing is due.

    An account that fails does not fail its set: the set is halved until the account is alone, and
    that one is parked with the reason.
    """
    claimed = account_state.claim_due(tx, transition, as_of=as_of, limit=limit)
    if claimed:
        _advance(tx, rules, claimed, as_of=as_of)
    return len(claimed)


def _advance(tx: Tx, rules: Rules, account_ids: list[UUID], *, as_of: datetime) -> None:
    try:
        with tx.savepoint():
            changes = account_state.advanced(tx, account_ids, rules, as_of=as_of, steps=STEPS_PER_PASS)
            account_state.write(tx, changes, rules)
    except Exception as error:  # whatever it is, it must not stop the other accounts
        if is_transient(error):
            raise
        if len(account_ids) == 1:
            log.exception("account_parked", account_id=str(account_ids[0]))
            account_state.park(tx, account_ids[0], at=as_of, reason=f"{type(error).__name__}: {error}")
            return
        middle = len(account_ids) // 2
        _advance(tx, rules, account_ids[:middle], as_of=as_of)
        _advance(tx, rules, account_ids[middle:], as_of=as_of)
