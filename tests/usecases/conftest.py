"""The office that asks, over a real database; after each test the books must be in order."""

from collections.abc import Iterator

import pytest

from shared.config import Settings
from shared.db.engine import Database
from tests.office import Office


@pytest.fixture
def office(database: Database, settings: Settings) -> Iterator[Office]:
    office = Office(database, settings)
    yield office
    assert office.findings() == []
