"""The index that lets a row of the ledger be reversed once holds reversals alone; other rows need none."""

from typing import Final

from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"

UP: Final = """
ALTER TABLE credit_transactions DROP CONSTRAINT credit_transaction_reversed_once;
CREATE UNIQUE INDEX credit_transaction_reversed_once ON credit_transactions (account_id, reverses_seq)
    WHERE reverses_seq IS NOT NULL;
"""

DOWN: Final = """
DROP INDEX credit_transaction_reversed_once;
ALTER TABLE credit_transactions ADD CONSTRAINT credit_transaction_reversed_once UNIQUE (account_id, reverses_seq);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
