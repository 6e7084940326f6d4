"""Test clocks: create, lock, set forward. Their accounts pass by the wall clock's jobs."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.errors import ClockMovesForward, NotFound


def create(tx: Tx, *, test_clock_id: UUID, name: str, now_at: datetime) -> None:
    """A clock that stands at `now_at`."""
    tx.execute(
        "INSERT INTO test_clocks (id, name, now_at) VALUES (%(id)s, %(name)s, %(now_at)s)",
        id=test_clock_id,
        name=name,
        now_at=now_at,
    )


def instant(tx: Tx, test_clock_id: UUID) -> datetime:
    """Where the clock stands. Raises NotFound."""
    row = tx.maybe("SELECT now_at FROM test_clocks WHERE id = %(id)s", id=test_clock_id)
    if row is None:
        raise NotFound("no such test clock")
    now_at: datetime = row.now_at
    return now_at


def hold_still(tx: Tx, test_clock_id: UUID) -> datetime:
    """Where the clock stands, and stays until this transaction ends. Raises NotFound."""
    row = tx.maybe("SELECT now_at FROM test_clocks WHERE id = %(id)s FOR KEY SHARE", id=test_clock_id)
    if row is None:
        raise NotFound("no such test clock")
    now_at: datetime = row.now_at
    return now_at


def set_forward(tx: Tx, test_clock_id: UUID, to: datetime) -> datetime:
    """Set the clock to `to`; where it stood before. Raises NotFound, ClockMovesForward."""
    row = tx.maybe("SELECT now_at FROM test_clocks WHERE id = %(id)s FOR UPDATE", id=test_clock_id)
    if row is None:
        raise NotFound("no such test clock")
    if to < row.now_at:
        raise ClockMovesForward("a test clock cannot be set back", now_at=row.now_at.isoformat())
    tx.execute("UPDATE test_clocks SET now_at = %(to)s WHERE id = %(id)s", id=test_clock_id, to=to)
    stood_at: datetime = row.now_at
    return stood_at


def accounts_on(tx: Tx, test_clock_id: UUID) -> Sequence[UUID]:
    """The accounts that live on the clock, in id order."""
    rows = tx.rows(
        "SELECT id FROM accounts WHERE test_clock_id = %(id)s AND deleted_at IS NULL ORDER BY id",
        id=test_clock_id,
    )
    return [row.id for row in rows]


def get(tx: Tx, test_clock_id: UUID) -> Row[Any]:
    """A clock with how many accounts live on it. Raises NotFound."""
    row = tx.maybe(
        """
        SELECT c.*, (SELECT count(*) FROM accounts a WHERE a.test_clock_id = c.id AND a.deleted_at IS NULL) AS accounts
        FROM test_clocks c WHERE c.id = %(id)s
        """,
        id=test_clock_id,
    )
    if row is None:
        raise NotFound("no such test clock")
    return row
