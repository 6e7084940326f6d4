"""The tables. Each constraint is named after the rule it holds; the engine's errors cite those names."""

from typing import Final

from alembic import op

revision: Final = "0001"
down_revision: Final = None

SYSTEM_ACCOUNT: Final = "00000000-0000-7000-8000-000000000000"

PLANS_AND_ACCOUNTS: Final = f"""
CREATE TABLE plans (
    id                  uuid PRIMARY KEY,
    slug                text NOT NULL CONSTRAINT plan_slug_unique UNIQUE,
    name                text NOT NULL,
    price_minor         bigint NOT NULL,
    currency            text NOT NULL,
    interval            text NOT NULL,
    interval_count      integer NOT NULL,
    trial_days          integer NOT NULL,
    credits_per_month   bigint NOT NULL,
    credit_rollover     text NOT NULL,
    credit_rollover_cap bigint,
    trial_end           text NOT NULL,
    grace_days          integer NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT plan_slug_named_once_with_id UNIQUE (id, slug),
    CONSTRAINT plan_slug_is_a_slug CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND length(slug) <= 64),
    CONSTRAINT plan_price_not_negative CHECK (price_minor BETWEEN 0 AND 100000000000),
    CONSTRAINT plan_currency_is_iso_4217 CHECK (currency ~ '^[A-Z]{{3}}$'),
    CONSTRAINT plan_interval_known CHECK (interval IN ('day', 'week', 'month', 'year')),
    CONSTRAINT plan_interval_count_positive CHECK (interval_count BETWEEN 1 AND 366),
    CONSTRAINT plan_trial_days_bounded CHECK (trial_days BETWEEN 0 AND 365),
    CONSTRAINT plan_trial_costs_nothing CHECK (trial_days = 0 OR price_minor = 0),
    CONSTRAINT plan_credits_not_negative CHECK (credits_per_month BETWEEN 0 AND 1000000000000),
    CONSTRAINT plan_rollover_known CHECK (credit_rollover IN ('none', 'all', 'cap')),
    CONSTRAINT plan_rollover_cap_goes_with_cap CHECK ((credit_rollover = 'cap') = (credit_rollover_cap IS NOT NULL)),
    CONSTRAINT plan_rollover_cap_positive CHECK (credit_rollover_cap > 0),
    CONSTRAINT plan_trial_end_known CHECK (trial_end IN ('suspend', 'downgrade')),
    CONSTRAINT plan_grace_within_a_month CHECK (grace_days BETWEEN 0 AND 28)
);

-- Who may hand out a plan. Subscriptions and invoices reference it, so a plan cannot be taken any other way.
CREATE TABLE plan_assigners (
    plan_id     uuid NOT NULL,
    plan_slug   text NOT NULL,
    assigned_by text NOT NULL,
    PRIMARY KEY (plan_id, assigned_by),
    CONSTRAINT plan_assigner_of_plan FOREIGN KEY (plan_id, plan_slug) REFERENCES plans (id, slug) ON UPDATE CASCADE,
    CONSTRAINT plan_assigner_known CHECK (assigned_by IN ('signup', 'checkout', 'admin')),
    CONSTRAINT enterprise_by_admin_only CHECK (plan_slug <> 'enterprise' OR assigned_by = 'admin'),
    CONSTRAINT signup_gets_trial_or_free_only CHECK (assigned_by <> 'signup' OR plan_slug IN ('free-trial', 'free'))
);

-- A clock that stands still until it is advanced; sandbox only.
CREATE TABLE test_clocks (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    now_at     timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE accounts (
    id                  uuid PRIMARY KEY,
    kind                text NOT NULL DEFAULT 'customer',
    name                text NOT NULL,
    time_zone           text NOT NULL,
    status              text NOT NULL,
    status_reason       text,
    test_clock_id       uuid REFERENCES test_clocks (id),
    payment_method      text,
    external_payment_id text,
    balance_credits     bigint NOT NULL DEFAULT 0,
    held_credits        bigint NOT NULL DEFAULT 0,
    ledger_seq          bigint NOT NULL DEFAULT 0,
    acted_at            timestamptz NOT NULL DEFAULT now(),
    access_ends_at      timestamptz,
    next_transition     text,
    next_transition_at  timestamptz,
    parked_at           timestamptz,
    parked_reason       text,
    created_at          timestamptz NOT NULL DEFAULT now(),
    deleted_at          timestamptz,
    CONSTRAINT account_kind_known CHECK (kind IN ('customer', 'system')),
    CONSTRAINT account_system_has_fixed_id CHECK ((kind = 'system') = (id = '{SYSTEM_ACCOUNT}')),
    CONSTRAINT account_system_is_inert CHECK (
        kind = 'customer' OR (balance_credits = 0 AND next_transition_at IS NULL AND deleted_at IS NULL)
    ),
    CONSTRAINT account_status_known CHECK (status IN ('trial', 'active', 'past_due', 'suspended', 'cancelled')),
    CONSTRAINT account_payment_method_known CHECK (
        payment_method IN ('stripe', 'bank_transfer', 'manual', 'sandbox')
    ),
    CONSTRAINT credit_balance_not_negative CHECK (balance_credits >= 0),
    CONSTRAINT credit_held_within_balance CHECK (held_credits BETWEEN 0 AND balance_credits),
    CONSTRAINT account_next_transition_known CHECK (
        next_transition IN ('trial_end', 'cancellation', 'renewal', 'grace_end', 'grant_expiry', 'credit_month')
    ),
    CONSTRAINT account_next_transition_complete CHECK ((next_transition IS NULL) = (next_transition_at IS NULL)),
    CONSTRAINT account_parked_with_reason CHECK ((parked_at IS NULL) = (parked_reason IS NULL))
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX account_only_one_system ON accounts (kind) WHERE kind = 'system';

-- One probe tells a beat job whether anything is due. Accounts on a test clock, parked and deleted ones are not in it.
CREATE INDEX account_transition_due ON accounts (next_transition, next_transition_at, id)
    WHERE next_transition_at IS NOT NULL AND test_clock_id IS NULL AND parked_at IS NULL AND deleted_at IS NULL;
CREATE INDEX account_on_test_clock ON accounts (test_clock_id) WHERE test_clock_id IS NOT NULL;
CREATE INDEX account_parked ON accounts (parked_at) WHERE parked_at IS NOT NULL;

INSERT INTO accounts (id, kind, name, time_zone, status)
VALUES ('{SYSTEM_ACCOUNT}', 'system', 'System', 'UTC', 'active');

CREATE TABLE users (
    id            uuid PRIMARY KEY,
    account_id    uuid NOT NULL REFERENCES accounts (id),
    email         text NOT NULL,
    password_hash text NOT NULL,
    role          text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    deleted_at    timestamptz,
    CONSTRAINT user_not_of_system_account CHECK (account_id <> '{SYSTEM_ACCOUNT}'),
    CONSTRAINT user_role_known CHECK (role IN ('owner', 'admin', 'editor', 'viewer', 'developer')),
    CONSTRAINT user_email_normalised CHECK (email = lower(email) AND length(email) <= 254)
);
CREATE UNIQUE INDEX user_email_unique ON users (email) WHERE deleted_at IS NULL;
CREATE INDEX user_of_account ON users (account_id);

-- Platform admins are not users: another table, another login, another audience.
CREATE TABLE admins (
    id            uuid PRIMARY KEY,
    email         text NOT NULL CONSTRAINT admin_email_unique UNIQUE,
    password_hash text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    disabled_at   timestamptz,
    CONSTRAINT admin_email_normalised CHECK (email = lower(email) AND length(email) <= 254)
);

CREATE TABLE sessions (
    id             uuid PRIMARY KEY,
    audience       text NOT NULL,
    user_id        uuid REFERENCES users (id),
    admin_id       uuid REFERENCES admins (id),
    created_at     timestamptz NOT NULL,
    expires_at     timestamptz NOT NULL,
    revoked_at     timestamptz,
    revoked_reason text,
    CONSTRAINT session_audience_fits_principal CHECK (
        (audience = 'customer' AND user_id IS NOT NULL AND admin_id IS NULL)
        OR (audience = 'admin' AND admin_id IS NOT NULL AND user_id IS NULL)
    ),
    CONSTRAINT session_revoked_with_reason CHECK ((revoked_at IS NULL) = (revoked_reason IS NULL))
);
CREATE INDEX session_of_user ON sessions (user_id) WHERE user_id IS NOT NULL;

-- A refresh token is used once; a second use revokes its session.
CREATE TABLE refresh_tokens (
    id         uuid PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES sessions (id),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX refresh_token_of_session ON refresh_tokens (session_id);

CREATE TABLE sites (
    id         uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts (id),
    name       text NOT NULL,
    domain     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT site_not_of_system_account CHECK (account_id <> '{SYSTEM_ACCOUNT}'),
    CONSTRAINT site_of_account UNIQUE (id, account_id)
);
CREATE UNIQUE INDEX site_domain_unique_in_account ON sites (account_id, domain) WHERE deleted_at IS NULL;

CREATE TABLE api_keys (
    id           uuid PRIMARY KEY,
    account_id   uuid NOT NULL REFERENCES accounts (id),
    site_id      uuid,
    name         text NOT NULL,
    prefix       text NOT NULL,
    key_hash     bytea NOT NULL CONSTRAINT api_key_hash_unique UNIQUE,
    scopes       text[] NOT NULL,
    created_by   uuid NOT NULL REFERENCES users (id),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    last_used_at timestamptz,
    revoked_at   timestamptz,
    CONSTRAINT api_key_site_of_same_account FOREIGN KEY (site_id, account_id) REFERENCES sites (id, account_id),
    CONSTRAINT api_key_scopes_known CHECK (
        scopes <@ ARRAY['credits:consume', 'credits:read', 'billing:read'] AND cardinality(scopes) > 0
    )
);
CREATE INDEX api_key_of_account ON api_keys (account_id);
"""

