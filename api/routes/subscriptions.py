"""The subscription: reading it, and leaving."""

from uuid import UUID

from api import schemas
from api.accept import Accepted, accept
from api.access import Customer, Permission, customer
from api.routing import ACCEPTED, Routes
from api.schemas import PeriodDocument, SubscriptionDocument
from shared.db import subscriptions
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.domain.operation import OperationKind
from shared.domain.requests import CancelSubscription
from shared.domain.subscription import SubscriptionStatus

PERIODS_SHOWN = 60

routes = Routes("subscription", about="What the account has, from when to when.")


@routes.handle("GET", "/subscription", needs=customer(Permission.BILLING_READ), answer=SubscriptionDocument)
def read_subscription(tx: Tx, principal: Customer) -> SubscriptionDocument:
    """The live subscription, or the last one, with its dates and its newest periods."""
    return subscription_document(tx, principal.account_id)


@routes.handle(
    "POST",
    "/subscription/cancel",
    needs=customer(Permission.BILLING_PAY, Action.PAY),
    answer=ACCEPTED,
)
def cancel_subscription(tx: Tx, principal: Customer, header: schemas.OptionalKey, body: schemas.CancelBody) -> Accepted:
    """Leave when the period ends, or now."""
    return accept(
        tx,
        OperationKind.CANCEL_SUBSCRIPTION,
        CancelSubscription(at_period_end=body.at_period_end),
        principal=principal,
        account_id=principal.account_id,
        body=body,
        key=header.idempotency_key,
    )


def subscription_document(tx: Tx, account_id: UUID) -> SubscriptionDocument:
    """The account's newest subscription. Raises NotFound."""
    row = subscriptions.newest(tx, account_id)
    ended = row.status == SubscriptionStatus.ENDED
    periods = subscriptions.periods(tx, row.id, limit=PERIODS_SHOWN)
    return SubscriptionDocument.of(
        row,
        renews_at=None if ended else row.renews_at,
        next_credit_at=None if ended else row.next_credit_at,
        periods=[PeriodDocument.of(period) for period in periods],
    )
