"""Bank statements over HTTP: a file goes in, money is settled or waits, and an admin says what it is for."""

from io import RawIOBase
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from api.schemas import MAX_STATEMENT_BYTES, BankStatementFile
from shared.clock import utc_now
from shared.domain.statement import BankEntry
from tests.api.conftest import Api, Engine
from tests.api.routes import SOME_ID
from tests.api.test_bad_input import assert_invalid
from tests.db.world import Customer
from tests.statements.samples import camt053, csv_table, entry

CAMT = "/admin/bank-statements?format=camt053"


def paid(remittance: str, **facts: Any) -> BankEntry:
    """A payment of 89 dollars."""
    return entry(**({"currency": "USD", "remittance": remittance, "transaction_id": "T1"} | facts))


def file_of(*entries: BankEntry) -> bytes:
    return camt053(entries, currency="USD")


def send(api: Api, content: bytes, *, path: str = CAMT, media_type: str = "application/xml", **options: Any) -> Any:
    return api.post(path, data=content, content_type=media_type, **options)


@pytest.fixture
def invoice(customer: Api, engine: Engine) -> dict[str, Any]:
    """An open invoice of Ada's over 89 dollars."""
    accepted = customer.post("/invoices", {"plan": "starter", "payment_method": "bank_transfer"})
    document: dict[str, Any] = customer.get(f"/invoices/{engine.finish(accepted)['invoice_id']}").get_json()
    return document


def finish_what_was_scheduled(engine: Engine) -> None:
    """What the system has asked for itself, as the relay would send it and a worker do it."""
    with engine.database.transaction() as tx:
        due = tx.rows("SELECT id FROM operations WHERE principal_kind = 'system' AND status = 'pending'")
    for row in due:
        assert "code" not in engine.execute(row.id)


def stored(engine: Engine) -> int:
    return int(engine.scalar("SELECT count(*) FROM bank_statements"))


def test_a_file_settles_what_it_names_and_the_rest_waits_for_an_admin(
    customer: Api, admin: Api, engine: Engine, ada: Customer, invoice: dict[str, Any]
) -> None:
    content = file_of(
        paid(f"for {invoice['reference']}"),
        paid("thank you", transaction_id="T2", payer_name="ADA"),
        paid("Account fee", transaction_id="T3", amount_minor=-4_50),
    )
    accepted = send(admin, content)
    assert (accepted.status_code, accepted.get_json()["kind"]) == (202, "import_bank_statement")
    (listed,) = admin.get("/admin/bank-statements").get_json()["items"]
    assert (listed["status"], listed["entries"], listed["size_bytes"]) == ("pending", None, len(content))
    result = engine.finish(accepted)
    assert (result["settling"], result["unapplied"]) == (1, 1)
    finish_what_was_scheduled(engine)
    assert customer.get(f"/invoices/{invoice['id']}").get_json()["status"] == "paid"
    assert customer.get("/account").get_json()["status"] == "active"

    (listed,) = admin.get("/admin/bank-statements").get_json()["items"]
    assert (listed["id"], listed["operation_id"]) == (result["statement_id"], accepted.get_json()["operation_id"])
    assert (listed["status"], listed["entries"], listed["new_entries"]) == ("succeeded", 3, 3)
    assert (listed["money_in"], listed["money_out"]) == (2, 1)
    entries = admin.get(f"/admin/bank-statements/{listed['id']}/entries").get_json()["items"]
    assert [each["transaction_id"] for each in entries] == ["T3", "T2", "T1"]
    fee, unknown, settled = entries
    assert (fee["amount_minor"], fee["payment_id"]) == (-450, None)
    assert (unknown["unapplied_reason"], unknown["applied_at"]) == ("unmatched", None)
    assert (settled["invoice_id"], settled["account_id"]) == (invoice["id"], str(ada.account_id))
    assert (settled["unapplied_reason"], settled["applied_at"] is not None) == (None, True)

    again = engine.finish(customer.post("/invoices", {"plan": "starter", "payment_method": "bank_transfer"}))
    (waiting,) = admin.get("/admin/payments/unapplied").get_json()["items"]
    assert (waiting["id"], waiting["amount_minor"], waiting["currency"]) == (unknown["payment_id"], 8_900, "USD")
    assert (waiting["unapplied_reason"], waiting["account_id"], waiting["invoice_id"]) == ("unmatched", None, None)
    assert waiting["entry"]["payer_name"] == "ADA"
    assert waiting["age_days"] == (utc_now().date() - paid("").value_on).days
    (suggestion,) = waiting["suggestions"]
    assert (suggestion["invoice_id"], suggestion["account_name"]) == (again["invoice_id"], "Ada")
    assert (suggestion["status"], suggestion["reasons"]) == ("open", ["amount", "payer_name"])
    assert suggestion["invoice_number"].endswith("-00000002")

    body = {"invoice_id": again["invoice_id"]}
    applied = engine.finish(admin.post(f"/admin/payments/{waiting['id']}/apply", body))
    assert (applied["payment_id"], applied["account_id"]) == (waiting["id"], str(ada.account_id))
    assert admin.get("/admin/payments/unapplied").get_json()["items"] == []
    assert customer.get(f"/invoices/{again['invoice_id']}").get_json()["status"] == "paid"
    twice = engine.finish(admin.post(f"/admin/payments/{waiting['id']}/apply", body))
    assert twice["code"] == "payment_not_unapplied"


