"""Each named constraint and trigger refuses, by that name, a statement typed by hand that breaks its rule."""

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from tests.db.world import Healthy, copy, drop, newest

ENTERPRISE = "(SELECT id FROM plans WHERE slug = 'enterprise')"
STARTER = "(SELECT id FROM plans WHERE slug = 'starter')"
NEW_ID = "'id', gen_random_uuid()"
NEW_INVOICE = f"{NEW_ID}, 'number', 99, 'reference', 'other'"
NEW_ROW = "'seq', 99, 'idempotency_key', 'other'"
FIRST_ROW = "account_id = %(card)s AND seq = 1"
FIRST_EVENT = "account_id = %(card)s AND kind = 'subscription.started'"
OUT_OF_CREDITS = "account_id = %(spent)s AND kind = 'credits.exhausted'"
REFUND = "amount_minor = 4450"
EXACT = "transaction_id = 'exact'"
UNAPPLIED = "'unapplied_reason', 'unmatched', 'applied_at', NULL"
SIGNUP = "kind = 'sign_up' AND account_id = %(expired)s"
CHECKOUT = "kind = 'open_invoice' AND account_id = %(card)s"
SECOND_PERIOD = """
    (subscription_id, starts_at) = (
        SELECT subscription_id, starts_at FROM subscription_periods WHERE account_id = %(renewed)s
        ORDER BY starts_at OFFSET 1 LIMIT 1
    )
    """
LAST_PERIOD = "account_id = %(renewed)s AND " + newest(
    "subscription_periods", "account_id = %(renewed)s", order="starts_at"
)
NEXT_PERIOD = """
    'starts_at', ends_at + interval '{0}', 'previous_ends_at', ends_at + interval '{0}',
    'ends_at', ends_at + interval '20 days'
    """
SESSION = """
    INSERT INTO sessions (id, audience, user_id, admin_id, created_at, expires_at, revoked_at)
    VALUES (gen_random_uuid(), {}, now(), now(), {})
    """
USER = "(SELECT id FROM users WHERE account_id = %(card)s)"
INVITATION = """
    INSERT INTO invitations (id, account_id, email, role, invited_by, created_at, expires_at, accepted_at, accepted_by,
                             revoked_at)
    SELECT (jsonb_populate_record(NULL::invitations, jsonb_build_object(
        'id', gen_random_uuid(), 'account_id', %(card)s::uuid, 'email', 'bob@example.com', 'role', 'viewer',
        'invited_by', u.id, 'created_at', now(), 'expires_at', now() + interval '1 day') || jsonb_build_object({}))).*
    FROM users u WHERE u.account_id = %(card)s
    """
WAITING_SIGNUP = """
    INSERT INTO signups (id, account_name, email, password_hash, time_zone, created_at, expires_at)
    VALUES (gen_random_uuid(), 'Bob', '{}', 'hash', 'UTC', now(), now() + interval '{}')
    """
ATTEMPTS = """
    INSERT INTO sign_in_attempts (who, network, failures, failed_at, expires_at)
    VALUES ('who', 'network', {}, {}, now())
    """
PENDING = f"{NEW_ID}, 'operation_id', gen_random_uuid(), 'status', 'pending', 'applied_at', NULL"
ATTEMPT = f"{PENDING}, 'external_payment_id', NULL, 'attempt', 1, 'customer_ref', 'c', 'payment_method_ref', 'm'"
CUSTOMER = "INSERT INTO provider_customers (account_id, provider, customer_ref) VALUES ({}, '{}', 'c')"
PROVIDER_EVENT = """
    INSERT INTO provider_events (provider, event_id, type, occurred_at, operation_id, ignored)
    VALUES ('stripe', 'evt', 'x', now(), {}, {})
    """

# Never reached, because the primary key is broken first: they are there for foreign keys to point at.
ANCHORS = {"plan_slug_named_once_with_id", "site_of_account", "credit_grant_of_account", "api_key_named_with_account"}


def assigned(plan: str, by: str) -> str:
    return f"INSERT INTO plan_assigners SELECT id, slug, '{by}' FROM plans WHERE slug = '{plan}'"


