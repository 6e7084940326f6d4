"""`python -m workers explain`: a balance that sums up, row by row, for people and for machines."""

import csv
import json
import re
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest

from shared.config import Settings
from shared.db import credits
from shared.db.engine import Database
from shared.domain.export import COLUMNS
from shared.domain.operation import OperationKind
from shared.domain.requests import AdjustCredits, ReverseCredits
from tests.db.world import START, Customer, World, populate
from tests.workers.test_cli import finished, process


@pytest.fixture
def cleo(database: Database, settings: Settings) -> Customer:
    """A customer who paid a month, spent, was given credits, and lost some; on a test clock."""
    with database.transaction() as tx:
        world = World(tx, settings)
        cleo = world.sign_up()
        world.advance(cleo, START + timedelta(days=3))
        world.pay(cleo, world.open_invoice(cleo, "starter"))
        world.ask(OperationKind.ADJUST_CREDITS, AdjustCredits(amount=500, reason="sorry"), cleo, by_admin=True)
        asker = credits.of_account(tx, cleo.account_id, lambda _tx: world.rules, asker_id=cleo.user_id)
        credits.consume(asker, 2_100, key="most", reason="=a call", now=START)
        credits.consume(asker, 30, key="some", reason=None, now=START)
        world.ask(OperationKind.ADJUST_CREDITS, AdjustCredits(amount=-70, reason="oops"), cleo, by_admin=True)
        world.ask(OperationKind.REVERSE_CREDITS, ReverseCredits(seq=6, reason="it failed"), cleo, by_admin=True)
        world.advance(cleo, START + timedelta(days=40))
    return cleo


def explain(settings: Settings, *arguments: object) -> str:
    status, out, err = finished(process(settings, "explain", *(str(argument) for argument in arguments)))
    assert (status, err) == (0, "")
    return out


