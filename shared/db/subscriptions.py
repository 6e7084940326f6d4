"""Subscriptions and their periods, as their account reads them; `account_state` writes them."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.errors import NotFound


def newest(tx: Tx, account_id: UUID) -> Row[Any]:
    """The live subscription, or the last that ended, with its plans' slugs. Raises NotFound."""
    row = tx.maybe(
        """
        SELECT s.*, p.slug AS plan, n.slug AS next_plan FROM subscriptions s
        JOIN plans p ON p.id = s.plan_id
        LEFT JOIN plans n ON n.id = s.next_plan_id
        WHERE s.account_id = %(account_id)s
        ORDER BY (s.status <> 'ended') DESC, s.started_at DESC, s.id DESC LIMIT 1
        """,
        account_id=account_id,
    )
    if row is None:
        raise NotFound("the account has had no subscription yet")
    return row


def periods(tx: Tx, subscription_id: UUID, *, limit: int) -> Sequence[Row[Any]]:
    """The newest `limit` periods of a subscription, in their order."""
    rows = tx.rows(
        """
        SELECT d.starts_at, d.ends_at, d.phase, d.period_index, p.slug AS plan
        FROM subscription_periods d JOIN plans p ON p.id = d.plan_id
        WHERE d.subscription_id = %(id)s
        ORDER BY d.starts_at DESC LIMIT %(limit)s
        """,
        id=subscription_id,
        limit=limit,
    )
    return rows[::-1]
