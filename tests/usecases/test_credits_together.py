"""What several keys consume in one statement: each item ends as it would by itself, and none waits for another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from hashlib import sha256
from random import Random
from typing import Any

import pytest

from api.together import Together
from shared.db.credits import KeyConsumption, consume_by_keys
from shared.ids import new_id
from tests.factories import Table, cases
from tests.office import Customer, Office

SCOPE = "credits:consume"
ALONE = "SELECT * FROM consume_credits(%(id)s, %(amount)s, %(key)s, 'api_key', %(key_id)s, NULL, %(now)s, false)"
LEDGER = """
    SELECT seq, kind, amount, balance_after, idempotency_key, line, effective_at, source, reason
    FROM credit_transactions WHERE account_id = %(id)s AND kind = 'consume' ORDER BY seq
    """
Item = tuple[str, int, str]


def key_of(office: Office, who: Customer, *, scope: str = SCOPE) -> str:
    """The hash of a new key of this account, as hexadecimal digits."""
    key_id = new_id()
    key_hash = sha256(key_id.bytes).digest()
    office.change(
        """
        INSERT INTO api_keys (id, account_id, name, prefix, key_hash, scopes, created_by)
        VALUES (%(id)s, %(account_id)s, 'key', 'bk', %(hash)s, %(scopes)s, %(user_id)s)
        """,
        id=key_id,
        account_id=who.account_id,
        hash=key_hash,
        scopes=[scope],
        user_id=who.user_id,
    )
    return key_hash.hex()


def together(office: Office, *items: Item) -> list[Any]:
    """The rows for items of (hash of a key, amount, idempotency key)."""
    asked = [KeyConsumption(hash=one[0], amount=one[1], key=one[2], reason=None, at=office.now) for one in items]
    return consume_by_keys(office.database, asked, scope=SCOPE)


def outcomes(answers: list[Any]) -> list[str | None]:
    return [answer and answer.outcome for answer in answers]


def nothing(_: Office, __: Customer, ___: str) -> None:
    pass


def change(sql: str) -> Callable[[Office, Customer, str], None]:
    return lambda office, who, key: office.change(sql, id=who.account_id, hash=key, now=office.now)


ENDS: Table = {
    "enough": (nothing, 10, "consumed"),
    "too few": (nothing, 2_001, "insufficient_credits"),
    "cancelled": (lambda office, who, _: office.cancel(who, at_period_end=False), 10, "account_cancelled"),
    "a month is due": (lambda office, *_: setattr(office, "now", office.now + timedelta(days=40)), 10, "due"),
    "done before": (lambda office, who, _: office.consume(who, 10, "one"), 10, "consumed"),
    "done before otherwise": (lambda office, who, _: office.consume(who, 10, "one"), 11, "idempotency_key_reused"),
    "revoked": (change("UPDATE api_keys SET revoked_at = now() WHERE key_hash = decode(%(hash)s, 'hex')"), 10, None),
    "expired": (
        change("UPDATE api_keys SET expires_at = %(now)s WHERE key_hash = decode(%(hash)s, 'hex')"),
        10,
        None,
    ),
    "another scope": (
        change("UPDATE api_keys SET scopes = '{credits:read}' WHERE key_hash = decode(%(hash)s, 'hex')"),
        10,
        None,
    ),
    "deleted": (change("UPDATE accounts SET deleted_at = %(now)s WHERE id = %(id)s"), 10, None),
}


@pytest.mark.parametrize(("before", "amount", "outcome"), cases(ENDS))
def test_an_item_ends_as_by_itself_and_leaves_its_neighbours_alone(
    office: Office, before: Callable[[Office, Customer, str], None], amount: int, outcome: str | None
) -> None:
    other = key_of(office, office.sign_up())
    who = office.sign_up()
    key = key_of(office, who)
    now = office.now
    before(office, who, key)
    items: list[Item] = [(other, 5, "left"), (key, amount, "one"), (other, 7, "right"), ("00" * 32, 1, "nobody")]
    left, found, right, nobody = together(office, *items)
    assert outcomes([found, nobody]) == [outcome, None]
    if office.now == now:
        assert (left.balance_credits, right.balance_credits) == (1_995, 1_988)
    else:
        assert (left.outcome, right.outcome) == ("due", "due")
    assert found is None or found.account_id == who.account_id


def test_the_items_of_an_account_are_done_in_their_order_whatever_key_they_came_by(office: Office) -> None:
    who = office.sign_up()
    one, other = key_of(office, who), key_of(office, who)
    answers = together(office, (one, 1_500, "a"), (other, 600, "b"), (other, 1_500, "a"), (one, 500, "c"))
    assert outcomes(answers) == ["consumed", "insufficient_credits", "consumed", "consumed"]
    assert [answer.replayed for answer in answers] == [False, False, True, False]
    assert [answer.balance_credits for answer in answers] == [500, 500, 500, 0]


@pytest.mark.parametrize("seed", range(5))
def test_random_items_end_and_are_written_as_one_after_another(office: Office, seed: int) -> None:
    choose = Random(seed)
    pairs = [(office.sign_up(), office.sign_up()) for _ in range(3)]
    keys = [key_of(office, first) for first, _ in pairs]
    for _ in range(25):
        office.now += timedelta(minutes=1)
        drawn = [
            (choose.randrange(3), choose.choice([1, 7, 90, 400, 2_500]), f"key-{choose.randrange(30)}")
            for _ in range(choose.randint(1, 8))
        ]
        answers = together(office, *((keys[number], amount, key) for number, amount, key in drawn))
        for answer, (number, amount, key) in zip(answers, drawn, strict=True):
            alone = office.database.ask(
                ALONE, id=pairs[number][1].account_id, amount=amount, key=key, key_id=new_id(), now=office.now
            )
            assert (answer.outcome, answer.balance_credits, answer.available_credits, answer.replayed) == tuple(alone)
    for first, second in pairs:
        assert office.rows(LEDGER, id=first.account_id) == office.rows(LEDGER, id=second.account_id)


def test_whoever_finds_the_account_locked_has_to_ask_alone_and_nobody_waits(office: Office) -> None:
    who, other = office.sign_up(), office.sign_up()
    key, others = key_of(office, who), key_of(office, other)
    with office.database.transaction() as tx:
        tx.execute("SELECT FROM accounts WHERE id = %(id)s FOR NO KEY UPDATE", id=who.account_id)
        assert outcomes(together(office, (key, 10, "one"), (others, 10, "one"))) == [None, "consumed"]
    assert (office.balance(who).balance_credits, office.balance(other).balance_credits) == (2_000, 1_990)
    assert outcomes(together(office, (key, 10, "one"))) == ["consumed"]


def test_what_makes_the_statement_fail_has_everybody_ask_alone(office: Office) -> None:
    who = office.sign_up()
    key = key_of(office, who)
    assert outcomes(together(office, (key, 10, "one"), (key, 2**63, "two"))) == [None, None]
    assert office.balance(who).balance_credits == 2_000
    assert outcomes(together(office, (key, 10, "one"))) == ["consumed"]


def test_the_use_of_a_key_is_noted_once_a_minute_unless_somebody_is_at_it(office: Office) -> None:
    who = office.sign_up()
    key, unused = key_of(office, who), key_of(office, who)
    at = "SELECT last_used_at FROM api_keys WHERE key_hash = decode(%(hash)s, 'hex')"
    first = office.now
    together(office, (key, 1, "a"), (key, 1, "b"))
    assert (office.row(at, hash=key).last_used_at, office.row(at, hash=unused).last_used_at) == (first, None)
    office.now += timedelta(minutes=1)
    together(office, (key, 1, "c"))
    assert office.row(at, hash=key).last_used_at == first
    office.now += timedelta(seconds=1)
    with office.database.transaction() as tx:
        tx.execute("SELECT FROM api_keys WHERE key_hash = decode(%(hash)s, 'hex') FOR UPDATE", hash=key)
        assert outcomes(together(office, (key, 1, "d"))) == ["consumed"]
    assert office.row(at, hash=key).last_used_at == first
    together(office, (key, 1, "e"))
    assert office.row(at, hash=key).last_used_at == office.now


def test_processes_that_ask_for_many_never_wait_in_a_circle_and_take_each_credit_once(office: Office) -> None:
    people = [office.sign_up() for _ in range(4)]
    keys = [(who, key_of(office, who)) for who in people for _ in range(2)]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = office.row(deadlocks).deadlocks
    processes = [Together(partial(consume_by_keys, office.database, scope=SCOPE)) for _ in range(2)]
    alone = []

    def consume(number: int) -> tuple[Customer, int]:
        who, key = keys[Random(number).randrange(len(keys))]
        asked = KeyConsumption(hash=key, amount=1 + number % 9, key=f"{number // 2}", reason=None, at=office.now)
        answer = processes[number % 2].ask(asked)
        if answer is None:
            alone.append(number)
            answer = office.database.ask(
                ALONE, id=who.account_id, amount=asked.amount, key=asked.key, key_id=new_id(), now=office.now
            )
        took = answer.outcome == "consumed" and not answer.replayed
        assert took or answer.replayed or answer.outcome == "insufficient_credits"
        return who, asked.amount if took else 0

    with ThreadPoolExecutor(16) as threads:
        taken = list(threads.map(consume, range(3_000)))
    assert office.row(deadlocks).deadlocks == before
    assert 0 < len(alone) < 3_000
    for who in people:
        assert 2_000 - office.balance(who).balance_credits == sum(amount for one, amount in taken if one == who)