def test_another_amount_is_applied_for_a_reason(admin: Api, engine: Engine, invoice: dict[str, Any]) -> None:
    engine.finish(send(admin, file_of(paid(invoice["reference"], amount_minor=88_00))))
    (waiting,) = admin.get("/admin/payments/unapplied").get_json()["items"]
    assert (waiting["unapplied_reason"], waiting["invoice_id"]) == ("payment_mismatch", invoice["id"])
    path = f"/admin/payments/{waiting['id']}/apply"
    assert engine.finish(admin.post(path, {"invoice_id": invoice["id"]}))["code"] == "payment_mismatch"
    body = {"invoice_id": invoice["id"], "override_reason": "a fee"}
    assert engine.finish(admin.post(path, body))["invoice_id"] == invoice["id"]


def test_money_that_stands_on_no_statement_is_listed_too(
    customer: Api, admin: Api, engine: Engine, invoice: dict[str, Any]
) -> None:
    transfer_id = engine.finish(customer.post("/bank-transfers", {"invoice_id": invoice["id"]}))["bank_transfer_id"]
    money = {"amount_minor": 8_900, "currency": "USD"}
    cash = {"external_payment_id": "cash-1", "reason": "cash"} | money
    engine.finish(admin.post(f"/admin/invoices/{invoice['id']}/payments", cash))
    approval = {"value_on": "2026-02-02", "bank_transaction_id": "T1"} | money
    refused = engine.finish(admin.post(f"/admin/bank-transfers/{transfer_id}/approve", approval))
    assert refused["code"] == "invoice_not_open"
    (waiting,) = admin.get("/admin/payments/unapplied").get_json()["items"]
    assert (waiting["unapplied_reason"], waiting["external_payment_id"]) == ("invoice_not_open", "T1")
    assert (waiting["entry"], waiting["suggestions"], waiting["age_days"]) == (None, [], 0)


