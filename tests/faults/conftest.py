"""One system for each broker, which has to survive all single faults one after another."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.brokers import RabbitBroker, ValkeyBroker
from tests.faults.system import System, running_system

BROKERS = [
    pytest.param(broker, id=broker.name, marks=pytest.mark.xdist_group(f"faults-{broker.name}"))
    for broker in (ValkeyBroker, RabbitBroker)
]


@pytest.fixture(scope="session", params=BROKERS)
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Three attempts of an operation are enough to give it up."""
    if not request.param.installed():
        pytest.skip("RabbitMQ's server is not on this machine (Debian: rabbitmq-server)")
    folder: Path = tmp_path_factory.mktemp("faults")
    with running_system(folder, request.param(folder / "broker"), operation_max_attempts=3) as system:
        yield system
