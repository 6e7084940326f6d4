"""Metrics for Prometheus: requests as this API's processes count them, and the state of database and broker.

Under gunicorn each process writes its counts to files in PROMETHEUS_MULTIPROC_DIR, and whichever
answers `/metrics` adds them up.
"""

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog
from flask import Blueprint, Flask, Response, current_app, g, request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api import broker
from api.probe import Probe
from api.services import EXTENSION as SERVICES
from api.services import Services
from shared.clock import monotonic, utc_now
from shared.db import job_runs
from shared.db import metrics as measured
from shared.db.engine import Tx
from shared.domain.lifecycle import Transition
from shared.messages import Job

EXTENSION: Final = "billing-metrics-probe"
DATABASE_WAIT_SECONDS: Final = 4.0  # Prometheus gives up after ten
UNMATCHED: Final = "unmatched"
RECENT: Final = timedelta(hours=1)
QUIET: Final = {"health.live", "health.ready", "metrics.metrics"}  # asked by machines, all day long

log = structlog.get_logger(__name__)
routes = Blueprint("metrics", __name__)

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library types its classes, not this
_registry = CollectorRegistry()
_labels = ("method", "route", "status")
_durations = Histogram(
    "billing_http_request_duration_seconds",
    "Requests, and the time until the answer was ready.",
    _labels,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=_registry,
)
throttled = Counter(
    "billing_throttled_requests",
    "Requests that were refused because a budget was used up.",
    ("budget",),
    registry=_registry,
)
throttle_fallback = Counter(
    "billing_throttle_fallback",
    "Requests that a process counted by itself, without Redis.",
    registry=_registry,
)


class Measured:
    """Gauges of what the database holds, as it is `now`."""

    def __init__(self, tx: Tx, *, now: datetime) -> None:
        self._tx = tx
        self._now = now

    def families(self) -> Iterator[Metric]:
        """All of them."""
        tx = self._tx
        yield from (*self._operations(tx), *self._waits(tx), *self._jobs(tx), *self._accounts(tx))
        skew = GaugeMetricFamily("billing_clock_skew_seconds", "How far this process's clock is before the database's.")
        skew.add_metric([], clock_skew(tx).total_seconds())
        yield skew

    def _operations(self, tx: Tx) -> Iterator[Metric]:
        unfinished = GaugeMetricFamily(
            "billing_operations_unfinished", "Operations that are pending or dead.", labels=("kind", "status")
        )
        oldest = GaugeMetricFamily(
            "billing_operations_oldest_age_seconds", "Age of the oldest of them.", labels=("kind", "status")
        )
        for row in measured.unfinished_operations(tx):
            unfinished.add_metric([row.kind, row.status], row.operations)
            oldest.add_metric([row.kind, row.status], self._age(row.oldest_at))
        yield unfinished
        yield oldest
        recent = GaugeMetricFamily(
            "billing_operations_recent", "Operations accepted in the last hour.", labels=("kind", "status")
        )
        took = GaugeMetricFamily(
            "billing_operations_recent_seconds",
            "From accepted to answered: the mean and the longest of them.",
            labels=("kind", "status", "of"),
        )
        for row in measured.operations_since(tx, _first_id_at(self._now - RECENT)):
            recent.add_metric([row.kind, row.status], row.operations)
            if row.mean_seconds is not None:
                took.add_metric([row.kind, row.status, "mean"], row.mean_seconds)
                took.add_metric([row.kind, row.status, "longest"], row.longest_seconds)
        yield from (recent, took)

    def _waits(self, tx: Tx) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "billing_operations_waiting",
            "Pending operations that a provider or mail server has to answer, or a newer release to execute.",
            labels=("kind", "waits_for"),
        )
        for row in measured.waiting_operations(tx):
            waiting.add_metric([row.kind, row.waits_for], row.operations)
        yield waiting
        unbegun = GaugeMetricFamily(
            "billing_operations_unbegun_age_seconds", "Age of the oldest operation that no worker has taken up."
        )
        since = measured.oldest_unbegun(tx, now=self._now)
        unbegun.add_metric([], 0 if since is None else self._age(since))
        yield unbegun

    def _jobs(self, tx: Tx) -> Iterator[Metric]:
        overdue = GaugeMetricFamily(
            "billing_job_oldest_overdue_seconds", "How long ago the oldest open work was due.", labels=("job",)
        )
        due = {Transition(row.transition).job: row.at for row in measured.earliest_transitions(tx)}
        due[Job.RELEASE_HOLDS] = measured.earliest_hold_expiry(tx)
        due[Job.ASK_PROVIDERS] = measured.earliest_checkout_to_ask(tx)
        due[Job.RELAY_OPERATIONS] = measured.earliest_unsent(tx)
        for job, at in due.items():
            overdue.add_metric([str(job)], 0 if at is None else max(0.0, self._age(at)))
        yield overdue
        age = GaugeMetricFamily(
            "billing_job_last_run_age_seconds", "Time since a job, or a round of the relay, ended.", labels=("job",)
        )
        took = GaugeMetricFamily("billing_job_last_run_seconds", "How long it took.", labels=("job",))
        items = GaugeMetricFamily("billing_job_last_run_items", "How much it did.", labels=("job",))
        for run in job_runs.latest(tx):
            age.add_metric([run.job], self._age(run.finished_at))
            took.add_metric([run.job], run.duration_ms / 1_000)
            items.add_metric([run.job], run.items)
        yield from (age, took, items)

    def _accounts(self, tx: Tx) -> Iterator[Metric]:
        parked = GaugeMetricFamily("billing_accounts_parked", "Accounts that jobs pass by until somebody looks.")
        parked.add_metric([], measured.parked_accounts(tx))
        yield parked
        drift = GaugeMetricFamily(
            "billing_ledger_drift_credits", "Difference of balances and ledger, over a sample of accounts."
        )
        drift.add_metric([], measured.ledger_drift_credits(tx))
        yield drift

    def _age(self, at: datetime) -> float:
        return (self._now - at).total_seconds()


