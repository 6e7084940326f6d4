"""A posting is undone once, by rows that point to its rows; what it moved goes back to where it was, and no further."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Row

from shared.domain.lifecycle import Transition
from shared.usecases.refresh_accounts import refresh_accounts
from tests.factories import Table, cases, on
from tests.office import Customer, Office

Story = Callable[[Office, Customer], Any]

GIFT_ENDS_AT = on("2026-01-20")
LATER = on("2026-01-21")


@pytest.fixture
def who(office: Office) -> Customer:
    """100 credits of the month, which are row 1 of the ledger."""
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    who = office.sign_up()
    office.assign(who, "free")
    return who


def ledger(office: Office, who: Customer) -> list[str]:
    """Number, kind, amount, grant by what it gave, and the row that is undone."""
    rows = office.rows(
        """
        SELECT t.seq, t.kind, t.amount, g.source, g.amount AS given, t.reverses_seq
        FROM credit_transactions t JOIN credit_grants g ON g.id = t.grant_id
        WHERE t.account_id = %(id)s ORDER BY t.seq
        """,
        id=who.account_id,
    )
    return [
        f"{row.seq} {row.kind} {row.amount:+} of {'month' if row.source == 'seed' else row.given}"
        f"{'' if row.reverses_seq is None else f' undoes {row.reverses_seq}'}"
        for row in rows
    ]


def left(office: Office, who: Customer) -> dict[str, int]:
    rows = office.rows(
        "SELECT source, amount, remaining FROM credit_grants WHERE account_id = %(id)s", id=who.account_id
    )
    return {"month" if row.source == "seed" else str(row.amount): row.remaining for row in rows}


# --- stories: each ends before the reversal ---------------------------------------------------------------


def consumed(office: Office, who: Customer) -> None:
    office.consume(who, 30, "call")


def captured(office: Office, who: Customer) -> None:
    office.capture(who, office.hold(who, 50, "hold"), 20)


def taken(office: Office, who: Customer) -> None:
    office.adjust(who, -30)


def given(office: Office, who: Customer) -> None:
    office.adjust(who, 50)


def over_two_grants(office: Office, who: Customer) -> None:
    office.adjust(who, 50, GIFT_ENDS_AT)
    office.consume(who, 120, "call")


def captured_over_two_grants(office: Office, who: Customer) -> None:
    office.adjust(who, 50, GIFT_ENDS_AT)
    office.capture(who, office.hold(who, 140, "hold", ttl_seconds=86_400), 120)


def taken_over_two_grants(office: Office, who: Customer) -> None:
    office.adjust(who, 50, GIFT_ENDS_AT)
    office.adjust(who, -120)


def spent_in_part(office: Office, who: Customer) -> None:
    over_two_grants(office, who)


def held_in_part(office: Office, who: Customer) -> None:
    office.adjust(who, 50)
    office.hold(who, 120, "hold")


def batched(office: Office, who: Customer) -> None:
    office.adjust(who, 50, GIFT_ENDS_AT)
    for key, amount in (("a", 90), ("b", 30), ("c", 20)):
        office.consume(who, amount, key)


def after_the_gift_has_expired(office: Office, who: Customer) -> None:
    over_two_grants(office, who)
    office.now = LATER


def captured_before_the_gift_expired(office: Office, who: Customer) -> None:
    captured_over_two_grants(office, who)
    office.now = LATER


def at_the_instant_of_expiry(office: Office, who: Customer) -> None:
    over_two_grants(office, who)
    office.now = GIFT_ENDS_AT


def just_before_it_expires(office: Office, who: Customer) -> None:
    over_two_grants(office, who)
    office.now = GIFT_ENDS_AT - timedelta(seconds=1)


UNDONE: Table = {
    "a consumption comes back": (consumed, 2, ["3 reverse +30 of month undoes 2"], {"month": 100}),
    "a capture comes back, and what it freed was free": (
        captured,
        2,
        ["3 reverse +20 of month undoes 2"],
        {"month": 100},
    ),
    "what an admin took comes back": (taken, 2, ["3 reverse +30 of month undoes 2"], {"month": 100}),
    "what an admin gave is taken back": (given, 2, ["3 reverse -50 of 50 undoes 2"], {"month": 100, "50": 0}),
    "what a month brought is taken back": (given, 1, ["3 reverse -100 of month undoes 1"], {"month": 0, "50": 50}),
    "what was given is taken back as far as it is not spent": (
        spent_in_part,
        2,
        ["5 reverse -30 of 50 undoes 2"],
        {"month": 0, "50": 0},
    ),
    "what was given is taken back as far as it is not held": (
        held_in_part,
        2,
        ["3 reverse -30 of 50 undoes 2"],
        {"month": 100, "50": 20},
    ),
    "a consumption comes back to each of its grants": (
        over_two_grants,
        3,
        ["5 reverse +100 of month undoes 3", "6 reverse +20 of 50 undoes 4"],
        {"month": 100, "50": 50},
    ),
    "any row stands for the whole posting": (
        over_two_grants,
        4,
        ["5 reverse +100 of month undoes 3", "6 reverse +20 of 50 undoes 4"],
        {"month": 100, "50": 50},
    ),
    "a capture comes back to each of its grants": (
        captured_over_two_grants,
        4,
        ["5 reverse +100 of month undoes 3", "6 reverse +20 of 50 undoes 4"],
        {"month": 100, "50": 50},
    ),
    "what an admin took comes back to each of its grants": (
        taken_over_two_grants,
        3,
        ["5 reverse +100 of month undoes 3", "6 reverse +20 of 50 undoes 4"],
        {"month": 100, "50": 50},
    ),
    "its neighbours stay": (
        batched,
        4,
        ["7 reverse +10 of month undoes 4", "8 reverse +20 of 50 undoes 5"],
        {"month": 10, "50": 30},
    ),
    "what comes back to an expired grant expires at once": (
        after_the_gift_has_expired,
        3,
        [
            "5 expire -30 of 50",
            "6 reverse +100 of month undoes 3",
            "7 reverse +20 of 50 undoes 4",
            "8 expire -20 of 50",
        ],
        {"month": 100, "50": 0},
    ),
    "so does what was captured": (
        captured_before_the_gift_expired,
        3,
        [
            "5 expire -30 of 50",
            "6 reverse +100 of month undoes 3",
            "7 reverse +20 of 50 undoes 4",
            "8 expire -20 of 50",
        ],
        {"month": 100, "50": 0},
    ),
    "a grant has expired at the instant of its expiry": (
        at_the_instant_of_expiry,
        3,
        [
            "5 expire -30 of 50",
            "6 reverse +100 of month undoes 3",
            "7 reverse +20 of 50 undoes 4",
            "8 expire -20 of 50",
        ],
        {"month": 100, "50": 0},
    ),
    "a grant has not expired before": (
        just_before_it_expires,
        3,
        ["5 reverse +100 of month undoes 3", "6 reverse +20 of 50 undoes 4"],
        {"month": 100, "50": 50},
    ),
}


@pytest.mark.parametrize(("story", "seq", "rows", "remaining"), cases(UNDONE))
def test_undone(
    office: Office, who: Customer, story: Story, seq: int, rows: list[str], remaining: dict[str, int]
) -> None:
    story(office, who)
    answer = office.reverse(who, seq)
    assert answer.status == "succeeded", answer.problem
    assert (ledger(office, who)[-len(rows) :], left(office, who)) == (rows, remaining)

    moved = sum(int(row.split()[2]) for row in rows if "reverse" in row)
    expired = sum(int(row.split()[2]) for row in rows if "expire" in row and int(row.split()[0]) > 5)
    assert answer.result == {
        "account_id": str(who.account_id),
        "seq": seq,
        "reversed_credits": moved,
        "expired_credits": -expired,
        "balance_credits": sum(remaining.values()),
    }


def spent_whole(office: Office, who: Customer) -> None:
    given(office, who)
    office.consume(who, 150, "call")


def held_whole(office: Office, who: Customer) -> None:
    given(office, who)
    office.hold(who, 150, "hold")


def reversed_before(office: Office, who: Customer) -> None:
    over_two_grants(office, who)
    assert office.reverse(who, 4).status == "succeeded"


def gift_reversed_before(office: Office, who: Customer) -> None:
    """As far as it was free; the rest has become free since, and stays."""
    held_in_part(office, who)
    assert office.reverse(who, 2).status == "succeeded"
    office.now += timedelta(hours=1)


def expired(office: Office, who: Customer) -> None:
    office.adjust(who, 50, GIFT_ENDS_AT)
    office.tick(GIFT_ENDS_AT)


REFUSED: Table = {
    "a row that is not there": (consumed, 3, "not_found"),
    "a number that none has": (consumed, 0, "not_found"),
    "a posting that was reversed": (reversed_before, 4, "already_reversed"),
    "another row of a posting that was reversed": (reversed_before, 3, "already_reversed"),
    "a gift that was reversed in part": (gift_reversed_before, 2, "already_reversed"),
    "a reversal": (reversed_before, 5, "not_reversible"),
    "an expiry": (expired, 3, "not_reversible"),
    "a gift of which nothing is left": (spent_whole, 2, "not_reversible"),
    "a gift of which all is held": (held_whole, 2, "not_reversible"),
    "a month of which nothing is left": (spent_whole, 1, "not_reversible"),
    "a gift that has expired": (expired, 2, "not_reversible"),
}


@pytest.mark.parametrize(("story", "seq", "refusal"), cases(REFUSED))
def test_refused_and_nothing_is_written(office: Office, who: Customer, story: Story, seq: int, refusal: str) -> None:
    story(office, who)
    before = office.dump("operations")
    answer = office.reverse(who, seq)
    assert (answer.status, (answer.problem or {}).get("code")) == ("failed", refusal)
    assert office.dump("operations") == before


def test_nobody_elses_rows_are_reversed(office: Office, who: Customer) -> None:
    other = office.sign_up()
    office.assign(other, "free")
    office.consume(who, 30, "call")
    office.consume(other, 40, "call")
    assert office.reverse(who, 2).result["reversed_credits"] == 30
    assert ledger(office, other) == ["1 seed +100 of month", "2 consume -40 of month"]


def rows_of(office: Office, kind: str) -> list[Row[Any]]:
    return office.rows("SELECT * FROM credit_transactions WHERE kind = %(kind)s ORDER BY seq", kind=kind)


def test_a_reversal_says_what_it_undoes_and_who_wanted_it(office: Office, who: Customer) -> None:
    over_two_grants(office, who)
    office.now += timedelta(days=1)
    office.reverse(who, 3)
    done, undone = rows_of(office, "consume"), rows_of(office, "reverse")
    for row, other in zip(done, undone, strict=True):
        assert (other.reverses_seq, other.grant_id, other.line, other.amount) == (
            row.seq,
            row.grant_id,
            row.line,
            -row.amount,
        )
        assert other.idempotency_key == f"reverse:{row.idempotency_key}"
        assert (other.source, other.source_id, other.reason) == ("admin", office.admin_id, "it failed")
        assert other.effective_at == office.now
    assert [row.balance_after for row in undone] == [130, 150]


def test_what_expires_at_once_is_owed_to_its_grant(office: Office, who: Customer) -> None:
    after_the_gift_has_expired(office, who)
    office.reverse(who, 3)
    row = rows_of(office, "expire")[-1]
    assert (row.idempotency_key, row.line, row.source, row.source_id, row.effective_at, row.reverses_seq) == (
        "expire:reverse:consume:call",
        1,
        "grant",
        row.grant_id,
        office.now,
        None,
    )


def test_delivered_twice_it_is_done_once(office: Office, who: Customer) -> None:
    consumed(office, who)
    answer = office.reverse(who, 2)
    before = office.dump()
    office.execute(answer.id)
    assert office.dump() == before


def test_a_key_that_was_reversed_is_answered_as_before(office: Office, who: Customer) -> None:
    """What it took has come back; whoever asks again under the same key is not charged by that."""
    office.consume(who, 30, "call")
    office.reverse(who, 2)
    again = office.consume(who, 30, "call")
    assert (again.replayed, again.balance_credits) == (True, 70)
    assert office.balance(who).available_credits == 100


def test_what_came_back_can_be_spent_again(office: Office, who: Customer) -> None:
    office.consume(who, 100, "call")
    office.reverse(who, 2)
    assert office.consume(who, 100, "another").balance_credits == 0


def test_the_audit_log_says_why(office: Office, who: Customer) -> None:
    after_the_gift_has_expired(office, who)
    answer = office.reverse(who, 4)
    noted = office.row("SELECT * FROM audit_log WHERE action = 'credits.reversed'")
    assert (noted.actor_kind, noted.actor_id, noted.account_id, noted.reason, noted.operation_id) == (
        "admin",
        office.admin_id,
        who.account_id,
        "it failed",
        answer.id,
    )
    assert noted.before == {"balance_credits": 0, "seq": 4}
    assert noted.after == {"balance_credits": 100, "reversed_credits": 120}


# --- what it does to what comes next ------------------------------------------------------------------------


def next_transition(office: Office, who: Customer) -> tuple[str | None, datetime | None]:
    row = office.row(
        "SELECT next_transition AS kind, next_transition_at AS at FROM accounts WHERE id = %(id)s", id=who.account_id
    )
    return row.kind, row.at


def refresh(office: Office, who: Customer) -> None:
    with office.database.transaction() as tx:
        refresh_accounts(tx, [who.account_id], office.rules())


def spend_the_gift(office: Office, who: Customer) -> None:
    office.adjust(who, 50, GIFT_ENDS_AT)
    office.consume(who, 150, "call")


def take_the_gift(office: Office, who: Customer) -> None:
    office.adjust(who, 50, GIFT_ENDS_AT)
    office.adjust(who, -150)


@pytest.mark.parametrize("spend", [spend_the_gift, take_the_gift])
def test_a_grant_that_gets_credits_back_is_scheduled_to_expire_again(
    office: Office, who: Customer, spend: Story
) -> None:
    spend(office, who)
    refresh(office, who)
    assert next_transition(office, who) == (Transition.RENEWAL, on("2026-02-10")), "what is spent does not expire"
    office.reverse(who, 3)
    assert next_transition(office, who) == (Transition.GRANT_EXPIRY, GIFT_ENDS_AT)
    office.tick(GIFT_ENDS_AT)
    assert ledger(office, who)[-1] == "7 expire -50 of 50"


def test_of_two_on_one_instant_the_expiry_goes_before_the_month(office: Office) -> None:
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug = 'free-trial'")
    office.change("UPDATE plans SET \"interval\" = 'year' WHERE slug = 'free'")
    who = office.sign_up()
    office.assign(who, "free")
    office.consume(who, 100, "call")
    refresh(office, who)
    assert next_transition(office, who) == (Transition.CREDIT_MONTH, on("2026-02-10"))
    office.reverse(who, 2)
    assert next_transition(office, who) == (Transition.GRANT_EXPIRY, on("2026-02-10"))
    office.tick(on("2026-02-10"))
    assert ledger(office, who)[-2:] == ["4 expire -100 of month", "5 seed +100 of month"]


def test_what_comes_sooner_stays_next(office: Office, who: Customer) -> None:
    office.adjust(who, 50, on("2026-03-01"))
    office.consume(who, 150, "call")
    refresh(office, who)
    office.reverse(who, 3)
    assert next_transition(office, who) == (Transition.RENEWAL, on("2026-02-10"))


def test_an_account_without_a_future_has_one_again(office: Office, who: Customer) -> None:
    spend_the_gift(office, who)
    office.cancel(who, at_period_end=False)
    refresh(office, who)
    assert next_transition(office, who) == (None, None)
    office.reverse(who, 3)
    assert next_transition(office, who) == (Transition.GRANT_EXPIRY, GIFT_ENDS_AT)


def test_nothing_is_stamped_before_it_any_more(office: Office, who: Customer) -> None:
    consumed(office, who)
    office.now += timedelta(days=3)
    office.reverse(who, 2)
    assert office.state(who).account.acted_at == office.now


def test_what_was_due_before_is_applied_first(office: Office, who: Customer) -> None:
    consumed(office, who)
    office.now = on("2026-02-10")
    assert office.reverse(who, 2).result["expired_credits"] == 30
    assert ledger(office, who)[2:] == [
        "3 expire -70 of month",
        "4 seed +100 of month",
        "5 reverse +30 of month undoes 2",
        "6 expire -30 of month",
    ]
