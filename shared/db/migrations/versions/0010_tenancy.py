"""Tenancy a second time: the API's role sees the rows of whoever a transaction has let in, and writes little.

A transaction is let in by a credential: a function looks it up and puts whom it belongs to into a setting, with a digest
that only the owner's functions can make, and that is good for this transaction alone. Policies compare with it. ADR 0024 says
why. Functions that spend take a credential in the place of an account, under the names of those that they guard.
"""

from typing import Final

from alembic import op

revision: Final = "0010"
down_revision: Final = "0009"

ROLE: Final = """
DO $$
DECLARE
    v_become text := CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END;
BEGIN
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'prepaid_due') THEN
            CREATE ROLE prepaid_due NOLOGIN;
        END IF;
        IF NOT pg_has_role(current_user, 'prepaid_due', v_become) THEN
            EXECUTE format('GRANT prepaid_due TO %%I', current_user);
        END IF;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN
            NULL;  -- another database of this server is migrated at the same moment
        WHEN insufficient_privilege THEN
            RAISE insufficient_privilege USING MESSAGE = format(
                '%%1$I may not make or become the role prepaid_due; once, as a superuser: '
                'CREATE ROLE prepaid_due NOLOGIN; GRANT prepaid_due TO %%1$I;', current_user);
    END;
    -- Workers see every row anyway, by their policies. COPY is faster than INSERT and knows no policies, so whoever may
    -- lift them off workers altogether does.
    BEGIN
        IF NOT (SELECT rolbypassrls FROM pg_roles WHERE rolname = 'prepaid_worker') THEN
            ALTER ROLE prepaid_worker BYPASSRLS;
        END IF;
    EXCEPTION
        WHEN insufficient_privilege THEN
            NULL;
        WHEN internal_error THEN
            NULL;  -- "tuple concurrently updated": another database of this server is migrated at the same moment
    END;
END
$$;
GRANT USAGE ON SCHEMA public TO prepaid_due;
-- A temporary table would stand before one of ours, for whoever has the connection next.
DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %%I FROM PUBLIC', current_database()); END $$;
"""

ADMISSION: Final = """
-- What admissions are signed with. Nobody but the owner reads it.
CREATE TABLE admission_secret (id integer PRIMARY KEY DEFAULT 1, secret bytea NOT NULL);
INSERT INTO admission_secret (secret)
SELECT sha256(convert_to(string_agg(gen_random_uuid()::text, ''), 'UTF8')) FROM generate_series(1, 4);

-- Lets this transaction in: to an 'account', to what an 'admin' sees, or to one 'operation' that nobody signed in for.
-- The digest is good for this transaction alone: its backend and its first instant are in it. For the functions below.
CREATE FUNCTION admit(p_kind text, p_id uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('prepaid.admitted', concat_ws(' ', p_kind, p_id, encode(sha256(s.secret || convert_to(
        concat_ws(' ', p_kind, p_id, pg_backend_pid(), extract(epoch FROM now())), 'UTF8')), 'hex')), true)
    FROM admission_secret s;
END
$$;

-- Whom this transaction was let in as, if as one of this kind. A setting that `admit` has not made counts for nothing.
-- Policies ask for it in every query, so it sets no search path, and names everything in full instead.
CREATE FUNCTION admitted(p_kind text) RETURNS uuid
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER AS $$
DECLARE
    v_admitted pg_catalog.text[] :=
        pg_catalog.string_to_array(pg_catalog.current_setting('prepaid.admitted', true), ' ');
    v_digest pg_catalog.text;
BEGIN
    IF v_admitted[1] OPERATOR(pg_catalog.=) p_kind THEN
        SELECT pg_catalog.encode(pg_catalog.sha256(s.secret OPERATOR(pg_catalog.||) pg_catalog.convert_to(
            pg_catalog.concat_ws(' ', p_kind, v_admitted[2]::pg_catalog.uuid, pg_catalog.pg_backend_pid(),
                                 pg_catalog."extract"('epoch', pg_catalog.now())), 'UTF8')), 'hex')
        INTO v_digest FROM public.admission_secret s;
        IF v_admitted[3] OPERATOR(pg_catalog.=) v_digest THEN
            RETURN v_admitted[2];
        END IF;
    END IF;
    RETURN NULL;
END
$$;
"""

