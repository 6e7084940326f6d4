"""The pretend card provider of the demo and the tests; its ledger is the table `sandbox_payments`.

Customers pay at `POST /api/v1/sandbox/payments`, without a checkout. They may leave a card to be charged later: the
good one, or one that is always declined with its own name as the code. Refunds succeed; whether so much may go back is
the engine's to know. It sends no webhooks.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NoReturn
from uuid import UUID

from sqlalchemy import Row

from shared.db.engine import Database
from shared.domain.payment import (
    ChargeRequest,
    Checkout,
    CheckoutRequest,
    ProviderEvent,
    ProviderPayment,
    ProviderRefund,
    ProviderStatus,
    RefundRequest,
)
from shared.errors import ProviderUnavailable

GOOD_CARD: Final = "good"
DECLINED: Final = "generic_decline"


class SandboxProvider:
    """Knows the payments in its table; methods as the protocol says."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def retrieve(self, external_payment_id: str) -> ProviderPayment | None:
        """As the protocol says."""
        with self._database.transaction() as tx:
            row = tx.maybe("SELECT * FROM sandbox_payments WHERE external_payment_id = %(id)s", id=external_payment_id)
        return None if row is None else _payment(row)

    def customer(self, account_id: UUID, name: str, email: str) -> str:  # noqa: ARG002 - the protocol's
        """As the protocol says; accounts are known here by their own id."""
        return _customer_ref(account_id)

    def checkout(self, request: CheckoutRequest) -> Checkout:
        """Raises ProviderUnavailable: there is no browser's part to play."""
        _refuse(f"the sandbox has no checkout; pay invoice {request.invoice_id} at POST /api/v1/sandbox/payments")

    def charge(self, request: ChargeRequest) -> ProviderPayment:
        """Succeeds with the account's good card."""
        owned = request.customer_ref == _customer_ref(request.account_id)
        succeeded = owned and request.payment_method_ref == GOOD_CARD
        with self._database.transaction() as tx:
            tx.execute(
                """
                INSERT INTO sandbox_payments
                    (external_payment_id, account_id, invoice_id, succeeded, amount_minor, currency, saves_card)
                VALUES (%(id)s, %(account_id)s, %(invoice_id)s, %(succeeded)s, %(amount_minor)s, %(currency)s, %(card)s)
                ON CONFLICT (external_payment_id) DO NOTHING
                """,
                id=_charge_id(request.idempotency_key),
                account_id=request.account_id,
                invoice_id=request.invoice_id,
                succeeded=succeeded,
                card=request.payment_method_ref,
                amount_minor=request.amount_minor,
                currency=request.currency,
            )
            row = tx.one(
                "SELECT * FROM sandbox_payments WHERE external_payment_id = %(id)s",
                id=_charge_id(request.idempotency_key),
            )
            return _payment(row, declined=request.payment_method_ref if owned else DECLINED)

    def refund(self, request: RefundRequest) -> ProviderRefund:
        """Always succeeds."""
        return ProviderRefund(
            refund_id=f"sandbox_refund_{hashlib.sha256(request.idempotency_key.encode()).hexdigest()[:32]}",
            status=ProviderStatus.SUCCEEDED,
            amount_minor=request.amount_minor,
            currency=request.currency,
            external_payment_id=request.external_payment_id,
        )

    def retrieve_refund(self, refund_id: str) -> ProviderRefund | None:  # noqa: ARG002 - the protocol's
        """Always None."""
        return None

    def refunds_of(self, external_payment_id: str) -> list[ProviderRefund]:  # noqa: ARG002 - the protocol's
        """Always none."""
        return []

    def verify_webhook(self, body: bytes, headers: Mapping[str, str]) -> ProviderEvent:  # noqa: ARG002
        """Raises ProviderUnavailable."""
        _refuse("the sandbox sends no webhooks")


def _payment(row: Row[Any], *, declined: str = DECLINED) -> ProviderPayment:
    return ProviderPayment(
        external_payment_id=row.external_payment_id,
        status=ProviderStatus.SUCCEEDED if row.succeeded else ProviderStatus.FAILED,
        amount_minor=row.amount_minor if row.succeeded else 0,
        currency=row.currency,
        account_id=row.account_id,
        invoice_id=row.invoice_id,
        decline_code=None if row.succeeded else declined,
        customer_ref=_customer_ref(row.account_id),
        payment_method_ref=row.saves_card if row.succeeded else None,
    )


def _customer_ref(account_id: UUID) -> str:
    return f"sandbox-{account_id}"


def _charge_id(idempotency_key: str) -> str:
    return f"sandbox_{hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]}"


def _refuse(detail: str) -> NoReturn:
    raise ProviderUnavailable(detail, provider="sandbox")
