"""What goes wrong inside the processes of a system under test. Python imports this module by its name at every start.

It does nothing unless SABOTAGE_DIR names a folder. Files there say what is to go wrong, in whichever process comes
by first; a file is removed by the process that took it up, so each goes wrong once.

- `die-at-<point>-…`: the process kills itself there: `before-transaction`, `inside-transaction`, `after-commit` of an
  operation, `inside-batch` of a beat job, `before-publish` of a request.
- `linger-…`: the process waits inside the transaction of an operation for the seconds that the file holds.
- `poison-<operation id>`: whoever executes this operation dies of it; only the suite removes the file.
- `clock-<word>`: processes with this word in their command are this many seconds ahead; only the suite removes it.

BROKEN_BUILD names a defect that is built in: `effect-before-lock` or `ack-early`. The suite shows with them that it
can fail. VISIBILITY_TIMEOUT is what a broker without connections waits before it delivers again, in seconds.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn


def install(folder: Path, broken_build: str | None, visibility_timeout: str | None) -> None:
    """Put the traps where the product passes by. Before anything else imports what is replaced here."""
    _install_clock(folder)
    _install_traps(folder)
    if visibility_timeout is not None:
        _deliver_again_after(int(visibility_timeout))
    if broken_build == "ack-early":
        _acknowledge_early()
    if broken_build == "effect-before-lock":
        _work_before_the_lock()


def _install_clock(folder: Path) -> None:
    import shared.clock  # noqa: PLC0415 - only in a process that is to be sabotaged

    right = shared.clock.utc_now
    command = " ".join(sys.orig_argv)

    def wrong() -> datetime:
        seconds = 0.0
        for file in folder.glob("clock-*"):
            if file.name.removeprefix("clock-") in command:
                with suppress(FileNotFoundError):
                    seconds += float(file.read_text())
        return right() + timedelta(seconds=seconds)

    shared.clock.utc_now = wrong


def _install_traps(folder: Path) -> None:
    from celery.signals import task_postrun, task_prerun  # noqa: PLC0415
    from sqlalchemy import Engine, event  # noqa: PLC0415

    import shared.broker  # noqa: PLC0415

    def take(pattern: str) -> str | None:
        for file in sorted(folder.glob(pattern)):
            with suppress(FileNotFoundError):  # another process was faster
                content = file.read_text()
                file.unlink()
                return content
        return None

    def die_if_asked(point: str) -> None:
        if take(f"die-at-{point}-*") is not None:
            _die()

    @task_prerun.connect(weak=False)
    def before_task(args: Any, **_: Any) -> None:
        if args:  # an operation's id; beat jobs have none
            die_if_asked("before-transaction")

    @task_postrun.connect(weak=False)
    def after_task(args: Any, **_: Any) -> None:
        if args:
            die_if_asked("after-commit")

    @event.listens_for(Engine, "before_cursor_execute")
    def before_statement(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "UPDATE operations SET status = 'succeeded'" in statement:
            if (folder / f"poison-{parameters['id']}").exists():
                _die()
            die_if_asked("inside-transaction")
            if (seconds := take("linger-*")) is not None:
                time.sleep(float(seconds))
        elif statement.lstrip().startswith("UPDATE accounts") and "periodic" in " ".join(sys.orig_argv):
            die_if_asked("inside-batch")

    send = shared.broker.Publisher.send

    def send_or_die(self: Any, task_name: str, operation_id: Any) -> None:
        die_if_asked("before-publish")
        send(self, task_name, operation_id)

    shared.broker.Publisher.send = send_or_die  # type: ignore[method-assign]


def _deliver_again_after(seconds: int) -> None:
    import shared.broker  # noqa: PLC0415

    shared.broker.VISIBILITY_TIMEOUT_SECONDS = seconds  # type: ignore[misc] # final for everybody but the suite


def _acknowledge_early() -> None:
    import shared.broker  # noqa: PLC0415

    make = shared.broker.make_celery

    def make_careless(*args: Any, **options: Any) -> Any:
        app = make(*args, **options)
        app.conf.update(task_acks_late=False)
        return app

    shared.broker.make_celery = make_careless


def _work_before_the_lock() -> None:
    if "celery" not in " ".join(sys.orig_argv) or "worker" not in sys.orig_argv:
        return
    import workers.task  # noqa: PLC0415
    from shared.clock import utc_now  # noqa: PLC0415
    from shared.db import operations  # noqa: PLC0415
    from shared.db.plans import load_rules  # noqa: PLC0415
    from workers.runtime import runtime  # noqa: PLC0415

    def in_two_transactions(operation: Any, decide: Callable[..., Any]) -> None:
        with runtime().database.transaction() as tx:
            answer = decide(tx, load_rules(tx, runtime().settings))
        time.sleep(0.05)  # the defect opens a window; this makes it a wide one
        with runtime().database.transaction() as tx:
            if operations.lock_pending(tx, operation.id):
                operations.succeed(tx, operation.id, result=answer, now=utc_now())

    workers.task._in_transaction = in_two_transactions


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process does not go on")


if "SABOTAGE_DIR" in os.environ:
    install(Path(os.environ["SABOTAGE_DIR"]), os.environ.get("BROKEN_BUILD"), os.environ.get("VISIBILITY_TIMEOUT"))
