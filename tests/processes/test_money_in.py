"""Money over HTTP, decided by real workers: one decision ever, and cards that Stripe tells of by itself."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from shared.ids import new_id
from tests.processes.conftest import System
from tests.statements.samples import camt053, entry
from workers.demo import Client, eventually

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("processes")]

DECISIONS = 20


def test_of_twenty_decisions_at_once_one_wins(system: System) -> None:
    ada, admin = system.customer(), system.admin()
    invoice = ada.get(f"/invoices/{ada.post('/invoices', checkout('bank_transfer'))['invoice_id']}")
    transfer_id = ada.post("/bank-transfers", {"invoice_id": invoice["id"]})["bank_transfer_id"]

    def decide(number: int) -> str:
        path = f"/admin/bank-transfers/{transfer_id}"
        if number % 2:
            return admin.outcome(f"{path}/reject", {"reason": f"nothing came, says {number}"})
        return admin.outcome(f"{path}/approve", approval(invoice))

    with ThreadPoolExecutor(DECISIONS) as pool:
        outcomes = Counter(pool.map(decide, range(DECISIONS)))
    assert outcomes["succeeded"] == 1
    decided = ada.get(f"/bank-transfers/{transfer_id}")["status"]
    assert outcomes == {"succeeded": 1, f"already_{decided}": DECISIONS - 1}
    assert ada.get(f"/invoices/{invoice['id']}")["status"] == {"approved": "paid", "rejected": "open"}[decided]
    decisions = admin.get("/admin/audit", subject_id=transfer_id)["items"]
    assert [row["action"] for row in decisions] == [f"bank_transfer.{decided}"]
    assert system.findings() == []


def test_stripe_tells_of_a_payment_and_the_saved_card_pays_the_renewal(system: System) -> None:
    admin = system.admin()
    clock = admin.post("/admin/test-clocks", {"name": new_id().hex, "now_at": "2026-01-31T09:00:00Z"})
    ada = system.customer(test_clock_id=clock["id"])
    invoice_id = ada.post("/invoices", checkout("stripe"))["invoice_id"]
    begun = ada.post(f"/invoices/{invoice_id}/checkout", {"save_payment_method": True})
    system.stripe.customer_pays(begun["external_payment_id"])
    eventually(lambda: paid(ada, invoice_id), "Stripe's webhook to settle the invoice")

    admin.post(f"/admin/test-clocks/{clock['id']}/advance", {"to": "2026-03-01T00:00:00Z"})
    (renewal,) = [item for item in ada.get("/invoices")["items"] if item["id"] != invoice_id]
    eventually(lambda: paid(ada, renewal["id"]), "a worker to charge the saved card")
    assert ada.get(f"/invoices/{renewal['id']}")["paid_at"] == "2026-02-28T09:00:00Z", "on time, by its own clock"
    assert ada.get("/account")["status"] == "active"
    newest = ada.get("/payments")["items"][0]
    assert (newest["provider"], newest["attempt"], newest["status"]) == ("stripe", 1, "succeeded")
    assert system.findings() == []


def test_a_stripe_that_is_down_delays_and_loses_nothing(system: System) -> None:
    ada = system.customer()
    invoice_id = ada.post("/invoices", checkout("stripe"))["invoice_id"]
    begun = ada.post(f"/invoices/{invoice_id}/checkout", {})
    system.stripe.customer_pays(begun["external_payment_id"])
    system.stripe.answer_next(500, b"{}")  # to whoever asks first: on the browser's word, or on the webhook's
    body = {"invoice_id": invoice_id, "provider": "stripe", "external_payment_id": begun["external_payment_id"]}
    accepted = httpx.post(f"{system.stack.url}/api/v1/payments", json=body, headers=ada.headers, timeout=10)
    assert accepted.status_code == 202
    eventually(lambda: paid(ada, invoice_id), "the payment to be found all the same")
    assert system.findings() == []


def test_a_transfer_that_was_announced_is_settled_by_the_banks_file(system: System) -> None:
    bob, admin = system.customer(), system.admin()
    invoice_id = bob.post("/invoices", checkout("bank_transfer"))["invoice_id"]
    transfer_id = bob.post("/bank-transfers", {"invoice_id": invoice_id})["bank_transfer_id"]
    reference = bob.get(f"/invoices/{invoice_id}")["reference"]
    told = entry(amount_minor=89_00, currency="USD", remittance=f"Bob, {reference}", transaction_id="T1")
    file = camt053([told], currency="USD")
    imported = admin.upload("/admin/bank-statements", file, "application/xml", format="camt053")
    assert imported["settling"] == 1
    eventually(lambda: paid(bob, invoice_id), "the file to settle the invoice")
    assert bob.get(f"/bank-transfers/{transfer_id}")["status"] == "approved"
    assert bob.get("/account")["status"] == "active"
    assert system.findings() == []


def checkout(method: str) -> dict[str, Any]:
    return {"plan": "starter", "payment_method": method}


def approval(invoice: dict[str, Any]) -> dict[str, Any]:
    return {
        "amount_minor": invoice["amount_minor"],
        "currency": invoice["currency"],
        "value_on": "2026-02-02",
        "bank_transaction_id": f"BANK-{new_id().hex}",
    }


def paid(client: Client, invoice_id: str) -> bool | None:
    return client.get(f"/invoices/{invoice_id}")["status"] == "paid" or None
