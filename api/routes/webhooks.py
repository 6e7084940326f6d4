"""Webhooks: news from payment providers, believed for their signature and for nothing else."""

from http import HTTPStatus

from api import schemas
from api.access import PUBLIC
from api.routing import Routes
from api.services import services
from api.throttle import Throttle
from shared.clock import utc_now
from shared.db import provider_events
from shared.domain.invoice import PaymentMethod
from shared.providers import provider_for

routes = Routes("webhooks", about="Where payment providers tell what happened.")


@routes.handle(
    "POST",
    "/webhooks/stripe",
    needs=PUBLIC,
    answer=None,
    refusals=(HTTPStatus.CONFLICT,),
    max_body_bytes=schemas.MAX_WEBHOOK_BYTES,
    throttle=Throttle.WEBHOOK,
)
def take_in_stripe_event(raw: schemas.StripeEvent) -> None:
    """Take in an event that Stripe has signed. The same one again changes nothing, nor does the order of several."""
    provider = provider_for(PaymentMethod.STRIPE, services().settings, services().database)
    event = provider.verify_webhook(raw.get_data(), dict(raw.headers))
    with services().database.transaction() as tx:
        work = provider_events.take_in(tx, PaymentMethod.STRIPE, event, now=utc_now())
    if work is not None:
        services().publisher.send(work.kind.task_name, work.operation_id)
