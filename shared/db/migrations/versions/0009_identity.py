"""Identity: keys that replace each other, members by invitation, signups that wait, failed sign-ins, trials given."""

from typing import Final

from alembic import op

revision: Final = "0009"
down_revision: Final = "0008"

SYSTEM_ACCOUNT: Final = "00000000-0000-7000-8000-000000000000"

# The mailbox of an address, as `mailbox_digest` in shared/db/trials.py tells it.
MAILBOX: Final = "sha256(convert_to(regexp_replace(u.email, '\\+[^@]*@', '@'), 'UTF8'))"

API_KEYS: Final = """
-- A key that is rotated is replaced by another row and expires, at once or after an overlap.
ALTER TABLE api_keys
    ADD COLUMN replaced_by uuid,
    ADD CONSTRAINT api_key_named_with_account UNIQUE (id, account_id),
    ADD CONSTRAINT api_key_replaced_within_account FOREIGN KEY (replaced_by, account_id)
        REFERENCES api_keys (id, account_id),
    ADD CONSTRAINT api_key_replaced_expires CHECK (replaced_by IS NULL OR expires_at IS NOT NULL);
CREATE UNIQUE INDEX api_key_replaces_one ON api_keys (replaced_by) WHERE replaced_by IS NOT NULL;
"""

SESSIONS: Final = "CREATE INDEX session_of_admin ON sessions (admin_id) WHERE admin_id IS NOT NULL;"

MEMBERS: Final = f"""
-- Who may become a user of an account, and as what. The token that proves it is derived from the id and kept nowhere.
CREATE TABLE invitations (
    id          uuid PRIMARY KEY,
    account_id  uuid NOT NULL REFERENCES accounts (id),
    email       text NOT NULL,
    role        text NOT NULL,
    invited_by  uuid NOT NULL REFERENCES users (id),
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    accepted_at timestamptz,
    accepted_by uuid REFERENCES users (id),
    revoked_at  timestamptz,
    CONSTRAINT invitation_not_of_system_account CHECK (account_id <> '{SYSTEM_ACCOUNT}'),
    CONSTRAINT invitation_role_known CHECK (role IN ('owner', 'admin', 'editor', 'viewer', 'developer')),
    CONSTRAINT invitation_email_normalised CHECK (email = lower(email) AND length(email) <= 254),
    CONSTRAINT invitation_expires_later CHECK (expires_at > created_at),
    CONSTRAINT invitation_accepted_by_a_user CHECK ((accepted_at IS NULL) = (accepted_by IS NULL)),
    CONSTRAINT invitation_ends_once CHECK (accepted_at IS NULL OR revoked_at IS NULL)
);
CREATE UNIQUE INDEX invitation_one_open_per_address ON invitations (account_id, email)
    WHERE accepted_at IS NULL AND revoked_at IS NULL;
CREATE INDEX invitation_by_user ON invitations (invited_by);
"""

SIGNUPS: Final = """
-- Signups whose address nobody has confirmed yet. A row is forgotten when it has expired, used or not.
CREATE TABLE signups (
    id            uuid PRIMARY KEY,
    account_name  text NOT NULL,
    email         text NOT NULL,
    password_hash text NOT NULL,
    time_zone     text NOT NULL,
    test_clock_id uuid REFERENCES test_clocks (id),
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    CONSTRAINT signup_email_normalised CHECK (email = lower(email) AND length(email) <= 254),
    CONSTRAINT signup_expires_later CHECK (expires_at > created_at)
);
CREATE INDEX signup_by_expiry ON signups (expires_at);

-- Trials that were given, by a digest of the mailbox, whatever has become of the account. A trial is taken before its
-- account is made, since the plan depends on it.
CREATE TABLE trials (
    mailbox_digest bytea CONSTRAINT trial_once_per_mailbox PRIMARY KEY,
    account_id     uuid NOT NULL REFERENCES accounts (id) DEFERRABLE INITIALLY DEFERRED,
    created_at     timestamptz NOT NULL DEFAULT now()
);
"""

TRIALS_GIVEN: Final = f"""
INSERT INTO trials (mailbox_digest, account_id, created_at)
SELECT DISTINCT ON (mailbox) mailbox, account_id, created_at
FROM (
    SELECT {MAILBOX} AS mailbox, u.account_id, a.created_at FROM users u JOIN accounts a ON a.id = u.account_id
    WHERE u.role = 'owner' AND EXISTS (
        SELECT FROM subscriptions s WHERE s.account_id = a.id AND s.trial_ends_at IS NOT NULL
    )
) AS owners
ORDER BY mailbox, created_at, account_id;
"""

SIGN_INS: Final = """
-- Who tried to sign in from where: both what failed since it last went well, and when that was. `who` is a keyed digest
-- of the address that was typed, whether or not anybody has it.
CREATE TABLE sign_in_attempts (
    who          bytea NOT NULL,
    network      text NOT NULL,
    failures     integer NOT NULL CONSTRAINT sign_in_failures_not_negative CHECK (failures >= 0),
    failed_at    timestamptz,
    succeeded_at timestamptz,
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (who, network),
    CONSTRAINT sign_in_failures_have_instant CHECK (failures = 0 OR failed_at IS NOT NULL)
);
CREATE INDEX sign_in_attempt_by_expiry ON sign_in_attempts (expires_at);
"""

GRANTS: Final = """
GRANT SELECT, INSERT, UPDATE ON invitations, sign_in_attempts TO prepaid_api;
GRANT SELECT, INSERT ON signups TO prepaid_api;
GRANT SELECT ON invitations TO prepaid_worker;
GRANT SELECT, UPDATE (expires_at), DELETE ON signups, sign_in_attempts TO prepaid_worker;  -- who removes rows locks them
GRANT SELECT, INSERT ON trials TO prepaid_worker;
"""

DOWN: Final = """
DROP TABLE sign_in_attempts, trials, signups, invitations;
DROP INDEX session_of_admin;
DROP INDEX api_key_replaces_one;
ALTER TABLE api_keys
    DROP CONSTRAINT api_key_replaced_expires,
    DROP CONSTRAINT api_key_replaced_within_account,
    DROP CONSTRAINT api_key_named_with_account,
    DROP COLUMN replaced_by;
"""


def upgrade() -> None:
    for statements in (API_KEYS, SESSIONS, MEMBERS, SIGNUPS, TRIALS_GIVEN, SIGN_INS, GRANTS):
        op.get_bind().exec_driver_sql(statements)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
