"""The ledger as it is read: rows with all that explains them, what became of each grant, and all of it in chunks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import Row

from shared.db.engine import Tx
from shared.domain import export
from shared.domain.explanation import Explanation, GrantStatement
from shared.errors import NotFound

CHUNK: Final = 1_000

Transactions = Callable[[], AbstractContextManager[Tx]]

# One statement, so that all of it is of one instant; every part finds its rows by an index. A seed's opening row is
# known by its month, an adjustment's by its operation. A period was paid by the invoice that names it, or by the one
# whose payment began it.
_EXPLAINED: Final = """
    SELECT t.seq, t.kind, t.amount, t.balance_after, t.effective_at, t.created_at AS recorded_at, t.reason,
           t.idempotency_key AS posted_as, t.source, t.source_id, t.reverses_seq,
           ARRAY(SELECT r.seq::bigint FROM credit_transactions r
                 WHERE r.account_id = t.account_id AND r.reverses_seq = t.seq ORDER BY r.seq) AS reversed_by_seqs,
           ARRAY(SELECT p.seq::bigint FROM credit_transactions p
                 WHERE p.account_id = t.account_id AND p.idempotency_key = t.idempotency_key AND p.seq <> t.seq
                 ORDER BY p.seq) AS posting_seqs,
           jsonb_build_object(
               'id', g.id, 'source', g.source, 'amount', g.amount, 'remaining', g.remaining,
               'effective_at', g.effective_at, 'expires_at', g.expires_at, 'opened_by_seq', opening.seq,
               'subscription_id', g.subscription_id, 'phase', g.phase, 'credit_month_index', g.credit_month_index,
               'plan', to_jsonb(seeded_under)
           ) AS "grant",
           to_jsonb(period) AS period, to_jsonb(payment) AS payment, to_jsonb(operation) AS operation,
           to_jsonb(hold) AS hold, to_jsonb(refund) AS refund,
           coalesce(u.email, k.prefix) AS customers_name, a.email AS admins_name
    FROM credit_transactions t
    JOIN credit_grants g ON g.id = t.grant_id
    LEFT JOIN LATERAL (
        SELECT o.seq FROM credit_transactions o
        WHERE o.account_id = t.account_id AND o.grant_id = g.id AND o.line = 0 AND o.idempotency_key IN (
            SELECT concat_ws(':', 'seed', replace(g.subscription_id::text, '-', ''), g.phase, g.credit_month_index)
            UNION ALL
            SELECT 'adjust:' || replace(n.id::text, '-', '') FROM operations n
            WHERE g.source = 'adjust' AND n.account_id = t.account_id AND n.kind = 'adjust_credits'
        )
    ) opening ON true
    LEFT JOIN LATERAL (
        SELECT l.slug, l.credit_rollover AS rollover, l.credit_rollover_cap AS rollover_cap
        FROM subscription_periods p JOIN plans l ON l.id = p.plan_id
        WHERE p.subscription_id = g.subscription_id AND p.phase = g.phase LIMIT 1
    ) seeded_under ON true
    LEFT JOIN LATERAL (
        SELECT p.subscription_id, l.slug AS plan, p.starts_at, p.ends_at
        FROM subscription_periods p JOIN plans l ON l.id = p.plan_id
        WHERE p.account_id = t.account_id AND tstzrange(p.starts_at, p.ends_at) @> t.effective_at
    ) period ON true
    LEFT JOIN LATERAL (
        SELECT m.id AS payment_id, i.id AS invoice_id, i.reference AS invoice_reference, m.provider, m.amount_minor,
               m.currency
        FROM invoices i JOIN payments m ON m.invoice_id = i.id AND m.status = 'succeeded' AND m.unapplied_reason IS NULL
        WHERE i.account_id = t.account_id AND i.status = 'paid' AND (
            (i.subscription_id = period.subscription_id AND i.period_starts_at = period.starts_at)
            OR (i.purpose = 'activation' AND i.paid_at = period.starts_at)
        )
        ORDER BY i.id DESC LIMIT 1
    ) payment ON true
    LEFT JOIN LATERAL (
        SELECT d.operation_id FROM audit_log d
        WHERE d.account_id = t.account_id AND d.action = 'credits.reversed' AND (d.before ->> 'seq')::bigint IN (
            SELECT r.seq FROM credit_transactions r
            WHERE r.account_id = t.account_id
              AND r.idempotency_key = substring(t.idempotency_key FROM '^(?:expire:)?reverse:(.*)$')
        )
        LIMIT 1
    ) reversal ON t.kind IN ('reverse', 'expire')
    LEFT JOIN LATERAL (
        SELECT f.id, f.payment_id, f.operation_id, f.amount_minor, f.currency, f.status, f.external_refund_id,
               f.transfer_reference
        FROM refunds f WHERE f.id = substring(t.idempotency_key FROM '^refund:([0-9a-f]{32})$')::uuid
    ) refund ON t.source = 'payment'
    LEFT JOIN LATERAL (
        SELECT o.id, o.kind, o.principal_kind, o.principal_id FROM operations o
        WHERE o.account_id = t.account_id AND o.id = coalesce(
            reversal.operation_id, refund.operation_id,
            substring(t.idempotency_key FROM '^adjust:([0-9a-f]{32})$')::uuid
        )
    ) operation ON true
    LEFT JOIN LATERAL (
        SELECT h.id, h.amount, h.captured_amount, h.idempotency_key FROM holds h
        WHERE h.id = t.source_id AND h.account_id = t.account_id
    ) hold ON t.source = 'hold'
    LEFT JOIN users u ON t.source = 'user' AND u.id = t.source_id AND u.account_id = t.account_id
    LEFT JOIN api_keys k ON t.source = 'api_key' AND k.id = t.source_id AND k.account_id = t.account_id
    LEFT JOIN admins a ON a.id = CASE t.source
        WHEN 'admin' THEN t.source_id
        WHEN 'payment' THEN operation.principal_id
    END
