"""Messages: the Celery settings that all processes share, and sending without waiting.

A message is only a wake-up that carries an operation's id; PostgreSQL holds what has to be done. So
a message may be lost, doubled or late, and sending one may fail: the relay sends again whatever is
not done. docs/adr/0004 tells why each setting is as it is.
"""

import os
import queue
import threading
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import structlog
from celery import Celery
from kombu import Exchange
from kombu import Queue as KombuQueue

from shared.clock import monotonic
from shared.config import Settings
from shared.messages import Job, Queue

log = structlog.get_logger(__name__)

VISIBILITY_TIMEOUT_SECONDS: Final = 600  # the same everywhere; the shortest one would win
TASK_TIME_LIMIT_SECONDS: Final = 60  # far below it, so that nothing is redelivered while it still runs
BREAKER_SECONDS: Final = 10.0
SEND_BUFFER: Final = 10_000
SEND_BATCH: Final = 500

Message = tuple[str, UUID]


def make_celery(settings: Settings, *, sends_only: bool = False) -> Celery:
    """The Celery app of a worker or beat, or of a process that only sends and must not be kept waiting."""
    if settings.broker_url is None:
        raise ValueError("BROKER_URL is not set and no embedded broker was started")
    app = Celery("billing", broker=settings.broker_url)
    amqp = settings.broker_url.startswith("amqp")
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 10} if amqp else None
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_queues=[
            KombuQueue(name, Exchange(name, type="direct"), routing_key=name, queue_arguments=arguments)
            for name in map(str, Queue)
        ],
        task_default_queue=str(Queue.INTERACTIVE),
        task_default_queue_type="quorum" if amqp else "classic",
        task_routes={job.task_name: {"queue": str(Queue.PERIODIC)} for job in Job},
        task_create_missing_queues=False,  # a typo fails loudly
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_retry_on_worker_lost=True,
        task_soft_time_limit=TASK_TIME_LIMIT_SECONDS - 15,
        task_time_limit=TASK_TIME_LIMIT_SECONDS,
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=5_000,
        worker_max_memory_per_child=300_000,  # KiB
        worker_soft_shutdown_timeout=30,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # never kill while a provider is asked
        worker_detect_quorum_queues=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_acquire_timeout=1,
        broker_transport_options=_transport_options(amqp=amqp, sends_only=sends_only),
        timezone="UTC",
        enable_utc=True,
        beat_max_loop_interval=5,
    )
    return app


def _transport_options(*, amqp: bool, sends_only: bool) -> dict[str, Any]:
    # Who only sends tries to connect twice and gives up; a worker goes on trying.
    bounded = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0} if sends_only else {}
    if amqp:
        waits = {"read_timeout": 2, "write_timeout": 2} if sends_only else {}
        return {"confirm_publish": True, **waits, **bounded}
    wait = 0.5 if sends_only else 5
    return {
        "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "socket_timeout": wait,
        "socket_connect_timeout": min(wait, 2),
        "socket_keepalive": True,
        "health_check_interval": 10,
        **bounded,
    }


def send_all(app: Celery, messages: Sequence[Message]) -> None:
    """Send each operation's task, as one batch where the broker can; raises what the transport raises."""
    with app.producer_or_acquire() as producer, producer.batch():
        for task_name, operation_id in messages:
            app.send_task(task_name, args=(str(operation_id),), producer=producer, retry=False, ignore_result=True)


def queue_depth(app: Celery, name: Queue) -> int:
    """How many messages wait in a queue; raises what the transport raises when there is no broker."""
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        try:
            depth: int = channel.queue_declare(queue=str(name), passive=True).message_count
        except connection.channel_errors:  # no such queue yet; on Redis an empty one does not exist
            return 0
        return depth


class Publisher:
    """Sends from a thread of its own, in batches, so that no request waits for the broker.

    When the broker does not take a batch, nothing is sent for ten seconds: what was dropped are rows,
    and the relay finds them. The thread starts with the first message, in whichever process that is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._pid = 0
        self._buffer: queue.Queue[Message] = queue.Queue(SEND_BUFFER)

    def send(self, task_name: str, operation_id: UUID) -> None:
        """Hand a message over; returns at once and never raises."""
        self._ensure_thread()
        try:
            self._buffer.put_nowait((task_name, operation_id))
        except queue.Full:
            log.warning("publish_buffer_full", operation_id=str(operation_id))

    def _ensure_thread(self) -> None:
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid != os.getpid():  # first use, or a fork: threads do not survive one
                self._buffer = queue.Queue(SEND_BUFFER)
                threading.Thread(target=self._run, name="publisher", daemon=True).start()
                self._pid = os.getpid()

    def _run(self) -> None:
        app = make_celery(self._settings, sends_only=True)
        closed_until = 0.0
        while True:
            batch = self._next_batch()
            if monotonic() < closed_until:
                continue
            try:
                send_all(app, batch)
            except Exception as error:  # noqa: BLE001 - any failure of a transport means the same: the relay will send
                closed_until = monotonic() + BREAKER_SECONDS
                log.warning("publish_failed", messages=len(batch), error=repr(error))

    def _next_batch(self) -> list[Message]:
        batch = [self._buffer.get()]
        while len(batch) < SEND_BATCH:
            try:
                batch.append(self._buffer.get_nowait())
            except queue.Empty:
                break
        return batch