def document(settings: Settings, *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(explain(settings, *arguments, "--json"))
    return found


def test_a_statement_sums_from_nothing_to_the_balance(settings: Settings, cleo: Customer) -> None:
    told = document(settings, cleo.account_id)
    sums = told["statement"]
    assert sums == {
        "opening": 0,
        "seeded": 3_000,
        "purchased": 0,
        "given": 500,
        "consumed": 2_130,
        "corrected": 70,
        "expired": 830,
        "reversed": 30,
        "balance": 500,
        "fails": [],
    }
    assert told["credits"]["balance_credits"] == 500
    assert [(grant["source"], grant["opened_by_seq"], grant["remaining"]) for grant in told["grants"]] == [
        ("seed", 1, 0),
        ("seed", 2, 0),
        ("adjust", 3, 500),
    ]


def test_the_newest_rows_are_explained(settings: Settings, cleo: Customer) -> None:
    rows = document(settings, cleo.account_id)["ledger"]
    assert [row["seq"] for row in rows] == list(range(len(rows), 0, -1))
    assert [row["rule"]["name"] for row in reversed(rows)] == [
        "credit_month",
        "credit_month",
        "gift",
        "burn_down",
        "burn_down",
        "burn_down",
        "correction",
        "given_back",
        "expiry",
    ]
    by_seq = {row["seq"]: row for row in rows}
    assert by_seq[2]["payment"]["provider"] == "sandbox"
    assert by_seq[3]["operation"]["kind"] == "adjust_credits"
    assert by_seq[3]["actor"]["name"].endswith("@example.com"), "an operator sees who it was"
    assert (by_seq[4]["posting_seqs"], by_seq[4]["idempotency_key"]) == ([5], "most")
    assert (by_seq[6]["reversed_by_seqs"], by_seq[8]["reverses_seq"]) == ([8], 6)
    assert [row["seq"] for row in document(settings, cleo.account_id, "--limit", 2)["ledger"]] == [9, 8]


def test_people_read_the_same(settings: Settings, database: Database, cleo: Customer) -> None:
    with database.transaction() as tx:
        email = tx.scalar("SELECT email FROM users WHERE id = %(id)s", id=cleo.user_id)
    told = " ".join(explain(settings, email).split())
    for words in (
        "it sums up: the ledger, the grants and the balance agree",
        "+ seeded 3,000",
        "- consumed 2,130",
        "± reversed 30",
        "= balance 500",
        "seed of row 1",
        "under the plan starter, where nothing rolls over",
        "starter from 2026-02-03 to 2026-03-03, paid by sandbox RF",
        f"user {email}",
        "taken in burn-down order: priority, earliest expiry, oldest",
        "it failed",
        "undoes row 6",
    ):
        assert words in told


def test_a_ledger_that_does_not_sum_up_names_the_checks_that_fail(
    settings: Settings, database: Database, cleo: Customer
) -> None:
    with database.transaction() as tx:
        tx.execute("UPDATE accounts SET balance_credits = balance_credits + 1 WHERE id = %(id)s", id=cleo.account_id)
    assert document(settings, cleo.account_id)["statement"]["fails"] == [
        "balance_is_sum_of_ledger",
        "balance_is_sum_of_grants",
    ]
    assert "it does not sum up: balance_is_sum_of_ledger, " in explain(settings, cleo.account_id)

    with database.transaction() as tx:
        tx.execute("UPDATE credit_grants SET remaining = remaining + 1 WHERE source = 'adjust' AND remaining < amount")
        tx.execute("UPDATE credit_grants SET remaining = remaining + 1 WHERE source = 'seed'")
    assert "grant_remaining_is_its_ledger" in document(settings, cleo.account_id)["statement"]["fails"]


def test_every_account_of_a_small_world_sums_up(settings: Settings, database: Database) -> None:
    with database.transaction() as tx:
        ids = populate(tx, settings)
    for situation in ("card", "spent", "renewed", "returned", "enterprise", "refunded"):
        told = document(settings, ids[situation])
        assert told["statement"]["fails"] == [], situation
        assert all(row["grant"]["opened_by_seq"] for row in told["ledger"]), situation


def test_what_went_back_with_the_money_is_explained(settings: Settings, database: Database) -> None:
    with database.transaction() as tx:
        refunded = populate(tx, settings)["refunded"]
    told = document(settings, refunded)
    assert (told["statement"]["reversed"], told["statement"]["fails"]) == (-712, [])
    assert [(row["amount"], row["refund"]["amount_minor"]) for row in told["ledger"][:3]] == [
        (-112, 10_00),
        (-500, 44_50),
        (-100, 8_90),
    ]
    assert {row["actor"]["kind"] for row in told["ledger"][:3]} == {"admin"}
    assert {row["seq"]: row["reversed_by_seqs"] for row in told["ledger"]}[2] == [5, 6, 7]
    shown = " ".join(explain(settings, refunded).split())
    for words in ("the money went back", "of USD 44.50, of payment", '"unhappy"', "undone by row 5, 6, 7"):
        assert words in shown


def test_the_whole_ledger_is_printed_as_csv(settings: Settings, cleo: Customer) -> None:
    rows = list(csv.DictReader(StringIO(explain(settings, cleo.account_id, "--csv"), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert [row["seq"] for row in rows] == [str(seq) for seq in range(1, 10)]
    assert (rows[3]["idempotency_key"], rows[3]["reason"], rows[3]["amount"]) == ("most", "'=a call", "-2000")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["00000000-0000-0000-0000-000000000001"], "no such account", id="unknown"),
        pytest.param(["00000000-0000-7000-8000-000000000000"], "no such account", id="the system account"),
        pytest.param(["nobody@example.com", "--csv"], "nobody signs in with nobody@example.com", id="no such address"),
        pytest.param(["nonsense"], "neither an id nor an email address", id="nonsense"),
        pytest.param(["nobody@example.com", "--csv", "--json"], "--csv or --json, not both", id="two formats"),
    ],
)
def test_whom_nobody_knows_is_told_in_one_line(
    settings: Settings, database: Database, arguments: list[str], told: str
) -> None:
    status, out, err = finished(process(settings, "explain", *arguments))
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: .*{told}.*\n", err)


@pytest.mark.parametrize("limit", ["0", "1001", "many"])
def test_so_many_rows_are_explained_as_one_can_read(settings: Settings, database: Database, limit: str) -> None:
    assert finished(process(settings, "explain", "ada@example.com", "--limit", limit))[0] == 2
