"""What it costs to spend credits: beside bare statements in the database, and beside a bare route over HTTP."""

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID

import httpx
import msgspec
from msgspec import Struct

from bench import bare
from bench.lab import DURABLE, Lab
from bench.load import Load, load, post
from bench.meter import machine, timed
from bench.pgbench import Rate, pgbench
from bench.population import fill
from shared.clock import utc_now
from shared.config import Settings
from shared.db.engine import Database, Tx
from workers.stack import Process, free_port

ACCOUNTS: Final = 10_000
CLIENTS: Final = 8
CONNECTIONS: Final = 16
SECONDS: Final = 10
WARM_UP_SECONDS: Final = 2
BATCH: Final = 1_000
LEDGER_ROWS: Final = 1_000_000
GRANTS: Final = 200
CALLS: Final = 2_000
NEW, OLD = 1, 2  # numbers of accounts

# Every account of the book has a key, and more credits than any run takes.
_PREPARE: Final = (
    """
    INSERT INTO users (id, account_id, email, password_hash, role)
    SELECT id, id, id || '@example.com', 'none', 'owner' FROM accounts WHERE kind = 'customer'
    """,
    """
    INSERT INTO api_keys (id, account_id, name, prefix, key_hash, scopes, created_by, last_used_at)
    SELECT id, id, 'bench', 'bk_bench', sha256(convert_to('bk_bench_' || id, 'UTF8')), '{credits:consume}', id, now()
    FROM accounts WHERE kind = 'customer'
    """,
    """
    INSERT INTO credit_grants (id, account_id, source, amount, remaining, priority, effective_at)
    SELECT gen_random_uuid(), id, 'adjust', 1000000000, 1000000000, 20, now() FROM accounts WHERE kind = 'customer'
    """,
    """
    INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                     effective_at, source, source_id)
    SELECT a.id, 3, g.id, 'adjust', g.amount, a.balance_credits + g.amount, 'adjust:bench', 0, now(), 'admin', a.id
    FROM accounts a JOIN credit_grants g ON g.account_id = a.id AND g.source = 'adjust'
    """,
    """
    UPDATE accounts SET balance_credits = balance_credits + 1000000000, ledger_seq = 3 WHERE kind = 'customer'
    """,
)

# One account has a long past: a million rows, and two hundred grants that have something left.
_AGE: Final = (
    """
    INSERT INTO credit_grants (id, account_id, source, amount, remaining, priority, effective_at, expires_at)
    SELECT gen_random_uuid(), %(id)s, 'adjust', 100, 100, 20, now(), now() + make_interval(days => 100 + n)
    FROM generate_series(1, %(grants)s) AS n
    """,
    """
    INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                     effective_at, source, source_id)
    SELECT g.account_id, 3 + row_number() OVER (ORDER BY g.expires_at), g.id, 'adjust', 100,
           a.balance_credits + 100 * row_number() OVER (ORDER BY g.expires_at), 'adjust:' || g.id, 0, now(), 'admin',
           a.id
    FROM credit_grants g JOIN accounts a ON a.id = g.account_id
    WHERE g.account_id = %(id)s AND g.source = 'adjust' AND g.expires_at IS NOT NULL
    """,
    """
    INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                     effective_at, source, source_id)
    SELECT a.id, 3 + %(grants)s + n, g.id, 'consume', -1, a.balance_credits + 100 * %(grants)s - n,
           'consume:past-' || n, 0, now(), 'api_key', a.id
    FROM accounts a JOIN credit_grants g ON g.account_id = a.id AND g.amount = 1000000000,
         generate_series(1, %(rows)s) AS n
    WHERE a.id = %(id)s
    """,
    """
    UPDATE credit_grants SET remaining = remaining - %(rows)s WHERE account_id = %(id)s AND amount = 1000000000
    """,
    """
    UPDATE accounts SET balance_credits = balance_credits + 100 * %(grants)s - %(rows)s,
        ledger_seq = 3 + %(grants)s + %(rows)s
    WHERE id = %(id)s
    """,
)

