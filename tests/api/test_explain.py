"""Where each credit came from and went, over HTTP: rows explained, the whole ledger as CSV, and events."""

import csv
from collections.abc import Iterator
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import psutil
import pytest
from flask import Flask

from shared.domain.export import COLUMNS
from tests.api.conftest import Api, Engine
from tests.api.test_credits import pages
from tests.db.world import START, Customer

ROWS_OF_A_LONG_LEDGER = 200_000
MEGABYTE = 2**20


@pytest.fixture
def cleo(engine: Engine) -> Customer:
    """A customer on a test clock, in the trial, since the last of January."""
    return engine.sign_up(at=START)


@pytest.fixture
def on_clock(api: Api, engine: Engine, cleo: Customer) -> Api:
    """The API for Cleo, the owner of her account."""
    return engine.signed_in(api, cleo)


def explained(api: Api, seq: int) -> dict[str, Any]:
    answer = api.get(f"/credits/transactions/{seq}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.get_json()
    return found


def newest(api: Api) -> dict[str, Any]:
    return explained(api, api.get("/credits/transactions?limit=1").get_json()["items"][0]["seq"])


def advance(admin: Api, engine: Engine, customer: Customer, to: datetime) -> None:
    path = f"/admin/test-clocks/{customer.clock_id}/advance"
    engine.finish(admin.post(path, {"to": to.isoformat()}))


def buy(api: Api, engine: Engine, plan: str) -> dict[str, Any]:
    """Check out and pay: the payment, as the API lists it."""
    checkout = engine.finish(api.post("/invoices", {"plan": plan, "payment_method": "sandbox"}))
    return pay(api, engine, checkout["invoice_id"])


def pay(api: Api, engine: Engine, invoice_id: str) -> dict[str, Any]:
    body = {"invoice_id": invoice_id}
    charge = api.post("/sandbox/payments", body | {"outcome": "succeeded"}).get_json()["external_payment_id"]
    engine.finish(api.post("/payments", body | {"provider": "sandbox", "external_payment_id": charge}))
    payment: dict[str, Any] = api.get("/payments?limit=1").get_json()["items"][0]
    return payment


def adjust(admin: Api, engine: Engine, customer: Customer, amount: int, **more: Any) -> str:
    """An admin's gift or correction; the operation's id."""
    accepted = admin.post(f"/admin/accounts/{customer.account_id}/credits", {"amount": amount, "reason": "why"} | more)
    assert "balance_credits" in engine.finish(accepted)
    return str(accepted.get_json()["operation_id"])


def reverse(admin: Api, engine: Engine, customer: Customer, seq: int) -> str:
    path = f"/admin/accounts/{customer.account_id}/credits/transactions/{seq}/reverse"
    accepted = admin.post(path, {"reason": "it failed"})
    assert "balance_credits" in engine.finish(accepted)
    return str(accepted.get_json()["operation_id"])


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


# --- what brings credits ------------------------------------------------------------------------


def test_the_seed_of_a_trial_is_a_credit_month_that_nobody_paid(on_clock: Api) -> None:
    row = explained(on_clock, 1)
    assert (row["kind"], row["amount"], row["balance_before"], row["balance_after"]) == ("seed", 2_000, 0, 2_000)
    assert row["rule"] == {
        "name": "credit_month",
        "sentence": "credit month 0 of phase 0 of the subscription under the plan free-trial, where nothing rolls over",
        "section": "Credits 8",
    }
    assert (row["grant"]["opened_by_seq"], row["grant"]["source"], row["grant"]["remaining"]) == (1, "seed", 2_000)
    assert (row["grant"]["phase"], row["grant"]["credit_month_index"]) == (0, 0)
    assert row["period"]["plan"] == "free-trial"
    assert instant(row["period"]["starts_at"]) == START == instant(row["effective_at"])
    assert instant(row["period"]["ends_at"]) == instant(row["grant"]["expires_at"]) == START + timedelta(days=14)
    assert instant(row["recorded_at"]) > START, "written by the wall clock"
    assert row["actor"] == {"kind": "system", "id": None, "name": None}
    assert (row["payment"], row["operation"], row["hold"]) == (None, None, None)
    assert (row["reason"], row["idempotency_key"], row["posting_seqs"]) == (None, None, [])
    assert (row["reverses_seq"], row["reversed_by_seqs"], row["refund"]) == (None, [], None)


def test_the_seed_of_a_paid_month_names_its_payment(on_clock: Api, admin: Api, engine: Engine, cleo: Customer) -> None:
    advance(admin, engine, cleo, START + timedelta(days=3))
    payment = buy(on_clock, engine, "starter")
    row = explained(on_clock, 2)
    assert (row["kind"], row["amount"], row["balance_before"]) == ("seed", 1_000, 2_000)
    assert "credit month 0 of phase 1" in row["rule"]["sentence"]
    assert "plan starter" in row["rule"]["sentence"]
    assert row["period"]["plan"] == "starter"
    assert row["payment"] == {
        "payment_id": payment["id"],
        "invoice_id": payment["invoice_id"],
        "invoice_reference": on_clock.get(f"/invoices/{payment['invoice_id']}").get_json()["reference"],
        "provider": "sandbox",
        "amount_minor": 8900,
        "currency": "USD",
    }
    assert explained(on_clock, 1)["payment"] is None, "the trial is still nobody's to pay"
    assert explained(on_clock, 1)["period"]["ends_at"] == row["period"]["starts_at"], "and ended with the payment"


def test_the_seed_of_a_renewed_month_names_the_renewals_payment(
    on_clock: Api, admin: Api, engine: Engine, cleo: Customer
) -> None:
    first = buy(on_clock, engine, "starter")
    advance(admin, engine, cleo, START + timedelta(days=30))
    (invoice,) = [one for one in on_clock.get("/invoices").get_json()["items"] if one["status"] == "open"]
    assert newest(on_clock)["kind"] == "expire", "nothing is seeded while it is unpaid"
    second = pay(on_clock, engine, invoice["id"])
    row = newest(on_clock)
    assert (row["kind"], row["grant"]["credit_month_index"]) == ("seed", 1)
    assert row["payment"]["payment_id"] == second["id"] != first["id"]
    assert row["period"]["starts_at"] == invoice["period_starts_at"] != row["effective_at"], "it was paid late"


def test_a_later_month_of_a_yearly_plan_names_the_years_payment(
    on_clock: Api, admin: Api, engine: Engine, cleo: Customer
) -> None:
    engine.execute_sql("UPDATE plans SET interval = 'year', credit_rollover = 'all' WHERE slug = 'starter'")
    payment = buy(on_clock, engine, "starter")
    advance(admin, engine, cleo, START + timedelta(days=60))
    row = newest(on_clock)
    assert (row["kind"], row["grant"]["credit_month_index"]) == ("seed", 2)
    assert row["rule"]["sentence"].endswith("under the plan starter, where everything rolls over")
    assert row["payment"]["payment_id"] == payment["id"]
    assert instant(row["period"]["ends_at"]) == START.replace(year=2027)
    trial = explained(on_clock, 1)["rule"]["sentence"]
    assert trial == "credit month 0 of phase 0 of the subscription", (
        "a phase of no length has no period to name its plan"
    )


def test_a_gift_names_its_operation_and_its_admin_to_admins_alone(
    customer: Api, admin: Api, engine: Engine, ada: Customer
) -> None:
    operation_id = adjust(admin, engine, ada, 50)
    row = newest(customer)
    assert (row["kind"], row["amount"], row["reason"]) == ("adjust", 50, "why")
    assert (row["rule"]["name"], row["operation"]) == ("gift", {"id": operation_id, "kind": "adjust_credits"})
    assert (row["grant"]["source"], row["grant"]["opened_by_seq"], row["grant"]["phase"]) == ("adjust", 2, None)
    assert (row["idempotency_key"], row["payment"]) == (None, None)
    email = engine.scalar("SELECT email FROM admins WHERE id = %(id)s", id=row["actor"]["id"])
    assert row["actor"] == {"kind": "admin", "id": row["actor"]["id"], "name": None}
    assert email not in customer.get("/credits/transactions/2").text

    told = admin.get(f"/admin/accounts/{ada.account_id}/credits/transactions/2").get_json()
    assert told == row | {"actor": row["actor"] | {"name": email}}


# --- what takes them ----------------------------------------------------------------------------


@pytest.mark.parametrize("principal", ["customer", "user_key"])
def test_a_consumption_names_who_consumed(
    request: pytest.FixtureRequest, engine: Engine, ada: Customer, principal: str
) -> None:
    api: Api = request.getfixturevalue(principal)
    api.post("/credits/consume", {"amount": 7, "reason": "a call"}, key="consume:odd")
    row = newest(api)
    assert (row["kind"], row["amount"], row["balance_before"], row["balance_after"]) == ("consume", -7, 2_000, 1_993)
    assert (row["reason"], row["idempotency_key"]) == ("a call", "consume:odd"), "as the caller gave it"
    assert (row["rule"]["name"], row["rule"]["section"]) == ("burn_down", "Credits 6")
    assert (row["grant"]["opened_by_seq"], row["grant"]["remaining"]) == (1, 1_993)
    if principal == "customer":
        assert row["actor"] == {"kind": "user", "id": str(ada.user_id), "name": engine.email_of(ada)}
    else:
        key = engine.scalar("SELECT jsonb_build_object('id', id, 'name', prefix) FROM api_keys")
        assert row["actor"] == {"kind": "api_key"} | key


def test_a_posting_over_two_grants_names_its_other_row(
    customer: Api, admin: Api, engine: Engine, ada: Customer
) -> None:
    adjust(admin, engine, ada, 50)
    customer.post("/credits/consume", {"amount": 2_030}, key="much")
    first, second = explained(customer, 3), explained(customer, 4)
    assert (first["amount"], first["grant"]["opened_by_seq"], first["posting_seqs"]) == (-2_000, 1, [4])
    assert (second["amount"], second["grant"]["opened_by_seq"], second["posting_seqs"]) == (-30, 2, [3])
    assert first["idempotency_key"] == second["idempotency_key"] == "much"
    assert (first["grant"]["remaining"], second["grant"]["remaining"]) == (0, 20)


def test_a_capture_names_its_hold(customer: Api) -> None:
    hold = customer.post("/credits/holds", {"amount": 50}, key="call").get_json()
    customer.post(f"/credits/holds/{hold['id']}/capture", {"amount": 30})
    row = newest(customer)
    assert (row["kind"], row["amount"], row["rule"]["name"]) == ("consume", -30, "capture")
    assert row["hold"] == {"id": hold["id"], "amount": 50, "captured_amount": 30, "idempotency_key": "call"}
    assert (row["actor"], row["idempotency_key"]) == (None, None)


def test_an_expiry_says_that_its_grant_expired(on_clock: Api, admin: Api, engine: Engine, cleo: Customer) -> None:
    on_clock.post("/credits/consume", {"amount": 500}, key="some")
    advance(admin, engine, cleo, START + timedelta(days=20))
    row = newest(on_clock)
    assert (row["kind"], row["amount"], row["balance_after"], row["rule"]["name"]) == ("expire", -1_500, 0, "expiry")
    assert row["effective_at"] == row["grant"]["expires_at"]
    assert row["period"] is None, "the subscription ended at that instant"
    assert row["actor"]["kind"] == "system"


def test_what_exceeds_the_cap_of_a_rollover_says_so(on_clock: Api, admin: Api, engine: Engine, cleo: Customer) -> None:
    engine.execute_sql(
        """
        UPDATE plans SET interval = 'year', credit_rollover = 'cap', credit_rollover_cap = 300 WHERE slug = 'starter'
        """
    )
    buy(on_clock, engine, "starter")
    advance(admin, engine, cleo, START + timedelta(days=30))
    rows = [explained(on_clock, one["seq"]) for one in on_clock.get("/credits/transactions").get_json()["items"]]
    capped = [row for row in rows if row["rule"]["name"] == "rollover_cap"]
    assert [(row["amount"], row["grant"]["credit_month_index"]) for row in capped] == [(-700, 0), (-1_700, 0)]
    assert [row["grant"]["remaining"] for row in capped] == [300, 0], "the trial's rest made way for the newer one"
    assert rows[0]["rule"]["sentence"].endswith("where up to 300 credits roll over")


def test_a_correction_names_its_operation(customer: Api, admin: Api, engine: Engine, ada: Customer) -> None:
    operation_id = adjust(admin, engine, ada, -70)
    row = newest(customer)
    assert (row["amount"], row["rule"]["name"], row["operation"]["id"]) == (-70, "correction", operation_id)
    assert (row["actor"]["kind"], row["grant"]["opened_by_seq"]) == ("admin", 1)


def test_a_reversal_gives_back_and_both_rows_name_each_other(
    customer: Api, admin: Api, engine: Engine, ada: Customer
) -> None:
    adjust(admin, engine, ada, 50)
    customer.post("/credits/consume", {"amount": 2_030}, key="much")
    operation_id = reverse(admin, engine, ada, 4)
    back, undone = explained(customer, 5), explained(customer, 3)
    assert (back["kind"], back["amount"], back["rule"]["name"]) == ("reverse", 2_000, "given_back")
    assert (back["reverses_seq"], undone["reversed_by_seqs"]) == (3, [5])
    assert (back["posting_seqs"], back["reason"]) == ([6], "it failed")
    assert back["operation"] == {"id": operation_id, "kind": "reverse_credits"} == explained(customer, 6)["operation"]
    assert undone["operation"] is None


def test_a_reversal_takes_back_what_a_gift_has_left(customer: Api, admin: Api, engine: Engine, ada: Customer) -> None:
    gift = adjust(admin, engine, ada, 50)
    customer.post("/credits/consume", {"amount": 2_030}, key="much")
    operation_id = reverse(admin, engine, ada, 2)
    row = newest(customer)
    assert (row["amount"], row["rule"]["name"], row["reverses_seq"]) == (-20, "taken_back", 2)
    assert (row["operation"]["id"], row["grant"]["opened_by_seq"]) == (operation_id, 2)
    assert explained(customer, 2)["operation"]["id"] == gift


def test_what_is_given_back_to_an_expired_grant_expires_at_once(
    on_clock: Api, admin: Api, engine: Engine, cleo: Customer
) -> None:
    on_clock.post("/credits/consume", {"amount": 500}, key="some")
    advance(admin, engine, cleo, START + timedelta(days=20))
    operation_id = reverse(admin, engine, cleo, 2)
    row = newest(on_clock)
    assert (row["kind"], row["amount"], row["rule"]["name"]) == ("expire", -500, "expiry_after_reversal")
    assert row["operation"]["id"] == operation_id


# --- whose it is --------------------------------------------------------------------------------


def test_another_accounts_row_is_not_found(customer: Api, stranger: Api, admin: Api, ada: Customer) -> None:
    customer.post("/credits/consume", {"amount": 1}, key="one")
    assert explained(customer, 2)["amount"] == -1
    answer = stranger.get("/credits/transactions/2")
    assert (answer.status_code, answer.get_json()["code"]) == (404, "not_found")
    assert explained(stranger, 1)["grant"]["id"] != explained(customer, 1)["grant"]["id"]
    assert admin.get(f"/admin/accounts/{ada.account_id}/credits/transactions/3").status_code == 404


@pytest.mark.parametrize(
    ("seq", "status"),
    [("0", 422), (str(2**63), 422), ("9" * 40, 422), ("3", 404), (str(2**63 - 1), 404), ("-1", 404), ("x", 404)],
)
def test_what_is_no_row_is_refused(customer: Api, admin: Api, ada: Customer, seq: str, status: int) -> None:
    assert customer.get(f"/credits/transactions/{seq}").status_code == status
    assert admin.get(f"/admin/accounts/{ada.account_id}/credits/transactions/{seq}").status_code == status


def test_a_suspended_account_may_still_ask_why(customer: Api, engine: Engine, ada: Customer) -> None:
    engine.suspend(ada)
    assert explained(customer, 1)["kind"] == "seed"
    assert customer.get("/credits/transactions.csv").status_code == 200


def test_an_admin_reads_the_same_ledger_page_by_page(customer: Api, admin: Api, ada: Customer) -> None:
    for number in range(4):
        customer.post("/credits/consume", {"amount": 1}, key=f"call-{number}")
    theirs = pages(admin, f"/admin/accounts/{ada.account_id}/credits/transactions", 2)
    assert theirs == pages(customer, "/credits/transactions", 100)


# --- CSV ----------------------------------------------------------------------------------------


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text, newline="")))


