"""The rules of docs/rules.md, "Invoices": what an invoice and a receipt say."""

from datetime import date
from typing import Any

import pytest

from shared.domain.epc import epc_code
from shared.domain.invoice import InvoiceStatus, PaymentMethod
from shared.domain.printable import (
    METHODS,
    Block,
    Customer,
    Fact,
    Payment,
    PrintableDocument,
    PrintableInvoice,
    Refund,
    clean,
    invoice_document,
    receipt_document,
)
from shared.errors import InvoiceNotPaid
from tests.factories import cases, on, paid, printable, seller, texts


def said(facts: tuple[Fact, ...]) -> dict[str, str]:
    return {fact.label: fact.text for fact in facts}


def block(document: PrintableDocument, heading: str) -> dict[str, str]:
    (found,) = [one for one in document.blocks if one.heading == heading]
    return said(found.facts)


def void(**terms: Any) -> PrintableInvoice:
    return printable(status=InvoiceStatus.VOID, voided_at=on("2026-02-03"), **terms)


# --- invoices -----------------------------------------------------------------------------------


def test_an_invoice_says_what_is_owed_by_whom_to_whom() -> None:
    document = invoice_document(printable())
    assert (document.name, document.file_stem) == ("Invoice 2026-00000001", "invoice-2026-00000001")
    assert said(document.about) == {
        "Invoice number": "2026-00000001",
        "Date": "2026-01-31",
        "Due": "2026-02-14",
        "Status": "open",
    }
    assert document.seller.lines == ("Example Seller Ltd", "1 Example Street", "12345 Example City")
    assert document.customer.lines == ("Ada Ltd", "ada@example.com")
    assert document.line == ("Starter", "from the day of payment", "USD 89.00")
    assert document.total == Fact("Total", "USD 89.00")
    assert document.created_at == on("2026-01-31")


STATUSES = {
    "open, with how to pay": (printable(), "open", ["Payment by bank transfer"]),
    "paid": (paid(), "paid on 2026-02-02", []),
    "void": (void(), "void since 2026-02-03", []),
}


@pytest.mark.parametrize(("invoice", "status", "headings"), cases(STATUSES))
def test_an_invoice_is_shown_as_it_stands(invoice: PrintableInvoice, status: str, headings: list[str]) -> None:
    document = invoice_document(invoice)
    assert said(document.about)["Status"] == status
    assert [one.heading for one in document.blocks] == headings


RENEWAL: dict[str, Any] = {"period_starts_at": on("2026-02-28"), "period_ends_at": on("2026-03-31")}
PERIODS = {
    "a renewal is for dates": (printable(**RENEWAL), "from 2026-02-28 until 2026-03-31"),
    "also once it is paid": (paid(**RENEWAL), "from 2026-02-28 until 2026-03-31"),
    "an activation starts when it is paid": (printable(), "from the day of payment"),
    "and then says when that was": (paid(), "from 2026-02-02, the day of payment"),
    "a void one never started": (void(), "from the day of payment"),
}


@pytest.mark.parametrize(("invoice", "period"), cases(PERIODS))
def test_an_invoice_says_which_time_it_is_for(invoice: PrintableInvoice, period: str) -> None:
    assert invoice_document(invoice).line[1] == period


ZONES = {
    "already the next day in Berlin": ("Europe/Berlin", "2026-02-01"),
    "still the same in London": ("Europe/London", "2026-01-31"),
    "and in Los Angeles": ("America/Los_Angeles", "2026-01-31"),
}


@pytest.mark.parametrize(("zone", "day"), cases(ZONES))
def test_instants_are_days_where_the_account_is_and_the_zone_is_named(zone: str, day: str) -> None:
    document = invoice_document(printable(opened_at=on("2026-01-31 23:30"), time_zone=zone))
    assert said(document.about)["Date"] == day
    assert any(zone in note for note in document.notes)


