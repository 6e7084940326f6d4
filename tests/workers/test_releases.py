"""Two releases at once, as while one replaces the other: each reads what it can, and leaves the rest to the other."""

from importlib import import_module
from typing import Any
from uuid import UUID

import msgspec
import pytest
from structlog.testing import capture_logs

from shared.clock import utc_now
from shared.domain.operation import PAYLOAD_VERSION, OperationKind
from shared.domain.requests import REQUESTS, AdjustCredits
from tests.office import Office
from tests.workers.conftest import Worker

ID = "01a00000-0000-7000-8000-000000000001"

# What the first release wrote into `operations.payload`, by kind, with nothing that it could leave out. These stay as
# they are: rows like them may wait in anybody's database. A version that is read no more is a major release.
FIRST_PAYLOADS: dict[OperationKind, dict[str, Any]] = {
    OperationKind.SIGN_UP: {"account_name": "Ada", "email": "ada@example.com", "password_hash": "$argon2$"},
    OperationKind.OPEN_INVOICE: {"plan": "starter", "payment_method": "stripe"},
    OperationKind.CONFIRM_PAYMENT: {"invoice_id": ID, "provider": "stripe", "external_payment_id": "pi_1"},
    OperationKind.RECORD_PAYMENT: {
        "invoice_id": ID,
        "external_payment_id": "cash",
        "amount_minor": 8900,
        "currency": "USD",
        "reason": "cash",
    },
    OperationKind.SUBMIT_BANK_TRANSFER: {"invoice_id": ID},
    OperationKind.APPROVE_BANK_TRANSFER: {
        "bank_transfer_id": ID,
        "amount_minor": 8900,
        "currency": "USD",
        "value_on": "2026-01-10",
        "bank_transaction_id": "bank-1",
    },
    OperationKind.REJECT_BANK_TRANSFER: {"bank_transfer_id": ID, "reason": "nothing came"},
    OperationKind.CANCEL_SUBSCRIPTION: {},
    OperationKind.ASSIGN_PLAN: {"plan": "enterprise", "reason": "a friend"},
    OperationKind.ADJUST_CREDITS: {"amount": 70, "reason": "goodwill"},
    OperationKind.REVERSE_CREDITS: {"seq": 2, "reason": "it failed"},
    OperationKind.CHARGE_INVOICE: {"invoice_id": ID, "attempt": 1},
    OperationKind.APPLY_PAYMENT: {"payment_id": ID, "invoice_id": ID},
    OperationKind.REFUND_PAYMENT: {"payment_id": ID, "reason": "unhappy"},
    OperationKind.FOLLOW_REFUNDS: {"provider": "stripe", "external_payment_id": "pi_1"},
    OperationKind.IMPORT_BANK_STATEMENT: {"statement_id": ID},
    OperationKind.ADVANCE_TEST_CLOCK: {"test_clock_id": ID, "to": "2026-03-01T00:00:00Z"},
    OperationKind.SEND_MAIL: {"letter": "confirm_address", "subject_id": ID},
}


def goodwill(office: Office, *, version: int = PAYLOAD_VERSION, **further: Any) -> UUID:
    """An adjustment of 70 credits, written down by a release whose payloads have this version."""
    who = office.sign_up()
    request = AdjustCredits(amount=70, reason="goodwill")
    operation_id = office.accept(
        OperationKind.ADJUST_CREDITS, request, account_id=who.account_id, by=office.admin_id, at=utc_now()
    )
    sql = "UPDATE operations SET payload_version = %(version)s, payload = payload || %(further)s WHERE id = %(id)s"
    office.change(sql, id=operation_id, version=version, further=msgspec.json.encode(further).decode())
    return operation_id


@pytest.mark.parametrize("kind", OperationKind)
def test_what_the_first_release_wrote_is_read(kind: OperationKind) -> None:
    assert isinstance(msgspec.convert(FIRST_PAYLOADS[kind], REQUESTS[kind]), REQUESTS[kind])


@pytest.mark.parametrize("kind", OperationKind)
def test_a_field_that_a_later_release_adds_is_passed_over(kind: OperationKind) -> None:
    written = FIRST_PAYLOADS[kind]
    assert msgspec.convert(written | {"added": "later"}, REQUESTS[kind]) == msgspec.convert(written, REQUESTS[kind])


@pytest.mark.parametrize("kind", OperationKind)
def test_what_this_release_writes_has_every_field_of_the_first(kind: OperationKind) -> None:
    written = msgspec.to_builtins(msgspec.convert(FIRST_PAYLOADS[kind], REQUESTS[kind]))
    assert written | FIRST_PAYLOADS[kind] == written


def test_what_an_older_release_accepted_is_executed(
    worker: Worker, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("workers.task"), "PAYLOAD_VERSION", PAYLOAD_VERSION + 1)
    assert worker.perform(goodwill(office)).status == "succeeded"


def test_what_a_newer_release_accepted_waits_for_its_worker_and_uses_no_attempt_up(
    worker: Worker, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation_id = goodwill(office, version=PAYLOAD_VERSION + 1, currency="tokens")
    before = office.dump("operations")
    for _ in range(worker.runtime.settings.operation_max_attempts + 3):
        with capture_logs() as lines:
            row = worker.perform(operation_id)
        assert [line["log_level"] for line in lines if line["event"] == "newer_payload"] == ["warning"]
        assert (row.status, row.attempts) == ("pending", 0)
        assert row.last_error.startswith("NewerPayload: ")
        assert row.next_send_at > utc_now()
    assert office.dump("operations") == before

    monkeypatch.setattr(import_module("workers.task"), "PAYLOAD_VERSION", PAYLOAD_VERSION + 1)
    row = worker.perform(operation_id)
    assert (row.status, row.attempts, row.last_error) == ("succeeded", 1, None)


def test_a_kind_of_a_newer_release_is_left_to_its_relay_and_holds_nothing_up(worker: Worker, office: Office) -> None:
    of_newer, ours = goodwill(office), goodwill(office)
    office.change("UPDATE operations SET kind = 'mint_tokens' WHERE id = %(id)s", id=of_newer)
    before = office.operation(of_newer)
    relay = import_module("workers.relay").Relay(worker.runtime.settings, office.database)
    assert relay.send_due(now=utc_now()) == 1
    relay.close()
    assert office.operation(of_newer) == before
    assert office.operation(ours).sends == 1
