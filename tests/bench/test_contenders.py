"""What the benchmark compares does the same work: a healthy book, and the same rows from both sides."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench import limit, population
from shared.config import Settings
from shared.db.checks import run_checks
from shared.db.engine import Database, Tx
from shared.db.plans import load_rules
from shared.domain.lifecycle import Transition
from shared.usecases.advance_due_accounts import advance_due_accounts

ACCOUNTS = 40
VERSION_WITH_UUIDV7 = 180_000

# What each contender may choose for itself: ids, keys, and when a row was written.
OWN = {"id", "grant_id", "source_id", "idempotency_key", "created_at"}
TABLES = {
    "accounts": "id",
    "subscriptions": "id",
    "subscription_periods": "subscription_id, starts_at",
    "credit_grants": "account_id, effective_at",
    "credit_transactions": "account_id, seq",
}


@pytest.fixture
def book(scratch_url: str) -> Iterator[Database]:
    database = Database(scratch_url)
    with database.transaction() as tx:
        population.fill(tx, ACCOUNTS)
    yield database
    database.dispose()


def dump(tx: Tx) -> dict[str, list[dict[str, Any]]]:
    rows = {table: tx.rows(f"SELECT * FROM {table} ORDER BY {order}") for table, order in TABLES.items()}
    return {
        table: [{name: value for name, value in row._asdict().items() if name not in OWN} for row in found]
        for table, found in rows.items()
    }


def roll(tx: Tx, step: Callable[[], int]) -> dict[str, list[dict[str, Any]]]:
    """The rows afterwards; nothing stays."""
    with tx.connection.begin_nested() as savepoint:
        while step():
            pass
        rows = dump(tx)
        savepoint.rollback()
    return rows


def test_the_book_breaks_no_rule(book: Database, settings: Settings) -> None:
    with book.transaction() as tx:
        assert run_checks(tx, settings) == []


def test_the_limit_writes_the_rows_that_the_engine_writes(book: Database, settings: Settings) -> None:
    with book.transaction() as tx:
        if int(tx.scalar("SHOW server_version_num")) < VERSION_WITH_UUIDV7:
            pytest.skip("the limit makes its ids with uuidv7(), which this server does not have")
        rules = load_rules(tx, settings)
        at = population.DUE_AT
        before = dump(tx)
        decided = roll(tx, lambda: advance_due_accounts(tx, rules, Transition.RENEWAL, as_of=at, limit=ACCOUNTS // 3))
        assert roll(tx, lambda: limit.roll(tx, as_of=at, limit=ACCOUNTS // 3)) == decided != before
