"""The beat jobs' work: whose turn it is, in sets, whatever else is going on."""

from collections.abc import Callable
from datetime import timedelta
from threading import Barrier, Thread

import pytest

from shared.db import account_state, job_runs
from shared.db.plans import load_rules
from shared.domain.lifecycle import Transition
from shared.messages import Job
from shared.usecases.advance_due_accounts import STEPS_PER_PASS, advance_due_accounts
from tests.factories import Table, cases, on
from tests.office import Customer, Office

ACCOUNT = "SELECT * FROM accounts WHERE id = %(id)s"


def trial(office: Office) -> Customer:
    return office.sign_up()


def starter(office: Office) -> Customer:
    who = office.sign_up()
    office.buy(who)
    return who


def free(office: Office) -> Customer:
    who = office.sign_up()
    office.assign(who, "free")
    return who


def past_due(office: Office) -> Customer:
    who = starter(office)
    office.tick(on("2026-02-11"))
    return who


def leaving(office: Office) -> Customer:
    who = starter(office)
    office.cancel(who)
    return who


def with_a_gift(office: Office) -> Customer:
    who = office.sign_up()
    office.adjust(who, 5, on("2026-01-12"))
    return who


def yearly(office: Office) -> Customer:
    office.change("UPDATE plans SET interval = 'year', credit_rollover = 'all' WHERE slug = 'starter'")
    who = starter(office)
    for at in (on("2026-01-25"), on("2026-02-10")):
        office.tick(at)
    return who


DUE: Table = {
    "a trial's end": (trial, Transition.TRIAL_END, on("2026-01-24"), "suspended"),
    "a renewal with a price": (starter, Transition.RENEWAL, on("2026-02-10"), "past_due"),
    "a renewal without": (free, Transition.RENEWAL, on("2026-02-10"), "active"),
    "the end of the grace": (past_due, Transition.GRACE_END, on("2026-02-17"), "suspended"),
    "a cancellation": (leaving, Transition.CANCELLATION, on("2026-02-10"), "cancelled"),
    "a grant's expiry": (with_a_gift, Transition.GRANT_EXPIRY, on("2026-01-12"), "trial"),
    "a credit month": (yearly, Transition.CREDIT_MONTH, on("2026-03-10"), "active"),
}


@pytest.mark.parametrize(("make", "transition", "due_at", "status"), cases(DUE))
def test_an_account_is_taken_up_when_it_is_due_and_once(
    office: Office, make: Callable[[Office], Customer], transition: Transition, due_at: object, status: str
) -> None:
    who = make(office)
    if make is not with_a_gift:
        office.tick(on("2026-01-25") if make in {starter, free, leaving} else office.now)
    account = office.row(ACCOUNT, id=who.account_id)
    assert (account.next_transition, account.next_transition_at) == (transition, due_at)
    before = office.dump()
    assert office.run_job(transition, account.next_transition_at - timedelta(microseconds=1)) == 0
    assert office.dump() == before
    assert office.run_job(transition, account.next_transition_at) == 1
    account = office.row(ACCOUNT, id=who.account_id)
    assert (account.status, account.acted_at) == (status, due_at)
    before = office.dump()
    assert office.run_job(transition, account.acted_at) == 0
    assert office.dump() == before


def test_a_job_takes_up_its_own_kind_alone(office: Office) -> None:
    who = office.sign_up()
    for transition in set(Transition) - {Transition.TRIAL_END}:
        assert office.run_job(transition, on("2026-12-31")) == 0
    assert office.row(ACCOUNT, id=who.account_id).status == "trial"


def test_an_account_that_was_taken_up_is_brought_all_the_way(office: Office) -> None:
    who = free(office)
    assert office.run_job(Transition.GRANT_EXPIRY, on("2026-12-31")) == 1
    assert office.row("SELECT count(*) AS made FROM subscription_periods").made == 12
    assert office.row(ACCOUNT, id=who.account_id).next_transition_at == on("2027-01-10")


def test_one_that_slept_for_years_is_taken_up_again_and_again(office: Office) -> None:
    office.change("UPDATE plans SET interval = 'day' WHERE slug = 'free'")
    who = free(office)
    as_of = on("2026-01-10") + timedelta(days=STEPS_PER_PASS + 50)
    assert office.run_job(Transition.GRANT_EXPIRY, as_of) + office.run_job(Transition.RENEWAL, as_of) > 1
    office.tick(as_of)
    assert office.row(ACCOUNT, id=who.account_id).next_transition_at > as_of
    made = office.row("SELECT count(*) AS made FROM subscription_periods").made
    assert made == STEPS_PER_PASS + 50 + 1


def test_a_pass_takes_at_most_its_limit_oldest_first(office: Office) -> None:
    people = []
    for minute in (3, 1, 2):
        office.now = on(f"2026-01-10 10:0{minute}")
        people.append((minute, office.sign_up()))
    with office.database.transaction() as tx:
        rules = load_rules(tx, office.settings)
        assert advance_due_accounts(tx, rules, Transition.TRIAL_END, as_of=on("2026-02-01"), limit=2) == 2
    left = [minute for minute, who in people if office.row(ACCOUNT, id=who.account_id).status == "trial"]
    assert left == [3]
    office.tick(on("2026-02-01"))


