"""API keys: stored as hashes, found by them, and revoked rather than removed.

A row is one secret. Rotating a key makes another row that replaces it, so finding a key stays one look-up by its hash.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.errors import ApiKeyNotLive, NotFound

# How exactly `last_used_at` is kept: a busy key must not write at every request.
LAST_USED_PRECISION: Final = timedelta(minutes=1)

# All but the hash, which lets transactions in.
COLUMNS: Final = """id, account_id, site_id, name, prefix, scopes, created_by, created_at, expires_at, last_used_at,
    revoked_at, replaced_by"""


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
        f"""
        INSERT INTO api_keys (id, account_id, site_id, name, prefix, key_hash, scopes, created_by, expires_at)
        VALUES (%(id)s, %(account_id)s, %(site_id)s, %(name)s, %(prefix)s, %(key_hash)s, %(scopes)s, %(created_by)s,
                %(expires_at)s)
        RETURNING {COLUMNS}
        """,  # noqa: S608 (a constant of this module)
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
        f"""
        SELECT {COLUMNS} FROM api_keys WHERE account_id = %(account_id)s AND id < %(before)s
        ORDER BY id DESC LIMIT %(limit)s
        """,  # noqa: S608 (a constant of this module)
        account_id=account_id,
        before=before,
        limit=limit,
    )


def rotate(
    tx: Tx,
    account_id: UUID,
    api_key_id: UUID,
    *,
    new_id: UUID,
    prefix: str,
    key_hash: bytes,
    rotated_by: UUID,
    now: datetime,
    overlap: timedelta,
) -> Row[Any]:
    """The key that replaces this one: the same name, scopes, site and expiry under another secret.

    The old secret works for the overlap, and no longer than it would have; what it replaced itself ends now, so there
    are never more than two. Raises NotFound, ApiKeyNotLive.
    """
    old = tx.maybe(
        f"SELECT {COLUMNS} FROM api_keys WHERE id = %(id)s AND account_id = %(account_id)s FOR UPDATE",  # noqa: S608 (a constant of this module)
        id=api_key_id,
        account_id=account_id,
    )
    if old is None:
        raise NotFound("no such API key")
    if old.replaced_by is not None:
        raise ApiKeyNotLive("this key was replaced before; rotate the one that replaces it")
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise ApiKeyNotLive("this key has ended; make a new one")
    new = create(
        tx,
        api_key_id=new_id,
        account_id=account_id,
        site_id=old.site_id,
        name=old.name,
        prefix=prefix,
        key_hash=key_hash,
        scopes=old.scopes,
        created_by=rotated_by,
        expires_at=old.expires_at,
    )
    tx.execute(
        """
        UPDATE api_keys SET expires_at = least(expires_at, CASE WHEN id = %(old_id)s THEN %(until)s ELSE %(now)s END),
               replaced_by = coalesce(replaced_by, %(new_id)s)
        WHERE account_id = %(account_id)s AND (id = %(old_id)s OR replaced_by = %(old_id)s)
        """,
        old_id=api_key_id,
        new_id=new_id,
        account_id=account_id,
        until=now + overlap,
        now=now,
    )
    return new


def revoke(tx: Tx, account_id: UUID, api_key_id: UUID, *, now: datetime) -> None:
    """From now on the key opens nothing, and neither does the one that it replaced; again changes nothing.

    Raises NotFound.
    """
    revoked = tx.execute(
        """
        UPDATE api_keys SET revoked_at = coalesce(revoked_at, %(now)s)
        WHERE account_id = %(account_id)s AND (id = %(id)s OR replaced_by = %(id)s)
        """,
        id=api_key_id,
        account_id=account_id,
        now=now,
    )
    if not revoked:
        raise NotFound("no such API key")


def live(tx: Tx, key_hash: bytes, *, now: datetime) -> Row[Any] | None:
    """The key with what the gate asks of its account, to which the transaction is let in."""
    return tx.maybe("SELECT * FROM admit_api_key(%(key_hash)s, %(now)s)", key_hash=key_hash, now=now)


def note_use(tx: Tx, api_key_id: UUID, last_used_at: datetime | None, *, now: datetime) -> None:
    """The key was used, which is written down unless it was a moment ago. last_used_at: as it was found."""
    if last_used_at is None or last_used_at < now - LAST_USED_PRECISION:
        tx.execute("UPDATE api_keys SET last_used_at = %(now)s WHERE id = %(id)s", id=api_key_id, now=now)
