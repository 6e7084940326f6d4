"""The invariants as queries: each returns the rows that break one rule, and proposes how to repair them.

They hold at rest, between any two transactions, whether or not a constraint holds them too: a restored
backup, a dropped constraint or a statement typed by hand may have broken what the schema forbids.
`python -m workers check` and the tests ask the same questions.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import Row

from shared.config import Settings, get_settings
from shared.db import account_state, bank_statements
from shared.db.engine import Tx
from shared.db.plans import load_rules
from shared.domain.account import AccountState
from shared.domain.calendar import boundary
from shared.domain.invoice import creditor_reference
from shared.domain.lifecycle import access_ends_at, low_credits, next_transition
from shared.domain.matching import references_in
from shared.domain.plan import Rules
from shared.domain.subscription import Subscription, SubscriptionStatus
from shared.errors import BillingError

SAMPLE_ROWS: Final = 20  # of the rows that break a rule, so many are returned; all are counted
CHUNK_ROWS: Final = 2_000
TIMEOUT_MINUTES: Final = 30

# Tables in which no row is an account's. Any other one is behind row-level security.
NOBODYS_TABLES: Final = """
    'plans', 'plan_assigners', 'test_clocks', 'invoice_numbers', 'job_runs', 'provider_events', 'sign_in_attempts',
    'alembic_version', 'admission_secret'
    """

Broken = dict[str, Any]
Search = Callable[[Tx, Rules], Iterator[Broken]]

# What a pure function may raise when it is handed a row that no correct program wrote.
UNREADABLE: Final = (BillingError, msgspec.MsgspecError, LookupError, ArithmeticError, TypeError, ValueError)


class Check(Struct, frozen=True, kw_only=True):
    """One rule. Either `sql` or, where a pure function has to judge, `search` finds the rows that break it."""

    name: str
    rule: str
    repair: str
    sql: str = ""
    search: Search | None = None


class Finding(Struct, frozen=True, kw_only=True):
    """A rule that does not hold: how many rows break it, and the first of them."""

    check: str
    rule: str
    repair: str
    found: int
    rows: list[Broken]


def run_checks(tx: Tx, settings: Settings | None = None) -> list[Finding]:
    """Every broken invariant; none means that the books are in order.

    tx: fresh; it becomes a read-only one that sees a single instant, whatever is written meanwhile.
    settings: the process's own unless stated; the end of access depends on them.
    """
    return _run(tx, CHECKS, settings or get_settings())


def run_warnings(tx: Tx, settings: Settings | None = None) -> list[Finding]:
    """What is no broken rule and still waits for somebody. tx and settings: as for `run_checks`."""
    return _run(tx, WARNINGS, settings or get_settings())


def find(tx: Tx, check: Check, rules: Rules) -> Finding | None:
    """What breaks one rule, or None."""
    found, rows = 0, []
    if check.search is not None:
        for broken in check.search(tx, rules):
            found += 1
            if found <= SAMPLE_ROWS:
                rows.append(broken)
    else:
        sample = tx.rows(
            f"SELECT count(*) OVER () AS found, broken.* FROM ({check.sql}) AS broken LIMIT {SAMPLE_ROWS}"  # noqa: S608
        )
        rows = [dict(row._asdict()) for row in sample]
        found = max((row.pop("found") for row in rows), default=0)
    if not found:
        return None
    return Finding(check=check.name, rule=check.rule, repair=check.repair, found=found, rows=rows)


def _run(tx: Tx, checks: Sequence[Check], settings: Settings) -> list[Finding]:
    tx.read_one_instant()
    tx.execute(f"SET LOCAL statement_timeout = '{TIMEOUT_MINUTES}min'")
    tx.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    rules = load_rules(tx, settings)
    return [finding for check in checks if (finding := find(tx, check, rules)) is not None]


# --- judged by pure functions -----------------------------------------------------------------


def _chunks(tx: Tx, sql: str) -> Iterator[Sequence[Row[Any]]]:
    """Rows of `sql`, which takes those above %(after)s in the order of their id."""
    after = UUID(int=0)
    while rows := tx.rows(sql, after=after, limit=CHUNK_ROWS):
        yield rows
        after = rows[-1].id


def _wrong_references(tx: Tx, _rules: Rules) -> Iterator[Broken]:
    sql = """
        SELECT id, number_year, number, reference FROM invoices
        WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
        """
    for rows in _chunks(tx, sql):
        for row in rows:
            try:
                expected = creditor_reference(row.number_year, row.number)
            except UNREADABLE as error:
                expected = repr(error)
            if row.reference != expected:
                yield {"invoice_id": row.id, "reference": row.reference, "expected": expected}


def _stale_columns(tx: Tx, rules: Rules) -> Iterator[Broken]:
    """Stored columns of accounts and their live subscriptions that a pure function derives otherwise."""
    sql = """
        SELECT id, next_transition, next_transition_at, access_ends_at, low_credits FROM accounts
        WHERE kind = 'customer' AND id > %(after)s ORDER BY id LIMIT %(limit)s
        """
    for rows in _chunks(tx, sql):
        stored = {row.id: row._asdict() for row in rows}
        renewals = {
            row.account_id: row.renews_at
            for row in tx.rows(
                """
                SELECT account_id, renews_at FROM subscriptions
                WHERE account_id = ANY (%(ids)s) AND status <> 'ended'
                """,
                ids=list(stored),
            )
        }
        spent = _awaiting_expiry_of_nothing(tx, list(stored))
        for account_id, state in _states(tx, list(stored)):
            columns = {**stored[account_id], "renews_at": renewals.get(account_id)}
            try:
                derived = _derived(state, rules) if isinstance(state, AccountState) else {"state": state}
            except UNREADABLE as error:
                derived = {"state": repr(error)}
            if account_id in spent and _is_earlier(columns, derived):
                del derived["next_transition"], derived["next_transition_at"]
            for column, value in derived.items():
                if columns.get(column) != value:
                    yield {"account_id": account_id, "column": column, "stored": columns.get(column), "derived": value}


def _awaiting_expiry_of_nothing(tx: Tx, account_ids: list[UUID]) -> set[UUID]:
    """Accounts whose next transition is the expiry of a grant that was spent since. Taking it up does no harm."""
    rows = tx.rows(
        """
        SELECT a.id FROM accounts a
        JOIN credit_grants g ON g.account_id = a.id AND g.expires_at = a.next_transition_at AND g.remaining = 0
        WHERE a.id = ANY (%(ids)s) AND a.next_transition = 'grant_expiry'
        """,
        ids=account_ids,
    )
    return {row.id for row in rows}


def _is_earlier(stored: Broken, derived: Broken) -> bool:
    due_at = derived.get("next_transition_at")
    return "state" not in derived and (due_at is None or stored["next_transition_at"] <= due_at)


def _states(tx: Tx, account_ids: list[UUID]) -> Iterator[tuple[UUID, AccountState | str]]:
    """Each account's state, or why it cannot be read, which spoils no other's."""
    try:
        states = account_state.read(tx, account_ids)
    except UNREADABLE as error:
        if len(account_ids) == 1:
            yield account_ids[0], repr(error)
            return
        for account_id in account_ids:
            yield from _states(tx, [account_id])
        return
    for state in states:
        yield state.account.id, state


def _derived(state: AccountState, rules: Rules) -> dict[str, datetime | str | int | None]:
    due_at, transition = next_transition(state) or (None, None)
    return {
        "next_transition": transition,
        "next_transition_at": due_at,
        "access_ends_at": access_ends_at(state, rules),
        "low_credits": low_credits(state, rules),
        "renews_at": state.live.renews_at if state.live else None,
    }


def _periods_off_their_anchor(tx: Tx, _rules: Rules) -> Iterator[Broken]:
    sql = """
        SELECT * FROM subscriptions WHERE status <> 'ended' AND id > %(after)s ORDER BY id LIMIT %(limit)s
        """
    for rows in _chunks(tx, sql):
        for row in rows:
            stored = (row.current_period_starts_at, row.current_period_ends_at)
            try:
                expected: object = _expected_period(_subscription(row))
            except UNREADABLE as error:
                expected = repr(error)
            if stored != expected:
                yield {"subscription_id": row.id, "stored": stored, "expected": expected}


def _subscription(row: Row[Any]) -> Subscription:
    return msgspec.convert([getattr(row, field) for field in Subscription.__struct_fields__], Subscription)


def _expected_period(sub: Subscription) -> tuple[datetime, datetime]:
    """Dates of the current period, counted from the anchor; a trial ends as promised, or with its grace."""
    if sub.activated_at is None:
        trial = sub.status is SubscriptionStatus.TRIALING
        ends_at = sub.trial_ends_at if trial else sub.grace_ends_at
        return sub.anchor_at, ends_at or sub.anchor_at
    terms = (sub.anchor_at, sub.interval, sub.interval_count)
    return (
        boundary(*terms, sub.period_index, sub.time_zone),
        boundary(*terms, sub.period_index + 1, sub.time_zone),
    )


def _money_that_went_back(tx: Tx, _rules: Rules) -> Iterator[Broken]:
    """Entries that undo something, by a reference of ours. A refund that covers it, or was made anew, settles that."""
    sql = """
        SELECT * FROM bank_entries e
        WHERE id > %(after)s AND (amount_minor < 0 OR returned AND EXISTS (
            SELECT FROM payments p
            WHERE p.bank_entry_id = e.id AND p.unapplied_reason IS NOT NULL AND p.refunded_minor < p.amount_minor
        ))
        ORDER BY id LIMIT %(limit)s
        """
    for rows in _chunks(tx, sql):
        named = {row.id: references_in(bank_statements.entry_of(row)) for row in rows}
        refunds = {
            row.reference: row
            for row in tx.rows(
                """
                SELECT i.reference, i.id AS invoice_id, i.account_id,
                       coalesce(sum(p.refunded_minor), 0)::bigint AS refunded_minor
                FROM invoices i LEFT JOIN payments p ON p.invoice_id = i.id
                WHERE i.reference = ANY (%(references)s) GROUP BY i.id
                """,
                references=sorted({reference for references in named.values() for reference in references}),
            )
        }
        for row in rows:
            for invoice in (refunds[reference] for reference in named[row.id] if reference in refunds):
                if row.amount_minor > 0 or invoice.refunded_minor < -row.amount_minor:
                    yield {
                        "bank_entry_id": row.id,
                        "account_id": invoice.account_id,
                        "invoice_id": invoice.invoice_id,
                        "amount_minor": row.amount_minor,
                        "currency": row.currency,
                        "booked_on": row.booked_on,
                    }


# --- the rules --------------------------------------------------------------------------------

_REFRESH: Final = "python -m workers accounts refresh <account_id>"
_BY_HAND: Final = "Find out from the audit log and the operations what happened"

CHECKS: Final = (
    # Accounts and plans
    Check(
        name="system_account_exactly_one",
        rule="There is exactly one system account, under its fixed id.",
        sql="""
            SELECT count(*) AS system_accounts, min(id::text) AS id FROM accounts WHERE kind = 'system'
            HAVING count(*) <> 1 OR min(id::text) <> '00000000-0000-7000-8000-000000000000'
            """,
        repair="Restore the row that migration 0001 inserts; make others customers: "
        "UPDATE accounts SET kind = 'customer' WHERE id = …",
    ),
    Check(
        name="system_account_owns_nothing",
        rule="The system account has no users, plan, credits or invoices, and nothing is scheduled for it.",
        sql="""
            SELECT o.owned, o.id FROM accounts a
            CROSS JOIN LATERAL (
                SELECT 'user' AS owned, id FROM users WHERE account_id = a.id
                UNION ALL SELECT 'subscription', id FROM subscriptions WHERE account_id = a.id
                UNION ALL SELECT 'invoice', id FROM invoices WHERE account_id = a.id
                UNION ALL SELECT 'payment', id FROM payments WHERE account_id = a.id
                UNION ALL SELECT 'grant', id FROM credit_grants WHERE account_id = a.id
                UNION ALL SELECT 'ledger row', grant_id FROM credit_transactions WHERE account_id = a.id
                UNION ALL SELECT 'site', id FROM sites WHERE account_id = a.id
                UNION ALL SELECT 'API key', id FROM api_keys WHERE account_id = a.id
                UNION ALL SELECT 'schedule', a.id WHERE a.next_transition_at IS NOT NULL OR a.balance_credits <> 0
            ) o
            WHERE a.kind = 'system'
            """,
        repair="Move the row to the account it was meant for, or end and delete it.",
    ),
    Check(
        name="enterprise_by_admin_only",
        rule="Nobody but an admin hands out the enterprise plan.",
        sql="""
            SELECT 'plan_assigners' AS found_in, plan_id AS id, assigned_by FROM plan_assigners
            WHERE plan_slug = 'enterprise' AND assigned_by <> 'admin'
            UNION ALL
            SELECT 'subscriptions', s.id, s.assigned_by FROM subscriptions s JOIN plans p ON p.id = s.plan_id
            WHERE p.slug = 'enterprise' AND s.assigned_by <> 'admin'
            UNION ALL
            SELECT 'subscriptions, next plan', s.id, s.next_plan_assigned_by
            FROM subscriptions s JOIN plans p ON p.id = s.next_plan_id
            WHERE p.slug = 'enterprise' AND s.next_plan_assigned_by <> 'admin'
            UNION ALL
            SELECT 'invoices', i.id, i.assigned_by FROM invoices i JOIN plans p ON p.id = i.plan_id
            WHERE p.slug = 'enterprise' AND i.assigned_by <> 'admin'
            """,
        repair="Delete the assigner; assign the account the plan it should have "
        "(POST /api/v1/admin/accounts/<account_id>/plan).",
    ),
    Check(
        name="signup_gets_trial_or_free_only",
        rule="Signing up leads to free-trial or free, and nowhere else.",
        sql="""
            SELECT 'plan_assigners' AS found_in, plan_id AS id, plan_slug AS plan FROM plan_assigners
            WHERE assigned_by = 'signup' AND plan_slug NOT IN ('free-trial', 'free')
            UNION ALL
            SELECT 'subscriptions', s.id, p.slug FROM subscriptions s JOIN plans p ON p.id = s.plan_id
            WHERE s.assigned_by = 'signup' AND p.slug NOT IN ('free-trial', 'free')
            """,
        repair="Delete the assigner; assign the account the plan it should have "
        "(POST /api/v1/admin/accounts/<account_id>/plan).",
    ),
    Check(
        name="plan_taken_as_assignable",
        rule="A plan is taken only by a way that its assigners allow.",
        sql="""
            SELECT 'subscriptions' AS found_in, s.id, s.plan_id, s.assigned_by FROM subscriptions s
            WHERE (s.plan_id, s.assigned_by) NOT IN (SELECT plan_id, assigned_by FROM plan_assigners)
            UNION ALL
            SELECT 'subscriptions, next plan', s.id, s.next_plan_id, s.next_plan_assigned_by FROM subscriptions s
            WHERE (s.next_plan_id, s.next_plan_assigned_by) NOT IN (SELECT plan_id, assigned_by FROM plan_assigners)
            UNION ALL
            SELECT 'invoices', i.id, i.plan_id, i.assigned_by FROM invoices i
            WHERE (i.plan_id, i.assigned_by) NOT IN (SELECT plan_id, assigned_by FROM plan_assigners)
            """,
        repair="Put the assigner back while anybody is on the plan that way, or assign another plan first.",
    ),
    Check(
        name="rows_stay_within_one_account",
        rule="A row that belongs to an account refers to rows of the same account alone.",
        sql="""
            SELECT 'period of subscription' AS reference, s.id, p.account_id, s.account_id AS other
            FROM subscription_periods p
            JOIN subscriptions s ON s.id = p.subscription_id AND s.account_id <> p.account_id
            UNION ALL
            SELECT 'invoice of subscription', i.id, i.account_id, s.account_id
            FROM invoices i JOIN subscriptions s ON s.id = i.subscription_id AND s.account_id <> i.account_id
            UNION ALL
            SELECT 'payment of invoice', p.id, p.account_id, i.account_id
            FROM payments p JOIN invoices i ON i.id = p.invoice_id AND i.account_id <> p.account_id
            UNION ALL
            SELECT 'bank transfer of invoice', b.id, b.account_id, i.account_id
            FROM bank_transfers b JOIN invoices i ON i.id = b.invoice_id AND i.account_id <> b.account_id
            UNION ALL
            SELECT 'bank transfer by user', b.id, b.account_id, u.account_id
            FROM bank_transfers b JOIN users u ON u.id = b.submitted_by AND u.account_id <> b.account_id
            UNION ALL
            SELECT 'seed of subscription', g.id, g.account_id, s.account_id
            FROM credit_grants g JOIN subscriptions s ON s.id = g.subscription_id AND s.account_id <> g.account_id
            UNION ALL
            SELECT 'ledger row of grant', t.grant_id, t.account_id, g.account_id
            FROM credit_transactions t JOIN credit_grants g ON g.id = t.grant_id AND g.account_id <> t.account_id
            UNION ALL
            SELECT 'hold on grant', h.id, h.account_id, g.account_id
            FROM holds h JOIN hold_allocations l ON l.hold_id = h.id
            JOIN credit_grants g ON g.id = l.grant_id AND g.account_id <> h.account_id
            UNION ALL
            SELECT 'API key of site', k.id, k.account_id, s.account_id
            FROM api_keys k JOIN sites s ON s.id = k.site_id AND s.account_id <> k.account_id
            UNION ALL
            SELECT 'API key by user', k.id, k.account_id, u.account_id
            FROM api_keys k JOIN users u ON u.id = k.created_by AND u.account_id <> k.account_id
            UNION ALL
            SELECT 'invitation by user', i.id, i.account_id, u.account_id
            FROM invitations i JOIN users u ON u.id IN (i.invited_by, i.accepted_by) AND u.account_id <> i.account_id
            """,
        repair=f"{_BY_HAND}, and point the row back at its own account.",
    ),
    Check(
        name="account_keeps_an_owner",
        rule="An account that has had members has an owner.",
        sql="""
            SELECT a.id AS account_id FROM accounts a
            WHERE a.deleted_at IS NULL AND EXISTS (SELECT FROM users u WHERE u.account_id = a.id)
              AND NOT EXISTS (
                  SELECT FROM users u WHERE u.account_id = a.id AND u.role = 'owner' AND u.deleted_at IS NULL
              )
            """,
        repair="UPDATE users SET role = 'owner' WHERE id = <whoever the account's people name>",
    ),
    # Subscriptions and their periods
    Check(
        name="live_subscription_fits_account",
        rule="An account in trial, active or past due has exactly one live subscription; a suspended or cancelled "
        "one has none.",
        sql="""
            SELECT a.id AS account_id, a.status, count(s.id) AS live_subscriptions
            FROM accounts a LEFT JOIN subscriptions s ON s.account_id = a.id AND s.status <> 'ended'
            WHERE a.kind = 'customer'
            GROUP BY a.id
            HAVING count(s.id) <> CASE WHEN a.status IN ('trial', 'active', 'past_due') THEN 1 ELSE 0 END
            """,
        repair="End the subscription that should not run (status, ended_at, end_reason and its period's end), or "
        "assign a plan to an account without one.",
    ),
    Check(
        name="account_status_fits_subscription",
        rule="An account's status is that of its live subscription, or follows from why the last one ended.",
        sql="""
            SELECT a.id AS account_id, a.status, a.status_reason, s.status AS subscription_status, s.end_reason
            FROM accounts a
            LEFT JOIN LATERAL (
                SELECT status, end_reason FROM subscriptions WHERE account_id = a.id
                ORDER BY (status <> 'ended') DESC, ended_at DESC, started_at DESC, id DESC LIMIT 1
            ) s ON true
            WHERE a.kind = 'customer' AND (
                a.status_reason IS DISTINCT FROM s.end_reason
                OR a.status IS DISTINCT FROM CASE
                    WHEN s.status = 'trialing' THEN 'trial'
                    WHEN s.status <> 'ended' THEN s.status
                    WHEN s.end_reason = 'cancelled' THEN 'cancelled'
                    WHEN s.status = 'ended' THEN 'suspended'
                END
            )
            """,
        repair="The subscription decides: set the account's status and status_reason to what it says.",
    ),
    Check(
        name="period_has_length",
        rule="A period ends after it starts.",
        sql="""
            SELECT subscription_id, starts_at, ends_at FROM subscription_periods WHERE starts_at >= ends_at
            """,
        repair="Delete the period if it was never granted; else restore its end from the subscription.",
    ),
    Check(
        name="period_no_overlap",
        rule="No two periods of an account overlap, across all its subscriptions.",
        sql="""
            SELECT account_id, subscription_id, starts_at, ends_at, covered_until FROM (
                SELECT account_id, subscription_id, starts_at, ends_at, max(ends_at) OVER (
                    PARTITION BY account_id ORDER BY starts_at, ends_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ) AS covered_until FROM subscription_periods
            ) p WHERE starts_at < covered_until
            """,
        repair="Cut the earlier period at the start of the later one, if the later was paid.",
    ),
    Check(
        name="period_leaves_no_gap",
        rule="Within a subscription each period starts, and says so, where the one before it ended.",
        sql="""
            SELECT subscription_id, starts_at, previous_ends_at, last_ended_at FROM (
                SELECT subscription_id, starts_at, previous_ends_at,
                       lag(ends_at) OVER (PARTITION BY subscription_id ORDER BY starts_at) AS last_ended_at
                FROM subscription_periods
            ) p WHERE starts_at <> last_ended_at OR previous_ends_at IS DISTINCT FROM last_ended_at
            """,
        repair="Restore the missing period, or the end of the one before the gap; access was promised without a gap.",
    ),
    Check(
        name="periods_cover_subscription",
        rule="A subscription's periods reach from its start to the end of its current period.",
        sql="""
            SELECT s.id AS subscription_id, s.started_at, min(p.starts_at) AS first_starts_at,
                   s.current_period_ends_at, max(p.ends_at) AS last_ends_at
            FROM subscriptions s LEFT JOIN subscription_periods p ON p.subscription_id = s.id
            GROUP BY s.id
            HAVING coalesce(min(p.starts_at), s.started_at) <> s.started_at
                OR coalesce(max(p.ends_at), s.started_at) <> s.current_period_ends_at
            """,
        repair="Restore the first or last period from the subscription's started_at and current_period_ends_at.",
    ),
    Check(
        name="current_period_is_granted",
        rule="A live subscription's current period is one of its periods, with the same end, plan and number.",
        sql="""
            SELECT s.id AS subscription_id, s.current_period_starts_at, s.current_period_ends_at,
                   p.ends_at AS granted_until
            FROM subscriptions s
            LEFT JOIN subscription_periods p ON p.subscription_id = s.id AND p.starts_at = s.current_period_starts_at
            WHERE s.status <> 'ended' AND (p.ends_at, p.plan_id, p.phase, p.period_index) IS DISTINCT FROM
                (s.current_period_ends_at, s.plan_id, s.phase, s.period_index)
            """,
        repair="Make the newest period and the subscription agree; the boundaries from the anchor decide.",
    ),
    Check(
        name="period_follows_its_anchor",
        rule="The current period runs from one boundary counted from the anchor to the next; a trial's to its end.",
        search=_periods_off_their_anchor,
        repair="Set the period and the subscription's current_period_* to the expected dates, then: " + _REFRESH,
    ),
    Check(
        name="active_period_is_paid",
        rule="A period that costs something is active only when its invoice is paid, or an admin gave the plan.",
        sql="""
            SELECT s.id AS subscription_id, s.account_id, s.current_period_starts_at, s.price_minor
            FROM subscriptions s
            WHERE s.status = 'active' AND s.price_minor > 0 AND (s.period_index > 0 OR s.assigned_by <> 'admin')
              AND NOT EXISTS (
                  SELECT FROM invoices i WHERE i.account_id = s.account_id AND i.status = 'paid' AND (
                      (i.subscription_id = s.id AND i.period_starts_at = s.current_period_starts_at)
                      OR (i.purpose = 'activation' AND i.paid_at = s.current_period_starts_at AND s.period_index = 0)
                  )
              )
            """,
        repair="Find the payment and record it (POST /api/v1/admin/invoices/<invoice_id>/payments), or open the "
        "period's invoice and set the subscription past_due with a grace.",
    ),
    Check(
        name="past_due_owes_or_awaits",
        rule="A past due subscription has the open invoice of its current period, or, after a trial, an undecided "
        "bank transfer.",
        sql="""
            SELECT s.id AS subscription_id, s.account_id, s.current_period_starts_at FROM subscriptions s
            WHERE s.status = 'past_due' AND NOT CASE WHEN s.activated_at IS NULL
                THEN EXISTS (SELECT FROM bank_transfers b WHERE b.account_id = s.account_id AND b.status = 'pending')
                ELSE EXISTS (
                    SELECT FROM invoices i WHERE i.subscription_id = s.id AND i.status = 'open'
                       AND i.period_starts_at = s.current_period_starts_at
                )
            END
            """,
        repair="Open the invoice of the period, so that the customer can pay; if it was paid, set the subscription "
        "and the account active.",
    ),
    Check(
        name="ended_subscription_owes_nothing",
        rule="The open invoices of a subscription are void once it has ended.",
        sql="""
            SELECT i.id AS invoice_id, i.subscription_id, s.ended_at
            FROM invoices i JOIN subscriptions s ON s.id = i.subscription_id
            WHERE i.status = 'open' AND s.status = 'ended'
            """,
        repair="UPDATE invoices SET status = 'void', voided_at = <ended_at> WHERE id = <invoice_id>",
    ),
    Check(
        name="schedule_follows_from_state",
        rule="Next transition, end of access, renewal and what counts as low are what the pure functions derive from "
        "the account's state; an expiry may still be scheduled for a grant that was spent since.",
        search=_stale_columns,
        repair="After a change of plan terms, TRANSFER_GRACE_DAYS or LOW_CREDITS_PERCENT this is expected. " + _REFRESH,
    ),
    # Credits
    Check(
        name="balance_is_sum_of_ledger",
        rule="An account's balance is the sum of its ledger.",
        sql="""
            SELECT a.id AS account_id, a.balance_credits, coalesce(sum(t.amount), 0)::bigint AS ledger_credits
            FROM accounts a LEFT JOIN credit_transactions t ON t.account_id = a.id
            GROUP BY a.id HAVING a.balance_credits <> coalesce(sum(t.amount), 0)
            """,
        repair="The ledger decides: UPDATE accounts SET balance_credits = <ledger_credits> WHERE id = <account_id>",
    ),
    Check(
        name="balance_is_sum_of_grants",
        rule="An account's balance is the sum of what remains of its grants.",
        sql="""
            SELECT a.id AS account_id, a.balance_credits, coalesce(sum(g.remaining), 0)::bigint AS remaining_credits
            FROM accounts a LEFT JOIN credit_grants g ON g.account_id = a.id
            GROUP BY a.id HAVING a.balance_credits <> coalesce(sum(g.remaining), 0)
            """,
        repair="See grant_remaining_is_its_ledger: set each grant's remaining to the sum of its ledger rows.",
    ),
    Check(
        name="balance_not_negative",
        rule="No balance is negative, none was at any time, and no more is held than there is.",
        sql="""
            SELECT id AS account_id, NULL::bigint AS seq, balance_credits, held_credits FROM accounts
            WHERE balance_credits < 0 OR held_credits NOT BETWEEN 0 AND balance_credits
            UNION ALL
            SELECT account_id, seq, balance_after, NULL FROM credit_transactions WHERE balance_after < 0
            """,
        repair="If the ledger is right, give the account what is missing with an adjustment and its reason.",
    ),
    Check(
        name="ledger_numbered_without_gap",
        rule="An account's ledger is numbered from 1 without a gap, up to the account's ledger_seq.",
        sql="""
            SELECT a.id AS account_id, a.ledger_seq, count(t.seq) AS ledger_rows, max(t.seq) AS highest
            FROM accounts a LEFT JOIN credit_transactions t ON t.account_id = a.id
            GROUP BY a.id
            HAVING (a.ledger_seq, a.ledger_seq) IS DISTINCT FROM (count(t.seq), coalesce(max(t.seq), 0))
            """,
        repair="A row is missing: restore it from a backup. If only ledger_seq is wrong, set it to <highest>.",
    ),
    Check(
        name="ledger_balances_chain",
        rule="Each ledger row's balance_after is the one before it plus its amount.",
        sql="""
            SELECT account_id, seq, balance_after, balance_before + amount AS expected FROM (
                SELECT account_id, seq, amount, balance_after,
                       lag(balance_after, 1, 0::bigint) OVER (PARTITION BY account_id ORDER BY seq) AS balance_before
                FROM credit_transactions
            ) t WHERE balance_after <> balance_before + amount
            """,
        repair="A row was changed, which its trigger forbids: compare with a backup and restore it.",
    ),
    Check(
        name="ledger_amount_fits_kind",
        rule="Seeds and purchases add credits, consumption and expiry take them, and no row moves nothing.",
        sql="""
            SELECT account_id, seq, kind, amount FROM credit_transactions
            WHERE NOT CASE
                WHEN kind IN ('seed', 'purchase') THEN amount > 0
                WHEN kind IN ('consume', 'expire') THEN amount < 0
                ELSE kind IN ('adjust', 'reverse') AND amount <> 0
            END
            """,
        repair="A row was changed, which its trigger forbids: compare with a backup and restore it.",
    ),
    Check(
        name="ledger_posted_once",
        rule="An idempotency key stands for one posting of an account.",
        sql="""
            SELECT account_id, idempotency_key, line, count(*) AS ledger_rows FROM credit_transactions
            GROUP BY account_id, idempotency_key, line HAVING count(*) > 1
            """,
        repair="Something was posted twice: post the second amount back with an adjustment and its reason.",
    ),
    Check(
        name="ledger_guarded",
        rule="Triggers refuse changes to ledger, events and audit log, and the removal of accounts and sites.",
        sql="""
            SELECT guard.table_name, guard.trigger_name FROM (VALUES
                ('credit_transactions', 'credit_transaction_append_only'),
                ('credit_transactions', 'credit_transaction_never_truncated'),
                ('events', 'event_append_only'),
                ('events', 'event_never_truncated'),
                ('audit_log', 'audit_append_only'),
                ('audit_log', 'audit_never_truncated'),
                ('accounts', 'account_never_removed'),
                ('sites', 'site_never_removed')
            ) AS guard (table_name, trigger_name)
            WHERE NOT EXISTS (
                SELECT FROM pg_trigger WHERE tgrelid = to_regclass(guard.table_name) AND tgname = guard.trigger_name
                   AND tgenabled IN ('O', 'A')
            )
            """,
        repair="ALTER TABLE <table_name> ENABLE TRIGGER <trigger_name>; a missing one is in migration 0001 or 0004.",
    ),
    Check(
        name="tenants_kept_apart",
        rule="Row-level security is in force: the API's role sees what a transaction was let in to, and does not write "
        "the ledger, grants, periods, payments, subscriptions and balances.",
        sql=f"""
            SELECT c.relname AS table_name, 'row-level security is off' AS wrong FROM pg_class c
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relrowsecurity
              AND c.relname NOT IN ({NOBODYS_TABLES})
            UNION ALL
            SELECT tablename, policyname || ' lets everybody in' FROM pg_policies
            WHERE schemaname = 'public' AND NOT 'prepaid_worker' = ANY (roles) AND qual = 'true'
            UNION ALL
            SELECT t.name, role || ' may write it' FROM (VALUES
                ('credit_transactions'), ('credit_grants'), ('subscription_periods'), ('payments'), ('subscriptions'),
                ('accounts')
            ) AS t (name), to_regrole('prepaid_api') AS role
            WHERE has_any_column_privilege(role, t.name, 'INSERT, UPDATE')
               OR has_table_privilege(role, t.name, 'DELETE')
            UNION ALL
            SELECT NULL, rolname || ' passes policies by' FROM pg_roles
            WHERE rolname IN ('prepaid_api', 'prepaid_due') AND (rolbypassrls OR rolsuper)
            """,  # noqa: S608 (a constant of this module)
        repair="ALTER TABLE <table_name> ENABLE ROW LEVEL SECURITY, drop the policy, revoke the privilege or take the "
        "attribute away: migration 0010 says how it should be.",
    ),
    Check(
        name="grant_within_its_amount",
        rule="Of a grant's amount no more remains than was given, and no more is held than remains.",
        sql="""
            SELECT id AS grant_id, account_id, amount, remaining, held FROM credit_grants
            WHERE NOT (0 <= held AND held <= remaining AND remaining <= amount)
            """,
        repair="Set remaining to the sum of the grant's ledger rows, held to the sum of its open holds' allocations.",
    ),
    Check(
        name="grant_remaining_is_its_ledger",
        rule="What remains of a grant is the sum of its ledger rows.",
        sql="""
            SELECT g.id AS grant_id, g.account_id, g.remaining, coalesce(sum(t.amount), 0)::bigint AS ledger_credits
            FROM credit_grants g LEFT JOIN credit_transactions t ON t.grant_id = g.id
            GROUP BY g.id HAVING g.remaining <> coalesce(sum(t.amount), 0)
            """,
        repair="The ledger decides: UPDATE credit_grants SET remaining = <ledger_credits> WHERE id = <grant_id>",
    ),
    Check(
        name="grant_opened_by_its_ledger_row",
        rule="Each grant, above all each seed, has the one ledger row that gave its whole amount at its instant.",
        sql="""
            SELECT g.id AS grant_id, g.account_id, g.source, g.amount, count(t.seq) AS opening_rows
            FROM credit_grants g LEFT JOIN credit_transactions t
              ON t.grant_id = g.id AND t.kind = g.source AND t.amount = g.amount AND t.effective_at = g.effective_at
            GROUP BY g.id HAVING count(t.seq) <> 1
            """,
        repair="Restore the row from a backup; if the grant was never posted, delete the grant.",
    ),
    Check(
        name="seed_once_per_credit_month",
        rule="A subscription is seeded once for each credit month of a phase.",
        sql="""
            SELECT subscription_id, phase, credit_month_index, count(*) AS seeds FROM credit_grants
            WHERE source = 'seed'
            GROUP BY subscription_id, phase, credit_month_index HAVING count(*) > 1
            """,
        repair="Take what is left of the later seed back with an adjustment and its reason.",
    ),
    Check(
        name="seed_names_its_month",
        rule="A seed names its subscription, phase and credit month, and the subscription has counted that month.",
        sql="""
            SELECT g.id AS grant_id, g.subscription_id, g.phase, g.credit_month_index,
                   s.phase AS present_phase, s.credit_month_index AS next_credit_month_index
            FROM credit_grants g LEFT JOIN subscriptions s ON s.id = g.subscription_id
            WHERE g.source = 'seed' AND (
                s.id IS NULL OR g.phase IS NULL OR g.credit_month_index IS NULL OR g.phase > s.phase
                OR (g.phase = s.phase AND g.credit_month_index >= s.credit_month_index)
            )
            """,
        repair="Set the subscription's credit_month_index and next_credit_at past its newest seed, then: " + _REFRESH,
    ),
    Check(
        name="reversal_undoes_its_row",
        rule="A reversal undoes a row of the same grant: all of what it took, or of what it gave no more than that.",
        sql="""
            SELECT r.account_id, r.seq, r.reverses_seq, r.amount, t.kind, t.amount AS reversed_amount
            FROM credit_transactions r
            LEFT JOIN credit_transactions t ON t.account_id = r.account_id AND t.seq = r.reverses_seq
            WHERE r.kind = 'reverse' AND (
                t.seq IS NULL OR t.seq >= r.seq OR t.grant_id <> r.grant_id OR t.kind IN ('expire', 'reverse')
                OR (t.amount < 0 AND r.amount <> -t.amount) OR (t.amount > 0 AND r.amount NOT BETWEEN -t.amount AND -1)
            )
            """,
        repair="Adjust the balance by what was reversed wrongly, with the reason; the rows themselves stay.",
    ),
    Check(
        name="row_reversed_once",
        rule="A row of the ledger is reversed once by an admin, and once by each refund.",
        sql="""
            SELECT account_id, reverses_seq, count(*) AS reversals FROM credit_transactions
            WHERE reverses_seq IS NOT NULL
            GROUP BY account_id, reverses_seq, CASE WHEN source = 'payment' THEN idempotency_key END
            HAVING count(*) > 1
            """,
        repair="Adjust the balance by what the later reversal moved, with the reason.",
    ),
    Check(
        name="seed_reversed_within_its_amount",
        rule="Of what a row gave, all its reversals together take no more than that.",
        sql="""
            SELECT t.account_id, t.seq, t.grant_id, t.amount, -sum(r.amount)::bigint AS reversed_credits
            FROM credit_transactions r
            JOIN credit_transactions t ON t.account_id = r.account_id AND t.seq = r.reverses_seq AND t.amount > 0
            WHERE r.kind = 'reverse'
            GROUP BY t.account_id, t.seq, t.grant_id, t.amount HAVING -sum(r.amount) > t.amount
            """,
        repair="Give back what was taken too much with an adjustment and its reason; the rows themselves stay.",
    ),
    Check(
        name="credits_event_once_per_month",
        rule="That an account runs low, or is out of credits, is told once for each credit month.",
        sql="""
            SELECT account_id, key, count(*) AS events FROM events
            WHERE kind LIKE 'credits.%%' GROUP BY account_id, key HAVING count(*) > 1 OR key IS NULL
            """,
        repair="Whoever acts on events must pass by the later ones; the rows themselves stay.",
    ),
    Check(
        name="event_is_about_its_account",
        rule="What an event is about belongs to the account that it tells of; unapplied money may since have been "
        "applied to another one.",
        sql="""
            SELECT e.id AS event_id, e.account_id, e.kind, e.subject_id FROM events e
            WHERE NOT CASE split_part(e.kind, '.', 1)
                WHEN 'payment' THEN
                    EXISTS (SELECT FROM payments p WHERE p.id = e.subject_id AND (
                        p.account_id = e.account_id
                        OR e.kind = 'payment.unapplied' AND EXISTS (
                            SELECT FROM invoices i
                            WHERE i.id::text = e.data ->> 'invoice_id' AND i.account_id = e.account_id
                        )
                    ))
                WHEN 'bank_transfer' THEN
                    EXISTS (SELECT FROM bank_transfers b WHERE b.id = e.subject_id AND b.account_id = e.account_id)
                ELSE EXISTS (SELECT FROM subscriptions s WHERE s.id = e.subject_id AND s.account_id = e.account_id)
            END
            """,
        repair=f"{_BY_HAND}; the event stays, and whoever acted on it must be told.",
    ),
    Check(
        name="nothing_spent_after_expiry",
        rule="A grant past its expiry is never spent.",
        sql="""
            SELECT t.account_id, t.seq, t.grant_id, t.effective_at, g.expires_at
            FROM credit_transactions t JOIN credit_grants g ON g.id = t.grant_id
            WHERE t.kind = 'consume' AND t.effective_at >= g.expires_at
            """,
        repair="The customer has had these credits; if they are to be charged, adjust the balance with the reason.",
    ),
    Check(
        name="held_is_sum_of_open_holds",
        rule="An account's held credits are the sum of its open holds.",
        sql="""
            SELECT a.id AS account_id, a.held_credits, coalesce(sum(h.amount), 0)::bigint AS open_holds
            FROM accounts a LEFT JOIN holds h ON h.account_id = a.id AND h.status = 'open'
            GROUP BY a.id HAVING a.held_credits <> coalesce(sum(h.amount), 0)
            """,
        repair="The holds decide: UPDATE accounts SET held_credits = <open_holds> WHERE id = <account_id>",
    ),
    Check(
        name="hold_is_sum_of_allocations",
        rule="A hold reserves its amount, spread over grants.",
        sql="""
            SELECT h.id AS hold_id, h.account_id, h.status, h.amount, coalesce(sum(l.amount), 0)::bigint AS allocated
            FROM holds h LEFT JOIN hold_allocations l ON l.hold_id = h.id
            GROUP BY h.id HAVING h.amount <> coalesce(sum(l.amount), 0)
            """,
        repair="Release the hold, then see grant_held_is_open_allocations.",
    ),
    Check(
        name="grant_held_is_open_allocations",
        rule="What is held of a grant is what open holds have reserved of it.",
        sql="""
            SELECT g.id AS grant_id, g.account_id, g.held, coalesce(o.amount, 0)::bigint AS allocated
            FROM credit_grants g
            LEFT JOIN (
                SELECT l.grant_id, sum(l.amount) AS amount
                FROM hold_allocations l JOIN holds h ON h.id = l.hold_id AND h.status = 'open' GROUP BY l.grant_id
            ) o ON o.grant_id = g.id
            WHERE g.held <> coalesce(o.amount, 0)
            """,
        repair="The holds decide: UPDATE credit_grants SET held = <allocated> WHERE id = <grant_id>",
    ),
    Check(
        name="hold_outlives_no_grant",
        rule="An open hold ends no later than any grant it reserves from; so what is available is never negative.",
        sql="""
            SELECT h.id AS hold_id, h.account_id, h.expires_at, g.id AS grant_id, g.expires_at AS grant_expires_at
            FROM holds h JOIN hold_allocations l ON l.hold_id = h.id JOIN credit_grants g ON g.id = l.grant_id
            WHERE h.status = 'open' AND h.expires_at > g.expires_at
            """,
        repair="UPDATE holds SET expires_at = <grant_expires_at> WHERE id = <hold_id>",
    ),
    Check(
        name="capture_is_in_ledger",
        rule="What was captured of a hold is in the ledger, and nothing of a hold that was not captured.",
        sql="""
            SELECT h.id AS hold_id, h.account_id, h.status, h.captured_amount,
                   coalesce(-sum(t.amount), 0)::bigint AS ledger_credits
            FROM holds h
            LEFT JOIN credit_transactions t ON t.account_id = h.account_id AND t.source = 'hold' AND t.source_id = h.id
            GROUP BY h.id HAVING h.captured_amount <> coalesce(-sum(t.amount), 0)
            """,
        repair="The ledger decides: set the hold's captured_amount and status to what was taken.",
    ),
    # Invoices, payments, bank transfers
    Check(
        name="invoice_numbers_gapless",
        rule="The invoices of a year are numbered from 1 without a gap, up to the year's counter.",
        sql="""
            SELECT year, n.last_number, i.invoices, i.numbers, i.highest
            FROM (
                SELECT number_year AS year, count(*) AS invoices, count(DISTINCT number) AS numbers,
                       max(number) AS highest
                FROM invoices GROUP BY number_year
            ) i FULL JOIN invoice_numbers n USING (year)
            WHERE (n.last_number::bigint, n.last_number::bigint, n.last_number)
                IS DISTINCT FROM (i.invoices, i.numbers, i.highest)
            """,
        repair="Restore the missing invoice from a backup, as void if need be; numbers are never given again.",
    ),
    Check(
        name="invoice_numbered_in_its_year",
        rule="An invoice has a number of the year in which it was opened, in UTC.",
        sql="""
            SELECT id AS invoice_id, number_year, number, opened_at FROM invoices
            WHERE number_year <> extract(year FROM opened_at AT TIME ZONE 'UTC')
            """,
        repair=f"{_BY_HAND}; the number is on the customer's paper and stays, so opened_at is to be restored.",
    ),
    Check(
        name="invoice_reference_is_its_number",
        rule="An invoice's creditor reference is the ISO 11649 one of its year and number.",
        search=_wrong_references,
        repair="UPDATE invoices SET reference = <expected> WHERE id = <invoice_id>, and tell the customer.",
    ),
    Check(
        name="renewal_invoiced_once",
        rule="A period has at most one invoice that is not void.",
        sql="""
            SELECT subscription_id, period_starts_at, count(*) AS invoices FROM invoices
            WHERE purpose = 'renewal' AND status <> 'void'
            GROUP BY subscription_id, period_starts_at HAVING count(*) > 1
            """,
        repair="Void the one that is not paid; if both are, refund one.",
    ),
    Check(
        name="paid_invoice_has_one_payment",
        rule="A paid invoice is covered by exactly one payment that succeeded and was applied to it.",
        sql="""
            SELECT i.id AS invoice_id, i.account_id, count(p.id) AS succeeded_payments
            FROM invoices i LEFT JOIN payments p ON p.invoice_id = i.id AND p.applied_at IS NOT NULL
            WHERE i.status = 'paid'
            GROUP BY i.id HAVING count(p.id) <> 1
            """,
        repair="Find the money at the provider or the bank and record it; what was paid twice is refunded.",
    ),
    Check(
        name="succeeded_payment_paid_its_invoice",
        rule="A payment that succeeded was applied and has paid its invoice, or it is unapplied and says why.",
        sql="""
            SELECT p.id AS payment_id, p.account_id, p.invoice_id, i.status AS invoice_status
            FROM payments p LEFT JOIN invoices i ON i.id = p.invoice_id
            WHERE p.status = 'succeeded' AND (
                p.unapplied_reason IS NULL AND (i.status IS DISTINCT FROM 'paid' OR p.applied_at IS NULL)
                OR p.unapplied_reason IS NOT NULL AND p.applied_at IS NOT NULL
            )
            """,
        repair="The money is there: give the customer what was paid for, or list it by its unapplied_reason.",
    ),
    Check(
        name="payment_matches_its_invoice",
        rule="A payment that was applied has its invoice's amount, currency, method and instant; amount and currency "
        "may differ where an admin stated why.",
        sql="""
            SELECT p.id AS payment_id, p.invoice_id, p.amount_minor, p.currency, p.provider, p.applied_at,
                   i.amount_minor AS invoice_amount_minor, i.currency AS invoice_currency, i.payment_method, i.paid_at
            FROM payments p JOIN invoices i ON i.id = p.invoice_id AND i.status = 'paid'
            WHERE p.applied_at IS NOT NULL AND (
                (p.provider, p.applied_at) IS DISTINCT FROM (i.payment_method, i.paid_at)
                OR ((p.amount_minor, p.currency) IS DISTINCT FROM (i.amount_minor, i.currency)
                    AND p.override_reason IS NULL AND NOT EXISTS (
                    SELECT FROM bank_transfers b WHERE b.payment_id = p.id AND b.override_reason IS NOT NULL
                ))
            )
            """,
        repair="Compare with the provider or the bank statement, and correct the payment; refund what is too much.",
    ),
    Check(
        name="payment_settles_once",
        rule="A provider's payment settles one invoice, once.",
        sql="""
            SELECT provider, external_payment_id, count(*) AS payments FROM payments WHERE status = 'succeeded'
            GROUP BY provider, external_payment_id HAVING count(*) > 1
            """,
        repair="One of the invoices was not paid: void it, or ask for its payment.",
    ),
    Check(
        name="payment_intent_answered",
        rule="No payment still waits for an answer when its operation has ended; but for an attempt at a saved card "
        "that the provider has not decided yet.",
        sql="""
            SELECT p.id AS payment_id, p.account_id, p.operation_id, o.status AS operation_status
            FROM payments p JOIN operations o ON o.id = p.operation_id
            WHERE p.status = 'pending' AND o.status IN ('succeeded', 'failed')
              AND (p.attempt IS NULL OR p.external_payment_id IS NULL)
            """,
        repair="Ask the provider. Settle the invoice if the money is there; else set the payment failed.",
    ),
    Check(
        name="saved_method_can_be_charged",
        rule="An account whose renewals are charged has a saved payment method at that provider.",
        sql="""
            SELECT a.id AS account_id, a.saved_payment_method
            FROM accounts a LEFT JOIN provider_customers c
                ON c.account_id = a.id AND c.provider = a.saved_payment_method
            WHERE a.saved_payment_method IS NOT NULL AND c.payment_method_ref IS NULL
            """,
        repair="UPDATE accounts SET saved_payment_method = NULL WHERE id = <account_id>, and tell the customer.",
    ),
    Check(
        name="refunded_is_sum_of_refunds",
        rule="What counts as refunded of a payment is the sum of its refunds that have not failed.",
        sql="""
            SELECT p.id AS payment_id, p.account_id, p.refunded_minor, coalesce(r.amount_minor, 0) AS refunds_minor
            FROM payments p
            LEFT JOIN (
                SELECT payment_id, sum(amount_minor)::bigint AS amount_minor FROM refunds
                WHERE status <> 'failed' GROUP BY payment_id
            ) r ON r.payment_id = p.id
            WHERE p.refunded_minor <> coalesce(r.amount_minor, 0)
            """,
        repair="Compare the refunds with the provider or the bank statement; they decide: "
        "UPDATE payments SET refunded_minor = <refunds_minor> WHERE id = <payment_id>",
    ),
    Check(
        name="refund_is_of_its_payments_currency",
        rule="A refund has the currency of its payment.",
        sql="""
            SELECT r.id AS refund_id, r.payment_id, r.currency, p.currency AS payment_currency
            FROM refunds r JOIN payments p ON p.id = r.payment_id WHERE r.currency IS DISTINCT FROM p.currency
            """,
        repair="UPDATE refunds SET currency = <payment_currency> WHERE id = <refund_id>",
    ),
    Check(
        name="refund_reversed_as_the_ledger_says",
        rule="What a refund says it took back is what the ledger has under its key, and no row has a key of no refund.",
        sql="""
            SELECT r.id AS refund_id, r.payment_id, r.reversed_credits, l.idempotency_key,
                   coalesce(l.credits, 0) AS ledger_credits
            FROM refunds r
            FULL JOIN (
                SELECT idempotency_key, source_id, -sum(amount)::bigint AS credits FROM credit_transactions
                WHERE kind = 'reverse' AND source = 'payment' GROUP BY idempotency_key, source_id
            ) l ON (l.idempotency_key, l.source_id) = ('refund:' || replace(r.id::text, '-', ''), r.payment_id)
            WHERE coalesce(l.credits, 0) <> coalesce(r.reversed_credits, -1)
            """,
        repair="The ledger decides: UPDATE refunds SET reversed_credits = <ledger_credits> WHERE id = <refund_id>; "
        "a row of no refund is put right by an adjustment.",
    ),
    Check(
        name="refund_answered",
        rule="No refund still waits for its answer when its operation has ended.",
        sql="""
            SELECT r.id AS refund_id, r.payment_id, r.operation_id, o.status AS operation_status
            FROM refunds r JOIN operations o ON o.id = r.operation_id
            WHERE r.status = 'pending' AND r.external_refund_id IS NULL AND o.status IN ('succeeded', 'failed')
            """,
        repair="Ask the provider. Set the refund succeeded with its external id if the money went back; else set it "
        "failed, and give its share of refunded_minor up.",
    ),
    Check(
        name="approved_transfer_has_its_payment",
        rule="An approved bank transfer has the payment that it brought; no other has one.",
        sql="""
            SELECT b.id AS bank_transfer_id, b.status, b.payment_id
            FROM bank_transfers b LEFT JOIN payments p ON p.id = b.payment_id
            WHERE (b.status <> 'approved' AND b.payment_id IS NOT NULL) OR (
                b.status = 'approved' AND (
                    p.status, p.provider, p.invoice_id, p.amount_minor, p.currency, p.external_payment_id
                ) IS DISTINCT FROM (
                    'succeeded', 'bank_transfer', b.invoice_id, b.received_amount_minor, b.received_currency,
                    b.bank_transaction_id
                )
            )
            """,
        repair="Compare with the bank statement; record the payment that is missing, or correct its facts.",
    ),
    Check(
        name="transfer_payment_was_approved",
        rule="A bank transfer's payment that settles an invoice was approved by an admin, or stands on a bank's "
        "statement, or was applied by an admin later.",
        sql="""
            SELECT p.id AS payment_id, p.account_id, p.invoice_id, count(b.id) AS approvals
            FROM payments p LEFT JOIN bank_transfers b ON b.payment_id = p.id AND b.status = 'approved'
            WHERE p.provider = 'bank_transfer' AND p.applied_at IS NOT NULL
            GROUP BY p.id HAVING count(b.id) > 1 OR (
                count(b.id) = 0 AND p.bank_entry_id IS NULL AND NOT EXISTS (
                    SELECT FROM audit_log l WHERE l.subject_id = p.id AND l.action = 'payment.applied'
                )
            )
            """,
        repair=f"{_BY_HAND}, and restore the transfer with its decision.",
    ),
    Check(
        name="transfer_decided_once",
        rule="An invoice has at most one approved bank transfer, and at most one that is undecided.",
        sql="""
            SELECT invoice_id, status, count(*) AS bank_transfers FROM bank_transfers
            WHERE status IN ('approved', 'pending')
            GROUP BY invoice_id, status HAVING count(*) > 1
            """,
        repair="Reject the one that did not bring the money.",
    ),
    Check(
        name="money_in_has_its_payment",
        rule="A bank entry that brings money has exactly one payment; one that takes money has none.",
        sql="""
            SELECT e.id AS bank_entry_id, e.external_id, e.amount_minor, e.currency, count(p.id) AS payments
            FROM bank_entries e LEFT JOIN payments p ON p.bank_entry_id = e.id
            GROUP BY e.id HAVING count(p.id) <> CASE WHEN e.amount_minor > 0 THEN 1 ELSE 0 END
            """,
        repair="Link the payment that has the entry's transaction id, or insert one with the unapplied_reason "
        "'unmatched', as the import would; for money that went out: UPDATE payments SET bank_entry_id = NULL",
    ),
    Check(
        name="entry_payment_is_its_entry",
        rule="The payment of a bank entry came by bank transfer, has succeeded, and has the entry's transaction id or "
        "its external id.",
        sql="""
            SELECT p.id AS payment_id, p.bank_entry_id, p.provider, p.status, p.external_payment_id, e.transaction_id,
                   e.external_id
            FROM payments p LEFT JOIN bank_entries e ON e.id = p.bank_entry_id
            WHERE p.bank_entry_id IS NOT NULL AND (
                (p.provider, p.status) IS DISTINCT FROM ('bank_transfer', 'succeeded')
                OR e.id IS NULL
                OR p.external_payment_id NOT IN (coalesce(e.transaction_id, e.external_id), e.external_id)
            )
            """,
        repair="The entry is what the bank said: correct the payment, or link it to the entry that it came with.",
    ),
    Check(
        name="decision_is_audited",
        rule="What an admin decided is in the audit log: transfers, payments, statements, plans, credits.",
        sql="""
            SELECT 'bank transfer' AS decided, b.id, b.decided_by AS admin_id FROM bank_transfers b
            WHERE b.status <> 'pending' AND NOT EXISTS (
                SELECT FROM audit_log l WHERE l.subject_id = b.id AND l.action = 'bank_transfer.' || b.status
            )
            UNION ALL
            SELECT o.kind, o.id, o.principal_id FROM operations o
            WHERE o.status = 'succeeded' AND o.kind IN ('record_payment', 'assign_plan', 'adjust_credits',
                                                          'reverse_credits', 'apply_payment', 'refund_payment',
                                                          'import_bank_statement')
              AND o.principal_kind = 'admin'
              AND NOT EXISTS (SELECT FROM audit_log l WHERE l.operation_id = o.id)
            """,
        repair="Append the missing row to the audit log, saying that it was added later, by whom and why.",
    ),
    # Operations, and the schema itself
    Check(
        name="operation_ended_completely",
        rule="An operation that succeeded has its result, one that failed or died its problem; only a pending one is "
        "sent again.",
        sql="""
            SELECT id AS operation_id, kind, status, next_send_at, finished_at FROM operations
            WHERE (status = 'succeeded') <> (result IS NOT NULL)
               OR (status IN ('failed', 'dead')) <> (problem IS NOT NULL)
               OR (status IN ('succeeded', 'failed')) <> (finished_at IS NOT NULL)
               OR (status = 'pending') <> (next_send_at IS NOT NULL)
            """,
        repair="UPDATE operations SET status = 'dead', problem = '{\"code\": \"operation_dead\"}', result = NULL, "
        "finished_at = NULL, next_send_at = NULL WHERE id = <operation_id>, look at it, then: "
        "python -m workers operations retry <operation_id>",
    ),
    Check(
        name="operation_accepted_once",
        rule="An Idempotency-Key stands for one operation of its principal.",
        sql="""
            SELECT idempotency_scope, idempotency_key, count(*) AS operations FROM operations
            WHERE idempotency_key IS NOT NULL
            GROUP BY idempotency_scope, idempotency_key HAVING count(*) > 1
            """,
        repair="Undo the effect of the later operation, and take its key away.",
    ),
    Check(
        name="operation_result_exists",
        rule="What an operation's result names exists: the account, its user, invoice, payment, bank transfer or "
        "bank statement.",
        sql="""
            SELECT o.id AS operation_id, o.kind, r.key AS missing, r.value AS id
            FROM operations o CROSS JOIN LATERAL jsonb_each_text(o.result) r
            WHERE o.status = 'succeeded' AND r.value IS NOT NULL AND NOT CASE r.key
                WHEN 'account_id' THEN EXISTS (SELECT FROM accounts WHERE id = r.value::uuid)
                WHEN 'user_id' THEN EXISTS (SELECT FROM users WHERE id = r.value::uuid)
                WHEN 'subscription_id' THEN EXISTS (SELECT FROM subscriptions WHERE id = r.value::uuid)
                WHEN 'invoice_id' THEN EXISTS (SELECT FROM invoices WHERE id = r.value::uuid)
                WHEN 'payment_id' THEN
                    EXISTS (SELECT FROM payments WHERE id = r.value::uuid AND status = 'succeeded')
                WHEN 'bank_transfer_id' THEN EXISTS (SELECT FROM bank_transfers WHERE id = r.value::uuid)
                WHEN 'statement_id' THEN EXISTS (SELECT FROM bank_statements WHERE id = r.value::uuid)
                ELSE true
            END
            """,
        repair="Restore the missing row from a backup; the client was told that it exists.",
    ),
    Check(
        name="signup_made_its_account",
        rule="A signup that succeeded made an account, which the operation names, with its owner.",
        sql="""
            SELECT o.id AS operation_id, o.account_id, o.result FROM operations o
            WHERE o.kind = 'sign_up' AND o.status = 'succeeded' AND NOT EXISTS (
                SELECT FROM accounts a JOIN users u ON u.account_id = a.id
                WHERE a.id = o.account_id AND a.id::text = o.result ->> 'account_id' AND a.kind = 'customer'
                  AND u.id::text = o.result ->> 'user_id'
            )
            """,
        repair="Restore account and user from a backup, or sign the customer up again.",
    ),
    Check(
        name="finished_operation_keeps_no_secret",
        rule="No password hash stays in the payload of an operation that has ended.",
        sql="""
            SELECT id AS operation_id, kind, status FROM operations
            WHERE status IN ('succeeded', 'failed') AND payload ? 'password_hash'
            """,
        repair="UPDATE operations SET payload = payload - 'password_hash' WHERE id = <operation_id>",
    ),
    Check(
        name="constraints_hold",
        rule="Every constraint and index of the schema is in force.",
        sql="""
            SELECT conrelid::regclass::text AS table_name, conname::text AS name FROM pg_constraint
            WHERE NOT convalidated AND connamespace = current_schema()::regnamespace
            UNION ALL
            SELECT i.indrelid::regclass::text, i.indexrelid::regclass::text
            FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            WHERE NOT i.indisvalid AND c.relnamespace = current_schema()::regnamespace
            """,
        repair="Repair the rows that break it, then ALTER TABLE <table_name> VALIDATE CONSTRAINT <name>, or REINDEX.",
    ),
)

WARNINGS: Final = (
    Check(
        name="account_parked",
        rule="A parked account is passed by: its transitions failed, and somebody has to look.",
        sql="""
            SELECT id AS account_id, parked_at, parked_reason, next_transition, next_transition_at FROM accounts
            WHERE parked_at IS NOT NULL ORDER BY parked_at
            """,
        repair="python -m workers accounts show <account_id>; then … accounts unpark <account_id>",
    ),
    Check(
        name="operation_dead",
        rule="A dead operation kept failing for an unexpected reason.",
        sql="""
            SELECT id AS operation_id, kind, account_id, attempts, last_error FROM operations
            WHERE status = 'dead' ORDER BY id
            """,
        repair="python -m workers operations show <operation_id>; then … operations retry <operation_id>",
    ),
    Check(
        name="transfer_waits_in_vain",
        rule="A bank transfer waits for a decision though its invoice is paid or void; it can only be rejected.",
        sql="""
            SELECT b.id AS bank_transfer_id, b.account_id, b.invoice_id, i.status AS invoice_status, b.submitted_at
            FROM bank_transfers b JOIN invoices i ON i.id = b.invoice_id
            WHERE b.status = 'pending' AND i.status <> 'open' ORDER BY b.id
            """,
        repair="Reject it (POST /api/v1/admin/bank-transfers/<bank_transfer_id>/reject); refund what arrives.",
    ),
    Check(
        name="entry_brought_other_money",
        rule="A payment was recorded by hand over another amount or currency than the bank has booked since.",
        sql="""
            SELECT p.id AS payment_id, p.invoice_id, p.amount_minor, p.currency, e.id AS bank_entry_id,
                   e.amount_minor AS entry_amount_minor, e.currency AS entry_currency
            FROM payments p JOIN bank_entries e ON e.id = p.bank_entry_id
            WHERE (p.amount_minor, p.currency) <> (e.amount_minor, e.currency) ORDER BY p.id
            """,
        repair="Compare with the statement. Ask the customer for what is missing, or refund what is too much.",
    ),
    Check(
        name="money_went_back",
        rule="An entry that takes money, or brings back money of ours, names an invoice, and no refund tells of it.",
        search=_money_that_went_back,
        repair="Where a customer's bank has taken a payment back, record a refund of it and decide about the plan; "
        "where a refund came back, ask the customer where to send it.",
    ),
    Check(
        name="nobody_can_sign_up",
        rule="A signup needs the plan free-trial or free, assignable by signup.",
        sql="""
            SELECT 'no signup plan' AS problem
            WHERE NOT EXISTS (
                SELECT FROM plan_assigners WHERE assigned_by = 'signup' AND plan_slug IN ('free-trial', 'free')
            )
            """,
        repair="python -m workers seed-plans",
    ),
)
