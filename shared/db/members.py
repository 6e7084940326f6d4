"""Members: the users of an account, and the invitations by which they come. Never removed; a removed one keeps its row.

Whoever changes members or invitations locks the members first, so that changes take turns and each sees the last one's.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.domain.member import Member, Members, Role
from shared.errors import NotFound


def lock(tx: Tx, account_id: UUID) -> Members:
    """The members of the account, who stay as they are until this transaction ends.

    The lock is one that signing in does not wait for. Rows are locked in one order, so nobody waits in a circle.
    """
    rows = tx.rows(
        """
        SELECT id, role FROM users WHERE account_id = %(account_id)s AND deleted_at IS NULL
        ORDER BY id FOR NO KEY UPDATE
        """,
        account_id=account_id,
    )
    return Members(Member(row.id, Role(row.role)) for row in rows)


def page(tx: Tx, account_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The account's members, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT id, email, role, created_at FROM users
        WHERE account_id = %(account_id)s AND deleted_at IS NULL AND id < %(before)s
        ORDER BY id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )


def set_role(tx: Tx, account_id: UUID, user_id: UUID, role: Role) -> Row[Any]:
    """Give a member another role; the caller holds the lock and has seen that it may."""
    return tx.one(
        """
        UPDATE users SET role = %(role)s WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
        RETURNING id, email, role, created_at
        """,
        id=user_id,
        account_id=account_id,
        role=str(role),
    )


def remove(tx: Tx, account_id: UUID, user_id: UUID, *, now: datetime) -> None:
    """The user signs in no more, and the address is free again; the caller holds the lock and has seen that it may."""
    tx.one(
        """
        UPDATE users SET deleted_at = %(now)s WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
        RETURNING id
        """,
        id=user_id,
        account_id=account_id,
        now=now,
    )


# --- invitations ------------------------------------------------------------------------------


def invite(
    tx: Tx,
    *,
    invitation_id: UUID,
    account_id: UUID,
    email: str,
    role: Role,
    invited_by: UUID,
    now: datetime,
    expires_at: datetime,
) -> Row[Any]:
    """Invite an address; an earlier invitation of it to this account ends. The caller holds the lock."""
    tx.execute(
        """
        UPDATE invitations SET revoked_at = %(now)s
        WHERE account_id = %(account_id)s AND email = %(email)s AND accepted_at IS NULL AND revoked_at IS NULL
        """,
        account_id=account_id,
        email=email,
        now=now,
    )
    return tx.one(
        """
        INSERT INTO invitations (id, account_id, email, role, invited_by, created_at, expires_at)
        VALUES (%(id)s, %(account_id)s, %(email)s, %(role)s, %(invited_by)s, %(now)s, %(expires_at)s)
        RETURNING *
        """,
        id=invitation_id,
        account_id=account_id,
        email=email,
        role=str(role),
        invited_by=invited_by,
        now=now,
        expires_at=expires_at,
    )


def invitations(tx: Tx, account_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The account's invitations, also those that have ended, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT * FROM invitations WHERE account_id = %(account_id)s AND id < %(before)s
        ORDER BY id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )


_OPEN_INVITATION: Final = """
    SELECT i.*, a.name AS account_name FROM invitations i
    JOIN accounts a ON a.id = i.account_id AND a.deleted_at IS NULL
    WHERE i.id = %(id)s AND i.accepted_at IS NULL AND i.revoked_at IS NULL AND i.expires_at > %(now)s
    """


def admit_invited(tx: Tx, invitation_id: UUID, *, now: datetime) -> None:
    """Let the transaction in to the account of an invitation, if it can be accepted now."""
    tx.execute("SELECT admit_invitation(%(id)s, %(now)s)", id=invitation_id, now=now)


def open_invitation(tx: Tx, invitation_id: UUID, *, now: datetime) -> Row[Any] | None:
    """An invitation that can be accepted now, with the name of its account."""
    return tx.maybe(_OPEN_INVITATION, id=invitation_id, now=now)


def hold_open_invitation(tx: Tx, invitation_id: UUID, *, now: datetime) -> Row[Any] | None:
    """The same, and it stays so until this transaction ends."""
    return tx.maybe(f"{_OPEN_INVITATION} FOR UPDATE OF i", id=invitation_id, now=now)


def accept(tx: Tx, invitation_id: UUID, *, user_id: UUID, now: datetime) -> None:
    """The invitation was used by the user that it made; the caller holds it, open."""
    tx.execute(
        "UPDATE invitations SET accepted_at = %(now)s, accepted_by = %(user_id)s WHERE id = %(id)s",
        id=invitation_id,
        user_id=user_id,
        now=now,
    )


def revoke(tx: Tx, account_id: UUID, invitation_id: UUID, *, now: datetime) -> Row[Any] | None:
    """End an invitation of the account; None when it had ended before. Raises NotFound."""
    row = tx.maybe(
        "SELECT * FROM invitations WHERE id = %(id)s AND account_id = %(account_id)s FOR UPDATE",
        id=invitation_id,
        account_id=account_id,
    )
    if row is None:
        raise NotFound("no such invitation")
    if row.accepted_at is not None or row.revoked_at is not None:
        return None
    tx.execute("UPDATE invitations SET revoked_at = %(now)s WHERE id = %(id)s", id=invitation_id, now=now)
    return row


def keep_invitations(tx: Tx, account_id: UUID, invited_by: UUID, roles: Sequence[Role], *, now: datetime) -> None:
    """Of the invitations that a member made, end those that are not for one of these roles."""
    tx.execute(
        """
        UPDATE invitations SET revoked_at = %(now)s
        WHERE account_id = %(account_id)s AND invited_by = %(invited_by)s AND role <> ALL (%(roles)s::text[])
          AND accepted_at IS NULL AND revoked_at IS NULL
        """,
        account_id=account_id,
        invited_by=invited_by,
        roles=[str(role) for role in roles],
        now=now,
    )
