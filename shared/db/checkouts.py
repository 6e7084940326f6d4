"""Checkouts: payments that a customer may be making. The provider is asked about each until the answer is final.

A payment is thus found though its browser was closed and its webhook was lost.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Tx
from shared.domain.invoice import PaymentMethod

# How long after a checkout, and then after each question, the provider is asked (again). After the last one nobody
# has paid for weeks, and the provider's own expiry is near.
PATIENCE: Final = (
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=6),
    *(timedelta(days=1),) * 3,
    *(timedelta(days=7),) * 3,
)


def open_checkout(
    tx: Tx,
    provider: PaymentMethod,
    external_payment_id: str,
    *,
    account_id: UUID,
    invoice_id: UUID,
    saves_method: bool,
    now: datetime,
) -> None:
    """The provider has such a payment for this invoice, and it may be made any moment.

    saves_method: the customer agrees that what is used is charged later; said again, the last word counts.
    """
    tx.execute(
        """
        INSERT INTO checkouts (provider, external_payment_id, account_id, invoice_id, saves_method, next_ask_at)
        VALUES (%(provider)s, %(external_id)s, %(account_id)s, %(invoice_id)s, %(saves_method)s, %(next_ask_at)s)
        ON CONFLICT (provider, external_payment_id) DO UPDATE SET saves_method = excluded.saves_method
        """,
        provider=str(provider),
        external_id=external_payment_id,
        account_id=account_id,
        invoice_id=invoice_id,
        saves_method=saves_method,
        next_ask_at=now + PATIENCE[0],
    )


def close(tx: Tx, provider: PaymentMethod, external_payment_id: str) -> bool:
    """The answer about this payment is final. Whether its method may be kept: not if its checkout said no."""
    row = tx.maybe(
        """
        UPDATE checkouts SET next_ask_at = NULL
        WHERE provider = %(provider)s AND external_payment_id = %(external_id)s
        RETURNING saves_method
        """,
        provider=str(provider),
        external_id=external_payment_id,
    )
    return row is None or row.saves_method


def is_open(tx: Tx, provider: PaymentMethod, external_payment_id: str) -> bool:
    """Whether the provider will be asked about this payment again."""
    found: bool = tx.scalar(
        """
        SELECT EXISTS (
            SELECT FROM checkouts
            WHERE provider = %(provider)s AND external_payment_id = %(external_id)s AND next_ask_at IS NOT NULL
        )
        """,
        provider=str(provider),
        external_id=external_payment_id,
    )
    return found


def of_invoice(tx: Tx, invoice_id: UUID, provider: PaymentMethod) -> str | None:
    """The payment that the invoice's last checkout at this provider began."""
    external_payment_id: str | None = tx.scalar(
        """
        SELECT (
            SELECT external_payment_id FROM checkouts
            WHERE invoice_id = %(invoice_id)s AND provider = %(provider)s ORDER BY created_at DESC LIMIT 1
        )
        """,
        invoice_id=invoice_id,
        provider=str(provider),
    )
    return external_payment_id


def claim_to_ask(tx: Tx, *, as_of: datetime, limit: int) -> Sequence[Row[Any]]:
    """Checkouts about which the provider is to be asked now; each is put off to its next time, or was the last."""
    rows = tx.rows(
        """
        SELECT provider, external_payment_id, account_id, invoice_id, asked, next_ask_at FROM checkouts
        WHERE next_ask_at <= %(as_of)s ORDER BY next_ask_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        """,
        as_of=as_of,
        limit=limit,
    )
    if rows:
        tx.execute(
            """
            UPDATE checkouts c SET asked = c.asked + 1, next_ask_at = v.next_ask_at
            FROM unnest(%(providers)s::text[], %(external_ids)s::text[], %(next)s::timestamptz[])
                AS v (provider, external_payment_id, next_ask_at)
            WHERE (c.provider, c.external_payment_id) = (v.provider, v.external_payment_id)
            """,
            providers=[row.provider for row in rows],
            external_ids=[row.external_payment_id for row in rows],
            next=[as_of + PATIENCE[row.asked + 1] if row.asked + 1 < len(PATIENCE) else None for row in rows],
        )
    return rows