SUBSCRIPTIONS_AND_MONEY: Final = f"""
CREATE TABLE subscriptions (
    id                       uuid PRIMARY KEY,
    account_id               uuid NOT NULL REFERENCES accounts (id),
    plan_id                  uuid NOT NULL,
    assigned_by              text NOT NULL,
    status                   text NOT NULL,
    price_minor              bigint NOT NULL,
    currency                 text NOT NULL,
    interval                 text NOT NULL,
    interval_count           integer NOT NULL,
    time_zone                text NOT NULL,
    started_at               timestamptz NOT NULL,
    phase                    integer NOT NULL,
    anchor_at                timestamptz NOT NULL,
    period_index             integer NOT NULL,
    current_period_starts_at timestamptz NOT NULL,
    current_period_ends_at   timestamptz NOT NULL,
    renews_at                timestamptz,
    credit_month_index       integer NOT NULL,
    next_credit_at           timestamptz NOT NULL,
    trial_ends_at            timestamptz,
    activated_at             timestamptz,
    grace_ends_at            timestamptz,
    grace_extended           boolean NOT NULL DEFAULT false,
    cancel_at_period_end     boolean NOT NULL DEFAULT false,
    next_plan_id             uuid,
    next_plan_assigned_by    text,
    payment_method           text,
    external_payment_id      text,
    ended_at                 timestamptz,
    end_reason               text,
    created_at               timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT subscription_not_of_system_account CHECK (account_id <> '{SYSTEM_ACCOUNT}'),
    CONSTRAINT subscription_plan_assignable
        FOREIGN KEY (plan_id, assigned_by) REFERENCES plan_assigners (plan_id, assigned_by),
    CONSTRAINT subscription_next_plan_assignable
        FOREIGN KEY (next_plan_id, next_plan_assigned_by) REFERENCES plan_assigners (plan_id, assigned_by),
    CONSTRAINT subscription_next_plan_complete CHECK ((next_plan_id IS NULL) = (next_plan_assigned_by IS NULL)),
    CONSTRAINT subscription_status_known CHECK (status IN ('trialing', 'active', 'past_due', 'ended')),
    CONSTRAINT subscription_ended_complete CHECK (
        (status = 'ended') = (ended_at IS NOT NULL) AND (ended_at IS NULL) = (end_reason IS NULL)
    ),
    CONSTRAINT subscription_end_reason_known CHECK (
        end_reason IN ('trial_expired', 'payment_overdue', 'cancelled')
    ),
    CONSTRAINT subscription_grace_goes_with_past_due CHECK ((status = 'past_due') = (grace_ends_at IS NOT NULL)),
    CONSTRAINT subscription_trial_has_an_end CHECK (status <> 'trialing' OR trial_ends_at IS NOT NULL),
    CONSTRAINT subscription_active_was_activated CHECK (status <> 'active' OR activated_at IS NOT NULL),
    CONSTRAINT subscription_payment_method_known CHECK (
        payment_method IN ('stripe', 'bank_transfer', 'manual', 'sandbox')
    ),
    CONSTRAINT subscription_period_ordered CHECK (current_period_starts_at <= current_period_ends_at),
    CONSTRAINT subscription_counts_not_negative CHECK (phase >= 0 AND period_index >= 0 AND credit_month_index >= 0)
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX subscription_one_live_per_account ON subscriptions (account_id) WHERE status <> 'ended';
CREATE INDEX subscription_of_account ON subscriptions (account_id, started_at);

-- Every period ever granted, half-open. No two of an account overlap; within a subscription there is no gap.
CREATE TABLE subscription_periods (
    subscription_id  uuid NOT NULL REFERENCES subscriptions (id),
    account_id       uuid NOT NULL REFERENCES accounts (id),
    plan_id          uuid NOT NULL REFERENCES plans (id),
    phase            integer NOT NULL,
    period_index     integer NOT NULL,
    starts_at        timestamptz NOT NULL,
    ends_at          timestamptz NOT NULL,
    previous_ends_at timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subscription_id, starts_at),
    CONSTRAINT period_has_length CHECK (starts_at < ends_at),
    CONSTRAINT period_starts_where_the_last_ended CHECK (previous_ends_at = starts_at),
    CONSTRAINT period_end_unique_in_subscription UNIQUE (subscription_id, ends_at),
    CONSTRAINT period_leaves_no_gap FOREIGN KEY (subscription_id, previous_ends_at)
        REFERENCES subscription_periods (subscription_id, ends_at),
    CONSTRAINT period_no_overlap EXCLUDE USING gist
        (account_id WITH =, tstzrange(starts_at, ends_at) WITH &&)
);
CREATE UNIQUE INDEX period_only_one_first ON subscription_periods (subscription_id) WHERE previous_ends_at IS NULL;

-- The last number given in a year; its row lock makes numbers gapless.
CREATE TABLE invoice_numbers (
    year        integer PRIMARY KEY,
    last_number integer NOT NULL CONSTRAINT invoice_number_not_negative CHECK (last_number >= 0)
);

CREATE TABLE invoices (
    id               uuid PRIMARY KEY,
    account_id       uuid NOT NULL REFERENCES accounts (id),
    subscription_id  uuid REFERENCES subscriptions (id),
    purpose          text NOT NULL,
    plan_id          uuid NOT NULL,
    assigned_by      text NOT NULL,
    status           text NOT NULL,
    number_year      integer NOT NULL,
    number           integer NOT NULL,
    reference        text NOT NULL CONSTRAINT invoice_reference_unique UNIQUE,
    amount_minor     bigint NOT NULL,
    currency         text NOT NULL,
    payment_method   text,
    period_starts_at timestamptz,
    period_ends_at   timestamptz,
    opened_at        timestamptz NOT NULL,
    due_at           timestamptz NOT NULL,
    paid_at          timestamptz,
    voided_at        timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT invoice_not_of_system_account CHECK (account_id <> '{SYSTEM_ACCOUNT}'),
    CONSTRAINT invoice_number_unique UNIQUE (number_year, number),
    CONSTRAINT invoice_number_positive CHECK (number > 0),
    CONSTRAINT invoice_plan_assignable
        FOREIGN KEY (plan_id, assigned_by) REFERENCES plan_assigners (plan_id, assigned_by),
    CONSTRAINT invoice_purpose_known CHECK (purpose IN ('activation', 'renewal')),
    CONSTRAINT invoice_status_known CHECK (status IN ('open', 'paid', 'void')),
    CONSTRAINT invoice_amount_positive CHECK (amount_minor > 0),
    CONSTRAINT invoice_paid_has_instant CHECK ((status = 'paid') = (paid_at IS NOT NULL)),
    CONSTRAINT invoice_void_has_instant CHECK ((status = 'void') = (voided_at IS NOT NULL)),
    CONSTRAINT invoice_renewal_names_its_period CHECK (
        (purpose = 'renewal') = (subscription_id IS NOT NULL)
        AND (purpose = 'renewal') = (period_starts_at IS NOT NULL)
        AND (purpose = 'renewal') = (period_ends_at IS NOT NULL)
    )
);
CREATE UNIQUE INDEX invoice_one_per_period ON invoices (subscription_id, period_starts_at)
    WHERE purpose = 'renewal' AND status <> 'void';
CREATE UNIQUE INDEX invoice_one_open_activation ON invoices (account_id)
    WHERE purpose = 'activation' AND status = 'open';
CREATE INDEX invoice_of_account ON invoices (account_id, id);

-- What was asked of a provider, and its answer. A row is an intent until `status` leaves 'pending'.
CREATE TABLE payments (
    id                  uuid PRIMARY KEY,
    account_id          uuid NOT NULL REFERENCES accounts (id),
    invoice_id          uuid NOT NULL REFERENCES invoices (id),
    operation_id        uuid NOT NULL CONSTRAINT payment_one_per_operation UNIQUE,
    provider            text NOT NULL,
    external_payment_id text NOT NULL,
    status              text NOT NULL,
    amount_minor        bigint,
    currency            text,
    problem             text,
    created_at          timestamptz NOT NULL DEFAULT now(),
    confirmed_at        timestamptz,
    CONSTRAINT payment_provider_known CHECK (provider IN ('stripe', 'bank_transfer', 'manual', 'sandbox')),
    CONSTRAINT payment_status_known CHECK (status IN ('pending', 'succeeded', 'failed')),
    CONSTRAINT payment_success_is_complete CHECK (
        status <> 'succeeded'
        OR (amount_minor IS NOT NULL AND amount_minor > 0 AND currency IS NOT NULL AND confirmed_at IS NOT NULL)
    ),
    CONSTRAINT payment_failure_has_problem CHECK ((status = 'failed') = (problem IS NOT NULL))
);
CREATE UNIQUE INDEX payment_settles_once ON payments (provider, external_payment_id) WHERE status = 'succeeded';
CREATE UNIQUE INDEX invoice_paid_once ON payments (invoice_id) WHERE status = 'succeeded';
CREATE INDEX payment_of_account ON payments (account_id, id);

CREATE TABLE bank_transfers (
    id                    uuid PRIMARY KEY,
    account_id            uuid NOT NULL REFERENCES accounts (id),
    invoice_id            uuid NOT NULL REFERENCES invoices (id),
    status                text NOT NULL,
    payer_name            text,
    transferred_on        date,
    note                  text,
    submitted_by          uuid NOT NULL REFERENCES users (id),
    submitted_at          timestamptz NOT NULL,
    decided_by            uuid REFERENCES admins (id),
    decided_at            timestamptz,
    received_amount_minor bigint,
    received_currency     text,
    value_on              date,
    bank_transaction_id   text,
    override_reason       text,
    rejection_reason      text,
    payment_id            uuid REFERENCES payments (id),
    created_at            timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT bank_transfer_status_known CHECK (status IN ('pending', 'approved', 'rejected')),
    CONSTRAINT bank_transfer_decided_by_an_admin CHECK (
        (status = 'pending') = (decided_by IS NULL) AND (decided_by IS NULL) = (decided_at IS NULL)
    ),
    CONSTRAINT bank_transfer_approval_is_complete CHECK (
        (status = 'approved') = (payment_id IS NOT NULL)
        AND (status <> 'approved' OR (
            received_amount_minor IS NOT NULL AND received_amount_minor > 0 AND received_currency IS NOT NULL
            AND value_on IS NOT NULL AND bank_transaction_id IS NOT NULL
        ))
    ),
    CONSTRAINT bank_transfer_rejection_has_reason CHECK ((status = 'rejected') = (rejection_reason IS NOT NULL))
);
CREATE UNIQUE INDEX bank_transfer_one_pending_per_invoice ON bank_transfers (invoice_id) WHERE status = 'pending';
CREATE UNIQUE INDEX bank_transfer_one_approved_per_invoice ON bank_transfers (invoice_id) WHERE status = 'approved';
CREATE INDEX bank_transfer_by_status ON bank_transfers (status, id);
CREATE INDEX bank_transfer_of_account ON bank_transfers (account_id, id);

-- The ledger of the pretend card provider; sandbox only.
CREATE TABLE sandbox_payments (
    external_payment_id text PRIMARY KEY,
    account_id          uuid NOT NULL REFERENCES accounts (id),
    invoice_id          uuid NOT NULL REFERENCES invoices (id),
    succeeded           boolean NOT NULL,
    amount_minor        bigint NOT NULL,
    currency            text NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now()
);
"""

