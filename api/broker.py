"""What an API process can tell of the broker, which it otherwise only sends to."""

from typing import Final, TypeAlias

from flask import Flask, current_app

from api.probe import Probe
from shared.broker import make_celery, queue_depth
from shared.config import Settings
from shared.messages import Queue

EXTENSION: Final = "billing-broker-probe"
WAIT_SECONDS: Final = 1.0

Depths: TypeAlias = dict[Queue, int]


def install(app: Flask, settings: Settings) -> None:
    """Make `depths` answer in this application."""

    def ask() -> Depths:
        with make_celery(settings, sends_only=True) as celery:
            return {queue: queue_depth(celery, queue) for queue in Queue}

    app.extensions[EXTENSION] = Probe("broker", ask, wait_seconds=WAIT_SECONDS)


def depths() -> Depths | None:
    """How many messages wait in each queue; None when the broker has not answered within a second."""
    probe: Probe[Depths] = current_app.extensions[EXTENSION]
    return probe.answer()