# `account_now` is not asked in these: a function whose plan is made under policies for one role and without them for
# another is planned anew whenever the two take turns.
CREDENTIALS: Final = """
-- The user behind a live session with what the gate asks of the account.
CREATE FUNCTION admit_user(
    p_session_id uuid, p_user_id uuid, p_now timestamptz,
    OUT id uuid, OUT role text, OUT account_id uuid, OUT status text, OUT access_ends_at timestamptz,
    OUT account_at timestamptz, OUT requests_per_minute integer
) RETURNS SETOF record ROWS 1 LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    SELECT u.id, u.role, u.account_id, a.status, a.access_ends_at, coalesce(c.now_at, p_now), p.requests_per_minute
    INTO id, role, account_id, status, access_ends_at, account_at, requests_per_minute
    FROM sessions s
    JOIN users u ON u.id = s.user_id AND u.deleted_at IS NULL
    JOIN accounts a ON a.id = u.account_id AND a.deleted_at IS NULL AND a.kind = 'customer'
    LEFT JOIN test_clocks c ON c.id = a.test_clock_id
    LEFT JOIN subscriptions n ON n.account_id = a.id AND n.status <> 'ended'
    LEFT JOIN plans p ON p.id = n.plan_id
    WHERE s.id = p_session_id AND s.user_id = p_user_id AND s.audience = 'customer'
      AND s.revoked_at IS NULL AND s.expires_at > p_now;
    IF FOUND THEN
        PERFORM admit('account', account_id);
        RETURN NEXT;
    END IF;
END
$$;

-- The API key of this hash, if it opens something, with what the gate asks of its account.
CREATE FUNCTION admit_api_key(
    p_key_hash bytea, p_now timestamptz,
    OUT id uuid, OUT account_id uuid, OUT scopes text[], OUT last_used_at timestamptz, OUT status text,
    OUT access_ends_at timestamptz, OUT account_at timestamptz, OUT requests_per_minute integer
) RETURNS SETOF record ROWS 1 LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    SELECT k.id, k.account_id, k.scopes, k.last_used_at, a.status, a.access_ends_at, coalesce(c.now_at, p_now),
           p.requests_per_minute
    INTO id, account_id, scopes, last_used_at, status, access_ends_at, account_at, requests_per_minute
    FROM api_keys k
    JOIN accounts a ON a.id = k.account_id AND a.deleted_at IS NULL AND a.kind = 'customer'
    LEFT JOIN sites s ON s.id = k.site_id
    LEFT JOIN test_clocks c ON c.id = a.test_clock_id
    LEFT JOIN subscriptions n ON n.account_id = a.id AND n.status <> 'ended'
    LEFT JOIN plans p ON p.id = n.plan_id
    WHERE k.key_hash = p_key_hash AND k.revoked_at IS NULL AND s.deleted_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > p_now);
    IF FOUND THEN
        PERFORM admit('account', account_id);
        RETURN NEXT;
    END IF;
END
$$;

-- The admin behind a live session.
CREATE FUNCTION admit_admin(p_session_id uuid, p_admin_id uuid, p_now timestamptz, OUT id uuid) RETURNS SETOF uuid ROWS 1
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    SELECT d.id INTO id FROM sessions s JOIN admins d ON d.id = s.admin_id AND d.disabled_at IS NULL
    WHERE s.id = p_session_id AND s.admin_id = p_admin_id AND s.audience = 'admin'
      AND s.revoked_at IS NULL AND s.expires_at > p_now;
    IF FOUND THEN
        PERFORM admit('admin', id);
        RETURN NEXT;
    END IF;
END
$$;

-- An invitation that can be accepted now.
CREATE FUNCTION admit_invitation(p_id uuid, p_now timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_account_id uuid;
BEGIN
    SELECT i.account_id INTO v_account_id FROM invitations i JOIN accounts a ON a.id = i.account_id AND a.deleted_at IS NULL
    WHERE i.id = p_id AND i.accepted_at IS NULL AND i.revoked_at IS NULL AND i.expires_at > p_now;
    IF FOUND THEN
        PERFORM admit('account', v_account_id);
    END IF;
    RETURN FOUND;
END
$$;

-- An operation that nobody signed in for, by its id.
CREATE FUNCTION admit_operation(p_id uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$ SELECT admit('operation', p_id) $$;

-- The same by the key under which it was accepted.
CREATE FUNCTION admit_operation_of_key(p_scope text, p_key text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT admit('operation', id) FROM operations
    WHERE idempotency_scope = p_scope AND idempotency_key = p_key AND principal_kind = 'anonymous'
$$;

-- The account of an invoice, for news of a provider that names both.
CREATE FUNCTION admit_payer(p_account_id uuid, p_invoice_id uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT admit('account', account_id) FROM invoices WHERE id = p_invoice_id AND account_id = p_account_id
$$;

-- The account of a payment that a provider names.
CREATE FUNCTION admit_payer_of(p_provider text, p_external_payment_id text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT admit('account', account_id) FROM (
        SELECT account_id FROM payments WHERE provider = p_provider AND external_payment_id = p_external_payment_id
        UNION ALL
        SELECT account_id FROM checkouts WHERE provider = p_provider AND external_payment_id = p_external_payment_id
    ) AS known WHERE account_id IS NOT NULL LIMIT 1
$$;
"""

