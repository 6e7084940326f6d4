"""Trials that were given: one for each mailbox, whatever has become of the account."""

import hashlib
import re
from typing import Final
from uuid import UUID

from shared.db.engine import Tx

SUBADDRESS: Final = re.compile(r"\+[^@]*@")


def mailbox_digest(email: str) -> bytes:
    """What an address and its variants with a `+tag` have in common; the address is not kept for it.

    Migration 0009 computes the same in SQL. No key is involved, or a rotation of keys would give everybody a trial.
    """
    return hashlib.sha256(SUBADDRESS.sub("@", email, count=1).encode()).digest()


def give(tx: Tx, email: str, account_id: UUID) -> bool:
    """Give the mailbox its trial, to an account that this transaction makes; False when it has had one.

    Another signup that is giving it at this moment is waited for.
    """
    return bool(
        tx.execute(
            """
            INSERT INTO trials (mailbox_digest, account_id) VALUES (%(digest)s, %(account_id)s)
            ON CONFLICT ON CONSTRAINT trial_once_per_mailbox DO NOTHING
            """,
            digest=mailbox_digest(email),
            account_id=account_id,
        )
    )