@pytest.mark.parametrize(("order", "ids"), [("oldest", ["T0", "T1", "T2"]), ("newest", ["T2", "T1", "T0"])])
def test_unapplied_money_is_read_from_either_end(admin: Api, engine: Engine, order: str, ids: list[str]) -> None:
    engine.finish(send(admin, file_of(*(paid("?", transaction_id=f"T{number}") for number in range(3)))))
    found, cursor = [], ""
    for _ in range(3):
        page = admin.get(f"/admin/payments/unapplied?order={order}&limit=1{cursor}").get_json()
        found += [item["external_payment_id"] for item in page["items"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert (found, page["next_cursor"]) == (ids, None)


def test_what_was_refused_says_why_and_brought_nothing(admin: Api, engine: Engine) -> None:
    accepted = send(admin, b"hello")
    assert engine.finish(accepted)["code"] == "invalid_statement"
    (listed,) = admin.get("/admin/bank-statements").get_json()["items"]
    assert (listed["status"], listed["entries"], listed["money_in"]) == ("failed", None, None)
    assert admin.get(f"/admin/bank-statements/{listed['id']}/entries").get_json()["items"] == []
    problem = admin.get(f"/operations/{accepted.get_json()['operation_id']}").get_json()["problem"]
    assert "XML" in problem["detail"]


# --- how it is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", BankStatementFile.mimetypes)
def test_a_file_is_taken_under_whatever_name_banks_and_browsers_have_for_it(
    admin: Api, engine: Engine, media_type: str
) -> None:
    accepted = send(
        admin, csv_table([paid("?")]), path="/admin/bank-statements?format=csv", media_type=f"{media_type}; charset=x"
    )
    assert engine.finish(accepted)["new"] == 1


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=x", "image/png", ""])
def test_what_is_called_something_else_is_not(admin: Api, engine: Engine, media_type: str) -> None:
    answer = send(admin, file_of(paid("?")), media_type=media_type)
    assert (answer.status_code, answer.get_json()["code"]) == (415, "unsupported_media_type")
    assert "text/csv" in answer.get_json()["detail"]
    assert stored(engine) == 0


@pytest.mark.parametrize("query", ["", "?format=", "?format=camt054", "?format=csv&format=csv", "?format=csv&x=1"])
def test_the_format_is_stated_once(admin: Api, engine: Engine, query: str) -> None:
    assert_invalid(send(admin, file_of(paid("?")), path=f"/admin/bank-statements{query}"))
    assert stored(engine) == 0


def test_an_empty_file_is_refused(admin: Api, engine: Engine) -> None:
    answer = send(admin, b"")
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_statement")
    assert stored(engine) == 0
    assert engine.scalar("SELECT count(*) FROM operations") == 0


class Unread(RawIOBase):
    """A body of a size, which counts how much of it was read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.place = self.given = 0

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.place = offset if whence == 0 else self.size
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any, /) -> int:
        count = min(len(buffer), self.size - self.given)
        buffer[:count] = b"x" * count
        self.given += count
        return count


def test_a_file_that_is_too_large_is_refused_unread(admin: Api, engine: Engine) -> None:
    body = Unread(100_000_000)
    answer = admin.post(CAMT, input_stream=body, content_type="application/xml")
    assert (answer.status_code, answer.get_json()["code"]) == (413, "body_too_large")
    assert body.given == 0


def test_nor_is_one_that_comes_in_chunks_read_beyond_the_limit(admin: Api) -> None:
    body = Unread(100_000_000)
    answer = admin.post(
        CAMT,
        input_stream=body,
        content_type="application/xml",
        environ_overrides={"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    assert (answer.status_code, answer.get_json()["code"]) == (413, "body_too_large")
    assert body.given <= MAX_STATEMENT_BYTES + 2**16


def test_a_file_of_the_greatest_size_is_kept_byte_by_byte(admin: Api, engine: Engine) -> None:
    content = bytes(range(256)) * (MAX_STATEMENT_BYTES // 256)
    assert send(admin, content).status_code == 202
    assert engine.scalar("SELECT content FROM bank_statements") == content
    assert send(admin, content + b"x").status_code == 413
    assert stored(engine) == 1


def test_only_this_route_takes_so_much(admin: Api) -> None:
    answer = admin.post("/admin/test-clocks", data=b"x" * 100_000, content_type="application/json")
    assert answer.status_code == 413


# --- who sends it, and how often ----------------------------------------------------------------------


def refused(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["code"]


def test_customers_hand_in_read_and_apply_nothing(api: Api, engine: Engine, ada: Customer) -> None:
    def ada_again() -> Api:
        return engine.signed_in(api, ada)  # the session ends with each such attempt

    forbidden = (403, "wrong_audience")
    assert refused(send(ada_again(), file_of(paid("?")))) == forbidden
    assert refused(ada_again().get("/admin/bank-statements")) == forbidden
    assert refused(ada_again().get(f"/admin/bank-statements/{SOME_ID}/entries")) == forbidden
    assert refused(ada_again().get("/admin/payments/unapplied")) == forbidden
    apply = f"/admin/payments/{SOME_ID}/apply"
    assert refused(ada_again().post(apply, {"invoice_id": SOME_ID})) == forbidden
    assert stored(engine) == 0


def test_whoever_would_not_be_let_in_is_not_listened_to(api: Api, user_key: Api, engine: Engine) -> None:
    for nobody, expected in ((api, (401, "unauthenticated")), (user_key, (403, "forbidden"))):
        body = Unread(1_000_000)
        answer = nobody.post(CAMT, input_stream=body, content_type="application/xml")
        assert (refused(answer), body.given) == (expected, 0)
    assert stored(engine) == 0


def test_a_key_stands_for_one_file_in_one_format(admin: Api, engine: Engine) -> None:
    content = csv_table([paid("?")])
    path = "/admin/bank-statements?format=csv"
    first = send(admin, content, path=path, key="march")
    again = send(admin, content, path=path, key="march", media_type="text/csv")
    assert again.get_json()["operation_id"] == first.get_json()["operation_id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert refused(send(admin, content + b"\n", path=path, key="march")) == (409, "idempotency_key_reused")
    assert refused(send(admin, content, key="march")) == (409, "idempotency_key_reused")
    assert stored(engine) == 1


def test_without_a_key_the_same_file_comes_in_once_all_the_same(admin: Api, engine: Engine) -> None:
    content = file_of(paid("?"))
    assert [engine.finish(send(admin, content))["new"] for _ in range(2)] == [1, 0]
    listed = admin.get("/admin/bank-statements").get_json()["items"]
    assert [(each["entries"], each["new_entries"]) for each in listed] == [(1, 0), (1, 1)]
    assert len({each["sha256"] for each in listed}) == 1


def test_a_payment_or_an_invoice_that_is_not_there_is_not_found(
    admin: Api, engine: Engine, invoice: dict[str, Any]
) -> None:
    not_found = (404, "not_found")
    assert refused(admin.post(f"/admin/payments/{SOME_ID}/apply", {"invoice_id": invoice["id"]})) == not_found
    engine.finish(send(admin, file_of(paid("?"))))
    payment_id: UUID = engine.scalar("SELECT id FROM payments")
    assert refused(admin.post(f"/admin/payments/{payment_id}/apply", {"invoice_id": SOME_ID})) == not_found
    assert refused(admin.get(f"/admin/bank-statements/{SOME_ID}/entries")) == not_found