SIGNING_IN: Final = """
-- Who signs in with this address, with the hash of the password: the only way to one.
CREATE FUNCTION sign_in_by_email(p_audience text, p_email text, OUT id uuid, OUT password_hash text)
RETURNS SETOF record ROWS 1 LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT u.id, u.password_hash FROM users u
    JOIN accounts a ON a.id = u.account_id AND a.deleted_at IS NULL AND a.kind = 'customer'
    WHERE p_audience = 'customer' AND u.email = p_email AND u.deleted_at IS NULL
    UNION ALL
    SELECT d.id, d.password_hash FROM admins d
    WHERE p_audience = 'admin' AND d.email = p_email AND d.disabled_at IS NULL
$$;

-- The same password under another hash, unless it was changed in the meantime.
CREATE FUNCTION rehash_password(p_audience text, p_id uuid, p_old_hash text, p_new_hash text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE users SET password_hash = p_new_hash
    WHERE p_audience = 'customer' AND id = p_id AND password_hash = p_old_hash;
    UPDATE admins SET password_hash = p_new_hash
    WHERE p_audience = 'admin' AND id = p_id AND password_hash = p_old_hash;
$$;

-- Somebody signed in, and is let in with that.
CREATE FUNCTION open_session(
    p_session_id uuid, p_audience text, p_principal_id uuid, p_now timestamptz, p_expires_at timestamptz
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO sessions (id, audience, user_id, admin_id, created_at, expires_at)
    VALUES (p_session_id, p_audience, CASE WHEN p_audience = 'customer' THEN p_principal_id END,
            CASE WHEN p_audience = 'admin' THEN p_principal_id END, p_now, p_expires_at);
    PERFORM admit_user(p_session_id, p_principal_id, p_now);
    PERFORM admit_admin(p_session_id, p_principal_id, p_now);
END
$$;

-- Uses a refresh token up. The session's lock makes two uses of one token take turns, so the second is seen to be one.
CREATE FUNCTION use_refresh_token(
    p_id uuid, p_session_id uuid, p_now timestamptz, OUT outcome text, OUT session_expires_at timestamptz
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_token record;
BEGIN
    PERFORM FROM sessions WHERE id = p_session_id FOR UPDATE;
    SELECT r.used_at, r.expires_at, s.revoked_at, s.expires_at AS session_expires_at INTO v_token
    FROM refresh_tokens r JOIN sessions s ON s.id = r.session_id WHERE r.id = p_id AND r.session_id = p_session_id;
    IF NOT FOUND OR v_token.revoked_at IS NOT NULL
        OR least(v_token.expires_at, v_token.session_expires_at) <= p_now THEN
        outcome := 'invalid';
    ELSIF v_token.used_at IS NOT NULL THEN
        outcome := 'reused';
    ELSE
        UPDATE refresh_tokens SET used_at = p_now WHERE id = p_id;
        outcome := 'rotated';
        session_expires_at := v_token.session_expires_at;
    END IF;
END
$$;

-- Ends the session of a token that was misused, and says so in the audit log; again, it does nothing.
CREATE FUNCTION end_misused_session(
    p_session_id uuid, p_principal_id uuid, p_reason text, p_now timestamptz, p_audit_id uuid, p_request jsonb
) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH ended AS (
        UPDATE sessions SET revoked_at = p_now, revoked_reason = p_reason
        WHERE id = p_session_id AND p_principal_id IN (user_id, admin_id) AND revoked_at IS NULL
        RETURNING id, user_id, admin_id
    )
    INSERT INTO audit_log (id, at, actor_kind, actor_id, action, account_id, subject_kind, subject_id, reason, after)
    SELECT p_audit_id, p_now, CASE WHEN ended.admin_id IS NULL THEN 'user' ELSE 'admin' END, p_principal_id,
           'session.revoked', u.account_id, 'session', ended.id, p_reason, p_request
    FROM ended LEFT JOIN users u ON u.id = ended.user_id
$$;

-- A signup that can be confirmed now, with the hash that the password is held against.
CREATE FUNCTION signup_to_confirm(p_id uuid, p_now timestamptz) RETURNS SETOF signups ROWS 1
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT * FROM signups WHERE id = p_id AND expires_at > p_now
$$;
"""

