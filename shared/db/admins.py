"""Platform admins: not users, and no row of a customer can make one."""

from uuid import UUID

from shared.db.engine import Tx


def create(tx: Tx, *, admin_id: UUID, email: str, password_hash: str) -> None:
    """A new admin. Raises EmailTaken."""
    tx.execute(
        "INSERT INTO admins (id, email, password_hash) VALUES (%(id)s, %(email)s, %(password_hash)s)",
        id=admin_id,
        email=email,
        password_hash=password_hash,
    )


def set_password(tx: Tx, *, email: str, password_hash: str) -> bool:
    """Give an admin another password; False when there is no such admin."""
    return bool(
        tx.execute(
            "UPDATE admins SET password_hash = %(password_hash)s WHERE email = %(email)s",
            email=email,
            password_hash=password_hash,
        )
    )
