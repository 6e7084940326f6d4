"""Events beside what they tell of; credits taken in one round trip whatever is due; adjustments and reversals likewise.

The functions of migration 0002 are replaced, not kept beside the new ones: no release has called them.
"""

from importlib import import_module
from typing import Final

from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"

TABLES: Final = """
-- What other parts act on: written in the transaction of what it tells of, and never changed. `key` names what
-- can happen once only; `subject_id` is the subscription, invoice or bank transfer that it is about.
CREATE TABLE events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id  uuid NOT NULL REFERENCES accounts (id),
    kind        text NOT NULL,
    key         text,
    subject_id  uuid NOT NULL,
    data        jsonb NOT NULL,
    occurred_at timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT event_kind_known CHECK (kind IN (
        'subscription.started', 'subscription.activated', 'subscription.renewed', 'subscription.past_due',
        'subscription.plan_changed', 'subscription.cancellation_scheduled', 'subscription.ended',
        'payment.succeeded', 'payment.failed',
        'bank_transfer.submitted', 'bank_transfer.approved', 'bank_transfer.rejected',
        'credits.low', 'credits.exhausted'
    )),
    CONSTRAINT event_of_credits_names_its_month CHECK ((kind LIKE 'credits.%%') = (key IS NOT NULL))
);
CREATE INDEX event_of_account ON events (account_id, id);
CREATE UNIQUE INDEX event_recorded_once ON events (account_id, key) WHERE key IS NOT NULL;
CREATE TRIGGER event_append_only BEFORE UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION refuse_change('event_append_only');
CREATE TRIGGER event_never_truncated BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('event_append_only');

-- Below so many credits an account runs low: derived from its plan whenever its state is written.
ALTER TABLE accounts ADD COLUMN low_credits bigint NOT NULL DEFAULT 0
    CONSTRAINT account_low_credits_not_negative CHECK (low_credits >= 0);
UPDATE accounts a SET low_credits = p.credits_per_month * 20 / 100  -- LOW_CREDITS_PERCENT, unless it was changed
FROM subscriptions s JOIN plans p ON p.id = s.plan_id
WHERE s.account_id = a.id AND s.status <> 'ended' AND p.credits_per_month >= 5;

-- A column of its own for "nothing remains": the index of what can be spent then has no part in `remaining`, and
-- taking credits of a grant leaves all its indexes alone. Rewrites the table.
ALTER TABLE credit_grants ADD COLUMN spent boolean GENERATED ALWAYS AS (remaining = 0) STORED;
DROP INDEX credit_grant_spendable;
CREATE INDEX credit_grant_spendable ON credit_grants (account_id, priority, expires_at, effective_at, id)
    WHERE NOT spent;

-- One reference in place of two, to the account and to the grant: a row of the ledger is of its grant's account.
ALTER TABLE credit_grants ADD CONSTRAINT credit_grant_of_account UNIQUE (account_id, id);
ALTER TABLE credit_transactions
    DROP CONSTRAINT credit_transactions_account_id_fkey,
    DROP CONSTRAINT credit_transactions_grant_id_fkey,
    ADD CONSTRAINT credit_transaction_of_own_grant
        FOREIGN KEY (account_id, grant_id) REFERENCES credit_grants (account_id, id);
"""

