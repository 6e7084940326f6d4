"""The subscription: reading it, looking ahead, and leaving."""

from http import HTTPStatus
from uuid import UUID

from api import paging, schemas
from api.accept import Accepted, accept
from api.access import Customer, Permission, customer
from api.auth import admit_again
from api.routing import ACCEPTED, Routes
from api.schemas import PeriodDocument, SubscriptionDocument, TimelineDocument, TimelineEntryDocument
from api.services import services
from shared.clock import utc_now
from shared.db import subscriptions
from shared.db import timeline as outlooks
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.domain.operation import OperationKind
from shared.domain.requests import CancelSubscription
from shared.domain.subscription import SubscriptionStatus
from shared.domain.timeline import horizon, timeline

PERIODS_SHOWN = 60

routes = Routes("subscription", about="What the account has, from when to when.")


@routes.handle("GET", "/subscription", needs=customer(Permission.BILLING_READ), answer=SubscriptionDocument)
def read_subscription(tx: Tx, principal: Customer) -> SubscriptionDocument:
    """The live subscription, or the last one, with its dates and its newest periods."""
    return subscription_document(tx, principal.account_id)


@routes.handle(
    "GET",
    "/subscription/timeline",
    needs=customer(Permission.BILLING_READ),
    answer=TimelineDocument,
    refusals=(HTTPStatus.CONFLICT,),
)
def read_timeline(principal: Customer, query: schemas.TimelineQuery) -> TimelineDocument:
    """What will happen until an instant, and when, if nobody does anything.

    Computed by what will do it, from the account as it is now. What was due before `now_at` and is not written
    yet comes first, at the instant at which it was due. A request that was accepted and is not executed yet is
    not in it, and neither is what will be consumed.
    """
    with services().database.transaction() as tx:  # one of its own, to read a single instant
        tx.read_one_instant()
        admit_again(tx, principal)
        outlook = outlooks.read(tx, principal.account_id, services().settings, now=utc_now())
    until = horizon(outlook.now, query.until)
    entries, next_cursor = paging.timeline_page(
        timeline(outlook.state, outlook.rules, until=until), cursor=query.cursor, limit=query.limit
    )
    return TimelineDocument(
        now_at=outlook.now,
        until=until,
        items=[TimelineEntryDocument.of(entry) for entry in entries],
        next_cursor=next_cursor,
    )


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