CREDITS: Final = f"""
CREATE TABLE credit_grants (
    id                 uuid PRIMARY KEY,
    account_id         uuid NOT NULL REFERENCES accounts (id),
    source             text NOT NULL,
    amount             bigint NOT NULL,
    remaining          bigint NOT NULL,
    held               bigint NOT NULL DEFAULT 0,
    priority           smallint NOT NULL,
    effective_at       timestamptz NOT NULL,
    expires_at         timestamptz,
    subscription_id    uuid REFERENCES subscriptions (id),
    phase              integer,
    credit_month_index integer,
    created_at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT credit_grant_not_of_system_account CHECK (account_id <> '{SYSTEM_ACCOUNT}'),
    CONSTRAINT credit_grant_source_known CHECK (source IN ('seed', 'purchase', 'adjust')),
    CONSTRAINT credit_grant_amount_positive CHECK (amount > 0),
    CONSTRAINT credit_grant_remaining_within_amount CHECK (remaining BETWEEN 0 AND amount),
    CONSTRAINT credit_grant_held_within_remaining CHECK (held BETWEEN 0 AND remaining),
    CONSTRAINT credit_grant_expires_after_it_begins CHECK (expires_at > effective_at),
    CONSTRAINT credit_seed_names_its_month CHECK (
        (source = 'seed') = (subscription_id IS NOT NULL)
        AND (source = 'seed') = (phase IS NOT NULL)
        AND (source = 'seed') = (credit_month_index IS NOT NULL)
    ),
    CONSTRAINT credit_seed_once_per_credit_month UNIQUE (subscription_id, phase, credit_month_index)
) WITH (fillfactor = 80);
CREATE INDEX credit_grant_spendable ON credit_grants (account_id, priority, expires_at, effective_at, id)
    WHERE remaining > 0;

-- The ledger: append-only, numbered per account without a gap.
CREATE TABLE credit_transactions (
    account_id      uuid NOT NULL REFERENCES accounts (id),
    seq             bigint NOT NULL,
    grant_id        uuid NOT NULL REFERENCES credit_grants (id),
    kind            text NOT NULL,
    amount          bigint NOT NULL,
    balance_after   bigint NOT NULL,
    idempotency_key text NOT NULL,
    line            integer NOT NULL,
    effective_at    timestamptz NOT NULL,
    source          text NOT NULL,
    source_id       uuid NOT NULL,
    reason          text,
    reverses_seq    bigint,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, seq),
    CONSTRAINT credit_transaction_posted_once UNIQUE (account_id, idempotency_key, line),
    CONSTRAINT credit_transaction_numbered_from_one CHECK (seq > 0),
    CONSTRAINT credit_transaction_balance_not_negative CHECK (balance_after >= 0),
    CONSTRAINT credit_transaction_sign_fits_kind CHECK (
        CASE kind
            WHEN 'seed' THEN amount > 0
            WHEN 'purchase' THEN amount > 0
            WHEN 'consume' THEN amount < 0
            WHEN 'expire' THEN amount < 0
            WHEN 'adjust' THEN amount <> 0
            WHEN 'reverse' THEN amount <> 0
            ELSE false
        END
    ),
    CONSTRAINT credit_transaction_source_known CHECK (
        source IN ('subscription', 'payment', 'operation', 'admin', 'user', 'api_key', 'hold', 'grant')
    ),
    CONSTRAINT credit_transaction_reversal_names_its_row CHECK ((kind = 'reverse') = (reverses_seq IS NOT NULL)),
    CONSTRAINT credit_transaction_reverses_own_row
        FOREIGN KEY (account_id, reverses_seq) REFERENCES credit_transactions (account_id, seq),
    CONSTRAINT credit_transaction_reversed_once UNIQUE (account_id, reverses_seq)
);

CREATE TABLE holds (
    id              uuid PRIMARY KEY,
    account_id      uuid NOT NULL REFERENCES accounts (id),
    status          text NOT NULL,
    amount          bigint NOT NULL,
    captured_amount bigint NOT NULL DEFAULT 0,
    idempotency_key text NOT NULL,
    held_at         timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    resolved_at     timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT hold_placed_once UNIQUE (account_id, idempotency_key),
    CONSTRAINT hold_status_known CHECK (status IN ('open', 'captured', 'released', 'expired')),
    CONSTRAINT hold_amount_positive CHECK (amount > 0),
    CONSTRAINT hold_capture_within_amount CHECK (captured_amount BETWEEN 0 AND amount),
    CONSTRAINT hold_capture_goes_with_status CHECK ((status = 'captured') = (captured_amount > 0)),
    CONSTRAINT hold_resolved_has_instant CHECK ((status = 'open') = (resolved_at IS NULL))
);
CREATE INDEX hold_open_of_account ON holds (account_id, expires_at) WHERE status = 'open';
CREATE INDEX hold_open_by_expiry ON holds (expires_at) WHERE status = 'open';

-- Which grants a hold reserves from.
CREATE TABLE hold_allocations (
    hold_id  uuid NOT NULL REFERENCES holds (id),
    grant_id uuid NOT NULL REFERENCES credit_grants (id),
    amount   bigint NOT NULL CONSTRAINT hold_allocation_positive CHECK (amount > 0),
    PRIMARY KEY (hold_id, grant_id)
);
"""

