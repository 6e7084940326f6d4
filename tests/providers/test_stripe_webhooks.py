"""What comes to the webhook: only what Stripe signed with our secret, lately, is an event, and it says what to ask."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from typing import Any
from uuid import UUID

import pytest

from shared.clock import utc_now
from shared.domain.payment import CheckoutRequest, ProviderEvent, ProviderEventKind
from shared.errors import ProviderUnavailable, WebhookInvalid
from shared.providers.stripe import StripeProvider
from tests.providers.conftest import make_provider
from tests.stripe_webhooks import event, sign
from workers.local_stripe import WEBHOOK_SECRET, LocalStripe

ACCOUNT_ID = UUID("0192d7a1-0000-7000-8000-000000000001")
INVOICE_ID = UUID("0192d7a1-0000-7000-8000-000000000002")
METADATA = {"account_id": str(ACCOUNT_ID), "invoice_id": str(INVOICE_ID)}
PAYMENT = {"id": "pi_1", "object": "payment_intent", "metadata": METADATA}
REFUND = {"id": "re_1", "object": "refund", "payment_intent": "pi_1", "charge": "ch_1", "metadata": {}}
CHARGE = {"id": "ch_1", "object": "charge", "payment_intent": "pi_1", "metadata": METADATA}
BODY = event("payment_intent.succeeded", PAYMENT)


@pytest.fixture(scope="module")
def provider() -> StripeProvider:
    """Verifying asks nobody, so there is nobody."""
    return make_provider("http://127.0.0.1:9")


def test_an_event_that_stripe_signed(provider: StripeProvider) -> None:
    created = datetime(2026, 10, 5, 12, 30, tzinfo=UTC)
    body = event("payment_intent.succeeded", PAYMENT, event_id="evt_1", at=created)
    assert provider.verify_webhook(body, sign(body)) == ProviderEvent(
        event_id="evt_1",
        type="payment_intent.succeeded",
        created_at=created,
        kind=ProviderEventKind.PAYMENT,
        external_payment_id="pi_1",
        account_id=ACCOUNT_ID,
        invoice_id=INVOICE_ID,
    )


@pytest.mark.parametrize(
    ("kind", "about", "expected"),
    [
        ("payment_intent.succeeded", PAYMENT, (ProviderEventKind.PAYMENT, "pi_1", None)),
        ("payment_intent.payment_failed", PAYMENT, (ProviderEventKind.PAYMENT, "pi_1", None)),
        ("payment_intent.canceled", PAYMENT, (ProviderEventKind.PAYMENT, "pi_1", None)),
        ("payment_intent.created", PAYMENT, (ProviderEventKind.OTHER, None, None)),
        ("refund.created", REFUND, (ProviderEventKind.REFUND, "pi_1", "re_1")),
        ("refund.updated", REFUND, (ProviderEventKind.REFUND, "pi_1", "re_1")),
        ("refund.failed", REFUND, (ProviderEventKind.REFUND, "pi_1", "re_1")),
        ("charge.refund.updated", REFUND, (ProviderEventKind.REFUND, "pi_1", "re_1")),
        ("charge.refunded", CHARGE, (ProviderEventKind.REFUND, "pi_1", None)),
        ("refund.created", REFUND | {"payment_intent": None}, (ProviderEventKind.REFUND, None, "re_1")),
        ("charge.refunded", CHARGE | {"payment_intent": None}, (ProviderEventKind.OTHER, None, None)),
        ("customer.created", {"id": "cus_1", "object": "customer"}, (ProviderEventKind.OTHER, None, None)),
        ("balance.available", {"object": "balance"}, (ProviderEventKind.OTHER, None, None)),
        ("a type of the future", {}, (ProviderEventKind.OTHER, None, None)),
    ],
)
def test_what_an_event_is_about(
    provider: StripeProvider,
    kind: str,
    about: dict[str, Any],
    expected: tuple[ProviderEventKind, str | None, str | None],
) -> None:
    body = event(kind, about)
    found = provider.verify_webhook(body, sign(body))
    assert (found.kind, found.external_payment_id, found.refund_id) == expected
    assert found.type == kind


@pytest.mark.parametrize(
    "metadata", [None, {}, [], "text", {"account_id": 17}, {"account_id": "17"}, {"invoice_id": ["x"]}]
)
def test_an_event_about_what_we_did_not_create(provider: StripeProvider, metadata: object) -> None:
    body = event("payment_intent.succeeded", PAYMENT | {"metadata": metadata})
    found = provider.verify_webhook(body, sign(body))
    assert (found.external_payment_id, found.account_id, found.invoice_id) == ("pi_1", None, None)


@pytest.mark.parametrize("name", ["Stripe-Signature", "stripe-signature", "STRIPE-SIGNATURE"])
def test_headers_come_in_any_case(provider: StripeProvider, name: str) -> None:
    found = provider.verify_webhook(BODY, {"X-Other": "1", name: sign(BODY)["Stripe-Signature"]})
    assert found.external_payment_id == "pi_1"


def test_one_of_several_signatures_suffices(provider: StripeProvider) -> None:
    """For a day after a secret was rolled, Stripe signs with both."""
    at = utc_now()
    old, new = (sign(BODY, secret, at)["Stripe-Signature"] for secret in ("whsec_old", WEBHOOK_SECRET))
    for first, second in ((old, new), (new, old)):
        header = f"{first},{second.partition(',')[2]},v0=of-an-old-scheme"
        assert provider.verify_webhook(BODY, {"Stripe-Signature": header}).external_payment_id == "pi_1"


@pytest.mark.parametrize(
    ("age", "valid"),
    [
        pytest.param(timedelta(seconds=290), True, id="five minutes ago, almost"),
        pytest.param(timedelta(seconds=310), False, id="longer ago"),
        pytest.param(timedelta(days=3650), False, id="years ago"),
        pytest.param(timedelta(minutes=-10), True, id="our clock is late"),
    ],
)
def test_how_old_a_signature_may_be(provider: StripeProvider, age: timedelta, valid: bool) -> None:
    headers = sign(BODY, timestamp=utc_now() - age)
    if valid:
        assert provider.verify_webhook(BODY, headers).external_payment_id == "pi_1"
    else:
        with pytest.raises(WebhookInvalid, match="Timestamp outside the tolerance zone"):
            provider.verify_webhook(BODY, headers)


GENUINE = sign(BODY)["Stripe-Signature"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(BODY, {}, id="no signature"),
        pytest.param(BODY, {"Stripe-Signature": ""}, id="an empty one"),
        pytest.param(BODY, {"Stripe-Signature": "v1=abc"}, id="no timestamp"),
        pytest.param(BODY, {"Stripe-Signature": "t=1790000000"}, id="a timestamp alone"),
        pytest.param(BODY, {"Stripe-Signature": "t=soon,v1=abc"}, id="a timestamp that is none"),
        pytest.param(BODY, {"Stripe-Signature": "t=" + "9" * 5000 + ",v1=abc"}, id="a timestamp without end"),
        pytest.param(BODY, {"Stripe-Signature": "t,v1"}, id="no values"),
        pytest.param(BODY, {"Stripe-Signature": GENUINE.replace("v1=", "v0=")}, id="another scheme"),
        pytest.param(BODY, {"Stripe-Signature": GENUINE[:-1]}, id="cut off"),
        pytest.param(BODY, {"Stripe-Signature": GENUINE + "é"}, id="not ASCII"),
        pytest.param(BODY, {"Stripe-Signature": GENUINE.replace("t=1", "t=2")}, id="another timestamp"),
        pytest.param(BODY, sign(BODY, "whsec_other"), id="another secret"),
        pytest.param(BODY.replace(b"pi_1", b"pi_2"), sign(BODY), id="another body"),
        pytest.param(BODY + b" ", sign(BODY), id="one more byte"),
        pytest.param(b"", sign(BODY), id="no body"),
        pytest.param(b"\xff\xfe", sign(BODY), id="no text"),
    ],
)
def test_what_stripe_did_not_sign_is_refused(provider: StripeProvider, body: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(WebhookInvalid, match="the signature is not valid"):
        provider.verify_webhook(body, headers)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>", id="not JSON"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no members"),
        pytest.param(json.dumps({"id": "evt_1", "object": "v2.core.event", "type": "x"}).encode(), id="a thin event"),
        pytest.param(BODY.replace(b'"created": 1', b'"created": 1234567890123451'), id="from no year that there is"),
        pytest.param(event("payment_intent.succeeded", {"object": "payment_intent"}), id="a payment without id"),
        pytest.param(event("payment_intent.succeeded", {"id": 17}), id="a payment whose id is a number"),
    ],
)
def test_what_is_signed_and_no_event_is_refused(provider: StripeProvider, body: bytes) -> None:
    with pytest.raises(WebhookInvalid, match="the body is no event"):
        provider.verify_webhook(body, sign(body))


def test_without_a_secret_nothing_is_believed() -> None:
    provider = make_provider("http://127.0.0.1:9", webhook_secret=None)
    with pytest.raises(ProviderUnavailable, match="STRIPE_WEBHOOK_SECRET"):
        provider.verify_webhook(BODY, sign(BODY))


def test_a_refusal_tells_neither_secret_nor_body(provider: StripeProvider) -> None:
    with pytest.raises(WebhookInvalid) as refused:
        provider.verify_webhook(BODY, sign(BODY, "whsec_other"))
    assert refused.value.__suppress_context__
    shown = f"{refused.value!r} {refused.value.document()}"
    assert WEBHOOK_SECRET not in shown
    assert "pi_1" not in shown


def test_a_webhook_that_another_server_signed_and_sent(
    stripe: LocalStripe, checkout: Callable[..., CheckoutRequest]
) -> None:
    provider = make_provider(stripe.api_base)
    came: Queue[tuple[bytes, dict[str, str]]] = Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.put((self.rfile.read(int(self.headers["Content-Length"])), dict(self.headers.items())))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        stripe.send_webhooks_to(f"http://127.0.0.1:{receiver.server_port}/")
        request = checkout()
        begun = provider.checkout(request)
        stripe.customer_pays(begun.external_payment_id)
        found = None
        while found is None or found.external_payment_id != begun.external_payment_id:
            found = provider.verify_webhook(*came.get(timeout=20))
        receiver.shutdown()
    assert (found.kind, found.type) == (ProviderEventKind.PAYMENT, "payment_intent.succeeded")
    assert (found.account_id, found.invoice_id) == (request.account_id, request.invoice_id)
