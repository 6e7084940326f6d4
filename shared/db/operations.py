"""Operations: accept once, claim for execution, finish, and find what has to be sent again."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import Row

from shared.db.engine import Jsonb, Tx, jitter
from shared.domain.operation import (
    PAYLOAD_VERSION,
    Operation,
    OperationKind,
    OperationStatus,
    PrincipalKind,
    backoff,
)
from shared.errors import BacklogFull, BillingError, IdempotencyKeyReused, NotFound, RetryRefused

ToSend = tuple[UUID, OperationKind]

KNOWN_KINDS: Final = [str(kind) for kind in OperationKind]
# What became of an operation. What was asked stays between whoever asked and the workers: passwords may be on the way.
_COLUMNS: Final = """id, kind, status, payload_version, account_id, principal_kind, principal_id, idempotency_scope,
    idempotency_key, request_hash, attempts, next_send_at, sends, result, problem, last_error, created_at,
    finished_at"""


def accept(
    tx: Tx,
    *,
    operation_id: UUID,
    kind: OperationKind,
    payload: dict[str, Any],
    payload_version: int,
    account_id: UUID | None,
    principal_kind: PrincipalKind,
    principal_id: UUID | None,
    idempotency_scope: str | None,
    idempotency_key: str | None,
    request_hash: bytes,
    first_send_after: timedelta,
    now: datetime | None = None,
    earlier_hashes: Collection[bytes] = (),
    backlog_limit: int | None = None,
) -> tuple[UUID, bool]:
    """Write the operation, or find the one that this key stands for: its id, and whether it is a replay.

    now: as of when it counts; by default the instant at which the transaction began, by the clock that all processes
    share. first_send_after: how much later the relay looks at it.
    earlier_hashes: by which the same request may have been written down before.
    Raises IdempotencyKeyReused when the key was used for another body, and BacklogFull when more than `backlog_limit`
    accepted operations of the account are not done. Those that were written by the transaction count; what is scheduled
    for later does not.
    """
    if principal_kind is PrincipalKind.ANONYMOUS:
        admit_anonymous(tx, operation_id)
    inserted = tx.maybe(
        """
        INSERT INTO operations (id, kind, status, payload, payload_version, account_id, principal_kind, principal_id,
                                idempotency_scope, idempotency_key, request_hash, next_send_at, created_at)
        VALUES (%(id)s, %(kind)s, 'pending', %(payload)s, %(payload_version)s, %(account_id)s, %(principal_kind)s,
                %(principal_id)s, %(scope)s, %(key)s, %(request_hash)s,
                coalesce(%(now)s::timestamptz, now()) + %(first_send_after)s, coalesce(%(now)s::timestamptz, now()))
        ON CONFLICT (idempotency_scope, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
        RETURNING %(backlog_limit)s::integer <= (
            SELECT count(*) FROM (
                SELECT FROM operations o
                WHERE o.account_id = %(account_id)s AND o.status = 'pending' AND o.created_at <= now()
                LIMIT coalesce(%(backlog_limit)s, 0)
            ) AS waiting
        ) AS is_full
        """,
        id=operation_id,
        kind=str(kind),
        payload=Jsonb(payload),
        payload_version=payload_version,
        account_id=account_id,
        principal_kind=str(principal_kind),
        principal_id=principal_id,
        scope=idempotency_scope if idempotency_key is not None else None,
        key=idempotency_key,
        request_hash=request_hash,
        first_send_after=first_send_after,
        now=now,
        backlog_limit=backlog_limit,
    )
    if inserted is not None:
        if inserted.is_full:
            raise BacklogFull(
                f"{backlog_limit} operations of the account are not done yet; ask again when some are",
                retry_after_seconds=1,
            )
        return operation_id, False
    if principal_kind is PrincipalKind.ANONYMOUS:
        tx.execute("SELECT admit_operation_of_key(%(scope)s, %(key)s)", scope=idempotency_scope, key=idempotency_key)
    existing = tx.one(
        "SELECT id, request_hash FROM operations WHERE idempotency_scope = %(scope)s AND idempotency_key = %(key)s",
        scope=idempotency_scope,
        key=idempotency_key,
    )
    if bytes(existing.request_hash) not in {request_hash, *earlier_hashes}:
        raise IdempotencyKeyReused("this Idempotency-Key was used for another request; choose a new one")
    return existing.id, True


def schedule(tx: Tx, kind: OperationKind, requests: Sequence[tuple[UUID, UUID | None, Struct, str, datetime]]) -> None:
    """Write what the system itself asks for: (operation id, account, request, key, instant), each key once.

    It is sent when its instant has come, and happens at that instant; until then it waits like one that was accepted.
    """
    if not requests:
        return
    ids, accounts, payloads, keys, instants = zip(*requests, strict=True)
    tx.execute(
        """
        INSERT INTO operations (id, kind, status, payload, payload_version, account_id, principal_kind,
                                idempotency_scope, idempotency_key, request_hash, next_send_at, created_at)
        SELECT v.id, %(kind)s, 'pending', v.payload::jsonb, %(payload_version)s, v.account_id, 'system',
               'system', v.key, '', v.at, v.at
        FROM unnest(%(ids)s::uuid[], %(accounts)s::uuid[], %(payloads)s::text[], %(keys)s::text[],
                    %(instants)s::timestamptz[]) AS v (id, account_id, payload, key, at)
        ON CONFLICT (idempotency_scope, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
        """,
        kind=str(kind),
        payload_version=PAYLOAD_VERSION,
        ids=list(ids),
        accounts=list(accounts),
        payloads=[msgspec.json.encode(payload).decode() for payload in payloads],
        keys=[f"{kind}:{key}" for key in keys],
        instants=list(instants),
    )


def send_what_is_due_on(tx: Tx, account_ids: Sequence[UUID], *, clock_at: datetime) -> None:
    """The test clock of these accounts stands at `clock_at`: what was scheduled by it until then is sent at once."""
    tx.execute(
        """
        UPDATE operations SET next_send_at = now()
        WHERE account_id = ANY (%(ids)s) AND status = 'pending' AND created_at <= %(clock_at)s AND sends = 0
          AND next_send_at > now()
        """,
        ids=list(account_ids),
        clock_at=clock_at,
    )


def wait(tx: Tx, operation_id: UUID, *, reason: str, base: timedelta, now: datetime) -> None:
    """Somebody else has to answer or to execute it: look again later, however often. That counts for no attempt."""
    row = tx.one("SELECT sends FROM operations WHERE id = %(id)s FOR UPDATE", id=operation_id)
    tx.execute(
        """
        UPDATE operations SET attempts = greatest(attempts - 1, 0), last_error = %(reason)s,
               next_send_at = %(next_send_at)s
        WHERE id = %(id)s AND status = 'pending'
        """,
        id=operation_id,
        reason=reason[:4_000],
        next_send_at=now + backoff(row.sends, base=base, jitter=jitter()),
    )


def begin_attempt(ask: Callable[..., Any], operation_id: UUID) -> Operation | None:
    """Count an attempt, to be committed before the work, so that a worker's death is counted too.

    ask: `Database.ask`, or a transaction's `maybe`. An answer that was lost may have counted: the attempt then counts
    twice, as it does when its worker dies.
    The count need not survive the server's death, so the commit does not wait for the disk.
    None when there is nothing to do: finished, unknown, or being executed by another worker.
    """
    row = ask(
        """
        WITH begun AS (
            UPDATE operations SET attempts = attempts + 1
            WHERE id = (SELECT id FROM operations WHERE id = %(id)s AND status = 'pending' FOR UPDATE SKIP LOCKED)
            RETURNING *, set_config('synchronous_commit', 'off', true)
        )
        SELECT begun.*, a.test_clock_id IS NOT NULL AS on_test_clock,
               coalesce(a.next_transition_at <= account_now(a.id, begun.created_at) AND a.parked_at IS NULL, false)
               AS account_is_due
        FROM begun LEFT JOIN accounts a ON a.id = begun.account_id
        """,
        id=operation_id,
    )
    return None if row is None else msgspec.convert(row._asdict(), Operation)


def lock_pending(tx: Tx, operation_id: UUID) -> bool:
    """Lock the operation for execution; False when it is finished or another worker has it."""
    row = tx.maybe(
        "SELECT id FROM operations WHERE id = %(id)s AND status = 'pending' FOR UPDATE SKIP LOCKED",
        id=operation_id,
    )
    return row is not None


def succeed(tx: Tx, operation_id: UUID, *, result: dict[str, Any], now: datetime | None = None) -> None:
    """The work is done; `result` is what a poller reads. Secrets leave the payload. now: as in `accept`."""
    tx.execute(
        """
        UPDATE operations SET status = 'succeeded', result = %(result)s, next_send_at = NULL,
               finished_at = coalesce(%(now)s::timestamptz, now()),
               last_error = NULL, payload = payload - 'password_hash', account_id = coalesce(account_id, %(account_id)s)
        WHERE id = %(id)s
        """,
        id=operation_id,
        result=Jsonb(result),
        account_id=result.get("account_id"),
        now=now,
    )


def fail(tx: Tx, operation_id: UUID, refusal: BillingError, *, now: datetime | None = None) -> bool:
    """The answer is no; the problem is what a synchronous caller would have been told. False when it has an answer.

    now: as in `accept`.
    """
    refused = tx.execute(
        """
        UPDATE operations SET status = 'failed', problem = %(problem)s, next_send_at = NULL,
               finished_at = coalesce(%(now)s::timestamptz, now()),
               payload = payload - 'password_hash'
        WHERE id = %(id)s AND status = 'pending'
        """,
        id=operation_id,
        problem=Jsonb(refusal.document()),
        now=now,
    )
    return bool(refused)


def postpone(
    tx: Tx,
    operation_id: UUID,
    *,
    attempts: int,
    max_attempts: int,
    error: str,
    base: timedelta,
    now: datetime,
) -> OperationStatus:
    """An unexpected error: look again later, or park the operation as dead after `max_attempts`."""
    status = OperationStatus.DEAD if attempts >= max_attempts else OperationStatus.PENDING
    dead = status is OperationStatus.DEAD
    problem = {
        "code": "operation_dead",
        "detail": "the operation kept failing for an unexpected reason; an admin can retry it",
    }
    tx.execute(
        """
        UPDATE operations SET status = %(status)s, last_error = %(error)s, next_send_at = %(next_send_at)s,
               problem = %(problem)s
        WHERE id = %(id)s AND status = 'pending'
        """,
        id=operation_id,
        status=str(status),
        error=error[:4_000],
        next_send_at=None if dead else now + backoff(attempts, base=base, jitter=jitter()),
        problem=Jsonb(problem) if dead else None,
    )
    return status


def revive(tx: Tx, operation_id: UUID, *, now: datetime) -> None:
    """Send a dead operation again with all its attempts. Raises NotFound, RetryRefused."""
    row = tx.maybe("SELECT status FROM operations WHERE id = %(id)s FOR UPDATE", id=operation_id)
    if row is None:
        raise NotFound("no such operation")
    if row.status != OperationStatus.DEAD:
        raise RetryRefused(f"the operation is {row.status}; only a dead one can be retried")
    tx.execute(
        """
        UPDATE operations SET status = 'pending', attempts = 0, problem = NULL, next_send_at = %(now)s
        WHERE id = %(id)s
        """,
        id=operation_id,
        now=now,
    )


def claim_to_send(tx: Tx, *, now: datetime, base: timedelta, limit: int) -> list[ToSend]:
    """Operations that are not done and due to be sent (again), oldest first; their next time is put off.

    Kinds that only a newer release knows are left to its relay.
    """
    rows = tx.rows(
        """
        SELECT id, kind, sends FROM operations
        WHERE status = 'pending' AND next_send_at <= %(now)s AND kind = ANY (%(kinds)s)
        ORDER BY next_send_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        """,
        now=now,
        kinds=KNOWN_KINDS,
        limit=limit,
    )
    if rows:
        tx.execute(
            """
            UPDATE operations o SET next_send_at = v.next_send_at, sends = sends + 1
            FROM unnest(%(ids)s::uuid[], %(next)s::timestamptz[]) AS v (id, next_send_at) WHERE o.id = v.id
            """,
            ids=[row.id for row in rows],
            next=[now + backoff(row.sends + 1, base=base, jitter=jitter()) for row in rows],
        )
    return [(row.id, OperationKind(row.kind)) for row in rows]


def send_again_at(tx: Tx, operation_ids: Sequence[UUID], *, at: datetime) -> None:
    """The broker did not take these; look at them again at `at`."""
    tx.execute(
        "UPDATE operations SET next_send_at = %(at)s WHERE id = ANY (%(ids)s) AND status = 'pending'",
        ids=list(operation_ids),
        at=at,
    )


def waiting_since(tx: Tx, account_ids: Sequence[UUID]) -> dict[UUID, datetime]:
    """When the oldest operation was accepted that is not executed yet, for each of these accounts that has one."""
    rows = tx.rows(
        """
        SELECT account_id, min(created_at) AS since FROM operations
        WHERE account_id = ANY (%(ids)b) AND status = 'pending' GROUP BY account_id
        """,
        ids=list(account_ids),
    )
    return {row.account_id: row.since for row in rows}


def admit_anonymous(tx: Tx, operation_id: UUID) -> None:
    """Let the transaction in to an operation that nobody signed in for, and to nothing else."""
    tx.execute("SELECT admit_operation(%(id)s)", id=operation_id)


def get(tx: Tx, operation_id: UUID) -> Row[Any]:
    """The row without what was asked, for whoever may see it. Raises NotFound."""
    row = tx.maybe(f"SELECT {_COLUMNS} FROM operations WHERE id = %(id)s", id=operation_id)  # noqa: S608 (a constant of this module)
    if row is None:
        raise NotFound("no such operation")
    return row


def payload_of(tx: Tx, operation_id: UUID) -> dict[str, Any]:
    """What was asked, for whoever may know it: workers and operators."""
    payload: dict[str, Any] = tx.scalar("SELECT payload FROM operations WHERE id = %(id)s", id=operation_id)
    return payload


def page(
    tx: Tx, *, status: OperationStatus | None, kind: OperationKind | None, before: UUID, limit: int
) -> Sequence[Row[Any]]:
    """Operations of a status and a kind, or of all, newest first; for admins."""
    conditions = ["id < %(before)s"]
    if status is not None:
        conditions.append("status = %(status)s")
    if kind is not None:
        conditions.append("kind = %(kind)s")
    return tx.rows(
        f"SELECT {_COLUMNS} FROM operations WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT %(limit)s",  # noqa: S608 (constants of this module)
        status=str(status),
        kind=str(kind),
        before=before,
        limit=limit,
    )
