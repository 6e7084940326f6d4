"""Charges of saved payment methods: scheduled as operations, each attempt once."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db import operations
from shared.db.engine import Tx
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.payment import Charge, ProviderPayment
from shared.domain.plan import Rules
from shared.domain.requests import ChargeInvoice


def schedule(tx: Tx, charges: Sequence[Charge], rules: Rules) -> None:
    """Have these attempts made when they are due."""
    operations.schedule(
        tx,
        OperationKind.CHARGE_INVOICE,
        [
            (
                rules.new_id(),
                charge.account_id,
                ChargeInvoice(invoice_id=charge.invoice_id, attempt=charge.attempt),
                f"{charge.invoice_id}:{charge.attempt}",
                charge.due_at,
            )
            for charge in charges
        ],
    )


def save_method(tx: Tx, account_id: UUID, provider: PaymentMethod, answer: ProviderPayment) -> None:
    """Remember what a payment leaves to be charged later, if it does."""
    if answer.customer_ref is None or answer.payment_method_ref is None:
        return
    save_customer(tx, account_id, provider, answer.customer_ref)
    tx.execute(
        """
        UPDATE provider_customers SET payment_method_ref = %(method)s
        WHERE account_id = %(account_id)s AND provider = %(provider)s AND customer_ref = %(customer)s
        """,
        account_id=account_id,
        provider=str(provider),
        customer=answer.customer_ref,
        method=answer.payment_method_ref,
    )
    tx.execute(
        "UPDATE accounts SET saved_payment_method = %(provider)s WHERE id = %(id)s",
        id=account_id,
        provider=str(provider),
    )


def save_customer(tx: Tx, account_id: UUID, provider: PaymentMethod, customer_ref: str) -> str:
    """Who the account is to the provider, from the first answer on; that first one."""
    tx.execute(
        """
        INSERT INTO provider_customers (account_id, provider, customer_ref)
        VALUES (%(account_id)s, %(provider)s, %(customer_ref)s)
        ON CONFLICT (account_id, provider) DO NOTHING
        """,
        account_id=account_id,
        provider=str(provider),
        customer_ref=customer_ref,
    )
    first: str = tx.scalar(
        "SELECT customer_ref FROM provider_customers WHERE account_id = %(id)s AND provider = %(provider)s",
        id=account_id,
        provider=str(provider),
    )
    return first


def customer(tx: Tx, account_id: UUID, provider: PaymentMethod) -> Row[Any] | None:
    """Who the account is to the provider, and the method that can be charged, if one was saved."""
    return tx.maybe(
        "SELECT * FROM provider_customers WHERE account_id = %(id)s AND provider = %(provider)s",
        id=account_id,
        provider=str(provider),
    )


def chargeable(tx: Tx, account_id: UUID) -> Row[Any] | None:
    """The saved payment method that the account's renewals are charged to."""
    return tx.maybe(
        """
        SELECT c.* FROM provider_customers c JOIN accounts a ON a.id = c.account_id
        WHERE c.account_id = %(id)s AND c.provider = a.saved_payment_method AND c.payment_method_ref IS NOT NULL
        """,
        id=account_id,
    )
