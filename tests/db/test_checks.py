"""Each invariant is broken in one row, which its check finds; an unbroken world breaks none.

A case says in SQL what goes wrong, with the schema's own refusals switched off: no trigger and no foreign key
fires, and constraints and indexes that stand in the way are dropped first. Everything is rolled back.
"""

import pytest
from sqlalchemy.exc import DBAPIError

from shared.db import checks, plans
from shared.db.checks import CHECKS, WARNINGS
from shared.db.engine import Tx
from tests.db.world import Healthy, copy, drop, newest


def case(check: str, what: str, *statements: str) -> object:
    """statements: the last one breaks exactly one row and returns what the check should name."""
    return pytest.param(check, statements, id=f"{check}: {what}")


LIVE = "status <> 'ended'"
PLAN = "(SELECT id FROM plans WHERE slug = '{}')"
ENTERPRISE = PLAN.format("enterprise")
OTHER_USER = "(SELECT id FROM users WHERE account_id = %(expired)s)"
FIRST_GRANT = "id = (SELECT grant_id FROM credit_transactions WHERE account_id = %(trial)s AND seq = 1)"
FIRST_PERIOD = "account_id = %(renewed)s AND previous_ends_at IS NULL"
SECOND_PERIOD = """
    (subscription_id, starts_at) = (
        SELECT subscription_id, starts_at FROM subscription_periods WHERE account_id = %(renewed)s
        ORDER BY starts_at OFFSET 1 LIMIT 1
    )
    """
FAILED = "status = 'failed', problem = 'x', applied_at = NULL"
REFUND = "amount_minor = 4450"
REFUND_KEY = f"(SELECT 'refund:' || replace(id::text, '-', '') FROM refunds WHERE {REFUND})"
IMPORTED_REFERENCE = "(SELECT reference FROM invoices WHERE account_id = %(imported)s)"
VOID = "status = 'void', voided_at = now(), paid_at = NULL"

