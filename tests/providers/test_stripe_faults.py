"""Whatever goes wrong on the way to Stripe is ProviderDown, in time, and is never taken for a no."""

import json
import logging
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from shared.domain.payment import ChargeRequest, CheckoutRequest, RefundRequest
from shared.errors import BillingError, ProviderDown
from shared.providers.stripe import StripeProvider
from tests.providers.conftest import make_provider
from workers.local_stripe import SECRET_KEY, WEBHOOK_SECRET, LocalStripe

TIMEOUT_SECONDS = 0.5

Ask = Callable[[StripeProvider], object]

CHECKOUT = CheckoutRequest(
    account_id=UUID(int=1), invoice_id=UUID(int=2), invoice_number="1", amount_minor=1900, currency="USD"
)
CHARGE = ChargeRequest(
    account_id=UUID(int=1),
    invoice_id=UUID(int=2),
    invoice_number="1",
    amount_minor=1900,
    currency="USD",
    customer_ref="cus_1",
    payment_method_ref="pm_1",
    idempotency_key="charge-1",
)
REFUND = RefundRequest(external_payment_id="pi_1", amount_minor=400, currency="USD", idempotency_key="refund-1")

ASKING = [
    pytest.param(lambda provider: provider.retrieve("pi_1"), id="retrieve"),
    pytest.param(lambda provider: provider.customer(UUID(int=1), "Ada", "ada@example.com"), id="customer"),
    pytest.param(lambda provider: provider.checkout(CHECKOUT), id="checkout"),
    pytest.param(lambda provider: provider.charge(CHARGE), id="charge"),
    pytest.param(lambda provider: provider.refund(REFUND), id="refund"),
    pytest.param(lambda provider: provider.retrieve_refund("re_1"), id="retrieve_refund"),
    pytest.param(lambda provider: provider.refunds_of("pi_1"), id="refunds_of"),
]


def problem(**members: Any) -> bytes:
    return json.dumps({"error": members}).encode()


def test_that_it_is_no_answer() -> None:
    assert not issubclass(ProviderDown, BillingError)


@pytest.mark.parametrize("ask", ASKING)
def test_a_server_that_is_not_there(ask: Ask) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        provider = make_provider(f"http://127.0.0.1:{closed.getsockname()[1]}", timeout_seconds=TIMEOUT_SECONDS)
        started = time.monotonic()
        with pytest.raises(ProviderDown):
            ask(provider)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("ask", ASKING)
def test_a_server_that_accepts_and_never_answers(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        provider = make_provider(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=TIMEOUT_SECONDS)
        started = time.monotonic()
        with pytest.raises(ProviderDown, match="Timeout"):
            ask(provider)
    assert TIMEOUT_SECONDS <= time.monotonic() - started < TIMEOUT_SECONDS + 2


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(500, problem(type="api_error", message="sorry"), id="an error of Stripe"),
        pytest.param(503, b"", id="no words at all"),
        pytest.param(502, b"<html><body>Bad Gateway</body></html>", id="a proxy's page"),
        pytest.param(200, b"<html><body>Sign in to the network</body></html>", id="a page that looks fine"),
        pytest.param(404, b"<html><body>Not Found</body></html>", id="a page that is missing"),
        pytest.param(200, b"", id="nothing"),
        pytest.param(200, b"\xff\xfe\x00", id="no text"),
        pytest.param(200, b"[]", id="a list"),
        pytest.param(200, b"null", id="null"),
        pytest.param(200, b"17", id="a number"),
        pytest.param(200, b"{}", id="an empty document"),
        pytest.param(200, b'{"id": 7, "object": "payment_intent", "amount": "much"}', id="members of other types"),
        pytest.param(400, b'{"error": null}', id="an error without words"),
        pytest.param(400, b'{"error": ["x"]}', id="an error that is a list"),
        pytest.param(401, problem(type="invalid_request_error", message="Invalid API Key provided"), id="a bad key"),
        pytest.param(403, problem(type="invalid_request_error"), id="a key that may not"),
        pytest.param(404, problem(type="invalid_request_error"), id="an address that is not there"),
        pytest.param(400, problem(code="parameter_unknown"), id="another version of the API"),
        pytest.param(400, problem(code="testmode_charges_only"), id="an account that is not set up"),
        pytest.param(409, problem(type="idempotency_error", code="idempotency_key_in_use"), id="being done by another"),
        pytest.param(429, problem(type="invalid_request_error", code="rate_limit"), id="too often"),
        pytest.param(302, b"", id="elsewhere, it does not say where"),
    ],
)
def test_an_answer_that_is_none(stripe: LocalStripe, ask: Ask, status: int, body: bytes) -> None:
    provider = make_provider(stripe.api_base)
    stripe.answer_next(status, body)
    with pytest.raises(ProviderDown):
        ask(provider)
    assert len(stripe.asked) == 1


@pytest.mark.parametrize(
    "error",
    [
        pytest.param({}, id="no members"),
        pytest.param({"code": "card_declined"}, id="no payment"),
        pytest.param({"code": "card_declined", "payment_intent": {"id": "pi_1"}}, id="half a payment"),
    ],
)
def test_a_decline_that_cannot_be_read(stripe: LocalStripe, error: dict[str, Any]) -> None:
    stripe.answer_next(402, problem(**error))
    with pytest.raises(ProviderDown):
        make_provider(stripe.api_base).charge(CHARGE)


def test_a_list_of_refunds_that_breaks_off(stripe: LocalStripe) -> None:
    refund = {"id": "re_1", "object": "refund", "amount": 400, "currency": "usd", "status": "succeeded"}
    page = {"object": "list", "url": "/v1/refunds", "has_more": True, "data": [refund]}
    stripe.answer_next(200, json.dumps(page).encode())
    stripe.answer_next(500, problem(type="api_error"))
    with pytest.raises(ProviderDown):
        make_provider(stripe.api_base).refunds_of("pi_1")


def test_after_a_fault_it_is_asked_again_on_a_new_connection(stripe: LocalStripe) -> None:
    provider = make_provider(stripe.api_base)
    assert provider.retrieve("pi_1") is None
    stripe.lose_next_answer()
    with pytest.raises(ProviderDown):
        provider.retrieve("pi_1")
    assert provider.retrieve("pi_1") is None


def test_nothing_tells_the_key_or_a_client_secret(
    stripe: LocalStripe, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    key = "sk_test_that_nobody_may_see"
    provider = make_provider(stripe.api_base, secret_key=SecretStr(key))
    begun = provider.checkout(CHECKOUT)
    shown = [repr(provider), str(vars(provider)), repr(begun), str(begun)]
    for status, body in ((401, problem(message=f"Invalid API Key: {key}")), (500, f"<html>{key}".encode())):
        stripe.answer_next(status, body)
        with pytest.raises(ProviderDown) as down:
            provider.retrieve("pi_1")
        shown += [repr(down.value), "".join(traceback.format_exception(down.value)), str(pickle.dumps(down.value))]
    output = capsys.readouterr()
    everything = "\n".join([*shown, caplog.text, output.out, output.err])
    assert begun.client_secret not in everything
    for secret in (key, SECRET_KEY, WEBHOOK_SECRET):
        assert secret not in everything
