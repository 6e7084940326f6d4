"""Sessions: who is signed in where, the refresh tokens that prolong it, and its end.

A session is a row, so its end is known to every process at the next request.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx

# What the gate asks of an account `a`; `account_at` is the instant in which it lives.
GATE_COLUMNS: Final = "a.status, a.access_ends_at, account_now(a.id, %(now)s) AS account_at"

# How many requests the plan of an account `a` allows a minute; NULL without a subscription.
LIMIT_COLUMN: Final = """(
    SELECT p.requests_per_minute FROM subscriptions n JOIN plans p ON p.id = n.plan_id
    WHERE n.account_id = a.id AND n.status <> 'ended'
    ) AS requests_per_minute"""

_OF_LIVE_USER: Final = """
    FROM sessions s
    JOIN users u ON u.id = s.user_id AND u.deleted_at IS NULL
    JOIN accounts a ON a.id = u.account_id AND a.deleted_at IS NULL AND a.kind = 'customer'
    WHERE s.id = %(session_id)s AND s.user_id = %(user_id)s AND s.audience = 'customer'
      AND s.revoked_at IS NULL AND s.expires_at > %(now)s
    """

# The user behind a live session, for statements that go on from there.
LIVE_USER: Final = f"SELECT u.id, u.account_id, u.role, {LIMIT_COLUMN} {_OF_LIVE_USER}"


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
    """Somebody signed in. `principal_id` is a user's or an admin's, as the audience says."""
    tx.execute(
        """
        INSERT INTO sessions (id, audience, user_id, admin_id, created_at, expires_at)
        VALUES (%(id)s, %(audience)s, %(user_id)s, %(admin_id)s, %(now)s, %(expires_at)s)
        """,
        id=session_id,
        audience=str(audience),
        user_id=principal_id if audience is Audience.CUSTOMER else None,
        admin_id=principal_id if audience is Audience.ADMIN else None,
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
    """Use the token up; what came of it, and when the session ends.

    The session's lock makes two uses of one token take turns, so the second is seen to be one.
    """
    tx.execute("SELECT 1 FROM sessions WHERE id = %(id)s FOR UPDATE", id=session_id)
    row = tx.maybe(
        """
        SELECT r.used_at, r.expires_at, s.revoked_at, s.expires_at AS session_expires_at
        FROM refresh_tokens r JOIN sessions s ON s.id = r.session_id
        WHERE r.id = %(id)s AND r.session_id = %(session_id)s
        """,
        id=refresh_token_id,
        session_id=session_id,
    )
    if row is None or row.revoked_at is not None or min(row.expires_at, row.session_expires_at) <= now:
        return Rotation.INVALID, None
    if row.used_at is not None:
        return Rotation.REUSED, None
    tx.execute("UPDATE refresh_tokens SET used_at = %(now)s WHERE id = %(id)s", id=refresh_token_id, now=now)
    return Rotation.ROTATED, row.session_expires_at


def revoke(tx: Tx, session_id: UUID, *, reason: str, now: datetime) -> Row[Any] | None:
    """End a session with all its tokens; its user's account, or None when it had ended before."""
    return tx.maybe(
        """
        UPDATE sessions s SET revoked_at = %(now)s, revoked_reason = %(reason)s
        WHERE id = %(id)s AND revoked_at IS NULL
        RETURNING (SELECT u.account_id FROM users u WHERE u.id = s.user_id) AS account_id
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
    """The user behind a live session with what the gate asks of the account, in one query."""
    return tx.maybe(
        f"SELECT u.id, u.role, u.account_id, {GATE_COLUMNS}, {LIMIT_COLUMN} {_OF_LIVE_USER}",
        session_id=session_id,
        user_id=user_id,
        now=now,
    )


def live_admin(tx: Tx, session_id: UUID, admin_id: UUID, *, now: datetime) -> Row[Any] | None:
    """The admin behind a live session."""
    return tx.maybe(
        """
        SELECT d.id FROM sessions s JOIN admins d ON d.id = s.admin_id AND d.disabled_at IS NULL
        WHERE s.id = %(session_id)s AND s.admin_id = %(admin_id)s AND s.audience = 'admin'
          AND s.revoked_at IS NULL AND s.expires_at > %(now)s
        """,
        session_id=session_id,
        admin_id=admin_id,
        now=now,
    )


def _principal_column(audience: Audience) -> str:
    return "user_id" if audience is Audience.CUSTOMER else "admin_id"
