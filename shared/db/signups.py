"""Signups that wait until somebody confirms the address. Nothing of an account is there yet, so nobody holds one."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx


def create(
    tx: Tx,
    *,
    signup_id: UUID,
    account_name: str,
    email: str,
    password_hash: str,
    time_zone: str,
    test_clock_id: UUID | None,
    now: datetime,
    expires_at: datetime,
) -> None:
    """What an account will be made of."""
    tx.execute(
        """
        INSERT INTO signups (id, account_name, email, password_hash, time_zone, test_clock_id, created_at, expires_at)
        VALUES (%(id)s, %(account_name)s, %(email)s, %(password_hash)s, %(time_zone)s, %(test_clock_id)s, %(now)s,
                %(expires_at)s)
        """,
        id=signup_id,
        account_name=account_name,
        email=email,
        password_hash=password_hash,
        time_zone=time_zone,
        test_clock_id=test_clock_id,
        now=now,
        expires_at=expires_at,
    )


def open_signup(tx: Tx, signup_id: UUID, *, now: datetime) -> Row[Any] | None:
    """A signup that can be confirmed now, for whoever writes to it."""
    return tx.maybe(
        "SELECT id, email, expires_at FROM signups WHERE id = %(id)s AND expires_at > %(now)s", id=signup_id, now=now
    )


def to_confirm(tx: Tx, signup_id: UUID, *, now: datetime) -> Row[Any] | None:
    """The same with all that an account is made of, and the hash that the password is held against."""
    return tx.maybe("SELECT * FROM signup_to_confirm(%(id)s, %(now)s)", id=signup_id, now=now)


def forget(tx: Tx, *, now: datetime, limit: int) -> int:
    """Remove those that can be confirmed no more, with their password hashes; how many."""
    return tx.execute(
        """
        DELETE FROM signups WHERE id IN (
            SELECT id FROM signups WHERE expires_at <= %(now)s ORDER BY expires_at LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED
        )
        """,
        now=now,
        limit=limit,
    )
