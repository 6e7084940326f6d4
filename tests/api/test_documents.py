"""Invoices and receipts to print, over HTTP: who gets which, as what, and how it may be shown."""

from io import BytesIO
from typing import Any

import pytest
from pypdf import PdfReader
from werkzeug.test import TestResponse

from shared.ids import new_id
from tests.api.conftest import Api, Engine
from tests.api.routes import SOME_ID
from tests.db.world import Customer
from tests.factories import cases

FORMATS = {
    "unless stated": ("", "application/pdf", "pdf"),
    "as PDF": ("?format=pdf", "application/pdf", "pdf"),
    "as HTML": ("?format=html", "text/html; charset=utf-8", "html"),
}


@pytest.fixture
def checkout(customer: Api, engine: Engine) -> Any:
    """Open an invoice for Ada; its path."""

    def open_invoice(plan: str = "starter", method: str = "bank_transfer") -> str:
        accepted = customer.post("/invoices", {"plan": plan, "payment_method": method})
        return f"/invoices/{engine.finish(accepted)['invoice_id']}"

    return open_invoice


@pytest.fixture
def pay(admin: Api, engine: Engine) -> Any:
    """The money of an invoice came to the seller; `arrived` overrides what came."""

    def record(path: str, **arrived: Any) -> None:
        body = {"external_payment_id": "cash-1", "amount_minor": 8_900, "currency": "USD", "reason": "cash"} | arrived
        engine.finish(admin.post(f"/admin{path}/payments", body))

    return record


def text(answer: TestResponse) -> str:
    assert answer.status_code == 200, answer.text
    if answer.mimetype == "text/html":
        return answer.text
    return "\n".join(page.extract_text() for page in PdfReader(BytesIO(answer.data)).pages)


def squeezed(words: str) -> str:
    """Without the spaces and lines that wrapping takes and adds."""
    return "".join(words.split())


@pytest.mark.parametrize("kind", ["document", "receipt"])
@pytest.mark.parametrize(("query", "content_type", "suffix"), cases(FORMATS))
def test_a_document_is_a_file_of_its_format(
    customer: Api, checkout: Any, pay: Any, kind: str, query: str, content_type: str, suffix: str
) -> None:
    path = checkout()
    number = customer.get(path).get_json()["number"]
    pay(path)
    answer = customer.get(f"{path}/{kind}{query}")
    title = "invoice" if kind == "document" else "receipt"
    assert (answer.status_code, answer.content_type) == (200, content_type)
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{title}-{number}.{suffix}"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert int(answer.headers["Content-Length"]) == len(answer.data)
    assert number in text(answer)


