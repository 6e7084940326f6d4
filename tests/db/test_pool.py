"""`Database.transaction`: a connection that the server has ended while it was idle is replaced, and nobody notices."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from shared.db.engine import Database

AT_ONCE = 4
END_ALL = "SELECT pg_terminate_backend(unnest(%(pids)s::int[]), 5000)"


def backends(database: Database) -> set[int]:
    """Of as many connections as are in use at once."""
    all_in = Barrier(AT_ONCE)

    def backend(_: int) -> int:
        with database.transaction() as tx:
            all_in.wait(timeout=10)
            pid: int = tx.scalar("SELECT pg_backend_pid()")
            return pid

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return set(threads.map(backend, range(AT_ONCE)))


def test_a_connection_is_kept_while_it_is_good(database: Database) -> None:
    assert backends(database) == backends(database)


def test_connections_that_were_ended_are_replaced_before_they_are_used(database: Database) -> None:
    before = backends(database)
    database.ask(END_ALL, pids=list(before))
    after = backends(database)
    assert len(after) == AT_ONCE
    assert not after & before
