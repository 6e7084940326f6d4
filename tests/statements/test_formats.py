"""What all formats have in common: a statement's entries come back as they were booked, and the same ones again."""

import tracemalloc
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import statements
from shared.domain.invoice import creditor_reference
from shared.domain.statement import BankEntry, StatementFormat, external_ids
from shared.errors import InvalidStatement
from tests.statements import samples
from tests.statements.samples import PAYER_IBAN, entry, told_by

Writer = Callable[[Sequence[BankEntry]], bytes]

FORMATS = [
    pytest.param(StatementFormat.CAMT053, partial(samples.camt053, version=2), id="camt.053 version 2"),
    pytest.param(StatementFormat.CAMT053, partial(samples.camt053, version=8), id="camt.053 version 8"),
    pytest.param(StatementFormat.MT940, samples.mt940, id="MT940"),
    pytest.param(StatementFormat.CSV, samples.csv_table, id="CSV with semicolons"),
    pytest.param(
        StatementFormat.CSV, partial(samples.csv_table, delimiter=",", bom=True), id="CSV with commas and BOM"
    ),
]

# What SWIFT allows in a text, without what field 86 is built of; and anything that can be written.
swift_texts = st.text("ABCXYZabcxyz0189 .,-/()'", max_size=100)
any_texts = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=200)
ids = st.integers(1, 10**9).map(lambda number: f"{number:012d}/{number % 7}")


def one_line(text: str) -> str:
    return " ".join(text.split())


def entries_of(kind: StatementFormat) -> st.SearchStrategy[list[BankEntry]]:
    texts = (swift_texts if kind is StatementFormat.MT940 else any_texts).map(one_line)
    one = st.builds(
        booked,
        st.dates(date(2001, 1, 1), date(2098, 12, 31)),
        st.integers(-9, 9),
        transaction_id=st.none() | ids,
        amount_minor=st.integers(-(10**11), 10**11).filter(bool),
        payer_name=st.none() | texts.map(lambda text: text[:50].strip() or None),
        payer_iban=st.sampled_from([None, PAYER_IBAN]),
        reference=st.none() | st.integers(1, 99_999_999).map(partial(creditor_reference, 2025)),
        remittance=texts,
        returned=st.booleans(),
    )
    return st.lists(one, max_size=5, unique_by=lambda each: each.transaction_id or object())


def booked(day: date, days_until_value: int, **facts: Any) -> BankEntry:
    return entry(booked_on=day, value_on=day + timedelta(days=days_until_value), **facts)


@pytest.mark.parametrize(("kind", "write"), FORMATS)
@given(data=st.data())
def test_entries_come_back_as_they_were_written(kind: StatementFormat, write: Writer, data: st.DataObject) -> None:
    entries = data.draw(entries_of(kind))
    assert statements.parse(write(entries), kind) == [told_by(kind, each) for each in entries]


@pytest.mark.parametrize(("kind", "write"), FORMATS)
def test_importing_again_and_importing_more_gives_the_same_ids(kind: StatementFormat, write: Writer) -> None:
    twice = entry(remittance="twice on one day")
    march = [entry(transaction_id="T1"), twice, twice, entry(booked_on=date(2025, 3, 9), transaction_id="T2")]
    april = [entry(booked_on=date(2025, 4, 1), transaction_id="T3")]
    known = external_ids(statements.parse(write(march), kind))
    assert len(set(known)) == 4
    assert external_ids(statements.parse(write(march), kind)) == known
    assert external_ids(statements.parse(write(march + april), kind))[:4] == known
    assert external_ids(statements.parse(write([*march[1:], *april]), kind))[:3] == known[1:]


@pytest.mark.parametrize(("kind", "write"), FORMATS)
@pytest.mark.parametrize(
    ("currency", "amount_minor"),
    [
        pytest.param("JPY", 12_345, id="no decimals"),
        pytest.param("BHD", 12_345, id="three decimals"),
        pytest.param("EUR", 1, id="a cent"),
        pytest.param("EUR", 99_999_999_999_999, id="more than a float has"),
    ],
)
def test_amounts_are_exact(kind: StatementFormat, write: Any, currency: str, amount_minor: int) -> None:
    entries = [entry(currency=currency, amount_minor=amount_minor), entry(currency=currency, amount_minor=-1)]
    content = write(entries) if kind is StatementFormat.CSV else write(entries, currency=currency)
    assert [each.amount_minor for each in statements.parse(content, kind)] == [amount_minor, -1]


@pytest.mark.parametrize(("kind", "write"), FORMATS)
def test_long_texts_are_cut(kind: StatementFormat, write: Writer) -> None:
    name = "N" * (54 if kind is StatementFormat.MT940 else 1_000)
    (found,) = statements.parse(write([entry(payer_name=name)]), kind)
    assert found.payer_name == name[:140]


@pytest.mark.parametrize(("kind", "write"), FORMATS)
def test_a_statement_without_entries_is_one(kind: StatementFormat, write: Writer) -> None:
    assert statements.parse(write([]), kind) == []


@pytest.mark.parametrize(("kind", "write"), FORMATS)
def test_too_many_entries_are_refused(kind: StatementFormat, write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write([entry(transaction_id=f"T{number}") for number in range(4)])
    monkeypatch.setattr(statements, "MAX_ENTRIES", 4)
    assert len(statements.parse(content, kind)) == 4
    monkeypatch.setattr(statements, "MAX_ENTRIES", 3)
    with pytest.raises(InvalidStatement, match="4 entries, more than 3"):
        statements.parse(content, kind)


@pytest.mark.parametrize(("kind", "write"), FORMATS)
def test_memory_is_in_proportion_to_the_file(kind: StatementFormat, write: Writer) -> None:
    def peak(count: int) -> int:
        content = write([entry(transaction_id=f"T{number}") for number in range(count)])
        tracemalloc.start()
        try:
            assert len(statements.parse(content, kind)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    statements.parse(write([entry()]), kind)
    assert peak(800) < 2.5 * peak(400)
