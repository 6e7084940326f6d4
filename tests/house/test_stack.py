"""Child processes of a command: how one is ended, and how its death is told."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shared.config import Settings
from shared.errors import NotReady
from workers.stack import Process, Stack, interruptible

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""

Start = Callable[[str], Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that counts as ready once it has written to its log."""
    started: list[Process] = []

    def start(code: str) -> Process:
        log = tmp_path / f"child-{len(started)}.log"
        command = (sys.executable, "-c", code)
        process = Process("child", command, environment={}, log=log, ready=lambda: log.stat().st_size > 0)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def family(process: Process) -> list[psutil.Process]:
    leader = psutil.Process(process.pid)
    return [leader, *leader.children()]


def comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def gone(members: list[psutil.Process]) -> bool:
    return comes_true(lambda: not any(m.is_running() and m.status() != psutil.STATUS_ZOMBIE for m in members))


def test_what_ignores_the_request_to_end_is_killed_with_its_children(start: Start) -> None:
    process = start(STUBBORN)
    process.wait()
    members = family(process)
    assert len(members) == 2
    process.terminate()
    process.reap(limit_seconds=0.2)
    assert gone(members)
    process.stop()  # once more does no harm


def test_a_killed_process_can_be_started_again(start: Start) -> None:
    process = start(STUBBORN)
    process.wait()
    before = family(process)
    process.kill()
    assert gone(before)
    process.start()
    process.wait()
    assert process.pid != before[0].pid


def test_a_frozen_process_goes_on_when_it_is_told_to(start: Start) -> None:
    process = start(STUBBORN)
    process.wait()
    members = family(process)
    process.send(signal.SIGSTOP)
    assert comes_true(lambda: all(member.status() == psutil.STATUS_STOPPED for member in members))
    process.send(signal.SIGCONT)
    assert comes_true(lambda: all(member.status() != psutil.STATUS_STOPPED for member in members))


def test_a_process_that_ends_is_reported_with_the_end_of_its_log(start: Start) -> None:
    process = start("import time; time.sleep(0.1); raise SystemExit('no such setting')")
    assert gone([psutil.Process(process.pid)])
    with pytest.raises(NotReady, match=r"child ended with status 1; the end of .*\n(.*\n)*no such setting"):
        process.wait()


def test_a_process_that_is_never_ready_is_given_up(start: Start) -> None:
    with pytest.raises(NotReady, match="child is not ready after 0 s"):
        start("import time; time.sleep(60)").wait(limit_seconds=0.1)


def test_a_stack_needs_both_urls() -> None:
    with pytest.raises(NotReady, match="needs a database and a broker"):
        Stack(Settings(database_url=None, broker_url=None))


def test_a_stack_takes_a_free_port_when_it_is_asked_to(tmp_path: Path) -> None:
    given = Settings(
        database_url="postgresql://elsewhere/billing",
        broker_url="redis://elsewhere/0",
        data_dir=tmp_path,
        api_bind="127.0.0.1:0",
    )
    assert int(Stack(given).url.rpartition(":")[2]) > 1024
    assert Stack(given.model_copy(update={"api_bind": "127.0.0.1:8123"})).url == "http://127.0.0.1:8123"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_unwinds(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before
