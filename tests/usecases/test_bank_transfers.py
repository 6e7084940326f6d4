"""Bank transfers: submitted by a customer, decided by an admin, once."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from shared.domain.operation import OperationKind
from shared.domain.requests import SubmitBankTransfer
from tests.factories import Table, cases, on
from tests.office import Customer, Office

TRANSFER = "SELECT * FROM bank_transfers"


@pytest.fixture
def who(office: Office) -> Customer:
    return office.sign_up()


@pytest.fixture
def invoice_id(office: Office, who: Customer) -> UUID:
    return office.open_invoice(who)


@pytest.fixture
def transfer_id(office: Office, who: Customer, invoice_id: UUID) -> UUID:
    return office.submit(who, invoice_id)


def submission(office: Office, who: Customer, invoice_id: UUID) -> Any:
    request = SubmitBankTransfer(invoice_id=invoice_id)
    return office.ask(OperationKind.SUBMIT_BANK_TRANSFER, request, account_id=who.account_id, by=who.user_id)


# --- submit -----------------------------------------------------------------------------------------


def test_a_submitted_transfer_waits_and_defers_the_end_of_the_trial(
    office: Office, who: Customer, transfer_id: UUID
) -> None:
    transfer = office.row(TRANSFER)
    assert (transfer.id, transfer.status, transfer.submitted_by) == (transfer_id, "pending", who.user_id)
    assert transfer.submitted_at == on("2026-01-10")
    account = office.row("SELECT status, access_ends_at FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert tuple(account) == ("trial", on("2026-02-03"))


def test_submitted_twice_it_is_refused_and_nothing_is_written(
    office: Office, who: Customer, invoice_id: UUID, transfer_id: UUID
) -> None:
    before = office.dump("operations")
    assert submission(office, who, invoice_id).problem["code"] == "transfer_pending"
    assert office.dump("operations") == before


def test_after_a_rejection_it_may_be_submitted_again(
    office: Office, who: Customer, invoice_id: UUID, transfer_id: UUID
) -> None:
    office.execute(office.rejection(who, transfer_id))
    assert submission(office, who, invoice_id).status == "succeeded"


def test_a_transfer_for_what_is_paid_is_refused(office: Office, who: Customer) -> None:
    assert submission(office, who, office.buy(who)).problem["code"] == "invoice_not_open"


def test_a_transfer_for_another_accounts_invoice_is_refused(office: Office, invoice_id: UUID) -> None:
    assert submission(office, office.sign_up(), invoice_id).problem["code"] == "invoice_not_open"
    assert office.rows(TRANSFER) == []


def test_a_submission_needs_a_user(office: Office, who: Customer, invoice_id: UUID) -> None:
    request = SubmitBankTransfer(invoice_id=invoice_id)
    row = office.ask(OperationKind.SUBMIT_BANK_TRANSFER, request, account_id=who.account_id)
    assert row.problem["code"] == "forbidden"


# --- approve ------------------------------------------------------------------------------------------


def test_an_approval_settles_and_says_what_came(
    office: Office, who: Customer, invoice_id: UUID, transfer_id: UUID
) -> None:
    office.now = on("2026-01-14")
    row = office.execute(office.approval(who, transfer_id, bank_transaction_id="T1"))
    assert row.status == "succeeded"
    transfer = office.row(TRANSFER)
    assert (transfer.status, transfer.decided_by, transfer.decided_at) == (
        "approved",
        office.admin_id,
        on("2026-01-14"),
    )
    assert (transfer.received_amount_minor, transfer.bank_transaction_id) == (89_00, "T1")
    invoice = office.row("SELECT status, paid_at FROM invoices")
    assert tuple(invoice) == ("paid", on("2026-01-14"))
    payment = office.row("SELECT * FROM payments")
    assert (payment.id, payment.provider, payment.external_payment_id) == (transfer.payment_id, "bank_transfer", "T1")
    account = office.row("SELECT * FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert (account.status, account.payment_method) == ("active", "bank_transfer")
    noted = office.row("SELECT * FROM audit_log WHERE action = 'bank_transfer.approved'")
    assert (noted.subject_id, noted.actor_id, noted.reason) == (transfer_id, office.admin_id, None)
    before = office.dump()
    office.execute(row.id)
    assert office.dump() == before


OTHER_MONEY: dict[str, dict[str, Any]] = {
    "too little": {"amount_minor": 88_00},
    "too much": {"amount_minor": 90_00},
    "another currency": {"currency": "EUR"},
}


@pytest.mark.parametrize("terms", OTHER_MONEY.values(), ids=OTHER_MONEY)
def test_other_money_is_refused(office: Office, who: Customer, transfer_id: UUID, terms: dict[str, Any]) -> None:
    before = office.dump("operations")
    row = office.execute(office.approval(who, transfer_id, **terms))
    assert row.problem["code"] == "payment_mismatch"
    assert office.dump("operations") == before


@pytest.mark.parametrize("terms", OTHER_MONEY.values(), ids=OTHER_MONEY)
def test_unless_the_admin_says_why_which_is_kept(
    office: Office, who: Customer, transfer_id: UUID, terms: dict[str, Any]
) -> None:
    row = office.execute(office.approval(who, transfer_id, override_reason="fees", **terms))
    assert row.status == "succeeded"
    assert office.row("SELECT override_reason FROM bank_transfers").override_reason == "fees"
    noted = office.row("SELECT reason, after FROM audit_log WHERE action = 'bank_transfer.approved'")
    assert noted.reason == "fees"
    assert {"amount_minor": 89_00, "currency": "USD"} | terms == {
        name: noted.after[name] for name in ("amount_minor", "currency")
    }


def test_a_bank_transaction_settles_one_invoice(office: Office, who: Customer, transfer_id: UUID) -> None:
    office.execute(office.approval(who, transfer_id, bank_transaction_id="T1"))
    other = office.sign_up()
    others = office.submit(other, office.open_invoice(other))
    before = office.dump("operations")
    row = office.execute(office.approval(other, others, bank_transaction_id="T1"))
    assert row.problem["code"] == "payment_already_used"
    assert office.dump("operations") == before


def test_an_invoice_that_was_paid_by_card_meanwhile_is_not_settled_again(
    office: Office, who: Customer, invoice_id: UUID, transfer_id: UUID
) -> None:
    office.pay(who, invoice_id)
    row = office.execute(office.approval(who, transfer_id))
    assert row.problem["code"] == "invoice_not_open"
    assert office.execute(office.rejection(who, transfer_id)).status == "succeeded"


def test_and_the_transfer_that_is_still_undecided_defers_nothing(office: Office, who: Customer) -> None:
    office.buy(who)
    next_invoice_id = office.open_invoice(who)
    office.submit(who, next_invoice_id)
    office.pay(who, next_invoice_id)
    office.now = on("2026-01-12")
    office.adjust(who, 5)
    account = office.row("SELECT access_ends_at FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert account.access_ends_at == on("2026-03-17")
    assert office.row("SELECT status FROM bank_transfers").status == "pending"


# --- reject -------------------------------------------------------------------------------------------


def test_a_rejection_states_its_reason_and_the_invoice_stays_open(
    office: Office, who: Customer, transfer_id: UUID
) -> None:
    row = office.execute(office.rejection(who, transfer_id))
    transfer = office.row(TRANSFER)
    assert (transfer.status, transfer.rejection_reason) == ("rejected", "nothing came")
    assert office.row("SELECT status FROM invoices").status == "open"
    noted = office.row("SELECT reason FROM audit_log WHERE action = 'bank_transfer.rejected'")
    assert noted.reason == "nothing came"
    before = office.dump()
    office.execute(row.id)
    assert office.dump() == before


def test_a_rejection_after_the_trial_suspends_at_once(office: Office, who: Customer, transfer_id: UUID) -> None:
    office.tick(on("2026-01-28"))
    office.execute(office.rejection(who, transfer_id))
    account = office.row("SELECT status, status_reason FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert tuple(account) == ("suspended", "trial_expired")
    assert office.row("SELECT ends_at FROM subscription_periods").ends_at == on("2026-01-28")


# --- one decision ---------------------------------------------------------------------------------------

Decision = Callable[[Office, Customer, UUID], UUID]

ORDERS: Table = {
    "approved, then rejected": (Office.approval, Office.rejection, "already_approved"),
    "approved, then approved": (Office.approval, Office.approval, "already_approved"),
    "rejected, then approved": (Office.rejection, Office.approval, "already_rejected"),
    "rejected, then rejected": (Office.rejection, Office.rejection, "already_rejected"),
}


@pytest.mark.parametrize(("first", "second", "code"), cases(ORDERS))
def test_the_first_decision_stands(
    office: Office, who: Customer, transfer_id: UUID, first: Decision, second: Decision, code: str
) -> None:
    office.execute(first(office, who, transfer_id))
    before = office.dump("operations")
    row = office.execute(second(office, who, transfer_id))
    assert (row.status, row.problem["code"]) == ("failed", code)
    assert office.dump("operations") == before


@pytest.mark.parametrize("decide", [Office.approval, Office.rejection], ids=["approval", "rejection"])
def test_a_transfer_that_does_not_exist_is_not_decided(office: Office, who: Customer, decide: Decision) -> None:
    row = office.execute(decide(office, who, UUID(int=9)))
    assert (row.status, row.problem["code"]) == ("failed", "not_found")


@pytest.mark.parametrize("decide", [Office.approval, Office.rejection], ids=["approval", "rejection"])
def test_a_transfer_is_decided_under_its_own_account_alone(office: Office, transfer_id: UUID, decide: Decision) -> None:
    row = office.execute(decide(office, office.sign_up(), transfer_id))
    assert (row.status, row.problem["code"]) == ("failed", "not_found")
    assert office.row(TRANSFER).status == "pending"
