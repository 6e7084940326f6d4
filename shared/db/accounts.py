"""Accounts and their owners: creation."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.domain.account import Account
from shared.domain.member import Role
from shared.errors import NotFound


def create(tx: Tx, account: Account, *, name: str, test_clock_id: UUID | None) -> None:
    """A customer's account before its first subscription; `account_state.write` completes it."""
    tx.execute(
        """
        INSERT INTO accounts (id, kind, name, time_zone, status, acted_at, test_clock_id)
        VALUES (%(id)s, 'customer', %(name)s, %(time_zone)s, %(status)s, %(acted_at)s, %(test_clock_id)s)
        """,
        id=account.id,
        name=name,
        time_zone=account.time_zone,
        status=str(account.status),
        acted_at=account.acted_at,
        test_clock_id=test_clock_id,
    )


def create_user(tx: Tx, *, user_id: UUID, account_id: UUID, email: str, password_hash: str, role: Role) -> None:
    """A user of the account. Raises EmailTaken."""
    tx.execute(
        """
        INSERT INTO users (id, account_id, email, password_hash, role)
        VALUES (%(id)s, %(account_id)s, %(email)s, %(password_hash)s, %(role)s)
        """,
        id=user_id,
        account_id=account_id,
        email=email,
        password_hash=password_hash,
        role=str(role),
    )


def get(tx: Tx, account_id: UUID) -> Row[Any]:
    """A customer's account. Raises NotFound."""
    row = tx.maybe(
        "SELECT * FROM accounts WHERE id = %(id)s AND kind = 'customer' AND deleted_at IS NULL", id=account_id
    )
    if row is None:
        raise NotFound("no such account")
    return row


def page(tx: Tx, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """Customers' accounts, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT * FROM accounts WHERE kind = 'customer' AND deleted_at IS NULL AND id < %(before)s
        ORDER BY id DESC LIMIT %(limit)s
        """,
        before=before,
        limit=limit,
    )