BREAKS = [
    # Accounts and plans
    case(
        "system_account_exactly_one",
        "two",
        "DROP INDEX account_only_one_system",
        drop("accounts", "account_system_has_fixed_id", "account_system_is_inert"),
        "UPDATE accounts SET kind = 'system' WHERE id = %(expired)s RETURNING 2",
    ),
    case(
        "system_account_exactly_one",
        "under another id",
        drop("accounts", "account_system_has_fixed_id"),
        "UPDATE accounts SET id = gen_random_uuid() WHERE kind = 'system' RETURNING id",
    ),
    case("system_account_exactly_one", "none", "DELETE FROM accounts WHERE kind = 'system' RETURNING 0"),
    *(
        case(
            "system_account_owns_nothing",
            table,
            *([drop(table, constraint)] if constraint else []),
            f"UPDATE {table} SET account_id = %(system)s WHERE {where} RETURNING {key}",
        )
        for table, constraint, where, key in [
            ("users", "user_not_of_system_account", "account_id = %(expired)s", "id"),
            ("subscriptions", "subscription_not_of_system_account", "account_id = %(expired)s", "id"),
            ("invoices", "invoice_not_of_system_account", "account_id = %(card)s", "id"),
            ("payments", None, "account_id = %(card)s", "id"),
            ("credit_grants", "credit_grant_not_of_system_account", FIRST_GRANT, "id"),
            ("credit_transactions", None, "account_id = %(card)s AND seq = 1", "grant_id"),
            ("sites", "site_not_of_system_account", "account_id = %(trial)s", "id"),
            ("api_keys", None, "account_id = %(trial)s", "id"),
        ]
    ),
    case(
        "system_account_owns_nothing",
        "schedule",
        drop("accounts", "account_system_is_inert"),
        """
        UPDATE accounts SET next_transition = 'renewal', next_transition_at = now()
        WHERE kind = 'system' RETURNING id
        """,
    ),
    case(
        "enterprise_by_admin_only",
        "may be bought",
        drop("plan_assigners", "enterprise_by_admin_only"),
        f"INSERT INTO plan_assigners VALUES ({ENTERPRISE}, 'enterprise', 'checkout') RETURNING plan_id",
    ),
    case(
        "enterprise_by_admin_only",
        "was bought",
        f"UPDATE subscriptions SET assigned_by = 'checkout' WHERE account_id = %(enterprise)s AND {LIVE} RETURNING id",
    ),
    case(
        "enterprise_by_admin_only",
        "is coming",
        f"""
        UPDATE subscriptions SET next_plan_id = {ENTERPRISE}, next_plan_assigned_by = 'checkout'
        WHERE account_id = %(card)s RETURNING id
        """,
    ),
    case(
        "enterprise_by_admin_only",
        "is invoiced",
        f"UPDATE invoices SET plan_id = {ENTERPRISE} WHERE account_id = %(card)s RETURNING id",
    ),
    case(
        "signup_gets_trial_or_free_only",
        "may be had",
        drop("plan_assigners", "signup_gets_trial_or_free_only"),
        f"INSERT INTO plan_assigners VALUES ({PLAN.format('scale')}, 'scale', 'signup') RETURNING plan_id",
    ),
    case(
        "signup_gets_trial_or_free_only",
        "was had",
        "UPDATE subscriptions SET assigned_by = 'signup' WHERE account_id = %(card)s RETURNING id",
    ),
    case(
        "plan_taken_as_assignable",
        "subscription",
        "UPDATE subscriptions SET assigned_by = 'admin' WHERE account_id = %(trial)s RETURNING id",
    ),
    case(
        "plan_taken_as_assignable",
        "next plan",
        f"""
        UPDATE subscriptions SET next_plan_id = {PLAN.format("free-trial")}, next_plan_assigned_by = 'checkout'
        WHERE account_id = %(card)s RETURNING id
        """,
    ),
    case(
        "plan_taken_as_assignable",
        "invoice",
        "UPDATE invoices SET assigned_by = 'signup' WHERE account_id = %(card)s RETURNING id",
    ),
    case(
        "account_keeps_an_owner",
        "removed",
        "UPDATE users SET deleted_at = now() WHERE account_id = %(card)s RETURNING account_id",
    ),
    case(
        "account_keeps_an_owner",
        "demoted",
        "UPDATE users SET role = 'admin' WHERE account_id = %(card)s RETURNING account_id",
    ),
    case(
        "rows_stay_within_one_account",
        "invitations",
        f"""
        INSERT INTO invitations (id, account_id, email, role, invited_by, created_at, expires_at)
        VALUES (gen_random_uuid(), %(card)s, 'bob@example.com', 'viewer', {OTHER_USER}, now(), now() + interval '1 day')
        RETURNING id
        """,
    ),
    *(
        case("rows_stay_within_one_account", table, f"UPDATE {table} SET {change} WHERE {where} RETURNING {key}")
        for table, change, where, key in [
            ("subscription_periods", "account_id = %(trial)s", FIRST_PERIOD, "subscription_id"),
            ("invoices", "account_id = %(trial)s", "account_id = %(past_due)s AND purpose = 'renewal'", "id"),
            ("payments", "account_id = %(trial)s", "account_id = %(card)s", "id"),
            ("bank_transfers", "account_id = %(trial)s", "account_id = %(awaiting)s", "id"),
            ("bank_transfers", f"submitted_by = {OTHER_USER}", "account_id = %(awaiting)s", "id"),
            ("credit_grants", "account_id = %(card)s", FIRST_GRANT, "id"),
            (
                "credit_transactions",
                "account_id = %(card)s, seq = 99",
                "account_id = %(trial)s AND seq = 1",
                "grant_id",
            ),
            ("holds", "account_id = %(expired)s", "account_id = %(trial)s AND status = 'open'", "id"),
            ("api_keys", f"created_by = {OTHER_USER}", "account_id = %(trial)s", "id"),
        ]
    ),
    case(
        "rows_stay_within_one_account",
        "sites",
        "UPDATE sites SET account_id = %(card)s WHERE account_id = %(trial)s",
        "SELECT id FROM api_keys WHERE account_id = %(trial)s",
    ),
    # Subscriptions and their periods
    case(
        "live_subscription_fits_account",
        "two live ones",
        "DROP INDEX subscription_one_live_per_account",
        """
        UPDATE subscriptions SET status = 'active', ended_at = NULL, end_reason = NULL, activated_at = started_at
        WHERE account_id = %(returned)s AND status = 'ended' RETURNING account_id
        """,
    ),
    case(
        "live_subscription_fits_account",
        "active without one",
        "UPDATE accounts SET status = 'active' WHERE id = %(expired)s RETURNING id",
    ),
    case(
        "live_subscription_fits_account",
        "suspended with one",
        "UPDATE accounts SET status = 'suspended' WHERE id = %(card)s RETURNING id",
    ),
    *(
        case("account_status_fits_subscription", what, f"UPDATE accounts SET {change} WHERE id = {who} RETURNING id")
        for what, change, who in [
            ("active, not past due", "status = 'active'", "%(past_due)s"),
            ("active, not in trial", "status = 'active'", "%(trial)s"),
            ("cancelled, not suspended", "status = 'cancelled'", "%(expired)s"),
            ("suspended, not cancelled", "status = 'suspended'", "%(cancelled)s"),
            ("another reason", "status_reason = 'payment_overdue'", "%(expired)s"),
            ("a reason for nothing", "status_reason = 'trial_expired'", "%(card)s"),
        ]
    ),
    case(
        "account_status_fits_subscription",
        "never had one",
        "DELETE FROM subscriptions WHERE account_id = %(expired)s RETURNING account_id",
    ),
    case(
        "period_has_length",
        "none",
        drop("subscription_periods", "period_has_length"),
        f"UPDATE subscription_periods SET ends_at = starts_at WHERE {FIRST_PERIOD} RETURNING subscription_id",
    ),
    case(
        "period_no_overlap",
        "within a subscription",
        drop("subscription_periods", "period_no_overlap"),
        f"UPDATE subscription_periods SET ends_at = ends_at + interval '1 s' WHERE {FIRST_PERIOD} RETURNING account_id",
    ),
    case(
        "period_no_overlap",
        "of two subscriptions",
        drop("subscription_periods", "period_no_overlap"),
        """
        UPDATE subscription_periods SET ends_at = ends_at + interval '7 days'
        WHERE account_id = %(returned)s AND starts_at = (
            SELECT min(starts_at) FROM subscription_periods WHERE account_id = %(returned)s
        ) RETURNING account_id
        """,
    ),
    case(
        "period_leaves_no_gap",
        "of a second",
        f"""
        UPDATE subscription_periods SET ends_at = ends_at - interval '1 s' WHERE {FIRST_PERIOD}
        RETURNING subscription_id
        """,
    ),
    case(
        "period_leaves_no_gap",
        "of a period",
        f"DELETE FROM subscription_periods WHERE {SECOND_PERIOD} RETURNING subscription_id",
    ),
    case(
        "period_leaves_no_gap",
        "unsaid",
        "DROP INDEX period_only_one_first",
        f"UPDATE subscription_periods SET previous_ends_at = NULL WHERE {SECOND_PERIOD} RETURNING subscription_id",
    ),
    case(
        "periods_cover_subscription",
        "a later first",
        "UPDATE subscriptions SET started_at = started_at - interval '1 s' WHERE account_id = %(card)s RETURNING id",
    ),
    case(
        "periods_cover_subscription",
        "an earlier last",
        """
        UPDATE subscription_periods SET ends_at = ends_at - interval '1 s' WHERE account_id = %(expired)s
        RETURNING subscription_id
        """,
    ),
    case(
        "periods_cover_subscription",
        "none",
        "DELETE FROM subscription_periods WHERE account_id = %(expired)s RETURNING subscription_id",
    ),
    *(
        case(
            "current_period_is_granted",
            what,
            f"UPDATE subscription_periods SET {change} WHERE account_id = %(card)s RETURNING subscription_id",
        )
        for what, change in [
            ("another start", "starts_at = starts_at - interval '1 s'"),
            ("another end", "ends_at = ends_at - interval '1 s'"),
            ("another plan", f"plan_id = {ENTERPRISE}"),
            ("another phase", "phase = 7"),
            ("another number", "period_index = 7"),
        ]
    ),
    *(
        case("period_follows_its_anchor", what, f"UPDATE subscriptions SET {change} WHERE {where} RETURNING id")
        for what, change, where in [
            ("another anchor", "anchor_at = anchor_at - interval '1 day'", "account_id = %(card)s"),
            ("another number", "period_index = period_index + 1", "account_id = %(renewed)s"),
            ("no such zone", "time_zone = 'Mars/Olympus'", "account_id = %(card)s"),
            ("a longer trial", "trial_ends_at = trial_ends_at + interval '1 day'", "account_id = %(trial)s"),
            ("a longer wait", "grace_ends_at = grace_ends_at + interval '1 day'", "account_id = %(awaiting)s"),
        ]
    ),
    case(
        "active_period_is_paid",
        "the first",
        f"UPDATE invoices SET {VOID} WHERE account_id = %(card)s RETURNING account_id",
    ),
    case(
        "active_period_is_paid",
        "a renewal",
        f"""
        UPDATE invoices SET {VOID} WHERE account_id = %(renewed)s AND period_starts_at = (
            SELECT current_period_starts_at FROM subscriptions WHERE account_id = %(renewed)s
        ) RETURNING subscription_id
        """,
    ),
    case(
        "past_due_owes_or_awaits",
        "owes nothing",
        f"UPDATE invoices SET {VOID} WHERE account_id = %(past_due)s AND status = 'open' RETURNING subscription_id",
    ),
    case(
        "past_due_owes_or_awaits",
        "awaits nothing",
        "DELETE FROM bank_transfers WHERE account_id = %(awaiting)s RETURNING account_id",
    ),
    case(
        "ended_subscription_owes_nothing",
        "still open",
        """
        UPDATE invoices SET status = 'open', voided_at = NULL WHERE account_id = %(overdue)s AND status = 'void'
        RETURNING id
        """,
    ),
    *(
        case("schedule_follows_from_state", what, f"UPDATE {table} SET {change} WHERE {where} RETURNING {key}")
        for what, table, change, where, key in [
            ("too late", "accounts", "next_transition_at = now()", "id = %(card)s", "id"),
            ("another", "accounts", "next_transition = 'grace_end'", "id = %(card)s", "id"),
            ("none", "accounts", "next_transition = NULL, next_transition_at = NULL", "id = %(card)s", "id"),
            (
                "an expiry of nothing",
                "accounts",
                "next_transition = 'grant_expiry', next_transition_at = '2026-02-01'",
                "id = %(spent)s",
                "id",
            ),
            (
                "another than a spent grant's",
                "accounts",
                "next_transition = 'renewal'",
                "id = %(spent)s",
                "id",
            ),
            ("access for ever", "accounts", "access_ends_at = NULL", "id = %(trial)s", "id"),
            ("another renewal", "subscriptions", "renews_at = now()", "account_id = %(trial)s", "account_id"),
        ]
    ),
    case(
        "schedule_follows_from_state",
        "too late for a spent grant",
        """
        UPDATE credit_grants SET expires_at = '2027-01-01' WHERE account_id = %(spent)s AND remaining = 0
        """,
        """
        UPDATE accounts SET next_transition = 'grant_expiry', next_transition_at = '2027-01-01'
        WHERE id = %(spent)s RETURNING id
        """,
    ),
    case(
        "schedule_follows_from_state",
        "unreadable",
        drop("accounts", "account_status_known"),
        "UPDATE accounts SET status = 'odd' WHERE id = %(card)s RETURNING id",
    ),
    case(
        "schedule_follows_from_state",
        "underivable",
        "UPDATE subscriptions SET plan_id = gen_random_uuid() WHERE account_id = %(renewed)s RETURNING account_id",
    ),
    # Credits
    case(
        "balance_is_sum_of_ledger",
        "balance",
        "UPDATE accounts SET balance_credits = balance_credits + 1 WHERE id = %(card)s RETURNING id",
    ),
    case(
        "balance_is_sum_of_ledger",
        "ledger",
        "DELETE FROM credit_transactions WHERE account_id = %(expired)s AND seq = 1 RETURNING account_id",
    ),
    case(
        "balance_is_sum_of_grants",
        "balance",
        "UPDATE accounts SET balance_credits = balance_credits + 1 WHERE id = %(card)s RETURNING id",
    ),
    case(
        "balance_is_sum_of_grants",
        "grant",
        f"UPDATE credit_grants SET remaining = remaining - 1 WHERE {FIRST_GRANT} RETURNING account_id",
    ),
    case(
        "balance_not_negative",
        "balance",
        drop("accounts", "credit_balance_not_negative", "credit_held_within_balance"),
        "UPDATE accounts SET balance_credits = -1 WHERE id = %(expired)s RETURNING id",
    ),
    case(
        "balance_not_negative",
        "held",
        drop("accounts", "credit_held_within_balance"),
        "UPDATE accounts SET held_credits = balance_credits + 1 WHERE id = %(expired)s RETURNING id",
    ),
    case(
        "balance_not_negative",
        "once",
        drop("credit_transactions", "credit_transaction_balance_not_negative"),
        "UPDATE credit_transactions SET balance_after = -1 WHERE account_id = %(card)s AND seq = 2 RETURNING seq",
    ),
    case(
        "ledger_numbered_without_gap",
        "a row is gone",
        "DELETE FROM credit_transactions WHERE account_id = %(card)s AND seq = 2 RETURNING account_id",
    ),
    case(
        "ledger_numbered_without_gap",
        "a number is missing",
        "UPDATE credit_transactions SET seq = 99 WHERE account_id = %(card)s AND seq = 2 RETURNING account_id",
    ),
    case(
        "ledger_numbered_without_gap",
        "miscounted",
        "UPDATE accounts SET ledger_seq = ledger_seq + 1 WHERE id = %(card)s RETURNING id",
    ),
    case(
        "ledger_balances_chain",
        "the first",
        "UPDATE credit_transactions SET balance_after = 1 WHERE account_id = %(card)s AND seq = 1 RETURNING account_id",
    ),
    case(
        "ledger_balances_chain",
        "the last",
        f"""
        UPDATE credit_transactions SET amount = amount - 1 WHERE account_id = %(card)s
           AND {newest("credit_transactions", "account_id = %(card)s", "seq")} RETURNING account_id
        """,
    ),
    *(
        case(
            "ledger_amount_fits_kind",
            what,
            drop("credit_transactions", "credit_transaction_sign_fits_kind"),
            f"UPDATE credit_transactions SET {change} WHERE account_id = %(card)s AND {row} RETURNING account_id",
        )
        for what, change, row in [
            ("consumption that adds", "kind = 'consume'", "seq = 1"),
            ("a seed that takes", "kind = 'seed'", "idempotency_key = 'consume:spent' AND line = 0"),
            ("a row of nothing", "kind = 'adjust', amount = 0", "seq = 1"),
            ("an unknown kind", "kind = 'gift'", "seq = 1"),
        ]
    ),
    case(
        "ledger_posted_once",
        "twice",
        drop("credit_transactions", "credit_transaction_posted_once"),
        copy("credit_transactions", "account_id = %(card)s AND seq = 1", "'seq', 99", "idempotency_key"),
    ),
    case(
        "ledger_guarded",
        "disabled",
        "ALTER TABLE credit_transactions DISABLE TRIGGER credit_transaction_append_only",
        "SELECT 'credit_transaction_append_only'",
    ),
    *(
        case("ledger_guarded", f"no {trigger}", f"DROP TRIGGER {trigger} ON {table}", f"SELECT '{trigger}'")
        for table, trigger in [
            ("credit_transactions", "credit_transaction_append_only"),
            ("credit_transactions", "credit_transaction_never_truncated"),
            ("events", "event_append_only"),
            ("events", "event_never_truncated"),
            ("audit_log", "audit_append_only"),
            ("audit_log", "audit_never_truncated"),
            ("accounts", "account_never_removed"),
            ("sites", "site_never_removed"),
        ]
    ),
    case(
        "tenants_kept_apart",
        "off",
        "ALTER TABLE credit_transactions DISABLE ROW LEVEL SECURITY",
        "SELECT 'credit_transactions'",
    ),
    case(
        "tenants_kept_apart",
        "a table without it",
        "CREATE TABLE notes (id uuid PRIMARY KEY, account_id uuid)",
        "SELECT 'notes'",
    ),
    case(
        "tenants_kept_apart",
        "open to all",
        "CREATE POLICY open ON invoices TO prepaid_api USING (true)",
        "SELECT 'invoices'",
    ),
    *(
        case("tenants_kept_apart", privilege, f"GRANT {privilege} TO prepaid_api", f"SELECT '{table}'")
        for privilege, table in [
            ("INSERT ON credit_transactions", "credit_transactions"),
            ("UPDATE (balance_credits) ON accounts", "accounts"),
            ("DELETE ON payments", "payments"),
        ]
    ),
    *(
        case(
            "grant_within_its_amount",
            what,
            drop("credit_grants", "credit_grant_remaining_within_amount", "credit_grant_held_within_remaining"),
            f"UPDATE credit_grants SET {change} WHERE {FIRST_GRANT} RETURNING id",
        )
        for what, change in [
            ("more than given", "remaining = amount + 1"),
            ("less than nothing", "remaining = -1, held = -1"),
            ("more held than there is", "held = remaining + 1"),
            ("less held than nothing", "held = -1"),
        ]
    ),
    case(
        "grant_remaining_is_its_ledger",
        "grant",
        f"UPDATE credit_grants SET remaining = remaining - 1 WHERE {FIRST_GRANT} RETURNING id",
    ),
    case(
        "grant_remaining_is_its_ledger",
        "ledger",
        """
        DELETE FROM credit_transactions WHERE account_id = %(trial)s AND idempotency_key = 'consume:spent'
        RETURNING grant_id
        """,
    ),
    case(
        "grant_opened_by_its_ledger_row",
        "gone",
        "DELETE FROM credit_transactions WHERE account_id = %(trial)s AND seq = 1 RETURNING grant_id",
    ),
    *(
        case(
            "grant_opened_by_its_ledger_row",
            what,
            f"UPDATE credit_transactions SET {change} WHERE account_id = %(trial)s AND seq = 1 RETURNING grant_id",
        )
        for what, change in [
            ("another amount", "amount = amount - 1"),
            ("another kind", "kind = 'adjust'"),
            ("another instant", "effective_at = effective_at + interval '1 s'"),
        ]
    ),
    case(
        "seed_once_per_credit_month",
        "twice",
        drop("credit_grants", "credit_seed_once_per_credit_month"),
        copy("credit_grants", FIRST_GRANT, "'id', gen_random_uuid()", "subscription_id"),
    ),
    *(
        case(
            "seed_names_its_month",
            what,
            drop("credit_grants", "credit_seed_names_its_month"),
            f"UPDATE credit_grants SET {change} WHERE {FIRST_GRANT} RETURNING id",
        )
        for what, change in [
            ("no subscription", "subscription_id = NULL"),
            ("no phase", "phase = NULL"),
            ("no month", "credit_month_index = NULL"),
            ("a month to come", "credit_month_index = 1"),
            ("a phase to come", "phase = 1"),
        ]
    ),
    *(
        case(
            "reversal_undoes_its_row",
            what,
            f"UPDATE credit_transactions SET {change} WHERE account_id = %(card)s AND kind = 'reverse' RETURNING seq",
        )
        for what, change in [
            ("too little", "amount = amount - 1"),
            ("a later row", "reverses_seq = seq + 1"),
            ("what another grant took", "grant_id = gen_random_uuid()"),
            ("what was given, and more", "amount = -9999, reverses_seq = 1"),
        ]
    ),
    case(
        "row_reversed_once",
        "twice",
        "DROP INDEX credit_transaction_reversed_once",
        copy(
            "credit_transactions", "account_id = %(card)s AND kind = 'reverse'", "'seq', 99, 'line', 9", "reverses_seq"
        ),
    ),
    case(
        "row_reversed_once",
        "twice by a refund",
        "DROP INDEX credit_transaction_reversed_once",
        copy("credit_transactions", f"idempotency_key = {REFUND_KEY}", "'seq', 99, 'line', 9", "reverses_seq"),
    ),
    case(
        "seed_reversed_within_its_amount",
        "more in all",
        f"""
        UPDATE credit_transactions SET amount = -1000 WHERE idempotency_key = {REFUND_KEY}
        RETURNING reverses_seq
        """,
    ),
    case(
        "credits_event_once_per_month",
        "twice",
        "DROP INDEX event_recorded_once",
        copy("events", "account_id = %(spent)s AND kind = 'credits.exhausted'", "'data', '{}'::jsonb", "key"),
    ),
    *(
        case(
            "event_is_about_its_account",
            kind,
            f"""
            UPDATE events SET account_id = %(expired)s
            WHERE id = (SELECT max(id) FROM events WHERE kind = '{kind}' AND account_id = %({whose})s)
            RETURNING subject_id
            """,
        )
        for kind, whose in [
            ("subscription.started", "card"),
            ("payment.succeeded", "card"),
            ("payment.refunded", "refunded"),
            ("bank_transfer.approved", "transfer"),
            ("credits.exhausted", "spent"),
        ]
    ),
    case(
        "event_is_about_its_account",
        "unapplied money of another account's invoice",
        """
        UPDATE events SET account_id = %(expired)s, kind = 'payment.unapplied'
        WHERE id = (SELECT max(id) FROM events WHERE kind = 'payment.succeeded' AND account_id = %(card)s)
        RETURNING subject_id
        """,
    ),
    case(
        "nothing_spent_after_expiry",
        "spent late",
        f"UPDATE credit_grants SET expires_at = effective_at + interval '1 us' WHERE {FIRST_GRANT} RETURNING id",
    ),
    case(
        "held_is_sum_of_open_holds",
        "account",
        "UPDATE accounts SET held_credits = held_credits + 1 WHERE id = %(card)s RETURNING id",
    ),
    case(
        "held_is_sum_of_open_holds",
        "hold",
        "UPDATE holds SET amount = amount + 1 WHERE account_id = %(card)s AND status = 'open' RETURNING account_id",
    ),
    case(
        "hold_is_sum_of_allocations",
        "allocation",
        """
        UPDATE hold_allocations SET amount = amount + 1
        WHERE hold_id = (SELECT id FROM holds WHERE account_id = %(trial)s AND status = 'open') RETURNING hold_id
        """,
    ),
    case(
        "hold_is_sum_of_allocations",
        "no allocation",
        """
        DELETE FROM hold_allocations
        WHERE hold_id = (SELECT id FROM holds WHERE account_id = %(trial)s AND status = 'captured') RETURNING hold_id
        """,
    ),
    case(
        "grant_held_is_open_allocations",
        "grant",
        f"UPDATE credit_grants SET held = held - 1 WHERE {FIRST_GRANT} RETURNING id",
    ),
    case(
        "grant_held_is_open_allocations",
        "hold",
        """
        DELETE FROM hold_allocations
        WHERE hold_id = (SELECT id FROM holds WHERE account_id = %(trial)s AND status = 'open') RETURNING grant_id
        """,
    ),
    case(
        "hold_outlives_no_grant",
        "it does",
        """
        UPDATE holds SET expires_at = expires_at + interval '1 year'
        WHERE account_id = %(trial)s AND status = 'open' RETURNING id
        """,
    ),
    case(
        "capture_is_in_ledger",
        "another amount",
        "UPDATE holds SET captured_amount = 61 WHERE account_id = %(trial)s AND status = 'captured' RETURNING id",
    ),
    case(
        "capture_is_in_ledger",
        "released",
        """
        UPDATE holds SET status = 'released', captured_amount = 0
        WHERE account_id = %(trial)s AND status = 'captured' RETURNING id
        """,
    ),
    # Invoices, payments, bank transfers
    case("invoice_numbers_gapless", "gone", "DELETE FROM invoices WHERE number = 3 RETURNING number_year"),
    case(
        "invoice_numbers_gapless",
        "the last gone",
        f"DELETE FROM invoices WHERE {newest('invoices', 'true', 'number')} RETURNING number_year",
    ),
    case(
        "invoice_numbers_gapless",
        "twice",
        drop("invoices", "invoice_number_unique"),
        "UPDATE invoices SET number = 4 WHERE number = 3 RETURNING number_year",
    ),
    case(
        "invoice_numbers_gapless",
        "miscounted",
        "UPDATE invoice_numbers SET last_number = last_number + 1 RETURNING year",
    ),
    case("invoice_numbers_gapless", "not counted", "DELETE FROM invoice_numbers RETURNING year"),
    case(
        "invoice_numbered_in_its_year",
        "another year",
        "UPDATE invoices SET number_year = 2025 WHERE account_id = %(card)s RETURNING id",
    ),
    case(
        "invoice_reference_is_its_number",
        "another's",
        "UPDATE invoices SET reference = 'RF18539007547034' WHERE account_id = %(card)s RETURNING id",
    ),
    case(
        "renewal_invoiced_once",
        "twice",
        "DROP INDEX invoice_one_per_period",
        copy(
            "invoices",
            "account_id = %(past_due)s AND purpose = 'renewal'",
            "'id', gen_random_uuid(), 'number', 99, 'reference', 'again'",
            "subscription_id",
        ),
    ),
    case(
        "paid_invoice_has_one_payment",
        "none",
        f"UPDATE payments SET {FAILED} WHERE account_id = %(card)s RETURNING invoice_id",
    ),
    case(
        "paid_invoice_has_one_payment",
        "two",
        "DROP INDEX invoice_paid_once",
        copy(
            "payments",
            "account_id = %(card)s",
            "'id', gen_random_uuid(), 'operation_id', gen_random_uuid(), 'external_payment_id', 'again'",
            "invoice_id",
        ),
    ),
    case(
        "succeeded_payment_paid_its_invoice",
        "void",
        f"UPDATE invoices SET {VOID} WHERE account_id = %(card)s RETURNING id",
    ),
    case(
        "succeeded_payment_paid_its_invoice",
        "gone",
        "DELETE FROM invoices WHERE account_id = %(card)s RETURNING id",
    ),
    *(
        case(
            "payment_matches_its_invoice",
            what,
            f"UPDATE payments SET {change} WHERE account_id = %(transfer)s RETURNING id",
        )
        for what, change in [
            ("amount", "amount_minor = amount_minor - 1"),
            ("currency", "currency = 'EUR'"),
            ("method", "provider = 'manual'"),
            ("instant", "applied_at = applied_at + interval '1 s'"),
        ]
    ),
    case(
        "payment_matches_its_invoice",
        "no reason stated",
        "UPDATE bank_transfers SET override_reason = NULL WHERE account_id = %(overridden)s RETURNING payment_id",
    ),
    case(
        "payment_settles_once",
        "twice",
        "DROP INDEX payment_settles_once",
        """
        UPDATE payments SET external_payment_id =
            (SELECT external_payment_id FROM payments WHERE account_id = %(past_due)s AND status = 'succeeded')
        WHERE account_id = %(card)s RETURNING external_payment_id
        """,
    ),
    case(
        "payment_intent_answered",
        "unanswered",
        "UPDATE payments SET status = 'pending', applied_at = NULL WHERE account_id = %(card)s RETURNING id",
    ),
    case(
        "saved_method_can_be_charged",
        "nothing saved",
        "UPDATE accounts SET saved_payment_method = 'stripe' WHERE id = %(card)s RETURNING id",
    ),
    case(
        "refunded_is_sum_of_refunds",
        "payment",
        "UPDATE payments SET refunded_minor = refunded_minor - 1 WHERE account_id = %(refunded)s RETURNING id",
    ),
    case(
        "refunded_is_sum_of_refunds",
        "failed",
        f"UPDATE refunds SET status = 'failed', problem = 'x' WHERE {REFUND} RETURNING payment_id",
    ),
    case("refunded_is_sum_of_refunds", "gone", f"DELETE FROM refunds WHERE {REFUND} RETURNING payment_id"),
    case(
        "refund_is_of_its_payments_currency",
        "another",
        f"UPDATE refunds SET currency = 'EUR' WHERE {REFUND} RETURNING id",
    ),
    case(
        "refund_reversed_as_the_ledger_says",
        "refund",
        f"UPDATE refunds SET reversed_credits = reversed_credits + 1 WHERE {REFUND} RETURNING id",
    ),
    case(
        "refund_reversed_as_the_ledger_says",
        "ledger",
        f"DELETE FROM credit_transactions WHERE idempotency_key = {REFUND_KEY}",
        f"SELECT id FROM refunds WHERE {REFUND}",
    ),
    case(
        "refund_reversed_as_the_ledger_says",
        "another payment",
        f"""
        UPDATE credit_transactions SET source_id = gen_random_uuid() WHERE idempotency_key = {REFUND_KEY}
        RETURNING idempotency_key
        """,
    ),
    case(
        "refund_reversed_as_the_ledger_says",
        "no refund",
        f"DELETE FROM refunds WHERE {REFUND} RETURNING 'refund:' || replace(id::text, '-', '')",
    ),
    case(
        "refund_answered",
        "unanswered",
        f"""
        UPDATE refunds SET status = 'pending', confirmed_at = NULL, external_refund_id = NULL WHERE {REFUND}
        RETURNING id
        """,
    ),
    *(
        case(
            "approved_transfer_has_its_payment",
            what,
            f"UPDATE bank_transfers SET {change} WHERE account_id = %(transfer)s RETURNING id",
        )
        for what, change in [
            ("another", "payment_id = gen_random_uuid()"),
            ("another amount", "received_amount_minor = 1"),
            ("another currency", "received_currency = 'EUR'"),
            ("another id", "bank_transaction_id = 'x'"),
            ("another invoice", "invoice_id = gen_random_uuid()"),
        ]
    ),
    case(
        "approved_transfer_has_its_payment",
        "failed",
        f"UPDATE payments SET {FAILED} WHERE account_id = %(transfer)s",
        "SELECT id FROM bank_transfers WHERE account_id = %(transfer)s",
    ),
    case(
        "approved_transfer_has_its_payment",
        "rejected with one",
        drop("bank_transfers", "bank_transfer_approval_is_complete"),
        "UPDATE bank_transfers SET payment_id = gen_random_uuid() WHERE account_id = %(rejected)s RETURNING id",
    ),
    case(
        "transfer_payment_was_approved",
        "not at all",
        "DELETE FROM bank_transfers WHERE account_id = %(transfer)s RETURNING payment_id",
    ),
    *(
        case(
            "transfer_decided_once",
            status,
            f"DROP INDEX bank_transfer_one_{status}_per_invoice",
            copy("bank_transfers", f"account_id = {who}", "'id', gen_random_uuid()", "invoice_id"),
        )
        for status, who in [("approved", "%(transfer)s"), ("pending", "%(awaiting)s")]
    ),
    case(
        "money_in_has_its_payment",
        "none",
        "UPDATE payments SET bank_entry_id = NULL WHERE external_payment_id = 'unknown'",
        "SELECT id FROM bank_entries WHERE transaction_id = 'unknown'",
    ),
    case(
        "money_in_has_its_payment",
        "two",
        "DROP INDEX payment_of_bank_entry",
        copy(
            "payments",
            "external_payment_id = 'unknown'",
            "'id', gen_random_uuid(), 'external_payment_id', 'again'",
            "bank_entry_id",
        ),
    ),
    case(
        "money_in_has_its_payment",
        "one of money out",
        """
        UPDATE payments SET bank_entry_id = (SELECT id FROM bank_entries WHERE transaction_id = 'fee')
        WHERE account_id = %(card)s RETURNING bank_entry_id
        """,
    ),
    *(
        case(
            "entry_payment_is_its_entry",
            what,
            f"UPDATE payments SET {change} WHERE external_payment_id = 'exact' RETURNING id",
        )
        for what, change in [
            ("by card", "provider = 'stripe'"),
            ("under another id", "external_payment_id = 'x'"),
            ("of no entry", "bank_entry_id = gen_random_uuid()"),
        ]
    ),
    case(
        "entry_payment_is_its_entry",
        "under the external id of an entry that has another",
        """
        UPDATE payments p SET external_payment_id = e.iban FROM bank_entries e
        WHERE e.id = p.bank_entry_id AND p.external_payment_id = 'unknown' RETURNING p.id
        """,
    ),
    case(
        "entry_payment_is_its_entry",
        "failed",
        drop("payments", "payment_unapplied_was_received"),
        """
        UPDATE payments SET status = 'failed', problem = 'x' WHERE external_payment_id = 'unknown' RETURNING id
        """,
    ),
    *(
        case(
            "decision_is_audited",
            action,
            f"DELETE FROM audit_log WHERE action = '{action}' AND {where} RETURNING {key}",
        )
        for action, where, key in [
            ("bank_transfer.approved", "account_id = %(transfer)s", "subject_id"),
            ("bank_transfer.rejected", "account_id = %(rejected)s", "subject_id"),
            ("payment.recorded", "account_id = %(returned)s", "operation_id"),
            (
                "payment.refunded",
                newest("audit_log", "account_id = %(refunded)s AND action = 'payment.refunded'"),
                "operation_id",
            ),
            ("plan.assigned", "account_id = %(enterprise)s", "operation_id"),
            ("bank_statement.imported", "true", "operation_id"),
            (
                "credits.adjusted",
                newest("audit_log", "account_id = %(card)s AND action = 'credits.adjusted'"),
                "operation_id",
            ),
            ("credits.reversed", "account_id = %(card)s", "operation_id"),
        ]
    ),
    # Operations, and the schema itself
    *(
        case(
            "operation_ended_completely",
            what,
            drop(
                "operations",
                "operation_success_has_result",
                "operation_failure_has_problem",
                "operation_finished_has_instant",
                "operation_pending_is_sent_again",
            ),
            f"UPDATE operations SET {change} WHERE account_id = %(expired)s AND kind = 'sign_up' RETURNING id",
        )
        for what, change in [
            ("succeeded without a result", "result = NULL"),
            ("succeeded with a problem", "problem = '{}'"),
            ("failed without a problem", "status = 'failed', result = NULL"),
            ("never finished", "finished_at = NULL"),
            ("sent again", "next_send_at = now()"),
            ("never sent again", "status = 'pending', result = NULL, finished_at = NULL"),
        ]
    ),
    case(
        "operation_accepted_once",
        "twice",
        "DROP INDEX operation_accepted_once",
        copy(
            "operations",
            "account_id = %(expired)s AND kind = 'sign_up'",
            "'id', gen_random_uuid()",
            "idempotency_key",
        ),
    ),
    *(
        case(
            "operation_result_exists",
            key,
            f"""
            UPDATE operations SET result = result || jsonb_build_object('{key}', gen_random_uuid())
            WHERE id = (SELECT id FROM operations WHERE kind = '{kind}' AND result ? '{key}' ORDER BY id LIMIT 1)
            RETURNING id
            """,
        )
        for key, kind in [
            ("account_id", "sign_up"),
            ("user_id", "sign_up"),
            ("subscription_id", "cancel_subscription"),
            ("invoice_id", "open_invoice"),
            ("payment_id", "confirm_payment"),
            ("bank_transfer_id", "submit_bank_transfer"),
            ("statement_id", "import_bank_statement"),
        ]
    ),
    case(
        "signup_made_its_account",
        "not named",
        "UPDATE operations SET account_id = %(card)s WHERE account_id = %(expired)s AND kind = 'sign_up' RETURNING id",
    ),
    case(
        "signup_made_its_account",
        "no owner",
        "DELETE FROM users WHERE account_id = %(expired)s RETURNING account_id",
    ),
    case(
        "signup_made_its_account",
        "no account",
        "DELETE FROM accounts WHERE id = %(expired)s RETURNING id",
    ),
    case(
        "finished_operation_keeps_no_secret",
        "a hash",
        """
        UPDATE operations SET payload = payload || '{"password_hash": "x"}'
        WHERE account_id = %(expired)s AND kind = 'sign_up' RETURNING id
        """,
    ),
    case(
        "constraints_hold",
        "not proven",
        "ALTER TABLE plans ADD CONSTRAINT plan_is_cheap CHECK (price_minor < 100) NOT VALID",
        "SELECT 'plan_is_cheap'",
    ),
    case(
        "constraints_hold",
        "invalid index",
        """
        UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'user_email_unique'::regclass
        RETURNING 'user_email_unique'
        """,
    ),
]