_LIMIT: Final = """
\\set n random({first}, {last})
BEGIN;
UPDATE bare_accounts SET balance = balance - 1
WHERE id = ('019a0000-0000-7000-8000-' || lpad(to_hex(:n::bigint), 12, '0'))::uuid AND balance >= 1;
INSERT INTO bare_ledger (account_id, amount) VALUES
    (('019a0000-0000-7000-8000-' || lpad(to_hex(:n::bigint), 12, '0'))::uuid, -1);
COMMIT;
"""
_ONE_STATEMENT: Final = """
\\set n random({first}, {last})
WITH taken AS (
    UPDATE bare_accounts SET balance = balance - 1
    WHERE id = ('019a0000-0000-7000-8000-' || lpad(to_hex(:n::bigint), 12, '0'))::uuid AND balance >= 1
    RETURNING id, balance
), noted AS (
    INSERT INTO bare_ledger (account_id, amount) SELECT id, -1 FROM taken
)
SELECT balance FROM taken;
"""
_PRODUCT: Final = """
\\set n random({first}, {last})
\\set k random(1, 1000000000000000)
SELECT * FROM consume_credits(
    ('019a0000-0000-7000-8000-' || lpad(to_hex(:n::bigint), 12, '0'))::uuid, 1, :k::text, 'api_key',
    ('019a0000-0000-7000-8000-' || lpad(to_hex(:n::bigint), 12, '0'))::uuid, NULL, now(), false
);
"""


class Spread(Struct, frozen=True, kw_only=True):
    """Transactions per second of the contenders over so many accounts, a round each."""

    accounts: int
    limit: list[Rate]  # two statements in a transaction of four round trips
    one_statement: list[Rate]  # the same in one
    product: list[Rate]


class Http(Struct, frozen=True, kw_only=True):
    """The bare route and the product's, a round each."""

    bare: list[Load]
    product: list[Load]


class Results(Struct, frozen=True, kw_only=True):
    """Everything that `python -m bench spending` measured."""

    machine: dict[str, str]
    settings: dict[str, str]
    spreads: list[Spread]
    http: Http
    single_call_us: list[float]  # of one request over HTTP, one after another
    batch_item_us: list[float]  # of one of a batch's items, likewise
    new_account_us: list[float]  # of one call to the database
    old_account_us: list[float]


def rate(rates: list[Rate]) -> float:
    """The median."""
    return statistics.median(one.per_second for one in rates)


def prepare(tx: Tx) -> None:
    """Accounts that are in the middle of their first month, with a key and many credits."""
    fill(tx, ACCOUNTS, started_at=utc_now() - timedelta(days=1), time_zones=("UTC",))
    for statement in _PREPARE:
        tx.execute(statement)
    for statement in _AGE:
        tx.execute(statement, id=_account(OLD), grants=GRANTS, rows=LEDGER_ROWS)
    tx.connection.exec_driver_sql(bare.TABLES)


def measure(place: Lab, rounds: int, say: Callable[[str], None]) -> Results:
    """Everything, one after another. say: told what is measured."""
    settings = place.make("spending", prepare)
    say("credits in the database")
    spreads = database_rates(settings, rounds)
    say("credits over HTTP")
    http = http_loads(settings, rounds)
    say("batches")
    single, batched = batches(settings, rounds)
    say("an account with a long past")
    with place.opened(settings) as database:
        new, old = ages(database)
    return Results(
        machine=machine(),
        settings={"postgresql": ", ".join(DURABLE), "clients": str(CLIENTS), "connections": str(CONNECTIONS)},
        spreads=spreads,
        http=http,
        single_call_us=single,
        batch_item_us=batched,
        new_account_us=new,
        old_account_us=old,
    )


def database_rates(settings: Settings, rounds: int) -> list[Spread]:
    """pgbench over all accounts, and over one."""
    spreads = []
    for last in (ACCOUNTS, 1):
        rates: dict[str, list[Rate]] = {}
        for _ in range(rounds):
            for name, script in (("limit", _LIMIT), ("one_statement", _ONE_STATEMENT), ("product", _PRODUCT)):
                text = script.format(first=1, last=last)
                rates.setdefault(name, []).append(pgbench(settings, text, clients=CLIENTS, seconds=SECONDS))
        spreads.append(Spread(accounts=last, **rates))
    return spreads


