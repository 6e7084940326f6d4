"""Sites: where an account's product runs. Never removed; a deleted one keeps its row."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.errors import NotFound


def create(tx: Tx, *, site_id: UUID, account_id: UUID, name: str, domain: str) -> Row[Any]:
    """A new site. Raises Conflict when the account has one with this domain."""
    return tx.one(
        """
        INSERT INTO sites (id, account_id, name, domain) VALUES (%(id)s, %(account_id)s, %(name)s, %(domain)s)
        RETURNING *
        """,
        id=site_id,
        account_id=account_id,
        name=name,
        domain=domain,
    )


def get(tx: Tx, account_id: UUID, site_id: UUID) -> Row[Any]:
    """A site of this account. Raises NotFound."""
    return _found(
        tx.maybe(
            "SELECT * FROM sites WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL",
            id=site_id,
            account_id=account_id,
        )
    )


def page(tx: Tx, account_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The account's sites, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT * FROM sites WHERE account_id = %(account_id)s AND deleted_at IS NULL AND id < %(before)s
        ORDER BY id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )


def update(tx: Tx, account_id: UUID, site_id: UUID, *, name: str | None, domain: str | None) -> Row[Any]:
    """Change what is not None. Raises NotFound, and Conflict when the domain is in use."""
    return _found(
        tx.maybe(
            """
            UPDATE sites SET name = coalesce(%(name)s, name), domain = coalesce(%(domain)s, domain)
            WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
            RETURNING *
            """,
            id=site_id,
            account_id=account_id,
            name=name,
            domain=domain,
        )
    )


def delete(tx: Tx, account_id: UUID, site_id: UUID, *, now: datetime) -> None:
    """Mark a site as deleted; API keys that are bound to it stop working. Raises NotFound."""
    _found(
        tx.maybe(
            """
            UPDATE sites SET deleted_at = %(now)s
            WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
            RETURNING id
            """,
            id=site_id,
            account_id=account_id,
            now=now,
        )
    )


def _found(row: Row[Any] | None) -> Row[Any]:
    if row is None:
        raise NotFound("no such site")
    return row
