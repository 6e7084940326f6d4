"""Checkout and payment: what the provider says settles an invoice, once; a customer's word does not."""

from typing import Any

import pytest

from shared.db import operations
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.requests import ConfirmPayment, OpenInvoice
from shared.usecases.confirm_payment import record_intent
from tests.factories import Table, cases, on
from tests.office import Customer, Office

INVOICE = "SELECT * FROM invoices WHERE id = %(id)s"
PAYMENTS = "SELECT provider, external_payment_id, status, problem, amount_minor FROM payments ORDER BY id"


def checkout(office: Office, who: Customer, plan: str) -> Any:
    request = OpenInvoice(plan=plan, payment_method=PaymentMethod.BANK_TRANSFER)
    return office.ask(OperationKind.OPEN_INVOICE, request, account_id=who.account_id, by=who.user_id)


# --- checkout -------------------------------------------------------------------------------------


def test_checkout_opens_an_invoice_with_number_and_reference(office: Office) -> None:
    who = office.sign_up()
    invoice = office.row(INVOICE, id=office.open_invoice(who))
    assert (invoice.status, invoice.amount_minor, invoice.currency) == ("open", 89_00, "USD")
    assert (invoice.number_year, invoice.number, invoice.reference) == (2026, 1, "RF75202600000001")
    assert (invoice.opened_at, invoice.due_at) == (on("2026-01-10"), on("2026-01-24"))
    assert (invoice.purpose, invoice.payment_method) == ("activation", "bank_transfer")


def test_checkout_again_returns_the_same_invoice(office: Office) -> None:
    who = office.sign_up()
    assert office.open_invoice(who) == office.open_invoice(who)
    assert office.row("SELECT last_number FROM invoice_numbers").last_number == 1


def test_a_plan_without_a_price_needs_no_invoice(office: Office) -> None:
    who = office.sign_up()
    assert checkout(office, who, "free").result["invoice_id"] is None
    assert office.rows("SELECT FROM invoices") == []


NOT_SOLD: Table = {
    "enterprise": ("enterprise", "plan_not_assignable"),
    "the trial": ("free-trial", "plan_not_assignable"),
    "a plan that does not exist": ("no-such-plan", "not_found"),
}


@pytest.mark.parametrize(("plan", "code"), cases(NOT_SOLD))
def test_not_for_sale(office: Office, plan: str, code: str) -> None:
    who = office.sign_up()
    before = office.dump("operations")
    row = checkout(office, who, plan)
    assert (row.status, row.problem["code"]) == ("failed", code)
    assert office.dump("operations") == before


def test_a_cancelled_account_opens_no_invoice(office: Office) -> None:
    who = office.sign_up()
    office.cancel(who, at_period_end=False)
    assert checkout(office, who, "starter").problem["code"] == "account_cancelled"


