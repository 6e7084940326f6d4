"""Small makers for tests: instants, plans, rules, grants; and tables whose ids read as rules."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from msgspec import Struct

from shared.config import Settings
from shared.domain.calendar import Interval
from shared.domain.credits import CreditGrant, GrantSource
from shared.domain.invoice import InvoiceStatus, PaymentMethod, creditor_reference, invoice_number
from shared.domain.plan import SEED_PLANS, Assigner, Plan, Rollover, Rules, TrialEnd
from shared.domain.printable import Customer, Payment, PrintableDocument, PrintableInvoice, Seller
from shared.ids import new_id

# Tests ask thousands of times in a minute, all from one address: they are throttled, where they do not notice.
PLENTY = 1_000_000
GENEROUS = {
    name: PLENTY
    for name in Settings.model_fields
    if name.endswith("_per_minute") and name != "api_key_requests_per_minute"
} | {"throttle_timeout_ms": 5_000}  # on a machine with much to do

Table = Mapping[str, tuple[object, ...]]


def cases(table: Table) -> list[Any]:
    """A table of rows by the rule that each one shows, as parameters with that rule for id."""
    return [pytest.param(*row, id=rule) for rule, row in table.items()]


def on(text: str) -> datetime:
    """An instant in UTC, `2026-01-31` or `2026-01-31 09:30`; a day without a time means its noon."""
    instant = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return instant if len(text) > len("2026-01-31") else instant.replace(hour=12)


# --- plans and rules ----------------------------------------------------------------------------


def plan(slug: str = "basic", **terms: Any) -> Plan:
    """A plan without a price, monthly, that anybody may hand out, except for `terms`."""
    defaults: dict[str, Any] = {
        "id": new_id(),
        "slug": slug,
        "name": slug.title(),
        "price_minor": 0,
        "currency": "USD",
        "interval": Interval.MONTH,
        "interval_count": 1,
        "trial_days": 0,
        "credits_per_month": 100,
        "credit_rollover": Rollover.NONE,
        "credit_rollover_cap": None,
        "trial_end": TrialEnd.SUSPEND,
        "grace_days": 7,
        "requests_per_minute": 600,
        "assignable_by": frozenset(Assigner),
    }
    return Plan(**(defaults | terms))


def catalogue() -> list[Plan]:
    """The plans that a fresh system is seeded with."""
    return [
        plan(
            seed.slug,
            price_minor=seed.price_minor,
            credits_per_month=seed.credits_per_month,
            requests_per_minute=seed.requests_per_minute,
            assignable_by=frozenset(seed.assignable_by),
            trial_days=seed.trial_days,
        )
        for seed in SEED_PLANS
    ]


def rules(plans: Iterable[Plan], **terms: Any) -> Rules:
    """Rules over these plans; ten days for an undecided transfer and fourteen to pay, except for `terms`."""
    defaults: dict[str, Any] = {
        "transfer_grace_days": 10,
        "invoice_due_days": 14,
        "low_credits_percent": 20,
        "charge_retry_days": (1, 3, 5),
        "seller_iban": "DE89370400440532013000",
        "statement_auto_settle": True,
        "new_id": new_id,
    }
    return Rules(plans={one.id: one for one in plans}, **(defaults | terms))


def grant(amount: int = 100, **terms: Any) -> CreditGrant:
    """A grant that lasts for ever, given by an admin on New Year's Day, except for `terms`."""
    defaults: dict[str, Any] = {
        "id": new_id(),
        "account_id": UUID(int=1),
        "source": GrantSource.ADJUST,
        "remaining": amount,
        "held": 0,
        "priority": 20,
        "effective_at": on("2026-01-01"),
        "expires_at": None,
    }
    return CreditGrant(amount=amount, **(defaults | terms))


# --- what is printed ----------------------------------------------------------------------------


def seller(**terms: Any) -> Seller:
    """A seller with an address of two lines, except for `terms`."""
    defaults: dict[str, Any] = {
        "name": "Example Seller Ltd",
        "address": ("1 Example Street", "12345 Example City"),
        "iban": "DE89370400440532013000",
        "bic": "COBADEFFXXX",
    }
    return Seller(**(defaults | terms))


def printable(**terms: Any) -> PrintableInvoice:
    """An open invoice of January 31 over 89 dollars, for Starter from the day of payment, except for `terms`."""
    defaults: dict[str, Any] = {
        "number": invoice_number(2026, 1),
        "reference": creditor_reference(2026, 1),
        "status": InvoiceStatus.OPEN,
        "plan_name": "Starter",
        "amount_minor": 89_00,
        "currency": "USD",
        "opened_at": on("2026-01-31"),
        "due_at": on("2026-02-14"),
        "time_zone": "Europe/Berlin",
        "seller": seller(),
        "customer": Customer(name="Ada Ltd", email="ada@example.com"),
    }
    return PrintableInvoice(**(defaults | terms))


def paid(**terms: Any) -> PrintableInvoice:
    """The same, paid in full by bank transfer on February 2."""
    defaults: dict[str, Any] = {
        "status": InvoiceStatus.PAID,
        "paid_at": on("2026-02-02"),
        "payment": Payment(
            method=PaymentMethod.BANK_TRANSFER, external_payment_id="bank-1", amount_minor=89_00, currency="USD"
        ),
    }
    return printable(**(defaults | terms))


def texts(document: PrintableDocument) -> list[str]:
    """Everything that a document says."""
    parts = [getattr(document, name) for name in document.__struct_fields__ if name != "code"]
    return [*_texts(parts), *([] if document.code is None else [document.code.caption])]


def _texts(part: object) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Struct):
        yield from _texts([getattr(part, name) for name in part.__struct_fields__])
    elif isinstance(part, list | tuple):
        for one in part:
            yield from _texts(one)
