"""The two shapes of a task: one that executes an operation, one that runs a beat job to its end.

Here, and only here, workers open transactions, retry and log. A task may be delivered any number of
times, at any time, in any order: its effect happens once. What "now" is, the database says, so that a worker
whose machine's clock is wrong does nothing early and nothing late.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID

import msgspec
import structlog
from celery import Task
from kombu.exceptions import OperationalError
from msgspec import Struct

from shared.broker import TASK_TIME_LIMIT_SECONDS
from shared.clock import monotonic, utc_now
from shared.db import account_state, job_runs, operations
from shared.db.engine import Tx, is_transient, with_retries
from shared.db.plans import load_rules
from shared.domain.operation import PAYLOAD_VERSION, Operation, OperationKind, OperationStatus
from shared.domain.plan import Rules
from shared.errors import BillingError, FutureInstant, NewerPayload, ProviderDown
from shared.messages import Job
from workers.app import app
from workers.runtime import runtime

__all__ = ["Pass", "Tx", "job_task", "operation_task", "run_job", "timed_job", "two_step_operation_task"]

R = TypeVar("R", bound=Struct)
Intent = TypeVar("Intent")
T = TypeVar("T")

BillingTask: TypeAlias = "Task[Any, Any]"
Handler = Callable[..., dict[str, Any] | BillingError]
Refused = Callable[[Tx, Operation, BillingError], None]
Pass = Callable[[Tx, Rules, datetime, int], int]

# A job that is not through by then hands over to a message of its own: no task comes near its time limit.
JOB_SECONDS: Final = TASK_TIME_LIMIT_SECONDS / 2
# Celery's own three minutes would keep a worker that takes one message at a time from every other, on RabbitMQ.
RETRY_AFTER_WORKER_LOSS_SECONDS: Final = 5

log = structlog.get_logger(__name__)


class WorkersLostError(Exception):
    """An operation that kills its workers: it is given up like any other that keeps failing."""


def nothing_else(_tx: Tx, _operation: Operation, _refusal: BillingError) -> None:
    """What most operations leave to do when they are refused."""


def operation_task(kind: OperationKind, request_type: type[R], handler: Handler) -> BillingTask:
    """Register the task that executes operations of one kind in one transaction.

    handler: (tx, operation, request, rules, *, now) -> result; a use case. A refusal that it raises undoes what it
    wrote; one that it returns keeps that.
    """

    def work(operation: Operation, request: R) -> None:
        with_retries(
            lambda: _in_transaction(
                operation, lambda tx, rules: handler(tx, operation, request, rules, now=operation.created_at)
            )
        )

    return _register(kind, request_type, work)


def two_step_operation_task(
    kind: OperationKind,
    request_type: type[R],
    *,
    record: Callable[[Tx, Operation, R, Rules], Intent],
    ask: Callable[[Intent], T],
    complete: Handler,
    refused: Refused = nothing_else,
) -> BillingTask:
    """Register a task that asks somebody else in between: intent, question, and what follows from the answer.

    record and complete run in a transaction each; `ask` runs in none and gets what `record` returned. refused: what a
    refusal that was raised does to the intent, in the transaction that writes it down.
    """

    def work(operation: Operation, request: R) -> None:
        def note() -> Intent:
            with runtime().database.transaction() as tx:
                return record(tx, operation, request, load_rules(tx, runtime().settings))

        answer = ask(with_retries(note))
        with_retries(
            lambda: _in_transaction(
                operation,
                lambda tx, rules: complete(tx, operation, request, answer, rules, now=operation.created_at),
            )
        )

    return _register(kind, request_type, work, refused)


def job_task(job: Job, one_pass: Pass) -> BillingTask:
    """Register the task of a beat job: passes of one transaction each, until nothing is due.

    A run with more to do than one batch calls for one other run. While a worker is idle that one joins in,
    and calls for the next; else it waits and goes on when the time of this run is over.
    """

    @app.task(
        name=job.task_name,
        ignore_result=True,
        max_retries=3,
        default_retry_delay=RETRY_AFTER_WORKER_LOSS_SECONDS,
    )
    def run(as_of: str | None = None, **_: Any) -> None:
        def call_for_help() -> None:
            try:
                app.send_task(job.task_name, kwargs={"as_of": as_of}, retry=False)
            except OperationalError as error:  # the next tick of beat helps as well
                log.warning("broker_unreachable", job=str(job), error=repr(error))

        run_job(job, one_pass, as_of=parse_as_of(as_of), seconds=JOB_SECONDS, call_for_help=call_for_help)

    return run


def run_job(
    job: Job,
    one_pass: Pass,
    *,
    as_of: datetime | None,
    seconds: float | None = None,
    call_for_help: Callable[[], None] = lambda: None,
) -> None:
    """Run passes until nothing is due, or `seconds` are over.

    call_for_help: called once, after the first full batch, or when the time is over and something may be left.
    """
    settings = runtime().settings

    def once() -> int:
        with runtime().database.transaction() as tx:
            return one_pass(tx, load_rules(tx, settings), as_of or tx.now(), settings.batch_size)

    with timed_job(job) as run:
        started, called = monotonic(), False
        while done := with_retries(once):
            run.items += done
            over = seconds is not None and monotonic() - started > seconds
            if not called and (over or done >= settings.batch_size):
                called = True
                call_for_help()
            if over:
                break


@dataclass
class JobRun:
    """A run of a job while it lasts."""

    items: int = 0


@contextmanager
def timed_job(job: Job) -> Iterator[JobRun]:
    """Note when the job ran, how long, and over how many items."""
    run, started = JobRun(), monotonic()
    yield run
    duration_ms = int((monotonic() - started) * 1_000)
    with runtime().database.transaction() as tx:
        job_runs.record(tx, job, finished_at=tx.now(), duration_ms=duration_ms, items=run.items)
    if run.items:
        log.info("job_ran", job=str(job), items=run.items, duration_ms=duration_ms)


def parse_as_of(text: str | None) -> datetime | None:
    """The instant that a job is to act as of. Raises FutureInstant."""
    if text is None:
        return None
    as_of = datetime.fromisoformat(text)
    if as_of.tzinfo is None or as_of > utc_now():
        raise FutureInstant(f"a job acts as of an aware instant that has come, not {text}")
    return as_of


def _register(
    kind: OperationKind, request_type: type[R], work: Callable[[Operation, R], None], refused: Refused = nothing_else
) -> BillingTask:
    @app.task(
        name=kind.task_name,
        ignore_result=True,
        max_retries=3,
        default_retry_delay=RETRY_AFTER_WORKER_LOSS_SECONDS,
    )
    def run(operation_id: str, **_: Any) -> None:
        with structlog.contextvars.bound_contextvars(operation_id=operation_id):
            _execute(UUID(operation_id), request_type, work, refused)

    return run


def _execute(operation_id: UUID, request_type: type[R], work: Callable[[Operation, R], None], refused: Refused) -> None:
    """Count the attempt, work, and record how it ended. Nothing raised here is for Celery to retry."""
    database, settings = runtime().database, runtime().settings
    base = timedelta(seconds=settings.relay_backoff_seconds)

    operation = with_retries(lambda: operations.begin_attempt(database.ask, operation_id))
    if operation is None:
        log.debug("operation_skipped")
        return
    with structlog.contextvars.bound_contextvars(kind=str(operation.kind), account_id=str(operation.account_id)):
        try:
            _require_readable(operation)
            _require_attempts_left(operation, settings.operation_max_attempts)
            if operation.account_is_due:
                _apply_what_is_due(operation, now=operation.created_at)
            work(operation, msgspec.convert(operation.payload, request_type))
            if operation.on_test_clock:
                _apply_what_is_due(operation, now=None)
            log.info("operation_executed", attempts=operation.attempts)
        except BillingError as error:
            refusal = error  # `error` is unbound when its clause ends

            def refuse() -> None:
                with database.transaction() as tx:
                    if operations.fail(tx, operation_id, refusal):
                        refused(tx, operation, refusal)

            with_retries(refuse)
            log.info("operation_refused", code=error.code)
        except (ProviderDown, NewerPayload) as error:
            reason = f"{type(error).__name__}: {error}"

            def ask_later() -> None:
                with database.transaction() as tx:
                    operations.wait(tx, operation_id, reason=reason, base=base, now=tx.now())

            with_retries(ask_later)
            log.warning("newer_payload" if isinstance(error, NewerPayload) else "provider_down", error=str(error))
        except Exception as error:  # unexpected: kept for an admin, retried a few times
            failure = error
            passes = operation.attempts == 1 and is_transient(failure)
            pause = timedelta(seconds=settings.relay_first_after_seconds) if passes else base

            def postpone() -> OperationStatus:
                with database.transaction() as tx:
                    return operations.postpone(
                        tx,
                        operation_id,
                        attempts=operation.attempts,
                        max_attempts=settings.operation_max_attempts,
                        error=f"{type(failure).__name__}: {failure}",
                        base=pause,
                        now=tx.now(),
                    )

            status = with_retries(postpone)
            log.exception("operation_failed_unexpectedly", attempts=operation.attempts, status=str(status))


def _apply_what_is_due(operation: Operation, *, now: datetime | None) -> None:
    """Apply what is due of the operation's account at `now`, or by now, in a transaction of its own.

    Before the work: what a refusal cites is then there, though its work is undone. After it, on a test clock, where no
    job looks: what waited for this operation.
    """

    def catch_up() -> None:
        with runtime().database.transaction() as tx:
            account_id, at = operation.account_id, now or tx.now()
            if account_id is not None and account_state.is_due(tx, account_id, now=at):
                account_state.catch_up(tx, account_id, load_rules(tx, runtime().settings), now=at)

    with_retries(catch_up)


def _require_readable(operation: Operation) -> None:
    """While releases change, workers of both run. What the older one cannot read it leaves to the newer one."""
    if operation.payload_version > PAYLOAD_VERSION:
        raise NewerPayload(
            f"its payload is of version {operation.payload_version}, this worker reads {PAYLOAD_VERSION}"
        )


def _require_attempts_left(operation: Operation, limit: int) -> None:
    """Attempts are counted before the work, so one that took its worker with it was counted too."""
    if operation.attempts > limit:
        raise WorkersLostError(f"{operation.attempts - 1} attempts ended, and the last one without a word")


def _in_transaction(operation: Operation, decide: Callable[[Tx, Rules], dict[str, Any] | BillingError]) -> None:
    with runtime().database.transaction() as tx:
        if operations.lock_pending(tx, operation.id):
            answer = decide(tx, load_rules(tx, runtime().settings))
            if isinstance(answer, BillingError):
                operations.fail(tx, operation.id, answer)
                log.info("operation_refused", code=answer.code)
            else:
                operations.succeed(tx, operation.id, result=answer)