AMOUNTS = {
    "thousands are grouped": (1_089_00, "USD", "USD 1,089.00"),
    "a currency without a minor unit": (890, "JPY", "JPY 890"),
    "three decimals": (1, "BHD", "BHD 0.001"),
}


@pytest.mark.parametrize(("amount_minor", "currency", "shown"), cases(AMOUNTS))
def test_money_is_written_as_its_currency_is(amount_minor: int, currency: str, shown: str) -> None:
    document = invoice_document(printable(amount_minor=amount_minor, currency=currency))
    assert document.line[2] == document.total.text == block(document, "Payment by bank transfer")["Amount"] == shown


@pytest.mark.parametrize("iban", ["DE89370400440532013000", "DE89 3704 0044 0532 0130 00"], ids=["compact", "grouped"])
def test_what_has_to_be_typed_is_in_groups_of_four(iban: str) -> None:
    how = block(invoice_document(printable(seller=seller(iban=iban))), "Payment by bank transfer")
    assert how["IBAN"] == "DE89 3704 0044 0532 0130 00"
    assert how["Reference"] == "RF75 2026 0000 0001"
    assert (how["Beneficiary"], how["BIC"]) == ("Example Seller Ltd", "COBADEFFXXX")


CODES = {
    "euros": (printable(currency="EUR"), True),
    "another currency": (printable(), False),
    "paid": (paid(currency="EUR"), False),
    "void": (void(currency="EUR"), False),
    "more than the code can say": (printable(currency="EUR", amount_minor=100_000_000_000), False),
}


@pytest.mark.parametrize(("invoice", "has_code"), cases(CODES))
def test_open_invoices_in_euros_have_a_code(invoice: PrintableInvoice, has_code: bool) -> None:
    assert (invoice_document(invoice).code is not None) == has_code


def test_the_bars_of_a_code_are_its_dark_modules() -> None:
    invoice = printable(currency="EUR")
    drawn = invoice_document(invoice).code
    code = epc_code(
        beneficiary=invoice.seller.name,
        iban=invoice.seller.iban,
        bic=invoice.seller.bic,
        amount_minor=invoice.amount_minor,
        currency=invoice.currency,
        reference=invoice.reference,
    )
    assert drawn is not None
    assert code is not None
    dark = {(x + 4, y + 4) for y, row in enumerate(code.matrix) for x, module in enumerate(row) if module}
    assert {(bar.x + step, bar.y) for bar in drawn.bars for step in range(bar.length)} == dark
    assert drawn.side == len(code.matrix) + 8


SELLERS = {
    "a tax id": ({"tax_id": "DE123456789"}, "Tax ID: DE123456789"),
    "a register": ({"registration": "HRB 1, Berlin"}, "Registration: HRB 1, Berlin"),
    "an address for questions": ({"email": "billing@example.com"}, "billing@example.com"),
}


@pytest.mark.parametrize(("terms", "line"), cases(SELLERS))
def test_what_a_seller_has_is_printed_and_nothing_else(terms: dict[str, str], line: str) -> None:
    assert invoice_document(printable(seller=seller(**terms))).seller.lines[3:] == (line,)


def test_an_account_without_an_owner_has_a_name() -> None:
    document = invoice_document(printable(customer=Customer(name="Ada Ltd", email=None)))
    assert document.customer.lines == ("Ada Ltd",)


# --- receipts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("invoice", [pytest.param(printable(), id="open"), pytest.param(void(), id="void")])
def test_only_a_paid_invoice_has_a_receipt(invoice: PrintableInvoice) -> None:
    with pytest.raises(InvoiceNotPaid, match=f"is {invoice.status}"):
        receipt_document(invoice)


def test_a_receipt_says_what_was_paid_when_and_how() -> None:
    document = receipt_document(paid())
    assert (document.name, document.file_stem) == ("Receipt 2026-00000001", "receipt-2026-00000001")
    assert said(document.about) == {
        "For invoice": "2026-00000001",
        "Invoice date": "2026-01-31",
        "Paid on": "2026-02-02",
    }
    assert document.blocks == (
        Block(
            heading="Payment",
            facts=(Fact("Paid", "USD 89.00"), Fact("Method", "bank transfer"), Fact("Payment ID", "bank-1")),
        ),
    )
    assert document.code is None
    assert document.created_at == on("2026-02-02")


