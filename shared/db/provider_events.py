"""What providers told by webhook: each event once, for ever; those that concern us become operations."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from shared.db import operations
from shared.db.engine import Tx
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.payment import ProviderEvent, ProviderEventKind
from shared.domain.requests import ConfirmPayment, FollowRefunds
from shared.ids import new_id

NOT_OURS: Final = "not about a payment of ours"
NO_SUCH_INVOICE: Final = "names an invoice that the account does not have"


class Work(Struct, frozen=True, kw_only=True):
    """The operation that an event asks for."""

    operation_id: UUID
    kind: OperationKind


def take_in(tx: Tx, provider: PaymentMethod, event: ProviderEvent, *, now: datetime) -> Work | None:
    """Write the event down and what it asks for; None for one that was taken in before, or is nothing to us."""
    asked = _asked(tx, provider, event)
    operation_id = None if isinstance(asked, str) else new_id()
    inserted = tx.execute(
        """
        INSERT INTO provider_events (provider, event_id, type, occurred_at, operation_id, ignored)
        VALUES (%(provider)s, %(event_id)s, %(type)s, %(occurred_at)s, %(operation_id)s, %(ignored)s)
        ON CONFLICT (provider, event_id) DO NOTHING
        """,
        provider=str(provider),
        event_id=event.event_id,
        type=event.type,
        occurred_at=event.created_at,
        operation_id=operation_id,
        ignored=asked if isinstance(asked, str) else None,
    )
    if not inserted or operation_id is None or isinstance(asked, str):
        return None
    kind, account_id, request = asked
    operations.schedule(tx, kind, [(operation_id, account_id, request, event.event_id, now)])
    return Work(operation_id=operation_id, kind=kind)


def _asked(tx: Tx, provider: PaymentMethod, event: ProviderEvent) -> tuple[OperationKind, UUID, Any] | str:
    """What is to be done about it, for which account; or why nothing is."""
    if event.kind is ProviderEventKind.OTHER or event.external_payment_id is None:
        return NOT_OURS
    if event.kind is ProviderEventKind.REFUND:
        tx.execute(
            "SELECT admit_payer_of(%(provider)s, %(external_id)s)",
            provider=str(provider),
            external_id=event.external_payment_id,
        )
        # It may come before the news that the payment succeeded; then following it waits for that.
        refunded = tx.maybe(
            """
            SELECT account_id FROM (
                SELECT account_id FROM payments
                WHERE provider = %(provider)s AND external_payment_id = %(external_id)s
                UNION ALL
                SELECT account_id FROM checkouts
                WHERE provider = %(provider)s AND external_payment_id = %(external_id)s
            ) AS known LIMIT 1
            """,
            provider=str(provider),
            external_id=event.external_payment_id,
        )
        if refunded is None:
            return NOT_OURS
        follow = FollowRefunds(provider=provider, external_payment_id=event.external_payment_id)
        return OperationKind.FOLLOW_REFUNDS, refunded.account_id, follow
    if event.account_id is None or event.invoice_id is None:
        return NOT_OURS
    tx.execute("SELECT admit_payer(%(account_id)s, %(id)s)", account_id=event.account_id, id=event.invoice_id)
    known = tx.maybe(
        "SELECT id FROM invoices WHERE id = %(id)s AND account_id = %(account_id)s",
        id=event.invoice_id,
        account_id=event.account_id,
    )
    if known is None:
        return NO_SUCH_INVOICE
    confirm = ConfirmPayment(
        invoice_id=event.invoice_id, provider=provider, external_payment_id=event.external_payment_id
    )
    return OperationKind.CONFIRM_PAYMENT, event.account_id, confirm
