"""Amounts that are none are refused before anything is asked of the database."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from shared.db import credits
from shared.db.engine import Tx
from shared.domain.credits import MAX_CREDITS
from shared.errors import InvalidInput
from tests.office import Customer, Office


def consume(tx: Tx, who: Customer, amount: int, office: Office) -> Any:
    return credits.consume(office.asker(tx, who), amount, key="k", reason=None, now=office.now)


def hold(tx: Tx, who: Customer, amount: int, office: Office) -> Any:
    return credits.place_hold(office.asker(tx, who), amount, key="k", ttl_seconds=60, now=office.now)


def capture(tx: Tx, who: Customer, amount: int, office: Office) -> Any:
    return credits.capture_hold(office.asker(tx, who), UUID(int=1), amount, now=office.now)


@pytest.mark.parametrize("verb", [consume, hold, capture])
@pytest.mark.parametrize(
    "amount",
    [
        pytest.param(0, id="nothing"),
        pytest.param(-1, id="less than nothing"),
        pytest.param(MAX_CREDITS + 1, id="more than anybody has"),
    ],
)
def test_an_amount_that_is_none_is_refused(office: Office, verb: Callable[..., Any], amount: int) -> None:
    who = office.sign_up()
    before = office.dump()
    with pytest.raises(InvalidInput), office.database.transaction() as tx:
        verb(tx, who, amount, office)
    assert office.dump() == before
