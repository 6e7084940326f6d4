"""Accounts and their owners: creation."""

from uuid import UUID

from shared.db.engine import Tx


def create(tx: Tx, *, account_id: UUID, name: str, time_zone: str, test_clock_id: UUID | None) -> None:
    """A customer's account before its first subscription; `account_state.write` completes it."""
    tx.execute(
        """
        INSERT INTO accounts (id, kind, name, time_zone, status, test_clock_id)
        VALUES (%(id)s, 'customer', %(name)s, %(time_zone)s, 'trial', %(test_clock_id)s)
        """,
        id=account_id,
        name=name,
        time_zone=time_zone,
        test_clock_id=test_clock_id,
    )


def create_user(tx: Tx, *, user_id: UUID, account_id: UUID, email: str, password_hash: str, role: str) -> None:
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
        role=role,
    )
