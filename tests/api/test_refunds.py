"""Money goes back by an admin's decision: what is asked, what is shown to whom, and what is refused at once."""

import csv
from io import StringIO
from typing import Any

import pytest

from shared.ids import new_id
from tests.api.conftest import Api, Engine
from tests.db.world import Customer
from tests.factories import Table, cases


@pytest.fixture
def payment(customer: Api, engine: Engine) -> dict[str, Any]:
    """A card payment of Ada's, for a month of starter."""
    invoice_id = engine.finish(customer.post("/invoices", {"plan": "starter", "payment_method": "sandbox"}))[
        "invoice_id"
    ]
    charge = customer.post("/sandbox/payments", {"invoice_id": invoice_id, "outcome": "succeeded"}).get_json()
    body = {"invoice_id": invoice_id, "provider": "sandbox", "external_payment_id": charge["external_payment_id"]}
    engine.finish(customer.post("/payments", body))
    (listed,) = customer.get("/payments").get_json()["items"]
    return dict(listed)


@pytest.fixture
def cash(customer: Api, admin: Api, engine: Engine) -> str:
    """Money that an admin recorded; the payment's id."""
    invoice = {"plan": "starter", "payment_method": "bank_transfer"}
    invoice_id = engine.finish(customer.post("/invoices", invoice))["invoice_id"]
    paid = {"external_payment_id": "cash-1", "amount_minor": 8_900, "currency": "USD", "reason": "cash"}
    return str(engine.finish(admin.post(f"/admin/invoices/{invoice_id}/payments", paid))["payment_id"])


def refunds(payment_id: str) -> str:
    return f"/admin/payments/{payment_id}/refunds"


def test_a_part_and_then_the_rest(
    customer: Api, admin: Api, engine: Engine, ada: Customer, payment: dict[str, Any]
) -> None:
    customer.post("/credits/consume", {"amount": 2_800}, key="most")
    accepted = admin.post(refunds(payment["id"]), {"amount_minor": 4_450, "reason": "unhappy"})
    first = engine.finish(accepted)
    assert (first["status"], first["amount_minor"], first["reversed_credits"]) == ("succeeded", 4_450, 200)

    read = admin.get(f"/admin/payments/{payment['id']}").get_json()
    assert (read["account_id"], read["invoice_id"]) == (str(ada.account_id), payment["invoice_id"])
    assert (read["refunded_minor"], read["applied_minor"], read["unapplied_minor"]) == (4_450, 4_450, 0)
    assert (read["reversed_credits"], read["spent_credits"]) == (200, 300)
    (shown,) = read["refunds"]
    assert {name: shown[name] for name in ("id", "operation_id", "status", "reason", "spent_credits")} == {
        "id": first["refund_id"],
        "operation_id": accepted.get_json()["operation_id"],
        "status": "succeeded",
        "reason": "unhappy",
        "spent_credits": 300,
    }

    engine.finish(admin.post(refunds(payment["id"]), {"reason": "still unhappy"}))
    read = admin.get(f"/admin/payments/{payment['id']}").get_json()
    assert (read["refunded_minor"], read["applied_minor"]) == (8_900, 0)
    assert (read["reversed_credits"], read["spent_credits"], len(read["refunds"])) == (200, 800, 2)
    assert engine.finish(admin.post(refunds(payment["id"]), {"reason": "more"}))["code"] == "refund_exceeds_payment"


def test_the_customer_sees_what_went_back(customer: Api, admin: Api, engine: Engine, payment: dict[str, Any]) -> None:
    invoice = f"/invoices/{payment['invoice_id']}"
    assert (payment["refunded_minor"], customer.get(invoice).get_json()["refunded_minor"]) == (0, 0)
    engine.finish(admin.post(refunds(payment["id"]), {"amount_minor": 4_450, "reason": "unhappy"}))
    assert customer.get("/payments").get_json()["items"][0]["refunded_minor"] == 4_450
    assert customer.get(invoice).get_json()["refunded_minor"] == 4_450
    assert customer.get("/invoices").get_json()["items"][0]["refunded_minor"] == 4_450
    assert customer.get(invoice).get_json()["status"] == "paid"
    assert customer.get("/subscription").get_json()["status"] == "active"

    (event,) = [one for one in customer.get("/events").get_json()["items"] if one["kind"] == "payment.refunded"]
    assert (event["subject_id"], event["data"]["reversed_credits"]) == (payment["id"], 500)
    for document in ("document", "receipt"):
        printed = customer.get(f"{invoice}/{document}?format=html").text
        assert "Refunded on" in printed, document
        assert printed.count("44.50") == 2, f"{document}: given back, and kept"


def test_the_customer_reads_why_credits_went_back(
    customer: Api, admin: Api, engine: Engine, ada: Customer, payment: dict[str, Any]
) -> None:
    accepted = admin.post(refunds(payment["id"]), {"amount_minor": 4_450, "reason": "unhappy"})
    refund = engine.finish(accepted)
    row = customer.get("/credits/transactions/3").get_json()
    assert (row["kind"], row["amount"], row["reason"], row["reverses_seq"]) == ("reverse", -500, "unhappy", 2)
    assert (row["rule"]["name"], row["rule"]["section"]) == ("refunded", "Refunds 7")
    assert row["operation"] == {"id": accepted.get_json()["operation_id"], "kind": "refund_payment"}
    assert row["refund"] == {
        "id": refund["refund_id"],
        "payment_id": payment["id"],
        "amount_minor": 4_450,
        "currency": "USD",
        "status": "succeeded",
        "external_refund_id": refund["external_refund_id"],
        "transfer_reference": None,
    }
    assert (row["actor"]["kind"], row["actor"]["name"]) == ("admin", None)
    told = admin.get(f"/admin/accounts/{ada.account_id}/credits/transactions/3").get_json()
    assert told["actor"]["name"].endswith("@example.com")
    seed = customer.get("/credits/transactions/2").get_json()
    assert (seed["reversed_by_seqs"], seed["refund"]) == ([3], None)

    exported = list(csv.DictReader(StringIO(customer.get("/credits/transactions.csv").text)))
    assert (exported[2]["kind"], exported[2]["amount"], exported[2]["source"]) == ("reverse", "-500", "payment")