MEASURES: Final = """
-- What is measured of everybody together, for whoever was let in as nobody: counts and instants.
CREATE FUNCTION measure_unfinished_operations(OUT kind text, OUT status text, OUT operations bigint, OUT oldest_at timestamptz)
RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT kind, status, count(*), min(created_at) FROM operations WHERE status = 'pending' GROUP BY kind, status
    UNION ALL
    SELECT kind, status, count(*), min(created_at) FROM operations WHERE status = 'dead' GROUP BY kind, status
$$;
CREATE FUNCTION measure_operations_since(
    p_id uuid, OUT kind text, OUT status text, OUT operations bigint, OUT mean_seconds float8, OUT longest_seconds float8
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT kind, status, count(*), extract(epoch FROM avg(finished_at - created_at))::float8,
           extract(epoch FROM max(finished_at - created_at))::float8
    FROM operations WHERE id >= p_id GROUP BY kind, status
$$;
CREATE FUNCTION measure_waiting_operations(
    p_version integer, p_kinds text[], OUT kind text, OUT waits_for text, OUT operations bigint
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT kind, waits_for, count(*) FROM (
        SELECT kind, CASE
            WHEN payload_version > p_version OR kind <> ALL (p_kinds) OR starts_with(last_error, 'NewerPayload: ')
                THEN 'release'
            WHEN starts_with(last_error, 'ProviderDown: ') THEN 'provider'
        END AS waits_for
        FROM operations WHERE status = 'pending'
    ) AS pending
    WHERE waits_for IS NOT NULL GROUP BY kind, waits_for
$$;
CREATE FUNCTION measure_oldest_unbegun(p_now timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT min(o.created_at) FROM operations o LEFT JOIN accounts a ON a.id = o.account_id
    WHERE o.status = 'pending' AND o.attempts = 0 AND o.last_error IS NULL AND o.created_at <= p_now
      AND a.test_clock_id IS NULL
$$;
CREATE FUNCTION measure_dead_operations() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT count(*) FROM operations WHERE status = 'dead'
$$;
CREATE FUNCTION measure_earliest_transition(p_transition text) RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT min(next_transition_at) FROM accounts
    WHERE next_transition = p_transition AND next_transition_at IS NOT NULL
      AND test_clock_id IS NULL AND parked_at IS NULL AND deleted_at IS NULL
$$;
CREATE FUNCTION measure_earliest_hold_expiry() RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT min(h.expires_at) FROM holds h JOIN accounts a ON a.id = h.account_id AND a.test_clock_id IS NULL
    WHERE h.status = 'open'
$$;
CREATE FUNCTION measure_earliest_checkout_to_ask() RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT min(next_ask_at) FROM checkouts WHERE next_ask_at IS NOT NULL
$$;
CREATE FUNCTION measure_earliest_unsent() RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT min(next_send_at) FROM operations WHERE status = 'pending'
$$;
CREATE FUNCTION measure_parked_accounts() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT count(*) FROM accounts WHERE parked_at IS NOT NULL
$$;
CREATE FUNCTION measure_ledger_drift(p_percent float4) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT coalesce(sum(abs(a.balance_credits - coalesce(t.balance_after, 0))), 0)::bigint
    FROM accounts a TABLESAMPLE SYSTEM (p_percent)
    LEFT JOIN credit_transactions t ON t.account_id = a.id AND t.seq = a.ledger_seq
$$;
"""