TROUBLES = [
    case(
        "account_parked",
        "parked",
        "UPDATE accounts SET parked_at = now(), parked_reason = 'odd' WHERE id = %(card)s RETURNING id",
    ),
    case(
        "operation_dead",
        "dead",
        """
        UPDATE operations SET status = 'dead', result = NULL, finished_at = NULL, problem = '{}'
        WHERE account_id = %(expired)s AND kind = 'sign_up' RETURNING id
        """,
    ),
    case(
        "transfer_waits_in_vain",
        "void",
        f"""
        UPDATE invoices SET {VOID} WHERE id =
            (SELECT invoice_id FROM bank_transfers WHERE account_id = %(awaiting)s) RETURNING id
        """,
    ),
    case(
        "entry_brought_other_money",
        "less",
        "UPDATE bank_entries SET amount_minor = 8800 WHERE transaction_id = 'exact' RETURNING id",
    ),
    case(
        "entry_brought_other_money",
        "euros",
        "UPDATE bank_entries SET currency = 'EUR' WHERE transaction_id = 'exact' RETURNING id",
    ),
    case(
        "money_went_back",
        "a payment that the bank took back",
        f"UPDATE bank_entries SET remittance = {IMPORTED_REFERENCE} WHERE transaction_id = 'fee' RETURNING id",
    ),
    case(
        "money_went_back",
        "more than was refunded",
        "UPDATE payments SET refunded_minor = 449 WHERE external_payment_id = 'exact'",
        f"UPDATE bank_entries SET remittance = {IMPORTED_REFERENCE} WHERE transaction_id = 'fee' RETURNING id",
    ),
    case(
        "money_went_back",
        "a refund that came back",
        f"""
        UPDATE bank_entries SET reference = {IMPORTED_REFERENCE}, returned = true
        WHERE transaction_id = 'unknown' RETURNING id
        """,
    ),
    case("nobody_can_sign_up", "no way", "DELETE FROM plan_assigners WHERE assigned_by = 'signup'", "SELECT 1"),
]