def test_accounts_on_a_test_clock_are_passed_by(office: Office) -> None:
    clock_id = office.make_clock(on("2026-01-10"))
    who = office.sign_up(clock_id=clock_id)
    beside = office.sign_up()
    before = office.rows(ACCOUNT, id=who.account_id)
    office.tick(on("2026-12-31"))
    assert office.rows(ACCOUNT, id=who.account_id) == before
    assert office.row(ACCOUNT, id=beside.account_id).status == "suspended"


def test_the_system_account_is_never_touched(office: Office) -> None:
    before = office.rows("SELECT * FROM accounts WHERE kind = 'system'")
    office.sign_up()
    office.tick(on("2027-12-31"))
    assert office.rows("SELECT * FROM accounts WHERE kind = 'system'") == before


# --- one that fails -------------------------------------------------------------------------------------

BROKEN_ZONE = "UPDATE subscriptions SET time_zone = 'Mars/Olympus' WHERE account_id = %(id)s"
BROKEN_SEQUENCE = "UPDATE accounts SET ledger_seq = 0 WHERE id = %(id)s"
MISSING_PERIOD = "DELETE FROM subscription_periods WHERE account_id = %(id)s"

POISON: Table = {
    "a zone that no calendar knows": (BROKEN_ZONE, "InvalidSchedule"),
    "a ledger whose next number is taken": (BROKEN_SEQUENCE, "credit_transactions_pkey"),
    "a subscription without its period": (MISSING_PERIOD, "period_leaves_no_gap"),
}


@pytest.mark.parametrize(("statement", "reason"), cases(POISON))
@pytest.mark.parametrize("place", [0, 3, 6], ids=["first", "in the middle", "last"])
def test_an_account_that_fails_is_parked_and_its_set_goes_on(
    office: Office, statement: str, reason: str, place: int
) -> None:
    people = [free(office) for _ in range(7)]
    poisoned = people[place]
    office.change(statement, id=poisoned.account_id)
    corrupt = office.rows("SELECT * FROM subscriptions WHERE account_id = %(id)s", id=poisoned.account_id)
    office.tick(on("2026-02-10"))
    for who in people:
        account = office.row(ACCOUNT, id=who.account_id)
        if who is poisoned:
            assert account.parked_at is not None
            assert reason in account.parked_reason
            assert account.next_transition_at <= on("2026-02-10")
        else:
            assert account.parked_at is None
            assert account.next_transition_at > on("2026-02-10")
    assert office.rows("SELECT * FROM subscriptions WHERE account_id = %(id)s", id=poisoned.account_id) == corrupt
    assert office.tick(on("2026-02-10")) == 0

    put_right(office, poisoned, people[place - 1])
    with office.database.transaction() as tx:
        assert account_state.unpark(tx, poisoned.account_id)
        assert not account_state.unpark(tx, poisoned.account_id)
    assert office.tick(on("2026-02-10")) > 0
    assert office.row(ACCOUNT, id=poisoned.account_id).next_transition_at > on("2026-02-10")


def put_right(office: Office, who: Customer, like: Customer) -> None:
    office.change("UPDATE subscriptions SET time_zone = 'UTC' WHERE account_id = %(id)s", id=who.account_id)
    office.change(
        """
        UPDATE accounts SET ledger_seq = (SELECT max(seq) FROM credit_transactions t WHERE t.account_id = accounts.id)
        WHERE id = %(id)s
        """,
        id=who.account_id,
    )
    if not office.rows("SELECT FROM subscription_periods WHERE account_id = %(id)s", id=who.account_id):
        office.change(
            """
            INSERT INTO subscription_periods
                (subscription_id, account_id, plan_id, phase, period_index, starts_at, ends_at)
            SELECT id, account_id, plan_id, phase, period_index, current_period_starts_at, current_period_ends_at
            FROM subscriptions WHERE account_id = %(id)s
            """,
            id=who.account_id,
        )


# --- at once ------------------------------------------------------------------------------------------


def test_two_workers_run_one_job_at_once_to_one_effect(office: Office) -> None:
    people = [free(office) for _ in range(30)]
    together = Barrier(2)
    taken: list[int] = []

    def work() -> None:
        together.wait()
        taken.append(office.run_job(Transition.GRANT_EXPIRY, on("2026-04-15"), limit=4))

    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    office.tick(on("2026-04-15"))
    assert sum(taken) <= len(people)
    assert len(taken) == 2
    periods = office.rows("SELECT account_id, count(*) AS made FROM subscription_periods GROUP BY account_id")
    assert [row.made for row in periods] == [4] * len(people)
    seeds = office.rows("SELECT account_id, count(*) AS made FROM credit_grants WHERE phase = 1 GROUP BY account_id")
    assert [row.made for row in seeds] == [4] * len(people)


