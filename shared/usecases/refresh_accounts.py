"""Derive anew what is stored of an account's schedule, after the terms it was derived from have changed."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from shared.db import account_state
from shared.db.account_state import Change
from shared.db.bulk import update_many
from shared.db.engine import Tx
from shared.domain.plan import Rules

RENEWAL_TYPES: Final = {"id": "uuid", "renews_at": "timestamptz"}


def refresh_accounts(tx: Tx, account_ids: Sequence[UUID], rules: Rules) -> int:
    """Write next transition, end of access and renewal as they follow from each state; how many accounts.

    Nothing else changes: what is due stays due until a job or an operation takes it up.
    """
    states = account_state.read(tx, account_state.lock(tx, account_ids))
    account_state.write(tx, [Change(state, state) for state in states], rules)
    live = [state.live for state in states if state.live is not None]
    update_many(tx, "subscriptions", RENEWAL_TYPES, live, key=("id",))
    return len(states)