# Who asks, by session or key, and whether one may: by a role or a scope that suffices. Then the function of the same
# name is asked as the owner, about the account of whoever asks; about none, if one may not.
SPENDING: Final = """
CREATE TYPE credential AS (session_id uuid, user_id uuid, key_hash bytea, allowed text[]);
"""
SPENDS: Final = """
CREATE FUNCTION {name}(
    p_by credential, {parameters},
    OUT asker_id uuid, OUT account_id uuid, OUT permitted boolean, OUT requests_per_minute integer, {answer}
) RETURNS SETOF record ROWS 1 LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_answer record;
    v_noted_at timestamptz := p_now;
BEGIN
    IF p_by.key_hash IS NOT NULL THEN
        SELECT k.id, k.account_id, k.scopes && p_by.allowed, k.last_used_at, p.requests_per_minute
        INTO asker_id, account_id, permitted, v_noted_at, requests_per_minute
        FROM api_keys k
        JOIN accounts a ON a.id = k.account_id AND a.deleted_at IS NULL AND a.kind = 'customer'
        LEFT JOIN sites s ON s.id = k.site_id
        LEFT JOIN subscriptions n ON n.account_id = a.id AND n.status <> 'ended'
        LEFT JOIN plans p ON p.id = n.plan_id
        WHERE k.key_hash = p_by.key_hash AND k.revoked_at IS NULL AND s.deleted_at IS NULL
          AND (k.expires_at IS NULL OR k.expires_at > p_now);
    ELSE
        SELECT u.id, u.account_id, u.role = ANY (p_by.allowed), p.requests_per_minute
        INTO asker_id, account_id, permitted, requests_per_minute
        FROM sessions s
        JOIN users u ON u.id = s.user_id AND u.deleted_at IS NULL
        JOIN accounts a ON a.id = u.account_id AND a.deleted_at IS NULL AND a.kind = 'customer'
        LEFT JOIN subscriptions n ON n.account_id = a.id AND n.status <> 'ended'
        LEFT JOIN plans p ON p.id = n.plan_id
        WHERE s.id = p_by.session_id AND s.user_id = p_by.user_id AND s.audience = 'customer'
          AND s.revoked_at IS NULL AND s.expires_at > p_now;
    END IF;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    v_answer := {name}(CASE WHEN permitted THEN account_id END, {arguments});
    {answers}
    -- The use of a key is written down once a minute, unless somebody else is at its row.
    IF permitted AND coalesce(v_noted_at < p_now - interval '1 minute', true) THEN
        UPDATE api_keys k SET last_used_at = p_now
        WHERE k.id = (SELECT n.id FROM api_keys n WHERE n.id = asker_id FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    RETURN NEXT;
END
$$;
REVOKE EXECUTE ON FUNCTION {name}(credential, {types}) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {name}(credential, {types}) TO prepaid_api;
"""
IDS_OF_ASKER: Final = {
    "p_source": "CASE WHEN p_by.key_hash IS NULL THEN 'user' ELSE 'api_key' END",
    "p_source_id": "asker_id",
}
# name: (parameters after the account, what is answered), as migration 0004 has them.
SPENDERS: Final = {
    "consume_credits": (
        """p_amount bigint, p_key text, p_source text, p_source_id uuid, p_reason text, p_now timestamptz,
        p_due_applied boolean""",
        "outcome text, balance_credits bigint, available_credits bigint, replayed boolean",
    ),
    "consume_credits_batch": (
        """p_keys text[], p_amounts bigint[], p_reasons text[], p_all_or_nothing boolean, p_source text,
        p_source_id uuid, p_now timestamptz, p_due_applied boolean""",
        """outcome text, outcomes text[], balances bigint[], replays boolean[], balance_credits bigint,
        available_credits bigint""",
    ),
    "place_hold": (
        "p_hold_id uuid, p_amount bigint, p_key text, p_ttl_seconds integer, p_now timestamptz, p_due_applied boolean",
        "outcome text, hold holds, balance_credits bigint, available_credits bigint, replayed boolean",
    ),
    "capture_hold": (
        "p_hold_id uuid, p_amount bigint, p_now timestamptz, p_due_applied boolean",
        "outcome text, balance_credits bigint, replayed boolean",
    ),
    "release_hold": ("p_hold_id uuid, p_now timestamptz", "outcome text, hold holds, replayed boolean"),
}


def _spender(name: str) -> str:
    parameters, answer = (declared.split(",") for declared in SPENDERS[name])
    given = [parameter.split()[0] for parameter in parameters]
    answered = [column.split()[0] for column in answer]
    return SPENDS.format(
        name=name,
        parameters=", ".join(parameters),
        types=_types(name),
        answer=", ".join(f"OUT {column}" for column in answer),
        arguments=", ".join(IDS_OF_ASKER.get(parameter, parameter) for parameter in given),
        answers=" ".join(f"{column} := v_answer.{column};" for column in answered),
    )


