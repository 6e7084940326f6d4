"""Which provider confirms what, and what the pretend one can do."""

import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest

from shared.config import PROJECT_DIR, Settings
from shared.db.engine import Database
from shared.domain.invoice import PaymentMethod
from shared.domain.payment import ChargeRequest, CheckoutRequest, ProviderPayment, ProviderStatus
from shared.errors import ProviderUnavailable
from shared.ids import new_id
from shared.providers import provider_for
from shared.providers.sandbox import GOOD_CARD, SandboxProvider
from shared.providers.stripe import StripeProvider
from tests.office import Office
from workers.local_stripe import LocalStripe

DATABASE: Any = None  # is not used


def test_each_method_has_the_provider_that_is_set_up(stripe: LocalStripe) -> None:
    with_both = stripe.settings(Settings(billing_sandbox=True))
    assert isinstance(provider_for(PaymentMethod.STRIPE, with_both, DATABASE), StripeProvider)
    assert isinstance(provider_for(PaymentMethod.SANDBOX, with_both, DATABASE), SandboxProvider)


@pytest.mark.parametrize("method", PaymentMethod)
def test_without_settings_nothing_is_confirmed(method: PaymentMethod) -> None:
    with pytest.raises(ProviderUnavailable):
        provider_for(method, Settings(billing_sandbox=False, stripe_secret_key=None), DATABASE)


def test_a_process_keeps_its_connections(stripe: LocalStripe) -> None:
    settings = stripe.settings(Settings())
    kept = provider_for(PaymentMethod.STRIPE, settings, DATABASE)
    assert provider_for(PaymentMethod.STRIPE, settings.model_copy(), DATABASE) is kept
    assert provider_for(PaymentMethod.STRIPE, settings.model_copy(update={"batch_size": 7}), DATABASE) is not kept


FORK = """
import os, sys
from shared.config import Settings
from shared.domain.invoice import PaymentMethod
from shared.providers import provider_for

def mine():
    return provider_for(PaymentMethod.STRIPE, Settings(), None)

parents = mine()
assert parents.retrieve("pi_1") is None
child = os.fork()
if child == 0:
    os._exit(0 if mine() is not parents and mine().retrieve("pi_1") is None else 1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or mine() is not parents)
"""


def test_the_child_of_a_fork_makes_connections_of_its_own(stripe: LocalStripe) -> None:
    ran = run(FORK, stripe.settings(Settings()))
    assert ran.returncode == 0, ran.stderr


def test_the_library_is_loaded_by_those_who_need_it() -> None:
    ran = run("import sys, shared.providers; sys.exit('stripe' in sys.modules)", Settings())
    assert ran.returncode == 0, ran.stderr


def run(script: str, settings: Settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT_DIR,
        env=settings.as_environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- the sandbox ------------------------------------------------------------------------------


@pytest.fixture
def office(database: Database, settings: Settings) -> Office:
    return Office(database, settings)


@pytest.fixture
def sandbox(database: Database) -> SandboxProvider:
    return SandboxProvider(database)


def charge(account_id: UUID, invoice_id: UUID, **changes: str) -> ChargeRequest:
    fields: dict[str, Any] = {
        "account_id": account_id,
        "invoice_id": invoice_id,
        "invoice_number": "1",
        "amount_minor": 89_00,
        "currency": "USD",
        "customer_ref": f"sandbox-{account_id}",
        "payment_method_ref": GOOD_CARD,
        "idempotency_key": "1",
    }
    return ChargeRequest(**(fields | changes))


def test_a_card_that_paid_in_the_sandbox_can_be_charged(office: Office, sandbox: SandboxProvider) -> None:
    ada = office.sign_up()
    paid = sandbox.retrieve(office.card_payment(ada, office.open_invoice(ada), saves_card=GOOD_CARD))
    assert paid is not None
    assert paid.customer_ref == sandbox.customer(ada.account_id, "Ada", "ada@example.com")
    assert (paid.payment_method_ref, paid.decline_code) == (GOOD_CARD, None)
    renewal = office.open_invoice(office.sign_up())  # of whomever; the sandbox does not look
    payment = sandbox.charge(charge(ada.account_id, renewal))
    assert payment == ProviderPayment(
        external_payment_id=payment.external_payment_id,
        status=ProviderStatus.SUCCEEDED,
        amount_minor=89_00,
        currency="USD",
        account_id=ada.account_id,
        invoice_id=renewal,
        customer_ref=paid.customer_ref,
        payment_method_ref=GOOD_CARD,
    )
    assert sandbox.charge(charge(ada.account_id, renewal)) == payment
    assert sandbox.retrieve(payment.external_payment_id) == payment
    assert sandbox.charge(charge(ada.account_id, renewal, idempotency_key="2")) != payment


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"payment_method_ref": "insufficient_funds"}, "insufficient_funds"),
        ({"customer_ref": "sandbox-of-somebody-else"}, "generic_decline"),
    ],
)
def test_any_other_card_is_declined_in_the_sandbox(
    office: Office, sandbox: SandboxProvider, changes: dict[str, str], code: str
) -> None:
    ada = office.sign_up()
    payment = sandbox.charge(charge(ada.account_id, office.open_invoice(ada), **changes))
    assert (payment.status, payment.amount_minor) == (ProviderStatus.FAILED, 0)
    assert payment.decline_code == code
    assert sandbox.charge(charge(ada.account_id, payment.invoice_id or new_id(), **changes)) == payment


def test_what_the_sandbox_cannot_do(sandbox: SandboxProvider) -> None:
    request = CheckoutRequest(
        account_id=new_id(), invoice_id=new_id(), invoice_number="1", amount_minor=1, currency="USD"
    )
    with pytest.raises(ProviderUnavailable):
        sandbox.checkout(request)
    with pytest.raises(ProviderUnavailable):
        sandbox.verify_webhook(b"", {})
    assert sandbox.retrieve("sandbox_none") is None
    assert sandbox.retrieve_refund("re_1") is None
    assert sandbox.refunds_of("sandbox_1") == []
