"""How much there is of everything, and what is late: the queries behind `python -m workers state`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from shared.db.engine import Tx
from shared.domain.lifecycle import Transition
from shared.messages import Job

PARKED_SHOWN: Final = 20

Section = list[dict[str, Any]]

SECTIONS: Final[Mapping[str, str]] = {
    "plans": """
        SELECT p.slug AS plan, p.price_minor, p.currency, p.interval_count || ' ' || p.interval AS interval,
               p.trial_days, p.credits_per_month, p.grace_days,
               (SELECT string_agg(assigned_by, ', ' ORDER BY assigned_by) FROM plan_assigners WHERE plan_id = p.id)
                   AS assignable_by,
               (SELECT count(*) FROM subscriptions WHERE plan_id = p.id AND status <> 'ended') AS live_subscriptions
        FROM plans p ORDER BY p.price_minor, p.slug
        """,
    "accounts": """
        SELECT status, count(*) AS accounts, count(test_clock_id) AS on_test_clocks,
               sum(balance_credits)::bigint AS balance_credits, sum(held_credits)::bigint AS held_credits
        FROM accounts WHERE kind = 'customer' AND deleted_at IS NULL GROUP BY status ORDER BY status
        """,
    "subscriptions": """
        SELECT p.slug AS plan, s.status, count(*) AS subscriptions
        FROM subscriptions s JOIN plans p ON p.id = s.plan_id GROUP BY p.slug, s.status ORDER BY p.slug, s.status
        """,
    "invoices": """
        SELECT status, currency, count(*) AS invoices, sum(amount_minor)::bigint AS amount_minor
        FROM invoices GROUP BY status, currency ORDER BY status, currency
        """,
    "payments": """
        SELECT provider, status, currency, count(*) AS payments, sum(amount_minor)::bigint AS amount_minor
        FROM payments GROUP BY provider, status, currency ORDER BY provider, status, currency
        """,
    "unapplied_money": """
        SELECT currency, count(*) AS payments, sum(amount_minor - refunded_minor)::bigint AS amount_minor,
               min(confirmed_at) AS oldest_confirmed_at
        FROM payments WHERE unapplied_reason IS NOT NULL AND refunded_minor < amount_minor
        GROUP BY currency ORDER BY currency
        """,
    "bank_transfers": """
        SELECT status, count(*) AS bank_transfers, min(submitted_at) AS oldest_submitted_at
        FROM bank_transfers GROUP BY status ORDER BY status
        """,
    "operations": """
        SELECT kind, status, count(*) AS operations FROM operations GROUP BY kind, status ORDER BY kind, status
        """,
    "backlog": """
        SELECT count(*) FILTER (WHERE status = 'pending') AS pending,
               count(*) FILTER (WHERE status = 'pending' AND next_send_at <= %(now)s) AS to_be_sent,
               count(*) FILTER (WHERE status = 'dead') AS dead,
               coalesce(extract(epoch FROM %(now)s - min(created_at) FILTER (WHERE status = 'pending')), 0)::bigint
                   AS oldest_pending_seconds
        FROM operations WHERE status IN ('pending', 'dead')
        """,
    "overdue": """
        SELECT j.job, count(a.id) AS due, min(a.next_transition_at) AS due_since,
               coalesce(extract(epoch FROM %(now)s - min(a.next_transition_at)), 0)::bigint AS late_seconds
        FROM unnest(%(transitions)s::text[], %(jobs)s::text[]) WITH ORDINALITY AS j (transition, job, position)
        LEFT JOIN accounts a ON a.next_transition = j.transition AND a.next_transition_at <= %(now)s
            AND a.test_clock_id IS NULL AND a.parked_at IS NULL AND a.deleted_at IS NULL
        GROUP BY j.job, j.position
        UNION ALL
        SELECT %(release_holds)s, count(*), min(h.expires_at),
               coalesce(extract(epoch FROM %(now)s - min(h.expires_at)), 0)::bigint
        FROM holds h JOIN accounts a ON a.id = h.account_id AND a.test_clock_id IS NULL
        WHERE h.status = 'open' AND h.expires_at <= %(now)s
        UNION ALL
        SELECT %(ask_providers)s, count(*), min(next_ask_at),
               coalesce(extract(epoch FROM %(now)s - min(next_ask_at)), 0)::bigint
        FROM checkouts WHERE next_ask_at <= %(now)s
        UNION ALL
        SELECT %(forget_expired)s, count(*), min(expires_at),
               coalesce(extract(epoch FROM %(now)s - min(expires_at)), 0)::bigint
        FROM (SELECT expires_at FROM signups UNION ALL SELECT expires_at FROM sign_in_attempts) AS kept
        WHERE expires_at <= %(now)s
        ORDER BY job
        """,
    "parked": """
        SELECT id AS account_id, parked_at, next_transition, next_transition_at, parked_reason
        FROM accounts WHERE parked_at IS NOT NULL ORDER BY parked_at LIMIT %(parked_shown)s
        """,
    "jobs": """
        SELECT job, started_at, extract(epoch FROM %(now)s - started_at)::bigint AS seconds_ago, duration_ms, items
        FROM job_runs ORDER BY job
        """,
}


def overview(tx: Tx, *, now: datetime) -> dict[str, Section]:
    """The rows of every section, by the section's name. tx: fresh; all sections see one instant."""
    tx.read_one_instant()
    return {
        name: [
            row._asdict()
            for row in tx.rows(
                sql,
                now=now,
                transitions=[str(transition) for transition in Transition],
                jobs=[str(transition.job) for transition in Transition],
                release_holds=str(Job.RELEASE_HOLDS),
                ask_providers=str(Job.ASK_PROVIDERS),
                forget_expired=str(Job.FORGET_EXPIRED),
                parked_shown=PARKED_SHOWN,
            )
        ]
        for name, sql in SECTIONS.items()
    }
