"""Events: written in the transaction of what they tell of, and only ever appended to."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row

from shared.db.bulk import insert_many
from shared.db.engine import Tx
from shared.domain.event import Event, EventKind

TYPES: Final = {
    "account_id": "uuid",
    "kind": "text",
    "subject_id": "uuid",
    "data": "jsonb",
    "occurred_at": "timestamptz",
}


def insert(tx: Tx, told: Sequence[Event]) -> None:
    """Append all of them, in their order."""
    insert_many(tx, "events", TYPES, told)


def record(
    tx: Tx, kind: EventKind, *, account_id: UUID, subject_id: UUID, at: datetime, data: dict[str, Any] | None = None
) -> None:
    """Append one."""
    insert(tx, [Event(account_id=account_id, kind=kind, subject_id=subject_id, data=data or {}, occurred_at=at)])


def page(tx: Tx, account_id: UUID, *, before: int, limit: int) -> Sequence[Row[Any]]:
    """The account's events, newest first, from those numbered below `before`."""
    return tx.rows(
        """
        SELECT * FROM events WHERE account_id = %(account_id)s AND id < %(before)s ORDER BY id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )
