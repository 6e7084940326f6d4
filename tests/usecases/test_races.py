"""What happens when two want the same thing at the same moment, over committed connections."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from threading import Barrier
from time import sleep
from typing import Any
from uuid import UUID

from shared.db import credits, operations, test_clocks
from shared.db.engine import Tx, with_retries
from shared.db.plans import load_rules
from shared.domain.invoice import PaymentMethod
from shared.domain.lifecycle import Transition
from shared.domain.operation import OperationKind, PrincipalKind
from shared.domain.requests import OpenInvoice, SignUp
from shared.errors import BillingError, HoldNotOpen, IdempotencyKeyReused, InsufficientCredits
from shared.ids import new_id
from shared.usecases.advance_due_accounts import advance_due_accounts
from shared.usecases.open_invoice import open_invoice
from tests.factories import on
from tests.office import Customer, Office

Work = Callable[[], Any]


def at_once(*works: Work) -> list[Any]:
    """Do all of them, started at the same moment; each result, or the refusal in its place."""
    together = Barrier(len(works))

    def one(work: Work) -> Any:
        together.wait()
        try:
            return with_retries(work)
        except BillingError as refusal:
            return refusal

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(one, works))


def executing(office: Office, *operation_ids: UUID) -> list[Work]:
    return [lambda operation_id=operation_id: office.execute(operation_id) for operation_id in operation_ids]  # type: ignore[misc]


def in_transaction(office: Office, work: Callable[[Tx], Any]) -> Work:
    def run() -> Any:
        with office.database.transaction() as tx:
            return work(tx)

    return run


# --- operations -----------------------------------------------------------------------------------------


def test_an_operation_delivered_to_four_workers_happens_once(office: Office) -> None:
    request = SignUp(account_name="Ada", email="ada@example.com", password_hash="hash")
    operation_id = office.accept(OperationKind.SIGN_UP, request)
    at_once(*executing(office, *[operation_id] * 4))
    assert office.operation(operation_id).status == "succeeded"
    assert office.row("SELECT count(*) AS made FROM accounts WHERE kind = 'customer'").made == 1
    assert office.row("SELECT count(*) AS posted FROM credit_transactions").posted == 1


def test_of_two_signups_with_one_address_one_wins(office: Office) -> None:
    request = SignUp(account_name="Ada", email="ada@example.com", password_hash="hash")
    rows = at_once(*executing(office, *(office.accept(OperationKind.SIGN_UP, request) for _ in range(3))))
    assert Counter((row.status, (row.problem or {}).get("code")) for row in rows) == {
        ("succeeded", None): 1,
        ("failed", "email_taken"): 2,
    }
    assert office.row("SELECT count(*) AS made FROM accounts WHERE kind = 'customer'").made == 1


def test_one_idempotency_key_accepts_one_operation(office: Office) -> None:
    def accept(tx: Tx, body: bytes) -> tuple[UUID, bool]:
        return operations.accept(
            tx,
            operation_id=new_id(),
            kind=OperationKind.SIGN_UP,
            payload={},
            payload_version=1,
            account_id=None,
            principal_kind=PrincipalKind.ANONYMOUS,
            principal_id=None,
            idempotency_scope="signup",
            idempotency_key="key",
            request_hash=body,
            first_send_after=timedelta(),
            now=office.now,
        )

    outcomes = at_once(*[in_transaction(office, lambda tx: accept(tx, b"one body"))] * 5)
    assert len({operation_id for operation_id, _ in outcomes}) == 1
    assert sorted(replayed for _, replayed in outcomes) == [False, True, True, True, True]
    (other,) = at_once(in_transaction(office, lambda tx: accept(tx, b"another body")))
    assert isinstance(other, IdempotencyKeyReused)


def test_who_signs_up_while_the_clock_moves_lives_from_where_it_stops(office: Office) -> None:
    clock_id = office.make_clock(on("2026-01-10"))
    request = SignUp(account_name="Ada", email="ada@example.com", password_hash="hash", test_clock_id=clock_id)
    operation_id = office.accept(OperationKind.SIGN_UP, request)
    with ThreadPoolExecutor(1) as threads:
        with office.database.transaction() as tx:
            test_clocks.set_forward(tx, clock_id, on("2026-03-10"))
            signup = threads.submit(office.execute, operation_id)
            wait_for_a_lock(office)
        assert signup.result().status == "succeeded"
    assert office.row("SELECT acted_at FROM accounts WHERE kind = 'customer'").acted_at == on("2026-03-10")


def wait_for_a_lock(office: Office) -> None:
    """Until some transaction waits for another one."""
    for _ in range(500):
        if office.rows("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"):
            return
        sleep(0.01)
    raise AssertionError("nobody waits")


# --- a rollover and those who spend meanwhile ---------------------------------------------------------------


def test_spending_waits_for_the_batch_that_rolls_its_account_and_for_no_other(office: Office) -> None:
    people = [office.sign_up() for _ in range(2)]
    for who in people:
        office.assign(who, "free")
    first, second = sorted(people, key=lambda who: who.account_id)
    office.now = on("2026-02-20")
    with ThreadPoolExecutor(1) as threads, office.database.transaction() as other_batch:
        with office.database.transaction() as batch:
            assert roll_one(office, batch) == 1
            assert roll_one(office, other_batch) == 1, "it passes by what is locked"
            spending = threads.submit(office.consume, first, 100, "call")
            wait_for_a_lock(office)
            assert not spending.done()
        assert spending.result(timeout=10).balance_credits == 0, "the other batch is still open"
    assert office.consume(second, 100, "call").balance_credits == 0


def roll_one(office: Office, tx: Tx) -> int:
    rules = load_rules(tx, office.settings)
    return advance_due_accounts(tx, rules, Transition.GRANT_EXPIRY, as_of=office.now, limit=1)


# --- money ------------------------------------------------------------------------------------------------


def test_two_approvals_and_a_rejection_are_one_decision(office: Office) -> None:
    for _ in range(4):
        who = office.sign_up()
        transfer_id = office.submit(who, office.open_invoice(who))
        decisions = [office.approval(who, transfer_id), office.rejection(who, transfer_id)]
        decisions.append(office.approval(who, transfer_id))
        rows = at_once(*executing(office, *decisions))
        decided = office.row("SELECT status, payment_id FROM bank_transfers WHERE id = %(id)s", id=transfer_id)
        problem = "already_approved" if decided.status == "approved" else "already_rejected"
        assert Counter((row.status, (row.problem or {}).get("code")) for row in rows) == {
            ("succeeded", None): 1,
            ("failed", problem): 2,
        }
        paid = office.row("SELECT status FROM invoices WHERE account_id = %(id)s", id=who.account_id).status
        assert (paid == "paid") == (decided.status == "approved") == (decided.payment_id is not None)


def test_two_confirmations_of_one_payment_settle_once(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    payment = office.card_payment(who, invoice_id)
    rows = at_once(*executing(office, *(office.confirmation(who, invoice_id, payment) for _ in range(3))))
    assert {row.status for row in rows} == {"succeeded"}
    assert len({row.result["payment_id"] for row in rows}) == 1
    assert office.row("SELECT count(*) AS made FROM payments").made == 1
    assert office.row("SELECT count(*) AS posted FROM credit_transactions").posted == 2


def test_two_payments_for_one_invoice_settle_it_once(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    payments = [office.card_payment(who, invoice_id) for _ in range(2)]
    rows = at_once(*executing(office, *(office.confirmation(who, invoice_id, payment) for payment in payments)))
    assert sorted(row.status for row in rows) == ["failed", "succeeded"]
    assert {row.problem["code"] for row in rows if row.problem} == {"invoice_not_open"}


def test_a_card_and_a_bank_transfer_settle_an_invoice_once(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    approval = office.approval(who, office.submit(who, invoice_id))
    confirmation = office.confirmation(who, invoice_id, office.card_payment(who, invoice_id))
    rows = at_once(*executing(office, approval, confirmation))
    assert sorted(row.status for row in rows) == ["failed", "succeeded"]
    kept = office.row("SELECT count(applied_at) AS applied, count(unapplied_reason) AS unapplied FROM payments")
    assert tuple(kept) == (1, 1), "the other money stays visible"


def test_a_payment_and_the_end_of_the_trial_come_one_after_the_other(office: Office) -> None:
    for _ in range(4):
        office.now = on("2026-01-10")
        who = office.sign_up()
        invoice_id = office.open_invoice(who)
        payment = office.card_payment(who, invoice_id)
        office.now = on("2026-01-25")
        confirmation = office.confirmation(who, invoice_id, payment)
        at_once(*executing(office, confirmation), lambda: office.run_job(Transition.TRIAL_END, office.now))
        periods = office.rows(
            "SELECT starts_at FROM subscription_periods WHERE account_id = %(id)s ORDER BY starts_at",
            id=who.account_id,
        )
        assert [row.starts_at for row in periods] == [on("2026-01-10"), on("2026-01-25")]
        assert office.state(who).account.status == "active"


def test_invoice_numbers_have_no_gap_though_some_transactions_roll_back(office: Office) -> None:
    people = [office.sign_up() for _ in range(6)]

    def checkouts(who: Customer) -> Work:
        def work() -> None:
            for number, plan in enumerate(["starter", "growth", "scale"] * 2):
                operation_id = office.accept(
                    OperationKind.OPEN_INVOICE,
                    _checkout(plan),
                    account_id=who.account_id,
                    by=who.user_id,
                )
                if number % 2:
                    _execute_and_roll_back(office, operation_id)
                office.execute(operation_id)

        return work

    at_once(*(checkouts(who) for who in people))
    rows = office.rows("SELECT number, reference FROM invoices ORDER BY number")
    assert [row.number for row in rows] == list(range(1, 6 * 6 + 1))
    assert len({row.reference for row in rows}) == len(rows)
    assert office.row("SELECT last_number FROM invoice_numbers").last_number == len(rows)


def _execute_and_roll_back(office: Office, operation_id: UUID) -> None:
    with suppress(ZeroDivisionError), office.database.transaction() as tx:
        _execute_in(tx, office, operation_id)
        raise ZeroDivisionError


def _checkout(plan: str) -> OpenInvoice:
    return OpenInvoice(plan=plan, payment_method=PaymentMethod.MANUAL)


def _execute_in(tx: Tx, office: Office, operation_id: UUID) -> None:
    operation = operations.begin_attempt(tx.maybe, operation_id)
    assert operation is not None
    request = _checkout(operation.payload["plan"])
    open_invoice(tx, operation, request, load_rules(tx, office.settings), now=operation.created_at)


# --- credits ----------------------------------------------------------------------------------------------


def consuming(office: Office, who: Customer, amount: int, key: str) -> Work:
    return in_transaction(
        office,
        lambda tx: credits.consume(office.asker(tx, who), amount, key=key, reason=None, now=office.now),
    )


def test_parallel_consumption_never_goes_below_zero(office: Office) -> None:
    who = office.sign_up()
    office.adjust(who, 100)

    def many(name: int) -> Work:
        def work() -> Counter[str]:
            outcomes: Counter[str] = Counter()
            for turn in range(15):
                try:
                    consuming(office, who, 37, f"{name}/{turn}")()
                    outcomes["taken"] += 1
                except InsufficientCredits:
                    outcomes["refused"] += 1
            return outcomes

        return work

    total = sum(at_once(*(many(name) for name in range(8))), Counter[str]())
    assert total == {"taken": 2_100 // 37, "refused": 8 * 15 - 2_100 // 37}
    assert office.balance(who).available_credits == 2_100 % 37


def test_one_key_consumes_once(office: Office) -> None:
    who = office.sign_up()
    outcomes = at_once(*[consuming(office, who, 300, "key")] * 6)
    assert {one.balance_credits for one in outcomes} == {1_700}
    assert Counter(one.replayed for one in outcomes) == {False: 1, True: 5}
    assert office.balance(who).available_credits == 1_700


def held(office: Office, who: Customer, amount: int, key: str = "hold") -> UUID:
    with office.database.transaction() as tx:
        placed = credits.place_hold(office.asker(tx, who), amount, key=key, ttl_seconds=900, now=office.now)
    return placed.hold.id


def test_a_hold_is_captured_once(office: Office) -> None:
    who = office.sign_up()
    hold_id = held(office, who, 500)
    outcomes = at_once(*[partial(office.capture, who, hold_id, 200)] * 4)
    assert Counter(one.replayed for one in outcomes) == {False: 1, True: 3}
    assert office.balance(who).available_credits == 1_800


def test_of_two_captures_with_two_amounts_one_wins(office: Office) -> None:
    who = office.sign_up()
    hold_id = held(office, who, 500)
    outcomes = at_once(*(partial(office.capture, who, hold_id, amount) for amount in (100, 200)))
    assert sorted(isinstance(one, HoldNotOpen) for one in outcomes) == [False, True]
    assert office.balance(who).available_credits in {1_900, 1_800}


def test_a_hold_is_captured_or_released(office: Office) -> None:
    who = office.sign_up()
    for turn in range(6):
        before = office.balance(who).available_credits
        hold_id = held(office, who, 100, f"hold {turn}")
        captured, released = at_once(partial(office.capture, who, hold_id, 60), partial(office.release, who, hold_id))
        assert isinstance(captured, HoldNotOpen) != isinstance(released, HoldNotOpen)
        taken = 0 if isinstance(captured, HoldNotOpen) else 60
        assert office.balance(who).available_credits == before - taken


def test_holds_and_consumption_share_what_there_is(office: Office) -> None:
    who = office.sign_up()
    holds = [
        in_transaction(
            office,
            lambda tx, key=f"h{turn}": credits.place_hold(  # type: ignore[misc]
                office.asker(tx, who), 700, key=key, ttl_seconds=900, now=office.now
            ),
        )
        for turn in range(3)
    ]
    outcomes = at_once(*holds, *(consuming(office, who, 700, f"c{turn}") for turn in range(3)))
    assert sum(isinstance(one, InsufficientCredits) for one in outcomes) == 4
    assert office.balance(who).available_credits == 600


def test_consumption_beside_renewals_loses_nothing(office: Office) -> None:
    who = office.sign_up()
    office.assign(who, "free")

    def consume() -> int:
        taken = 0
        for turn in range(30):
            try:
                office.consume(who, 3, f"call {turn}")
                taken += 3
            except InsufficientCredits:
                pass
        return taken

    def renew() -> None:
        for month in range(2, 8):
            office.run_job(Transition.GRANT_EXPIRY, on(f"2026-0{month}-10"))

    taken, _ = at_once(consume, renew)
    rows = office.rows("SELECT kind, sum(amount) AS total FROM credit_transactions GROUP BY kind")
    sums = {row.kind: int(row.total) for row in rows}
    assert -sums.get("consume", 0) == taken
    assert office.state(who).account.balance_credits == sum(sums.values())


# --- trials ---------------------------------------------------------------------------------------------


def test_of_several_signups_with_one_mailbox_one_gets_the_trial(office: Office) -> None:
    signups = [SignUp(account_name="Ada", email=f"ada+{n}@example.com", password_hash="hash") for n in range(4)]
    rows = at_once(*executing(office, *(office.accept(OperationKind.SIGN_UP, signup) for signup in signups)))
    assert Counter(row.result["plan"] for row in rows) == {"free-trial": 1, "free": 3}
