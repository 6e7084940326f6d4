"""Money that comes in: payments that settle nothing yet, saved cards, checkouts, banks' statements, refunds."""

from typing import Final

from alembic import op

revision: Final = "0007"
down_revision: Final = "0006"

PAYMENTS: Final = """
-- A payment that has succeeded is money that is here. It settles its invoice, or it is unapplied and says why: then
-- invoice and account are those that it was meant for, if anybody knows. An attempt at a saved card learns the
-- provider's id from the answer.
ALTER TABLE payments
    ALTER COLUMN account_id DROP NOT NULL,
    ALTER COLUMN invoice_id DROP NOT NULL,
    ALTER COLUMN external_payment_id DROP NOT NULL,
    ADD COLUMN attempt integer,
    ADD COLUMN customer_ref text,
    ADD COLUMN payment_method_ref text,
    ADD COLUMN decline_code text,
    ADD COLUMN unapplied_reason text,
    ADD COLUMN applied_at timestamptz,
    ADD COLUMN override_reason text,
    ADD COLUMN bank_entry_id uuid,
    ADD COLUMN refunded_minor bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT payment_one_per_operation,
    DROP CONSTRAINT payment_success_is_complete,
    ADD CONSTRAINT payment_success_is_complete CHECK (
        status <> 'succeeded'
        OR (amount_minor IS NOT NULL AND amount_minor > 0 AND currency IS NOT NULL AND confirmed_at IS NOT NULL
            AND external_payment_id IS NOT NULL)
    ),
    ADD CONSTRAINT payment_applied_names_its_invoice CHECK (
        unapplied_reason IS NOT NULL OR (account_id IS NOT NULL AND invoice_id IS NOT NULL)
    ),
    ADD CONSTRAINT payment_unapplied_was_received CHECK (unapplied_reason IS NULL OR status = 'succeeded'),
    ADD CONSTRAINT payment_attempt_names_what_is_charged CHECK (
        attempt > 0 AND customer_ref IS NOT NULL AND payment_method_ref IS NOT NULL
        OR attempt IS NULL AND customer_ref IS NULL AND payment_method_ref IS NULL
    ),
    ADD CONSTRAINT payment_refunded_within_amount CHECK (
        refunded_minor = 0 OR (status = 'succeeded' AND refunded_minor BETWEEN 0 AND amount_minor)
    );
CREATE UNIQUE INDEX payment_one_per_operation ON payments (operation_id) WHERE bank_entry_id IS NULL;
CREATE UNIQUE INDEX payment_attempted_once ON payments (invoice_id, attempt) WHERE attempt IS NOT NULL;
CREATE UNIQUE INDEX payment_of_bank_entry ON payments (bank_entry_id) WHERE bank_entry_id IS NOT NULL;
DROP INDEX invoice_paid_once;
CREATE UNIQUE INDEX invoice_paid_once ON payments (invoice_id)
    WHERE status = 'succeeded' AND unapplied_reason IS NULL;
CREATE INDEX payment_unapplied ON payments (id)
    WHERE unapplied_reason IS NOT NULL AND refunded_minor < amount_minor;

UPDATE payments SET applied_at = confirmed_at WHERE status = 'succeeded';
ALTER TABLE payments ADD CONSTRAINT payment_applied_has_instant CHECK (
    (applied_at IS NOT NULL) = (status = 'succeeded' AND unapplied_reason IS NULL)
);

-- The pretend provider's customers may leave a card behind: one that is charged, or declined with its name as the code.
ALTER TABLE sandbox_payments ADD COLUMN saves_card text;

-- The last saved card, or the like, with which an account's renewals are charged.
ALTER TABLE accounts ADD COLUMN saved_payment_method account_payer;

-- Who the account is to a provider, and what can be charged without the customer.
CREATE TABLE provider_customers (
    account_id         uuid NOT NULL REFERENCES accounts (id),
    provider           text NOT NULL,
    customer_ref       text NOT NULL,
    payment_method_ref text,
    created_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, provider),
    CONSTRAINT provider_customer_once UNIQUE (provider, customer_ref),
    CONSTRAINT provider_customer_provider_known CHECK (provider IN ('stripe', 'sandbox'))
);

-- Payments that a customer may be making. The provider is asked about each until it is settled or long forgotten,
-- whether or not a browser or a webhook has said anything.
CREATE TABLE checkouts (
    provider            text NOT NULL,
    external_payment_id text NOT NULL,
    account_id          uuid NOT NULL REFERENCES accounts (id),
    invoice_id          uuid NOT NULL REFERENCES invoices (id),
    saves_method        boolean NOT NULL,
    asked               integer NOT NULL DEFAULT 0,
    next_ask_at         timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, external_payment_id),
    CONSTRAINT checkout_provider_known CHECK (provider IN ('stripe', 'sandbox'))
);
CREATE INDEX checkout_to_ask ON checkouts (next_ask_at) WHERE next_ask_at IS NOT NULL;
CREATE INDEX checkout_of_invoice ON checkouts (invoice_id);

-- Who decided what about whom, for whoever looks it up.
CREATE INDEX audit_by_action ON audit_log (action, id);
CREATE INDEX audit_by_actor ON audit_log (actor_id, id);
CREATE INDEX audit_of_subject ON audit_log (subject_id, id);

-- Webhooks that were taken in: each event once, for ever. One that starts work names its operation.
CREATE TABLE provider_events (
    provider     text NOT NULL,
    event_id     text NOT NULL,
    type         text NOT NULL,
    occurred_at  timestamptz NOT NULL,
    operation_id uuid,
    ignored      text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, event_id),
    CONSTRAINT provider_event_works_or_is_ignored CHECK ((operation_id IS NULL) = (ignored IS NOT NULL))
);
CREATE TRIGGER provider_event_append_only BEFORE UPDATE OR DELETE ON provider_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change('provider_event_append_only');
"""

