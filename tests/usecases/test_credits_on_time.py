"""Whether credits are there does not depend on when the jobs ran: what is due is applied before they are taken."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.event import listen

from shared.db import credits
from shared.domain.lifecycle import Transition
from shared.errors import AccountCancelled, AccountSuspended, BillingError, InsufficientCredits
from tests.factories import Table, cases, on
from tests.office import Customer, Office

LEDGER = "SELECT kind, amount, effective_at FROM credit_transactions WHERE account_id = %(id)s ORDER BY seq"
RENEWED_AT = on("2026-02-10")


def ledger(office: Office, who: Customer) -> list[str]:
    rows = office.rows(LEDGER, id=who.account_id)
    return [f"{row.effective_at:%m-%d} {row.kind} {row.amount:+}" for row in rows]


def free(office: Office) -> Customer:
    """On the free plan, 100 credits a month, since 10 January; its trial's credits are gone."""
    who = office.sign_up()
    office.adjust(who, -2_000)
    office.assign(who, "free")
    return who


@pytest.fixture
def who(office: Office) -> Customer:
    return free(office)


def test_at_its_very_start_the_new_month_is_there(office: Office, who: Customer) -> None:
    office.now = RENEWED_AT
    assert office.consume(who, 100, "call").balance_credits == 0
    assert ledger(office, who)[2:] == ["01-10 seed +100", "02-10 expire -100", "02-10 seed +100", "02-10 consume -100"]
    assert office.tick(office.now) == 0, "nothing was left for the jobs"


def test_months_that_nobody_took_up_are_applied_in_their_order(office: Office, who: Customer) -> None:
    office.now = on("2026-04-20")
    office.consume(who, 1, "call")
    seeds = ["01-10 seed +100"]
    for month in ("02", "03", "04"):
        seeds += [f"{month}-10 expire -100", f"{month}-10 seed +100"]
    assert ledger(office, who)[2:] == [*seeds, "04-20 consume -1"]
    periods = office.rows("SELECT starts_at FROM subscription_periods WHERE account_id = %(id)s", id=who.account_id)
    assert len(periods) == 4


def test_a_hold_and_its_capture_find_the_new_month(office: Office, who: Customer) -> None:
    office.now = RENEWED_AT
    hold_id = office.hold(who, 100, "hold", ttl_seconds=86_400)
    assert office.balance(who).available_credits == 0
    office.now = RENEWED_AT + timedelta(hours=1)
    assert office.capture(who, hold_id, 60).balance_credits == 40


def test_a_capture_is_written_after_what_was_due_before_it(office: Office, who: Customer) -> None:
    office.adjust(who, 50)
    office.consume(who, 100, "the month")
    office.now = RENEWED_AT - timedelta(hours=1)
    hold_id = office.hold(who, 50, "hold", ttl_seconds=86_400)
    office.now = RENEWED_AT + timedelta(hours=1)
    office.capture(who, hold_id, 50)
    assert ledger(office, who)[-2:] == ["02-10 seed +100", "02-10 consume -50"]


def test_the_new_month_is_taken_before_what_lasts(office: Office, who: Customer) -> None:
    office.adjust(who, 50)
    office.now = RENEWED_AT
    office.consume(who, 30, "call")
    left = office.rows("SELECT source, remaining FROM credit_grants WHERE remaining > 0 ORDER BY source")
    assert [tuple(row) for row in left] == [("adjust", 50), ("seed", 70)]


def test_what_is_carried_over_can_be_spent_at_once(office: Office) -> None:
    office.change("UPDATE plans SET credit_rollover = 'cap', credit_rollover_cap = 40 WHERE slug = 'free'")
    who = free(office)
    office.now = RENEWED_AT
    assert office.consume(who, 140, "call").balance_credits == 0


def past_due(office: Office) -> Customer:
    who = office.sign_up()
    office.buy(who)
    return who


def leaving(office: Office) -> Customer:
    who = past_due(office)
    office.cancel(who)
    return who


REFUSED: Table = {
    "an unpaid month has no credits": (past_due, InsufficientCredits),
    "a cancelled subscription has ended": (leaving, AccountCancelled),
    "a trial is over": (Office.sign_up, AccountSuspended),
    "more than the month": (free, InsufficientCredits),
}


