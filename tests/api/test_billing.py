"""Paying: checkout, card, bank transfer, an admin's decisions, over HTTP from end to end."""

from typing import Any

import pytest
from stdnum import iso11649

from shared.ids import new_id
from tests.api.conftest import Api, Engine
from tests.api.routes import BODIES, SOME_ID
from tests.db.world import Customer


@pytest.fixture
def checkout(customer: Api, engine: Engine) -> Any:
    """Open an invoice for Ada; its document."""

    def open_invoice(plan: str = "starter", method: str = "bank_transfer") -> dict[str, Any]:
        accepted = customer.post("/invoices", {"plan": plan, "payment_method": method})
        invoice: dict[str, Any] = customer.get(f"/invoices/{engine.finish(accepted)['invoice_id']}").get_json()
        return invoice

    return open_invoice


def approval(invoice: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "amount_minor": invoice["amount_minor"],
        "currency": invoice["currency"],
        "value_on": "2026-02-02",
        "bank_transaction_id": f"bank-{new_id()}",
    } | changed


def test_a_card_payment_from_checkout_to_credits(customer: Api, engine: Engine, checkout: Any) -> None:
    invoice = checkout(method="sandbox")
    assert (invoice["amount_minor"], invoice["currency"], invoice["status"]) == (8_900, "USD", "open")
    charge = customer.post("/sandbox/payments", {"invoice_id": invoice["id"], "outcome": "succeeded"})
    assert charge.status_code == 201
    payment = {
        "invoice_id": invoice["id"],
        "provider": "sandbox",
        "external_payment_id": charge.get_json()["external_payment_id"],
    }
    result = engine.finish(customer.post("/payments", payment))
    assert result["invoice_id"] == invoice["id"]

    paid = customer.get(f"/invoices/{invoice['id']}").get_json()
    assert (paid["status"], paid["payment_instructions"]) == ("paid", None)
    (listed,) = customer.get("/payments").get_json()["items"]
    assert (listed["status"], listed["amount_minor"], listed["provider"]) == ("succeeded", 8_900, "sandbox")
    subscription = customer.get("/subscription").get_json()
    assert (subscription["plan"], subscription["status"]) == ("starter", "active")
    assert subscription["renews_at"] == subscription["current_period_ends_at"]
    assert len(subscription["periods"]) == 2
    assert subscription["periods"][0]["ends_at"] == subscription["periods"][1]["starts_at"]
    assert customer.get("/account").get_json()["status"] == "active"
    assert customer.get("/credits").get_json()["available_credits"] == 3_000


def test_a_failed_card_payment_settles_nothing(customer: Api, engine: Engine, checkout: Any) -> None:
    invoice = checkout(method="sandbox")
    charge = customer.post("/sandbox/payments", {"invoice_id": invoice["id"], "outcome": "failed"}).get_json()
    payment = {"invoice_id": invoice["id"], "provider": "sandbox", "external_payment_id": charge["external_payment_id"]}
    accepted = customer.post("/payments", payment)
    engine.finish(accepted)
    polled = customer.get(f"/operations/{accepted.get_json()['operation_id']}").get_json()
    assert (polled["status"], polled["problem"]["code"]) == ("failed", "payment_not_succeeded")
    assert customer.get(f"/invoices/{invoice['id']}").get_json()["status"] == "open"


