"""API keys: stored as hashes, found by them, and revoked rather than removed."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.errors import NotFound

# How exactly `last_used_at` is kept: a busy key must not write at every request.
LAST_USED_PRECISION: Final = timedelta(minutes=1)


def create(
    tx: Tx,
    *,
    api_key_id: UUID,
    account_id: UUID,
    site_id: UUID | None,
    name: str,
    prefix: str,
    key_hash: bytes,
    scopes: Sequence[str],
    created_by: UUID,
    expires_at: datetime | None,
) -> Row[Any]:
    """A new key; the caller has seen that the site is the account's."""
    return tx.one(
        """
        INSERT INTO api_keys (id, account_id, site_id, name, prefix, key_hash, scopes, created_by, expires_at)
        VALUES (%(id)s, %(account_id)s, %(site_id)s, %(name)s, %(prefix)s, %(key_hash)s, %(scopes)s, %(created_by)s,
                %(expires_at)s)
        RETURNING *
        """,
        id=api_key_id,
        account_id=account_id,
        site_id=site_id,
        name=name,
        prefix=prefix,
        key_hash=key_hash,
        scopes=list(scopes),
        created_by=created_by,
        expires_at=expires_at,
    )


def page(tx: Tx, account_id: UUID, *, before: UUID, limit: int) -> Sequence[Row[Any]]:
    """The account's keys, revoked ones too, newest first, from those made before `before`."""
    return tx.rows(
        """
        SELECT * FROM api_keys WHERE account_id = %(account_id)s AND id < %(before)s
        ORDER BY id DESC LIMIT %(limit)s
        """,
        account_id=account_id,
        before=before,
        limit=limit,
    )


def revoke(tx: Tx, account_id: UUID, api_key_id: UUID, *, now: datetime) -> None:
    """From now on the key opens nothing; again changes nothing. Raises NotFound."""
    row = tx.maybe(
        """
        UPDATE api_keys SET revoked_at = coalesce(revoked_at, %(now)s)
        WHERE id = %(id)s AND account_id = %(account_id)s
        RETURNING id
        """,
        id=api_key_id,
        account_id=account_id,
        now=now,
    )
    if row is None:
        raise NotFound("no such API key")


def live(tx: Tx, key_hash: bytes, *, now: datetime) -> Row[Any] | None:
    """The key with what the gate asks of its account, in one query, and when it was last used."""
    row = tx.maybe(
        """
        SELECT k.id, k.account_id, k.scopes, k.last_used_at, a.status, a.access_ends_at,
               account_now(a.id, %(now)s) AS account_at
        FROM api_keys k
        JOIN accounts a ON a.id = k.account_id AND a.deleted_at IS NULL AND a.kind = 'customer'
        LEFT JOIN sites s ON s.id = k.site_id
        WHERE k.key_hash = %(key_hash)s AND k.revoked_at IS NULL AND s.deleted_at IS NULL
          AND (k.expires_at IS NULL OR k.expires_at > %(now)s)
        """,
        key_hash=key_hash,
        now=now,
    )
    if row is not None and (row.last_used_at is None or row.last_used_at < now - LAST_USED_PRECISION):
        tx.execute("UPDATE api_keys SET last_used_at = %(now)s WHERE id = %(id)s", id=row.id, now=now)
    return row