def test_an_account_that_an_operation_holds_is_left_for_later(office: Office) -> None:
    who, other = office.sign_up(), office.sign_up()
    with office.database.transaction() as tx:
        account_state.lock(tx, [who.account_id])
        assert office.run_job(Transition.TRIAL_END, on("2026-02-01")) == 1
    assert office.row(ACCOUNT, id=other.account_id).status == "suspended"
    assert office.run_job(Transition.TRIAL_END, on("2026-02-01")) == 1
    assert office.row(ACCOUNT, id=who.account_id).status == "suspended"


def test_an_operation_that_was_accepted_in_time_goes_first_however_late_it_is_executed(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    office.now = on("2026-01-23")
    in_time = office.confirmation(who, invoice_id, office.card_payment(who, invoice_id))
    assert office.tick(on("2026-02-20")) == 0
    office.execute(in_time)
    assert office.tick(on("2026-02-20")) == 1
    account = office.row(ACCOUNT, id=who.account_id)
    assert (account.status, account.next_transition) == ("active", Transition.RENEWAL)
    periods = office.rows("SELECT starts_at FROM subscription_periods ORDER BY starts_at")
    assert [row.starts_at for row in periods] == [on("2026-01-10"), on("2026-01-23")]


@pytest.mark.parametrize("late", [pytest.param(False, id="in time"), pytest.param(True, id="late")])
def test_what_becomes_due_before_an_operation_takes_no_account_past_it(office: Office, *, late: bool) -> None:
    who = office.sign_up()
    office.adjust(who, 5, on("2026-01-15"))  # expires before the payment is accepted
    invoice_id = office.open_invoice(who)
    office.now = on("2026-01-20")
    confirmation = office.confirmation(who, invoice_id, office.card_payment(who, invoice_id))
    if not late:
        office.execute(confirmation)
    office.tick(on("2026-02-01"))  # the trial ends on the 24th
    if late:
        office.execute(confirmation)
    periods = office.rows("SELECT starts_at, ends_at FROM subscription_periods ORDER BY starts_at")
    assert [tuple(period) for period in periods] == [
        (on("2026-01-10"), on("2026-01-20")),
        (on("2026-01-20"), on("2026-02-20")),
    ]
    assert office.state(who).account.status == "active"


def test_one_that_was_accepted_too_late_holds_nothing_up(office: Office) -> None:
    who = office.sign_up()
    invoice_id = office.open_invoice(who)
    office.now = on("2026-01-24")
    too_late = office.confirmation(who, invoice_id, office.card_payment(who, invoice_id))
    assert office.tick(on("2026-02-01")) == 1
    assert office.row(ACCOUNT, id=who.account_id).status == "suspended"
    office.execute(too_late)
    assert office.row(ACCOUNT, id=who.account_id).status == "active"


def test_a_deleted_account_is_passed_by(office: Office) -> None:
    who = office.sign_up()
    office.change("UPDATE accounts SET deleted_at = now() WHERE id = %(id)s", id=who.account_id)
    assert office.tick(on("2026-12-31")) == 0


def test_the_newest_run_of_a_job_is_kept(office: Office) -> None:
    for day in (2, 3, 1):
        with office.database.transaction() as tx:
            at = on(f"2026-01-0{day}")
            job_runs.record(tx, Job.ROLL_RENEWALS, finished_at=at, duration_ms=day, items=day)
    with office.database.transaction() as tx:
        (run,) = job_runs.latest(tx)
    assert (run.job, run.finished_at, run.items) == ("roll-renewals", on("2026-01-03"), 3)


def test_a_payment_accepted_in_time_counts_though_a_job_came_first(office: Office) -> None:
    who = past_due(office)
    owed = office.row("SELECT id FROM invoices WHERE status = 'open'").id
    paid_at, grace_ends_at = on("2026-02-16"), on("2026-02-17")
    payment = office.card_payment(who, owed)
    office.now = paid_at
    confirmation = office.confirmation(who, owed, payment)

    assert office.run_job(Transition.GRACE_END, grace_ends_at) == 0
    office.execute(confirmation)

    account = office.row(ACCOUNT, id=who.account_id)
    assert (account.status, account.acted_at) == ("active", paid_at)


@pytest.mark.parametrize(
    "reason", [pytest.param("dead", id="it is dead"), pytest.param("late", id="it was accepted when it was due")]
)
def test_an_operation_does_not_hold_an_account_back_when(office: Office, reason: str) -> None:
    who = past_due(office)
    office.now = on("2026-02-17" if reason == "late" else "2026-02-16")
    owed = office.row("SELECT id FROM invoices WHERE status = 'open'").id
    office.confirmation(who, owed, "none")
    if reason == "dead":
        office.change(
            """
            UPDATE operations SET status = 'dead', next_send_at = NULL, problem = '{}' WHERE status = 'pending'
            """
        )
    assert office.run_job(Transition.GRACE_END, on("2026-02-17")) == 1
