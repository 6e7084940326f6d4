"""What is measured in the database: a handful of queries, each an index probe or a small set."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.domain.lifecycle import Transition
from shared.domain.operation import PAYLOAD_VERSION, OperationKind

DRIFT_SAMPLE_ACCOUNTS: Final = 20_000


def unfinished_operations(tx: Tx) -> Sequence[Row[Any]]:
    """Operations that are pending or dead by kind: how many, and since when the oldest waits."""
    return tx.rows(
        """
        SELECT kind, status, count(*) AS operations, min(created_at) AS oldest_at
        FROM operations WHERE status = 'pending' GROUP BY kind, status
        UNION ALL
        SELECT kind, status, count(*), min(created_at)
        FROM operations WHERE status = 'dead' GROUP BY kind, status
        """
    )


def operations_since(tx: Tx, first_id: UUID) -> Sequence[Row[Any]]:
    """Operations accepted since then, by kind and status, and how long they took until they had their answer.

    Ids sort by time, so no history is read.
    """
    return tx.rows(
        """
        SELECT kind, status, count(*) AS operations,
               extract(epoch FROM avg(finished_at - created_at))::float8 AS mean_seconds,
               extract(epoch FROM max(finished_at - created_at))::float8 AS longest_seconds
        FROM operations WHERE id >= %(id)s GROUP BY kind, status
        """,
        id=first_id,
    )


def waiting_operations(tx: Tx) -> Sequence[Row[Any]]:
    """Pending operations that somebody else has to answer, or to execute, by kind and by whom they wait for.

    `provider`: of payments, or a mail server, did not answer when it was last asked. `release`: a newer one than this,
    or than the worker that took it up, accepted it.
    """
    return tx.rows(
        """
        SELECT kind, waits_for, count(*) AS operations FROM (
            SELECT kind, CASE
                WHEN payload_version > %(version)s OR kind <> ALL (%(kinds)s)
                     OR starts_with(last_error, 'NewerPayload: ') THEN 'release'
                WHEN starts_with(last_error, 'ProviderDown: ') THEN 'provider'
            END AS waits_for
            FROM operations WHERE status = 'pending'
        ) AS pending
        WHERE waits_for IS NOT NULL GROUP BY kind, waits_for
        """,
        version=PAYLOAD_VERSION,
        kinds=[str(kind) for kind in OperationKind],
    )


def oldest_unbegun(tx: Tx, *, now: datetime) -> datetime | None:
    """When the oldest pending operation was accepted that no worker has taken up yet.

    Neither what is not due yet, nor what lives on a test clock.
    """
    at: datetime | None = tx.scalar(
        """
        SELECT min(o.created_at) FROM operations o LEFT JOIN accounts a ON a.id = o.account_id
        WHERE o.status = 'pending' AND o.attempts = 0 AND o.last_error IS NULL AND o.created_at <= %(now)s
          AND a.test_clock_id IS NULL
        """,
        now=now,
    )
    return at


def dead_operations(tx: Tx) -> int:
    """How many operations wait for an admin."""
    count: int = tx.scalar("SELECT count(*) FROM operations WHERE status = 'dead'")
    return count


def clock(tx: Tx) -> datetime:
    """What time it is by the database's clock."""
    at: datetime = tx.scalar("SELECT clock_timestamp()")
    return at


def earliest_transitions(tx: Tx) -> Sequence[Row[Any]]:
    """The earliest scheduled transition of each kind among accounts that the beat jobs see."""
    return tx.rows(
        """
        SELECT t.transition, (
            SELECT min(a.next_transition_at) FROM accounts a
            WHERE a.next_transition = t.transition AND a.next_transition_at IS NOT NULL
              AND a.test_clock_id IS NULL AND a.parked_at IS NULL AND a.deleted_at IS NULL
        ) AS at
        FROM unnest(%(transitions)s::text[]) AS t (transition)
        """,
        transitions=[str(transition) for transition in Transition],
    )


def earliest_hold_expiry(tx: Tx) -> datetime | None:
    """When the first open hold of an account on the wall clock expires, or has expired."""
    at: datetime | None = tx.scalar(
        """
        SELECT min(h.expires_at) FROM holds h JOIN accounts a ON a.id = h.account_id AND a.test_clock_id IS NULL
        WHERE h.status = 'open'
        """
    )
    return at


def earliest_checkout_to_ask(tx: Tx) -> datetime | None:
    """When the provider is, or was, to be asked about the first payment that a customer may be making."""
    at: datetime | None = tx.scalar("SELECT min(next_ask_at) FROM checkouts WHERE next_ask_at IS NOT NULL")
    return at


def earliest_unsent(tx: Tx) -> datetime | None:
    """When the first pending operation is, or was, to be sent again."""
    at: datetime | None = tx.scalar("SELECT min(next_send_at) FROM operations WHERE status = 'pending'")
    return at


def parked_accounts(tx: Tx) -> int:
    """How many accounts wait for somebody to look at them."""
    count: int = tx.scalar("SELECT count(*) FROM accounts WHERE parked_at IS NOT NULL")
    return count


def ledger_drift_credits(tx: Tx) -> int:
    """By how many credits balances differ from the newest row of their ledger, over a sample of accounts.

    Zero, always. The sample covers every account of a small system and a random part of a large one;
    the command line's `check` compares all of them with all of the ledger.
    """
    accounts: float = tx.scalar("SELECT greatest(reltuples, 1) FROM pg_class WHERE oid = 'accounts'::regclass")
    drift: int = tx.scalar(
        """
        SELECT coalesce(sum(abs(a.balance_credits - coalesce(t.balance_after, 0))), 0)::bigint
        FROM accounts a TABLESAMPLE SYSTEM (%(percent)s)
        LEFT JOIN credit_transactions t ON t.account_id = a.id AND t.seq = a.ledger_seq
        """,
        percent=min(100.0, 100.0 * DRIFT_SAMPLE_ACCOUNTS / accounts),
    )
    return drift
