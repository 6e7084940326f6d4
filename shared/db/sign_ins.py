"""Signing in by address and password, and what failed of it: counted for each address and network, by all API
processes together, and forgotten in time.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.db.sessions import Audience
from shared.domain.sign_in import (
    FAILURES_COUNT_FOR,
    FAILURES_OF_ALL_COUNT_FOR,
    NETWORK_KNOWN_FOR,
    Attempts,
    next_try_at,
)


def begin(tx: Tx, *, who: bytes, network: str, now: datetime) -> datetime | None:
    """Count an attempt, as one that failed until `succeed` says otherwise; or when the next one is looked at.

    It is counted before the password is looked at, behind the row's lock: a thousand at once are a thousand.
    """
    tx.execute(
        """
        INSERT INTO sign_in_attempts (who, network, failures, expires_at)
        VALUES (%(who)s, %(network)s, 0, %(expires_at)s)
        ON CONFLICT (who, network) DO NOTHING
        """,
        who=who,
        network=network,
        expires_at=now + FAILURES_COUNT_FOR,
    )
    own = tx.one(
        """
        SELECT CASE WHEN failed_at > %(count_from)s THEN failures ELSE 0 END AS failures, failed_at,
               CASE WHEN succeeded_at > %(known_from)s THEN succeeded_at END AS succeeded_at
        FROM sign_in_attempts WHERE who = %(who)s AND network = %(network)s FOR UPDATE
        """,
        who=who,
        network=network,
        count_from=now - FAILURES_COUNT_FOR,
        known_from=now - NETWORK_KNOWN_FOR,
    )
    of_all = tx.one(
        """
        SELECT coalesce(sum(failures), 0)::bigint AS failures, max(failed_at) AS failed_at FROM sign_in_attempts
        WHERE who = %(who)s AND failures > 0 AND failed_at > %(count_from)s
        """,
        who=who,
        count_from=now - FAILURES_OF_ALL_COUNT_FOR,
    )
    wait_until = next_try_at(
        Attempts(
            failures=own.failures,
            failed_at=own.failed_at,
            succeeded_at=own.succeeded_at,
            failures_of_all=of_all.failures,
            failed_at_of_all=of_all.failed_at,
        )
    )
    if wait_until is not None and wait_until > now:
        return wait_until
    tx.execute(
        """
        UPDATE sign_in_attempts
        SET failures = %(failures)s, failed_at = %(now)s, expires_at = greatest(expires_at, %(expires_at)s)
        WHERE who = %(who)s AND network = %(network)s
        """,
        who=who,
        network=network,
        failures=own.failures + 1,
        now=now,
        expires_at=now + FAILURES_COUNT_FOR,
    )
    return None


def by_email(tx: Tx, audience: Audience, email: str) -> Row[Any] | None:
    """Who signs in with this (normalised) address, with the hash of the password, which nothing else reads."""
    return tx.maybe("SELECT * FROM sign_in_by_email(%(audience)s, %(email)s)", audience=str(audience), email=email)


def rehash_password(tx: Tx, audience: Audience, principal_id: UUID, *, old_hash: str, new_hash: str) -> None:
    """Keep the same password under another hash, unless it was changed in the meantime."""
    tx.execute(
        "SELECT rehash_password(%(audience)s, %(id)s, %(old_hash)s, %(new_hash)s)",
        audience=str(audience),
        id=principal_id,
        old_hash=old_hash,
        new_hash=new_hash,
    )


def succeed(tx: Tx, *, who: bytes, network: str, now: datetime) -> None:
    """The password fitted: nothing has failed from this network, which is known from now on."""
    tx.execute(
        """
        UPDATE sign_in_attempts SET failures = 0, failed_at = NULL, succeeded_at = %(now)s, expires_at = %(expires_at)s
        WHERE who = %(who)s AND network = %(network)s
        """,
        who=who,
        network=network,
        now=now,
        expires_at=now + NETWORK_KNOWN_FOR,
    )


def forget(tx: Tx, *, now: datetime, limit: int) -> int:
    """Remove what counts no more; how many."""
    return tx.execute(
        """
        DELETE FROM sign_in_attempts WHERE (who, network) IN (
            SELECT who, network FROM sign_in_attempts WHERE expires_at <= %(now)s
            ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        )
        """,
        now=now,
        limit=limit,
    )
