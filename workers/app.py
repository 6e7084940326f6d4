"""The Celery app of the workers: `celery -A workers.app worker -Q interactive` (or `-Q periodic`)."""

from typing import Any

from celery.signals import setup_logging

from shared import log
from shared.broker import make_celery
from shared.config import get_settings

app = make_celery(get_settings())
app.conf.imports = (
    "workers.tasks.accounts",
    "workers.tasks.payments",
    "workers.tasks.bank_transfers",
    "workers.tasks.subscriptions",
    "workers.tasks.credits",
    "workers.tasks.operations",
    "workers.tasks.test_clocks",
)


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    log.configure(get_settings())