def _types(name: str) -> str:
    return ", ".join(parameter.split()[1] for parameter in SPENDERS[name][0].split(","))


# What the API's functions are: they run as the owner, so nobody else may call them.
FOR_THE_API: Final = """
REVOKE EXECUTE ON FUNCTION
    admit, admitted, admit_user, admit_api_key, admit_admin, admit_invitation, admit_operation,
    admit_operation_of_key, admit_payer, admit_payer_of, sign_in_by_email, rehash_password, open_session,
    use_refresh_token, end_misused_session, signup_to_confirm, measure_unfinished_operations, measure_operations_since,
    measure_waiting_operations, measure_oldest_unbegun, measure_dead_operations, measure_earliest_transition,
    measure_earliest_hold_expiry, measure_earliest_checkout_to_ask, measure_earliest_unsent,
    measure_parked_accounts, measure_ledger_drift FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    admitted, admit_user, admit_api_key, admit_admin, admit_invitation, admit_operation,
    admit_operation_of_key, admit_payer, admit_payer_of, sign_in_by_email, rehash_password, open_session,
    use_refresh_token, end_misused_session, signup_to_confirm, measure_unfinished_operations, measure_operations_since,
    measure_waiting_operations, measure_oldest_unbegun, measure_dead_operations, measure_earliest_transition,
    measure_earliest_hold_expiry, measure_earliest_checkout_to_ask, measure_earliest_unsent,
    measure_parked_accounts, measure_ledger_drift TO prepaid_api;
GRANT EXECUTE ON FUNCTION admitted, admit_user, admit_api_key TO prepaid_due;
"""

# --- who may do what to which table -----------------------------------------------------------

API: Final = """
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM prepaid_api;
GRANT SELECT ON
    plans, plan_assigners, test_clocks, accounts, sites, sessions, refresh_tokens, invitations, subscriptions,
    subscription_periods, invoices, payments, bank_transfers, credit_grants, credit_transactions, holds, audit_log, events,
    provider_customers, checkouts, refunds, bank_statements, bank_entries, sign_in_attempts, job_runs, alembic_version
    TO prepaid_api;
GRANT SELECT (provider, event_id) ON provider_events TO prepaid_api;
GRANT SELECT (id, email) ON admins TO prepaid_api;
GRANT INSERT ON
    test_clocks, users, sites, api_keys, refresh_tokens, invitations, operations, audit_log, sandbox_payments,
    provider_customers, checkouts, provider_events, bank_statements, signups, sign_in_attempts TO prepaid_api;
GRANT UPDATE (role, deleted_at) ON users TO prepaid_api;
GRANT UPDATE (revoked_at, revoked_reason) ON sessions TO prepaid_api;
GRANT UPDATE (name, domain, deleted_at) ON sites TO prepaid_api;
GRANT UPDATE (expires_at, last_used_at, revoked_at, replaced_by) ON api_keys TO prepaid_api;
GRANT UPDATE (accepted_at, accepted_by, revoked_at) ON invitations TO prepaid_api;
GRANT UPDATE (status, attempts, problem, next_send_at) ON operations TO prepaid_api;
GRANT UPDATE (saves_method) ON checkouts TO prepaid_api;
GRANT UPDATE (failures, failed_at, succeeded_at, expires_at) ON sign_in_attempts TO prepaid_api;
"""
# Columns that nobody reads but the functions that let somebody in.
HIDDEN: Final = {"users": "password_hash", "api_keys": "key_hash", "operations": "payload", "signups": "password_hash"}

WORKER: Final = """
REVOKE INSERT, UPDATE ON users, admins, sessions, refresh_tokens, sites, api_keys, provider_events, bank_statements
    FROM prepaid_worker;
REVOKE SELECT ON users, admins, sessions, refresh_tokens, api_keys, signups FROM prepaid_worker;
REVOKE ALL ON admission_secret FROM prepaid_worker;
GRANT INSERT ON users TO prepaid_worker;
"""

