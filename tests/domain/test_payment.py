"""What settles an invoice, which declines are final, and what a value shows of itself."""

from typing import Any
from uuid import UUID

import pytest

from shared.domain.invoice import Invoice, InvoicePurpose, InvoiceStatus
from shared.domain.payment import (
    HARD_DECLINES,
    Checkout,
    ProviderPayment,
    ProviderStatus,
    is_hard_decline,
    require_amount,
    require_made_for,
)
from shared.domain.plan import Assigner
from shared.errors import PaymentMismatch, PaymentNotSucceeded
from tests.factories import on

ACCOUNT_ID, INVOICE_ID, OTHER_ID = UUID(int=1), UUID(int=2), UUID(int=3)

INVOICE = Invoice(
    id=INVOICE_ID,
    account_id=ACCOUNT_ID,
    purpose=InvoicePurpose.ACTIVATION,
    plan_id=UUID(int=4),
    assigned_by=Assigner.CHECKOUT,
    status=InvoiceStatus.OPEN,
    amount_minor=1900,
    currency="USD",
    opened_at=on("2026-01-10"),
    due_at=on("2026-01-24"),
)


def require_settles(paid: ProviderPayment) -> None:
    """What is required of a payment before it settles the invoice."""
    require_made_for(paid, account_id=INVOICE.account_id, invoice_id=INVOICE.id)
    require_amount(INVOICE, amount_minor=paid.amount_minor, currency=paid.currency)


def payment(**changes: Any) -> ProviderPayment:
    fields: dict[str, Any] = {
        "external_payment_id": "pi_1",
        "status": ProviderStatus.SUCCEEDED,
        "amount_minor": 1900,
        "currency": "USD",
        "account_id": ACCOUNT_ID,
        "invoice_id": INVOICE_ID,
    }
    return ProviderPayment(**(fields | changes))


def test_a_payment_of_the_invoice_settles_it() -> None:
    require_settles(payment())


@pytest.mark.parametrize("status", [ProviderStatus.PENDING, ProviderStatus.FAILED])
def test_a_payment_that_has_not_succeeded_settles_nothing(status: ProviderStatus) -> None:
    with pytest.raises(PaymentNotSucceeded):
        require_settles(payment(status=status))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"account_id": OTHER_ID}, id="another account"),
        pytest.param({"invoice_id": OTHER_ID}, id="another invoice"),
        pytest.param({"account_id": None, "invoice_id": None}, id="not made by this engine"),
        pytest.param({"invoice_id": None}, id="made for no invoice"),
        pytest.param({"amount_minor": 1899}, id="captured in part"),
        pytest.param({"amount_minor": 0}, id="nothing received"),
        pytest.param({"amount_minor": 1901}, id="too much"),
        pytest.param({"currency": "EUR"}, id="another currency"),
    ],
)
def test_a_payment_that_does_not_fit_settles_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(PaymentMismatch):
        require_settles(payment(**changes))


@pytest.mark.parametrize(
    ("decline_code", "hard"),
    [
        ("lost_card", True),
        ("stolen_card", True),
        ("authentication_required", True),
        ("insufficient_funds", False),
        ("generic_decline", False),
        ("try_again_later", False),
        ("a code of the future", False),
        ("", False),
        (None, False),
    ],
)
def test_which_declines_are_final(decline_code: str | None, hard: bool) -> None:
    assert is_hard_decline(decline_code) is hard


def test_no_decline_is_final_that_time_may_heal() -> None:
    softened_by_time = {
        "approve_with_id",
        "call_issuer",
        "card_velocity_exceeded",
        "do_not_honor",
        "generic_decline",
        "insufficient_funds",
        "issuer_not_available",
        "no_action_taken",
        "processing_error",
        "reenter_transaction",
        "try_again_later",
        "withdrawal_count_limit_exceeded",
    }
    assert not HARD_DECLINES & softened_by_time


def test_a_checkout_does_not_show_its_secret() -> None:
    checkout = Checkout(external_payment_id="pi_1", client_secret="pi_1_secret_2", status=ProviderStatus.PENDING)
    for shown in (repr(checkout), str(checkout), f"{[checkout]}"):
        assert "pi_1" in shown
        assert "secret_2" not in shown
