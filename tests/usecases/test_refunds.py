"""Money goes back once, whatever happens on the way; credits that it paid for go back with it, as far as unspent."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy import Row

from shared.db import invoices, ledger, operations
from shared.db.engine import Tx
from shared.domain.explanation import statement
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import Operation, OperationKind
from shared.domain.payment import ProviderRefund, ProviderStatus, RefundRequest
from shared.domain.printable import Seller
from shared.domain.refund import KEY_LASTS, MADE_AT_THE_PROVIDER
from shared.domain.requests import ConfirmPayment, RefundPayment
from shared.errors import ProviderDown, ProviderRefused
from shared.ids import new_id
from shared.providers.sandbox import SandboxProvider
from shared.usecases.confirm_payment import record_intent
from shared.usecases.refund_payment import complete_refund, record_refund
from tests.factories import Table, cases, on
from tests.office import Customer, Office
from tests.usecases.test_races import at_once, executing

Story = Callable[[Office, Customer], Any]


class Desk(SandboxProvider):
    """A provider that remembers its refunds, and does with the next one what a test says."""

    def __init__(self, office: Office) -> None:
        super().__init__(office.database)
        self.made: list[ProviderRefund] = []
        self.answers: dict[str, ProviderRefund] = {}
        self.says = ProviderStatus.SUCCEEDED
        self.refuses = False
        self.answer_gets_lost = False

    def refund(self, request: RefundRequest) -> ProviderRefund:
        if self.refuses:
            raise ProviderRefused("the desk refuses this: closed", provider="sandbox", reason="closed")
        if request.idempotency_key not in self.answers:
            self.answers[request.idempotency_key] = self.make(request.external_payment_id, request.amount_minor)
        if self.answer_gets_lost:
            raise ProviderDown("the answer got lost")
        return self.answers[request.idempotency_key]

    def refunds_of(self, external_payment_id: str) -> list[ProviderRefund]:
        return [refund for refund in self.made if refund.external_payment_id == external_payment_id]

    def make(self, external_payment_id: str, amount_minor: int) -> ProviderRefund:
        """What somebody may do in its dashboard."""
        made = ProviderRefund(
            refund_id=f"re_{new_id()}",
            status=self.says,
            amount_minor=amount_minor,
            currency="USD",
            external_payment_id=external_payment_id,
            reason="expired_card" if self.says is ProviderStatus.FAILED else None,
        )
        self.made.insert(0, made)
        return made

    def move_on(self, status: ProviderStatus) -> None:
        """All refunds come so far."""
        reason = "expired_card" if status is ProviderStatus.FAILED else None
        self.made = [replace(refund, status=status, reason=reason) for refund in self.made]


@pytest.fixture
def who(office: Office) -> Customer:
    """Has paid 89.00 for a month of 1,000 credits, and has no others."""
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    who = office.sign_up()
    office.buy(who)
    return who


@pytest.fixture
def desk(office: Office) -> Desk:
    desk = Desk(office)
    office.provider = desk
    return desk


def payment_of(office: Office, who: Customer) -> Row[Any]:
    """The newest."""
    return office.rows(
        "SELECT * FROM payments WHERE account_id = %(id)s AND status = 'succeeded' ORDER BY id DESC LIMIT 1",
        id=who.account_id,
    )[0]


def refund(office: Office, who: Customer, amount_minor: int | None = None) -> dict[str, Any]:
    """Of the newest payment; its result."""
    row = office.refund(payment_of(office, who).id, amount_minor)
    assert row.status == "succeeded", row.problem
    result: dict[str, Any] = row.result
    return result


def made(office: Office) -> list[str]:
    """Status and amount of all refunds, and the credits that they took and could not take."""
    rows = office.rows("SELECT * FROM refunds ORDER BY id")
    return [f"{row.status} {row.amount_minor}: {row.reversed_credits} + {row.spent_credits}" for row in rows]


def told(office: Office, kind: str) -> list[dict[str, Any]]:
    return [row.data for row in office.rows("SELECT data FROM events WHERE kind = %(kind)s ORDER BY id", kind=kind)]


def audited(office: Office, action: str) -> list[Row[Any]]:
    return office.rows("SELECT * FROM audit_log WHERE action = %(action)s ORDER BY id", action=action)


# --- how much, and which credits ----------------------------------------------------------------


def nothing(office: Office, who: Customer) -> None:
    """All 1,000 credits are there."""


def spent_in_part(office: Office, who: Customer) -> None:
    office.consume(who, 800, "call")


def spent_wholly(office: Office, who: Customer) -> None:
    office.consume(who, 1_000, "call")


def held_in_part(office: Office, who: Customer) -> None:
    office.hold(who, 700, "hold")


def with_a_gift(office: Office, who: Customer) -> None:
    """Which was not paid for, and stays."""
    office.adjust(who, 500)
    office.consume(who, 900, "call")


def month_reversed_by_an_admin(office: Office, who: Customer) -> None:
    office.consume(who, 100, "call")
    office.reverse(who, 1)


def expired(office: Office, who: Customer) -> None:
    """The month is over, and the next one is not paid: its credits expired, and were not taken by anybody."""
    office.consume(who, 100, "call")
    office.tick(on("2026-02-10"))


def expired_unswept(office: Office, who: Customer) -> None:
    """The same, before any job has been there."""
    office.consume(who, 100, "call")
    office.now = on("2026-02-10")


REFUNDED: Table = {
    "all of it": (nothing, [None], ["succeeded 8900: 1000 + 0"], 0),
    "a part": (nothing, [44_50], ["succeeded 4450: 500 + 0"], 500),
    "a part takes its share, rounded down": (nothing, [1_00], ["succeeded 100: 11 + 0"], 989),
    "a part too small for a credit": (nothing, [1], ["succeeded 1: 0 + 0"], 1_000),
    "two parts": (nothing, [44_50, 44_50], ["succeeded 4450: 500 + 0", "succeeded 4450: 500 + 0"], 0),
    "a part, and all that is left": (nothing, [10_01, None], ["succeeded 1001: 112 + 0", "succeeded 7899: 888 + 0"], 0),
    "what is spent in part": (spent_in_part, [None], ["succeeded 8900: 200 + 800"], 0),
    "a part, where enough is left": (spent_in_part, [8_90], ["succeeded 890: 100 + 0"], 100),
    "parts of what is spent in part": (
        spent_in_part,
        [44_50, 44_50],
        ["succeeded 4450: 200 + 300", "succeeded 4450: 0 + 800"],
        0,
    ),
    "what is spent wholly": (spent_wholly, [None], ["succeeded 8900: 0 + 1000"], 0),
    "what is held stays held": (held_in_part, [None], ["succeeded 8900: 300 + 700"], 700),
    "a gift stays": (with_a_gift, [None], ["succeeded 8900: 100 + 900"], 500),
    "what an admin took is not there any more": (month_reversed_by_an_admin, [None], ["succeeded 8900: 0 + 1000"], 0),
    "what has expired is not there any more": (expired, [None], ["succeeded 8900: 0 + 1000"], 0),
    "whether or not a job has been there": (expired_unswept, [None], ["succeeded 8900: 0 + 1000"], 0),
}


@pytest.mark.parametrize(("story", "amounts", "rows", "balance"), cases(REFUNDED))
def test_refunded(
    office: Office, who: Customer, story: Story, amounts: list[int | None], rows: list[str], balance: int
) -> None:
    story(office, who)
    payment = payment_of(office, who)
    results = [refund(office, who, amount) for amount in amounts]
    assert (made(office), office.balance(who).balance_credits) == (rows, balance)
    assert payment_of(office, who).refunded_minor == sum(result["amount_minor"] for result in results)
    assert [result["payment_id"] for result in results] == [str(payment.id)] * len(amounts)
    with office.database.transaction() as tx:
        sums = statement(ledger.grant_statements(tx, who.account_id), balance_credits=balance)
    assert sums.fails == []


def renewed(office: Office, who: Customer) -> tuple[UUID, UUID]:
    """The payments of January and of February, which was paid late."""
    january = payment_of(office, who).id
    office.tick(on("2026-02-10"))
    office.now += timedelta(days=2)
    office.pay(who, office.row("SELECT id FROM invoices WHERE status = 'open'").id)
    return january, payment_of(office, who).id


def test_a_payment_has_the_credits_of_its_own_period(office: Office, who: Customer) -> None:
    january, february = renewed(office, who)
    assert office.refund(january).result["reversed_credits"] == 0
    assert office.balance(who).balance_credits == 1_000, "February was paid by another one"
    assert office.refund(february).result["reversed_credits"] == 1_000
    assert made(office) == ["succeeded 8900: 0 + 1000", "succeeded 8900: 1000 + 0"]


def test_of_a_year_all_months_that_were_seeded_so_far(office: Office) -> None:
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    office.change("UPDATE plans SET interval = 'year', credit_rollover = 'all' WHERE slug = 'starter'")
    who = office.sign_up()
    office.buy(who)
    office.tick(on("2026-03-10"))
    office.consume(who, 500, "call")
    assert office.balance(who).balance_credits == 2_500
    assert refund(office, who, 44_50)["reversed_credits"] == 1_500

    office.tick(on("2026-04-10"))
    assert office.balance(who).balance_credits == 2_000, "the subscription goes on"
    refund(office, who)
    assert made(office) == ["succeeded 4450: 1500 + 0", "succeeded 4450: 2000 + 500"]


def test_a_month_that_is_due_is_there_before_the_credits_are_counted(office: Office) -> None:
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    office.change("UPDATE plans SET interval = 'year', credit_rollover = 'all' WHERE slug = 'starter'")
    who = office.sign_up()
    office.buy(who)
    office.now = on("2026-02-10")
    assert refund(office, who)["reversed_credits"] == 2_000


def test_credits_go_back_soonest_expiry_first(office: Office) -> None:
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    office.change(
        """
        UPDATE plans SET interval = 'year', credit_rollover = 'cap', credit_rollover_cap = 400 WHERE slug = 'starter'
        """
    )
    who = office.sign_up()
    office.buy(who)
    office.tick(on("2026-02-10"))
    assert refund(office, who, 22_25)["reversed_credits"] == 500
    left = office.rows("SELECT remaining FROM credit_grants WHERE amount > 0 ORDER BY effective_at")
    assert [row.remaining for row in left] == [0, 900]


def test_a_plan_that_an_admin_gave_in_the_meantime_keeps_its_credits(office: Office, who: Customer) -> None:
    office.now += timedelta(days=3)
    office.assign(who, "enterprise")
    assert office.balance(who).balance_credits == 11_000
    assert refund(office, who)["reversed_credits"] == 1_000
    assert office.balance(who).balance_credits == 10_000


def test_a_refund_changes_no_subscription(office: Office, who: Customer) -> None:
    before = office.state(who)
    refund(office, who)
    after = office.state(who)
    assert (after.live, after.account.status) == (before.live, before.account.status)
    assert office.row("SELECT status FROM invoices").status == "paid"
    office.tick(on("2026-02-10"))
    assert office.row("SELECT count(*) AS open FROM invoices WHERE status = 'open'").open == 1, "it renews as ever"


# --- what it says -------------------------------------------------------------------------------


def test_the_operation_the_event_and_the_audit_log_tell_of_it(office: Office, who: Customer) -> None:
    office.consume(who, 900, "call")
    payment = payment_of(office, who)
    office.now += timedelta(days=1)
    answer = office.refund(payment.id, 44_50)
    (row,) = office.rows("SELECT * FROM refunds")
    facts = {
        "refund_id": str(row.id),
        "amount_minor": 44_50,
        "currency": "USD",
        "status": "succeeded",
        "reversed_credits": 100,
        "spent_credits": 400,
    }
    assert answer.result == facts | {
        "account_id": str(who.account_id),
        "payment_id": str(payment.id),
        "external_refund_id": row.external_refund_id,
    }
    assert row.external_refund_id.startswith("sandbox_refund_")
    assert (row.operation_id, row.reason, row.confirmed_at) == (answer.id, "unhappy", office.now)
    event = office.row("SELECT * FROM events WHERE kind = 'payment.refunded'")
    assert (event.subject_id, event.occurred_at) == (payment.id, office.now)
    assert event.data == facts | {"invoice_id": str(payment.invoice_id)}
    (noted,) = audited(office, "payment.refunded")
    assert (noted.actor_kind, noted.actor_id, noted.reason) == ("admin", office.admin_id, "unhappy")
    assert (noted.account_id, noted.subject_id, noted.operation_id) == (who.account_id, payment.id, answer.id)
    assert noted.before == {"refunded_minor": 0, "balance_credits": 100}
    assert noted.after == facts | {"refunded_minor": 44_50, "balance_credits": 0}


def test_its_rows_of_the_ledger_say_why_they_are_there(office: Office, who: Customer) -> None:
    answers = [office.refund(payment_of(office, who).id, amount) for amount in (44_50, None)]
    with office.database.transaction() as tx:
        seed, first, second = (ledger.explain(tx, who.account_id, seq) for seq in (1, 2, 3))
        email = tx.scalar("SELECT email FROM admins WHERE id = %(id)s", id=office.admin_id)
    assert seed.reversed_by_seqs == [2, 3]
    assert (seed.refund, seed.operation) == (None, None)
    for row, answer in zip((first, second), answers, strict=True):
        assert (row.kind, row.amount, row.reverses_seq, row.reason) == ("reverse", -500, 1, "unhappy")
        assert (row.rule.name, row.rule.section) == ("refunded", "Refunds 7")
        assert row.refund is not None
        assert (row.refund.id, row.refund.payment_id) == (UUID(answer.result["refund_id"]), row.source_id)
        assert (row.refund.amount_minor, row.refund.currency, row.refund.status) == (44_50, "USD", "succeeded")
        assert row.operation is not None
        assert (row.operation.id, row.operation.kind) == (answer.id, "refund_payment")
        for for_admins, name in ((True, email), (False, None)):
            actor = row.actor(for_admins=for_admins)
            assert actor is not None
            assert (actor.kind, actor.id, actor.name) == ("admin", office.admin_id, name)


def test_that_credits_run_out_is_told(office: Office, who: Customer) -> None:
    refund(office, who)
    assert len(told(office, "credits.exhausted")) == 1


def test_what_an_admin_can_still_reverse(office: Office, who: Customer) -> None:
    """A seed of which a refund took a part is reversed; a consumption is not, and can be."""
    office.consume(who, 400, "call")
    refund(office, who, 44_50)
    assert office.reverse(who, 1).problem["code"] == "already_reversed"
    assert office.reverse(who, 3).problem["code"] == "not_reversible"
    assert office.reverse(who, 2).result["reversed_credits"] == 400
    assert refund(office, who)["reversed_credits"] == 500, "what came back is looked for again"


# --- by hand ------------------------------------------------------------------------------------


def paid_by_transfer(office: Office) -> Customer:
    who = office.sign_up()
    office.execute(office.approval(who, office.submit(who, office.open_invoice(who))))
    return who


def paid_in_cash(office: Office) -> Customer:
    who = office.sign_up()
    office.record_payment(who, office.open_invoice(who))
    return who


@pytest.mark.parametrize("paid", [paid_by_transfer, paid_in_cash])
def test_where_no_provider_does_it_an_admins_word_is_the_answer(
    office: Office, desk: Desk, paid: Callable[[Office], Customer]
) -> None:
    payment = payment_of(office, paid(office))
    answer = office.refund(payment.id, 44_50, transfer_reference="SEPA 4711")
    assert (answer.result["status"], answer.result["external_refund_id"]) == ("succeeded", None)
    (row,) = office.rows("SELECT * FROM refunds")
    assert (row.transfer_reference, row.reversed_credits) == ("SEPA 4711", 500)
    assert desk.made == []


# --- refused ------------------------------------------------------------------------------------


def of_a_failed_payment(office: Office, who: Customer) -> UUID:
    invoice_id = office.open_invoice(who, "scale", PaymentMethod.SANDBOX)
    office.execute(office.confirmation(who, invoice_id, office.card_payment(who, invoice_id, succeeded=False)))
    payment_id: UUID = office.row("SELECT id FROM payments WHERE status = 'failed'").id
    return office.refunding(payment_id)


def of_no_payment(office: Office, who: Customer) -> UUID:
    request = RefundPayment(payment_id=new_id(), reason="unhappy")
    return office.accept(OperationKind.REFUND_PAYMENT, request, account_id=who.account_id, by=office.admin_id)


def of_more_than_came(office: Office, who: Customer) -> UUID:
    return office.refunding(payment_of(office, who).id, 89_01)


def of_more_than_is_left(office: Office, who: Customer) -> UUID:
    refund(office, who, 50_00)
    return office.refunding(payment_of(office, who).id, 39_01)


def of_what_has_gone_back(office: Office, who: Customer) -> UUID:
    refund(office, who)
    return office.refunding(payment_of(office, who).id)


def with_a_reference_though_a_provider_does_it(office: Office, who: Customer) -> UUID:
    return office.refunding(payment_of(office, who).id, transfer_reference="SEPA 4711")


def without_a_reference_though_none_does(office: Office, who: Customer) -> UUID:
    return office.refunding(payment_of(office, paid_by_transfer(office)).id)


REFUSED: Table = {
    "of a payment that came to nothing": (of_a_failed_payment, "payment_not_succeeded"),
    "of a payment that is not there": (of_no_payment, "not_found"),
    "of more than came": (of_more_than_came, "refund_exceeds_payment"),
    "of more than is left": (of_more_than_is_left, "refund_exceeds_payment"),
    "of what has gone back": (of_what_has_gone_back, "refund_exceeds_payment"),
    "with a reference though a provider does it": (with_a_reference_though_a_provider_does_it, "invalid_input"),
    "without a reference though none does": (without_a_reference_though_none_does, "invalid_input"),
}


@pytest.mark.parametrize(("refunding", "code"), cases(REFUSED))
def test_refused_and_nothing_is_written(
    office: Office, who: Customer, refunding: Callable[[Office, Customer], UUID], code: str
) -> None:
    operation_id = refunding(office, who)
    before = office.dump("operations")
    row = office.execute(operation_id)
    assert (row.status, (row.problem or {}).get("code")) == ("failed", code)
    assert office.dump("operations") == before


# --- money that settles nothing -----------------------------------------------------------------


def unapplied(office: Office) -> tuple[Customer, UUID]:
    """Money that came for an invoice that another payment had settled."""
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    who = office.sign_up()
    invoice_id = office.buy(who)
    office.execute(office.confirmation(who, invoice_id, office.card_payment(who, invoice_id)))
    payment_id: UUID = office.row("SELECT id FROM payments WHERE unapplied_reason IS NOT NULL").id
    return who, payment_id


def of_nobody(office: Office) -> UUID:
    """Money of which nobody knows who sent it."""
    payment_id = new_id()
    office.change(
        """
        INSERT INTO payments (id, operation_id, provider, external_payment_id, status, amount_minor, currency,
                              confirmed_at, unapplied_reason)
        VALUES (%(id)s, %(operation_id)s, 'bank_transfer', 'bank-1', 'succeeded', 8900, 'USD', now(), 'not_found')
        """,
        id=payment_id,
        operation_id=new_id(),
    )
    return payment_id


def test_what_settles_nothing_goes_back_without_credits(office: Office) -> None:
    who, payment_id = unapplied(office)
    answer = office.refund(payment_id)
    assert (answer.result["amount_minor"], answer.result["reversed_credits"]) == (89_00, 0)
    assert office.balance(who).balance_credits == 1_000
    assert len(told(office, "payment.refunded")) == 1


def test_what_nobody_is_known_to_have_sent_goes_back_too(office: Office) -> None:
    payment_id = of_nobody(office)
    answer = office.refund(payment_id, transfer_reference="SEPA 4711")
    assert (answer.status, answer.account_id, answer.result["account_id"]) == ("succeeded", None, None)
    assert told(office, "payment.refunded") == [], "there is nobody to tell"
    (noted,) = audited(office, "payment.refunded")
    assert (noted.account_id, noted.subject_id, noted.actor_id) == (None, payment_id, office.admin_id)


# --- once ---------------------------------------------------------------------------------------


def test_delivered_twice_it_happens_once(office: Office, who: Customer, desk: Desk) -> None:
    answer = office.refund(payment_of(office, who).id, 44_50)
    before = office.dump()
    office.execute(answer.id)
    assert (office.dump(), len(desk.made)) == (before, 1)


def begun(office: Office, operation_id: UUID) -> tuple[Operation, RefundPayment]:
    with office.database.transaction() as tx:
        operation = operations.begin_attempt(tx.maybe, operation_id)
    assert operation is not None
    return operation, msgspec.convert(operation.payload, RefundPayment)


def only_recorded(office: Office, desk: Desk, operation_id: UUID) -> None:
    """The worker died before it asked."""
    with office.database.transaction() as tx:
        record_refund(tx, *begun(office, operation_id), office.rules())


def asked_in_vain(office: Office, desk: Desk, operation_id: UUID) -> None:
    """The money moved, and nobody heard of it."""
    desk.answer_gets_lost = True
    assert office.execute(operation_id).status == "pending"
    desk.answer_gets_lost = False


def answered_and_not_written_down(office: Office, desk: Desk, operation_id: UUID) -> None:
    """The worker died before it could commit."""
    operation, request = begun(office, operation_id)
    with office.database.transaction() as tx:
        intent = record_refund(tx, operation, request, office.rules())
    assert intent.request is not None
    answer = desk.refund(intent.request)
    with office.database.connect() as connection:  # what nobody commits is undone
        complete_refund(Tx(connection), operation, request, answer, office.rules(), now=office.now)


@pytest.mark.parametrize("dies", [only_recorded, asked_in_vain, answered_and_not_written_down])
def test_whatever_happens_on_the_way_it_happens_once(
    office: Office, who: Customer, desk: Desk, dies: Callable[[Office, Desk, UUID], None]
) -> None:
    operation_id = office.refunding(payment_of(office, who).id, 44_50)
    dies(office, desk, operation_id)
    assert made(office) == ["pending 4450: 0 + 0"], "what is on its way counts"
    assert payment_of(office, who).refunded_minor == 44_50
    assert office.execute(operation_id).status == "succeeded"
    assert made(office) == ["succeeded 4450: 500 + 0"]
    assert [refund.amount_minor for refund in desk.made] == [44_50]


def test_two_refunds_at_once_never_give_back_more_than_came(office: Office, who: Customer, desk: Desk) -> None:
    payment_id = payment_of(office, who).id
    rows = at_once(*executing(office, *(office.refunding(payment_id, 30_00) for _ in range(4))))
    assert Counter((row.status, (row.problem or {}).get("code")) for row in rows) == {
        ("succeeded", None): 2,
        ("failed", "refund_exceeds_payment"): 2,
    }
    assert payment_of(office, who).refunded_minor == 60_00 == sum(refund.amount_minor for refund in desk.made)
    assert office.balance(who).balance_credits == 1_000 - 674


def test_one_refund_delivered_to_four_workers_happens_once(office: Office, who: Customer, desk: Desk) -> None:
    operation_id = office.refunding(payment_of(office, who).id, 30_00)
    at_once(*executing(office, *[operation_id] * 4))
    assert office.operation(operation_id).status == "succeeded"
    assert (len(desk.made), made(office)) == (1, ["succeeded 3000: 337 + 0"])


def test_a_refund_and_a_consumption_at_once_take_each_credit_once(office: Office, who: Customer) -> None:
    operation_id = office.refunding(payment_of(office, who).id)
    at_once(*executing(office, operation_id), lambda: office.consume(who, 700, "call"))
    assert office.operation(operation_id).result["reversed_credits"] in {300, 1_000}
    assert office.balance(who).balance_credits == 0


# --- what the provider makes of it --------------------------------------------------------------


def test_what_a_provider_refuses_can_be_given_back_again(office: Office, who: Customer, desk: Desk) -> None:
    payment_id = payment_of(office, who).id
    desk.refuses = True
    answer = office.refund(payment_id, 44_50)
    assert (answer.status, answer.problem["code"], answer.problem["reason"]) == ("failed", "provider_refused", "closed")
    (row,) = office.rows("SELECT * FROM refunds")
    assert (row.status, row.problem, row.confirmed_at) == ("failed", "closed", office.now)
    assert (payment_of(office, who).refunded_minor, office.balance(who).balance_credits) == (0, 1_000)
    (fact,) = told(office, "payment.refund_failed")
    assert (fact["refund_id"], fact["problem"], fact["credits_not_given_back"]) == (str(row.id), "closed", 0)
    assert (told(office, "payment.refunded"), audited(office, "payment.refunded")) == ([], [])

    desk.refuses = False
    assert office.refund(payment_id).result["amount_minor"] == 89_00


def test_a_refund_that_fails_at_once_is_a_refusal(office: Office, who: Customer, desk: Desk) -> None:
    desk.says = ProviderStatus.FAILED
    answer = office.refund(payment_of(office, who).id, 44_50)
    assert (answer.status, answer.problem["reason"]) == ("failed", "expired_card")
    assert made(office) == ["failed 4450: 0 + 0"]
    assert office.row("SELECT external_refund_id FROM refunds").external_refund_id == desk.made[0].refund_id


def on_its_way(office: Office, who: Customer, desk: Desk) -> str:
    """The provider has taken it up, and does not know yet; the payment as the provider knows it."""
    office.consume(who, 800, "call")
    desk.says = ProviderStatus.PENDING
    assert refund(office, who, 44_50)["status"] == "pending"
    assert made(office) == ["pending 4450: 200 + 300"]
    return str(payment_of(office, who).external_payment_id)


def test_what_is_on_its_way_arrives(office: Office, who: Customer, desk: Desk) -> None:
    payment = on_its_way(office, who, desk)
    assert office.row("SELECT confirmed_at FROM refunds").confirmed_at is None
    desk.move_on(ProviderStatus.SUCCEEDED)
    office.now += timedelta(days=1)
    answer = office.follow(payment)
    assert answer.result["refund_ids"] == [str(office.row("SELECT id FROM refunds").id)]
    assert made(office) == ["succeeded 4450: 200 + 300"]
    assert office.row("SELECT confirmed_at FROM refunds").confirmed_at == office.now
    assert len(told(office, "payment.refunded")) == len(audited(office, "payment.refunded")) == 1


@pytest.mark.parametrize("arrived", [False, True], ids=["on its way", "that had arrived"])
def test_what_comes_back_can_be_given_back_again(office: Office, who: Customer, desk: Desk, arrived: bool) -> None:
    payment = on_its_way(office, who, desk)
    if arrived:
        desk.move_on(ProviderStatus.SUCCEEDED)
        office.follow(payment)
    desk.move_on(ProviderStatus.FAILED)
    answer = office.follow(payment)
    assert made(office) == ["failed 4450: 200 + 300"]
    assert (payment_of(office, who).refunded_minor, office.balance(who).balance_credits) == (0, 0)
    (fact,) = told(office, "payment.refund_failed")
    assert (fact["problem"], fact["credits_not_given_back"]) == ("expired_card", 200)
    (noted,) = audited(office, "payment.refund_failed")
    assert (noted.actor_kind, noted.actor_id, noted.operation_id) == ("system", None, answer.id)
    assert noted.after["credits_not_given_back"] == 200

    desk.says = ProviderStatus.SUCCEEDED
    refund(office, who, 44_50)
    assert made(office)[-1] == "succeeded 4450: 0 + 300", "the credits are taken already"


def test_on_paper_is_what_has_arrived(office: Office, who: Customer, desk: Desk) -> None:
    office.change("UPDATE accounts SET time_zone = 'Pacific/Auckland'")
    seller = Seller(name="Acme", address=(), iban="", bic="")

    def printed() -> list[tuple[str, int]]:
        with office.database.transaction() as tx:
            paper = invoices.printable(tx, who.account_id, payment_of(office, who).invoice_id, seller=seller)
        return [(one.refunded_on.isoformat(), one.amount_minor) for one in paper.refunds]

    payment = on_its_way(office, who, desk)
    assert printed() == []
    desk.move_on(ProviderStatus.SUCCEEDED)
    office.follow(payment)
    assert printed() == [("2026-01-11", 44_50)], "where the customer is, it is the next day"
    desk.move_on(ProviderStatus.FAILED)
    office.follow(payment)
    assert printed() == []


def test_nothing_new_changes_nothing(office: Office, who: Customer, desk: Desk) -> None:
    payment = on_its_way(office, who, desk)
    but = ("operations",)
    for status in (ProviderStatus.PENDING, ProviderStatus.SUCCEEDED, ProviderStatus.FAILED):
        desk.move_on(status)
        office.follow(payment)
        before = office.dump(*but)
        assert office.follow(payment).status == "succeeded"
        assert office.dump(*but) == before
    desk.move_on(ProviderStatus.SUCCEEDED)
    assert (office.follow(payment).status, made(office)) == ("succeeded", ["failed 4450: 200 + 300"]), "that is final"


def test_a_late_answer_undoes_no_news(office: Office, who: Customer, desk: Desk) -> None:
    """The same key is answered as it was at first, whatever became of the refund since."""
    operation_id = office.refunding(payment_of(office, who).id, 44_50)
    desk.says = ProviderStatus.PENDING
    asked_in_vain(office, desk, operation_id)
    desk.move_on(ProviderStatus.SUCCEEDED)
    assert office.execute(operation_id).result["status"] == "pending"
    office.follow(payment_of(office, who).external_payment_id)
    assert made(office) == ["succeeded 4450: 500 + 0"]


# --- made in the provider's dashboard -----------------------------------------------------------


def test_a_refund_that_was_made_at_the_provider_counts(office: Office, who: Customer, desk: Desk) -> None:
    refund(office, who, 8_90)
    payment = payment_of(office, who)
    desk.make(payment.external_payment_id, 44_50)
    answer = office.follow(payment.external_payment_id)
    assert made(office) == ["succeeded 890: 100 + 0", "succeeded 4450: 500 + 0"]
    assert payment_of(office, who).refunded_minor == 53_40
    row = office.rows("SELECT * FROM refunds ORDER BY id")[-1]
    assert (row.reason, row.operation_id) == (MADE_AT_THE_PROVIDER, answer.id)
    noted = audited(office, "payment.refunded")[-1]
    assert (noted.actor_kind, noted.actor_id, noted.reason) == ("system", None, MADE_AT_THE_PROVIDER)
    with office.database.transaction() as tx:
        actor = ledger.explain(tx, who.account_id, 3).actor(for_admins=True)
    assert actor is not None
    assert (actor.kind, actor.id, actor.name) == ("system", None, None)


def test_several_of_them_count_in_their_order(office: Office, who: Customer, desk: Desk) -> None:
    payment = payment_of(office, who)
    for amount_minor in (8_90, 17_80, 26_70):
        desk.make(payment.external_payment_id, amount_minor)
    assert len(office.follow(payment.external_payment_id).result["refund_ids"]) == 3
    assert made(office) == ["succeeded 890: 100 + 0", "succeeded 1780: 200 + 0", "succeeded 2670: 300 + 0"]


def test_one_that_failed_before_anybody_heard_of_it_is_nothing(office: Office, who: Customer, desk: Desk) -> None:
    payment = payment_of(office, who)
    desk.says = ProviderStatus.FAILED
    desk.make(payment.external_payment_id, 44_50)
    assert office.follow(payment.external_payment_id).result["refund_ids"] == []
    assert made(office) == []


def test_of_money_that_settles_nothing(office: Office, desk: Desk) -> None:
    _, payment_id = unapplied(office)
    payment = office.row("SELECT external_payment_id FROM payments WHERE id = %(id)s", id=payment_id)
    desk.make(payment.external_payment_id, 89_00)
    office.follow(payment.external_payment_id)
    assert made(office) == ["succeeded 8900: 0 + 0"]


def test_of_a_payment_that_is_none_of_ours(office: Office, desk: Desk) -> None:
    desk.make("somebody else's", 44_50)
    assert office.follow("somebody else's").result == {"account_id": None, "payment_id": None, "refund_ids": []}


def test_of_a_payment_that_is_not_confirmed_yet_it_waits(office: Office, desk: Desk) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who, "starter", PaymentMethod.SANDBOX)
    payment = office.card_payment(who, invoice_id)
    confirmation = office.confirmation(who, invoice_id, payment)
    with office.database.transaction() as tx:
        operation = operations.begin_attempt(tx.maybe, confirmation)
        assert operation is not None
        record_intent(tx, operation, msgspec.convert(operation.payload, ConfirmPayment), office.rules())
    desk.make(payment, 44_50)
    waiting = office.follow(payment)
    assert waiting.status == "pending"
    office.execute(confirmation)
    assert office.execute(waiting.id).status == "succeeded"
    assert payment_of(office, who).refunded_minor == 44_50


def test_more_than_came_is_refused(office: Office, who: Customer, desk: Desk) -> None:
    payment = payment_of(office, who)
    desk.make(payment.external_payment_id, 89_01)
    answer = office.follow(payment.external_payment_id)
    assert (answer.status, answer.problem["code"]) == ("failed", "refund_exceeds_payment")
    assert made(office) == []


# --- whose it is, while an answer is missing ----------------------------------------------------


def test_one_of_ours_is_not_taken_for_one_of_the_dashboard(office: Office, who: Customer, desk: Desk) -> None:
    payment = payment_of(office, who)
    operation_id = office.refunding(payment.id, 44_50)
    asked_in_vain(office, desk, operation_id)
    waiting = office.follow(payment.external_payment_id)
    assert (waiting.status, made(office)) == ("pending", ["pending 4450: 0 + 0"])

    assert office.execute(operation_id).status == "succeeded"
    assert office.execute(waiting.id).status == "succeeded"
    assert made(office) == ["succeeded 4450: 500 + 0"]


def test_one_of_another_amount_is_none_of_ours(office: Office, who: Customer, desk: Desk) -> None:
    payment = payment_of(office, who)
    operation_id = office.refunding(payment.id, 44_50)
    only_recorded(office, desk, operation_id)
    desk.make(payment.external_payment_id, 8_90)
    assert office.follow(payment.external_payment_id).status == "succeeded"
    assert office.execute(operation_id).status == "succeeded"
    assert made(office) == ["succeeded 4450: 500 + 0", "succeeded 890: 100 + 0"]


def test_one_that_leaves_no_room_for_ours_waits_until_that_is_refused(
    office: Office, who: Customer, desk: Desk
) -> None:
    payment = payment_of(office, who)
    operation_id = office.refunding(payment.id, 44_50)
    only_recorded(office, desk, operation_id)
    desk.make(payment.external_payment_id, 60_00)
    waiting = office.follow(payment.external_payment_id)
    assert waiting.status == "pending"

    desk.refuses = True
    assert office.execute(operation_id).status == "failed"
    assert office.execute(waiting.id).status == "succeeded"
    assert made(office) == ["failed 4450: 0 + 0", "succeeded 6000: 674 + 0"]


def test_one_that_nobody_asks_for_any_more_is_found(office: Office, who: Customer, desk: Desk) -> None:
    """Its operation is dead: an admin may retry it, and need not."""
    payment = payment_of(office, who)
    operation_id = office.refunding(payment.id, 44_50)
    asked_in_vain(office, desk, operation_id)
    office.change(
        """
        UPDATE operations SET status = 'dead', next_send_at = NULL, problem = '{"code": "operation_dead"}'
        WHERE id = %(id)s
        """,
        id=operation_id,
    )
    assert office.follow(payment.external_payment_id).result["refund_ids"] == [str(operation_id)]
    assert made(office) == ["succeeded 4450: 500 + 0"]
    (noted,) = audited(office, "payment.refunded")
    assert (noted.actor_id, noted.reason, noted.operation_id) == (office.admin_id, "unhappy", operation_id)

    with office.database.transaction() as tx:
        operations.revive(tx, operation_id, now=office.now)
    desk.answers.clear()
    before = office.dump("operations")
    answer = office.execute(operation_id)
    assert (answer.status, answer.result["external_refund_id"]) == ("succeeded", desk.made[0].refund_id)
    assert (office.dump("operations"), len(desk.made)) == (before, 1)


def test_a_key_that_may_be_forgotten_is_not_asked_with(office: Office, who: Customer, desk: Desk) -> None:
    payment = payment_of(office, who)
    refund(office, who, 44_50)
    operation_id = office.refunding(payment.id, 44_50)
    asked_in_vain(office, desk, operation_id)
    desk.answers.clear()
    office.change(
        "UPDATE refunds SET created_at = created_at - %(age)s WHERE id = %(id)s", age=KEY_LASTS, id=operation_id
    )
    assert office.execute(operation_id).status == "succeeded"
    assert (len(desk.made), made(office)[-1]) == (2, "succeeded 4450: 500 + 0")


def test_what_was_never_made_is_made_however_late(office: Office, who: Customer, desk: Desk) -> None:
    """Another one of this amount is not it."""
    refund(office, who, 44_50)
    operation_id = office.refunding(payment_of(office, who).id, 44_50)
    only_recorded(office, desk, operation_id)
    office.change("UPDATE refunds SET created_at = created_at - %(age)s", age=KEY_LASTS)
    assert office.execute(operation_id).status == "succeeded"
    assert (len(desk.made), made(office)) == (2, ["succeeded 4450: 500 + 0"] * 2)


def test_of_two_where_one_was_expected_both_count(office: Office, who: Customer, desk: Desk) -> None:
    """While a refund was asked for, its operation was dead for a moment, and it was taken for one of the dashboard."""
    payment = payment_of(office, who)
    operation_id = office.refunding(payment.id, 30_00)
    operation, request = begun(office, operation_id)
    with office.database.transaction() as tx:
        intent = record_refund(tx, operation, request, office.rules())
    desk.make(payment.external_payment_id, 30_00)
    office.change(
        """
        UPDATE operations SET status = 'dead', next_send_at = NULL, problem = '{"code": "operation_dead"}'
        WHERE id = %(id)s
        """,
        id=operation_id,
    )
    office.follow(payment.external_payment_id)
    with office.database.transaction() as tx:
        operations.revive(tx, operation_id, now=office.now)
    assert intent.request is not None
    answer = desk.refund(intent.request)
    with office.database.transaction() as tx:
        result = complete_refund(tx, operation, request, answer, office.rules(), now=office.now)
        assert isinstance(result, dict)
        operations.succeed(tx, operation_id, result=result, now=office.now)
    assert made(office) == ["succeeded 3000: 337 + 0", "succeeded 3000: 337 + 0"]
    assert payment_of(office, who).refunded_minor == sum(refund.amount_minor for refund in desk.made) == 60_00