PROVIDERS = {
    "manual": (403, "forbidden"),
    "stripe": (422, "provider_unavailable"),
    "bank_transfer": (422, "provider_unavailable"),
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_customers_confirm_only_what_a_provider_can(customer: Api, checkout: Any, provider: str) -> None:
    body = {"invoice_id": checkout()["id"], "provider": provider, "external_payment_id": "x"}
    answer = customer.post("/payments", body)
    assert (answer.status_code, answer.get_json()["code"]) == PROVIDERS[provider]


@pytest.mark.parametrize("method", ["manual", "stripe"])
def test_checkout_takes_only_what_can_be_paid(customer: Api, method: str) -> None:
    answer = customer.post("/invoices", {"plan": "starter", "payment_method": method})
    assert (answer.status_code, answer.get_json()["code"]) == PROVIDERS[method]


@pytest.mark.parametrize("plan", ["enterprise", "free-trial", "no-such-plan"])
def test_no_customer_reaches_a_plan_that_is_not_for_sale(customer: Api, engine: Engine, plan: str) -> None:
    accepted = customer.post("/invoices", {"plan": plan, "payment_method": "bank_transfer"})
    code = engine.finish(accepted)["code"]
    assert code == ("not_found" if plan == "no-such-plan" else "plan_not_assignable")
    assert customer.get("/subscription").get_json()["plan"] == "free-trial"


def test_an_open_invoice_says_how_to_pay_it(checkout: Any, api: Api) -> None:
    invoice = checkout()
    how = invoice["payment_instructions"]
    assert iso11649.is_valid(how["reference"])
    assert (how["reference"], how["amount_minor"], how["currency"]) == (invoice["reference"], 8_900, "USD")
    assert (how["iban"], how["bic"], how["epc_qr_svg"]) == ("DE89370400440532013000", "COBADEFFXXX", None)
    assert invoice["number"].endswith("-00000001")


def test_invoices_in_euros_carry_the_code_that_banking_apps_read(customer: Api, engine: Engine, checkout: Any) -> None:
    invoice = checkout()
    engine.execute_sql("UPDATE invoices SET currency = 'EUR'")
    how = customer.get(f"/invoices/{invoice['id']}").get_json()["payment_instructions"]
    assert how["epc_qr_svg"].startswith("<svg")
    engine.execute_sql("UPDATE invoices SET amount_minor = 100000000000")
    how = customer.get(f"/invoices/{invoice['id']}").get_json()["payment_instructions"]
    assert how["epc_qr_svg"] is None, "more than the code can say"


def test_a_bank_transfer_from_submission_to_approval(
    customer: Api, admin: Api, engine: Engine, checkout: Any, ada: Customer
) -> None:
    invoice = checkout("growth")
    submitted = customer.post("/bank-transfers", {"invoice_id": invoice["id"], "payer_name": "Ada", "note": "today"})
    transfer_id = engine.finish(submitted)["bank_transfer_id"]
    assert customer.get(f"/bank-transfers/{transfer_id}").get_json()["status"] == "pending"

    (waiting,) = admin.get("/admin/bank-transfers").get_json()["items"]
    assert (waiting["id"], waiting["account_id"]) == (transfer_id, str(ada.account_id))
    assert (waiting["amount_minor"], waiting["reference"]) == (13_900, invoice["reference"])

    result = engine.finish(admin.post(f"/admin/bank-transfers/{transfer_id}/approve", approval(invoice)))
    assert result["invoice_id"] == invoice["id"]
    decided = customer.get(f"/bank-transfers/{transfer_id}").get_json()
    assert (decided["status"], decided["received_amount_minor"]) == ("approved", 13_900)
    assert "decided_by" not in decided, "which admin it was is no customer's business"
    assert customer.get("/account").get_json()["status"] == "active"
    assert admin.get("/admin/bank-transfers").get_json()["items"] == []
    (approved,) = admin.get("/admin/bank-transfers?status=approved").get_json()["items"]
    assert approved["payment_id"] == result["payment_id"]

    late = engine.finish(admin.post(f"/admin/bank-transfers/{transfer_id}/reject", {"reason": "late"}))
    assert late["code"] == "already_approved"


def test_a_rejected_transfer_tells_its_reason(customer: Api, admin: Api, engine: Engine, checkout: Any) -> None:
    invoice = checkout()
    transfer_id = engine.finish(customer.post("/bank-transfers", {"invoice_id": invoice["id"]}))["bank_transfer_id"]
    engine.finish(admin.post(f"/admin/bank-transfers/{transfer_id}/reject", {"reason": "nothing came"}))
    (transfer,) = customer.get("/bank-transfers").get_json()["items"]
    assert (transfer["status"], transfer["rejection_reason"]) == ("rejected", "nothing came")
    late = engine.finish(admin.post(f"/admin/bank-transfers/{transfer_id}/approve", approval(invoice)))
    assert late["code"] == "already_rejected"


def test_another_amount_needs_a_reason(customer: Api, admin: Api, engine: Engine, checkout: Any) -> None:
    invoice = checkout()
    transfer_id = engine.finish(customer.post("/bank-transfers", {"invoice_id": invoice["id"]}))["bank_transfer_id"]
    path = f"/admin/bank-transfers/{transfer_id}/approve"
    accepted = admin.post(path, approval(invoice, amount_minor=8_800))
    assert engine.finish(accepted)["code"] == "payment_mismatch"
    problem = admin.get(f"/operations/{accepted.get_json()['operation_id']}").get_json()["problem"]
    assert (problem["expected_amount_minor"], problem["received_amount_minor"]) == (8_900, 8_800)
    result = engine.finish(admin.post(path, approval(invoice, amount_minor=8_800, override_reason="a fee")))
    assert result["bank_transfer_id"] == transfer_id


def test_leaving_takes_effect_when_the_period_ends(customer: Api, engine: Engine) -> None:
    engine.finish(customer.post("/subscription/cancel", {}))
    subscription = customer.get("/subscription").get_json()
    assert (subscription["cancel_at_period_end"], subscription["status"]) == (True, "trialing")
    engine.finish(customer.post("/subscription/cancel", {"at_period_end": False}))
    subscription = customer.get("/subscription").get_json()
    assert (subscription["status"], subscription["end_reason"]) == ("ended", "cancelled")
    assert (subscription["renews_at"], subscription["next_credit_at"]) == (None, None)
    assert customer.get("/account").get_json()["access"] == "read"


def test_an_admin_gives_plans_and_credits_and_takes_money(
    customer: Api, admin: Api, engine: Engine, checkout: Any, ada: Customer
) -> None:
    account = f"/admin/accounts/{ada.account_id}"
    engine.finish(admin.post(f"{account}/credits", {"amount": 500, "reason": "sorry"}))
    read = admin.get(account).get_json()
    assert (read["credits"]["available_credits"], read["subscription"]["plan"]) == (2_500, "free-trial")
    assert (read["owner_email"], read["next_transition"]) == (engine.email_of(ada), "trial_end")

    invoice = checkout("starter")
    paid = {"external_payment_id": "cash-1", "amount_minor": 8_900, "currency": "USD", "reason": "cash"}
    engine.finish(admin.post(f"/admin/invoices/{invoice['id']}/payments", paid))
    assert customer.get(f"/invoices/{invoice['id']}").get_json()["status"] == "paid"

    engine.finish(admin.post(f"{account}/plan", {"plan": "enterprise", "reason": "a deal"}))
    assert customer.get("/subscription").get_json()["plan"] == "enterprise"
    (listed,) = admin.get("/admin/accounts").get_json()["items"]
    assert (listed["id"], listed["status"]) == (str(ada.account_id), "active")
    actions = "SELECT array_agg(action ORDER BY id) FROM audit_log WHERE actor_kind = 'admin'"
    assert engine.scalar(actions) == ["credits.adjusted", "payment.recorded", "plan.assigned"]


def test_a_dead_operation_gets_another_chance(customer: Api, admin: Api, engine: Engine) -> None:
    accepted = customer.post("/invoices", BODIES["POST /invoices"])
    path = f"/admin/operations/{accepted.get_json()['operation_id']}/retry"
    refused = admin.post(path)
    assert (refused.status_code, refused.get_json()["code"]) == (409, "operation_not_dead")

    engine.execute_sql(
        """UPDATE operations SET status = 'dead', next_send_at = NULL, last_error = 'boom: at 0x1234',
           problem = '{"code": "operation_dead", "detail": "it kept failing"}' WHERE status = 'pending'"""
    )
    polled = customer.get(f"/operations/{accepted.get_json()['operation_id']}")
    assert (polled.get_json()["status"], polled.get_json()["problem"]["code"]) == ("dead", "operation_dead")
    assert "boom" not in polled.text, "what went wrong inside is an admin's to read"
    (dead,) = admin.get("/admin/operations?status=dead&kind=open_invoice").get_json()["items"]
    assert dead["last_error"] == "boom: at 0x1234"

    again = admin.post(path)
    assert (again.status_code, again.get_json()["status"]) == (202, "pending")
    assert engine.finish(again)["plan"] == "starter"
    assert engine.scalar("SELECT count(*) FROM audit_log WHERE action = 'operation.retried'") == 1


def test_an_operation_of_a_kind_that_only_a_newer_release_knows_is_shown(
    customer: Api, admin: Api, engine: Engine
) -> None:
    accepted = customer.post("/invoices", BODIES["POST /invoices"])
    engine.execute_sql("UPDATE operations SET kind = 'mint_tokens' WHERE status = 'pending'")
    polled = customer.get(f"/operations/{accepted.get_json()['operation_id']}")
    assert (polled.status_code, polled.get_json()["kind"]) == (200, "mint_tokens")
    listed = admin.get("/admin/operations?status=pending").get_json()["items"]
    assert [item["kind"] for item in listed] == ["mint_tokens"]


def test_operations_are_listed_by_status_and_kind(customer: Api, admin: Api) -> None:
    customer.post("/invoices", BODIES["POST /invoices"])
    customer.post("/subscription/cancel", {})

    def kinds(query: str) -> list[str]:
        return [item["kind"] for item in admin.get(f"/admin/operations{query}").get_json()["items"]]

    assert kinds("") == ["cancel_subscription", "open_invoice", "sign_up"]
    assert kinds("?status=pending") == ["cancel_subscription", "open_invoice"]
    assert kinds("?kind=open_invoice") == ["open_invoice"]
    assert kinds("?status=succeeded&kind=open_invoice") == []


def test_a_test_clock_moves_the_accounts_on_it_forward(api: Api, admin: Api, engine: Engine) -> None:
    made = admin.post("/admin/test-clocks", {"name": "Cleo's", "now_at": "2026-01-31T10:00:00+01:00"})
    assert (made.status_code, made.get_json()["now_at"]) == (201, "2026-01-31T09:00:00Z")
    clock = f"/admin/test-clocks/{made.get_json()['id']}"
    body = BODIES["POST /signup"] | {"test_clock_id": made.get_json()["id"]}
    engine.finish(api.post("/signup", body))
    assert admin.get(clock).get_json()["accounts"] == 1
    tokens = api.post("/auth/login", {"email": body["email"], "password": body["password"]}).get_json()
    cleo = api.with_token(tokens["access_token"])
    assert cleo.get("/subscription").get_json()["trial_ends_at"] == "2026-02-14T09:00:00Z"

    engine.finish(admin.post(f"{clock}/advance", {"to": "2026-02-14T09:00:00Z"}))
    account = cleo.get("/account").get_json()
    assert (account["status"], account["status_reason"]) == ("suspended", "trial_expired")
    back = engine.finish(admin.post(f"{clock}/advance", {"to": "2026-02-01T00:00:00Z"}))
    assert back["code"] == "clock_moves_forward"


def test_customers_see_only_their_side_of_the_sandbox(customer: Api, stranger: Api) -> None:
    assert customer.get(f"/admin/test-clocks/{SOME_ID}").status_code == 403
    assert stranger.get("/account").status_code == 200


def test_plans_are_public_and_say_who_may_assign_them(api: Api) -> None:
    plans = {plan["slug"]: plan for plan in api.get("/plans").get_json()["items"]}
    assert plans["enterprise"]["assignable_by"] == ["admin"]
    assert (plans["starter"]["price_minor"], plans["starter"]["credits_per_month"]) == (8_900, 1_000)
    assert plans["free-trial"]["trial_days"] == 14