STATEMENTS: Final = """
-- A file that an admin handed in, as it was, and the operation that imports it.
CREATE TABLE bank_statements (
    id           uuid PRIMARY KEY,
    operation_id uuid NOT NULL CONSTRAINT bank_statement_once_per_operation UNIQUE REFERENCES operations (id),
    format       text NOT NULL,
    content      bytea NOT NULL,
    content_hash bytea NOT NULL,
    uploaded_by  uuid NOT NULL REFERENCES admins (id),
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT bank_statement_format_known CHECK (format IN ('camt053', 'mt940', 'csv')),
    CONSTRAINT bank_statement_not_empty CHECK (length(content) > 0)
);

-- What banks have said of our account: each entry once, whichever files it stands in.
CREATE TABLE bank_entries (
    id             uuid PRIMARY KEY,
    statement_id   uuid NOT NULL REFERENCES bank_statements (id),
    external_id    text NOT NULL CONSTRAINT bank_entry_once UNIQUE,
    iban           text NOT NULL,
    transaction_id text,
    amount_minor   bigint NOT NULL CONSTRAINT bank_entry_amount_not_zero CHECK (amount_minor <> 0),
    currency       text NOT NULL,
    booked_on      date NOT NULL,
    value_on       date NOT NULL,
    payer_name     text,
    payer_iban     text,
    reference      text,
    remittance     text NOT NULL,
    returned       boolean NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX bank_entry_of_statement ON bank_entries (statement_id, id);
CREATE TRIGGER bank_entry_append_only BEFORE UPDATE OR DELETE ON bank_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change('bank_entry_append_only');
ALTER TABLE payments ADD CONSTRAINT payment_of_known_bank_entry
    FOREIGN KEY (bank_entry_id) REFERENCES bank_entries (id);

-- Who may have paid: open invoices of an amount, the newest first.
CREATE INDEX invoice_open_by_amount ON invoices (currency, amount_minor, id) WHERE status = 'open';
"""

