"""Each fault once, under load: every 202 comes to its end, every effect is there once, every invariant holds."""

import pytest

from shared.clock import monotonic
from tests.faults.customers import Load
from tests.faults.faults import FAULTS, Strike
from tests.faults.outcomes import Outcome, record
from tests.faults.system import System, is_ready, wait_for

pytestmark = pytest.mark.processes

CUSTOMERS = 18
PATIENCE_SECONDS = 120


@pytest.fixture
def load(system: System, request: pytest.FixtureRequest) -> Load:
    """Customers whose lives depend on the fault's place in the table, and on nothing else."""
    give_up_at = monotonic() + PATIENCE_SECONDS
    seed = FAULTS.index(request.getfixturevalue("fault"))
    admin = system.admin(give_up_at=give_up_at)
    return Load(system.stack.url, admin, seed=seed, customers=CUSTOMERS, give_up_at=give_up_at)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_is_lost_and_nothing_is_done_twice_when(fault: Strike, system: System, load: Load) -> None:
    load.start()
    wait_for(lambda: load.lived >= CUSTOMERS // 3, "some customers to have begun")
    try:
        fault(system, load)
        healed_at = system.now()
    finally:
        system.heal()
        load.join()

    assert load.failures == []
    system.wait_until_quiet()
    assert system.broken_promises(load.promises()) == []
    assert system.read(load.wrong_books) == []
    assert system.findings() == []
    wait_for(lambda: is_ready(system.stack.url), "the API to be ready again")
    record(
        Outcome(
            fault=fault.__name__,
            broker=system.broker.name,
            accepted=len(load.promises()),
            recovered_seconds=system.recovered_after(healed_at),
        )
    )
