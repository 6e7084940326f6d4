"""A book of business, one statement per table: N accounts whose renewal is due at one instant.

Each is on the free plan in its first month, has spent a part of its credits, and will renew, lose what is
left of its seed, and be seeded anew. Every invariant of `check` holds.
"""

from datetime import UTC, datetime
from typing import Final

from shared.db.engine import Tx
from shared.domain.calendar import Interval, boundary
from shared.domain.plan import FREE

STARTED_AT: Final = datetime(2025, 9, 15, 12, tzinfo=UTC)
DUE_AT: Final = datetime(2025, 10, 15, 12, tzinfo=UTC)
TIME_ZONES: Final = ("UTC", "America/Bogota", "Asia/Kolkata", "Europe/Berlin")

# Account n of the book. Ids are in the order of n, as those of accounts that signed up one after another.
_BOOK: Final = """
    SELECT n,
           ('019a0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS account_id,
           ('019a0000-0001-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS subscription_id,
           ('019a0000-0002-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS grant_id,
           (%(zones)s::text[])[1 + n %% cardinality(%(zones)s::text[])] AS time_zone,
           p.id AS plan_id, p.currency, p.credits_per_month AS seeded, 1 + n %% (p.credits_per_month - 1) AS spent,
           %(started_at)s::timestamptz AS started_at, %(due_at)s::timestamptz AS due_at
    FROM generate_series(1::bigint, %(count)s) AS n, plans p WHERE p.slug = %(slug)s
"""

_TABLES: Final = (
    """
    INSERT INTO accounts (id, name, time_zone, status, balance_credits, ledger_seq, acted_at, next_transition,
                          next_transition_at, low_credits, created_at)
    SELECT account_id, 'Account ' || n, time_zone, 'active', seeded - spent, 2, started_at, 'renewal', due_at,
           seeded * 20 / 100, started_at
    FROM book
    """,
    """
    INSERT INTO subscriptions (id, account_id, plan_id, assigned_by, status, price_minor, currency, interval,
                               interval_count, time_zone, started_at, phase, anchor_at, period_index,
                               current_period_starts_at, current_period_ends_at, renews_at, credit_month_index,
                               next_credit_at, activated_at, created_at)
    SELECT subscription_id, account_id, plan_id, 'signup', 'active', 0, currency, 'month', 1, time_zone, started_at, 0,
           started_at, 0, started_at, due_at, due_at, 1, due_at, started_at, started_at
    FROM book
    """,
    """
    INSERT INTO events (account_id, kind, subject_id, data, occurred_at, created_at)
    SELECT account_id, 'subscription.started', subscription_id,
           jsonb_build_object('plan', 'free', 'trial', false, 'period_ends_at', due_at), started_at, started_at
    FROM book
    """,
    """
    INSERT INTO subscription_periods (subscription_id, account_id, plan_id, phase, period_index, starts_at, ends_at,
                                      created_at)
    SELECT subscription_id, account_id, plan_id, 0, 0, started_at, due_at, started_at FROM book
    """,
    """
    INSERT INTO credit_grants (id, account_id, source, amount, remaining, priority, effective_at, expires_at,
                               subscription_id, phase, credit_month_index, created_at)
    SELECT grant_id, account_id, 'seed', seeded, seeded - spent, 10, started_at, due_at, subscription_id, 0, 0,
           started_at
    FROM book
    """,
    """
    INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                     effective_at, source, source_id, created_at)
    SELECT account_id, line.seq, grant_id, line.kind, line.amount, line.balance_after, line.key, 0, started_at,
           line.source, line.source_id, started_at
    FROM book, LATERAL (VALUES
        (1, 'seed', seeded, seeded, 'seed:' || replace(subscription_id::text, '-', '') || ':0:0', 'subscription',
         subscription_id),
        (2, 'consume', -spent, seeded - spent, 'job-' || n, 'user', account_id)
    ) AS line (seq, kind, amount, balance_after, key, source, source_id)
    """,
)


def fill(tx: Tx, count: int, *, started_at: datetime = STARTED_AT, time_zones: tuple[str, ...] = TIME_ZONES) -> None:
    """Make accounts 1 to `count` that signed up at `started_at` and are due a month later."""
    due_at = boundary(started_at, Interval.MONTH, 1, 1, "UTC")
    for time_zone in time_zones:
        if boundary(started_at, Interval.MONTH, 1, 1, time_zone) != due_at:
            raise ValueError(f"a clock in {time_zone} moves between {started_at} and {due_at}")
    tx.execute("SET LOCAL statement_timeout = 0")
    for statement in _TABLES:
        tx.execute(
            f"WITH book AS ({_BOOK}) {statement}",
            zones=list(time_zones),
            started_at=started_at,
            due_at=due_at,
            count=count,
            slug=FREE,
        )
