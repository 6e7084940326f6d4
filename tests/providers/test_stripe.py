"""The Stripe provider over HTTP, against a server that is not ours: every method, and what customers do in between."""

import json
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from shared.domain.payment import (
    ChargeRequest,
    CheckoutRequest,
    ProviderPayment,
    ProviderStatus,
    RefundRequest,
    is_hard_decline,
)
from shared.errors import ProviderDown, ProviderRefused
from shared.ids import new_id
from shared.providers.stripe import StripeProvider
from workers.local_stripe import CARD_THAT_ASKS, SECRET_KEY, LocalStripe

Checkouts = Callable[..., CheckoutRequest]
Charges = Callable[..., ChargeRequest]

ACCOUNT_ID = UUID("0192d7a1-0000-7000-8000-000000000001")
INVOICE_ID = UUID("0192d7a1-0000-7000-8000-000000000002")


def paid(provider: StripeProvider, stripe: LocalStripe, request: CheckoutRequest, **card: str) -> ProviderPayment:
    """What the provider says after this customer went through the browser."""
    external_payment_id = provider.checkout(request).external_payment_id
    stripe.customer_pays(external_payment_id, **card)
    payment = provider.retrieve(external_payment_id)
    assert payment is not None
    return payment


def saved_card(provider: StripeProvider, stripe: LocalStripe, request: CheckoutRequest, **card: str) -> dict[str, str]:
    """Customer and payment method of a customer who has gone through the browser."""
    payment = paid(provider, stripe, request, **card)
    assert payment.customer_ref is not None
    assert payment.payment_method_ref is not None
    return {"customer_ref": payment.customer_ref, "payment_method_ref": payment.payment_method_ref}


def with_customer(provider: StripeProvider, account_id: UUID) -> dict[str, Any]:
    return {"customer_ref": provider.customer(account_id, "Ada Ltd", "ada@example.com"), "save_payment_method": True}


# --- customers --------------------------------------------------------------------------------


def test_an_account_has_one_customer_whatever_it_is_called(
    provider: StripeProvider, stripe: LocalStripe, account_id: UUID
) -> None:
    first = provider.customer(account_id, "Ada Ltd", "ada@example.com")
    again = provider.customer(account_id, "Ada plc", "office@example.com")
    other = provider.customer(new_id(), "Ada Ltd", "ada@example.com")
    assert first == again != other
    assert stripe.asked[0].idempotency_key == f"customer:{account_id}"
    assert stripe.asked[0].params == {"metadata[account_id]": str(account_id)}
    assert stripe.asked[3].path == f"/v1/customers/{first}"
    assert stripe.asked[3].params == {"name": "Ada plc", "email": "office@example.com"}


# --- checkout ---------------------------------------------------------------------------------


def test_a_checkout_waits_for_the_customer(
    provider: StripeProvider, stripe: LocalStripe, account_id: UUID, checkout: Checkouts
) -> None:
    request = checkout()
    begun = provider.checkout(request)
    assert begun.status is ProviderStatus.PENDING
    assert begun.client_secret.startswith(begun.external_payment_id)
    assert provider.retrieve(begun.external_payment_id) == ProviderPayment(
        external_payment_id=begun.external_payment_id,
        status=ProviderStatus.PENDING,
        amount_minor=0,
        currency="USD",
        account_id=account_id,
        invoice_id=request.invoice_id,
    )


def test_what_is_asked_for_at_a_checkout(
    provider: StripeProvider, stripe: LocalStripe, account_id: UUID, checkout: Checkouts
) -> None:
    customer = with_customer(provider, account_id)
    request = checkout(**customer)
    provider.checkout(request)
    asked = stripe.asked[-1]
    assert (asked.method, asked.path) == ("POST", "/v1/payment_intents")
    assert asked.idempotency_key == f"checkout:{request.invoice_id}"
    assert asked.headers["Authorization"] == f"Bearer {SECRET_KEY}"
    assert asked.params == {
        "amount": "1900",
        "currency": "usd",
        "customer": customer["customer_ref"],
        "description": "Invoice 2026-00000017",
        "metadata[account_id]": str(account_id),
        "metadata[invoice_id]": str(request.invoice_id),
        "allowed_payment_method_types[0]": "card",
        "setup_future_usage": "off_session",
    }


