"""A populated database, made once for each module whose tests undo what they do."""

import pytest

from shared.config import Settings
from shared.db.engine import Database
from shared.domain.account import SYSTEM_ACCOUNT_ID
from tests.db.world import Healthy, populate


@pytest.fixture(scope="module")
def healthy(pool: Database, reset_sql: str, settings: Settings) -> Healthy:
    """Accounts in every situation. A module that asks for it must not ask for `database`, which empties it."""
    with pool.transaction() as tx:
        tx.connection.exec_driver_sql(reset_sql)
        ids = populate(tx, settings)
    return Healthy(pool, settings, {**ids, "system": SYSTEM_ACCOUNT_ID})