FUNCTIONS: Final = """
-- How everything that is done to credits begins: the account, locked before anything else of it; the instant in
-- which it lives; and why it cannot be done, if it cannot. 'due' asks the caller to apply first what no job has
-- taken up yet, and to come again with p_due_applied.
CREATE FUNCTION open_credits(
    p_account_id uuid, p_now timestamptz, p_due_applied boolean,
    OUT account accounts, OUT at timestamptz, OUT refusal text
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT a.* INTO account FROM accounts a
    WHERE a.id = p_account_id AND a.kind = 'customer' AND a.deleted_at IS NULL FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        refusal := 'not_found';
        RETURN;
    END IF;
    at := p_now;
    IF account.test_clock_id IS NOT NULL THEN
        SELECT c.now_at INTO at FROM test_clocks c WHERE c.id = account.test_clock_id;
    END IF;
    IF account.next_transition_at <= at AND account.parked_at IS NULL AND NOT p_due_applied THEN
        refusal := 'due';
        RETURN;
    END IF;
    IF account.held_credits > 0 THEN
        PERFORM release_expired_holds(ARRAY[p_account_id], at);
        SELECT a.held_credits INTO account.held_credits FROM accounts a WHERE a.id = p_account_id;
    END IF;
END
$$;

-- Chooses grants in burn-down order for p_amount: priority, earliest expiry, oldest. Short when it does not suffice.
CREATE FUNCTION choose_grants(
    p_account_id uuid, p_amount bigint, p_at timestamptz,
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
        WHERE account_id = p_account_id AND NOT spent AND remaining > held
          AND (expires_at IS NULL OR expires_at > p_at)
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

-- Records that the account runs low or is out of credits, once for each credit month, when it has just become so.
CREATE FUNCTION note_credits_left(p_account accounts, p_left bigint, p_at timestamptz) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO events (account_id, kind, key, subject_id, data, occurred_at)
    SELECT p_account.id, e.kind, concat_ws(':', e.kind, s.id, s.phase, s.credit_month_index - 1), s.id,
           jsonb_build_object('balance_credits', p_left, 'threshold_credits', e.threshold), p_at
    FROM subscriptions s, (VALUES
        ('credits.low', p_account.low_credits, p_left < p_account.low_credits),
        ('credits.exhausted', 1, p_left < 1)
    ) AS e (kind, threshold, crossed)
    WHERE s.account_id = p_account.id AND s.status <> 'ended' AND e.crossed AND p_account.balance_credits >= e.threshold
    ON CONFLICT DO NOTHING
$$;

-- Appends one row for each grant that gives a part, and moves grants and balance. The caller has locked the account.
CREATE FUNCTION take_credits(
    p_account accounts, p_grant_ids uuid[], p_parts bigint[], p_kind text, p_key text,
    p_source text, p_source_id uuid, p_reason text, p_at timestamptz
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_left bigint := p_account.balance_credits - (SELECT sum(part) FROM unnest(p_parts) AS part);
BEGIN
    UPDATE credit_grants g SET remaining = g.remaining - t.part
    FROM unnest(p_grant_ids, p_parts) AS t (grant_id, part) WHERE g.id = t.grant_id;

    INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                     effective_at, source, source_id, reason)
    SELECT p_account.id, p_account.ledger_seq + t.line, t.grant_id, p_kind, -t.part,
           p_account.balance_credits - sum(t.part) OVER (ORDER BY t.line),
           p_key, t.line - 1, p_at, p_source, p_source_id, p_reason
    FROM unnest(p_grant_ids, p_parts) WITH ORDINALITY AS t (grant_id, part, line);

    UPDATE accounts SET balance_credits = v_left, ledger_seq = ledger_seq + cardinality(p_parts)
    WHERE id = p_account.id;
    IF v_left < greatest(p_account.low_credits, 1) THEN
        PERFORM note_credits_left(p_account, v_left, p_at);
    END IF;
    RETURN v_left;
END
$$;

CREATE FUNCTION consume_credits(
    p_account_id uuid, p_amount bigint, p_key text, p_source text, p_source_id uuid, p_reason text, p_now timestamptz,
    p_due_applied boolean,
    OUT outcome text, OUT balance_credits bigint, OUT available_credits bigint, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    v_key text := 'consume:' || p_key;
    v_open record;
    v_account accounts;
    v_taken bigint;
    v_chosen record;
BEGIN
    replayed := false;
    v_open := open_credits(p_account_id, p_now, p_due_applied);
    outcome := v_open.refusal;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;

    SELECT -sum(t.amount), min(t.balance_after) INTO v_taken, balance_credits FROM credit_transactions t
    WHERE t.account_id = p_account_id AND t.idempotency_key = v_key;
    IF v_taken IS NOT NULL THEN
        replayed := true;
        outcome := CASE WHEN v_taken = p_amount THEN 'consumed' ELSE 'idempotency_key_reused' END;
        RETURN;
    END IF;

    v_account := v_open.account;
    balance_credits := v_account.balance_credits;
    outcome := credit_use_refusal(v_account, v_open.at);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;

    -- Mostly the first grant in burn-down order has enough: then one statement is all.
    WITH giving AS (
        UPDATE credit_grants g SET remaining = g.remaining - p_amount
        WHERE g.remaining - g.held >= p_amount AND g.id = (
            SELECT f.id FROM credit_grants f
            WHERE f.account_id = p_account_id AND NOT f.spent AND f.remaining > f.held
              AND (f.expires_at IS NULL OR f.expires_at > v_open.at)
            ORDER BY f.priority, f.expires_at, f.effective_at, f.id LIMIT 1
        )
        RETURNING g.id
    ), noted AS (
        INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                         effective_at, source, source_id, reason)
        SELECT p_account_id, v_account.ledger_seq + 1, id, 'consume', -p_amount, v_account.balance_credits - p_amount,
               v_key, 0, v_open.at, p_source, p_source_id, p_reason FROM giving
    )
    UPDATE accounts a SET balance_credits = a.balance_credits - p_amount, ledger_seq = a.ledger_seq + 1
    FROM giving WHERE a.id = p_account_id;
    IF FOUND THEN
        balance_credits := balance_credits - p_amount;
        IF balance_credits < greatest(v_account.low_credits, 1) THEN
            PERFORM note_credits_left(v_account, balance_credits, v_open.at);
        END IF;
    ELSE
        v_chosen := choose_grants(p_account_id, p_amount, v_open.at);
        IF v_chosen.missing > 0 THEN
            outcome := 'insufficient_credits';
            available_credits := p_amount - v_chosen.missing;
            RETURN;
        END IF;
        balance_credits := take_credits(
            v_account, v_chosen.grant_ids, v_chosen.parts, 'consume', v_key, p_source, p_source_id, p_reason, v_open.at
        );
    END IF;
    outcome := 'consumed';
END
$$;

-- Many consumptions of one account, in their order, each under its own key. What has been done before is answered as
-- before. p_all_or_nothing: if any of them is refused, nothing is written, and `outcome` is 'refused'. Of `balances`,
-- that of an item for which there was too little is what the items before it would leave.
CREATE FUNCTION consume_credits_batch(
    p_account_id uuid, p_keys text[], p_amounts bigint[], p_reasons text[], p_all_or_nothing boolean,
    p_source text, p_source_id uuid, p_now timestamptz, p_due_applied boolean,
    OUT outcome text, OUT outcomes text[], OUT balances bigint[], OUT replays boolean[],
    OUT balance_credits bigint, OUT available_credits bigint
) LANGUAGE plpgsql AS $$
DECLARE
    v_open record;
    v_account accounts;
    v_refusal text;
    v_taken bigint[];
    v_accepted integer[] := '{}';
    v_wanted bigint := 0;
    v_rows bigint;
    n integer;
BEGIN
    v_open := open_credits(p_account_id, p_now, p_due_applied);
    outcome := v_open.refusal;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    v_account := v_open.account;
    balance_credits := v_account.balance_credits;
    v_refusal := credit_use_refusal(v_account, v_open.at);

    SELECT array_agg(t.taken ORDER BY i.n), array_agg(t.balance_after ORDER BY i.n),
           array_agg(t.taken IS NOT NULL ORDER BY i.n)
    INTO v_taken, balances, replays
    FROM unnest(p_keys) WITH ORDINALITY AS i (key, n)
    CROSS JOIN LATERAL (
        SELECT -sum(c.amount) AS taken, min(c.balance_after) AS balance_after FROM credit_transactions c
        WHERE c.account_id = p_account_id AND c.idempotency_key = 'consume:' || i.key
    ) t;
    SELECT coalesce(sum(g.remaining - g.held), 0) INTO available_credits FROM credit_grants g
    WHERE g.account_id = p_account_id AND NOT g.spent AND (g.expires_at IS NULL OR g.expires_at > v_open.at);

    FOR n IN 1 .. cardinality(p_keys) LOOP
        IF v_taken[n] IS NOT NULL THEN
            outcomes[n] := CASE WHEN v_taken[n] = p_amounts[n] THEN 'consumed' ELSE 'idempotency_key_reused' END;
        ELSIF v_refusal IS NOT NULL THEN
            outcomes[n] := v_refusal;
        ELSIF p_amounts[n] > available_credits - v_wanted THEN
            outcomes[n] := 'insufficient_credits';
            balances[n] := balance_credits - v_wanted;
        ELSE
            outcomes[n] := 'consumed';
            v_wanted := v_wanted + p_amounts[n];
            balances[n] := balance_credits - v_wanted;
            v_accepted := v_accepted || n;
        END IF;
    END LOOP;
    IF p_all_or_nothing AND outcomes <> array_fill('consumed'::text, ARRAY[cardinality(p_keys)]) THEN
        outcome := 'refused';
        RETURN;
    END IF;
    outcome := 'done';
    IF v_wanted = 0 THEN
        RETURN;
    END IF;

    -- Laid end to end, the wanted amounts and what is free of the grants cut each other into the ledger's rows.
    WITH wanted AS (
        SELECT i.n, p_amounts[i.n] AS amount, sum(p_amounts[i.n]) OVER (ORDER BY i.n) AS upto
        FROM unnest(v_accepted) AS i (n)
    ), free AS (
        SELECT g.id, g.remaining - g.held AS amount,
               sum(g.remaining - g.held) OVER (ORDER BY g.priority, g.expires_at, g.effective_at, g.id) AS upto
        FROM credit_grants g
        WHERE g.account_id = p_account_id AND NOT g.spent AND g.remaining > g.held
          AND (g.expires_at IS NULL OR g.expires_at > v_open.at)
    ), rows AS (
        SELECT w.n, f.id AS grant_id, least(w.upto, f.upto) AS upto,
               least(w.upto, f.upto) - greatest(w.upto - w.amount, f.upto - f.amount) AS part,
               row_number() OVER (ORDER BY least(w.upto, f.upto)) AS number,
               row_number() OVER (PARTITION BY w.n ORDER BY f.upto) - 1 AS line
        FROM wanted w JOIN free f ON f.upto > w.upto - w.amount AND f.upto - f.amount < w.upto
        WHERE f.upto - f.amount < v_wanted
    ), grants AS (
        UPDATE credit_grants g SET remaining = g.remaining - t.part
        FROM (SELECT grant_id, sum(part) AS part FROM rows GROUP BY grant_id) t WHERE g.id = t.grant_id
    ), ledger AS (
        INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                         effective_at, source, source_id, reason)
        SELECT p_account_id, v_account.ledger_seq + r.number, r.grant_id, 'consume', -r.part,
               v_account.balance_credits - r.upto, 'consume:' || p_keys[r.n], r.line, v_open.at, p_source, p_source_id,
               p_reasons[r.n]
        FROM rows r ORDER BY r.number
        RETURNING 1
    )
    SELECT count(*) INTO v_rows FROM ledger;
    balance_credits := balance_credits - v_wanted;
    available_credits := available_credits - v_wanted;
    UPDATE accounts a SET balance_credits = a.balance_credits - v_wanted, ledger_seq = a.ledger_seq + v_rows
    WHERE a.id = p_account_id;
    IF balance_credits < greatest(v_account.low_credits, 1) THEN
        PERFORM note_credits_left(v_account, balance_credits, v_open.at);
    END IF;
END
$$;

CREATE FUNCTION place_hold(
    p_account_id uuid, p_hold_id uuid, p_amount bigint, p_key text, p_ttl_seconds integer, p_now timestamptz,
    p_due_applied boolean,
    OUT outcome text, OUT hold holds, OUT balance_credits bigint, OUT available_credits bigint, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    v_open record;
    v_chosen record;
BEGIN
    replayed := false;
    v_open := open_credits(p_account_id, p_now, p_due_applied);
    outcome := v_open.refusal;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;

    SELECT h.* INTO hold FROM holds h WHERE h.account_id = p_account_id AND h.idempotency_key = p_key;
    IF FOUND THEN
        replayed := true;
        outcome := CASE WHEN hold.amount = p_amount THEN 'held' ELSE 'idempotency_key_reused' END;
        RETURN;
    END IF;

    balance_credits := (v_open.account).balance_credits;
    outcome := credit_use_refusal(v_open.account, v_open.at);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    v_chosen := choose_grants(p_account_id, p_amount, v_open.at);
    IF v_chosen.missing > 0 THEN
        outcome := 'insufficient_credits';
        available_credits := p_amount - v_chosen.missing;
        RETURN;
    END IF;

    -- A hold never outlives a grant that it reserves from.
    INSERT INTO holds AS h (id, account_id, status, amount, idempotency_key, held_at, expires_at)
    VALUES (p_hold_id, p_account_id, 'open', p_amount, p_key, v_open.at,
            least(v_open.at + make_interval(secs => p_ttl_seconds), v_chosen.earliest_expiry))
    RETURNING h.* INTO hold;
    INSERT INTO hold_allocations (hold_id, grant_id, amount)
    SELECT p_hold_id, t.grant_id, t.part FROM unnest(v_chosen.grant_ids, v_chosen.parts) AS t (grant_id, part);
    UPDATE credit_grants g SET held = g.held + t.part
    FROM unnest(v_chosen.grant_ids, v_chosen.parts) AS t (grant_id, part) WHERE g.id = t.grant_id;
    UPDATE accounts SET held_credits = held_credits + p_amount WHERE id = p_account_id;
    outcome := 'held';
END
$$;

CREATE FUNCTION capture_hold(
    p_account_id uuid, p_hold_id uuid, p_amount bigint, p_now timestamptz, p_due_applied boolean,
    OUT outcome text, OUT balance_credits bigint, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    v_open record;
    v_hold holds;
    v_ids uuid[];
    v_parts bigint[];
BEGIN
    replayed := false;
    v_open := open_credits(p_account_id, p_now, p_due_applied);
    outcome := v_open.refusal;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    SELECT * INTO v_hold FROM holds h WHERE h.id = p_hold_id AND h.account_id = p_account_id;
    balance_credits := (v_open.account).balance_credits;
    IF v_hold.status = 'captured' AND v_hold.captured_amount = p_amount THEN
        replayed := true;
        outcome := 'captured';
        RETURN;
    END IF;
    outcome := coalesce(credit_use_refusal(v_open.account, v_open.at), CASE
        WHEN v_hold.id IS NULL THEN 'not_found'
        WHEN v_hold.status <> 'open' THEN 'hold_not_open'
        WHEN p_amount > v_hold.amount THEN 'capture_exceeds_hold'
    END);
    IF outcome IS NOT NULL THEN
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
    balance_credits := take_credits(
        v_open.account, v_ids, v_parts, 'consume', 'capture:' || p_hold_id, 'hold', p_hold_id, NULL, v_open.at
    );
    UPDATE holds SET status = 'captured', captured_amount = p_amount, resolved_at = v_open.at WHERE id = p_hold_id;
    outcome := 'captured';
END
$$;

-- What is due does not keep anybody from freeing what is held.
CREATE FUNCTION release_hold(
    p_account_id uuid, p_hold_id uuid, p_now timestamptz, OUT outcome text, OUT hold holds, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    v_open record;
BEGIN
    replayed := false;
    v_open := open_credits(p_account_id, p_now, true);
    outcome := v_open.refusal;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    SELECT h.* INTO hold FROM holds h WHERE h.id = p_hold_id AND h.account_id = p_account_id;
    IF hold.status IN ('released', 'expired') THEN
        outcome := 'released';
        replayed := true;
        RETURN;
    END IF;
    outcome := coalesce(credit_use_refusal(v_open.account, v_open.at), CASE
        WHEN hold.id IS NULL THEN 'not_found'
        WHEN hold.status <> 'open' THEN 'hold_not_open'
    END);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    UPDATE credit_grants g SET held = g.held - l.amount
    FROM hold_allocations l WHERE l.hold_id = p_hold_id AND g.id = l.grant_id;
    UPDATE accounts SET held_credits = held_credits - hold.amount WHERE id = p_account_id;
    UPDATE holds h SET status = 'released', resolved_at = v_open.at WHERE h.id = p_hold_id RETURNING h.* INTO hold;
    outcome := 'released';
END
$$;

-- What an admin does to an account's credits happens to the account: nothing is stamped before it any more. And a
-- grant that has credits again expires when it does, which may be what is due next.
CREATE FUNCTION close_adjustment(p_account_id uuid, p_grant_ids uuid[], p_at timestamptz) RETURNS void
LANGUAGE sql AS $$
    UPDATE accounts a SET
        acted_at = p_at,
        next_transition = CASE WHEN g.sooner THEN 'grant_expiry' ELSE a.next_transition END,
        next_transition_at = CASE WHEN g.sooner THEN g.expires_at ELSE a.next_transition_at END
    FROM (
        SELECT min(g.expires_at) AS expires_at,
               coalesce((min(g.expires_at), 0) < (b.next_transition_at, (b.next_transition = 'credit_month')::int),
                        min(g.expires_at) IS NOT NULL AND b.next_transition_at IS NULL) AS sooner
        FROM accounts b LEFT JOIN credit_grants g ON g.id = ANY (p_grant_ids) AND NOT g.spent
        WHERE b.id = p_account_id GROUP BY b.id
    ) g
    WHERE a.id = p_account_id
$$;

CREATE FUNCTION adjust_credits(
    p_account_id uuid, p_amount bigint, p_key text, p_grant_id uuid, p_expires_at timestamptz,
    p_admin_id uuid, p_reason text, p_now timestamptz, p_due_applied boolean,
    OUT outcome text, OUT balance_before bigint, OUT balance_credits bigint, OUT available_credits bigint,
    OUT at timestamptz, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    v_key text := 'adjust:' || p_key;
    v_open record;
    v_account accounts;
    v_given bigint;
    v_chosen record;
BEGIN
    replayed := false;
    v_open := open_credits(p_account_id, p_now, p_due_applied);
    outcome := v_open.refusal;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    v_account := v_open.account;
    at := greatest(v_open.at, v_account.acted_at);

    SELECT sum(t.amount), max(t.balance_after) FILTER (WHERE t.line = 0) - max(t.amount) FILTER (WHERE t.line = 0)
    INTO v_given, balance_before FROM credit_transactions t
    WHERE t.account_id = p_account_id AND t.idempotency_key = v_key;
    IF v_given IS NOT NULL THEN
        replayed := true;
        balance_credits := balance_before + v_given;
        outcome := CASE WHEN v_given = p_amount THEN 'adjusted' ELSE 'idempotency_key_reused' END;
        RETURN;
    END IF;
    balance_before := v_account.balance_credits;
    balance_credits := balance_before;

    IF p_expires_at <= at THEN
        outcome := 'expires_too_early';
        RETURN;
    END IF;
    IF p_amount > 0 THEN
        INSERT INTO credit_grants (id, account_id, source, amount, remaining, priority, effective_at, expires_at)
        VALUES (p_grant_id, p_account_id, 'adjust', p_amount, p_amount, 20, at, p_expires_at);
        balance_credits := balance_before + p_amount;
        INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                         effective_at, source, source_id, reason)
        VALUES (p_account_id, v_account.ledger_seq + 1, p_grant_id, 'adjust', p_amount, balance_credits, v_key, 0, at,
                'admin', p_admin_id, p_reason);
        UPDATE accounts a SET balance_credits = a.balance_credits + p_amount, ledger_seq = a.ledger_seq + 1
        WHERE a.id = p_account_id;
    ELSE
        v_chosen := choose_grants(p_account_id, -p_amount, at);
        IF v_chosen.missing > 0 THEN
            outcome := 'insufficient_credits';
            available_credits := -p_amount - v_chosen.missing;
            RETURN;
        END IF;
        balance_credits := take_credits(
            v_account, v_chosen.grant_ids, v_chosen.parts, 'adjust', v_key, 'admin', p_admin_id, p_reason, at
        );
    END IF;
    PERFORM close_adjustment(p_account_id, ARRAY[p_grant_id], at);
    outcome := 'adjusted';
END
$$;

-- Reverses the posting that row p_seq belongs to: each of its rows by one that points to it, to the same grant. What
-- was taken is given back, and expires at once if its grant has expired. What was given is taken as far as it is free.
CREATE FUNCTION reverse_posting(
    p_account_id uuid, p_seq bigint, p_admin_id uuid, p_reason text, p_now timestamptz, p_due_applied boolean,
    OUT outcome text, OUT reversed_credits bigint, OUT expired_credits bigint,
    OUT balance_before bigint, OUT balance_credits bigint, OUT at timestamptz
) LANGUAGE plpgsql AS $$
DECLARE
    v_open record;
    v_account accounts;
    v_posting credit_transactions;
    v_row record;
    v_seq bigint;
    v_part bigint;
    v_grant_ids uuid[] := '{}';
BEGIN
    v_open := open_credits(p_account_id, p_now, p_due_applied);
    outcome := v_open.refusal;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    v_account := v_open.account;
    at := greatest(v_open.at, v_account.acted_at);
    balance_before := v_account.balance_credits;
    balance_credits := balance_before;
    reversed_credits := 0;
    expired_credits := 0;
    v_seq := v_account.ledger_seq;

    SELECT * INTO v_posting FROM credit_transactions t WHERE t.account_id = p_account_id AND t.seq = p_seq;
    IF NOT FOUND THEN
        outcome := 'not_found';
        RETURN;
    END IF;
    IF v_posting.kind IN ('expire', 'reverse') THEN
        outcome := 'not_reversible';
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM credit_transactions t WHERE t.account_id = p_account_id AND t.reverses_seq = p_seq) THEN
        outcome := 'already_reversed';
        RETURN;
    END IF;

    FOR v_row IN
        SELECT t.seq, t.line, t.amount, t.grant_id, g.remaining - g.held AS free, g.expires_at <= at AS expired
        FROM credit_transactions t JOIN credit_grants g ON g.id = t.grant_id
        WHERE t.account_id = p_account_id AND t.idempotency_key = v_posting.idempotency_key
        ORDER BY t.line
    LOOP
        v_part := CASE WHEN v_row.amount < 0 THEN -v_row.amount ELSE -least(v_row.amount, v_row.free) END;
        IF v_part = 0 THEN
            outcome := 'nothing_to_reverse';
            RETURN;
        END IF;
        v_seq := v_seq + 1;
        balance_credits := balance_credits + v_part;
        reversed_credits := reversed_credits + v_part;
        v_grant_ids := v_grant_ids || v_row.grant_id;
        INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                         effective_at, source, source_id, reason, reverses_seq)
        VALUES (p_account_id, v_seq, v_row.grant_id, 'reverse', v_part, balance_credits,
                'reverse:' || v_posting.idempotency_key, v_row.line, at, 'admin', p_admin_id, p_reason, v_row.seq);
        IF v_part > 0 AND v_row.expired THEN
            v_seq := v_seq + 1;
            balance_credits := balance_credits - v_part;
            expired_credits := expired_credits + v_part;
            INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key,
                                             line, effective_at, source, source_id)
            VALUES (p_account_id, v_seq, v_row.grant_id, 'expire', -v_part, balance_credits,
                    'expire:reverse:' || v_posting.idempotency_key, v_row.line, at, 'grant', v_row.grant_id);
        ELSE
            UPDATE credit_grants g SET remaining = g.remaining + v_part WHERE g.id = v_row.grant_id;
        END IF;
    END LOOP;

    UPDATE accounts a SET balance_credits = reverse_posting.balance_credits, ledger_seq = v_seq
    WHERE a.id = p_account_id;
    IF balance_credits < balance_before AND balance_credits < greatest(v_account.low_credits, 1) THEN
        PERFORM note_credits_left(v_account, balance_credits, at);
    END IF;
    PERFORM close_adjustment(p_account_id, v_grant_ids, at);
    outcome := 'reversed';
END
$$;
"""