def test_stripe_is_not_told_about_the_machine(provider: StripeProvider, stripe: LocalStripe) -> None:
    for _ in range(2):
        provider.retrieve("pi_none")
        told = stripe.asked[-1].headers
        assert "X-Stripe-Client-Telemetry" not in told
        assert not {"platform", "telemetry_id"} & json.loads(told["X-Stripe-Client-User-Agent"]).keys()


def test_nothing_is_saved_unless_it_was_asked_for(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    provider.checkout(checkout())
    assert not {"setup_future_usage", "customer"} & stripe.asked[-1].params.keys()


def test_an_invoice_is_checked_out_once(provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts) -> None:
    request = checkout()
    assert provider.checkout(request) == provider.checkout(request)


def test_a_checkout_whose_answer_was_lost_is_the_same_when_asked_again(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    request = checkout()
    stripe.lose_next_answer()
    with pytest.raises(ProviderDown):
        provider.checkout(request)
    begun = provider.checkout(request)
    assert provider.checkout(request) == begun


def test_a_checkout_goes_on_with_the_payment_that_was_begun(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    request = checkout()
    begun = provider.checkout(request)
    stripe.asked.clear()
    goes_on = checkout(invoice_id=request.invoice_id, continues=begun.external_payment_id)
    assert provider.checkout(goes_on) == begun
    assert [asked.method for asked in stripe.asked] == ["GET"]
    stripe.customer_pays(begun.external_payment_id)
    assert provider.checkout(goes_on).status is ProviderStatus.SUCCEEDED


def test_a_cancelled_payment_is_followed_by_another_one(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    request = checkout()
    begun = provider.checkout(request)
    stripe.cancel(begun.external_payment_id)
    payment = provider.retrieve(begun.external_payment_id)
    assert payment is not None
    assert (payment.status, payment.decline_code) == (ProviderStatus.FAILED, None)
    goes_on = checkout(invoice_id=request.invoice_id, continues=begun.external_payment_id)
    another = provider.checkout(goes_on)
    assert another.external_payment_id != begun.external_payment_id
    assert provider.checkout(goes_on) == another


@pytest.mark.parametrize("continues", ["pi_none", "what the customer typed"])
def test_a_checkout_begins_when_there_is_nothing_to_go_on_with(
    provider: StripeProvider, checkout: Checkouts, continues: str
) -> None:
    assert provider.checkout(checkout(continues=continues)).status is ProviderStatus.PENDING


def test_a_checkout_never_goes_on_with_the_payment_of_another_invoice(
    provider: StripeProvider, checkout: Checkouts
) -> None:
    other = provider.checkout(checkout())
    begun = provider.checkout(checkout(continues=other.external_payment_id))
    assert begun.external_payment_id != other.external_payment_id


def test_another_request_under_the_same_key_is_refused(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    request = checkout()
    provider.checkout(request)
    with pytest.raises(ProviderRefused) as refused:
        provider.checkout(checkout(invoice_id=request.invoice_id, amount_minor=2900))
    assert refused.value.data["reason"] == "idempotency_error"


def test_what_stripe_cannot_do_is_refused_with_its_reason(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    error = {"error": {"code": "amount_too_small", "type": "invalid_request_error", "message": "at least 50 cents"}}
    stripe.answer_next(400, json.dumps(error).encode())
    with pytest.raises(ProviderRefused) as refused:
        provider.checkout(checkout(amount_minor=10))
    assert refused.value.document() == {
        "code": "provider_refused",
        "detail": "Stripe refuses this: amount_too_small",
        "provider": "stripe",
        "reason": "amount_too_small",
    }


# --- what customers do ------------------------------------------------------------------------


def test_a_customer_pays(provider: StripeProvider, stripe: LocalStripe, account_id: UUID, checkout: Checkouts) -> None:
    request = checkout()
    payment = paid(provider, stripe, request)
    assert (payment.status, payment.succeeded) == (ProviderStatus.SUCCEEDED, True)
    assert (payment.amount_minor, payment.currency, payment.decline_code) == (1900, "USD", None)
    assert (payment.account_id, payment.invoice_id) == (account_id, request.invoice_id)


@pytest.mark.parametrize(
    ("card", "decline_code", "hard"),
    [
        pytest.param("4000000000000341", "generic_decline", False, id="no reason given"),
        pytest.param("4000000000009995", "insufficient_funds", False, id="no money"),
        pytest.param("4000000000000119", "processing_error", False, id="something failed"),
        pytest.param("4000000000009987", "lost_card", True, id="lost"),
        pytest.param("4000000000009979", "stolen_card", True, id="stolen"),
        pytest.param("4000000000000069", "expired_card", True, id="expired"),
    ],
)
def test_a_card_is_declined(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts, card: str, decline_code: str, hard: bool
) -> None:
    payment = paid(provider, stripe, checkout(), card=card)
    assert (payment.status, payment.amount_minor) == (ProviderStatus.FAILED, 0)
    assert payment.decline_code == decline_code
    assert is_hard_decline(payment.decline_code) is hard


def test_a_bank_asks_the_customer_who_answers(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    payment = paid(provider, stripe, checkout(), card=CARD_THAT_ASKS)
    assert (payment.status, payment.amount_minor) == (ProviderStatus.PENDING, 0)
    stripe.customer_authenticates(payment.external_payment_id)
    answered = provider.retrieve(payment.external_payment_id)
    assert answered is not None
    assert (answered.status, answered.amount_minor) == (ProviderStatus.SUCCEEDED, 1900)


def test_a_bank_asks_the_customer_who_cannot_answer(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    payment = paid(provider, stripe, checkout(), card=CARD_THAT_ASKS)
    stripe.customer_authenticates(payment.external_payment_id, succeeds=False)
    answered = provider.retrieve(payment.external_payment_id)
    assert answered is not None
    assert answered.status is ProviderStatus.FAILED
    assert answered.decline_code == "payment_intent_authentication_failure"


# --- saved cards ------------------------------------------------------------------------------


def test_a_saved_card_is_charged_without_its_owner(
    provider: StripeProvider, stripe: LocalStripe, account_id: UUID, checkout: Checkouts, charge: Charges
) -> None:
    saved = saved_card(provider, stripe, checkout(**with_customer(provider, account_id)))
    request = charge(**saved)
    payment = provider.charge(request)
    assert payment == ProviderPayment(
        external_payment_id=payment.external_payment_id,
        status=ProviderStatus.SUCCEEDED,
        amount_minor=1900,
        currency="USD",
        account_id=account_id,
        invoice_id=request.invoice_id,
        **saved,
    )
    assert provider.retrieve(payment.external_payment_id) == payment
    asked = next(asked for asked in reversed(stripe.asked) if asked.method == "POST")
    assert asked.idempotency_key == request.idempotency_key
    assert (asked.params["confirm"], asked.params["off_session"]) == ("true", "true")
    assert (asked.params["customer"], asked.params["payment_method"]) == tuple(saved.values())


@pytest.mark.parametrize(
    ("card", "decline_code"), [("4000000000009995", "insufficient_funds"), ("4000000000009987", "lost_card")]
)
def test_a_declined_charge_is_an_answer(
    provider: StripeProvider,
    stripe: LocalStripe,
    account_id: UUID,
    checkout: Checkouts,
    charge: Charges,
    card: str,
    decline_code: str,
) -> None:
    saved = saved_card(provider, stripe, checkout(**with_customer(provider, account_id)), card=card)
    request = charge(**saved)
    payment = provider.charge(request)
    assert (payment.status, payment.amount_minor) == (ProviderStatus.FAILED, 0)
    assert payment.decline_code == decline_code
    assert payment.invoice_id == request.invoice_id
    assert provider.retrieve(payment.external_payment_id) == payment


@pytest.mark.parametrize("card", ["4242424242424242", "4000000000009995"], ids=["paid", "declined"])
def test_a_charge_happens_once_though_its_answer_was_lost(
    provider: StripeProvider, stripe: LocalStripe, account_id: UUID, checkout: Checkouts, charge: Charges, card: str
) -> None:
    request = charge(**saved_card(provider, stripe, checkout(**with_customer(provider, account_id)), card=card))
    stripe.lose_next_answer()
    with pytest.raises(ProviderDown):
        provider.charge(request)
    assert provider.charge(request) == provider.charge(request)


def test_a_second_attempt_is_a_payment_of_its_own(
    provider: StripeProvider, stripe: LocalStripe, account_id: UUID, checkout: Checkouts, charge: Charges
) -> None:
    saved = saved_card(provider, stripe, checkout(**with_customer(provider, account_id)))
    first, second = (provider.charge(charge(**saved, idempotency_key=f"{account_id}:{n}")) for n in (1, 2))
    assert first.external_payment_id != second.external_payment_id


def test_a_card_that_needs_its_owner_is_declined_for_good(
    provider: StripeProvider, stripe: LocalStripe, account_id: UUID, checkout: Checkouts, charge: Charges
) -> None:
    saved = saved_card(provider, stripe, checkout(**with_customer(provider, account_id)), card=CARD_THAT_ASKS)
    payment = provider.charge(charge(**saved))
    assert (payment.status, payment.decline_code) == (ProviderStatus.FAILED, "authentication_required")
    assert is_hard_decline(payment.decline_code)


def test_a_card_that_was_removed_is_refused(provider: StripeProvider, account_id: UUID, charge: Charges) -> None:
    customer_ref = provider.customer(account_id, "Ada Ltd", "ada@example.com")
    with pytest.raises(ProviderRefused) as refused:
        provider.charge(charge(customer_ref=customer_ref))
    assert refused.value.data["reason"] == "resource_missing"


# --- refunds ----------------------------------------------------------------------------------


def refund(payment: ProviderPayment, amount_minor: int, key: str) -> RefundRequest:
    return RefundRequest(
        external_payment_id=payment.external_payment_id,
        amount_minor=amount_minor,
        currency=payment.currency,
        idempotency_key=f"{key}:{payment.external_payment_id}",
    )


def test_money_goes_back_in_parts(provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts) -> None:
    payment = paid(provider, stripe, checkout())
    first, second = (provider.refund(refund(payment, amount, str(amount))) for amount in (400, 1500))
    assert (first.status, first.amount_minor, first.currency) == (ProviderStatus.SUCCEEDED, 400, "USD")
    assert (first.external_payment_id, first.reason) == (payment.external_payment_id, None)
    assert provider.retrieve_refund(first.refund_id) == first
    found = provider.refunds_of(payment.external_payment_id)
    assert sorted(found, key=lambda refund: refund.amount_minor) == [first, second]
    assert provider.retrieve(payment.external_payment_id) == payment


def test_a_refund_happens_once_though_its_answer_was_lost(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    payment = paid(provider, stripe, checkout())
    stripe.lose_next_answer()
    with pytest.raises(ProviderDown):
        provider.refund(refund(payment, 400, "once"))
    assert [provider.refund(refund(payment, 400, "once"))] == provider.refunds_of(payment.external_payment_id)


def test_more_refunds_than_fit_on_a_page(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.providers.stripe.PAGE", 2)
    payment = paid(provider, stripe, checkout())
    made = {provider.refund(refund(payment, 100, str(number))).refund_id for number in range(5)}
    assert {found.refund_id for found in provider.refunds_of(payment.external_payment_id)} == made
    assert len([asked for asked in stripe.asked if asked.method == "GET" and "refunds" in asked.path]) == 3


def test_more_than_is_left_is_refused(provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts) -> None:
    payment = paid(provider, stripe, checkout())
    error = {"error": {"code": "charge_already_refunded", "type": "invalid_request_error"}}
    stripe.answer_next(400, json.dumps(error).encode())
    with pytest.raises(ProviderRefused) as refused:
        provider.refund(refund(payment, 1901, "too much"))
    assert refused.value.data["reason"] == "charge_already_refunded"


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        ("pending", ProviderStatus.PENDING, None),
        ("requires_action", ProviderStatus.PENDING, None),
        ("new to us", ProviderStatus.PENDING, None),
        (None, ProviderStatus.PENDING, None),
        ("succeeded", ProviderStatus.SUCCEEDED, None),
        ("failed", ProviderStatus.FAILED, "expired_or_canceled_card"),
        ("canceled", ProviderStatus.FAILED, "canceled"),
    ],
)
def test_how_far_a_refund_has_come(
    provider: StripeProvider, stripe: LocalStripe, status: str | None, expected: ProviderStatus, reason: str | None
) -> None:
    found = {"id": "re_1", "object": "refund", "amount": 400, "currency": "eur", "status": status, "charge": "ch_1"}
    if status == "failed":
        found["failure_reason"] = "expired_or_canceled_card"
    stripe.answer_next(200, json.dumps(found).encode())
    refund = provider.retrieve_refund("re_1")
    assert refund is not None
    assert (refund.status, refund.reason, refund.currency) == (expected, reason, "EUR")


# --- what is not there ------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", ["pi_none", "ch_1", "", "pi_", "../customers", "pi_1?expand[]=customer", "pi_ü"])
def test_an_id_that_is_not_known_is_nothing(provider: StripeProvider, unknown: str) -> None:
    assert provider.retrieve(unknown) is None
    assert provider.retrieve_refund(unknown) is None
    assert provider.refunds_of(unknown) == []


def test_what_cannot_be_an_id_is_not_asked_for(provider: StripeProvider, stripe: LocalStripe) -> None:
    for text in ("", "pi_", "pi_1/capture", "pi_1?x", "ch_1", "pi_" + "x" * 300, "pi_1\n"):
        assert provider.retrieve(text) is None
    assert stripe.asked == []


# --- Stripe's own answers ---------------------------------------------------------------------


def intent(**changes: Any) -> dict[str, Any]:
    """A PaymentIntent as Stripe documents it."""
    document = {
        "id": "pi_1",
        "object": "payment_intent",
        "amount": 1900,
        "amount_capturable": 0,
        "amount_received": 0,
        "client_secret": "pi_1_secret_2",
        "created": 1790000000,
        "currency": "usd",
        "customer": "cus_1",
        "description": "Invoice 2026-00000017",
        "last_payment_error": None,
        "latest_charge": "ch_1",
        "livemode": False,
        "metadata": {"account_id": str(ACCOUNT_ID), "invoice_id": str(INVOICE_ID)},
        "payment_method": "pm_1",
        "payment_method_types": ["card"],
        "status": "processing",
    }
    return document | changes


DECLINED = {"type": "card_error", "code": "card_declined", "decline_code": "insufficient_funds", "charge": "ch_1"}


@pytest.mark.parametrize(
    ("changes", "status", "amount_minor", "decline_code"),
    [
        pytest.param({}, ProviderStatus.PENDING, 0, None, id="processing"),
        pytest.param({"status": "requires_action"}, ProviderStatus.PENDING, 0, None, id="the bank asks"),
        pytest.param({"status": "requires_confirmation"}, ProviderStatus.PENDING, 0, None, id="not confirmed"),
        pytest.param({"status": "requires_capture"}, ProviderStatus.PENDING, 0, None, id="authorized only"),
        pytest.param({"status": "requires_payment_method"}, ProviderStatus.PENDING, 0, None, id="never tried"),
        pytest.param({"status": "new to us"}, ProviderStatus.PENDING, 0, None, id="a status of the future"),
        pytest.param(
            {"status": "requires_payment_method", "last_payment_error": DECLINED, "payment_method": None},
            ProviderStatus.FAILED,
            0,
            "insufficient_funds",
            id="declined",
        ),
        pytest.param(
            {"status": "requires_payment_method", "last_payment_error": {"code": "expired_card"}},
            ProviderStatus.FAILED,
            0,
            "expired_card",
            id="declined with a code alone",
        ),
        pytest.param({"status": "canceled"}, ProviderStatus.FAILED, 0, None, id="cancelled"),
        pytest.param({"status": "succeeded", "amount_received": 1900}, ProviderStatus.SUCCEEDED, 1900, None, id="paid"),
        pytest.param(
            {"status": "succeeded", "amount_received": 500}, ProviderStatus.SUCCEEDED, 500, None, id="captured in part"
        ),
        pytest.param(
            {"status": "succeeded", "amount_received": 1900, "last_payment_error": DECLINED},
            ProviderStatus.SUCCEEDED,
            1900,
            None,
            id="paid at the second try",
        ),
    ],
)
def test_how_far_a_payment_has_come(
    provider: StripeProvider,
    stripe: LocalStripe,
    changes: dict[str, Any],
    status: ProviderStatus,
    amount_minor: int,
    decline_code: str | None,
) -> None:
    stripe.answer_next(200, json.dumps(intent(**changes)).encode())
    payment = provider.retrieve("pi_1")
    assert payment is not None
    assert (payment.status, payment.amount_minor, payment.decline_code) == (status, amount_minor, decline_code)
    assert (payment.account_id, payment.invoice_id) == (ACCOUNT_ID, INVOICE_ID)


@pytest.mark.parametrize(
    ("currency", "amount_minor", "amount"),
    [
        pytest.param("USD", 1900, 1900, id="hundredths"),
        pytest.param("JPY", 1900, 1900, id="no decimals"),
        pytest.param("KWD", 1900, 1900, id="thousandths"),
        pytest.param("ISK", 1900, 190_000, id="decimals that ISO 4217 gave up"),
        pytest.param("UGX", 1900, 190_000, id="likewise"),
        pytest.param("MGA", 190_000, 1900, id="decimals that Stripe does not count"),
    ],
)
def test_amounts_are_in_stripes_units_on_the_wire_and_in_ours_here(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts, currency: str, amount_minor: int, amount: int
) -> None:
    payment = paid(provider, stripe, checkout(currency=currency, amount_minor=amount_minor))
    sent = next(asked for asked in stripe.asked if asked.method == "POST")
    assert (sent.params["amount"], sent.params["currency"]) == (str(amount), currency.lower())
    assert (payment.amount_minor, payment.currency) == (amount_minor, currency)


def test_what_stripe_cannot_count_is_refused(
    provider: StripeProvider, stripe: LocalStripe, checkout: Checkouts
) -> None:
    with pytest.raises(ProviderRefused):
        provider.checkout(checkout(currency="MGA", amount_minor=1901))
    assert stripe.asked == []


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"account_id": "acct-17"}, {"account_id": "", "invoice_id": "7"}, {"order": str(INVOICE_ID)}],
)
def test_a_payment_of_somebody_else_has_no_invoice(
    provider: StripeProvider, stripe: LocalStripe, metadata: dict[str, str] | None
) -> None:
    document = intent(status="succeeded", amount_received=1900, metadata=metadata, customer=None)
    stripe.answer_next(200, json.dumps(document).encode())
    payment = provider.retrieve("pi_1")
    assert payment is not None
    assert (payment.account_id, payment.invoice_id, payment.customer_ref) == (None, None, None)


def test_a_decline_as_stripe_words_it(provider: StripeProvider, stripe: LocalStripe, charge: Charges) -> None:
    error = {
        "type": "card_error",
        "code": "authentication_required",
        "decline_code": "authentication_required",
        "charge": "ch_1",
        "message": "Your card was declined. This transaction requires authentication.",
        "payment_intent": intent(status="requires_payment_method", payment_method=None),
        "payment_method": {"id": "pm_1", "object": "payment_method"},
    }
    stripe.answer_next(402, json.dumps({"error": error}).encode())
    payment = provider.charge(charge())
    assert payment.external_payment_id == "pi_1"
    assert (payment.status, payment.decline_code) == (ProviderStatus.FAILED, "authentication_required")
    assert (payment.account_id, payment.invoice_id) == (ACCOUNT_ID, INVOICE_ID)


# --- many at once -----------------------------------------------------------------------------


def test_one_provider_serves_many_threads(provider: StripeProvider, checkout: Checkouts) -> None:
    requests = [checkout() for _ in range(16)]
    found: dict[UUID, ProviderPayment | None] = {}

    def work(request: CheckoutRequest) -> None:
        found[request.invoice_id] = provider.retrieve(provider.checkout(request).external_payment_id)

    threads = [threading.Thread(target=work, args=[request]) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {invoice_id: payment and payment.invoice_id for invoice_id, payment in found.items()} == {
        request.invoice_id: request.invoice_id for request in requests
    }
