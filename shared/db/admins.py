"""Platform admins: not users, and no row of a customer can make one."""

from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx


def create(tx: Tx, *, admin_id: UUID, email: str, password_hash: str) -> None:
    """A new admin. Raises EmailTaken."""
    tx.execute(
        "INSERT INTO admins (id, email, password_hash) VALUES (%(id)s, %(email)s, %(password_hash)s)",
        id=admin_id,
        email=email,
        password_hash=password_hash,
    )


def by_email(tx: Tx, email: str) -> Row[Any] | None:
    """Who signs in with this (normalised) address, with the hash of the password."""
    return tx.maybe("SELECT id, password_hash FROM admins WHERE email = %(email)s AND disabled_at IS NULL", email=email)


def set_password(tx: Tx, *, email: str, password_hash: str) -> bool:
    """Give an admin another password; False when there is no such admin."""
    return bool(
        tx.execute(
            "UPDATE admins SET password_hash = %(password_hash)s WHERE email = %(email)s",
            email=email,
            password_hash=password_hash,
        )
    )


def rehash_password(tx: Tx, admin_id: UUID, *, old_hash: str, new_hash: str) -> None:
    """Keep the same password under another hash, unless it was changed in the meantime."""
    tx.execute(
        "UPDATE admins SET password_hash = %(new_hash)s WHERE id = %(id)s AND password_hash = %(old_hash)s",
        id=admin_id,
        old_hash=old_hash,
        new_hash=new_hash,
    )