DROP_FUNCTIONS: Final = """
DROP FUNCTION reverse_posting(uuid, bigint, uuid, text, timestamptz, boolean);
DROP FUNCTION adjust_credits(uuid, bigint, text, uuid, timestamptz, uuid, text, timestamptz, boolean);
DROP FUNCTION close_adjustment(uuid, uuid[], timestamptz);
DROP FUNCTION release_hold(uuid, uuid, timestamptz);
DROP FUNCTION capture_hold(uuid, uuid, bigint, timestamptz, boolean);
DROP FUNCTION place_hold(uuid, uuid, bigint, text, integer, timestamptz, boolean);
DROP FUNCTION consume_credits_batch(uuid, text[], bigint[], text[], boolean, text, uuid, timestamptz, boolean);
DROP FUNCTION consume_credits(uuid, bigint, text, text, uuid, text, timestamptz, boolean);
DROP FUNCTION take_credits(accounts, uuid[], bigint[], text, text, text, uuid, text, timestamptz);
DROP FUNCTION note_credits_left(accounts, bigint, timestamptz);
DROP FUNCTION choose_grants(uuid, bigint, timestamptz);
DROP FUNCTION open_credits(uuid, timestamptz, boolean);
DROP FUNCTION credit_use_refusal(accounts, timestamptz);
DROP FUNCTION release_expired_holds(uuid[], timestamptz);
DROP FUNCTION account_now(uuid, timestamptz);
"""