@pytest.mark.parametrize(("make", "refusal"), cases(REFUSED))
@pytest.mark.parametrize("swept", [True, False], ids=["swept", "not swept"])
def test_refused_alike_and_nothing_is_written(
    office: Office, make: Callable[[Office], Customer], refusal: type[BillingError], swept: bool
) -> None:
    who = make(office)
    office.now = RENEWED_AT
    if swept:
        office.tick(office.now)
    before = office.dump()
    for verb in (office.consume, office.hold):
        with pytest.raises(refusal) as refused:
            verb(who, 101, "call")
        assert type(refused.value) is refusal
    assert office.dump() == before


def test_one_key_takes_once_also_when_much_is_due(office: Office, who: Customer) -> None:
    office.now = RENEWED_AT
    office.consume(who, 30, "call")
    office.now = on("2026-03-10")
    again = office.consume(who, 30, "call")
    assert (again.replayed, again.balance_credits) == (True, 70)
    assert office.balance(who).available_credits == 100


def test_while_nothing_is_due_it_is_one_round_trip(office: Office, who: Customer) -> None:
    asked: list[str] = []
    with office.database.transaction() as tx:
        listen(tx.connection, "before_cursor_execute", lambda *given: asked.append(given[2]))
        asker = office.asker(tx, who)
        credits.consume(asker, 1, key="a", reason=None, now=office.now)
        credits.consume_batch(asker, [credits.Item(key="b", amount=1)], all_or_nothing=True, now=office.now)
        placed = credits.place_hold(asker, 2, key="c", ttl_seconds=60, now=office.now)
        credits.capture_hold(asker, placed.hold.id, 1, now=office.now)
        credits.release_hold(
            asker, credits.place_hold(asker, 2, key="d", ttl_seconds=60, now=office.now).hold.id, now=office.now
        )
        credits.adjust(asker, 5, key="e", admin_id=office.admin_id, reason="gift", expires_at=None, now=office.now)
        credits.reverse(asker, 2, admin_id=office.admin_id, reason="it failed", now=office.now)
    assert [re.findall(r"\b([a-z_]+)\(\s*asker", statement) for statement in asked] == [
        ["consume_credits"],
        ["consume_credits_batch"],
        ["place_hold"],
        ["capture_hold"],
        ["place_hold"],
        ["release_hold"],
        ["adjust_credits"],
        ["reverse_posting"],
    ]


def test_a_parked_account_is_served_as_it_is_stored(office: Office, who: Customer) -> None:
    office.adjust(who, 50)
    office.change("UPDATE accounts SET parked_at = now(), parked_reason = 'odd' WHERE id = %(id)s", id=who.account_id)
    office.now = RENEWED_AT
    office.consume(who, 50, "call")
    with pytest.raises(InsufficientCredits):
        office.consume(who, 1, "another")
    assert office.row("SELECT next_transition_at AS at FROM accounts WHERE id = %(id)s", id=who.account_id).at == (
        RENEWED_AT
    )


def test_it_does_not_pass_an_operation_that_was_accepted_before(office: Office) -> None:
    who = past_due(office)
    office.adjust(who, 50)
    office.tick(RENEWED_AT)
    owed = office.row("SELECT id FROM invoices WHERE status = 'open'").id
    payment = office.card_payment(who, owed)
    office.now = on("2026-02-16")
    confirmation = office.confirmation(who, owed, payment)

    office.now = on("2026-02-17")
    with pytest.raises(AccountSuspended):
        office.consume(who, 10, "call")
    office.execute(confirmation)
    assert office.consume(who, 1_000, "call").balance_credits == 50
    account = office.row("SELECT status, acted_at FROM accounts WHERE id = %(id)s", id=who.account_id)
    assert tuple(account) == ("active", on("2026-02-16"))


def test_beside_the_job_that_takes_it_up_the_month_is_there_once(office: Office) -> None:
    people = [free(office) for _ in range(10)]
    office.now = RENEWED_AT

    def consume(number: int) -> int:
        taken = 0
        for who in people:
            try:
                office.consume(who, 60, f"call {number}")
                taken += 1
            except InsufficientCredits:
                pass
        return taken

    def renew(_: int) -> None:
        while office.run_job(Transition.RENEWAL, RENEWED_AT, limit=1):
            pass
        office.tick(RENEWED_AT)

    with ThreadPoolExecutor(4) as threads:
        jobs: list[Any] = [threads.submit(renew, 0), *(threads.submit(consume, number) for number in range(3))]
        results = [job.result() for job in jobs]
    assert sum(results[1:]) == len(people)
    for who in people:
        assert ledger(office, who)[2:] == [
            "01-10 seed +100",
            "02-10 expire -100",
            "02-10 seed +100",
            "02-10 consume -60",
        ]