def test_a_healthy_database_breaks_no_rule(healthy: Healthy) -> None:
    with healthy.database.transaction() as tx:
        assert checks.run_checks(tx, healthy.settings) == []
    with healthy.database.transaction() as tx:
        assert checks.run_warnings(tx, healthy.settings) == []


def test_the_world_holds_every_situation(healthy: Healthy) -> None:
    """Else a rule that says nothing of a situation would look healthy."""
    with healthy.undone(enforced=False) as tx:
        assert {row.status for row in tx.rows("SELECT status FROM accounts")} == {
            "trial",
            "active",
            "past_due",
            "suspended",
            "cancelled",
        }
        for table in (
            "subscription_periods",
            "payments",
            "refunds",
            "bank_transfers",
            "holds",
            "operations",
            "audit_log",
        ):
            assert tx.scalar(f"SELECT count(*) FROM {table}") > 2, table


@pytest.mark.parametrize(("name", "statements"), BREAKS)
def test_a_broken_row_is_found(healthy: Healthy, name: str, statements: tuple[str, ...]) -> None:
    with healthy.undone(enforced=False) as tx:
        culprit = break_one_row(tx, healthy, statements)
        rules = plans.load_rules(tx, healthy.settings)
        findings = {check.name: checks.find(tx, check, rules) for check in CHECKS}  # what is broken stops none of them

    finding = findings[name]
    assert finding is not None
    assert finding.found >= 1
    assert culprit in {str(value) for row in finding.rows for value in row.values()}, finding.rows


