"""Rules about a single value of the busiest tables become types, checked when that value is written and not otherwise.

PostgreSQL parses every CHECK of a table anew for each statement that changes a row of it, whatever the statement
changes: 2.5 µs each, of which spending met two dozen. A domain's check is prepared once, and met by who writes the
value. The names of the rules stay. Rewrites the three tables.
"""

from typing import Final, NamedTuple

from alembic import op

revision: Final = "0006"
down_revision: Final = "0005"


class Rule(NamedTuple):
    """A domain, the column that it types, the constraint's name, and what it says of the value."""

    domain: str
    base: str
    table: str
    column: str
    name: str
    says: str


PAYMENT_METHODS: Final = "{} IN ('stripe', 'bank_transfer', 'manual', 'sandbox')"
TRANSITIONS: Final = "{} IN ('trial_end', 'cancellation', 'renewal', 'grace_end', 'grant_expiry', 'credit_month')"
SOURCES: Final = "{} IN ('subscription', 'payment', 'operation', 'admin', 'user', 'api_key', 'hold', 'grant')"
STATUSES: Final = "{} IN ('trial', 'active', 'past_due', 'suspended', 'cancelled')"

RULES: Final = (
    Rule("account_kind", "text", "accounts", "kind", "account_kind_known", "{} IN ('customer', 'system')"),
    Rule("account_status", "text", "accounts", "status", "account_status_known", STATUSES),
    Rule("account_payer", "text", "accounts", "payment_method", "account_payment_method_known", PAYMENT_METHODS),
    Rule("account_transition", "text", "accounts", "next_transition", "account_next_transition_known", TRANSITIONS),
    Rule("credit_balance", "bigint", "accounts", "balance_credits", "credit_balance_not_negative", "{} >= 0"),
    Rule("credit_threshold", "bigint", "accounts", "low_credits", "account_low_credits_not_negative", "{} >= 0"),
    Rule(
        "credit_grant_source",
        "text",
        "credit_grants",
        "source",
        "credit_grant_source_known",
        "{} IN ('seed', 'purchase', 'adjust')",
    ),
    Rule("credit_grant_amount", "bigint", "credit_grants", "amount", "credit_grant_amount_positive", "{} > 0"),
    Rule("ledger_seq", "bigint", "credit_transactions", "seq", "credit_transaction_numbered_from_one", "{} > 0"),
    Rule(
        "ledger_balance",
        "bigint",
        "credit_transactions",
        "balance_after",
        "credit_transaction_balance_not_negative",
        "{} >= 0",
    ),
    Rule("ledger_source", "text", "credit_transactions", "source", "credit_transaction_source_known", SOURCES),
)
TABLES: Final = ("accounts", "credit_grants", "credit_transactions")


def upgrade() -> None:
    for rule in RULES:
        op.execute(
            f"CREATE DOMAIN {rule.domain} AS {rule.base} CONSTRAINT {rule.name} CHECK ({rule.says.format('VALUE')})"
        )
    for table in TABLES:  # one statement, so that each is rewritten once
        changes = [
            f"DROP CONSTRAINT {rule.name}, ALTER COLUMN {rule.column} TYPE {rule.domain}"
            for rule in RULES
            if rule.table == table
        ]
        op.execute(f"ALTER TABLE {table} {', '.join(changes)}")


def downgrade() -> None:
    for table in TABLES:
        changes = [
            f"ALTER COLUMN {rule.column} TYPE {rule.base}, "
            f"ADD CONSTRAINT {rule.name} CHECK ({rule.says.format(rule.column)})"
            for rule in RULES
            if rule.table == table
        ]
        op.execute(f"ALTER TABLE {table} {', '.join(changes)}")
    for rule in RULES:
        op.execute(f"DROP DOMAIN {rule.domain}")
