"""The office that asks, over a real database; after each test the books must be in order."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from shared.config import Settings
from shared.db.engine import Database
from tests.office import Office


@pytest.fixture
def office(database: Database, settings: Settings) -> Iterator[Office]:
    office = Office(database, settings)
    with capture_logs():  # no pages of traceback for what a test breaks on purpose
        yield office
    assert office.findings() == []
