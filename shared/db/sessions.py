"""Sessions: who is signed in where, the refresh tokens that prolong it, and its end.

A session is a row, so its end is known to every process at the next request.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Jsonb, Tx
from shared.ids import new_id


class Audience(StrEnum):
    """For whose routes a token is; customers and admins share neither table nor login."""

    CUSTOMER = "customer"
    ADMIN = "admin"


class Rotation(StrEnum):
    """What came of a refresh token."""

    ROTATED = "rotated"
    INVALID = "invalid"  # unknown, expired, or of a session that has ended
    REUSED = "reused"  # it was used before: two parties hold it


def create(
    tx: Tx, *, session_id: UUID, audience: Audience, principal_id: UUID, now: datetime, expires_at: datetime
) -> None:
    """Somebody signed in, and is let in by that. `principal_id` is a user's or an admin's, as the audience says."""
    tx.execute(
        "SELECT open_session(%(id)s, %(audience)s, %(principal_id)s, %(now)s, %(expires_at)s)",
        id=session_id,
        audience=str(audience),
        principal_id=principal_id,
        now=now,
        expires_at=expires_at,
    )


def add_refresh_token(tx: Tx, *, refresh_token_id: UUID, session_id: UUID, expires_at: datetime) -> None:
    """The token by which the session may be prolonged next."""
    tx.execute(
        "INSERT INTO refresh_tokens (id, session_id, expires_at) VALUES (%(id)s, %(session_id)s, %(expires_at)s)",
        id=refresh_token_id,
        session_id=session_id,
        expires_at=expires_at,
    )


def use_refresh_token(
    tx: Tx, *, refresh_token_id: UUID, session_id: UUID, now: datetime
) -> tuple[Rotation, datetime | None]:
    """Use the token up; what came of it, and when the session ends if it goes on."""
    row = tx.one(
        "SELECT * FROM use_refresh_token(%(id)s, %(session_id)s, %(now)s)",
        id=refresh_token_id,
        session_id=session_id,
        now=now,
    )
    return Rotation(row.outcome), row.session_expires_at


def end_misused(
    tx: Tx, session_id: UUID, principal_id: UUID, *, reason: str, request: dict[str, Any], now: datetime
) -> None:
    """End the session of a token that was misused, whoever presents it; the audit log says by which request."""
    tx.execute(
        "SELECT end_misused_session(%(id)s, %(principal_id)s, %(reason)s, %(now)s, %(audit_id)s, %(request)s)",
        id=session_id,
        principal_id=principal_id,
        reason=reason,
        now=now,
        audit_id=new_id(),
        request=Jsonb(request),
    )


def revoke(tx: Tx, session_id: UUID, *, reason: str, now: datetime) -> None:
    """End a session with all its tokens; one that had ended stays as it is."""
    tx.execute(
        """
        UPDATE sessions SET revoked_at = %(now)s, revoked_reason = %(reason)s
        WHERE id = %(id)s AND revoked_at IS NULL
        """,
        id=session_id,
        reason=reason,
        now=now,
    )


def revoke_all(tx: Tx, audience: Audience, principal_id: UUID, *, reason: str, now: datetime) -> int:
    """End every session of a user or an admin with all its tokens; how many had not ended before."""
    column = _principal_column(audience)
    return tx.execute(
        f"""
        UPDATE sessions SET revoked_at = %(now)s, revoked_reason = %(reason)s
        WHERE {column} = %(principal_id)s AND revoked_at IS NULL AND expires_at > %(now)s
        """,  # noqa: S608 (one of two constants)
        principal_id=principal_id,
        reason=reason,
        now=now,
    )


def page(tx: Tx, audience: Audience, principal_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The sessions of a user or an admin, also those that have ended, newest first, from those made before `before`.

    Its last use is when it was last signed in or prolonged: whoever uses it goes on using it for the life of an access
    token at most before that.
    """
    column = _principal_column(audience)
    return tx.rows(
        f"""
        SELECT s.id, s.created_at, s.expires_at, s.revoked_at, s.revoked_reason,
               coalesce((SELECT max(r.used_at) FROM refresh_tokens r WHERE r.session_id = s.id), s.created_at)
                   AS last_used_at
        FROM sessions s WHERE s.{column} = %(principal_id)s AND s.id < %(before)s
        ORDER BY s.id DESC LIMIT %(limit)s
        """,  # noqa: S608 (one of two constants)
        principal_id=principal_id,
        before=before,
        limit=limit,
    )


def live_user(tx: Tx, session_id: UUID, user_id: UUID, *, now: datetime) -> Row[Any] | None:
    """The user behind a live session with what the gate asks of the account, to which the transaction is let in."""
    return tx.maybe(
        "SELECT * FROM admit_user(%(session_id)s, %(user_id)s, %(now)s)",
        session_id=session_id,
        user_id=user_id,
        now=now,
    )


def live_admin(tx: Tx, session_id: UUID, admin_id: UUID, *, now: datetime) -> Row[Any] | None:
    """The admin behind a live session; the transaction is let in to what admins see and ask."""
    return tx.maybe(
        "SELECT id FROM admit_admin(%(session_id)s, %(admin_id)s, %(now)s)",
        session_id=session_id,
        admin_id=admin_id,
        now=now,
    )


def _principal_column(audience: Audience) -> str:
    return "user_id" if audience is Audience.CUSTOMER else "admin_id"
