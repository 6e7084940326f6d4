"""Functions for what a caller waits for: consume, hold, capture, release, each one round trip.

Each locks the account first, so whatever else happens to its credits happens before or after. They
answer with an outcome instead of raising, so that nothing is written and the caller can say why.
"""

from typing import Final

from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"

FUNCTIONS: Final = """
-- The instant in which an account lives: its test clock's, else the one that is handed in.
CREATE FUNCTION account_now(p_account_id uuid, p_now timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        (SELECT c.now_at FROM accounts a JOIN test_clocks c ON c.id = a.test_clock_id WHERE a.id = p_account_id),
        p_now
    )
$$;

-- Gives back what holds reserved that expired by p_now. The caller has locked these accounts.
CREATE FUNCTION release_expired_holds(p_account_ids uuid[], p_now timestamptz) RETURNS bigint
LANGUAGE sql AS $$
    WITH expired AS (
        UPDATE holds SET status = 'expired', resolved_at = expires_at
        WHERE status = 'open' AND account_id = ANY (p_account_ids) AND expires_at <= p_now
        RETURNING id, account_id, amount
    ), freed_grants AS (
        SELECT l.grant_id, sum(l.amount) AS amount
        FROM expired e JOIN hold_allocations l ON l.hold_id = e.id GROUP BY l.grant_id
    ), grants AS (
        UPDATE credit_grants g SET held = g.held - f.amount FROM freed_grants f WHERE g.id = f.grant_id
        RETURNING g.id
    ), freed_accounts AS (
        SELECT account_id, sum(amount) AS amount FROM expired GROUP BY account_id
    ), accounts_updated AS (
        UPDATE accounts a SET held_credits = a.held_credits - f.amount
        FROM freed_accounts f WHERE a.id = f.account_id
        RETURNING a.id
    )
    SELECT count(*) FROM expired
$$;

-- What the gate of shared/domain/account.py says of using credits; NULL when it lets through.
CREATE FUNCTION credit_use_refusal(p_account accounts, p_now timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN p_account.status = 'cancelled' THEN 'account_cancelled'
        WHEN p_account.status = 'suspended' OR p_now >= p_account.access_ends_at THEN 'account_suspended'
    END
$$;

-- Chooses grants in burn-down order for p_amount: priority, earliest expiry, oldest. Short when it does not suffice.
CREATE FUNCTION choose_grants(
    p_account_id uuid, p_amount bigint, p_now timestamptz,
    OUT grant_ids uuid[], OUT parts bigint[], OUT missing bigint, OUT earliest_expiry timestamptz
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_grant record;
    v_part bigint;
BEGIN
    grant_ids := '{}';
    parts := '{}';
    missing := p_amount;
    FOR v_grant IN
        SELECT id, remaining - held AS free, expires_at FROM credit_grants
        WHERE account_id = p_account_id AND remaining > 0 AND remaining > held
          AND (expires_at IS NULL OR expires_at > p_now)
        ORDER BY priority, expires_at, effective_at, id
    LOOP
        v_part := least(v_grant.free, missing);
        grant_ids := grant_ids || v_grant.id;
        parts := parts || v_part;
        earliest_expiry := least(earliest_expiry, v_grant.expires_at);
        missing := missing - v_part;
        EXIT WHEN missing = 0;
    END LOOP;
END
$$;

-- Appends one 'consume' row per grant and moves grants and balance. The caller has locked the account.
CREATE FUNCTION post_consumption(
    p_account accounts, p_grant_ids uuid[], p_parts bigint[], p_key text,
    p_source text, p_source_id uuid, p_reason text, p_now timestamptz
) RETURNS void LANGUAGE sql AS $$
    UPDATE credit_grants g SET remaining = g.remaining - t.part
    FROM unnest(p_grant_ids, p_parts) AS t (grant_id, part) WHERE g.id = t.grant_id;

    INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                     effective_at, source, source_id, reason)
    SELECT p_account.id, p_account.ledger_seq + t.line, t.grant_id, 'consume', -t.part,
           p_account.balance_credits - sum(t.part) OVER (ORDER BY t.line),
           p_key, t.line - 1, p_now, p_source, p_source_id, p_reason
    FROM unnest(p_grant_ids, p_parts) WITH ORDINALITY AS t (grant_id, part, line);

    UPDATE accounts SET
        balance_credits = balance_credits - (SELECT sum(part) FROM unnest(p_parts) AS part),
        ledger_seq = ledger_seq + cardinality(p_parts)
    WHERE id = p_account.id;
$$;

CREATE FUNCTION consume_credits(
    p_account_id uuid, p_amount bigint, p_key text, p_source text, p_source_id uuid, p_reason text, p_now timestamptz,
    OUT outcome text, OUT balance_credits bigint, OUT available_credits bigint, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    v_account accounts;
    v_key text := 'consume:' || p_key;
    v_now timestamptz;
    v_chosen record;
    v_before bigint;
BEGIN
    replayed := false;
    SELECT * INTO v_account FROM accounts a
    WHERE a.id = p_account_id AND a.kind = 'customer' AND a.deleted_at IS NULL FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        outcome := 'not_found';
        RETURN;
    END IF;

    SELECT -sum(t.amount), min(t.balance_after) INTO v_before, balance_credits FROM credit_transactions t
    WHERE t.account_id = p_account_id AND t.idempotency_key = v_key;
    IF v_before IS NOT NULL THEN
        replayed := true;
        outcome := CASE WHEN v_before = p_amount THEN 'consumed' ELSE 'idempotency_key_reused' END;
        RETURN;
    END IF;

    v_now := account_now(p_account_id, p_now);
    balance_credits := v_account.balance_credits;
    outcome := credit_use_refusal(v_account, v_now);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    IF v_account.held_credits > 0 THEN
        PERFORM release_expired_holds(ARRAY[p_account_id], v_now);
    END IF;

    v_chosen := choose_grants(p_account_id, p_amount, v_now);
    IF v_chosen.missing > 0 THEN
        outcome := 'insufficient_credits';
        available_credits := p_amount - v_chosen.missing;
        RETURN;
    END IF;
    PERFORM post_consumption(
        v_account, v_chosen.grant_ids, v_chosen.parts, v_key, p_source, p_source_id, p_reason, v_now
    );
    outcome := 'consumed';
    balance_credits := v_account.balance_credits - p_amount;
END
$$;

CREATE FUNCTION place_hold(
    p_account_id uuid, p_hold_id uuid, p_amount bigint, p_key text, p_ttl_seconds integer, p_now timestamptz,
    OUT outcome text, OUT hold_id uuid, OUT balance_credits bigint, OUT available_credits bigint, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    v_account accounts;
    v_before holds;
    v_now timestamptz;
    v_chosen record;
BEGIN
    replayed := false;
    SELECT * INTO v_account FROM accounts a
    WHERE a.id = p_account_id AND a.kind = 'customer' AND a.deleted_at IS NULL FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        outcome := 'not_found';
        RETURN;
    END IF;

    SELECT * INTO v_before FROM holds h WHERE h.account_id = p_account_id AND h.idempotency_key = p_key;
    IF FOUND THEN
        replayed := true;
        hold_id := v_before.id;
        outcome := CASE WHEN v_before.amount = p_amount THEN 'held' ELSE 'idempotency_key_reused' END;
        RETURN;
    END IF;

    v_now := account_now(p_account_id, p_now);
    balance_credits := v_account.balance_credits;
    outcome := credit_use_refusal(v_account, v_now);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    IF v_account.held_credits > 0 THEN
        PERFORM release_expired_holds(ARRAY[p_account_id], v_now);
    END IF;

    v_chosen := choose_grants(p_account_id, p_amount, v_now);
    IF v_chosen.missing > 0 THEN
        outcome := 'insufficient_credits';
        available_credits := p_amount - v_chosen.missing;
        RETURN;
    END IF;

    hold_id := p_hold_id;
    -- A hold never outlives a grant that it reserves from.
    INSERT INTO holds (id, account_id, status, amount, idempotency_key, held_at, expires_at)
    VALUES (p_hold_id, p_account_id, 'open', p_amount, p_key, v_now,
            least(v_now + make_interval(secs => p_ttl_seconds), v_chosen.earliest_expiry));
    INSERT INTO hold_allocations (hold_id, grant_id, amount)
    SELECT p_hold_id, t.grant_id, t.part FROM unnest(v_chosen.grant_ids, v_chosen.parts) AS t (grant_id, part);
    UPDATE credit_grants g SET held = g.held + t.part
    FROM unnest(v_chosen.grant_ids, v_chosen.parts) AS t (grant_id, part) WHERE g.id = t.grant_id;
    UPDATE accounts SET held_credits = held_credits + p_amount WHERE id = p_account_id;
    outcome := 'held';
END
$$;

CREATE FUNCTION capture_hold(
    p_account_id uuid, p_hold_id uuid, p_amount bigint, p_now timestamptz,
    OUT outcome text, OUT balance_credits bigint, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    v_account accounts;
    v_hold holds;
    v_now timestamptz;
    v_ids uuid[];
    v_parts bigint[];
BEGIN
    replayed := false;
    SELECT * INTO v_account FROM accounts a
    WHERE a.id = p_account_id AND a.kind = 'customer' AND a.deleted_at IS NULL FOR NO KEY UPDATE;
    SELECT * INTO v_hold FROM holds h WHERE h.id = p_hold_id AND h.account_id = v_account.id;
    IF NOT FOUND THEN
        outcome := 'not_found';
        RETURN;
    END IF;
    balance_credits := v_account.balance_credits;
    IF v_hold.status = 'captured' AND v_hold.captured_amount = p_amount THEN
        replayed := true;
        outcome := 'captured';
        RETURN;
    END IF;

    v_now := account_now(p_account_id, p_now);
    IF v_hold.status <> 'open' OR v_hold.expires_at <= v_now THEN
        outcome := 'hold_not_open';
        RETURN;
    END IF;
    outcome := credit_use_refusal(v_account, v_now);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    IF p_amount > v_hold.amount THEN
        outcome := 'capture_exceeds_hold';
        RETURN;
    END IF;

    -- Of what is reserved, take what expires first; the rest is free again.
    WITH reserved AS (
        SELECT g.id, l.amount, sum(l.amount) OVER (
            ORDER BY g.priority, g.expires_at, g.effective_at, g.id ROWS UNBOUNDED PRECEDING
        ) - l.amount AS taken_before
        FROM hold_allocations l JOIN credit_grants g ON g.id = l.grant_id WHERE l.hold_id = p_hold_id
    ), parts AS (
        SELECT id, least(amount, p_amount - taken_before) AS part, taken_before FROM reserved
        WHERE taken_before < p_amount
    )
    SELECT array_agg(id ORDER BY taken_before), array_agg(part ORDER BY taken_before) INTO v_ids, v_parts FROM parts;

    UPDATE credit_grants g SET held = g.held - l.amount
    FROM hold_allocations l WHERE l.hold_id = p_hold_id AND g.id = l.grant_id;
    UPDATE accounts SET held_credits = held_credits - v_hold.amount WHERE id = p_account_id;
    PERFORM post_consumption(
        v_account, v_ids, v_parts, 'capture:' || p_hold_id, 'hold', p_hold_id, NULL, v_now
    );
    UPDATE holds SET status = 'captured', captured_amount = p_amount, resolved_at = v_now WHERE id = p_hold_id;
    outcome := 'captured';
    balance_credits := v_account.balance_credits - p_amount;
END
$$;

CREATE FUNCTION release_hold(
    p_account_id uuid, p_hold_id uuid, p_now timestamptz, OUT outcome text, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    v_hold holds;
    v_now timestamptz;
BEGIN
    replayed := false;
    PERFORM 1 FROM accounts a WHERE a.id = p_account_id AND a.kind = 'customer' FOR NO KEY UPDATE;
    v_now := account_now(p_account_id, p_now);
    PERFORM release_expired_holds(ARRAY[p_account_id], v_now);
    SELECT * INTO v_hold FROM holds h WHERE h.id = p_hold_id AND h.account_id = p_account_id;
    IF NOT FOUND THEN
        outcome := 'not_found';
    ELSIF v_hold.status = 'captured' THEN
        outcome := 'hold_not_open';
    ELSIF v_hold.status IN ('released', 'expired') THEN
        outcome := 'released';
        replayed := true;
    ELSE
        UPDATE credit_grants g SET held = g.held - l.amount
        FROM hold_allocations l WHERE l.hold_id = p_hold_id AND g.id = l.grant_id;
        UPDATE accounts SET held_credits = held_credits - v_hold.amount WHERE id = p_account_id;
        UPDATE holds SET status = 'released', resolved_at = v_now WHERE id = p_hold_id;
        outcome := 'released';
    END IF;
END
$$;
"""

DROP_FUNCTIONS: Final = """
DROP FUNCTION release_hold(uuid, uuid, timestamptz);
DROP FUNCTION capture_hold(uuid, uuid, bigint, timestamptz);
DROP FUNCTION place_hold(uuid, uuid, bigint, text, integer, timestamptz);
DROP FUNCTION consume_credits(uuid, bigint, text, text, uuid, text, timestamptz);
DROP FUNCTION post_consumption(accounts, uuid[], bigint[], text, text, uuid, text, timestamptz);
DROP FUNCTION choose_grants(uuid, bigint, timestamptz);
DROP FUNCTION credit_use_refusal(accounts, timestamptz);
DROP FUNCTION release_expired_holds(uuid[], timestamptz);
DROP FUNCTION account_now(uuid, timestamptz);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(FUNCTIONS)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DROP_FUNCTIONS)
