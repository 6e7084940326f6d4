"""What is measured in the database: a handful of functions, each an index probe or a small set.

They tell counts and instants of all accounts together, so whoever may call them need not see any (migration 0010).
"""

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
    return tx.rows("SELECT * FROM measure_unfinished_operations()")


def operations_since(tx: Tx, first_id: UUID) -> Sequence[Row[Any]]:
    """Operations accepted since then, by kind and status, and how long they took until they had their answer.

    Ids sort by time, so no history is read.
    """
    return tx.rows("SELECT * FROM measure_operations_since(%(id)s)", id=first_id)


def waiting_operations(tx: Tx) -> Sequence[Row[Any]]:
    """Pending operations that somebody else has to answer, or to execute, by kind and by whom they wait for.

    `provider`: of payments, or a mail server, did not answer when it was last asked. `release`: a newer one than this,
    or than the worker that took it up, accepted it.
    """
    return tx.rows(
        "SELECT * FROM measure_waiting_operations(%(version)s, %(kinds)s::text[])",
        version=PAYLOAD_VERSION,
        kinds=[str(kind) for kind in OperationKind],
    )


def oldest_unbegun(tx: Tx, *, now: datetime) -> datetime | None:
    """When the oldest pending operation was accepted that no worker has taken up yet.

    Neither what is not due yet, nor what lives on a test clock.
    """
    at: datetime | None = tx.scalar("SELECT measure_oldest_unbegun(%(now)s)", now=now)
    return at


def dead_operations(tx: Tx) -> int:
    """How many operations wait for an admin."""
    count: int = tx.scalar("SELECT measure_dead_operations()")
    return count


def clock(tx: Tx) -> datetime:
    """What time it is by the database's clock."""
    at: datetime = tx.scalar("SELECT clock_timestamp()")
    return at


def earliest_transitions(tx: Tx) -> Sequence[Row[Any]]:
    """The earliest scheduled transition of each kind among accounts that the beat jobs see."""
    return tx.rows(
        "SELECT t AS transition, measure_earliest_transition(t) AS at FROM unnest(%(transitions)s::text[]) AS t",
        transitions=[str(transition) for transition in Transition],
    )


def earliest_hold_expiry(tx: Tx) -> datetime | None:
    """When the first open hold of an account on the wall clock expires, or has expired."""
    at: datetime | None = tx.scalar("SELECT measure_earliest_hold_expiry()")
    return at


def earliest_checkout_to_ask(tx: Tx) -> datetime | None:
    """When the provider is, or was, to be asked about the first payment that a customer may be making."""
    at: datetime | None = tx.scalar("SELECT measure_earliest_checkout_to_ask()")
    return at


def earliest_unsent(tx: Tx) -> datetime | None:
    """When the first pending operation is, or was, to be sent again."""
    at: datetime | None = tx.scalar("SELECT measure_earliest_unsent()")
    return at


def parked_accounts(tx: Tx) -> int:
    """How many accounts wait for somebody to look at them."""
    count: int = tx.scalar("SELECT measure_parked_accounts()")
    return count


def ledger_drift_credits(tx: Tx) -> int:
    """By how many credits balances differ from the newest row of their ledger, over a sample of accounts.

    Zero, always. The sample covers every account of a small system and a random part of a large one;
    the command line's `check` compares all of them with all of the ledger.
    """
    accounts: float = tx.scalar("SELECT greatest(reltuples, 1) FROM pg_class WHERE oid = 'accounts'::regclass")
    percent = min(100.0, 100.0 * DRIFT_SAMPLE_ACCOUNTS / accounts)
    drift: int = tx.scalar("SELECT measure_ledger_drift(%(percent)s::float4)", percent=percent)
    return drift
