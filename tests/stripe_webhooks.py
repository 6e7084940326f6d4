"""What Stripe sends to a webhook: bodies of events, and the header that signs them."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import stripe

from shared.clock import utc_now
from shared.ids import new_id
from workers.local_stripe import WEBHOOK_SECRET

API_VERSION = "2026-10-28.endive"


def event(kind: str, about: Mapping[str, Any], *, event_id: str | None = None, at: datetime | None = None) -> bytes:
    """The body of an event such as `payment_intent.succeeded` about this object; of now, unless stated."""
    document = {
        "id": event_id or f"evt_{new_id().hex}",
        "object": "event",
        "api_version": API_VERSION,
        "created": int((at or utc_now()).timestamp()),
        "data": {"object": about},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": kind,
    }
    return json.dumps(document, indent=2).encode()


def sign(body: bytes, secret: str = WEBHOOK_SECRET, timestamp: datetime | None = None) -> dict[str, str]:
    """The headers of a request with this body; signed now, unless another instant is given."""
    seconds = int((timestamp or utc_now()).timestamp())
    header = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, timestamp=seconds)
    return {"Content-Type": "application/json; charset=utf-8", "Stripe-Signature": header}