def test_money_that_came_by_hand_goes_back_by_hand(admin: Api, engine: Engine, cash: str) -> None:
    refund = {"reason": "unhappy", "transfer_reference": "SEPA 4711"}
    assert engine.finish(admin.post(refunds(cash), refund))["external_refund_id"] is None
    (shown,) = admin.get(f"/admin/payments/{cash}").get_json()["refunds"]
    assert (shown["transfer_reference"], shown["amount_minor"]) == ("SEPA 4711", 8_900)


def test_a_request_that_is_sent_again_is_one_refund(admin: Api, engine: Engine, payment: dict[str, Any]) -> None:
    body = {"reason": "unhappy"}
    first = admin.post(refunds(payment["id"]), body, key="once")
    engine.finish(first)
    again = admin.post(refunds(payment["id"]), body, key="once")
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true")
    assert again.get_json()["operation_id"] == first.get_json()["operation_id"]


def test_of_money_that_settles_nothing_it_is_said_how_much_is_left(admin: Api, engine: Engine) -> None:
    payment_id = str(new_id())
    engine.execute_sql(
        """
        INSERT INTO payments (id, operation_id, provider, external_payment_id, status, amount_minor, currency,
                              confirmed_at, unapplied_reason)
        VALUES (%(id)s, %(operation_id)s, 'bank_transfer', 'bank-1', 'succeeded', 8900, 'USD', now(), 'not_found')
        """,
        id=payment_id,
        operation_id=new_id(),
    )

    def where() -> tuple[int, int]:
        read = admin.get(f"/admin/payments/{payment_id}").get_json()
        assert (read["account_id"], read["invoice_id"], read["unapplied_reason"]) == (None, None, "not_found")
        return read["applied_minor"], read["unapplied_minor"]

    assert where() == (0, 8_900)
    refund = {"reason": "nobody's", "transfer_reference": "SEPA 4711"}
    engine.finish(admin.post(refunds(payment_id), refund | {"amount_minor": 900}))
    assert where() == (0, 8_000)
    engine.finish(admin.post(refunds(payment_id), refund))
    assert where() == (0, 0)


def test_what_never_came_is_nowhere(customer: Api, admin: Api, engine: Engine, payment: dict[str, Any]) -> None:
    payment_id = new_id()
    engine.execute_sql(
        """
        INSERT INTO payments (id, account_id, invoice_id, operation_id, provider, external_payment_id, status)
        SELECT %(id)s, account_id, id, %(id)s, 'sandbox', 'card-1', 'pending' FROM invoices
        """,
        id=payment_id,
    )
    read = admin.get(f"/admin/payments/{payment_id}").get_json()
    assert (read["status"], read["applied_minor"], read["unapplied_minor"], read["refunds"]) == ("pending", 0, 0, [])
    refused = engine.finish(admin.post(refunds(str(payment_id)), {"reason": "unhappy"}))
    assert refused["code"] == "payment_not_succeeded"


BAD: Table = {
    "nothing": ({"amount_minor": 0}, "amount_minor"),
    "less than nothing": ({"amount_minor": -1}, "amount_minor"),
    "an absurd amount": ({"amount_minor": 10**12}, "amount_minor"),
    "half a cent": ({"amount_minor": 0.5}, "amount_minor"),
    "a number in quotes": ({"amount_minor": "1"}, "amount_minor"),
    "true": ({"amount_minor": True}, "amount_minor"),
    "no reason": ({"reason": " "}, "reason"),
    "a reason over two lines": ({"reason": "a\nb"}, "reason"),
    "a reason without end": ({"reason": "x" * 201}, "reason"),
    "an empty reference": ({"transfer_reference": ""}, "transfer_reference"),
    "a reference with control characters": ({"transfer_reference": "a\x00b"}, "transfer_reference"),
    "a currency": ({"currency": "EUR"}, "currency"),
}


@pytest.mark.parametrize(("change", "field"), cases(BAD))
def test_what_does_not_fit_is_refused(admin: Api, payment: dict[str, Any], change: dict[str, Any], field: str) -> None:
    answer = admin.post(refunds(payment["id"]), {"reason": "unhappy"} | change)
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_input")
    assert [error["field"] for error in answer.get_json()["errors"]] == [field]


def test_how_money_goes_back_is_stated_where_no_provider_does_it(
    admin: Api, engine: Engine, payment: dict[str, Any], cash: str
) -> None:
    with_one, without = {"reason": "unhappy", "transfer_reference": "SEPA 4711"}, {"reason": "unhappy"}
    for payment_id, body in ((payment["id"], with_one), (cash, without)):
        answer = admin.post(refunds(payment_id), body)
        assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_input")
    assert engine.scalar("SELECT count(*) FROM operations WHERE kind = 'refund_payment'") == 0


def test_it_is_an_admins_decision(customer: Api, user_key: Api, payment: dict[str, Any]) -> None:
    for api in (user_key, customer):
        assert api.post(refunds(payment["id"]), {"reason": "unhappy"}).status_code in {401, 403}
        assert api.get(f"/admin/payments/{payment['id']}").status_code in {401, 403}
