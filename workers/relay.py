"""The relay: sends again whatever is not done. A process of its own, and a beat tick as second trigger.

Celery on Redis loses messages even while Redis is healthy, so this is the normal path, not the
exception. "Not done" is the criterion, never "not sent": what a worker took and dropped counts too.
"""

import threading
from datetime import datetime, timedelta
from typing import Final

import structlog

from shared.broker import make_celery, queue_depth, send_all
from shared.clock import monotonic
from shared.config import Settings
from shared.db import job_runs, operations
from shared.db.engine import Database, with_retries
from shared.messages import Queue

ROUND_SECONDS: Final = 1.0
ROUND_LIMIT: Final = 500
BROKER_DOWN_SECONDS: Final = 5
HEARTBEAT_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


class Relay:
    """Claims operations that are due to be sent, and sends them; any number of relays may run."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._app = make_celery(settings, sends_only=True)

    def send_due(self, *, now: datetime | None = None) -> int:
        """Send one batch of what is due at `now`, by the database's clock unless stated; how many.

        What the broker does not take stays due.
        """
        try:
            waiting = queue_depth(self._app, Queue.INTERACTIVE)
        except Exception as error:  # noqa: BLE001 - whatever a transport raises: there is no broker to send to
            log.warning("broker_unreachable", error=repr(error))
            return 0
        if waiting >= self._settings.relay_queue_limit:
            log.info("relay_waits", queue_depth=waiting)
            return 0
        now, claimed = with_retries(lambda: self._claim(now))
        if not claimed:
            return 0
        try:
            send_all(self._app, [(kind.task_name, operation_id) for operation_id, kind in claimed])
        except Exception as error:  # noqa: BLE001 - as above; the rows are due again as soon as the broker may be back
            log.warning("relay_failed", operations=len(claimed), error=repr(error))
            with self._database.transaction() as tx:
                again_at = now + timedelta(seconds=BROKER_DOWN_SECONDS)
                operations.send_again_at(tx, [operation_id for operation_id, _ in claimed], at=again_at)
            return 0
        log.info("relay_sent", operations=len(claimed))
        return len(claimed)

    def close(self) -> None:
        """Give the connections to the broker back."""
        self._app.close()

    def run(self, stop: threading.Event) -> None:
        """Rounds of one second until `stop` is set; a round that fails is logged and followed by the next.

        Every HEARTBEAT_SECONDS it notes that it is there, and what it sent since.
        """
        log.info("relay_started")
        noted, items = monotonic() - HEARTBEAT_SECONDS, 0
        while not stop.is_set():
            try:
                sent = self.send_due()
                items += sent
                if monotonic() - noted >= HEARTBEAT_SECONDS:
                    self._note(noted, items)
                    noted, items = monotonic(), 0
            except Exception:  # the database is away: nothing to do but to look again
                log.exception("relay_round_failed")
                sent = 0
            if sent < ROUND_LIMIT:
                stop.wait(ROUND_SECONDS)
        log.info("relay_stopped")

    def _note(self, since: float, items: int) -> None:
        duration_ms = int((monotonic() - since) * 1_000)
        with self._database.transaction() as tx:
            job_runs.record(tx, job_runs.RELAY, finished_at=tx.now(), duration_ms=duration_ms, items=items)

    def _claim(self, now: datetime | None) -> tuple[datetime, list[operations.ToSend]]:
        with self._database.transaction() as tx:
            at = now or tx.now()
            base = timedelta(seconds=self._settings.relay_backoff_seconds)
            return at, operations.claim_to_send(tx, now=at, base=base, limit=ROUND_LIMIT)
