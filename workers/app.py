"""The Celery app of the workers: `celery -A workers.app worker -Q interactive` (or `-Q periodic`)."""

from typing import Any

import structlog
from celery.signals import setup_logging, task_postrun, task_prerun

from shared import log
from shared.broker import make_celery
from shared.config import get_settings

app = make_celery(get_settings())
app.conf.imports = (
    "workers.tasks.accounts",
    "workers.tasks.payments",
    "workers.tasks.refunds",
    "workers.tasks.bank_transfers",
    "workers.tasks.bank_statements",
    "workers.tasks.subscriptions",
    "workers.tasks.credits",
    "workers.tasks.operations",
    "workers.tasks.test_clocks",
)


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    log.configure(get_settings())


@task_prerun.connect
def _bind_task_id(task_id: str, **_: Any) -> None:
    structlog.contextvars.bind_contextvars(task_id=task_id)


@task_postrun.connect
def _unbind_task_id(**_: Any) -> None:
    structlog.contextvars.unbind_contextvars("task_id")
