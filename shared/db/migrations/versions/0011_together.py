"""Consuming for several API keys in one statement: one round trip, and one commit to wait for."""

from typing import Final

from alembic import op

revision: Final = "0011"
down_revision: Final = "0010"

UP: Final = """
-- What several API keys ask for in one statement, each as `consume_credits` has it: let in, and its use noted. p_items
-- is a list of {hash, amount, key, reason, at}, the hash as hexadecimal digits; n is an item's place in it, from 1.
--
-- Nothing here waits for a lock, so one account keeps no other waiting, and no two callers wait for each other. An item
-- has no row if its key does not open this, or if somebody else has the account locked; it has to be asked by itself.
--
-- The plan is made once, and walks from the items through indexes. That is right for the few that there are; the planner
-- would take them for a hundred, and go through whole tables.
CREATE FUNCTION consume_credits_by_keys(p_items json, p_scope text, p_precision interval)
RETURNS TABLE (
    n bigint, asker_id uuid, account_id uuid, requests_per_minute integer,
    outcome text, balance_credits bigint, available_credits bigint, replayed boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH askers AS MATERIALIZED (
        SELECT i.*, k.id AS asker_id, k.account_id, k.last_used_at, (
            SELECT p.requests_per_minute FROM subscriptions b JOIN plans p ON p.id = b.plan_id
            WHERE b.account_id = a.id AND b.status <> 'ended'
        ) AS requests_per_minute
        FROM ROWS FROM (
            json_to_recordset(p_items) AS (hash text, amount bigint, key text, reason text, at timestamptz)
        ) WITH ORDINALITY AS i (hash, amount, key, reason, at, n)
        JOIN api_keys k ON k.key_hash = decode(i.hash, 'hex') AND p_scope = ANY (k.scopes)
        JOIN accounts a ON a.id = k.account_id AND a.deleted_at IS NULL AND a.kind = 'customer'
        LEFT JOIN sites s ON s.id = k.site_id
        WHERE k.revoked_at IS NULL AND s.deleted_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > i.at)
    ), locked AS MATERIALIZED (
        SELECT a.id FROM accounts a WHERE a.id IN (SELECT account_id FROM askers) FOR NO KEY UPDATE SKIP LOCKED
    ), noted AS (
        UPDATE api_keys k SET last_used_at = stale.at FROM (
            SELECT k.id, u.at FROM api_keys k JOIN (
                SELECT DISTINCT ON (asker_id) asker_id, at FROM askers
                WHERE coalesce(last_used_at < at - p_precision, true) ORDER BY asker_id, at DESC
            ) u ON u.asker_id = k.id FOR NO KEY UPDATE OF k SKIP LOCKED
        ) stale WHERE k.id = stale.id
    )
    SELECT i.n, i.asker_id, i.account_id, i.requests_per_minute,
           answer.outcome, answer.balance_credits, answer.available_credits, answer.replayed
    FROM (SELECT askers.* FROM askers JOIN locked ON locked.id = askers.account_id ORDER BY askers.n) AS i
    CROSS JOIN LATERAL consume_credits(
        i.account_id, i.amount, i.key, 'api_key', i.asker_id, i.reason, i.at, false
    ) AS answer;
END
$$;
REVOKE EXECUTE ON FUNCTION consume_credits_by_keys FROM PUBLIC;
GRANT EXECUTE ON FUNCTION consume_credits_by_keys TO prepaid_api;
"""

DOWN: Final = "DROP FUNCTION consume_credits_by_keys(json, text, interval)"


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP)


def downgrade() -> None:
    op.execute(DOWN)