DUE: Final = """
GRANT SELECT ON
    plans, plan_assigners, test_clocks, accounts, subscriptions, subscription_periods, invoices, invoice_numbers,
    bank_transfers, credit_grants, credit_transactions, holds, hold_allocations TO prepaid_due;
GRANT SELECT (id, account_id, status, created_at, idempotency_scope, idempotency_key) ON operations TO prepaid_due;
GRANT INSERT ON
    subscriptions, subscription_periods, invoices, invoice_numbers, credit_grants, credit_transactions, events, operations
    TO prepaid_due;
GRANT UPDATE ON accounts, subscriptions, subscription_periods, invoices, invoice_numbers, credit_grants, holds
    TO prepaid_due;
GRANT DELETE ON subscription_periods TO prepaid_due;
"""

ACCOUNT: Final = "(SELECT admitted('account'))"
ADMIN: Final = "(SELECT admitted('admin'))"
OPERATION: Final = "(SELECT admitted('operation'))"
OWN: Final = f"account_id = {ACCOUNT}"
OF_OWN_USER: Final = f"(SELECT u.account_id FROM users u WHERE u.id = user_id) = {ACCOUNT} OR admin_id = {ADMIN}"
OF_OWN_HOLD: Final = f"(SELECT h.account_id FROM holds h WHERE h.id = hold_id) = {ACCOUNT}"
OF_OWN_PAYMENT: Final = f"(SELECT p.account_id FROM payments p WHERE p.id = payment_id) = {ACCOUNT}"
IS_ADMIN: Final = f"{ADMIN} IS NOT NULL"
NOBODYS: Final = f"principal_kind = 'anonymous' AND id = {OPERATION}"

# Whose rows are seen and written by whoever was let in to an account.
OF_AN_ACCOUNT: Final = {
    "accounts": f"id = {ACCOUNT}",
    "sessions": OF_OWN_USER,
    "refresh_tokens": "EXISTS (SELECT FROM sessions s WHERE s.id = session_id)",
    "refunds": OF_OWN_PAYMENT,
} | dict.fromkeys(
    (
        "users",
        "sites",
        "api_keys",
        "invitations",
        "subscriptions",
        "subscription_periods",
        "invoices",
        "payments",
        "bank_transfers",
        "credit_grants",
        "credit_transactions",
        "holds",
        "audit_log",
        "events",
        "sandbox_payments",
        "provider_customers",
        "checkouts",
    ),
    OWN,
)
# What is due of an account is applied to these.
OF_WHAT_IS_DUE: Final = {"hold_allocations": OF_OWN_HOLD} | {
    table: OF_AN_ACCOUNT.get(table, OWN)
    for table in (
        "accounts",
        "subscriptions",
        "subscription_periods",
        "invoices",
        "bank_transfers",
        "credit_grants",
        "credit_transactions",
        "holds",
        "events",
        "operations",
    )
}
READ_BY_ADMINS: Final = (
    "accounts",
    "users",
    "admins",
    "api_keys",
    "subscriptions",
    "subscription_periods",
    "invoices",
    "payments",
    "refunds",
    "bank_transfers",
    "bank_statements",
    "bank_entries",
    "credit_grants",
    "credit_transactions",
    "holds",
    "operations",
    "audit_log",
    "events",
)
# (table, what, of which command, condition), for what the rest does not say.
MORE: Final = (
    ("operations", "account_reads", "SELECT", OWN),
    ("operations", "account_asks", "INSERT", OWN),
    ("operations", "nobody_reads", "SELECT", NOBODYS),
    ("operations", "nobody_asks", "INSERT", f"{NOBODYS} AND account_id IS NULL"),
    ("operations", "admin_asks", "INSERT", IS_ADMIN),
    ("operations", "admin_revives", "UPDATE", IS_ADMIN),
    ("audit_log", "admin_records", "INSERT", IS_ADMIN),
    ("bank_statements", "admin_adds", "INSERT", IS_ADMIN),
    ("signups", "nobody_asks", "INSERT", "true"),
)
WITHOUT_API: Final = ("hold_allocations", "trials")

TABLES: Final = tuple(
    sorted({*OF_AN_ACCOUNT, *OF_WHAT_IS_DUE, *READ_BY_ADMINS, *WITHOUT_API, *(table for table, *_ in MORE)})
)

# --- and back ---------------------------------------------------------------------------------