class State(Collector):
    """What was found when somebody looked; families: of the database, None when it did not answer."""

    def __init__(self, families: list[Metric] | None, depths: broker.Depths | None) -> None:
        self._families = families
        self._depths = depths

    def collect(self) -> Iterator[Metric]:
        """Whether database and broker answer, and what they told if so."""
        up = GaugeMetricFamily("billing_database_up", "Whether the database answers.")
        up.add_metric([], int(self._families is not None))
        yield up
        yield from self._families or []
        up = GaugeMetricFamily("billing_broker_up", "Whether the broker answers.")
        up.add_metric([], int(self._depths is not None))
        yield up
        messages = GaugeMetricFamily("billing_queue_messages", "Messages that wait in a queue.", labels=("queue",))
        for queue, depth in (self._depths or {}).items():
            messages.add_metric([str(queue)], depth)
        yield messages


def install(app: Flask) -> None:
    """Count the requests of this application, and answer `/metrics`."""
    services: Services = app.extensions[SERVICES]

    def ask() -> list[Metric]:
        with services.database.transaction() as tx:
            return list(Measured(tx, now=utc_now()).families())

    app.extensions[EXTENSION] = Probe("metrics", ask, wait_seconds=DATABASE_WAIT_SECONDS)
    app.before_request(_start)
    app.after_request(_count)
    app.register_blueprint(routes)


@routes.get("/metrics")
def metrics() -> Response:
    """Everything, in Prometheus' text format."""
    registry = _registry
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # nor this
    probe: Probe[list[Metric]] = current_app.extensions[EXTENSION]
    state = CollectorRegistry()
    state.register(State(probe.answer(), broker.depths()))
    return Response(generate_latest(registry) + generate_latest(state), content_type=CONTENT_TYPE_LATEST)


def clock_skew(tx: Tx) -> timedelta:
    """How far this process's clock is before the database's, give or take half the time that asking takes."""
    before = utc_now()
    theirs = measured.clock(tx)
    return before + (utc_now() - before) / 2 - theirs


def _start() -> None:
    g.started = monotonic()


def _count(response: Response) -> Response:
    route = UNMATCHED if request.url_rule is None else request.url_rule.rule
    method = request.method if route != UNMATCHED else UNMATCHED  # a made-up method is no label
    duration = monotonic() - g.started
    _durations.labels(method, route, str(response.status_code)).observe(duration)
    if request.endpoint in QUIET:
        return response
    log.info(
        "request",
        method=request.method,
        route=route,
        status=response.status_code,
        duration_ms=round(duration * 1_000, 1),
    )
    return response


def _first_id_at(at: datetime) -> UUID:
    """The smallest UUIDv7 of that millisecond."""
    return UUID(int=int(at.timestamp() * 1_000) << 80)
