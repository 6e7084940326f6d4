"""A beat job's work: give back what expired holds reserve. The gate and consumption never wait for it."""

from datetime import datetime

from shared.db import credits as credits_db
from shared.db.engine import Tx
from shared.domain.plan import Rules


def release_expired_holds(tx: Tx, _rules: Rules, as_of: datetime, limit: int) -> int:
    """One pass over accounts on the wall clock; how many were looked at, 0 when no hold is due."""
    return credits_db.release_due_holds(tx, as_of=as_of, limit=limit)