def test_a_page_from_the_apis_own_origin_may_do_nothing(customer: Api, checkout: Any) -> None:
    answer = customer.get(f"{checkout()}/document?format=html")
    policy = answer.headers["Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize("format_", ["pdf", "html"])
def test_an_invoice_is_printed_as_it_stands(
    customer: Api, engine: Engine, ada: Customer, checkout: Any, pay: Any, format_: str
) -> None:
    path = checkout()
    invoice = customer.get(path).get_json()
    how = invoice["payment_instructions"]
    printed = squeezed(text(customer.get(f"{path}/document?format={format_}")))
    for said in (
        *("Invoice", invoice["number"], "open", "Starter", "from the day of payment", "USD 89.00"),
        *("Example Seller Ltd", "1 Example Street", "12345 Example City"),
        *("Ada", engine.email_of(ada), "Europe/Berlin"),
        *(how["beneficiary"], how["iban"], how["bic"], how["reference"]),
    ):
        assert squeezed(said) in printed, said

    pay(path)
    printed = text(customer.get(f"{path}/document?format={format_}"))
    assert "paid on" in printed
    assert "IBAN" not in printed


def test_an_invoice_that_was_replaced_is_printed_as_void(customer: Api, checkout: Any) -> None:
    path = checkout("starter")
    checkout("growth")
    assert "void since" in text(customer.get(f"{path}/document"))
    assert customer.get(f"{path}/receipt").get_json()["code"] == "invoice_not_paid"


def test_a_renewal_is_printed_with_its_dates(customer: Api, engine: Engine, checkout: Any, pay: Any) -> None:
    pay(checkout())
    path = checkout()
    invoice = customer.get(path).get_json()
    assert invoice["purpose"] == "renewal"
    engine.execute_sql("UPDATE accounts SET time_zone = 'UTC'")
    printed = text(customer.get(f"{path}/document"))
    assert f"from {invoice['period_starts_at'][:10]} until {invoice['period_ends_at'][:10]}" in printed.replace(
        "\n", " "
    )


def test_an_open_invoice_in_euros_has_its_code(customer: Api, engine: Engine, checkout: Any) -> None:
    path = checkout()
    assert "<svg" not in text(customer.get(f"{path}/document?format=html"))
    engine.execute_sql("UPDATE invoices SET currency = 'EUR'")
    assert "<svg" in text(customer.get(f"{path}/document?format=html"))
    assert "Read by banking apps" in text(customer.get(f"{path}/document"))


def test_an_unpaid_invoice_has_no_receipt_yet(customer: Api, admin: Api, checkout: Any, pay: Any) -> None:
    path = checkout()
    for answer in (customer.get(f"{path}/receipt"), admin.get(f"/admin{path}/receipt?format=html")):
        assert (answer.status_code, answer.get_json()["code"]) == (409, "invoice_not_paid")
    pay(path)
    assert customer.get(f"{path}/receipt").status_code == 200


def test_a_receipt_tells_the_payment_at_the_provider(customer: Api, engine: Engine, checkout: Any) -> None:
    path = checkout(method="sandbox")
    invoice_id = path.removeprefix("/invoices/")
    charge = customer.post("/sandbox/payments", {"invoice_id": invoice_id, "outcome": "succeeded"}).get_json()
    payment = {
        "invoice_id": invoice_id,
        "provider": "sandbox",
        "external_payment_id": charge["external_payment_id"],
    }
    engine.finish(customer.post("/payments", payment))
    engine.execute_sql(
        """
        INSERT INTO payments (id, account_id, invoice_id, operation_id, provider, external_payment_id, status, problem)
        SELECT gen_random_uuid(), account_id, invoice_id, gen_random_uuid(), provider, 'card-declined', 'failed', 'no'
        FROM payments
        """
    )
    printed = text(customer.get(f"{path}/receipt?format=html"))
    assert charge["external_payment_id"] in printed
    assert "card-declined" not in printed
    assert "sandbox, without money" in printed


def test_a_receipt_is_over_what_arrived(customer: Api, admin: Api, engine: Engine, checkout: Any) -> None:
    path = checkout()
    submitted = customer.post("/bank-transfers", {"invoice_id": path.removeprefix("/invoices/")})
    transfer_id = engine.finish(submitted)["bank_transfer_id"]
    arrived: dict[str, Any] = {
        "amount_minor": 8_800,
        "currency": "USD",
        "value_on": "2026-02-02",
        "bank_transaction_id": f"bank-{new_id()}",
        "override_reason": "a fee",
    }
    engine.finish(admin.post(f"/admin/bank-transfers/{transfer_id}/approve", arrived))
    printed = text(customer.get(f"{path}/receipt?format=html"))
    assert "bank transfer" in printed
    assert arrived["bank_transaction_id"] in printed
    assert "USD 88.00" in printed


@pytest.mark.parametrize("kind", ["document", "receipt"])
@pytest.mark.parametrize("query", ["", "?format=html"], ids=["PDF", "HTML"])
def test_an_admin_gets_what_the_customer_gets(
    customer: Api, admin: Api, checkout: Any, pay: Any, kind: str, query: str
) -> None:
    path = checkout()
    pay(path)
    theirs, ours = customer.get(f"{path}/{kind}{query}"), admin.get(f"/admin{path}/{kind}{query}")
    assert theirs.data == ours.data
    assert theirs.headers["Content-Disposition"] == ours.headers["Content-Disposition"]


@pytest.mark.parametrize("kind", ["document", "receipt"])
def test_nobody_elses_invoice_is_printed(
    customer: Api, stranger: Api, admin: Api, checkout: Any, pay: Any, kind: str
) -> None:
    path = checkout()
    pay(path)
    for answer in (
        stranger.get(f"{path}/{kind}"),
        customer.get(f"/invoices/{SOME_ID}/{kind}"),
        admin.get(f"/admin/invoices/{SOME_ID}/{kind}"),
    ):
        assert (answer.status_code, answer.get_json()["code"]) == (404, "not_found")
    for answer in (customer.get(f"/admin{path}/{kind}"), stranger.get(f"/admin{path}/{kind}")):
        assert answer.status_code == 403


def test_a_key_that_reads_invoices_prints_them(customer: Api, checkout: Any) -> None:
    path = checkout()
    for scope, status in (("billing:read", 200), ("credits:read", 403)):
        key = customer.post("/api-keys", {"name": "one", "scopes": [scope]}).get_json()["key"]
        assert customer.with_key(key).get(f"{path}/document").status_code == status


def test_a_suspended_account_still_gets_its_invoices(
    customer: Api, engine: Engine, ada: Customer, checkout: Any
) -> None:
    path = checkout()
    engine.suspend(ada)
    assert customer.get(f"{path}/document").status_code == 200


@pytest.mark.parametrize("query", ["format=docx", "format=", "format=PDF", "format=pdf&format=html", "page=1"])
def test_a_format_that_is_none_is_refused(customer: Api, checkout: Any, query: str) -> None:
    answer = customer.get(f"{checkout()}/document?{query}")
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_input")


def test_a_name_is_text_and_never_markup(customer: Api, engine: Engine, checkout: Any) -> None:
    path = checkout()
    engine.execute_sql("UPDATE accounts SET name = %(name)s WHERE kind = 'customer'", name='<script>"\u202e')
    page = text(customer.get(f"{path}/document?format=html"))
    assert "<script" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;&#34;" in page


# --- how it is described ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/invoices/{invoice_id}", "/admin/invoices/{invoice_id}"])
def test_a_document_is_described_as_either_file(documented: dict[str, Any], path: str) -> None:
    for kind in ("document", "receipt"):
        described = documented["paths"][f"/api/v1{path}/{kind}"]["get"]
        assert described["responses"]["200"]["content"] == {
            "application/pdf": {},
            "text/html": {"schema": {"type": "string"}},
        }
        assert "Content-Disposition" in described["responses"]["200"]["headers"]
        assert ("409" in described["responses"]) == (kind == "receipt")
        (parameter,) = [one for one in described["parameters"] if one["in"] == "query"]
        assert (parameter["name"], parameter["required"]) == ("format", False)