def updates(table: str, rows: list[tuple[str, str, str]]) -> list[object]:
    """(constraint, what is set, where)"""
    return [refused(name, change, f"UPDATE {table} SET {change} WHERE {where}") for name, change, where in rows]


def refused(constraint: str, what: str, *statements: str) -> object:
    """statements: the last one is refused."""
    return pytest.param(constraint, statements, id=f"{constraint}: {' '.join(what.split())}")


CASES = [
    # Plans
    *updates(
        "plans",
        [
            ("plan_slug_is_a_slug", "slug = 'Not a slug'", "slug = 'starter'"),
            ("plan_slug_unique", "slug = 'free'", "slug = 'starter'"),
            ("plan_price_not_negative", "price_minor = -1", "slug = 'starter'"),
            ("plan_currency_is_iso_4217", "currency = 'usd'", "slug = 'starter'"),
            ("plan_interval_known", "interval = 'hour'", "slug = 'starter'"),
            ("plan_interval_count_positive", "interval_count = 0", "slug = 'starter'"),
            ("plan_interval_count_positive", "interval_count = 367, interval = 'year'", "slug = 'starter'"),
            ("plan_trial_days_bounded", "trial_days = 366", "slug = 'free-trial'"),
            ("plan_trial_days_bounded", "trial_days = -1", "slug = 'free-trial'"),
            ("plan_trial_costs_nothing", "trial_days = 14", "slug = 'starter'"),
            ("plan_credits_not_negative", "credits_per_month = -1", "slug = 'starter'"),
            ("plan_rollover_known", "credit_rollover = 'some'", "slug = 'starter'"),
            ("plan_rollover_cap_goes_with_cap", "credit_rollover = 'cap'", "slug = 'starter'"),
            ("plan_rollover_cap_goes_with_cap", "credit_rollover_cap = 5", "slug = 'starter'"),
            ("plan_rollover_cap_positive", "credit_rollover = 'cap', credit_rollover_cap = 0", "slug = 'starter'"),
            ("plan_trial_end_known", "trial_end = 'never'", "slug = 'free-trial'"),
            ("plan_grace_within_a_month", "grace_days = 29", "slug = 'starter'"),
            ("plan_grace_within_a_month", "grace_days = -1", "slug = 'starter'"),
            ("plan_requests_per_minute_positive", "requests_per_minute = 0", "slug = 'starter'"),
            ("plan_requests_per_minute_positive", "requests_per_minute = 1000001", "slug = 'starter'"),
        ],
    ),
    refused("plan_assigner_known", "by a friend", assigned("starter", "friend")),
    refused(
        "plan_assigner_of_plan",
        "under another name",
        f"INSERT INTO plan_assigners VALUES ({STARTER}, 'free', 'signup')",
    ),
    refused("enterprise_by_admin_only", "by signup", assigned("enterprise", "signup")),
    refused("enterprise_by_admin_only", "by checkout", assigned("enterprise", "checkout")),
    refused("signup_gets_trial_or_free_only", "starter", assigned("starter", "signup")),
    # Accounts
    *updates(
        "accounts",
        [
            ("account_kind_known", "kind = 'robot'", "id = %(card)s"),
            ("account_status_known", "status = 'odd'", "id = %(card)s"),
            ("account_payment_method_known", "payment_method = 'shells'", "id = %(card)s"),
            ("account_system_has_fixed_id", "kind = 'system'", "id = %(card)s"),
            ("account_system_has_fixed_id", "kind = 'customer'", "kind = 'system'"),
            ("account_system_is_inert", "balance_credits = 1", "kind = 'system'"),
            (
                "account_system_is_inert",
                "next_transition = 'renewal', next_transition_at = now()",
                "kind = 'system'",
            ),
            ("account_system_is_inert", "deleted_at = now()", "kind = 'system'"),
            ("account_next_transition_known", "next_transition = 'party'", "id = %(card)s"),
            ("account_next_transition_complete", "next_transition_at = NULL", "id = %(card)s"),
            ("account_parked_with_reason", "parked_at = now()", "id = %(card)s"),
            ("credit_balance_not_negative", "balance_credits = -1", "id = %(card)s"),
            ("credit_held_within_balance", "held_credits = balance_credits + 1", "id = %(card)s"),
            ("credit_held_within_balance", "held_credits = -1", "id = %(card)s"),
            ("account_low_credits_not_negative", "low_credits = -1", "id = %(card)s"),
        ],
    ),
    refused(
        "account_only_one_system",
        "a second one",
        drop("accounts", "account_system_has_fixed_id"),
        copy("accounts", "kind = 'system'", NEW_ID),
    ),
    refused("account_never_removed", "delete", "DELETE FROM accounts WHERE id = %(card)s"),
    *updates(
        "users",
        [
            ("user_not_of_system_account", "account_id = %(system)s", "account_id = %(card)s"),
            ("user_role_known", "role = 'god'", "account_id = %(card)s"),
            ("user_email_normalised", "email = 'Ada@example.com'", "account_id = %(card)s"),
        ],
    ),
    refused("user_email_unique", "twice", copy("users", "account_id = %(card)s", NEW_ID)),
    refused("admin_email_normalised", "capitals", "UPDATE admins SET email = 'Root@example.com'"),
    refused("admin_email_unique", "twice", copy("admins", "true", NEW_ID)),
    refused("session_audience_fits_principal", "a user as admin", SESSION.format(f"'admin', {USER}, NULL", "NULL")),
    refused("session_audience_fits_principal", "nobody", SESSION.format("'customer', NULL, NULL", "NULL")),
    refused("session_revoked_with_reason", "no reason", SESSION.format(f"'customer', {USER}, NULL", "now()")),
    *updates(
        "sites",
        [("site_not_of_system_account", "account_id = %(system)s", "account_id = %(trial)s")],
    ),
    refused("site_domain_unique_in_account", "twice", copy("sites", "true", NEW_ID)),
    refused("site_never_removed", "delete", "DELETE FROM sites"),
    *updates(
        "api_keys",
        [
            ("api_key_scopes_known", "scopes = '{everything}'", "true"),
            ("api_key_scopes_known", "scopes = '{}'", "true"),
            ("api_key_site_of_same_account", "account_id = %(card)s", "true"),
            ("api_key_replaced_expires", "replaced_by = id", "true"),
            ("api_key_replaced_within_account", "replaced_by = gen_random_uuid(), expires_at = now()", "true"),
        ],
    ),
    refused("api_key_hash_unique", "twice", copy("api_keys", "true", NEW_ID)),
    refused(
        "api_key_replaces_one",
        "two",
        "UPDATE api_keys SET replaced_by = id, expires_at = now()",
        copy("api_keys", "true", f"{NEW_ID}, 'key_hash', 'other'"),
    ),
    # Members, signups, sign-ins
    *(
        refused(name, changes, INVITATION.format(changes))
        for name, changes in [
            ("invitation_not_of_system_account", "'account_id', %(system)s::uuid"),
            ("invitation_role_known", "'role', 'god'"),
            ("invitation_email_normalised", "'email', 'Bob@example.com'"),
            ("invitation_expires_later", "'expires_at', now()"),
            ("invitation_accepted_by_a_user", "'accepted_at', now()"),
            ("invitation_accepted_by_a_user", "'accepted_by', u.id"),
            ("invitation_ends_once", "'accepted_at', now(), 'accepted_by', u.id, 'revoked_at', now()"),
        ]
    ),
    refused("invitation_one_open_per_address", "two", INVITATION.format(""), INVITATION.format("")),
    refused("signup_email_normalised", "capitals", WAITING_SIGNUP.format("Bob@example.com", "1 day")),
    refused("signup_expires_later", "at once", WAITING_SIGNUP.format("bob@example.com", "0")),
    refused(
        "trial_once_per_mailbox",
        "twice",
        "INSERT INTO trials SELECT mailbox_digest, account_id FROM trials LIMIT 1",
    ),
    refused("sign_in_failures_not_negative", "-1", ATTEMPTS.format(-1, "now()")),
    refused("sign_in_failures_have_instant", "none", ATTEMPTS.format(1, "NULL")),
    # Subscriptions and their periods
    *updates(
        "subscriptions",
        [
            ("subscription_not_of_system_account", "account_id = %(system)s", "account_id = %(expired)s"),
            (
                "subscription_plan_assignable",
                f"plan_id = {ENTERPRISE}, assigned_by = 'signup'",
                "account_id = %(card)s",
            ),
            (
                "subscription_plan_assignable",
                f"plan_id = {ENTERPRISE}, assigned_by = 'checkout'",
                "account_id = %(card)s",
            ),
            (
                "subscription_next_plan_assignable",
                f"next_plan_id = {ENTERPRISE}, next_plan_assigned_by = 'checkout'",
                "account_id = %(card)s",
            ),
            ("subscription_next_plan_complete", f"next_plan_id = {STARTER}", "account_id = %(card)s"),
            ("subscription_status_known", "status = 'odd'", "account_id = %(card)s"),
            ("subscription_ended_complete", "ended_at = now(), end_reason = 'cancelled'", "account_id = %(card)s"),
            ("subscription_ended_complete", "end_reason = NULL", "account_id = %(expired)s"),
            ("subscription_end_reason_known", "end_reason = 'bored'", "account_id = %(expired)s"),
            ("subscription_grace_goes_with_past_due", "grace_ends_at = now()", "account_id = %(card)s"),
            ("subscription_grace_goes_with_past_due", "grace_ends_at = NULL", "account_id = %(past_due)s"),
            ("subscription_trial_has_an_end", "trial_ends_at = NULL", "account_id = %(trial)s"),
            ("subscription_active_was_activated", "activated_at = NULL", "account_id = %(card)s"),
            ("subscription_payment_method_known", "payment_method = 'shells'", "account_id = %(card)s"),
            (
                "subscription_period_ordered",
                "current_period_ends_at = current_period_starts_at - interval '1 s'",
                "account_id = %(card)s",
            ),
            ("subscription_counts_not_negative", "phase = -1", "account_id = %(card)s"),
            ("subscription_counts_not_negative", "period_index = -1", "account_id = %(card)s"),
            ("subscription_counts_not_negative", "credit_month_index = -1", "account_id = %(card)s"),
        ],
    ),
    refused("subscription_one_live_per_account", "two", copy("subscriptions", "account_id = %(card)s", NEW_ID)),
    refused(
        "subscription_one_live_per_account",
        "one that had ended",
        """
        UPDATE subscriptions SET status = 'active', activated_at = now(), ended_at = NULL, end_reason = NULL
        WHERE account_id = %(returned)s AND status = 'ended'
        """,
    ),
    refused(
        "subscription_plan_assignable",
        "a new one by signup",
        copy(
            "subscriptions",
            "account_id = %(expired)s",
            f"{NEW_ID}, 'plan_id', {ENTERPRISE}, 'assigned_by', 'signup'",
        ),
    ),
    *updates(
        "subscription_periods",
        [
            ("period_has_length", "ends_at = starts_at", "account_id = %(card)s"),
            ("period_starts_where_the_last_ended", "previous_ends_at = ends_at", SECOND_PERIOD),
            (
                "period_leaves_no_gap",
                "starts_at = starts_at + interval '1 h', previous_ends_at = starts_at + interval '1 h'",
                SECOND_PERIOD,
            ),
            (
                "period_leaves_no_gap",
                "ends_at = ends_at - interval '1 s'",
                "account_id = %(renewed)s AND previous_ends_at IS NULL",
            ),
            (
                "period_no_overlap",
                "ends_at = ends_at + interval '7 days'",
                "account_id = %(returned)s AND plan_id = (SELECT id FROM plans WHERE slug = 'free-trial')",
            ),
            ("period_only_one_first", "previous_ends_at = NULL", SECOND_PERIOD),
        ],
    ),
    refused("period_leaves_no_gap", "deleted", f"DELETE FROM subscription_periods WHERE {SECOND_PERIOD}"),
    refused(
        "period_leaves_no_gap",
        "the next one an hour later",
        copy("subscription_periods", LAST_PERIOD, NEXT_PERIOD.format("1 h")),
    ),
    refused(
        "period_no_overlap",
        "the next one an hour earlier",
        drop("subscription_periods", "period_leaves_no_gap"),
        copy("subscription_periods", LAST_PERIOD, NEXT_PERIOD.format("-1 h")),
    ),
    refused(
        "period_no_overlap",
        "of another subscription",
        copy(
            "subscription_periods",
            LAST_PERIOD,
            """
            'subscription_id', (SELECT id FROM subscriptions WHERE account_id = %(enterprise)s),
            'previous_ends_at', NULL, 'starts_at', starts_at + interval '1 h'
            """,
        ),
    ),
    refused(
        "period_end_unique_in_subscription",
        "two ends",
        copy("subscription_periods", "account_id = %(card)s", "'starts_at', starts_at - interval '1 day'"),
    ),
    # Invoices, payments, bank transfers
    refused("invoice_number_not_negative", "a year of -1", "UPDATE invoice_numbers SET last_number = -1"),
    *updates(
        "invoices",
        [
            ("invoice_not_of_system_account", "account_id = %(system)s", "account_id = %(card)s"),
            ("invoice_number_unique", "number = 2", "number = 1"),
            ("invoice_number_positive", "number = 0", "number = 1"),
            ("invoice_plan_assignable", f"plan_id = {ENTERPRISE}, assigned_by = 'checkout'", "account_id = %(card)s"),
            ("invoice_purpose_known", "purpose = 'gift'", "account_id = %(card)s"),
            ("invoice_status_known", "status = 'odd'", "account_id = %(awaiting)s"),
            ("invoice_amount_positive", "amount_minor = 0", "account_id = %(card)s"),
            ("invoice_paid_has_instant", "paid_at = NULL", "account_id = %(card)s"),
            ("invoice_paid_has_instant", "paid_at = now()", "account_id = %(awaiting)s"),
            ("invoice_void_has_instant", "voided_at = now()", "account_id = %(awaiting)s"),
            ("invoice_renewal_names_its_period", "purpose = 'renewal'", "account_id = %(card)s"),
        ],
    ),
    refused("invoice_reference_unique", "twice", copy("invoices", "account_id = %(card)s", f"{NEW_ID}, 'number', 99")),
    refused(
        "invoice_one_per_period",
        "two",
        copy("invoices", "account_id = %(past_due)s AND purpose = 'renewal'", NEW_INVOICE),
    ),
    refused("invoice_one_open_activation", "two", copy("invoices", "account_id = %(awaiting)s", NEW_INVOICE)),
    *updates(
        "payments",
        [
            ("payment_provider_known", "provider = 'shells'", "account_id = %(card)s"),
            ("payment_status_known", "status = 'odd', applied_at = NULL", "account_id = %(card)s"),
            ("payment_success_is_complete", "amount_minor = NULL", "account_id = %(card)s"),
            ("payment_success_is_complete", "confirmed_at = NULL", "account_id = %(card)s"),
            ("payment_success_is_complete", "external_payment_id = NULL", "account_id = %(card)s"),
            ("payment_failure_has_problem", "problem = 'x'", "account_id = %(card)s"),
            ("payment_applied_has_instant", "applied_at = NULL", "account_id = %(card)s"),
            ("payment_applied_has_instant", "unapplied_reason = 'x'", "account_id = %(card)s"),
            ("payment_applied_names_its_invoice", "invoice_id = NULL", "account_id = %(card)s"),
            ("payment_applied_names_its_invoice", "account_id = NULL", "account_id = %(card)s"),
            ("payment_attempt_names_what_is_charged", "attempt = 1", "account_id = %(card)s"),
            ("payment_attempt_names_what_is_charged", "customer_ref = 'c'", "account_id = %(card)s"),
            (
                "payment_attempt_names_what_is_charged",
                "attempt = 0, customer_ref = 'c', payment_method_ref = 'm'",
                "account_id = %(card)s",
            ),
            (
                "payment_settles_once",
                "external_payment_id = (SELECT external_payment_id FROM payments WHERE account_id = %(overdue)s)",
                "account_id = %(card)s",
            ),
        ],
    ),
    refused(
        "payment_unapplied_was_received",
        "pending",
        copy("payments", "account_id = %(card)s", f"{PENDING}, 'unapplied_reason', 'x'"),
    ),
    refused(
        "payment_attempted_once",
        "twice",
        copy("payments", "account_id = %(card)s", ATTEMPT),
        copy("payments", "account_id = %(card)s", ATTEMPT),
    ),
    refused("provider_customer_provider_known", "shells", CUSTOMER.format("%(card)s", "shells")),
    refused(
        "provider_customer_once",
        "of two accounts",
        CUSTOMER.format("%(card)s", "stripe"),
        CUSTOMER.format("%(spent)s", "stripe"),
    ),
    refused(
        "checkout_provider_known",
        "shells",
        """
        INSERT INTO checkouts (provider, external_payment_id, account_id, invoice_id, saves_method)
        SELECT 'shells', 'p', account_id, id, false FROM invoices WHERE account_id = %(card)s
        """,
    ),
    refused("provider_event_works_or_is_ignored", "neither", PROVIDER_EVENT.format("NULL", "NULL")),
    refused("provider_event_works_or_is_ignored", "both", PROVIDER_EVENT.format("gen_random_uuid()", "'x'")),
    *(
        refused(
            "provider_event_append_only",
            statement.partition(" ")[0],
            PROVIDER_EVENT.format("NULL", "'x'"),
            statement,
        )
        for statement in ("UPDATE provider_events SET type = 'x'", "DELETE FROM provider_events")
    ),
    refused(
        "payment_one_per_operation",
        "two",
        copy("payments", "account_id = %(card)s", f"{NEW_ID}, 'external_payment_id', 'other'"),
    ),
    refused(
        "invoice_paid_once",
        "two payments",
        copy(
            "payments",
            "account_id = %(card)s",
            f"{NEW_ID}, 'operation_id', gen_random_uuid(), 'external_payment_id', 'other'",
        ),
    ),
    refused(
        "payment_settles_once",
        "another invoice",
        copy(
            "payments",
            "account_id = %(card)s",
            f"""
            {NEW_ID}, 'operation_id', gen_random_uuid(), 'account_id', %(awaiting)s::uuid,
            'invoice_id', (SELECT id FROM invoices WHERE account_id = %(awaiting)s)
            """,
        ),
    ),
    *updates(
        "payments",
        [
            ("payment_refunded_within_amount", "refunded_minor = amount_minor + 1", "account_id = %(card)s"),
            ("payment_refunded_within_amount", "refunded_minor = -1", "account_id = %(card)s"),
        ],
    ),
    *updates(
        "refunds",
        [
            ("refund_status_known", "status = 'odd'", REFUND),
            ("refund_amount_positive", "amount_minor = 0", REFUND),
            ("refund_failure_has_problem", "status = 'failed'", REFUND),
            ("refund_failure_has_problem", "problem = 'x'", REFUND),
            ("refund_answer_has_instant", "confirmed_at = NULL", REFUND),
            ("refund_answer_has_instant", "confirmed_at = now()", "status = 'pending'"),
            ("refund_credits_not_negative", "reversed_credits = -1", REFUND),
            ("refund_credits_not_negative", "spent_credits = -1", REFUND),
        ],
    ),
    refused("refund_known_once", "twice", copy("refunds", REFUND, NEW_ID)),
    *updates(
        "bank_transfers",
        [
            ("bank_transfer_status_known", "status = 'odd', rejection_reason = NULL", "account_id = %(rejected)s"),
            ("bank_transfer_decided_by_an_admin", "decided_at = now()", "account_id = %(awaiting)s"),
            ("bank_transfer_decided_by_an_admin", "decided_by = NULL", "account_id = %(transfer)s"),
            ("bank_transfer_approval_is_complete", "received_amount_minor = NULL", "account_id = %(transfer)s"),
            ("bank_transfer_approval_is_complete", "bank_transaction_id = NULL", "account_id = %(transfer)s"),
            ("bank_transfer_approval_is_complete", "payment_id = NULL", "account_id = %(transfer)s"),
            ("bank_transfer_rejection_has_reason", "rejection_reason = NULL", "account_id = %(rejected)s"),
        ],
    ),
    refused(
        "bank_transfer_one_pending_per_invoice", "two", copy("bank_transfers", "account_id = %(awaiting)s", NEW_ID)
    ),
    refused(
        "bank_transfer_one_approved_per_invoice", "two", copy("bank_transfers", "account_id = %(transfer)s", NEW_ID)
    ),
    # Bank statements
    *updates(
        "bank_statements",
        [
            ("bank_statement_format_known", "format = 'ofx'", "true"),
            ("bank_statement_not_empty", "content = ''", "true"),
        ],
    ),
    refused("bank_statement_once_per_operation", "two", copy("bank_statements", "true", NEW_ID)),
    refused("bank_entry_once", "twice", copy("bank_entries", EXACT, NEW_ID)),
    refused(
        "bank_entry_amount_not_zero",
        "nothing",
        copy("bank_entries", EXACT, f"{NEW_ID}, 'external_id', 'other', 'amount_minor', 0"),
    ),
    refused("bank_entry_append_only", "changed", f"UPDATE bank_entries SET amount_minor = 1 WHERE {EXACT}"),
    refused("bank_entry_append_only", "taken out", f"DELETE FROM bank_entries WHERE {EXACT}"),
    refused(
        "payment_of_bank_entry",
        "two payments",
        copy("payments", "external_payment_id = 'exact'", f"{NEW_ID}, 'external_payment_id', 'other', {UNAPPLIED}"),
    ),
    refused(
        "payment_of_known_bank_entry",
        "of no entry",
        "UPDATE payments SET bank_entry_id = gen_random_uuid() WHERE external_payment_id = 'unknown'",
    ),
    # Credits
    *updates(
        "credit_grants",
        [
            ("credit_grant_not_of_system_account", "account_id = %(system)s", "account_id = %(expired)s"),
            ("credit_grant_source_known", "source = 'luck'", "source = 'adjust'"),
            ("credit_grant_amount_positive", "amount = 0, remaining = 0, held = 0", "source = 'adjust'"),
            ("credit_grant_remaining_within_amount", "remaining = amount + 1", "account_id = %(card)s"),
            ("credit_grant_held_within_remaining", "held = remaining + 1", "account_id = %(card)s"),
            ("credit_grant_expires_after_it_begins", "expires_at = effective_at", "account_id = %(card)s"),
            ("credit_seed_names_its_month", "credit_month_index = NULL", "source = 'seed'"),
            ("credit_seed_names_its_month", "phase = 0", "source = 'adjust'"),
        ],
    ),
    refused(
        "credit_seed_once_per_credit_month",
        "a second seed",
        copy("credit_grants", "account_id = %(expired)s", NEW_ID),
    ),
    *(
        refused(name, what, copy("credit_transactions", FIRST_ROW, changes))
        for name, what, changes in [
            ("credit_transaction_posted_once", "twice", "'seq', 99"),
            ("credit_transaction_numbered_from_one", "a row 0", "'seq', 0, 'idempotency_key', 'other'"),
            ("credit_transaction_balance_not_negative", "-1", f"{NEW_ROW}, 'balance_after', -1"),
            ("credit_transaction_sign_fits_kind", "consumption that adds", f"{NEW_ROW}, 'kind', 'consume'"),
            ("credit_transaction_sign_fits_kind", "a seed that takes", f"{NEW_ROW}, 'amount', -1"),
            ("credit_transaction_sign_fits_kind", "unknown", f"{NEW_ROW}, 'kind', 'gift'"),
            ("credit_transaction_source_known", "luck", f"{NEW_ROW}, 'source', 'luck'"),
            ("credit_transaction_reversal_names_its_row", "unnamed", f"{NEW_ROW}, 'kind', 'reverse'"),
            ("credit_transaction_reversal_names_its_row", "named", f"{NEW_ROW}, 'reverses_seq', 1"),
            (
                "credit_transaction_reverses_own_row",
                "no such row",
                f"{NEW_ROW}, 'kind', 'reverse', 'reverses_seq', 77",
            ),
        ]
    ),
    refused(
        "credit_transaction_of_own_grant",
        "another account's",
        copy("credit_transactions", FIRST_ROW, f"{NEW_ROW}, 'account_id', %(spent)s::uuid"),
    ),
    refused(
        "credit_transaction_reversed_once",
        "twice",
        copy("credit_transactions", FIRST_ROW, f"{NEW_ROW}, 'kind', 'reverse', 'reverses_seq', 1"),
        copy(
            "credit_transactions",
            FIRST_ROW,
            "'seq', 100, 'idempotency_key', 'other', 'line', 7, 'kind', 'reverse', 'reverses_seq', 1",
        ),
    ),
    *(
        refused(name, statement.partition(" ")[0], statement)
        for name, table, column in [
            ("credit_transaction_append_only", "credit_transactions", "reason"),
            ("event_append_only", "events", "kind"),
            ("audit_append_only", "audit_log", "reason"),
        ]
        for statement in (f"UPDATE {table} SET {column} = 'x'", f"DELETE FROM {table}", f"TRUNCATE {table}")
    ),
    *updates(
        "holds",
        [
            ("hold_status_known", "status = 'odd'", "account_id = %(card)s AND status = 'released'"),
            ("hold_amount_positive", "amount = 0", "account_id = %(card)s AND status = 'open'"),
            ("hold_capture_within_amount", "captured_amount = 101", "account_id = %(card)s AND status = 'captured'"),
            ("hold_capture_goes_with_status", "captured_amount = 1", "account_id = %(card)s AND status = 'open'"),
            ("hold_resolved_has_instant", "resolved_at = now()", "account_id = %(card)s AND status = 'open'"),
        ],
    ),
    refused("hold_placed_once", "twice", copy("holds", "account_id = %(card)s AND status = 'open'", NEW_ID)),
    refused("hold_allocation_positive", "nothing", "UPDATE hold_allocations SET amount = 0"),
    refused("event_kind_known", "a party", copy("events", FIRST_EVENT, "'kind', 'party.started'")),
    refused("event_of_credits_names_its_month", "a key", copy("events", FIRST_EVENT, "'key', 'x'")),
    refused("event_of_credits_names_its_month", "none", copy("events", OUT_OF_CREDITS, "'key', NULL")),
    refused("event_recorded_once", "twice", copy("events", OUT_OF_CREDITS, "'data', '{}'::jsonb")),
    # Operations and the audit log
    *updates(
        "operations",
        [
            ("operation_status_known", "status = 'odd', finished_at = NULL", SIGNUP),
            ("operation_principal_known", "principal_kind = 'god'", CHECKOUT),
            ("operation_named_principal", "principal_id = NULL", CHECKOUT),
            ("operation_named_principal", "principal_id = id", SIGNUP),
            ("operation_idempotency_complete", "idempotency_scope = NULL", SIGNUP),
            ("operation_pending_is_sent_again", "next_send_at = now()", SIGNUP),
            ("operation_finished_has_instant", "finished_at = NULL", SIGNUP),
            ("operation_success_has_result", "result = NULL", SIGNUP),
            ("operation_failure_has_problem", "problem = '{}'", SIGNUP),
        ],
    ),
    refused("operation_accepted_once", "twice", copy("operations", SIGNUP, NEW_ID)),
    refused(
        "audit_actor_known",
        "god",
        copy("audit_log", newest("audit_log", "account_id = %(card)s"), f"{NEW_ID}, 'actor_kind', 'god'"),
    ),
]


@pytest.mark.parametrize(("constraint", "statements"), CASES)
def test_the_database_refuses(healthy: Healthy, constraint: str, statements: tuple[str, ...]) -> None:
    with healthy.undone() as tx:
        *preparations, last = statements
        for statement in preparations:
            tx.execute(statement, **healthy.ids)
        with pytest.raises(DBAPIError) as refusal:
            tx.execute(last, **healthy.ids)

    assert isinstance(refusal.value.orig, psycopg.Error)
    assert refusal.value.orig.diag.constraint_name == constraint


def test_every_named_constraint_has_a_case(healthy: Healthy) -> None:
    with healthy.undone() as tx:
        named = tx.rows(
            """
            SELECT conname::text AS name FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND contype <> 'n' AND conname !~ '(_pkey|_fkey|_pkc)$'
            UNION
            SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            WHERE i.indisunique AND NOT i.indisprimary AND c.relnamespace = 'public'::regnamespace
            UNION
            SELECT convert_from(rtrim(tgargs, '\\x00'), 'UTF8') FROM pg_trigger WHERE NOT tgisinternal
            """
        )
    tried = {param.values[0] for param in CASES}  # type: ignore[attr-defined]
    assert {row.name for row in named} - ANCHORS == tried