REFUNDS: Final = """
-- Money that goes back. `payments.refunded_minor` counts it from the moment at which it is asked for, so that two
-- refunds never give back more than came; a refund that fails gives its share up.
CREATE TABLE refunds (
    id                 uuid PRIMARY KEY,
    payment_id         uuid NOT NULL REFERENCES payments (id),
    operation_id       uuid NOT NULL,
    status             text NOT NULL,
    amount_minor       bigint NOT NULL,
    currency           text NOT NULL,
    external_refund_id text,
    transfer_reference text,
    reason             text NOT NULL,
    reversed_credits   bigint NOT NULL DEFAULT 0,
    spent_credits      bigint NOT NULL DEFAULT 0,
    problem            text,
    created_at         timestamptz NOT NULL DEFAULT now(),
    confirmed_at       timestamptz,
    CONSTRAINT refund_status_known CHECK (status IN ('pending', 'succeeded', 'failed')),
    CONSTRAINT refund_amount_positive CHECK (amount_minor > 0),
    CONSTRAINT refund_failure_has_problem CHECK ((status = 'failed') = (problem IS NOT NULL)),
    CONSTRAINT refund_answer_has_instant CHECK ((status = 'pending') = (confirmed_at IS NULL)),
    CONSTRAINT refund_credits_not_negative CHECK (reversed_credits >= 0 AND spent_credits >= 0)
);
CREATE INDEX refund_of_payment ON refunds (payment_id);
CREATE UNIQUE INDEX refund_known_once ON refunds (external_refund_id) WHERE external_refund_id IS NOT NULL;

ALTER TABLE events DROP CONSTRAINT event_kind_known, ADD CONSTRAINT event_kind_known CHECK (kind IN (
    'subscription.started', 'subscription.activated', 'subscription.renewed', 'subscription.past_due',
    'subscription.plan_changed', 'subscription.cancellation_scheduled', 'subscription.ended',
    'payment.succeeded', 'payment.failed', 'payment.unapplied', 'payment.refunded', 'payment.refund_failed',
    'bank_transfer.submitted', 'bank_transfer.approved', 'bank_transfer.rejected',
    'credits.low', 'credits.exhausted'
));

-- A posting is still reversed once by an admin: the key of the reversal says so. Refunds take back a seed in parts.
DROP INDEX credit_transaction_reversed_once;
CREATE UNIQUE INDEX credit_transaction_reversed_once ON credit_transactions (account_id, reverses_seq, idempotency_key)
    WHERE reverses_seq IS NOT NULL;

-- Takes back up to p_amount of these seeds, soonest expiry first, as far as it is free: each part by a row that points
-- to the seed's. Once per key.
CREATE FUNCTION refund_credits(
    p_account_id uuid, p_grant_ids uuid[], p_amount bigint, p_key text, p_payment_id uuid, p_reason text,
    p_now timestamptz, p_due_applied boolean,
    OUT outcome text, OUT reversed_credits bigint, OUT balance_before bigint, OUT balance_credits bigint,
    OUT at timestamptz
) LANGUAGE plpgsql AS $$
DECLARE
    v_key text := 'refund:' || p_key;
    v_open record;
    v_account accounts;
    v_row record;
    v_part bigint;
    v_line integer := 0;
BEGIN
    reversed_credits := 0;
    v_open := open_credits(p_account_id, p_now, p_due_applied);
    outcome := v_open.refusal;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    v_account := v_open.account;
    at := greatest(v_open.at, v_account.acted_at);
    balance_before := v_account.balance_credits;
    balance_credits := balance_before;
    outcome := 'refunded';
    SELECT coalesce(-sum(t.amount), 0) INTO reversed_credits FROM credit_transactions t
    WHERE t.account_id = p_account_id AND t.idempotency_key = v_key;
    IF reversed_credits > 0 THEN
        RETURN;
    END IF;

    FOR v_row IN
        SELECT g.id, g.remaining - g.held AS free, t.seq
        FROM credit_grants g
        JOIN credit_transactions t ON t.account_id = g.account_id AND t.line = 0
            AND t.idempotency_key = concat_ws(':', 'seed', replace(g.subscription_id::text, '-', ''), g.phase,
                                              g.credit_month_index)
        WHERE g.id = ANY (p_grant_ids) AND g.account_id = p_account_id AND g.source = 'seed' AND g.remaining > g.held
        ORDER BY g.expires_at, g.effective_at, g.id
    LOOP
        v_part := least(v_row.free, p_amount - reversed_credits);
        EXIT WHEN v_part = 0;
        reversed_credits := reversed_credits + v_part;
        balance_credits := balance_credits - v_part;
        INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                         effective_at, source, source_id, reason, reverses_seq)
        VALUES (p_account_id, v_account.ledger_seq + 1 + v_line, v_row.id, 'reverse', -v_part, balance_credits, v_key,
                v_line, at, 'payment', p_payment_id, p_reason, v_row.seq);
        UPDATE credit_grants g SET remaining = g.remaining - v_part WHERE g.id = v_row.id;
        v_line := v_line + 1;
    END LOOP;
    UPDATE accounts a SET balance_credits = refund_credits.balance_credits, ledger_seq = a.ledger_seq + v_line
    WHERE a.id = p_account_id;
    IF balance_credits < balance_before AND balance_credits < greatest(v_account.low_credits, 1) THEN
        PERFORM note_credits_left(v_account, balance_credits, at);
    END IF;
    PERFORM close_adjustment(p_account_id, p_grant_ids, at);
END
$$;
"""

