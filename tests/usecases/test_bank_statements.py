"""Bank statements: every entry once, a payment for all money that came, and what fits exactly settles by itself."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row

from shared.clock import monotonic
from shared.db import unapplied
from shared.domain.invoice import creditor_reference
from shared.domain.matching import Reason, suggestions
from shared.domain.statement import BankEntry, StatementFormat
from tests.factories import cases, on
from tests.office import Customer, Office
from tests.statements.samples import IBAN, camt053, csv_table, entry, mt940

UNUSED = creditor_reference(2026, 900)


@pytest.fixture
def who(office: Office) -> Customer:
    return office.sign_up()


@pytest.fixture
def invoice_id(office: Office, who: Customer) -> UUID:
    return office.open_invoice(who)


def reference_of(office: Office, invoice_id: UUID) -> str:
    return str(office.row("SELECT reference FROM invoices WHERE id = %(id)s", id=invoice_id).reference)


def paid(remittance: str, **facts: Any) -> BankEntry:
    """A payment of 89 dollars."""
    return entry(**({"currency": "USD", "remittance": remittance, "transaction_id": "T1"} | facts))


def file_of(*entries: BankEntry) -> bytes:
    return camt053(entries, currency=entries[0].currency, iban=entries[0].iban)


def imported(office: Office, *entries: BankEntry) -> dict[str, Any]:
    """The counts of a file that was imported."""
    row = office.execute(office.statement(file_of(*entries)))
    assert row.status == "succeeded", row.problem
    counts: dict[str, Any] = row.result
    return counts


def the_payment(office: Office) -> Row[Any]:
    return office.row("SELECT * FROM payments")


def refused(row: Row[Any], code: str) -> bool:
    return (row.status, row.problem["code"]) == ("failed", code)


# --- what settles by itself, and what does not --------------------------------------------------------


def test_an_exact_reference_settles(office: Office, who: Customer, invoice_id: UUID) -> None:
    office.now = on("2026-01-14")
    told = paid(f"Thank you, {reference_of(office, invoice_id)}")
    counts = imported(office, told, paid("Account fee", amount_minor=-4_50, transaction_id="T2"))
    assert {name: counts[name] for name in counts if name != "statement_id"} == {
        "entries": 2,
        "new": 2,
        "duplicates": 0,
        "money_in": 1,
        "money_out": 1,
        "settling": 1,
        "unapplied": 0,
    }
    payment = the_payment(office)
    assert (payment.account_id, payment.invoice_id) == (who.account_id, invoice_id)
    assert (payment.status, payment.unapplied_reason, payment.confirmed_at) == ("succeeded", "matched", office.now)
    assert office.findings() == [], "nor do the books break while it is on its way"

    (applied,) = office.do_what_was_scheduled()
    assert (applied.status, applied.account_id) == ("succeeded", who.account_id)
    payment = the_payment(office)
    assert (payment.unapplied_reason, payment.applied_at, payment.external_payment_id) == (None, office.now, "T1")
    assert tuple(office.row("SELECT status, paid_at FROM invoices")) == ("paid", office.now)
    account = office.row("SELECT status, payment_method FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert tuple(account) == ("active", "bank_transfer")
    actors = office.rows("SELECT action, actor_kind, actor_id FROM audit_log WHERE action <> 'account.signed_up'")
    assert [tuple(row) for row in actors] == [
        ("bank_statement.imported", "admin", office.admin_id),
        ("payment.applied", "system", None),
    ]


Told = Callable[[str], BankEntry]

UNAPPLIED: dict[str, tuple[Told, str, bool]] = {
    "a cent too little": (lambda ref: paid(ref, amount_minor=88_99), "payment_mismatch", True),
    "a cent too much": (lambda ref: paid(ref, amount_minor=89_01), "payment_mismatch", True),
    "another currency": (lambda ref: paid(ref, currency="EUR"), "payment_mismatch", True),
    "a typing error": (lambda ref: paid(ref[:-1] + str((int(ref[-1]) + 1) % 10)), "unmatched", False),
    "the name alone": (lambda ref: paid("thank you", payer_name="Ada"), "unmatched", False),
    "no text at all": (lambda ref: paid("", payer_name=None, payer_iban=None), "unmatched", False),
    "a reference of no invoice": (lambda ref: paid(UNUSED), "unmatched", False),
    "another reference beside it": (lambda ref: paid(f"{ref} {UNUSED}"), "ambiguous", True),
    "money of ours that came back": (lambda ref: paid(ref, returned=True), "returned", True),
}


@pytest.mark.parametrize(("told", "reason", "meant"), cases(UNAPPLIED))
def test_whatever_does_not_fit_waits_for_an_admin(
    office: Office, who: Customer, invoice_id: UUID, told: Told, reason: str, meant: bool
) -> None:
    counts = imported(office, told(reference_of(office, invoice_id)))
    assert (counts["settling"], counts["unapplied"]) == (0, 1)
    assert office.do_what_was_scheduled() == []
    payment = the_payment(office)
    assert (payment.unapplied_reason, payment.applied_at) == (reason, None)
    assert (payment.account_id, payment.invoice_id) == ((who.account_id, invoice_id) if meant else (None, None))
    assert office.row("SELECT status FROM invoices").status == "open"
    events = office.rows("SELECT account_id, data FROM events WHERE kind = 'payment.unapplied'")
    assert [(row.account_id, row.data["reason"]) for row in events] == ([(who.account_id, reason)] if meant else [])


def test_two_references_of_ours_settle_neither(office: Office, who: Customer, invoice_id: UUID) -> None:
    other_id = office.open_invoice(office.sign_up())
    imported(office, paid(f"{reference_of(office, invoice_id)} {reference_of(office, other_id)}"))
    payment = the_payment(office)
    assert (payment.unapplied_reason, payment.account_id, payment.invoice_id) == ("ambiguous", None, None)


def test_what_is_paid_is_not_paid_again(office: Office, who: Customer, invoice_id: UUID) -> None:
    office.pay(who, invoice_id)
    imported(office, paid(reference_of(office, invoice_id)))
    (payment,) = office.rows("SELECT * FROM payments WHERE provider = 'bank_transfer'")
    assert (payment.unapplied_reason, payment.invoice_id) == ("invoice_not_open", invoice_id)


def test_what_is_void_is_not_paid(office: Office, who: Customer, invoice_id: UUID) -> None:
    office.open_invoice(who, "growth")
    imported(office, paid(reference_of(office, invoice_id)))
    assert the_payment(office).unapplied_reason == "invoice_not_open"
    assert office.do_what_was_scheduled() == []


def test_money_that_goes_out_pays_nothing(office: Office, invoice_id: UUID) -> None:
    reference = reference_of(office, invoice_id)
    counts = imported(
        office,
        paid(reference, amount_minor=-89_00),
        paid(reference, amount_minor=-1, transaction_id="T2", returned=True),
    )
    assert (counts["money_in"], counts["money_out"], counts["settling"]) == (0, 2, 0)
    assert office.rows("SELECT FROM payments") == []
    assert [row.amount_minor for row in office.rows("SELECT amount_minor FROM bank_entries ORDER BY id")] == [-8900, -1]


def test_where_nothing_settles_by_itself_an_admin_does_it(office: Office, who: Customer, invoice_id: UUID) -> None:
    office.settings = office.settings.model_copy(update={"statement_auto_settle": False})
    counts = imported(office, paid(reference_of(office, invoice_id)))
    assert (counts["settling"], counts["unapplied"]) == (0, 1)
    assert office.do_what_was_scheduled() == []
    payment = the_payment(office)
    assert payment.unapplied_reason == "matched"
    assert office.execute(office.application(who, payment.id, invoice_id)).status == "succeeded"
    assert office.row("SELECT status FROM invoices").status == "paid"


@pytest.mark.parametrize("form", list(StatementFormat))
def test_each_format_settles(office: Office, invoice_id: UUID, form: StatementFormat) -> None:
    told = [paid(reference_of(office, invoice_id))]
    content = {
        StatementFormat.CAMT053: lambda: camt053(told, currency="USD"),
        StatementFormat.MT940: lambda: mt940(told, currency="USD"),
        StatementFormat.CSV: lambda: csv_table(told),
    }[form]()
    assert office.execute(office.statement(content, form)).result["settling"] == 1
    assert [row.status for row in office.do_what_was_scheduled()] == ["succeeded"]


# --- once ---------------------------------------------------------------------------------------------


def without_traces(office: Office) -> Any:
    """All but what an import leaves of itself."""
    return office.dump("operations", "bank_statements", "audit_log")


def test_the_same_file_again_changes_nothing(office: Office, invoice_id: UUID) -> None:
    entries = [paid(reference_of(office, invoice_id)), paid("?", transaction_id=None), paid("?", transaction_id=None)]
    imported(office, *entries)
    office.do_what_was_scheduled()
    before = without_traces(office)
    counts = imported(office, *entries)
    assert (counts["entries"], counts["new"], counts["duplicates"]) == (3, 0, 3)
    assert (counts["money_in"], counts["settling"], counts["unapplied"]) == (3, 0, 0)
    assert office.do_what_was_scheduled() == []
    assert without_traces(office) == before


def test_an_import_that_is_delivered_twice_happens_once(office: Office, invoice_id: UUID) -> None:
    operation_id = office.statement(file_of(paid(reference_of(office, invoice_id))))
    office.execute(operation_id)
    before = office.dump()
    office.execute(operation_id)
    assert office.dump() == before


def test_a_file_that_overlaps_brings_what_is_new(office: Office, invoice_id: UUID) -> None:
    monday, tuesday = paid("?", transaction_id="A"), paid("?", transaction_id="B", booked_on=date(2025, 3, 4))
    imported(office, monday, tuesday)
    counts = imported(office, tuesday, paid(reference_of(office, invoice_id), transaction_id="C"))
    assert (counts["new"], counts["duplicates"], counts["settling"]) == (1, 1, 1)
    assert len(office.rows("SELECT FROM bank_entries")) == len(office.rows("SELECT FROM payments")) == 3
    assert [row.status for row in office.do_what_was_scheduled()] == ["succeeded"]


def test_two_equal_payments_of_a_day_are_two(office: Office, who: Customer, invoice_id: UUID) -> None:
    twice = paid(reference_of(office, invoice_id), transaction_id=None)
    assert imported(office, twice, twice)["settling"] == 2
    outcomes = {row.status for row in office.do_what_was_scheduled()}
    assert outcomes == {"succeeded", "failed"}
    payments = office.rows("SELECT * FROM payments ORDER BY applied_at NULLS LAST")
    assert [payment.unapplied_reason for payment in payments] == [None, "invoice_not_open"]
    assert {payment.invoice_id for payment in payments} == {invoice_id}
    (event,) = office.rows("SELECT * FROM events WHERE kind = 'payment.unapplied'")
    assert (event.subject_id, event.data["reason"]) == (payments[1].id, "invoice_not_open")


def test_twenty_thousand_entries_take_seconds(office: Office, who: Customer, invoice_id: UUID) -> None:
    entries = [paid(f"payment {number}", transaction_id=f"T{number}") for number in range(20_000)]
    entries[10_000] = paid(reference_of(office, invoice_id), transaction_id="T10000")
    operation_id = office.statement(csv_table(entries), StatementFormat.CSV)
    started = monotonic()
    counts = office.execute(operation_id).result
    assert monotonic() - started < 15, "a statement for each entry would take a minute"
    assert (counts["new"], counts["settling"], counts["unapplied"]) == (20_000, 1, 19_999)


# --- an admin was faster ------------------------------------------------------------------------------


def test_money_that_an_admin_approved_before_is_linked(office: Office, who: Customer, invoice_id: UUID) -> None:
    office.execute(office.approval(who, office.submit(who, invoice_id), bank_transaction_id="T1"))
    before = office.row("SELECT to_jsonb(p) - 'bank_entry_id' AS facts FROM payments p").facts
    counts = imported(office, paid(reference_of(office, invoice_id)))
    assert (counts["new"], counts["settling"], counts["unapplied"]) == (1, 0, 0)
    after = office.row("SELECT bank_entry_id, to_jsonb(p) - 'bank_entry_id' AS facts FROM payments p")
    assert after.bank_entry_id == office.row("SELECT id FROM bank_entries").id
    assert after.facts == before


def test_a_transfer_that_waits_is_decided_with_the_money(office: Office, who: Customer, invoice_id: UUID) -> None:
    transfer_id = office.submit(who, invoice_id)
    office.now = on("2026-01-12")
    imported(office, paid(reference_of(office, invoice_id), booked_on=date(2026, 1, 11)))
    (applied,) = office.do_what_was_scheduled()
    assert applied.result["bank_transfer_id"] == str(transfer_id)
    transfer = office.row("SELECT * FROM bank_transfers")
    assert (transfer.status, transfer.decided_by, transfer.decided_at) == ("approved", office.admin_id, office.now)
    assert (transfer.received_amount_minor, transfer.received_currency) == (89_00, "USD")
    assert (transfer.value_on, transfer.bank_transaction_id) == (date(2026, 1, 11), "T1")
    assert transfer.payment_id == the_payment(office).id
    noted = office.row("SELECT * FROM audit_log WHERE action = 'bank_transfer.approved'")
    assert (noted.actor_kind, noted.subject_id) == ("system", transfer_id)
    assert len(office.rows("SELECT FROM events WHERE kind = 'bank_transfer.approved'")) == 1
    assert refused(office.execute(office.rejection(who, transfer_id)), "already_approved")


def test_a_transfer_that_was_rejected_stays_so(office: Office, who: Customer, invoice_id: UUID) -> None:
    office.execute(office.rejection(who, office.submit(who, invoice_id)))
    imported(office, paid(reference_of(office, invoice_id)))
    assert [row.status for row in office.do_what_was_scheduled()] == ["succeeded"]
    assert office.row("SELECT status FROM bank_transfers").status == "rejected"


def test_an_approval_takes_the_money_that_a_statement_brought(office: Office, who: Customer, invoice_id: UUID) -> None:
    transfer_id = office.submit(who, invoice_id)
    imported(office, paid("no reference"))
    assert refused(office.execute(office.approval(who, transfer_id, bank_transaction_id="T1", amount_minor=1)),
                   "payment_mismatch")  # fmt: skip
    row = office.execute(office.approval(who, transfer_id, bank_transaction_id="T1"))
    assert row.status == "succeeded"
    payment = the_payment(office)
    assert (str(payment.id), payment.unapplied_reason) == (row.result["payment_id"], None)
    assert (payment.account_id, payment.invoice_id) == (who.account_id, invoice_id)


# --- refused whole ------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[bytes], str]] = {
    "another account's entry": (
        [file_of(paid("?")).replace(IBAN.encode(), b"GB33BUKB20201555555555")],
        "SELLER_IBAN",
    ),
    "our account's and another's": (
        [csv_table([paid("?"), paid("?", iban="GB33BUKB20201555555555", transaction_id="T2")])],
        "SELLER_IBAN",
    ),
    "an id used again, over another amount": ([file_of(paid("?")), file_of(paid("?", amount_minor=1))], "'T1' came"),
    "an id used again, in another currency": ([file_of(paid("?")), file_of(paid("?", currency="EUR"))], "'T1' came"),
    "an id used again, on another day": (
        [file_of(paid("?")), file_of(paid("?", booked_on=date(2025, 3, 4)))],
        "'T1' came",
    ),
    "a file that ends early": ([file_of(paid("?"))[:-40]], ""),
    "nothing that is a statement": ([b"hello"], ""),
}


@pytest.mark.parametrize(("files", "why"), cases(REFUSED))
def test_a_file_that_is_refused_imports_nothing(office: Office, files: list[bytes], why: str) -> None:
    *first, last = files
    for content in first:
        assert office.execute(office.statement(content, form_of(content))).status == "succeeded"
    operation_id = office.statement(last, form_of(last))
    before = office.dump("operations")
    row = office.execute(operation_id)
    assert refused(row, "invalid_statement")
    assert why in row.problem["detail"]
    assert office.dump("operations") == before


def form_of(content: bytes) -> StatementFormat:
    return StatementFormat.CSV if content.startswith(b"iban") else StatementFormat.CAMT053


def test_one_entry_that_is_wrong_keeps_the_others_out(office: Office) -> None:
    imported(office, paid("?"))
    row = office.execute(office.statement(file_of(paid("?", transaction_id="T0"), paid("?", amount_minor=1))))
    assert refused(row, "invalid_statement")
    assert len(office.rows("SELECT FROM bank_entries")) == 1


def test_an_id_that_another_account_of_ours_has_used_makes_a_payment_of_its_own(
    office: Office, invoice_id: UUID
) -> None:
    imported(office, paid("?"))
    moved = "GB33BUKB20201555555555"
    office.settings = office.settings.model_copy(update={"seller_iban": f"{moved[:4]} {moved[4:].lower()}"})
    told = paid(reference_of(office, invoice_id), iban=moved)
    assert imported(office, told)["settling"] == 1
    assert [row.status for row in office.do_what_was_scheduled()] == ["succeeded"]
    ids = office.rows("SELECT external_payment_id FROM payments ORDER BY id")
    assert [row.external_payment_id for row in ids] == ["T1", f"{moved}:id:T1"]


# --- apply --------------------------------------------------------------------------------------------


@pytest.fixture
def payment_id(office: Office, invoice_id: UUID) -> UUID:
    """89 dollars that nobody knows what to do with."""
    imported(office, paid("?"))
    unapplied_id: UUID = the_payment(office).id
    return unapplied_id


def test_an_admin_applies_money_that_names_nothing(
    office: Office, who: Customer, invoice_id: UUID, payment_id: UUID
) -> None:
    office.now = on("2026-01-20")
    row = office.execute(office.application(who, payment_id, invoice_id))
    assert row.status == "succeeded"
    payment = the_payment(office)
    assert (payment.account_id, payment.invoice_id, payment.applied_at) == (who.account_id, invoice_id, office.now)
    noted = office.row("SELECT * FROM audit_log WHERE action = 'payment.applied'")
    assert (noted.actor_id, noted.subject_id, noted.account_id) == (office.admin_id, payment_id, who.account_id)
    assert noted.before == {"unapplied_reason": "unmatched", "invoice_id": None}
    before = office.dump()
    office.execute(row.id)
    assert office.dump() == before


def test_what_is_applied_is_not_applied_again(
    office: Office, who: Customer, invoice_id: UUID, payment_id: UUID
) -> None:
    office.execute(office.application(who, payment_id, invoice_id))
    other = office.sign_up()
    other_id = office.open_invoice(other)
    before = office.dump("operations")
    assert refused(office.execute(office.application(other, payment_id, other_id)), "payment_not_unapplied")
    assert office.dump("operations") == before


def test_what_went_back_in_part_is_not_applied(
    office: Office, who: Customer, invoice_id: UUID, payment_id: UUID
) -> None:
    office.change("UPDATE payments SET refunded_minor = 1")
    assert refused(office.execute(office.application(who, payment_id, invoice_id)), "payment_not_unapplied")
    office.change("UPDATE payments SET refunded_minor = 0")


def test_another_amount_is_applied_for_a_reason_alone(office: Office, who: Customer, invoice_id: UUID) -> None:
    transfer_id = office.submit(who, invoice_id)
    imported(office, paid(reference_of(office, invoice_id), amount_minor=88_00))
    payment = the_payment(office)
    assert refused(office.execute(office.application(who, payment.id, invoice_id)), "payment_mismatch")
    assert the_payment(office) == payment
    assert office.execute(office.application(who, payment.id, invoice_id, "a fee")).status == "succeeded"
    assert the_payment(office).override_reason == "a fee"
    transfer = office.row("SELECT * FROM bank_transfers")
    assert (transfer.id, transfer.status, transfer.override_reason) == (transfer_id, "approved", "a fee")
    assert transfer.received_amount_minor == 88_00


def test_an_invoice_that_is_void_by_then_is_not_settled(office: Office, who: Customer, invoice_id: UUID) -> None:
    imported(office, paid(reference_of(office, invoice_id)))
    office.open_invoice(who, "growth")
    (row,) = office.do_what_was_scheduled()
    assert refused(row, "invoice_not_open")
    payment = the_payment(office)
    assert (payment.unapplied_reason, payment.applied_at) == ("invoice_not_open", None)


def test_and_the_money_may_be_for_another_one(office: Office, who: Customer, invoice_id: UUID) -> None:
    office.open_invoice(who, "growth")
    imported(office, paid(reference_of(office, invoice_id)))
    other = office.sign_up()
    other_id = office.open_invoice(other)
    assert office.execute(office.application(other, the_payment(office).id, other_id)).status == "succeeded"
    assert the_payment(office).account_id == other.account_id


def test_an_invoice_that_it_was_not_meant_for_changes_no_reason(
    office: Office, who: Customer, payment_id: UUID
) -> None:
    office.open_invoice(who, "growth")
    void_id = office.row("SELECT id FROM invoices WHERE status = 'void'").id
    assert refused(office.execute(office.application(who, payment_id, void_id)), "invoice_not_open")
    assert the_payment(office).unapplied_reason == "unmatched"


def test_another_accounts_invoice_is_none(office: Office, invoice_id: UUID, payment_id: UUID) -> None:
    row = office.execute(office.application(office.sign_up(), payment_id, invoice_id))
    assert refused(row, "invoice_not_open")


def test_a_payment_that_does_not_exist_is_not_applied(office: Office, who: Customer, invoice_id: UUID) -> None:
    assert refused(office.execute(office.application(who, UUID(int=9), invoice_id)), "not_found")


def test_money_that_came_by_card_too_late_is_applied_and_decides_no_transfer(
    office: Office, who: Customer, invoice_id: UUID
) -> None:
    office.open_invoice(who, "growth")
    void_id = office.row("SELECT id FROM invoices WHERE status = 'void'").id
    office.execute(office.confirmation(who, void_id, office.card_payment(who, void_id)))
    other = office.sign_up()
    other_id = office.open_invoice(other)
    office.submit(other, other_id)
    assert office.execute(office.application(other, the_payment(office).id, other_id)).status == "succeeded"
    transfer = office.row("SELECT id, status FROM bank_transfers")
    assert transfer.status == "pending", "no such transfer came"
    office.execute(office.rejection(other, transfer.id))


def test_money_of_an_approval_that_came_too_late_is_applied_later(
    office: Office, who: Customer, invoice_id: UUID
) -> None:
    transfer_id = office.submit(who, invoice_id)
    office.pay(who, invoice_id)
    assert refused(office.execute(office.approval(who, transfer_id)), "invoice_not_open")
    payment = office.row("SELECT * FROM payments WHERE provider = 'bank_transfer'")
    next_id = office.open_invoice(who)
    next_transfer_id = office.submit(who, next_id)
    row = office.execute(office.application(who, payment.id, next_id))
    assert row.result["bank_transfer_id"] == str(next_transfer_id)
    decided = office.row("SELECT * FROM bank_transfers WHERE id = %(id)s", id=next_transfer_id)
    assert (decided.value_on, decided.decided_by) == (office.now.date(), office.admin_id)


# --- at once ------------------------------------------------------------------------------------------


def at_once(office: Office, *operation_ids: UUID) -> list[str]:
    """How each ended, executed at the same moment over connections of their own."""
    with ThreadPoolExecutor(len(operation_ids)) as threads:
        return [row.status for row in threads.map(office.execute, operation_ids)]


@pytest.mark.parametrize("attempt", range(4))
def test_one_payment_for_two_invoices_at_once_settles_one(
    office: Office, who: Customer, invoice_id: UUID, payment_id: UUID, attempt: int
) -> None:
    other = office.sign_up()
    other_id = office.open_invoice(other)
    applications = [office.application(who, payment_id, invoice_id), office.application(other, payment_id, other_id)]
    assert sorted(at_once(office, *applications)) == ["failed", "succeeded"]
    assert len(office.rows("SELECT FROM invoices WHERE status = 'paid'")) == 1


@pytest.mark.parametrize("attempt", range(4))
def test_two_payments_for_one_invoice_at_once_settle_it_once(
    office: Office, who: Customer, invoice_id: UUID, attempt: int
) -> None:
    imported(office, paid("?"), paid("?", transaction_id="T2"))
    payments = office.rows("SELECT id FROM payments")
    applications = [office.application(who, payment.id, invoice_id) for payment in payments]
    assert sorted(at_once(office, *applications)) == ["failed", "succeeded"]
    assert len(office.rows("SELECT FROM payments WHERE applied_at IS NOT NULL")) == 1


@pytest.mark.parametrize("attempt", range(4))
def test_an_approval_and_an_application_of_one_payment_settle_once(
    office: Office, who: Customer, invoice_id: UUID, payment_id: UUID, attempt: int
) -> None:
    transfer_id = office.submit(who, invoice_id)
    other = office.sign_up()
    operations = [
        office.approval(who, transfer_id, bank_transaction_id="T1"),
        office.application(other, payment_id, office.open_invoice(other)),
    ]
    assert sorted(at_once(office, *operations)) == ["failed", "succeeded"]


@pytest.mark.parametrize("attempt", range(4))
def test_an_approval_and_the_import_of_its_money_are_one_payment(
    office: Office, who: Customer, invoice_id: UUID, attempt: int
) -> None:
    approval = office.approval(who, office.submit(who, invoice_id), bank_transaction_id="T1")
    approved, brought = at_once(office, approval, office.statement(file_of(paid("?"))))
    payment = the_payment(office)
    assert (brought, payment.bank_entry_id) == ("succeeded", office.row("SELECT id FROM bank_entries").id)
    assert (payment.applied_at is not None) == (approved == "succeeded")


@pytest.mark.parametrize("attempt", range(4))
def test_one_file_twice_at_once_comes_in_once(office: Office, invoice_id: UUID, attempt: int) -> None:
    entries = [paid("?", transaction_id=f"T{number}") for number in range(50)]
    files = [file_of(*entries), file_of(*reversed(entries))]
    assert at_once(office, *(office.statement(content) for content in files)) == ["succeeded"] * 2
    assert len(office.rows("SELECT FROM bank_entries")) == len(office.rows("SELECT FROM payments")) == 50


# --- what it may be for -------------------------------------------------------------------------------


def suggested(office: Office) -> list[list[tuple[UUID, tuple[Reason, ...]]]]:
    """For each unapplied payment, oldest first, the invoices that are suggested, and why."""
    with office.database.transaction() as tx:
        rows = unapplied.page(tx, before=None, after=UUID(int=0), limit=100)
        entries = [told for row in rows if (told := unapplied.entry_of(row)) is not None]
        return [
            [(each.invoice_id, each.reasons) for each in suggestions(told, candidates)]
            for told, candidates in zip(entries, unapplied.candidates(tx, entries), strict=True)
        ]


def test_suggestions_are_found_by_reference_by_typing_error_and_by_name(
    office: Office, who: Customer, invoice_id: UUID
) -> None:
    reference = reference_of(office, invoice_id)
    imported(
        office,
        paid(reference, amount_minor=88_00, transaction_id="amount"),
        paid(reference[:-1] + str((int(reference[-1]) + 1) % 10), payer_name="X", transaction_id="typing error"),
        paid("hello", payer_name="ADA", transaction_id="name"),
        paid("hello", payer_name="Charles Babbage", transaction_id="nothing"),
    )
    assert suggested(office) == [
        [(invoice_id, (Reason.REFERENCE, Reason.OTHER_AMOUNT))],
        [(invoice_id, (Reason.SIMILAR_REFERENCE, Reason.AMOUNT))],
        [(invoice_id, (Reason.AMOUNT, Reason.PAYER_NAME))],
        [],
    ]


def test_the_name_on_a_submitted_transfer_is_known(office: Office, who: Customer, invoice_id: UUID) -> None:
    transfer_id = office.submit(who, invoice_id)
    office.change("UPDATE bank_transfers SET payer_name = 'Babbage, Charles' WHERE id = %(id)s", id=transfer_id)
    imported(office, paid("hello", payer_name="Charles Babbage"))
    assert suggested(office) == [[(invoice_id, (Reason.AMOUNT, Reason.PAYER_NAME))]]


def test_names_are_compared_with_the_newest_invoices_over_the_amount(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unapplied, "MAX_SAME_AMOUNT", 2)
    opened = [office.open_invoice(office.sign_up()) for _ in range(3)]
    imported(office, paid("hello", payer_name="Ada"))
    assert [each for each, _ in suggested(office)[0]] == opened[1:]


def test_what_was_given_back_waits_for_nobody(office: Office, payment_id: UUID) -> None:
    assert len(suggested(office)) == 1
    assert office.execute(office.refunding(payment_id, transfer_reference="SEPA 1")).status == "succeeded"
    assert suggested(office) == []