def test_the_ledger_is_exported_oldest_first(customer: Api, admin: Api, engine: Engine, ada: Customer) -> None:
    customer.post("/credits/consume", {"amount": 7, "reason": 'a "call", or two'}, key="one")
    reverse(admin, engine, ada, 2)
    answer = customer.get("/credits/transactions.csv")
    assert answer.status_code == 200
    assert answer.content_type == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="transactions.csv"'
    seed, consumed, back = table(answer.text)
    assert tuple(seed) == COLUMNS
    listed = {str(one["seq"]): one for one in customer.get("/credits/transactions").get_json()["items"]}
    for row in (seed, consumed, back):
        told = listed[row["seq"]]
        for name in ("kind", "amount", "balance_after", "grant_id", "source", "source_id"):
            assert row[name] == str(told[name])
        assert instant(row["effective_at"]) == instant(told["effective_at"])
        assert instant(row["recorded_at"]) == instant(told["created_at"])
        assert (row["grant_source"], row["grant_expires_at"] != "") == ("seed", True)
    assert (consumed["idempotency_key"], consumed["reason"]) == ("one", 'a "call", or two')
    assert (seed["idempotency_key"], back["idempotency_key"], back["reverses_seq"]) == ("", "", "2")


def test_no_text_of_the_export_is_a_formula(customer: Api) -> None:
    for number, text in enumerate(("=1+1", "+1", "-1", "@SUM(A1)", "fine=")):
        customer.post("/credits/consume", {"amount": 1, "reason": text}, key=f"{text}:{number}")
    _, *rows = table(customer.get("/credits/transactions.csv").text)
    assert [row["reason"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "fine="]
    assert rows[0]["idempotency_key"] == "'=1+1:0"
    assert rows[0]["amount"] == "-1", "a number is a number"


def test_a_key_that_may_not_read_credits_gets_no_export(customer: Api) -> None:
    made = customer.post("/api-keys", {"name": "one", "scopes": ["billing:read"]}).get_json()
    for path in ("/credits/transactions.csv", "/credits/transactions/1"):
        assert customer.with_key(made["key"]).get(path).status_code == 403


def lengthen(engine: Engine, customer: Customer) -> None:
    """A gift, and so many consumptions of one credit each, as the functions would have written them."""
    engine.execute_sql(
        """
        WITH gift AS (
            INSERT INTO credit_grants (id, account_id, source, amount, remaining, priority, effective_at)
            VALUES (gen_random_uuid(), %(id)s, 'adjust', %(rows)s, 0, 20, now()) RETURNING id
        ), account AS (
            UPDATE accounts SET ledger_seq = ledger_seq + 1 + %(rows)s WHERE id = %(id)s
        )
        INSERT INTO credit_transactions (account_id, seq, grant_id, kind, amount, balance_after, idempotency_key, line,
                                         effective_at, source, source_id)
        SELECT %(id)s, 2, gift.id, 'adjust', %(rows)s, 2000 + %(rows)s, 'adjust:long', 0, now(), 'admin', %(id)s
        FROM gift
        UNION ALL
        SELECT %(id)s, 2 + n, gift.id, 'consume', -1, 2000 + %(rows)s - n, 'consume:' || n, 0, now(), 'user', %(by)s
        FROM gift, generate_series(1, %(rows)s) n
        """,
        id=customer.account_id,
        by=customer.user_id,
        rows=ROWS_OF_A_LONG_LEDGER,
    )


def streamed(app: Flask, api: Api) -> Iterator[bytes]:
    answer = app.test_client().get("/api/v1/credits/transactions.csv", headers=dict(api.headers), buffered=False)
    assert answer.status_code == 200
    return iter(answer.iter_encoded())


def test_a_long_ledger_is_sent_while_it_is_read_and_never_held(
    app: Flask, customer: Api, engine: Engine, ada: Customer
) -> None:
    lengthen(engine, ada)
    chunks = streamed(app, customer)
    first = next(chunks)
    assert first.startswith(b"seq,effective_at"), "before a row was read"
    first = next(chunks)
    engine.execute_sql(
        """
        SET LOCAL session_replication_role = replica;
        UPDATE credit_transactions SET reason = 'read late' WHERE seq = 2 + 200000
        """
    )
    customer.post("/credits/consume", {"amount": 1}, key="meanwhile")

    process = psutil.Process()
    before = peak = process.memory_info().rss
    lines, last = first.count(b"\n"), b""
    for chunk in chunks:
        lines += chunk.count(b"\n")
        last = chunk
        peak = max(peak, process.memory_info().rss)

    assert lines == ROWS_OF_A_LONG_LEDGER + 2, "what was written meanwhile is not of this export"
    assert b"read late" in last, "the first bytes were sent before the last rows were read"
    assert peak - before < 8 * MEGABYTE


# --- events -------------------------------------------------------------------------------------


def test_events_are_read_newest_first_page_by_page(on_clock: Api, admin: Api, engine: Engine, cleo: Customer) -> None:
    payment = buy(on_clock, engine, "starter")
    on_clock.post("/credits/consume", {"amount": 2_900}, key="most")
    found = pages(on_clock, "/events", 2)
    assert [event["kind"] for event in found] == [
        "credits.low",
        "subscription.activated",
        "subscription.plan_changed",
        "payment.succeeded",
        "subscription.started",
    ]
    assert [event["id"] for event in found] == sorted((event["id"] for event in found), reverse=True)
    assert found[3]["subject_id"] == payment["id"]
    assert found[3]["data"] == {"invoice_id": payment["invoice_id"], "amount_minor": 8900, "currency": "USD"}
    assert all(instant(event["occurred_at"]) == START < instant(event["recorded_at"]) for event in found)
    assert found == pages(admin, f"/admin/accounts/{cleo.account_id}/events", 100)


def test_the_system_account_has_neither_events_nor_a_ledger_to_read(admin: Api, engine: Engine) -> None:
    system = engine.scalar("SELECT id FROM accounts WHERE kind = 'system'")
    for path in ("events", "credits/transactions", "credits/transactions/1"):
        assert admin.get(f"/admin/accounts/{system}/{path}").status_code == 404


def test_events_are_of_ones_own_account(customer: Api, stranger: Api) -> None:
    (mine,) = customer.get("/events").get_json()["items"]
    (theirs,) = stranger.get("/events").get_json()["items"]
    assert mine["subject_id"] != theirs["subject_id"]
    assert mine["kind"] == theirs["kind"] == "subscription.started"


# --- how it is described ------------------------------------------------------------------------


def test_the_export_is_described_as_a_file(documented: dict[str, Any]) -> None:
    described = documented["paths"]["/api/v1/credits/transactions.csv"]["get"]["responses"]["200"]
    assert described["content"] == {"text/csv": {"schema": {"type": "string"}}}
    assert "Content-Disposition" in described["headers"]
