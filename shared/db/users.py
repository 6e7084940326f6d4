"""Users: the people of an account, found by the address they sign in with."""

from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx


def by_email(tx: Tx, email: str) -> Row[Any] | None:
    """Who signs in with this (normalised) address."""
    return tx.maybe(
        """
        SELECT u.id, u.account_id FROM users u
        JOIN accounts a ON a.id = u.account_id AND a.deleted_at IS NULL AND a.kind = 'customer'
        WHERE u.email = %(email)s AND u.deleted_at IS NULL
        """,
        email=email,
    )


def owner_email(tx: Tx, account_id: UUID) -> str | None:
    """The address of the account's first owner: for admins, and for what is printed."""
    row = tx.maybe(
        """
        SELECT email FROM users WHERE account_id = %(account_id)s AND role = 'owner' AND deleted_at IS NULL
        ORDER BY id LIMIT 1
        """,
        account_id=account_id,
    )
    return None if row is None else row.email
