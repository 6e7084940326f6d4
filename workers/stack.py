"""The whole system as child processes of one command, for `demo`, `up` and the tests of real processes.

Every child leads a process group of its own, so Ctrl-C reaches the command alone, which ends its children in
order. They get their settings from the environment and write to <data_dir>/logs/<name>.log.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final, Self

from shared.broker import make_celery
from shared.config import PROJECT_DIR, Settings
from shared.errors import NotReady

START_LIMIT_SECONDS: Final = 60
STOP_LIMIT_SECONDS: Final = 20
LOG_TAIL_LINES: Final = 30


class Process:
    """One child, which can be ended in several ways and started again."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: dict[str, str],
        log: Path,
        ready: Callable[[], bool],
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = environment
        self._ready = ready
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The leader of its process group."""
        return self._running().pid

    def start(self) -> None:
        """Start it; the log is appended to."""
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                cwd=PROJECT_DIR,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> bool:
        """Whether it does its work by now. Raises NotReady, with the end of its log, when it has ended."""
        status = self._running().poll()
        if status is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
            raise NotReady(f"{self.name} ended with status {status}; the end of {self.log}:\n{tail}")
        return self._ready()

    def wait(self, *, limit_seconds: float = START_LIMIT_SECONDS) -> None:
        """Return once it is ready. Raises NotReady when that takes too long."""
        deadline = time.monotonic() + limit_seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise NotReady(f"{self.name} is not ready after {limit_seconds:.0f} s; see {self.log}")
            time.sleep(0.05)

    def terminate(self) -> None:
        """Ask it to finish what it does and end."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def reap(self, *, limit_seconds: float) -> None:
        """Wait for its end, and kill what is left of it after the limit."""
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(limit_seconds)
        self.kill()

    def stop(self) -> None:
        """Ask it to end, and see that it does."""
        self.terminate()
        self.reap(limit_seconds=STOP_LIMIT_SECONDS)

    def kill(self) -> None:
        """End it and its own children at once, as a machine that loses power would."""
        if self._child is not None:
            self.send(signal.SIGKILL)
            self._child.wait()
            self._child = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and its own children, such as SIGSTOP and SIGCONT."""
        if self._child is not None:
            with suppress(ProcessLookupError, PermissionError):  # macOS refuses when only zombies are left
                os.killpg(self._child.pid, number)

    def freeze(self) -> None:
        """Let it stand still, with its own children, until `thaw`."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def restart(self) -> None:
        """Stop it, start it, and return once it is ready."""
        self.stop()
        self.start()
        self.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise NotReady(f"{self.name} does not run")
        return self._child


class Stack:
    """API, two workers, beat and relay: `with Stack(settings) as stack` runs while they do.

    settings: both URLs must be set. A port of 0 in `api_bind` takes a free one.
    environment: variables that its processes get besides.
    on_ready: told the name of each process that has become ready.
    Leaving ends every process. Raises NotReady, with the end of a log, when one does not come up.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environment: Mapping[str, str] | None = None,
        on_ready: Callable[[str], None] = lambda _: None,
    ) -> None:
        if settings.database_url is None or settings.broker_url is None:
            raise NotReady("a stack needs a database and a broker; see shared/embedded.py")
        host, _, port = settings.api_bind.rpartition(":")
        bind = f"{host}:{int(port) or free_port(host)}"
        self.settings = settings.model_copy(update={"api_bind": bind})
        self.url = f"http://{bind}"
        self._environment = {**os.environ, **self.settings.as_environment(), "PYTHONUNBUFFERED": "1"}
        self._environment.update(environment or {})
        self._on_ready = on_ready
        self._celery = make_celery(settings, sends_only=True)
        self._processes = {process.name: process for process in self._describe()}

    def __getitem__(self, name: str) -> Process:
        return self._processes[name]

    def __iter__(self) -> Iterator[Process]:
        return iter(self._processes.values())

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start every process and return once all are ready."""
        for process in self:
            process.start()
        deadline = time.monotonic() + START_LIMIT_SECONDS
        waiting = list(self)
        while waiting:
            ready = [process for process in waiting if process.ready()]
            for process in ready:
                self._on_ready(process.name)
            waiting = [process for process in waiting if process not in ready]
            if waiting and time.monotonic() > deadline:
                raise NotReady(f"not ready after {START_LIMIT_SECONDS} s: {waiting[0].name}; see {waiting[0].log}")
            time.sleep(0.05)

    def another(self, name: str) -> Process:
        """One more process like this one, not started yet; whoever asks for it ends it."""
        return next(process for process in self._describe(number=2) if process.name == f"{name}-2")

    def check(self) -> None:
        """Raise NotReady, with the end of its log, if a process has ended."""
        for process in self:
            process.ready()

    def stop(self) -> None:
        """End every process: all are asked at once, and those that do not comply in time are killed."""
        for process in self:
            process.terminate()
        deadline = time.monotonic() + STOP_LIMIT_SECONDS
        for process in self:
            process.reap(limit_seconds=max(0.0, deadline - time.monotonic()))
        self._celery.close()

    def _describe(self, *, number: int = 1) -> Iterator[Process]:
        python = (sys.executable, "-m")
        worker = (*python, "celery", "-A", "workers.app", "worker", "--without-gossip", "--without-mingle")
        suffix = "" if number == 1 else f"-{number}"
        yield self._process(
            f"api{suffix}", (*python, "gunicorn", "-c", "api/gunicorn.py", "api.app:create_app()"), self._api_ready
        )
        for queue, concurrency in (("interactive", 2), ("periodic", 1)):
            node = f"{queue}{suffix}@stack"
            command = (*worker, "-Q", queue, "-n", node, "-c", str(concurrency))
            yield self._process(f"worker-{queue}{suffix}", command, partial(self._answers, node))
        yield self._process(f"beat{suffix}", (*python, "celery", "-A", "beat_schedule", "beat"), lambda: True)
        yield self._process(f"relay{suffix}", (*python, "workers", "relay"), lambda: True)

    def _process(self, name: str, command: Sequence[str], ready: Callable[[], bool]) -> Process:
        logs = self.settings.data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return Process(name, command, environment=self._environment, log=logs / f"{name}.log", ready=ready)

    def _api_ready(self) -> bool:
        with (
            suppress(OSError, HTTPException),
            closing(HTTPConnection(self.settings.api_bind, timeout=2)) as client,
        ):
            client.request("GET", "/readyz")
            return client.getresponse().status == HTTPStatus.OK
        return False

    def _answers(self, node: str) -> bool:
        try:
            return bool(self._celery.control.ping(destination=[node], timeout=0.5, limit=1))
        except Exception:  # noqa: BLE001 - whatever a transport raises, nobody has answered
            return False


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal raise KeyboardInterrupt as Ctrl-C does, so that everything is ended."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
