"""The tasks of refunds, with Stripe's own library against a server that stands in for Stripe."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row

from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.payment import CheckoutRequest, RefundRequest
from shared.domain.requests import ConfirmPayment
from shared.providers import Provider, provider_for
from tests.office import Customer, Office
from tests.workers.conftest import Worker
from workers.local_stripe import LocalStripe


@dataclass
class Paid:
    """A customer who has paid 89.00 by Stripe for 1,000 credits."""

    who: Customer
    payment_id: UUID
    external_payment_id: str


@pytest.fixture
def provider(worker: Worker, stripe: LocalStripe) -> Provider:
    """Stripe, which the worker's settings name from now on."""
    worker.runtime.settings = stripe.settings(worker.runtime.settings)
    return provider_for(PaymentMethod.STRIPE, worker.runtime.settings, worker.runtime.database)


@pytest.fixture
def paid(worker: Worker, office: Office, stripe: LocalStripe, provider: Provider) -> Paid:
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    who = office.sign_up()
    invoice_id = office.open_invoice(who, "starter", PaymentMethod.STRIPE)
    asked = CheckoutRequest(
        account_id=who.account_id,
        invoice_id=invoice_id,
        invoice_number="2026-00000001",
        amount_minor=89_00,
        currency="USD",
    )
    external_payment_id = provider.checkout(asked).external_payment_id
    stripe.customer_pays(external_payment_id)
    request = ConfirmPayment(
        invoice_id=invoice_id, provider=PaymentMethod.STRIPE, external_payment_id=external_payment_id
    )
    confirmation = office.accept(OperationKind.CONFIRM_PAYMENT, request, account_id=who.account_id, by=who.user_id)
    payment_id = UUID(worker.perform(confirmation).result["payment_id"])
    stripe.asked.clear()
    return Paid(who, payment_id, external_payment_id)


def followed(worker: Worker, office: Office, paid: Paid) -> Row[Any]:
    return worker.perform(office.following(paid.external_payment_id, PaymentMethod.STRIPE))


def counted(office: Office) -> tuple[int, int | None]:
    """What has gone back, of money and of credits."""
    row = office.row(
        """
        SELECT (SELECT sum(refunded_minor)::int FROM payments) AS refunded_minor,
               (SELECT -sum(amount)::int FROM credit_transactions WHERE kind = 'reverse') AS credits
        """
    )
    return row.refunded_minor, row.credits


def test_money_goes_back_and_is_followed(worker: Worker, office: Office, provider: Provider, paid: Paid) -> None:
    answer = worker.perform(office.refunding(paid.payment_id, 44_50))
    assert (answer.status, answer.result["status"]) == ("succeeded", "succeeded")
    (made,) = provider.refunds_of(paid.external_payment_id)
    assert (made.refund_id, made.amount_minor) == (answer.result["external_refund_id"], 44_50)
    assert counted(office) == (44_50, 500)

    before = office.dump("operations")
    assert followed(worker, office, paid).result["refund_ids"] == [answer.result["refund_id"]]
    assert office.dump("operations") == before, "no news"


def test_an_answer_that_gets_lost_moves_money_once(
    worker: Worker, office: Office, stripe: LocalStripe, provider: Provider, paid: Paid
) -> None:
    operation_id = office.refunding(paid.payment_id, 44_50)
    stripe.lose_next_answer()
    assert worker.perform(operation_id).status == "pending"
    assert followed(worker, office, paid).status == "pending", "it may be ours"
    assert worker.perform(operation_id).status == "succeeded"
    keys = {asked.idempotency_key for asked in stripe.asked if asked.method == "POST"}
    assert keys == {f"refund:{operation_id}"}
    assert len(provider.refunds_of(paid.external_payment_id)) == 1
    assert counted(office) == (44_50, 500)


def test_what_stripe_refuses_can_be_given_back_again(
    worker: Worker, office: Office, stripe: LocalStripe, paid: Paid
) -> None:
    stripe.answer_next(400, b'{"error": {"code": "charge_disputed", "type": "invalid_request_error"}}')
    answer = worker.perform(office.refunding(paid.payment_id))
    assert (answer.status, answer.problem["code"], answer.problem["reason"]) == (
        "failed",
        "provider_refused",
        "charge_disputed",
    )
    assert counted(office) == (0, None)
    assert worker.perform(office.refunding(paid.payment_id)).status == "succeeded"
    assert counted(office) == (89_00, 1_000)


def test_what_was_made_in_the_dashboard_counts(worker: Worker, office: Office, provider: Provider, paid: Paid) -> None:
    by_hand = RefundRequest(
        external_payment_id=paid.external_payment_id, amount_minor=8_90, currency="USD", idempotency_key="by hand"
    )
    made = provider.refund(by_hand)
    followed(worker, office, paid)
    row = office.row("SELECT external_refund_id, reason FROM refunds")
    assert tuple(row) == (made.refund_id, "made at the provider")
    assert counted(office) == (8_90, 100)


def test_a_provider_that_is_not_set_up_any_more_is_asked_later(worker: Worker, office: Office, paid: Paid) -> None:
    worker.set(stripe_secret_key=None)
    row = worker.perform(office.refunding(paid.payment_id))
    assert (row.status, row.attempts) == ("pending", 0)
    assert followed(worker, office, paid).status == "pending"