@pytest.mark.parametrize(("name", "statements"), TROUBLES)
def test_what_waits_for_somebody_is_a_warning(healthy: Healthy, name: str, statements: tuple[str, ...]) -> None:
    with healthy.undone(enforced=False) as tx:
        break_one_row(tx, healthy, statements)
        rules = plans.load_rules(tx, healthy.settings)
        found = [check.name for check in WARNINGS if checks.find(tx, check, rules)]

    assert found == [name]


def test_what_a_refund_tells_of_is_no_warning(healthy: Healthy) -> None:
    with healthy.undone(enforced=False) as tx:
        tx.execute("UPDATE payments SET refunded_minor = 450 WHERE external_payment_id = 'exact'")
        tx.execute("UPDATE payments SET refunded_minor = amount_minor WHERE external_payment_id = 'unknown'")
        tx.execute(
            f"UPDATE bank_entries SET remittance = {IMPORTED_REFERENCE}, returned = amount_minor > 0", **healthy.ids
        )
        rules = plans.load_rules(tx, healthy.settings)
        (check,) = [check for check in WARNINGS if check.name == "money_went_back"]
        assert checks.find(tx, check, rules) is None


def test_every_rule_has_a_case_that_breaks_it() -> None:
    broken = {param.values[0] for param in BREAKS}  # type: ignore[attr-defined]
    assert broken == {check.name for check in CHECKS}
    troubled = {param.values[0] for param in TROUBLES}  # type: ignore[attr-defined]
    assert troubled == {check.name for check in WARNINGS}


