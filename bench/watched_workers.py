"""The product's workers, which note when they take an operation up: `celery -A bench.watched_workers worker`."""

from celery.signals import task_prerun

from bench.bare_work import watch_begun
from workers.app import app

__all__ = ["app"]

task_prerun.connect(watch_begun)
