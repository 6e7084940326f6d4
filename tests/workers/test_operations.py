"""An operation's task: delivered any number of times, at any time, in any order, its effect happens once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from celery import Celery

from shared.clock import utc_now
from shared.db import operations, signups
from shared.domain.invoice import PaymentMethod
from shared.domain.letter import LetterKind
from shared.domain.operation import OperationKind, OperationStatus
from shared.domain.requests import (
    AdjustCredits,
    AdvanceTestClock,
    AssignPlan,
    CancelSubscription,
    ConfirmPayment,
    OpenInvoice,
    RecordPayment,
    ReverseCredits,
    SendMail,
    SignUp,
    SubmitBankTransfer,
)
from shared.errors import NotFound, RetryRefused
from shared.ids import new_id
from shared.messages import Queue
from shared.providers.sandbox import GOOD_CARD
from tests.factories import Table, cases, on
from tests.office import Customer, Office
from tests.statements.samples import camt053, entry
from tests.workers.conftest import Worker

SIGN_UP = SignUp(account_name="Ada", email="ada@example.com", password_hash="$argon2$secret")


# --- one operation of each kind -----------------------------------------------------------------------------


def sign_up(office: Office, who: Customer) -> UUID:
    return office.accept(OperationKind.SIGN_UP, SIGN_UP)


def checkout(office: Office, who: Customer) -> UUID:
    request = OpenInvoice(plan="starter", payment_method=PaymentMethod.SANDBOX)
    return office.accept(OperationKind.OPEN_INVOICE, request, account_id=who.account_id, by=who.user_id)


def confirm(office: Office, who: Customer) -> UUID:
    invoice_id = office.open_invoice(who)
    return office.confirmation(who, invoice_id, office.card_payment(who, invoice_id))


def record(office: Office, who: Customer) -> UUID:
    request = RecordPayment(
        invoice_id=office.open_invoice(who),
        external_payment_id="cash",
        amount_minor=89_00,
        currency="USD",
        reason="cash",
    )
    return office.accept(OperationKind.RECORD_PAYMENT, request, account_id=who.account_id, by=office.admin_id)


def submit(office: Office, who: Customer) -> UUID:
    request = SubmitBankTransfer(invoice_id=office.open_invoice(who))
    return office.accept(OperationKind.SUBMIT_BANK_TRANSFER, request, account_id=who.account_id, by=who.user_id)


def approve(office: Office, who: Customer) -> UUID:
    return office.approval(who, office.submit(who, office.open_invoice(who)))


def reject(office: Office, who: Customer) -> UUID:
    return office.rejection(who, office.submit(who, office.open_invoice(who)))


def cancel(office: Office, who: Customer) -> UUID:
    request = CancelSubscription(at_period_end=False)
    return office.accept(OperationKind.CANCEL_SUBSCRIPTION, request, account_id=who.account_id, by=who.user_id)


def assign(office: Office, who: Customer) -> UUID:
    request = AssignPlan(plan="enterprise", reason="a friend")
    return office.accept(OperationKind.ASSIGN_PLAN, request, account_id=who.account_id, by=office.admin_id)


def adjust(office: Office, who: Customer) -> UUID:
    request = AdjustCredits(amount=70, reason="goodwill")
    return office.accept(OperationKind.ADJUST_CREDITS, request, account_id=who.account_id, by=office.admin_id)


def reverse(office: Office, who: Customer) -> UUID:
    office.consume(who, 70, "call")
    request = ReverseCredits(seq=2, reason="it failed")
    return office.accept(OperationKind.REVERSE_CREDITS, request, account_id=who.account_id, by=office.admin_id)


def charge(office: Office, who: Customer) -> UUID:
    office.buy(who, saves_card=GOOD_CARD)
    office.tick(on("2026-02-10"))
    scheduled: UUID = office.row("SELECT id FROM operations WHERE kind = 'charge_invoice'").id
    return scheduled


def refund(office: Office, who: Customer) -> UUID:
    office.buy(who)
    return office.refunding(office.row("SELECT id FROM payments").id)


def follow(office: Office, who: Customer) -> UUID:
    office.buy(who)
    return office.following(office.row("SELECT external_payment_id AS id FROM payments").id)


def advance(office: Office, who: Customer) -> UUID:
    clock_id = office.make_clock(on("2026-01-10"))
    office.sign_up(clock_id=clock_id)
    request = AdvanceTestClock(test_clock_id=clock_id, to=on("2026-03-01"))
    return office.accept(OperationKind.ADVANCE_TEST_CLOCK, request, by=office.admin_id)


def import_file(office: Office, who: Customer) -> UUID:
    return office.statement(camt053([entry(currency="USD")], currency="USD"))


def apply(office: Office, who: Customer) -> UUID:
    office.execute(import_file(office, who))
    payment = office.row("SELECT id FROM payments")
    return office.application(who, payment.id, office.open_invoice(who))


def write_to(office: Office, who: Customer) -> UUID:
    signup_id = new_id()
    with office.database.transaction() as tx:
        signups.create(
            tx,
            signup_id=signup_id,
            account_name="Bob",
            email="bob@example.com",
            password_hash="hash",
            time_zone="UTC",
            test_clock_id=None,
            now=utc_now(),
            expires_at=utc_now() + timedelta(days=1),
        )
    return office.accept(
        OperationKind.SEND_MAIL, SendMail(letter=LetterKind.CONFIRM_ADDRESS, subject_id=signup_id), at=utc_now()
    )


Accept = Callable[[Office, Customer], UUID]

KINDS: dict[OperationKind, Accept] = {
    OperationKind.SIGN_UP: sign_up,
    OperationKind.OPEN_INVOICE: checkout,
    OperationKind.CONFIRM_PAYMENT: confirm,
    OperationKind.RECORD_PAYMENT: record,
    OperationKind.APPLY_PAYMENT: apply,
    OperationKind.IMPORT_BANK_STATEMENT: import_file,
    OperationKind.SUBMIT_BANK_TRANSFER: submit,
    OperationKind.APPROVE_BANK_TRANSFER: approve,
    OperationKind.REJECT_BANK_TRANSFER: reject,
    OperationKind.CANCEL_SUBSCRIPTION: cancel,
    OperationKind.ASSIGN_PLAN: assign,
    OperationKind.ADJUST_CREDITS: adjust,
    OperationKind.REVERSE_CREDITS: reverse,
    OperationKind.CHARGE_INVOICE: charge,
    OperationKind.REFUND_PAYMENT: refund,
    OperationKind.FOLLOW_REFUNDS: follow,
    OperationKind.ADVANCE_TEST_CLOCK: advance,
    OperationKind.SEND_MAIL: write_to,
}
every_kind = pytest.mark.parametrize("accept", KINDS.values(), ids=KINDS)


def test_there_is_a_task_for_every_kind(celery_app: Celery) -> None:
    assert set(KINDS) == set(OperationKind)
    for kind in OperationKind:
        assert kind.task_name in celery_app.tasks
        routed = celery_app.amqp.router.route({}, kind.task_name)["queue"]
        assert routed.name == Queue.INTERACTIVE


@every_kind
def test_delivered_three_times_it_happens_once(worker: Worker, office: Office, accept: Accept) -> None:
    operation_id = accept(office, office.sign_up())
    row = worker.perform(operation_id)
    assert (row.status, row.problem, row.attempts, row.next_send_at) == ("succeeded", None, 1, None)
    before = office.dump()
    for _ in range(2):
        assert worker.perform(operation_id) == row
    assert office.dump() == before


@every_kind
def test_delivered_to_three_workers_at_once_it_happens_once(worker: Worker, office: Office, accept: Accept) -> None:
    operation_id = accept(office, office.sign_up())
    untouched = ("operations", "payments")
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(worker.perform, [operation_id] * 3))
    row = office.operation(operation_id)
    assert (row.status, row.problem) == ("succeeded", None)
    effects = office.dump(*untouched)
    worker.perform(operation_id)
    assert office.dump(*untouched) == effects
    assert len(office.rows("SELECT FROM audit_log WHERE operation_id = %(id)s", id=operation_id)) <= 1
    assert len(office.rows("SELECT FROM payments WHERE status <> 'succeeded'")) == 0


def test_while_a_worker_executes_it_another_one_leaves_it_alone(worker: Worker, office: Office) -> None:
    who = office.sign_up()
    operation_id = adjust(office, who)
    with office.database.transaction() as tx:
        assert operations.lock_pending(tx, operation_id)
        with office.database.transaction() as other:
            assert not operations.lock_pending(other, operation_id)
        assert worker.perform(operation_id).attempts == 0
    assert worker.perform(operation_id).attempts == 1
    with office.database.transaction() as tx:
        assert not operations.lock_pending(tx, operation_id)


def test_of_an_unknown_operation_nothing_comes(worker: Worker, celery_app: Celery) -> None:
    before = worker.office.dump()
    celery_app.tasks["billing.sign_up"].run(str(UUID(int=4)))
    assert worker.office.dump() == before


# --- a refusal ------------------------------------------------------------------------------------------------


def taken(office: Office, who: Customer) -> UUID:
    office.change("UPDATE users SET email = %(email)s", email=SIGN_UP.email)
    return sign_up(office, who)


def unpaid(office: Office, who: Customer) -> UUID:
    return office.confirmation(who, office.open_invoice(who), "never made")


def by_stripe(office: Office, who: Customer) -> UUID:
    request = ConfirmPayment(
        invoice_id=office.open_invoice(who), provider=PaymentMethod.STRIPE, external_payment_id="pi_1"
    )
    return office.accept(OperationKind.CONFIRM_PAYMENT, request, account_id=who.account_id, by=who.user_id)


def too_much(office: Office, who: Customer) -> UUID:
    request = AdjustCredits(amount=-5_000, reason="greed")
    return office.accept(OperationKind.ADJUST_CREDITS, request, account_id=who.account_id, by=office.admin_id)


def no_statement(office: Office, who: Customer) -> UUID:
    return office.statement(b"hello")


REFUSALS: Table = {
    "an address that is taken": (taken, "email_taken"),
    "a payment that was never made": (unpaid, "payment_not_succeeded"),
    "a provider that is not here": (by_stripe, "provider_unavailable"),
    "credits that are not there": (too_much, "insufficient_credits"),
    "a file that is no statement": (no_statement, "invalid_statement"),
}


@pytest.mark.parametrize(("accept", "code"), cases(REFUSALS))
def test_a_refusal_is_an_answer(worker: Worker, office: Office, accept: Accept, code: str) -> None:
    operation_id = accept(office, office.sign_up())
    before = office.dump("operations", "payments", "events")
    row = worker.perform(operation_id)
    assert (row.status, row.problem["code"], row.attempts, row.next_send_at) == ("failed", code, 1, None)
    assert row.problem["detail"]
    assert row.finished_at is not None
    asked = office.row("SELECT payload FROM operations WHERE id = %(id)s", id=operation_id)
    assert "password_hash" not in asked.payload
    assert office.dump("operations", "payments", "events") == before
    failures = office.rows("SELECT data FROM events WHERE kind = 'payment.failed'")
    assert len(failures) == len(office.rows("SELECT FROM payments"))
    assert {one.problem for one in office.rows("SELECT problem FROM payments")} <= {code}
    assert worker.perform(operation_id) == row


# --- the unexpected -------------------------------------------------------------------------------------------

BREAK = "ALTER TABLE audit_log ADD CONSTRAINT broken CHECK (action <> 'credits.adjusted') NOT VALID"
REPAIR = "ALTER TABLE audit_log DROP CONSTRAINT IF EXISTS broken"


@pytest.fixture
def broken(office: Office) -> Any:
    """Something that no program expects: adjustments cannot be audited."""
    office.change(BREAK)
    yield
    office.change(REPAIR)


def test_the_unexpected_is_counted_and_postponed_with_a_growing_pause(
    worker: Worker, office: Office, broken: None
) -> None:
    who = office.sign_up()
    operation_id = adjust(office, who)
    pauses = []
    for attempt in range(1, 5):
        asked_at = utc_now()
        row = worker.perform(operation_id)
        assert (row.status, row.attempts, row.problem) == ("pending", attempt, None)
        assert "broken" in row.last_error
        pauses.append(row.next_send_at - asked_at)
    for attempt, pause in enumerate(pauses):
        least = timedelta(seconds=30 * 2**attempt)
        assert least <= pause <= 1.5 * least + timedelta(seconds=5)
    assert office.balance(who).balance_credits == 2_000


def test_after_its_attempts_it_is_dead_until_an_admin_revives_it(worker: Worker, office: Office, broken: None) -> None:
    who = office.sign_up()
    operation_id = adjust(office, who)
    for _ in range(worker.runtime.settings.operation_max_attempts):
        row = worker.perform(operation_id)
    assert (row.status, row.next_send_at, row.problem["code"]) == ("dead", None, "operation_dead")
    assert worker.perform(operation_id) == row

    office.change(REPAIR)
    with office.database.transaction() as tx:
        operations.revive(tx, operation_id, now=utc_now())
    row = office.operation(operation_id)
    assert (row.status, row.attempts, row.problem) == ("pending", 0, None)
    row = worker.perform(operation_id)
    assert (row.status, row.attempts, row.last_error) == ("succeeded", 1, None)
    assert office.balance(who).balance_credits == 2_070


def test_only_a_dead_operation_is_revived(worker: Worker, office: Office) -> None:
    operation_id = sign_up(office, office.sign_up())
    for _ in range(2):
        with pytest.raises(RetryRefused), office.database.transaction() as tx:
            operations.revive(tx, operation_id, now=utc_now())
        worker.perform(operation_id)
    with pytest.raises(NotFound), office.database.transaction() as tx:
        operations.revive(tx, UUID(int=4), now=utc_now())


def test_a_payload_that_cannot_be_read_is_unexpected(worker: Worker, office: Office) -> None:
    operation_id = adjust(office, office.sign_up())
    office.change("UPDATE operations SET payload = '{}' WHERE id = %(id)s", id=operation_id)
    row = worker.perform(operation_id)
    assert (row.status, row.attempts) == ("pending", 1)
    assert "amount" in row.last_error


def test_no_secret_of_the_payload_is_in_what_an_admin_reads(worker: Worker, office: Office) -> None:
    office.change("ALTER TABLE users ADD CONSTRAINT broken CHECK (role <> 'owner') NOT VALID")
    try:
        row = worker.perform(office.accept(OperationKind.SIGN_UP, SIGN_UP))
    finally:
        office.change("ALTER TABLE users DROP CONSTRAINT broken")
    assert row.status == "pending"
    assert "broken" in row.last_error
    assert "$argon2$secret" not in row.last_error


def test_a_worker_that_dies_at_work_was_counted(worker: Worker, office: Office) -> None:
    operation_id = adjust(office, office.sign_up())
    for attempt in range(1, 4):
        with office.database.transaction() as tx:
            begun = operations.begin_attempt(tx.maybe, operation_id)
        assert begun is not None
        assert begun.attempts == attempt
    row = worker.perform(operation_id)
    assert (row.status, row.attempts) == ("succeeded", 4)


def test_the_count_does_not_wait_for_the_disk_and_what_follows_does(worker: Worker, office: Office) -> None:
    operation_id = adjust(office, office.sign_up())
    database = worker.runtime.database
    database.ask("SELECT set_config('synchronous_commit', 'on', false)")
    begun = operations.begin_attempt(database.ask, operation_id)
    assert begun is not None
    with office.database.transaction() as tx:
        assert operations.get(tx, operation_id).attempts == 1, "committed by itself"
    assert database.ask("SELECT current_setting('synchronous_commit') AS commits").commits == "on"


def test_one_that_kills_every_worker_is_dead_in_the_end(worker: Worker, office: Office) -> None:
    who = office.sign_up()
    operation_id = adjust(office, who)
    for _ in range(worker.runtime.settings.operation_max_attempts):
        with office.database.transaction() as tx:
            operations.begin_attempt(tx.maybe, operation_id)
    row = worker.perform(operation_id)
    assert row.status == "dead"
    assert office.balance(who).balance_credits == 2_000


# --- transient faults -----------------------------------------------------------------------------------------

FAULTS = """
    CREATE SEQUENCE faults;
    GRANT USAGE ON SEQUENCE faults TO prepaid_worker;
    CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('faults') <= {times} THEN
            RAISE EXCEPTION 'a fault' USING ERRCODE = '{sqlstate}';
        END IF;
        RETURN NEW;
    END
    $$;
    CREATE TRIGGER fault BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION fault();
    """
NO_FAULTS = "DROP TRIGGER fault ON audit_log; DROP FUNCTION fault(); DROP SEQUENCE faults"


@pytest.fixture
def faults(office: Office) -> Any:
    """Make the first writes to the audit log fail."""

    def make(times: int, sqlstate: str) -> None:
        with office.database.transaction() as tx:
            tx.connection.exec_driver_sql(FAULTS.format(times=times, sqlstate=sqlstate))

    yield make
    office.change(NO_FAULTS)


@pytest.mark.parametrize(
    "sqlstate", ["40001", "40P01", "55P03", "57014"], ids=["serialization", "deadlock", "lock timeout", "cancelled"]
)
def test_a_transient_fault_is_tried_again_at_once(worker: Worker, office: Office, faults: Any, sqlstate: str) -> None:
    who = office.sign_up()
    operation_id = adjust(office, who)
    faults(2, sqlstate)
    row = worker.perform(operation_id)
    assert (row.status, row.attempts) == ("succeeded", 1)
    assert office.balance(who).balance_credits == 2_070


def test_one_that_stays_is_tried_again_later(worker: Worker, office: Office, faults: Any) -> None:
    operation_id = adjust(office, office.sign_up())
    faults(1_000, "40001")
    pauses = []
    for attempt in (1, 2):
        asked_at = utc_now()
        row = worker.perform(operation_id)
        assert (row.status, row.attempts) == ("pending", attempt)
        pauses.append((row.next_send_at - asked_at).total_seconds())
    soon, later = pauses
    assert 5 <= soon <= 7.5 + 8, "it may well have passed"
    assert later >= 60


def test_a_connection_that_is_lost_is_replaced(worker: Worker, office: Office) -> None:
    operation_id = adjust(office, office.sign_up())
    for _ in range(4):  # as many as the pool keeps
        with worker.runtime.database.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
    office.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tests-worker'")
    assert worker.perform(operation_id).status == "succeeded"


def test_a_server_that_is_not_there_is_no_answer(
    worker: Worker, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation_id = confirm(office, office.sign_up())

    def unreachable(_self: object, _external_payment_id: str) -> None:
        raise ConnectionError("the provider does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("shared.providers.sandbox.SandboxProvider.retrieve", unreachable)
        row = worker.perform(operation_id)
    assert (row.status, row.attempts) == ("pending", 1)
    assert office.row("SELECT status FROM payments").status == "pending"
    assert worker.perform(operation_id).status == "succeeded"
    assert office.row("SELECT status FROM payments").status == "succeeded"


# --- its instant ----------------------------------------------------------------------------------------------


def test_executed_late_it_is_stamped_with_its_acceptance(worker: Worker, office: Office) -> None:
    operation_id = cancel(office, office.sign_up())
    worker.perform(operation_id)
    assert office.row("SELECT ended_at FROM subscriptions").ended_at == on("2026-01-10")
    assert office.operation(operation_id).finished_at > on("2026-01-10")


def test_but_never_before_what_has_happened_since(worker: Worker, office: Office) -> None:
    who = office.sign_up()
    operation_id = cancel(office, who)
    office.now = on("2026-01-15")
    worker.perform(adjust(office, who))
    worker.perform(operation_id)
    assert office.row("SELECT ended_at FROM subscriptions").ended_at == on("2026-01-15")


def test_a_status_that_is_final_never_changes(worker: Worker, office: Office) -> None:
    operation_id = adjust(office, office.sign_up())
    row = worker.perform(operation_id)
    with office.database.transaction() as tx:
        operations.fail(tx, operation_id, NotFound("too late"), now=utc_now())
        operations.postpone(
            tx,
            operation_id,
            attempts=9,
            max_attempts=5,
            error="too late",
            base=timedelta(seconds=30),
            now=utc_now(),
        )
    assert office.operation(operation_id) == row
    assert row.status == OperationStatus.SUCCEEDED


# --- refusals -------------------------------------------------------------------------------------------------


def test_a_refusal_cites_what_is_there_though_no_job_has_been(worker: Worker, office: Office) -> None:
    office.now = on("2026-01-10")
    who = office.sign_up()
    office.buy(who)
    office.now = on("2026-02-11")  # renewed, unpaid, and no job knows of it yet
    row = worker.perform(checkout(office, who))
    assert (row.status, row.problem["code"]) == ("failed", "invoice_already_open")
    cited = office.row("SELECT status, period_starts_at FROM invoices WHERE id = %(id)s", id=row.problem["invoice_id"])
    assert tuple(cited) == ("open", on("2026-02-10"))
