"""The audit log: who decided what, append-only."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Row

from shared.db.engine import Jsonb, Tx
from shared.domain.operation import PrincipalKind
from shared.ids import new_id


class Filter(Struct, frozen=True, kw_only=True):
    """Which decisions; those that every field that is not None is true of. `since` counts, `until` does not."""

    action: str | None = None
    account_id: UUID | None = None
    actor_id: UUID | None = None
    subject_id: UUID | None = None
    operation_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


_CONDITIONS = {
    "action": "action = %(action)s",
    "account_id": "account_id = %(account_id)s",
    "actor_id": "actor_id = %(actor_id)s",
    "subject_id": "subject_id = %(subject_id)s",
    "operation_id": "operation_id = %(operation_id)s",
    "since": "at >= %(since)s",
    "until": "at < %(until)s",
}


def page(tx: Tx, wanted: Filter, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """Decisions, newest first, from those written before `before`."""
    given = {name: value for name in _CONDITIONS if (value := getattr(wanted, name)) is not None}
    conditions = ["id < %(before)s", *(_CONDITIONS[name] for name in given)]
    return tx.rows(
        f"SELECT * FROM audit_log WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT %(limit)s",  # noqa: S608 (constants of this module)
        before=before,
        limit=limit,
        **given,
    )


def record(
    tx: Tx,
    *,
    at: datetime,
    actor_kind: PrincipalKind,
    actor_id: UUID | None,
    action: str,
    subject_kind: str,
    subject_id: UUID | None,
    account_id: UUID | None = None,
    reason: str | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    operation_id: UUID | None = None,
) -> None:
    """Append one decision; it commits with what it describes."""
    tx.execute(
        """
        INSERT INTO audit_log (id, at, actor_kind, actor_id, action, account_id, subject_kind, subject_id, reason,
                               before, after, operation_id)
        VALUES (%(id)s, %(at)s, %(actor_kind)s, %(actor_id)s, %(action)s, %(account_id)s, %(subject_kind)s,
                %(subject_id)s, %(reason)s, %(before)s, %(after)s, %(operation_id)s)
        """,
        id=new_id(),
        at=at,
        actor_kind=str(actor_kind),
        actor_id=actor_id,
        action=action,
        account_id=account_id,
        subject_kind=subject_kind,
        subject_id=subject_id,
        reason=reason,
        before=None if before is None else Jsonb(before),
        after=None if after is None else Jsonb(after),
        operation_id=operation_id,
    )
