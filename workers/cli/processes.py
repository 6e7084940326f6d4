"""Processes and runs: up, demo, relay, run."""

import os
import signal
import threading
from datetime import datetime
from typing import Annotated

import typer

from shared import log
from shared.config import Settings, get_settings
from shared.errors import InvalidInput
from shared.messages import Job
from workers.cli.session import session


def up() -> None:
    """Start the whole system on this machine and leave it running until Ctrl-C. For trying and developing."""
    settings = _to_try_out()
    from workers.up import run_up  # noqa: PLC0415 (only this command needs it)

    run_up(settings)


def demo() -> None:
    """Live a billing year over HTTP with real processes, and check the books. Exit status 1 when a step fails."""
    settings = _to_try_out()
    from workers.demo import run_demo  # noqa: PLC0415 (only this command needs it)

    raise typer.Exit(run_demo(settings))


def relay() -> None:
    """Run the relay: a process that sends again whatever is not done, until SIGTERM or Ctrl-C."""
    from workers.relay import Relay  # noqa: PLC0415 (Celery is slow to load, and needs a broker's URL)

    stop = threading.Event()
    with session(broker=True, needs_schema=False) as here:
        log.configure(here.settings)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: stop.set())
        Relay(here.settings, here.database).run(stop)


def run(
    job: Annotated[Job, typer.Argument(help="Which of beat's jobs.")],
    *,
    as_of: Annotated[
        str | None,
        typer.Option(metavar="INSTANT", help="Do what was due by then, like 2026-03-31T00:00:00Z; unless stated, now."),
    ] = None,
) -> None:
    """Run one of beat's jobs here and now, until nothing is due. A future instant is refused.

    Harmless at any time, and at the same time as the workers: what is done is not done again.
    """
    if as_of is not None and job is Job.RELAY_OPERATIONS:
        raise InvalidInput("the relay sends what is due now; it takes no --as-of")
    _require_instant(as_of)
    with session(broker=True) as here:
        log.configure(here.settings)
        _settle_in(here.settings)
        from workers.cli.by_hand import run_by_hand  # noqa: PLC0415 (needs the settings to be in place)

        items = run_by_hand(job, as_of=as_of)
    typer.echo(f"{job}: {items} done")


def _to_try_out() -> Settings:
    settings = Settings()
    if settings.environment == "production":
        raise InvalidInput("this is for trying out, with money that is none; it never runs with ENVIRONMENT=production")
    return settings


def _require_instant(text: str | None) -> None:
    try:
        if text is not None and datetime.fromisoformat(text).tzinfo is not None:
            return
    except ValueError:
        pass
    if text is not None:
        raise InvalidInput(f"{text} is no instant with its zone; write it like 2026-03-31T00:00:00Z")


def _settle_in(settings: Settings) -> None:
    """Tasks take their settings from this process's environment."""
    os.environ.update(settings.as_environment())
    get_settings.cache_clear()
