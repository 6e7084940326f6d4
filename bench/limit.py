"""The limit: what PostgreSQL needs to write a renewal's rows when nobody decides anything.

The same rows in the same tables, under the same indexes and constraints, in the same number of accounts per
transaction, as set statements whose dates are interval arithmetic. It is right for this book alone.
"""

from datetime import datetime
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Final

from bench.lab import Lab
from bench.meter import Meter, Run
from shared.config import Settings
from shared.db.engine import Database, Tx

PATIENCE_SECONDS: Final = 60  # a client that cannot start breaks the barrier for all

_CLAIM: Final = """
    SELECT id FROM accounts
    WHERE next_transition = 'renewal' AND next_transition_at <= %(as_of)s
      AND test_clock_id IS NULL AND parked_at IS NULL AND deleted_at IS NULL
    ORDER BY next_transition_at, id
    LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
"""

_WRITES: Final = (
    """
    UPDATE subscriptions
    SET period_index = period_index + 1,
        current_period_starts_at = current_period_ends_at,
        current_period_ends_at = (current_period_ends_at AT TIME ZONE time_zone + interval '1 month')
                                 AT TIME ZONE time_zone,
        renews_at = (current_period_ends_at AT TIME ZONE time_zone + interval '1 month') AT TIME ZONE time_zone,
        credit_month_index = credit_month_index + 1,
        next_credit_at = (current_period_ends_at AT TIME ZONE time_zone + interval '1 month') AT TIME ZONE time_zone
    WHERE account_id = ANY (%(ids)s) AND status <> 'ended'
    """,
    """
    INSERT INTO subscription_periods (subscription_id, account_id, plan_id, phase, period_index, starts_at, ends_at,
                                      previous_ends_at)
    SELECT id, account_id, plan_id, phase, period_index, current_period_starts_at, current_period_ends_at,
           current_period_starts_at
    FROM subscriptions WHERE account_id = ANY (%(ids)s) AND status <> 'ended'
    """,
    """
    INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                     effective_at, source, source_id)
    SELECT a.id, a.ledger_seq + 1, g.id, 'expire', -g.remaining, a.balance_credits - g.remaining,
           'expire:' || replace(g.id::text, '-', '') || to_char(g.expires_at, ':YYYYMMDD"T"HH24MISS'), 0,
           g.expires_at, 'grant', g.id
    FROM accounts a JOIN credit_grants g ON g.account_id = a.id AND NOT g.spent
    WHERE a.id = ANY (%(ids)s)
    """,
    """
    UPDATE credit_grants SET remaining = 0 WHERE account_id = ANY (%(ids)s) AND NOT spent
    """,
    """
    INSERT INTO credit_grants (id, account_id, source, amount, remaining, priority, effective_at, expires_at,
                               subscription_id, phase, credit_month_index)
    SELECT uuidv7(), s.account_id, 'seed', p.credits_per_month, p.credits_per_month, 10,
           s.current_period_starts_at, s.current_period_ends_at, s.id, s.phase, s.credit_month_index - 1
    FROM subscriptions s JOIN plans p ON p.id = s.plan_id
    WHERE s.account_id = ANY (%(ids)s) AND s.status <> 'ended'
    """,
    """
    INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                     effective_at, source, source_id)
    SELECT a.id, a.ledger_seq + 2, g.id, 'seed', g.amount, g.amount,
           'seed:' || replace(g.subscription_id::text, '-', '') || ':' || g.phase || ':' || g.credit_month_index, 0,
           g.effective_at, 'subscription', g.subscription_id
    FROM accounts a JOIN credit_grants g ON g.account_id = a.id AND NOT g.spent
    WHERE a.id = ANY (%(ids)s)
    """,
    """
    INSERT INTO events (account_id, kind, subject_id, data, occurred_at)
    SELECT s.account_id, 'subscription.renewed', s.id,
           jsonb_build_object('plan', p.slug, 'period_ends_at', s.current_period_ends_at), s.current_period_starts_at
    FROM subscriptions s JOIN plans p ON p.id = s.plan_id
    WHERE s.account_id = ANY (%(ids)s) AND s.status <> 'ended'
    """,
    """
    UPDATE accounts a
    SET balance_credits = g.amount, ledger_seq = a.ledger_seq + 2, acted_at = g.effective_at,
        next_transition = 'renewal', next_transition_at = g.expires_at
    FROM credit_grants g WHERE g.account_id = a.id AND NOT g.spent AND a.id = ANY (%(ids)s)
    """,
)


def roll(tx: Tx, *, as_of: datetime, limit: int) -> int:
    """Renew at most `limit` accounts; how many it were."""
    ids = [row.id for row in tx.rows(_CLAIM, as_of=as_of, limit=limit)]
    if ids:
        for statement in _WRITES:
            tx.execute(statement, ids=ids)
    return len(ids)


def roll_all(lab: Lab, settings: Settings, *, accounts: int, processes: int, as_of: datetime) -> Run:
    """Renew every account with so many connections, each from a process of its own."""
    context = get_context("spawn")
    ready = context.Barrier(processes + 1)
    clients = [
        context.Process(target=_work, args=(settings.database_url, as_of, settings.batch_size, ready))
        for _ in range(processes)
    ]
    for client in clients:
        client.start()
    ready.wait(PATIENCE_SECONDS)
    with Meter(accounts, postmaster=lab.postmaster(), python=[client.pid or 0 for client in clients]) as meter:
        ready.wait(PATIENCE_SECONDS)
        for client in clients:
            client.join()
    if any(client.exitcode for client in clients):
        raise RuntimeError("a client of the limit failed")
    return meter.run


def _work(url: str, as_of: datetime, limit: int, ready: Barrier) -> None:
    database = Database(url, application_name="bench-limit", statement_timeout_ms=0)
    with database.transaction():
        ready.wait(PATIENCE_SECONDS)
    ready.wait(PATIENCE_SECONDS)
    while True:
        with database.transaction() as tx:
            if not roll(tx, as_of=as_of, limit=limit):
                break
    database.dispose()