def test_a_receipt_is_over_what_arrived_and_not_over_what_was_asked_for() -> None:
    less = Payment(method=PaymentMethod.BANK_TRANSFER, external_payment_id="bank-1", amount_minor=80_00, currency="EUR")
    document = receipt_document(paid(payment=less))
    assert document.total.text == "USD 89.00"
    assert block(document, "Payment")["Paid"] == "EUR 80.00"


@pytest.mark.parametrize("method", PaymentMethod)
def test_every_method_has_words(method: PaymentMethod) -> None:
    payment = Payment(method=method, external_payment_id="x", amount_minor=89_00, currency="USD")
    assert block(receipt_document(paid(payment=payment)), "Payment")["Method"] == METHODS[method]


REFUNDS = {
    "none": ((), None),
    "one": (((date(2026, 3, 1), 9_00),), {"Refunded on 2026-03-01": "USD 9.00", "Kept": "USD 80.00"}),
    "two": (
        ((date(2026, 3, 1), 9_00), (date(2026, 3, 2), 1_50)),
        {"Refunded on 2026-03-01": "USD 9.00", "Refunded on 2026-03-02": "USD 1.50", "Kept": "USD 78.50"},
    ),
    "all of it": (((date(2026, 3, 1), 89_00),), {"Refunded on 2026-03-01": "USD 89.00", "Kept": "USD 0.00"}),
}


@pytest.mark.parametrize(("refunds", "facts"), cases(REFUNDS))
def test_a_receipt_says_what_was_given_back_and_what_was_kept(
    refunds: tuple[tuple[date, int], ...], facts: dict[str, str] | None
) -> None:
    given_back = tuple(Refund(refunded_on=on_day, amount_minor=minor) for on_day, minor in refunds)
    document = receipt_document(paid(refunds=given_back))
    if facts is None:
        assert [one.heading for one in document.blocks] == ["Payment"]
    else:
        assert block(document, "Refunds") == facts


# --- text from outside --------------------------------------------------------------------------

TEXTS = {
    "is kept as it is": ('Größe & Söhne <GmbH> "Łódź"', 'Größe & Söhne <GmbH> "Łódź"'),
    "is composed": ("Gro\u0308ße", "Größe"),
    "is put on one line": ("Ada\r\nLtd\t(UK)\u2028Ltd", "Ada Ltd (UK) Ltd"),
    "loses what turns its direction": ("\u202eadA\u202c\u2066 \u200fLtd\u2069", "adA Ltd"),
    "loses what cannot be seen": ("A\u00add\u200ba\ufeff", "Ada"),
    "keeps the joiners that words are spelled with": ("Auf\u200clage", "Auf\u200clage"),
    "loses other control characters": ("A\x85da\x9b", "A da"),
}


@pytest.mark.parametrize(("given", "printed"), cases(TEXTS))
def test_text_from_outside(given: str, printed: str) -> None:
    assert clean(given) == printed


def test_all_text_from_outside_is_cleaned() -> None:
    hostile = "\u202eevil\u2028"
    outside = dict.fromkeys(("name", "bic", "tax_id", "registration", "email"), hostile)
    payment = Payment(method=PaymentMethod.MANUAL, external_payment_id=hostile, amount_minor=89_00, currency="USD")
    terms: dict[str, Any] = {
        "plan_name": hostile,
        "customer": Customer(name=hostile, email=hostile),
        "seller": seller(address=(hostile,), **outside),
    }
    for document in (invoice_document(printable(**terms)), receipt_document(paid(payment=payment, **terms))):
        said_of_it = texts(document)
        assert "evil" in said_of_it
        assert not [text for text in said_of_it if text != clean(text)]