OPERATIONS: Final = """
CREATE TABLE operations (
    id                uuid PRIMARY KEY,
    kind              text NOT NULL,
    status            text NOT NULL,
    payload           jsonb NOT NULL,
    payload_version   integer NOT NULL,
    account_id        uuid REFERENCES accounts (id),
    principal_kind    text NOT NULL,
    principal_id      uuid,
    idempotency_scope text,
    idempotency_key   text,
    request_hash      bytea NOT NULL,
    attempts          integer NOT NULL DEFAULT 0,
    next_send_at      timestamptz,
    sends             integer NOT NULL DEFAULT 0,
    result            jsonb,
    problem           jsonb,
    last_error        text,
    created_at        timestamptz NOT NULL,
    finished_at       timestamptz,
    CONSTRAINT operation_status_known CHECK (status IN ('pending', 'succeeded', 'failed', 'dead')),
    CONSTRAINT operation_principal_known CHECK (
        principal_kind IN ('anonymous', 'user', 'api_key', 'admin', 'system')
    ),
    CONSTRAINT operation_named_principal CHECK ((principal_kind IN ('anonymous', 'system')) = (principal_id IS NULL)),
    CONSTRAINT operation_idempotency_complete CHECK ((idempotency_scope IS NULL) = (idempotency_key IS NULL)),
    CONSTRAINT operation_pending_is_sent_again CHECK ((status = 'pending') = (next_send_at IS NOT NULL)),
    CONSTRAINT operation_finished_has_instant CHECK ((status IN ('succeeded', 'failed')) = (finished_at IS NOT NULL)),
    CONSTRAINT operation_success_has_result CHECK ((status = 'succeeded') = (result IS NOT NULL)),
    CONSTRAINT operation_failure_has_problem CHECK ((status IN ('failed', 'dead')) = (problem IS NOT NULL))
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX operation_accepted_once ON operations (idempotency_scope, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX operation_to_send ON operations (next_send_at) WHERE status = 'pending';
CREATE INDEX operation_of_account ON operations (account_id, id);
CREATE INDEX operation_pending_of_account ON operations (account_id) WHERE status = 'pending';
CREATE INDEX operation_dead ON operations (id) WHERE status = 'dead';

CREATE TABLE audit_log (
    id           uuid PRIMARY KEY,
    at           timestamptz NOT NULL,
    actor_kind   text NOT NULL,
    actor_id     uuid,
    action       text NOT NULL,
    account_id   uuid REFERENCES accounts (id),
    subject_kind text NOT NULL,
    subject_id   uuid,
    reason       text,
    before       jsonb,
    after        jsonb,
    operation_id uuid,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT audit_actor_known CHECK (actor_kind IN ('anonymous', 'user', 'api_key', 'admin', 'system'))
);
CREATE INDEX audit_of_account ON audit_log (account_id, id);

-- When each beat job last ran, so that silence can be seen.
CREATE TABLE job_runs (
    job           text PRIMARY KEY,
    started_at    timestamptz NOT NULL,
    finished_at   timestamptz NOT NULL,
    duration_ms   integer NOT NULL,
    items         integer NOT NULL
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%% of %% is refused: rows are only ever appended', lower(TG_OP), TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = TG_ARGV[0];
END
$$;

CREATE TRIGGER credit_transaction_append_only BEFORE UPDATE OR DELETE ON credit_transactions
    FOR EACH ROW EXECUTE FUNCTION refuse_change('credit_transaction_append_only');
CREATE TRIGGER credit_transaction_never_truncated BEFORE TRUNCATE ON credit_transactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('credit_transaction_append_only');
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION refuse_change('audit_append_only');
CREATE TRIGGER audit_never_truncated BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('audit_append_only');
CREATE TRIGGER account_never_removed BEFORE DELETE ON accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_change('account_never_removed');
CREATE TRIGGER site_never_removed BEFORE DELETE ON sites
    FOR EACH ROW EXECUTE FUNCTION refuse_change('site_never_removed');
"""

DROP_ALL: Final = """
DROP TABLE job_runs, audit_log, operations, hold_allocations, holds, credit_transactions, credit_grants,
    sandbox_payments, bank_transfers, payments, invoices, invoice_numbers, subscription_periods, subscriptions,
    api_keys, sites, refresh_tokens, sessions, admins, users, accounts, test_clocks, plan_assigners, plans;
DROP FUNCTION refuse_change();
"""


def upgrade() -> None:
    # The extension stays after a downgrade: others may use it.
    op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
    for statements in (PLANS_AND_ACCOUNTS, SUBSCRIPTIONS_AND_MONEY, CREDITS, OPERATIONS):
        op.get_bind().exec_driver_sql(statements)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DROP_ALL)
