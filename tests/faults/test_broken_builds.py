"""The suite can fail: builds with one defect each do not survive what the product survives."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from shared.clock import monotonic
from tests.faults.brokers import ValkeyBroker
from tests.faults.customers import Load
from tests.faults.faults import (
    broker_forgets_everything,
    messages_come_three_times_in_any_order,
    relay_and_beat_are_dead_while_workers_are_killed,
)
from tests.faults.system import NotQuiet, System, running_system

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("faults-broken")]

Build = Callable[..., AbstractContextManager[System]]


def some_lives(system: System) -> Load:
    give_up_at = monotonic() + 15
    return Load(system.stack.url, system.admin(give_up_at=give_up_at), seed=300, customers=12, give_up_at=give_up_at)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A system with a defect that sabotage/sitecustomize.py builds in."""

    def build(defect: str = "", **environment: str) -> AbstractContextManager[System]:
        environment |= {"BROKEN_BUILD": defect}
        return running_system(tmp_path, ValkeyBroker(tmp_path / "valkey"), environment=environment)

    return build


def test_without_relay_what_the_broker_forgets_is_lost(build: Build) -> None:
    with build() as system:
        for name in ("relay", "beat"):
            system.stack[name].kill()
        load = some_lives(system)
        load.start()
        broker_forgets_everything(system, load)
        load.join()
        assert load.failures
        with pytest.raises(NotQuiet):
            system.wait_until_quiet(within_seconds=5)
        for name in ("relay", "beat"):
            system.stack[name].start()


@pytest.mark.parametrize("defect", ["", "ack-early"], ids=["whole", "broken"])
def test_with_messages_acknowledged_early_a_killed_worker_takes_one_along(build: Build, defect: str) -> None:
    with build(defect, VISIBILITY_TIMEOUT="5") as system:
        load = some_lives(system)
        load.start()
        if defect:
            with pytest.raises(AssertionError, match=r"waited .* in vain for everything accepted"):
                relay_and_beat_are_dead_while_workers_are_killed(system, load)
        else:
            relay_and_beat_are_dead_while_workers_are_killed(system, load)
        load.join()


def test_with_work_done_before_the_lock_a_message_that_comes_again_does_it_again(build: Build) -> None:
    with build("effect-before-lock") as system:
        load = some_lives(system)
        load.start()
        messages_come_three_times_in_any_order(system, load)
        load.join()
        assert load.failures or system.broken_promises(load.promises()) or system.read(load.wrong_books)
