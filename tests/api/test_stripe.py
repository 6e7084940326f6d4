"""Card payments over HTTP against a Stripe-like server: checkouts; webhooks that come early, late, twice or never."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from api.app import create_app
from api.services import EXTENSION
from shared.clock import utc_now
from shared.config import Settings
from shared.db import checks
from shared.db.engine import Database
from shared.db.plans import load_rules
from shared.domain.invoice import PaymentMethod
from shared.domain.payment import RefundRequest
from shared.ids import new_id
from shared.providers import provider_for
from shared.usecases.ask_providers import ask_providers
from tests.api.conftest import Api, Engine
from tests.db.world import Customer
from tests.stripe_webhooks import event, sign
from workers.local_stripe import CARD_DECLINED_WHEN_CHARGED, CARD_THAT_ASKS, LocalStripe


class Shop:
    """A customer before an invoice over 89 dollars, and everybody who may say something about its payment."""

    def __init__(self, api: Api, engine: Engine, stripe: LocalStripe, settings: Settings) -> None:
        self.stripe, self.settings = stripe, settings
        self.app = create_app(stripe.settings(settings))
        self.engine = Engine(engine.database, stripe.settings(settings))
        self.ada: Customer = engine.sign_up()
        self.api = engine.signed_in(
            Api(self.app, self.app.test_client(use_cookies=False), api.documented, {}), self.ada
        )
        self.nobody = self.api.sending()
        opened = self.engine.finish(self.api.post("/invoices", {"plan": "starter", "payment_method": "stripe"}))
        self.invoice_id: str = opened["invoice_id"]

    def check_out(self, **terms: Any) -> dict[str, Any]:
        answer = self.api.post(f"/invoices/{self.invoice_id}/checkout", terms)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.get_json()
        return document

    def confirm(self, external_payment_id: str) -> dict[str, Any]:
        """What the browser says, and what comes of it."""
        body = {"invoice_id": self.invoice_id, "provider": "stripe", "external_payment_id": external_payment_id}
        return self.engine.finish(self.api.post("/payments", body))

    def tell(self, kind: str, external_payment_id: str, **terms: Any) -> None:
        """What Stripe says of the payment, and what comes of it."""
        assert self.deliver(event(kind, self.payment(external_payment_id), **terms)) == 204
        self.work()

    def deliver(self, body: bytes, headers: dict[str, str] | None = None) -> int:
        response = self.nobody.post("/webhooks/stripe", headers=headers or sign(body), data=body)
        return response.status_code

    def payment(self, external_payment_id: str) -> dict[str, Any]:
        return {
            "id": external_payment_id,
            "object": "payment_intent",
            "metadata": {"account_id": str(self.ada.account_id), "invoice_id": self.invoice_id},
        }

    def work(self) -> list[dict[str, Any]]:
        """What the system has asked of itself is done."""
        outcomes = []
        while (
            waiting := self.scalar("SELECT min(id::text)::uuid FROM operations WHERE status = 'pending'")
        ) is not None:
            outcomes.append(self.engine.execute(waiting))
        return outcomes

    def scalar(self, sql: str, **params: Any) -> Any:
        return self.engine.scalar(sql, **params)

    @property
    def invoice_status(self) -> str:
        return str(self.scalar("SELECT status FROM invoices WHERE id = %(id)s", id=self.invoice_id))

    @property
    def payments(self) -> list[str]:
        rows = self.scalar("SELECT coalesce(array_agg(status ORDER BY id), '{}') FROM payments")
        return list(rows)


@pytest.fixture
def shop(api: Api, engine: Engine, stripe: LocalStripe, settings: Settings, database: Database) -> Iterator[Shop]:
    shop = Shop(api, engine, stripe, settings)
    yield shop
    shop.app.extensions[EXTENSION].database.dispose()
    with database.transaction() as tx:
        assert checks.run_checks(tx, settings) == []


def test_a_checkout_gives_the_browser_what_it_needs_and_keeps_no_secret(shop: Shop) -> None:
    begun = shop.check_out()
    assert begun["client_secret"].startswith(begun["external_payment_id"])
    assert (begun["amount_minor"], begun["currency"], begun["publishable_key"]) == (89_00, "USD", "pk_test_local")
    asked = next(one for one in shop.stripe.asked if one.path == "/v1/payment_intents")
    assert asked.params["metadata[invoice_id]"] == shop.invoice_id
    assert asked.params["metadata[account_id]"] == str(shop.ada.account_id)
    assert shop.invoice_id in str(asked.idempotency_key)
    everything = shop.scalar("SELECT string_agg(c::text, ' ') FROM checkouts c")
    assert begun["external_payment_id"] in everything
    assert begun["client_secret"] not in everything


def test_a_checkout_goes_on_with_the_payment_that_it_began(shop: Shop) -> None:
    first, second = shop.check_out(), shop.check_out(save_payment_method=True)
    assert second["external_payment_id"] == first["external_payment_id"]
    assert shop.scalar("SELECT count(*) FROM checkouts") == 1
    assert shop.scalar("SELECT count(*) FROM provider_customers") == 1


def test_each_payment_that_is_cancelled_is_followed_by_another_one(shop: Shop) -> None:
    begun = []
    for _ in range(3):
        begun.append(shop.check_out()["external_payment_id"])
        shop.stripe.cancel(begun[-1])
    last = shop.check_out()["external_payment_id"]
    assert len({*begun, last}) == 4
    shop.stripe.customer_pays(last)
    assert shop.confirm(last)["payment_id"]
    assert (shop.invoice_status, shop.payments) == ("paid", ["succeeded"])


def test_a_bank_transfer_is_checked_out_with_instructions_and_asks_nobody(shop: Shop) -> None:
    begun = shop.check_out(payment_method="bank_transfer")
    assert begun["payment_instructions"]["reference"].startswith("RF")
    assert (begun["client_secret"], begun["due_at"] > utc_now().isoformat()) == (None, True)
    assert shop.stripe.asked == []


def test_what_is_paid_or_not_there_is_not_checked_out(shop: Shop, stranger: Api) -> None:
    begun = shop.check_out()
    shop.stripe.customer_pays(begun["external_payment_id"])
    shop.confirm(begun["external_payment_id"])
    again = shop.api.post(f"/invoices/{shop.invoice_id}/checkout", {})
    assert (again.status_code, again.get_json()["code"]) == (409, "invoice_not_open")
    theirs = stranger.post(f"/invoices/{shop.invoice_id}/checkout", {"payment_method": "bank_transfer"})
    assert theirs.status_code == 404


def test_a_provider_that_is_down_begins_nothing(shop: Shop) -> None:
    shop.stripe.answer_next(500, b"{}")
    answer = shop.api.post(f"/invoices/{shop.invoice_id}/checkout", {})
    assert answer.status_code == 503
    assert shop.scalar("SELECT count(*) FROM checkouts") == 0
    assert shop.check_out()["client_secret"]


def test_the_browsers_word_counts_for_nothing(shop: Shop) -> None:
    begun = shop.check_out()
    assert shop.confirm(begun["external_payment_id"])["code"] == "payment_not_succeeded"
    assert shop.invoice_status == "open"
    shop.stripe.customer_pays(begun["external_payment_id"])
    assert shop.confirm(begun["external_payment_id"])["invoice_id"] == shop.invoice_id
    assert shop.invoice_status == "paid"


ORDERS = {
    "the event, then the browser": ("tell", "confirm"),
    "the browser, then the event": ("confirm", "tell"),
    "the event twice, under two ids": ("tell", "tell"),
    "the event alone": ("tell",),
    "the browser alone": ("confirm",),
    "neither, so the provider is asked": ("sweep",),
    "all of them": ("sweep", "tell", "confirm", "sweep"),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_payment_settles_once_whoever_speaks_first(shop: Shop, order: tuple[str, ...]) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment)
    for source in order:
        if source == "tell":
            shop.tell("payment_intent.succeeded", payment)
        elif source == "confirm":
            assert shop.confirm(payment)["payment_id"]
        else:
            sweep(shop)
    assert (shop.invoice_status, shop.payments) == ("paid", ["succeeded"])
    assert shop.scalar("SELECT count(*) FROM credit_grants WHERE amount = 1000") == 1
    assert shop.scalar("SELECT count(*) FROM checkouts WHERE next_ask_at IS NOT NULL") == 0
    assert {row["payment_id"] for row in shop.work()} <= {None}


def sweep(shop: Shop) -> None:
    """Time passes until the provider is asked."""
    with shop.engine.database.transaction() as tx:
        ask_providers(tx, load_rules(tx, shop.settings), utc_now() + timedelta(minutes=11), 100)
    shop.work()


def test_who_has_not_paid_yet_is_asked_about_again_without_a_failure(shop: Shop) -> None:
    shop.check_out()
    for _ in range(3):
        sweep(shop)
    assert (shop.invoice_status, shop.payments) == ("open", [])
    assert shop.scalar("SELECT asked FROM checkouts") == 1
    assert shop.scalar("SELECT next_ask_at > now() + interval '1 hour' FROM checkouts")


def test_the_same_event_again_starts_nothing(shop: Shop) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment)
    body = event("payment_intent.succeeded", shop.payment(payment))
    assert [shop.deliver(body) for _ in range(3)] == [204, 204, 204]
    assert shop.scalar("SELECT count(*) FROM operations WHERE kind = 'confirm_payment'") == 1
    shop.work()
    assert shop.deliver(body) == 204
    assert shop.scalar("SELECT count(*) FROM operations WHERE kind = 'confirm_payment'") == 1
    assert shop.invoice_status == "paid"


def test_a_failure_that_is_told_after_the_success_changes_nothing(shop: Shop) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment)
    shop.tell("payment_intent.succeeded", payment)
    shop.tell("payment_intent.payment_failed", payment)
    assert (shop.invoice_status, shop.payments) == ("paid", ["succeeded"])


def test_a_failure_is_told_once(shop: Shop) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment, card=CARD_DECLINED_WHEN_CHARGED)
    for _ in range(2):
        shop.tell("payment_intent.payment_failed", payment)
    sweep(shop)
    assert (shop.invoice_status, shop.payments) == ("open", ["failed"])
    assert shop.scalar("SELECT count(*) FROM events WHERE kind = 'payment.failed'") == 1


def test_a_payment_that_waits_for_its_bank_settles_when_it_is_through(shop: Shop) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment, card=CARD_THAT_ASKS)
    assert shop.confirm(payment)["code"] == "payment_not_succeeded"
    shop.stripe.customer_authenticates(payment)
    shop.tell("payment_intent.succeeded", payment)
    assert shop.invoice_status == "paid"


def test_a_refund_made_in_stripes_dashboard_is_told_and_followed(shop: Shop) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment)
    shop.confirm(payment)
    made = provider_for(PaymentMethod.STRIPE, shop.engine.settings, shop.engine.database).refund(
        RefundRequest(external_payment_id=payment, amount_minor=44_50, currency="USD", idempotency_key="dashboard")
    )
    charge = {"id": "ch_1", "object": "charge", "payment_intent": payment, "metadata": {}}
    for _ in range(2):
        assert shop.deliver(event("charge.refunded", charge)) == 204
        shop.work()
    refunds = shop.scalar("SELECT array_agg(external_refund_id || ' ' || amount_minor) FROM refunds")
    assert refunds == [f"{made.refund_id} 4450"]
    assert shop.scalar("SELECT refunded_minor FROM payments") == 44_50
    assert shop.scalar("SELECT -sum(amount) FROM credit_transactions WHERE kind = 'reverse'") == 500


UNBELIEVED = {
    "nobody's signature": lambda body: {"Content-Type": "application/json"},
    "a wrong secret": lambda body: sign(body, secret="whsec_other"),
    "a signature of another body": lambda body: sign(body + b" "),
    "a stale one": lambda body: sign(body, timestamp=utc_now() - timedelta(minutes=6)),
}


@pytest.mark.parametrize("headers", UNBELIEVED.values(), ids=UNBELIEVED)
def test_an_event_is_not_believed_with(shop: Shop, headers: Any) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment)
    body = event("payment_intent.succeeded", shop.payment(payment))
    assert shop.deliver(body, headers(body)) == 400
    assert shop.scalar("SELECT count(*) FROM provider_events") == 0
    assert shop.invoice_status == "open"


def test_a_signed_body_that_is_no_event_is_refused(shop: Shop) -> None:
    assert shop.deliver(b"[]") == 400
    assert shop.nobody.post("/webhooks/stripe", data=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert shop.deliver(b'{"a": "' + b"x" * 600_000 + b'"}') == 413


IGNORED: dict[str, tuple[str, dict[str, Any]]] = {
    "an unknown type": ("customer.created", {"id": "cus_1", "object": "customer"}),
    "a payment of another system": (
        "payment_intent.succeeded",
        {"id": "pi_x", "object": "payment_intent", "metadata": {}},
    ),
    "an invoice that the account has not": (
        "payment_intent.succeeded",
        {
            "id": "pi_x",
            "object": "payment_intent",
            "metadata": {"account_id": str(new_id()), "invoice_id": str(new_id())},
        },
    ),
    "a refund of a payment that is not ours": (
        "charge.refunded",
        {"id": "ch_x", "object": "charge", "payment_intent": "pi_x", "metadata": {}},
    ),
}


@pytest.mark.parametrize(("kind", "about"), IGNORED.values(), ids=IGNORED)
def test_an_event_is_written_down_and_ignored_about(shop: Shop, kind: str, about: dict[str, Any]) -> None:
    assert shop.deliver(event(kind, about)) == 204
    assert shop.scalar("SELECT ignored FROM provider_events")
    assert shop.work() == []


def test_an_event_about_another_accounts_invoice_settles_nothing(shop: Shop, engine: Engine) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment)
    about = shop.payment(payment)
    about["metadata"]["account_id"] = str(engine.sign_up().account_id)
    assert shop.deliver(event("payment_intent.succeeded", about)) == 204
    assert shop.work() == []
    assert shop.invoice_status == "open"


def test_a_payment_for_one_invoice_is_not_taken_for_another(shop: Shop) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment)
    shop.confirm(payment)
    shop.engine.finish(shop.api.post("/invoices", {"plan": "growth", "payment_method": "stripe"}))
    other = shop.scalar("SELECT id FROM invoices WHERE status = 'open'")
    body = {"invoice_id": str(other), "provider": "stripe", "external_payment_id": payment}
    assert shop.engine.finish(shop.api.post("/payments", body))["code"] == "payment_already_used"


def test_money_for_an_invoice_that_is_void_by_then_stays_visible(shop: Shop) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.engine.finish(shop.api.post("/invoices", {"plan": "growth", "payment_method": "stripe"}))
    shop.stripe.customer_pays(payment)
    shop.tell("payment_intent.succeeded", payment)
    assert shop.invoice_status == "void"
    assert shop.scalar("SELECT unapplied_reason FROM payments WHERE status = 'succeeded'") == "invoice_not_open"


@pytest.mark.parametrize("agreed", [True, False])
def test_a_card_is_kept_for_renewals_if_the_customer_agreed(shop: Shop, agreed: bool) -> None:
    payment = shop.check_out(save_payment_method=agreed)["external_payment_id"]
    asked = next(one for one in shop.stripe.asked if one.path == "/v1/payment_intents")
    assert (asked.params.get("setup_future_usage") == "off_session") == agreed
    shop.stripe.customer_pays(payment)
    shop.confirm(payment)
    kept = shop.scalar("SELECT saved_payment_method FROM accounts WHERE id = %(id)s", id=shop.ada.account_id)
    assert kept == ("stripe" if agreed else None)