def http_loads(settings: Settings, rounds: int) -> Http:
    """The same load on both routes in turn, each alone on the machine."""
    loads: dict[str, list[Load]] = {"bare": [], "product": []}
    for number in range(rounds):
        for name, app, make in (
            ("bare", "bench.bare:create_app()", lambda _run: _bare_request),
            ("product", "api.app:create_app()", lambda run: partial(_request, run)),
        ):
            with serving(settings, app) as (address, _):
                load(address, make(f"warm-up-{number}"), clients=CONNECTIONS, seconds=WARM_UP_SECONDS)
                loads[name].append(load(address, make(f"run-{number}"), clients=CONNECTIONS, seconds=SECONDS))
    return Http(**loads)


def batches(settings: Settings, rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds of a call that follows the one before, and of an item of a batch, a round each."""
    single, batched = [], []
    with serving(settings, "api.app:create_app()") as (address, _):
        for number in range(rounds):
            calls = load(address, partial(_request, f"single-{number}"), clients=1, seconds=SECONDS)
            single.append(1e6 / calls.rate)
            filled = load(address, partial(_batch_request, f"batch-{number}"), clients=1, seconds=SECONDS)
            batched.append(1e6 / filled.rate / BATCH)
    return single, batched


def ages(database: Database) -> tuple[list[float], list[float]]:
    """Microseconds of each of CALLS to the database for a new account and for an old one, in turn."""
    taken: dict[int, list[float]] = {NEW: [], OLD: []}
    for call in range(CALLS):
        for number, seconds in taken.items():
            with timed(seconds):
                row = database.ask(
                    "SELECT * FROM consume_credits(%(id)s, 1, %(key)s, 'api_key', %(id)s, NULL, %(now)s, false)",
                    id=UUID(_account(number)),
                    key=f"age-{call}",
                    now=utc_now(),
                )
            if row.outcome != "consumed":
                raise RuntimeError(f"credits were not consumed: {row}")
    return [1e6 * one for one in taken[NEW]], [1e6 * one for one in taken[OLD]]


def _account(number: int) -> str:
    return f"019a0000-0000-7000-8000-{number:012x}"


def _some_account(number: int) -> str:
    return _account(1 + number * 7919 % ACCOUNTS)


def _bare_request(number: int) -> bytes:
    return post("/consume", b'{"account_id": "%s", "amount": 1}' % _some_account(number).encode(), {})


def _request(run: str, number: int) -> bytes:
    headers = {"X-API-Key": f"bk_bench_{_some_account(number)}", "Idempotency-Key": f"{run}-{number}"}
    return post("/api/v1/credits/consume", b'{"amount": 1}', headers)


def _batch_request(run: str, number: int) -> bytes:
    items = [{"key": f"{run}-{number}-{item}", "amount": 1} for item in range(BATCH)]
    headers = {"X-API-Key": f"bk_bench_{_some_account(number)}"}
    return post("/api/v1/credits/consume-batch", msgspec.json.encode({"items": items}), headers)


@contextmanager
def serving(settings: Settings, app: str) -> Iterator[tuple[tuple[str, int], Process]]:
    """gunicorn as it is shipped, with this application: where it listens, and its process."""
    host, port = "127.0.0.1", free_port("127.0.0.1")
    settings = settings.model_copy(update={"api_bind": f"{host}:{port}"})
    logs = settings.data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def answers() -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://{host}:{port}/", timeout=2).status_code > 0
        return False

    server = Process(
        "bench-api",
        [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.py", app],
        environment={**os.environ, **settings.as_environment(), "LOG_FORMAT": "json"},
        log=logs / "bench-api.log",
        ready=answers,
    )
    try:
        server.start()
        server.wait()
        yield (host, port), server
    finally:
        server.stop()
