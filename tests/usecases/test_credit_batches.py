"""A batch: many consumptions of one account, in their order, as if each had been asked for by itself."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from shared.db import credits
from shared.db.credits import BatchConsumption
from shared.domain.credits import MAX_BATCH, MAX_CREDITS
from shared.errors import InsufficientCredits, InvalidInput, NotFound
from shared.ids import new_id
from tests.factories import Table, cases, on
from tests.office import Customer, Office

Items = list[tuple[str, int]]

GIFT_ENDS_AT = on("2026-01-20")


@pytest.fixture
def who(office: Office) -> Customer:
    return stocked(office)


def stocked(office: Office) -> Customer:
    """180 credits: 100 of the month, then 50 that end on 20 January, then 30 that last; three rows of the ledger."""
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    who = office.sign_up()
    office.assign(who, "free")
    office.adjust(who, 50, GIFT_ENDS_AT)
    office.adjust(who, 30)
    return who


def batch(office: Office, who: Customer, items: Items, *, whole: bool = False) -> BatchConsumption:
    asked = [credits.Item(key=key, amount=amount, reason=f"for {key}") for key, amount in items]
    with office.database.transaction() as tx:
        return credits.consume_batch(office.asker(tx, who), asked, all_or_nothing=whole, now=office.now)


def said(done: BatchConsumption) -> list[str]:
    """Of each item the balance after it, or its refusal."""
    return [
        f"{one.key} {one.refusal.code}"
        if one.refusal is not None
        else f"{one.key} {one.balance_credits}{' replayed' * one.replayed}"
        for one in done.items
    ]


def ledger(office: Office, who: Customer) -> list[str]:
    """What was consumed: number, key and line, grant, amount, balance after it."""
    names = {100: "month", 50: "gift", 30: "lasting"}
    rows = office.rows(
        """
        SELECT t.seq, t.idempotency_key, t.line, g.amount AS given, t.amount, t.balance_after
        FROM credit_transactions t JOIN credit_grants g ON g.id = t.grant_id
        WHERE t.account_id = %(id)s AND t.kind = 'consume' ORDER BY t.seq
        """,
        id=who.account_id,
    )
    return [
        f"{row.seq} {row.idempotency_key.removeprefix('consume:')}/{row.line} {names[row.given]} {row.amount:+}"
        f" {row.balance_after}"
        for row in rows
    ]


TAKEN: Table = {
    "one item is one consumption": ([("a", 30)], ["a 150"], ["4 a/0 month -30 150"]),
    "items are taken in their order": (
        [("b", 30), ("a", 20)],
        ["b 150", "a 130"],
        ["4 b/0 month -30 150", "5 a/0 month -20 130"],
    ),
    "an item is spread over several grants": (
        [("a", 170)],
        ["a 10"],
        ["4 a/0 month -100 80", "5 a/1 gift -50 30", "6 a/2 lasting -20 10"],
    ),
    "several items share a grant": (
        [("a", 10), ("b", 20), ("c", 30)],
        ["a 170", "b 150", "c 120"],
        ["4 a/0 month -10 170", "5 b/0 month -20 150", "6 c/0 month -30 120"],
    ),
    "an item begins where the one before it ended": (
        [("a", 60), ("b", 60), ("c", 60)],
        ["a 120", "b 60", "c 0"],
        [
            "4 a/0 month -60 120",
            "5 b/0 month -40 80",
            "6 b/1 gift -20 60",
            "7 c/0 gift -30 30",
            "8 c/1 lasting -30 0",
        ],
    ),
    "items may end where grants end": (
        [("a", 100), ("b", 50), ("c", 30)],
        ["a 80", "b 30", "c 0"],
        ["4 a/0 month -100 80", "5 b/0 gift -50 30", "6 c/0 lasting -30 0"],
    ),
    "what is too large is passed by": (
        [("a", 100), ("b", 81), ("c", 80)],
        ["a 80", "b insufficient_credits", "c 0"],
        ["4 a/0 month -100 80", "5 c/0 gift -50 30", "6 c/1 lasting -30 0"],
    ),
    "nothing is taken where all are too large": (
        [("a", 181), ("b", 1_000)],
        ["a insufficient_credits", "b insufficient_credits"],
        [],
    ),
}


@pytest.mark.parametrize(("items", "answers", "rows"), cases(TAKEN))
def test_of_many_consumptions(office: Office, who: Customer, items: Items, answers: list[str], rows: list[str]) -> None:
    done = batch(office, who, items)
    assert (done.written, said(done), ledger(office, who)) == (True, answers, rows)
    assert (done.balance_credits, done.available_credits) == (office.balance(who).balance_credits,) * 2


@pytest.mark.parametrize("items", cases({rule: row[:1] for rule, row in TAKEN.items()}))
def test_a_batch_is_what_its_items_are_one_by_one(office: Office, who: Customer, items: Items) -> None:
    together = said(batch(office, who, items))
    other = stocked(office)
    alone = []
    for key, amount in items:
        try:
            alone.append(f"{key} {office.consume(other, amount, key).balance_credits}")
        except InsufficientCredits as refusal:
            alone.append(f"{key} {refusal.code}")
    assert (together, ledger(office, who)) == (alone, ledger(office, other))


@pytest.mark.parametrize("whole", [False, True], ids=["each by itself", "all or nothing"])
def test_what_is_too_large_is_told_what_was_there_for_it(office: Office, who: Customer, whole: bool) -> None:
    office.hold(who, 20, "hold")
    done = batch(office, who, [("a", 100), ("b", 61), ("c", 60)], whole=whole)
    refusal = done.items[1].refusal
    assert isinstance(refusal, InsufficientCredits)
    assert refusal.data == {"balance_credits": 80, "available_credits": 60, "requested_credits": 61}
    assert refusal.detail == "61 credits requested, 60 available"


def test_each_row_carries_the_reason_of_its_item(office: Office, who: Customer) -> None:
    batch(office, who, [("a", 10), ("b", 120)])
    rows = office.rows("SELECT reason, source, source_id FROM credit_transactions WHERE kind = 'consume' ORDER BY seq")
    assert [tuple(row) for row in rows] == [("for a", "user", who.user_id)] + [("for b", "user", who.user_id)] * 2


def test_what_is_held_is_not_taken(office: Office, who: Customer) -> None:
    office.hold(who, 150, "hold")
    done = batch(office, who, [("a", 31), ("b", 30), ("c", 1)])
    assert said(done) == ["a insufficient_credits", "b 150", "c insufficient_credits"]
    assert ledger(office, who) == ["4 b/0 lasting -30 150"]
    assert (done.balance_credits, done.available_credits) == (150, 0)


def test_what_is_held_in_part_gives_the_rest(office: Office, who: Customer) -> None:
    office.hold(who, 70, "hold")
    assert said(batch(office, who, [("a", 20), ("b", 20)])) == ["a 160", "b 140"]
    assert ledger(office, who) == ["4 a/0 month -20 160", "5 b/0 month -10 150", "6 b/1 gift -10 140"]


def test_a_grant_past_its_expiry_gives_nothing_though_no_job_has_been_there(office: Office, who: Customer) -> None:
    office.change("UPDATE accounts SET parked_at = now(), parked_reason = 'odd' WHERE id = %(id)s", id=who.account_id)
    office.now = GIFT_ENDS_AT
    assert said(batch(office, who, [("a", 90), ("b", 41), ("c", 40)])) == ["a 90", "b insufficient_credits", "c 50"]
    assert ledger(office, who) == ["4 a/0 month -90 90", "5 c/0 month -10 80", "6 c/1 lasting -30 50"]


def test_what_is_due_is_applied_first(office: Office, who: Customer) -> None:
    office.now = on("2026-02-10")
    assert said(batch(office, who, [("a", 100), ("b", 31), ("c", 30)])) == ["a 30", "b insufficient_credits", "c 0"]


# --- again ----------------------------------------------------------------------------------------------


def test_the_same_batch_again_is_answered_as_before_and_takes_nothing(office: Office, who: Customer) -> None:
    items = [("a", 60), ("b", 60), ("c", 61)]
    assert said(batch(office, who, items)) == ["a 120", "b 60", "c insufficient_credits"]
    before = office.dump()
    again = batch(office, who, items)
    assert said(again) == ["a 120 replayed", "b 60 replayed", "c insufficient_credits"]
    assert (again.balance_credits, again.available_credits) == (60, 60)
    assert office.dump() == before


def test_what_is_new_in_a_batch_is_taken_beside_what_is_not(office: Office, who: Customer) -> None:
    office.consume(who, 10, "b")
    assert said(batch(office, who, [("a", 20), ("b", 10), ("c", 90)])) == ["a 150", "b 170 replayed", "c 60"]
    assert ledger(office, who) == [
        "4 b/0 month -10 170",
        "5 a/0 month -20 150",
        "6 c/0 month -70 80",
        "7 c/1 gift -20 60",
    ]


def test_a_key_of_a_batch_counts_for_a_consumption_by_itself(office: Office, who: Customer) -> None:
    batch(office, who, [("a", 170)])
    again = office.consume(who, 170, "a")
    assert (again.replayed, again.balance_credits) == (True, 10)


def test_a_key_that_was_refused_may_be_used_anew(office: Office, who: Customer) -> None:
    batch(office, who, [("a", 181)])
    assert said(batch(office, who, [("a", 180)])) == ["a 0"]


def test_a_key_with_another_amount_is_refused_alone(office: Office, who: Customer) -> None:
    office.consume(who, 10, "a")
    assert said(batch(office, who, [("a", 11), ("b", 1)])) == ["a idempotency_key_reused", "b 169"]


# --- all or nothing -------------------------------------------------------------------------------------

ONE_REFUSED: Table = {
    "one is too large": ([("a", 10), ("b", 171)], ["a 170", "b insufficient_credits"]),
    "a key was used with another amount": ([("old", 2), ("a", 10)], ["old idempotency_key_reused", "a 169"]),
    "one is a replay and another too large": (
        [("old", 1), ("a", 180)],
        ["old 179 replayed", "a insufficient_credits"],
    ),
}


@pytest.mark.parametrize(("items", "answers"), cases(ONE_REFUSED))
def test_all_or_nothing_writes_nothing_when(office: Office, who: Customer, items: Items, answers: list[str]) -> None:
    if "old" in dict(items):
        office.consume(who, 1, "old")
    before = office.dump()
    done = batch(office, who, items, whole=True)
    assert (done.written, said(done)) == (False, answers)
    assert office.dump() == before
    assert done.balance_credits == office.balance(who).balance_credits


def test_all_or_nothing_takes_all(office: Office, who: Customer) -> None:
    office.consume(who, 10, "b")
    done = batch(office, who, [("a", 20), ("b", 10), ("c", 150)], whole=True)
    assert (done.written, said(done)) == (True, ["a 150", "b 170 replayed", "c 0"])


# --- who may, and how many ------------------------------------------------------------------------------


def over(office: Office, who: Customer) -> None:
    office.cancel(who)
    office.now = on("2026-02-10")


def cancelled(office: Office, who: Customer) -> None:
    office.cancel(who, at_period_end=False)


def overdue(office: Office, who: Customer) -> None:
    office.buy(who)
    office.tick(on("2026-02-10"))
    office.now = on("2026-02-17")


SHUT_OUT: Table = {
    "an account that is cancelled": (cancelled, "account_cancelled"),
    "an account whose last period is over": (over, "account_cancelled"),
    "an account that did not pay": (overdue, "account_suspended"),
}


@pytest.mark.parametrize("whole", [False, True], ids=["each by itself", "all or nothing"])
@pytest.mark.parametrize(("shut_out", "refusal"), cases(SHUT_OUT))
def test_no_item_is_taken_of(
    office: Office, who: Customer, shut_out: Callable[[Office, Customer], None], refusal: str, whole: bool
) -> None:
    batch(office, who, [("old", 1)])
    shut_out(office, who)
    office.tick(office.now)
    before = office.dump()
    done = batch(office, who, [("a", 1), ("old", 1), ("b", 1_000)], whole=whole)
    assert said(done) == [f"a {refusal}", "old 179 replayed", f"b {refusal}"]
    assert done.written != whole
    assert office.dump() == before


@pytest.mark.parametrize("size", [1, MAX_BATCH])
def test_a_batch_may_have_so_many_items(office: Office, who: Customer, size: int) -> None:
    office.adjust(who, MAX_BATCH)
    items = [(f"call {number}", 1) for number in range(size)]
    done = batch(office, who, items, whole=True)
    whole = 180 + MAX_BATCH
    assert [one.balance_credits for one in done.items] == [whole - 1 - number for number in range(size)]
    rows = office.rows("SELECT seq, idempotency_key FROM credit_transactions WHERE kind = 'consume' ORDER BY seq")
    assert [tuple(row) for row in rows] == [(5 + number, f"consume:call {number}") for number in range(size)]


NO_BATCH: Table = {
    "nothing": ([],),
    "more than a thousand items": ([(f"call {number}", 1) for number in range(MAX_BATCH + 1)],),
    "a key twice": ([("a", 1), ("b", 1), ("a", 1)],),
    "an amount of nothing": ([("a", 1), ("b", 0)],),
    "an amount below nothing": ([("a", -1)],),
    "more than anybody has": ([("a", MAX_CREDITS + 1)],),
}


@pytest.mark.parametrize("items", cases(NO_BATCH))
def test_no_batch_is(office: Office, who: Customer, items: Items) -> None:
    before = office.dump()
    with pytest.raises(InvalidInput):
        batch(office, who, items)
    assert office.dump() == before


def test_an_account_that_nobody_has_is_not_found(office: Office, who: Customer) -> None:
    with pytest.raises(NotFound):
        batch(office, Customer(new_id(), who.user_id), [("a", 1)])


def test_a_hold_that_has_expired_frees_what_it_held(office: Office, who: Customer) -> None:
    office.hold(who, 180, "hold", ttl_seconds=60)
    office.now += timedelta(seconds=60)
    assert said(batch(office, who, [("a", 180)])) == ["a 0"]
