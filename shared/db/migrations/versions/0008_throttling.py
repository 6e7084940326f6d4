"""How many requests an account may make, by its plan."""

from typing import Final

from alembic import op

revision: Final = "0008"
down_revision: Final = "0007"

UP: Final = """
-- The default is for plans of one's own, and for the release before this one, which does not name the column.
ALTER TABLE plans
    ADD COLUMN requests_per_minute integer NOT NULL DEFAULT 600,
    ADD CONSTRAINT plan_requests_per_minute_positive CHECK (requests_per_minute BETWEEN 1 AND 1000000);
UPDATE plans p SET requests_per_minute = seed.requests_per_minute
FROM (VALUES ('free-trial', 120), ('free', 60), ('starter', 600), ('growth', 1200), ('scale', 3000),
             ('enterprise', 12000)) AS seed (slug, requests_per_minute)
WHERE p.slug = seed.slug;
"""

DOWN: Final = "ALTER TABLE plans DROP COLUMN requests_per_minute"


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