def test_every_rule_says_what_holds_and_how_to_repair_it() -> None:
    everything = (*CHECKS, *WARNINGS)
    assert len({check.name for check in everything}) == len(everything)
    for check in everything:
        assert check.rule.endswith("."), check.name
        assert check.repair, check.name
        assert bool(check.sql) != (check.search is not None), check.name


def test_all_rows_are_counted_and_a_few_are_shown(healthy: Healthy) -> None:
    with healthy.undone(enforced=False) as tx:
        tx.execute("INSERT INTO invoice_numbers SELECT year, 1 FROM generate_series(1900, 1999) AS year")
        (check,) = [check for check in CHECKS if check.name == "invoice_numbers_gapless"]
        finding = checks.find(tx, check, plans.load_rules(tx, healthy.settings))

    assert finding is not None
    assert finding.found == 100
    assert len(finding.rows) == checks.SAMPLE_ROWS


def test_checking_can_write_nothing_and_sees_one_instant(healthy: Healthy) -> None:
    with healthy.database.transaction() as tx:
        checks.run_checks(tx, healthy.settings)
        assert tx.scalar("SHOW transaction_isolation") == "repeatable read"
        with pytest.raises(DBAPIError, match="read-only"), tx.connection.begin_nested():
            tx.execute("UPDATE accounts SET name = 'x'")


def break_one_row(tx: Tx, healthy: Healthy, statements: tuple[str, ...]) -> str:
    *preparations, last = statements
    for statement in preparations:
        tx.execute(statement, **healthy.ids)
    ((culprit,),) = tx.rows(last, **healthy.ids)
    return str(culprit)