"""


def explain(tx: Tx, account_id: UUID, seq: int) -> Explanation:
    """Row `seq` of the account's ledger, explained. Raises NotFound."""
    row = tx.maybe(
        f"{_EXPLAINED} WHERE t.account_id = %(account_id)s AND t.seq = %(seq)s", account_id=account_id, seq=seq
    )
    if row is None:
        raise NotFound("no such row of the ledger")
    return msgspec.convert(row._asdict(), Explanation)


def newest_explained(tx: Tx, account_id: UUID, *, limit: int) -> list[Explanation]:
    """The newest rows of the account's ledger, explained, newest first. Raises NotFound."""
    rows = tx.rows(
        f"{_EXPLAINED} WHERE t.account_id = %(account_id)s AND t.seq > %(after_seq)s ORDER BY t.seq DESC",
        account_id=account_id,
        after_seq=newest_seq(tx, account_id) - limit,
    )
    return msgspec.convert([row._asdict() for row in rows], list[Explanation])


def grant_statements(tx: Tx, account_id: UUID) -> list[GrantStatement]:
    """What became of each grant of the account, oldest first. Reads the account's whole ledger, once."""
    rows = tx.rows(
        """
        SELECT g.id, g.source, l.opened_by_seq, g.effective_at, g.expires_at, g.remaining,
               coalesce(l.seeded, 0) AS seeded, coalesce(l.purchased, 0) AS purchased, coalesce(l.given, 0) AS given,
               coalesce(l.consumed, 0) AS consumed, coalesce(l.corrected, 0) AS corrected,
               coalesce(l.expired, 0) AS expired, coalesce(l.reversed, 0) AS reversed
        FROM credit_grants g
        LEFT JOIN (
            SELECT grant_id, min(seq) AS opened_by_seq,
                   (sum(amount) FILTER (WHERE kind = 'seed'))::bigint AS seeded,
                   (sum(amount) FILTER (WHERE kind = 'purchase'))::bigint AS purchased,
                   (sum(amount) FILTER (WHERE kind = 'adjust' AND amount > 0))::bigint AS given,
                   (-sum(amount) FILTER (WHERE kind = 'consume'))::bigint AS consumed,
                   (-sum(amount) FILTER (WHERE kind = 'adjust' AND amount < 0))::bigint AS corrected,
                   (-sum(amount) FILTER (WHERE kind = 'expire'))::bigint AS expired,
                   (sum(amount) FILTER (WHERE kind = 'reverse'))::bigint AS reversed
            FROM credit_transactions WHERE account_id = %(account_id)s GROUP BY grant_id
        ) l ON l.grant_id = g.id
        WHERE g.account_id = %(account_id)s ORDER BY g.id
        """,
        account_id=account_id,
    )
    return msgspec.convert([row._asdict() for row in rows], list[GrantStatement])


def newest_seq(tx: Tx, account_id: UUID) -> int:
    """The number of the account's newest row; 0 before the first. Raises NotFound."""
    row = tx.maybe("SELECT ledger_seq FROM accounts WHERE id = %(id)s AND kind = 'customer'", id=account_id)
    if row is None:
        raise NotFound("no such account")
    seq: int = row.ledger_seq
    return seq


def in_chunks(transaction: Transactions, account_id: UUID, *, upto_seq: int) -> Iterator[Sequence[Row[Any]]]:
    """The account's ledger up to a row, oldest first, with its grants.

    transaction: opens one that may read the account. Each chunk has one of its own, and none is open between two: the
    ledger is only appended to, so rows up to one that exists are the same whenever they are read. They are numbered
    without a gap, so a range of numbers is a chunk, whatever the planner thinks of it.
    """
    for after_seq in range(0, upto_seq, CHUNK):
        with transaction() as tx:
            rows = tx.rows(
                """
                SELECT t.seq, t.effective_at, t.created_at AS recorded_at, t.kind, t.amount, t.balance_after,
                       t.grant_id, g.source AS grant_source, g.expires_at AS grant_expires_at, t.idempotency_key,
                       t.reason, t.source, t.source_id, t.reverses_seq
                FROM credit_transactions t JOIN credit_grants g ON g.id = t.grant_id
                WHERE t.account_id = %(account_id)s AND t.seq > %(after_seq)s AND t.seq <= %(last_seq)s
                ORDER BY t.seq
                """,
                account_id=account_id,
                after_seq=after_seq,
                last_seq=min(after_seq + CHUNK, upto_seq),
            )
        yield rows


def as_csv(transaction: Transactions, account_id: UUID, *, upto_seq: int) -> Iterator[str]:
    """The same as CSV, in pieces of many lines."""
    yield export.heading()
    for rows in in_chunks(transaction, account_id, upto_seq=upto_seq):
        yield export.lines(rows)