DROP_TABLES: Final = """
ALTER TABLE credit_transactions
    DROP CONSTRAINT credit_transaction_of_own_grant,
    ADD CONSTRAINT credit_transactions_account_id_fkey FOREIGN KEY (account_id) REFERENCES accounts (id),
    ADD CONSTRAINT credit_transactions_grant_id_fkey FOREIGN KEY (grant_id) REFERENCES credit_grants (id);
ALTER TABLE credit_grants DROP CONSTRAINT credit_grant_of_account;
DROP INDEX credit_grant_spendable;
ALTER TABLE credit_grants DROP COLUMN spent;
CREATE INDEX credit_grant_spendable ON credit_grants (account_id, priority, expires_at, effective_at, id)
    WHERE remaining > 0;
ALTER TABLE accounts DROP COLUMN low_credits;
DROP TABLE events;
"""

# Three functions of migration 0002 go on as they are: account_now, release_expired_holds, credit_use_refusal.
REPLACED: Final = """
DROP FUNCTION release_hold(uuid, uuid, timestamptz);
DROP FUNCTION capture_hold(uuid, uuid, bigint, timestamptz);
DROP FUNCTION place_hold(uuid, uuid, bigint, text, integer, timestamptz);
DROP FUNCTION consume_credits(uuid, bigint, text, text, uuid, text, timestamptz);
DROP FUNCTION post_consumption(accounts, uuid[], bigint[], text, text, uuid, text, timestamptz);
DROP FUNCTION choose_grants(uuid, bigint, timestamptz);
"""


def upgrade() -> None:
    for statements in (REPLACED, TABLES, FUNCTIONS):
        op.get_bind().exec_driver_sql(statements)


def downgrade() -> None:
    before = import_module("shared.db.migrations.versions.0002_credit_functions")
    for statements in (DROP_FUNCTIONS, DROP_TABLES, before.FUNCTIONS):
        op.get_bind().exec_driver_sql(statements)
