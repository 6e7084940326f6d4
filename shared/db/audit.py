"""The audit log: who decided what, append-only."""

from datetime import datetime
from typing import Any
from uuid import UUID

from shared.db.engine import Jsonb, Tx
from shared.domain.operation import PrincipalKind
from shared.ids import new_id


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
