"""A beat job's work: forget what has run out and would otherwise be kept: unconfirmed signups, failed sign-ins."""

from datetime import datetime

from shared.db import sign_ins, signups
from shared.db.engine import Tx
from shared.domain.plan import Rules


def forget_expired(tx: Tx, _rules: Rules, as_of: datetime, limit: int) -> int:
    """One pass; how many rows were removed, 0 when none has run out."""
    return signups.forget(tx, now=as_of, limit=limit) + sign_ins.forget(tx, now=as_of, limit=limit)
