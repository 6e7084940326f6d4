"""Whatever a beat job asks of a large book, it asks an index: nothing reads a whole table, at work or idle."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Row

from bench import population
from shared.config import Settings
from shared.db import credits
from shared.db.engine import Database, S, Tx
from shared.db.plans import load_rules
from shared.domain.lifecycle import Transition
from shared.usecases.advance_due_accounts import advance_due_accounts
from tests.factories import Table, cases

# What has been there: each account was asked for by an operation, and has had a hold.
PAST = (
    """
    INSERT INTO operations (id, kind, status, payload, payload_version, account_id, principal_kind, request_hash,
                            result, created_at, finished_at)
    SELECT gen_random_uuid(), 'sign_up', 'succeeded', '{}', 1, id, 'anonymous', '', '{}', created_at, created_at
    FROM accounts WHERE kind = 'customer'
    """,
    """
    INSERT INTO holds (id, account_id, status, amount, idempotency_key, held_at, expires_at, resolved_at)
    SELECT gen_random_uuid(), id, 'released', 1, 'past', created_at, created_at + interval '1 hour', created_at
    FROM accounts WHERE kind = 'customer'
    """,
)
ACCOUNTS = 10_000
BATCH = 20
SMALL = {"plans", "plan_assigners", "test_clocks"}  # reading these whole is what one wants
EMPTY = {"invoices", "bank_transfers"}  # in this book


@pytest.fixture
def book(scratch_url: str) -> Iterator[Database]:
    """A large book of which PostgreSQL has the statistics."""
    database = Database(scratch_url)
    with database.transaction() as tx:
        population.fill(tx, ACCOUNTS)
        for statement in PAST:
            tx.execute(statement)
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    yield database
    database.dispose()


class ExplainingTx(Tx):
    """A transaction that asks for the plan of each statement before it runs it."""

    def __init__(self, tx: Tx) -> None:
        super().__init__(tx.connection)
        self.read_whole: list[tuple[str, str]] = []
        self.statements = 0

    def explain(self, sql: str, params: dict[str, Any]) -> None:
        plan = super().scalar(f"EXPLAIN (FORMAT JSON) {sql}", **params)
        self.statements += 1
        self.read_whole += [(table, sql) for table in tables_read_whole(plan[0]["Plan"]) if table not in SMALL | EMPTY]

    def rows(self, sql: str, **params: Any) -> Sequence[Row[Any]]:
        self.explain(sql, params)
        return super().rows(sql, **params)

    def execute(self, sql: str, **params: Any) -> int:
        self.explain(sql, params)
        return super().execute(sql, **params)

    def structs(self, kind: type[S], sql: str, **params: Any) -> list[S]:
        self.explain(sql, params)
        return super().structs(kind, sql, **params)


def tables_read_whole(plan: dict[str, Any]) -> Iterable[str]:
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for child in plan.get("Plans", []):
        yield from tables_read_whole(child)


SITUATIONS: Table = {
    "idle: one statement finds that nothing is due": (timedelta(microseconds=-1), 0, 1),
    "at work: so do those that load and write a batch": (timedelta(), BATCH, 10),
}


@pytest.mark.parametrize(("after_due", "expected", "statements"), cases(SITUATIONS))
def test_no_pass_reads_a_whole_table(
    book: Database, settings: Settings, after_due: timedelta, expected: int, statements: int
) -> None:
    as_of = population.DUE_AT + after_due
    with book.transaction() as plain:
        rules = load_rules(plain, settings)
        for transition in Transition:
            tx = ExplainingTx(plain)
            claimed = advance_due_accounts(tx, rules, transition, as_of=as_of, limit=BATCH)
            assert tx.read_whole == []
            if transition is Transition.RENEWAL:
                assert (claimed, tx.statements) == (expected, statements)


def test_releasing_holds_reads_no_whole_table(book: Database) -> None:
    with book.transaction() as plain:
        tx = ExplainingTx(plain)
        assert credits.release_due_holds(tx, as_of=population.DUE_AT, limit=BATCH) == 0
        assert tx.read_whole == []
        assert tx.statements


def test_a_statement_that_reads_a_whole_table_is_noticed(book: Database) -> None:
    with book.transaction() as plain:
        tx = ExplainingTx(plain)
        tx.rows("SELECT FROM accounts WHERE name = 'Account 7'")
        assert [table for table, _ in tx.read_whole] == ["accounts"]