GRANTS: Final = """
GRANT SELECT, INSERT, UPDATE ON provider_customers, checkouts TO prepaid_api, prepaid_worker;
GRANT SELECT, INSERT ON provider_events, bank_statements TO prepaid_api, prepaid_worker;
GRANT SELECT ON bank_entries, refunds TO prepaid_api;
GRANT SELECT, INSERT ON bank_entries TO prepaid_worker;
GRANT SELECT, INSERT, UPDATE ON refunds TO prepaid_worker;
"""

DOWN: Final = """
DROP FUNCTION refund_credits(uuid, uuid[], bigint, text, uuid, text, timestamptz, boolean);
-- The release before reverses a row once. What refunds took in parts it knows as corrections.
ALTER TABLE credit_transactions DISABLE TRIGGER credit_transaction_append_only;
UPDATE credit_transactions SET kind = 'adjust', reverses_seq = NULL WHERE kind = 'reverse' AND source = 'payment';
ALTER TABLE credit_transactions ENABLE TRIGGER credit_transaction_append_only;
DROP INDEX credit_transaction_reversed_once;
CREATE UNIQUE INDEX credit_transaction_reversed_once ON credit_transactions (account_id, reverses_seq)
    WHERE reverses_seq IS NOT NULL;
ALTER TABLE events DISABLE TRIGGER event_append_only;
DELETE FROM events WHERE kind IN ('payment.unapplied', 'payment.refunded', 'payment.refund_failed');
ALTER TABLE events ENABLE TRIGGER event_append_only;
ALTER TABLE events DROP CONSTRAINT event_kind_known, ADD CONSTRAINT event_kind_known CHECK (kind IN (
    'subscription.started', 'subscription.activated', 'subscription.renewed', 'subscription.past_due',
    'subscription.plan_changed', 'subscription.cancellation_scheduled', 'subscription.ended',
    'payment.succeeded', 'payment.failed',
    'bank_transfer.submitted', 'bank_transfer.approved', 'bank_transfer.rejected',
    'credits.low', 'credits.exhausted'
));
DROP TABLE refunds;
DROP INDEX invoice_open_by_amount;
DELETE FROM payments WHERE unapplied_reason IS NOT NULL OR external_payment_id IS NULL;
UPDATE payments SET operation_id = id WHERE bank_entry_id IS NOT NULL;  -- one import brought many
DROP INDEX payment_one_per_operation, payment_attempted_once, payment_of_bank_entry, payment_unapplied;
ALTER TABLE payments DROP CONSTRAINT payment_of_known_bank_entry;
DROP INDEX audit_by_action, audit_by_actor, audit_of_subject;
DROP TABLE bank_entries, bank_statements, provider_events, checkouts, provider_customers;
ALTER TABLE accounts DROP COLUMN saved_payment_method;
ALTER TABLE sandbox_payments DROP COLUMN saves_card;
DROP INDEX invoice_paid_once;
CREATE UNIQUE INDEX invoice_paid_once ON payments (invoice_id) WHERE status = 'succeeded';
ALTER TABLE payments
    DROP CONSTRAINT payment_success_is_complete,
    DROP CONSTRAINT payment_applied_names_its_invoice,
    DROP CONSTRAINT payment_unapplied_was_received,
    DROP CONSTRAINT payment_attempt_names_what_is_charged,
    DROP CONSTRAINT payment_refunded_within_amount,
    DROP CONSTRAINT payment_applied_has_instant,
    DROP COLUMN applied_at, DROP COLUMN override_reason,
    DROP COLUMN attempt, DROP COLUMN customer_ref, DROP COLUMN payment_method_ref, DROP COLUMN decline_code, DROP COLUMN unapplied_reason, DROP COLUMN bank_entry_id,
    DROP COLUMN refunded_minor,
    ALTER COLUMN account_id SET NOT NULL,
    ALTER COLUMN invoice_id SET NOT NULL,
    ALTER COLUMN external_payment_id SET NOT NULL,
    ADD CONSTRAINT payment_one_per_operation UNIQUE (operation_id),
    ADD CONSTRAINT payment_success_is_complete CHECK (
        status <> 'succeeded'
        OR (amount_minor IS NOT NULL AND amount_minor > 0 AND currency IS NOT NULL AND confirmed_at IS NOT NULL)
    );
"""


def upgrade() -> None:
    for statements in (PAYMENTS, STATEMENTS, REFUNDS, GRANTS):
        op.get_bind().exec_driver_sql(statements)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
