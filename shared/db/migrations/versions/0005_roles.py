"""The roles that processes act as: the ledger, the events and the audit log they can read and append to, no more.

Roles belong to the whole server, so one may be there already, and a step down leaves them. Whoever migrates has to be
allowed to make roles, or has to be a member of both.
"""

from typing import Final

from alembic import op

revision: Final = "0005"
down_revision: Final = "0004"

UP: Final = """
DO $$
DECLARE
    v_role text;
    v_become text := CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END;
BEGIN
    FOREACH v_role IN ARRAY ARRAY['prepaid_api', 'prepaid_worker'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = v_role) THEN
                EXECUTE format('CREATE ROLE %%I NOLOGIN', v_role);
            END IF;
            IF NOT pg_has_role(current_user, v_role, v_become) THEN
                EXECUTE format('GRANT %%I TO %%I', v_role, current_user);
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;  -- another database of this server is migrated at the same moment
            WHEN insufficient_privilege THEN
                RAISE insufficient_privilege USING MESSAGE = format(
                    '%%1$I may not make or become the role %%2$I; once, as a superuser: '
                    'CREATE ROLE %%2$I NOLOGIN; GRANT %%2$I TO %%1$I;', current_user, v_role);
        END;
    END LOOP;
END
$$;
GRANT USAGE ON SCHEMA public TO prepaid_api, prepaid_worker;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO prepaid_api, prepaid_worker;
GRANT DELETE ON subscription_periods, payments TO prepaid_api, prepaid_worker;  -- what was never granted, never asked
REVOKE UPDATE ON credit_transactions, events, audit_log FROM prepaid_api, prepaid_worker;
REVOKE INSERT, UPDATE ON alembic_version, plans, plan_assigners FROM prepaid_api, prepaid_worker;
"""

DOWN: Final = """
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM prepaid_api, prepaid_worker;
REVOKE USAGE ON SCHEMA public FROM prepaid_api, prepaid_worker;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