def test_a_suspended_account_pays_and_is_back(office: Office) -> None:
    who = office.sign_up()
    office.tick(on("2026-02-01"))
    office.now = on("2026-02-05 08:30")
    office.buy(who)
    account = office.row("SELECT status, access_ends_at FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert tuple(account) == ("active", on("2026-03-12 08:30"))
    subscriptions = office.rows("SELECT started_at, end_reason FROM subscriptions ORDER BY started_at")
    assert [tuple(row) for row in subscriptions] == [
        (on("2026-01-10"), "trial_expired"),
        (on("2026-02-05 08:30"), None),
    ]


# --- a card -----------------------------------------------------------------------------------------


def test_a_confirmed_payment_settles_everything_at_once(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who, method=PaymentMethod.SANDBOX)
    payment = office.card_payment(who, invoice_id)
    office.now = on("2026-01-12 10:00")
    operation_id = office.confirmation(who, invoice_id, payment)
    row = office.execute(operation_id)
    assert (row.status, row.result["invoice_id"]) == ("succeeded", str(invoice_id))
    invoice = office.row(INVOICE, id=invoice_id)
    assert (invoice.status, invoice.paid_at) == ("paid", on("2026-01-12 10:00"))
    assert [tuple(row) for row in office.rows(PAYMENTS)] == [("sandbox", payment, "succeeded", None, 89_00)]
    account = office.row("SELECT * FROM accounts WHERE id = %(id)s", id=who.account_id)
    sub = office.row("SELECT * FROM subscriptions")
    for owner in (account, sub):
        assert (owner.status, owner.payment_method, owner.external_payment_id) == ("active", "sandbox", payment)
    assert (sub.anchor_at, sub.renews_at) == (on("2026-01-12 10:00"), on("2026-02-12 10:00"))
    assert account.balance_credits == 2_000 + 1_000
    before = office.dump()
    office.execute(operation_id)
    assert office.dump() == before


MISMATCHES: Table = {
    "too little": ({"amount_minor": 88_99},),
    "too much": ({"amount_minor": 89_01},),
    "another currency": ({"currency": "EUR"},),
}


@pytest.mark.parametrize("terms", cases(MISMATCHES))
def test_money_that_does_not_fit_settles_nothing_and_stays_visible(office: Office, terms: dict[str, Any]) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    name = office.card_payment(who, invoice_id, **terms)
    untouched = ("operations", "payments", "events")
    before = office.dump(*untouched)
    row = office.execute(office.confirmation(who, invoice_id, name))
    assert (row.status, row.problem["code"]) == ("failed", "payment_mismatch")
    assert office.dump(*untouched) == before
    kept = office.row("SELECT * FROM payments")
    assert (kept.status, kept.unapplied_reason, kept.applied_at) == ("succeeded", "payment_mismatch", None)
    assert (kept.amount_minor, kept.currency) == (terms.get("amount_minor", 89_00), terms.get("currency", "USD"))
    assert row.problem["payment_id"] == str(kept.id)
    assert office.row("SELECT data FROM events WHERE kind = 'payment.unapplied'").data == {
        "invoice_id": str(invoice_id),
        "reason": "payment_mismatch",
        "amount_minor": kept.amount_minor,
        "currency": kept.currency,
    }
    again = office.execute(office.confirmation(who, invoice_id, name))
    assert (again.status, again.problem["code"]) == ("failed", "payment_unapplied")
    assert office.row("SELECT count(*) AS kept FROM payments WHERE status = 'succeeded'").kept == 1


REFUSED: Table = {
    "a payment that the provider does not know": (None,),
    "one that did not succeed": ({"succeeded": False},),
}


@pytest.mark.parametrize("terms", cases(REFUSED))
def test_not_settled_by(office: Office, terms: dict[str, Any] | None) -> None:
    code = "payment_not_succeeded"
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    name = "unknown" if terms is None else office.card_payment(who, invoice_id, **terms)
    untouched = ("operations", "payments", "events")
    before = office.dump(*untouched)
    row = office.execute(office.confirmation(who, invoice_id, name))
    assert (row.status, row.problem["code"]) == ("failed", code)
    assert office.dump(*untouched) == before
    assert office.row("SELECT data FROM events WHERE kind = 'payment.failed'").data == {
        "invoice_id": str(invoice_id),
        "problem": code,
    }
    assert [tuple(row) for row in office.rows(PAYMENTS)] == [("sandbox", name, "failed", code, None)]


def test_not_settled_by_a_payment_for_another_invoice(office: Office) -> None:
    mine, other = office.sign_up(), office.sign_up()
    invoice_id, others_invoice_id = office.open_invoice(mine), office.open_invoice(other)
    theirs = office.card_payment(other, others_invoice_id)
    row = office.execute(office.confirmation(mine, invoice_id, theirs))
    assert row.problem["code"] == "payment_mismatch"


def test_the_invoice_of_another_account_does_not_exist(office: Office) -> None:
    mine, other = office.sign_up(), office.sign_up()
    others_invoice_id = office.open_invoice(other)
    payment = office.card_payment(other, others_invoice_id)
    before = office.dump("operations")
    row = office.execute(office.confirmation(mine, others_invoice_id, payment))
    assert row.problem["code"] == "not_found"
    assert office.dump("operations") == before


def test_two_confirmations_of_one_payment_settle_once_and_both_succeed(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    payment = office.card_payment(who, invoice_id)
    first, second = (office.confirmation(who, invoice_id, payment) for _ in range(2))
    before = office.execute(first)
    after = office.execute(second)
    assert (after.status, after.result) == ("succeeded", before.result)
    assert [tuple(row) for row in office.rows(PAYMENTS)] == [("sandbox", payment, "succeeded", None, 89_00)]
    assert office.row("SELECT count(*) AS seeds FROM credit_transactions").seeds == 2


def test_one_payment_settles_one_invoice(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    payment = office.card_payment(who, invoice_id)
    office.execute(office.confirmation(who, invoice_id, payment))
    next_invoice_id = office.open_invoice(who)
    row = office.execute(office.confirmation(who, next_invoice_id, payment))
    assert row.problem["code"] == "payment_already_used"
    assert office.row(INVOICE, id=next_invoice_id).status == "open"


def test_one_invoice_is_settled_by_one_payment(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.buy(who)
    again = office.card_payment(who, invoice_id)
    row = office.execute(office.confirmation(who, invoice_id, again))
    assert row.problem["code"] == "invoice_not_open"
    reasons = office.rows("SELECT status, unapplied_reason FROM payments ORDER BY id")
    assert [tuple(row) for row in reasons] == [("succeeded", None), ("succeeded", "invoice_not_open")]


def test_a_void_invoice_is_not_settled(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who, "starter")
    office.open_invoice(who, "growth")
    payment = office.card_payment(who, invoice_id)
    row = office.execute(office.confirmation(who, invoice_id, payment))
    assert row.problem["code"] == "invoice_not_open"


def test_an_intent_is_noted_once_however_often_the_provider_is_asked(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    operation_id = office.confirmation(who, invoice_id, "later")
    for _ in range(2):
        with office.database.transaction() as tx:
            request = ConfirmPayment(invoice_id=invoice_id, provider=PaymentMethod.SANDBOX, external_payment_id="later")
            operation = operations.begin_attempt(tx.maybe, operation_id)
            assert operation is not None
            record_intent(tx, operation, request, office.rules())
    assert [tuple(row) for row in office.rows(PAYMENTS)] == [("sandbox", "later", "pending", None, None)]


# --- by an admin's word -------------------------------------------------------------------------------


def test_an_admin_records_money_and_the_audit_log_says_why(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    row = office.record_payment(who, invoice_id)
    assert row.status == "succeeded"
    assert office.row(INVOICE, id=invoice_id).status == "paid"
    assert [tuple(row) for row in office.rows(PAYMENTS)] == [("manual", "cash-1", "succeeded", None, 89_00)]
    noted = office.row("SELECT * FROM audit_log WHERE action = 'payment.recorded'")
    assert (noted.actor_kind, noted.actor_id, noted.reason) == ("admin", office.admin_id, "paid in cash")
    before = office.dump()
    office.execute(row.id)
    assert office.dump() == before


WRONG_MONEY: Table = {
    "of another amount": ({"amount_minor": 1}, "payment_mismatch"),
    "of another currency": ({"currency": "EUR"}, "payment_mismatch"),
}


@pytest.mark.parametrize(("terms", "code"), cases(WRONG_MONEY))
def test_an_admin_does_not_record_money(office: Office, terms: dict[str, Any], code: str) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    before = office.dump("operations")
    assert office.record_payment(who, invoice_id, **terms).problem["code"] == code
    assert office.dump("operations") == before


def test_an_admin_records_money_once(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    office.record_payment(who, invoice_id)
    assert office.record_payment(who, invoice_id).problem["code"] == "invoice_not_open"
    next_invoice_id = office.open_invoice(who)
    assert office.record_payment(who, next_invoice_id).problem["code"] == "payment_already_used"
