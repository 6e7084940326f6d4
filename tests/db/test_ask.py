"""`Database.ask`: one statement, committed by itself, and put again when its connection was lost."""

from concurrent.futures import ThreadPoolExecutor
from socket import socket

import pytest
from sqlalchemy.exc import DBAPIError

from shared.db.engine import Database, is_transient

END_THE_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%%ask%%'
    """
NAME = "INSERT INTO test_clocks (id, name, now_at) VALUES (gen_random_uuid(), %(name)s, now()) RETURNING name"


def test_a_statement_is_a_transaction_of_its_own(database: Database) -> None:
    assert database.ask(NAME, name="ask").name == "ask"
    with database.transaction() as tx:
        assert tx.scalar("SELECT count(*) FROM test_clocks") == 1
    assert database.ask("SELECT 1 AS one WHERE false") is None


def test_a_lost_connection_costs_nobody_an_answer(database: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        asked = list(threads.map(lambda n: database.ask("SELECT %(n)s::int AS asked", n=n).asked, range(20)))
        assert asked == list(range(20))
        with database.transaction() as tx:
            assert tx.rows(END_THE_OTHERS), "somebody is connected"
        asked = list(threads.map(lambda n: database.ask("SELECT %(n)s::int AS asked", n=n).asked, range(20)))
        assert asked == list(range(20))


def test_a_statement_that_fails_leaves_its_connection_usable(database: Database) -> None:
    before = database.ask("SELECT pg_backend_pid() AS pid").pid
    with pytest.raises(DBAPIError):
        database.ask("SELECT 1 / 0 AS asked")
    assert database.ask("SELECT pg_backend_pid() AS pid").pid == before


def test_a_database_that_cannot_be_reached_is_tried_once_and_said_to_be_so() -> None:
    with socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        nowhere = Database(f"postgresql+psycopg://127.0.0.1:{nobody.getsockname()[1]}/billing")
        with pytest.raises(DBAPIError) as error:
            nowhere.ask("SELECT 1 AS asked")
    assert is_transient(error.value)
    assert not error.value.connection_invalidated
    nowhere.dispose()