BEFORE: Final = """
DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %%I TO PUBLIC', current_database()); END $$;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM prepaid_api, prepaid_worker, prepaid_due;
REVOKE USAGE ON SCHEMA public FROM prepaid_due;
GRANT SELECT, INSERT, UPDATE ON
    test_clocks, accounts, users, admins, sessions, refresh_tokens, sites, api_keys, subscriptions, subscription_periods,
    invoice_numbers, invoices, payments, bank_transfers, sandbox_payments, credit_grants, holds, hold_allocations,
    operations, job_runs TO prepaid_api, prepaid_worker;
GRANT SELECT, INSERT ON credit_transactions, events, audit_log TO prepaid_api, prepaid_worker;
GRANT SELECT ON plans, plan_assigners, alembic_version TO prepaid_api, prepaid_worker;
GRANT DELETE ON subscription_periods, payments TO prepaid_api, prepaid_worker;
GRANT SELECT, INSERT, UPDATE ON provider_customers, checkouts TO prepaid_api, prepaid_worker;
GRANT SELECT, INSERT ON provider_events, bank_statements TO prepaid_api, prepaid_worker;
GRANT SELECT ON bank_entries, refunds TO prepaid_api;
GRANT SELECT, INSERT ON bank_entries TO prepaid_worker;
GRANT SELECT, INSERT, UPDATE ON refunds TO prepaid_worker;
GRANT SELECT, INSERT, UPDATE ON invitations, sign_in_attempts TO prepaid_api;
GRANT SELECT, INSERT ON signups TO prepaid_api;
GRANT SELECT ON invitations TO prepaid_worker;
GRANT SELECT, UPDATE (expires_at), DELETE ON signups, sign_in_attempts TO prepaid_worker;
GRANT SELECT, INSERT ON trials TO prepaid_worker;
"""
DROP: Final = """
DROP FUNCTION
    measure_ledger_drift, measure_parked_accounts, measure_earliest_unsent, measure_earliest_checkout_to_ask,
    measure_earliest_hold_expiry, measure_earliest_transition, measure_dead_operations, measure_oldest_unbegun,
    measure_waiting_operations, measure_operations_since, measure_unfinished_operations,
    signup_to_confirm, end_misused_session, use_refresh_token, open_session, rehash_password, sign_in_by_email,
    admit_payer_of, admit_payer, admit_operation_of_key, admit_operation, admit_invitation, admit_admin, admit_api_key,
    admit_user, admitted, admit;
DROP TYPE credential;
DROP TABLE admission_secret;
"""


def upgrade() -> None:
    functions = (ADMISSION, CREDENTIALS, SIGNING_IN, MEASURES, SPENDING, *map(_spender, SPENDERS), FOR_THE_API)
    for statements in (ROLE, *functions, API, WORKER, DUE):
        op.get_bind().exec_driver_sql(statements)
    for table, hidden in HIDDEN.items():
        readers = "prepaid_worker" if table == "signups" else "prepaid_api"
        _grant_all_but(table, hidden, readers)
    _grant_all_but("users", "password_hash", "prepaid_worker")
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY worker_does_its_tasks ON {table} TO prepaid_worker USING (true)")
    for table, condition in OF_AN_ACCOUNT.items():
        op.execute(f"CREATE POLICY of_the_account ON {table} TO prepaid_api USING ({condition})")
    for table, condition in OF_WHAT_IS_DUE.items():
        op.execute(f"CREATE POLICY due_of_the_account ON {table} TO prepaid_due USING ({condition})")
    for table in READ_BY_ADMINS:
        op.execute(f"CREATE POLICY admin_reads ON {table} FOR SELECT TO prepaid_api USING ({IS_ADMIN})")
    for table, name, command, condition in MORE:
        clause = "WITH CHECK" if command == "INSERT" else "USING"
        op.execute(f"CREATE POLICY {name} ON {table} FOR {command} TO prepaid_api {clause} ({condition})")


def downgrade() -> None:
    for table in TABLES:
        for policy in op.get_bind().exec_driver_sql(
            "SELECT policyname FROM pg_policies WHERE schemaname = 'public' AND tablename = %(table)s", {"table": table}
        ):
            op.execute(f"DROP POLICY {policy.policyname} ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    for name in SPENDERS:
        op.execute(f"DROP FUNCTION {name}(credential, {_types(name)})")
    for statements in (DROP, BEFORE):
        op.get_bind().exec_driver_sql(statements)


def _grant_all_but(table: str, hidden: str, role: str) -> None:
    columns = (
        op.get_bind()
        .exec_driver_sql(
            """
        SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped AND attname <> %(hidden)s
        """,
            {"table": table, "hidden": hidden},
        )
        .scalar_one()
    )
    op.execute(f"GRANT SELECT ({columns}) ON {table} TO {role}")
