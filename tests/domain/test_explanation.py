"""Explanations: rules have a place in the documents, keys are the caller's own, and sums are held against balances."""

import re
from datetime import UTC, datetime
from uuid import UUID

import pytest
from msgspec.structs import replace

from shared.config import PROJECT_DIR
from shared.db.checks import CHECKS
from shared.domain.credits import GrantSource
from shared.domain.explanation import RULES, GrantStatement, RuleName, callers_key, statement
from shared.domain.export import COLUMNS, heading, lines

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)
GRANT = GrantStatement(
    id=UUID(int=1),
    source=GrantSource.SEED,
    opened_by_seq=1,
    effective_at=NOW,
    expires_at=None,
    seeded=1_000,
    purchased=0,
    given=0,
    consumed=300,
    corrected=20,
    expired=100,
    reversed=40,
    remaining=620,
)


def test_every_rule_is_stated_where_it_says() -> None:
    assert RULES.keys() == set(RuleName)
    rules = (PROJECT_DIR / "docs/rules.md").read_text()
    for _, section in RULES.values():
        heading, number = section.split()
        (text,) = re.findall(rf"^## {heading}\n(.*?)^## ", rules, flags=re.MULTILINE | re.DOTALL)
        assert number in re.findall(r"^(\d+)\. ", text, flags=re.MULTILINE), section


@pytest.mark.parametrize(
    ("posted_as", "given"),
    [
        ("consume:call-1", "call-1"),
        ("consume:consume:x", "consume:x"),
        ("consume:adjust:x", "adjust:x"),
        ("reverse:consume:call-1", None),
        ("expire:reverse:consume:call-1", None),
        ("capture:00000000-0000-0000-0000-000000000001", None),
        ("seed:1:0:0", None),
    ],
)
def test_a_callers_key_is_told_as_it_was_given(posted_as: str, given: str | None) -> None:
    assert callers_key(posted_as) == given


def test_a_statement_that_sums_up_fails_nothing() -> None:
    found = statement([GRANT, replace(GRANT, consumed=0, remaining=920)], balance_credits=1_540)
    assert (found.opening, found.seeded, found.consumed, found.reversed, found.balance) == (0, 2_000, 300, 80, 1_540)
    assert found.fails == []
    assert statement([], balance_credits=0).fails == []


@pytest.mark.parametrize(
    ("grant", "balance", "fails"),
    [
        (GRANT, 619, ["balance_is_sum_of_ledger", "balance_is_sum_of_grants"]),
        (replace(GRANT, remaining=621), 620, ["balance_is_sum_of_grants", "grant_remaining_is_its_ledger"]),
        (replace(GRANT, consumed=299), 620, ["balance_is_sum_of_ledger", "grant_remaining_is_its_ledger"]),
    ],
    ids=["a balance", "a grant", "a row"],
)
def test_what_does_not_sum_up_fails_by_the_name_of_its_check(
    grant: GrantStatement, balance: int, fails: list[str]
) -> None:
    assert statement([grant], balance_credits=balance).fails == fails
    assert set(fails) <= {check.name for check in CHECKS}


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_an_export_begins_a_formula(first: str) -> None:
    row = [f"{first}x" if name in {"reason", "source"} else -1 for name in COLUMNS]
    told = lines([row])
    assert told.replace('"', "").count(f"'{first}x") == 2
    assert told.startswith("-1,-1,"), "numbers are left alone"


def test_an_exports_lines_end_as_rfc_4180_says() -> None:
    assert heading() == ",".join(COLUMNS) + "\r\n"
    assert lines([]) == ""
