"""When two booked lines are the same one: ids that stay the same however often, and with whatever else, they come."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.statement import MAX_EXTERNAL_ID, BankEntry, distinct, external_ids, with_ids_of_the_day
from shared.errors import InvalidStatement
from tests.statements.samples import IBAN, entry

MONDAY = date(2025, 3, 3)
OTHER_IBAN = "FR1420041010050500013M02606"

# Few values, so that many entries are alike.
alike = st.builds(
    lambda day, amount, text, bank_id: entry(
        booked_on=MONDAY + timedelta(days=day), amount_minor=amount, remittance=text, transaction_id=bank_id
    ),
    day=st.integers(0, 3),
    amount=st.sampled_from([100, -100]),
    text=st.sampled_from(["", "Invoice"]),
    bank_id=st.none(),
)
numbered = st.lists(alike, max_size=12).map(
    lambda entries: [
        entry(
            booked_on=each.booked_on, amount_minor=each.amount_minor, transaction_id=f"T{place}" if place % 3 else None
        )
        for place, each in enumerate(entries)
    ]
)
files = st.one_of(st.lists(alike, max_size=12), numbered)


def test_the_banks_id_counts_within_our_account() -> None:
    first, second = external_ids([entry(transaction_id="T1"), entry(transaction_id="T1", iban=OTHER_IBAN)])
    assert (first, second) == (f"{IBAN}:id:T1", f"{OTHER_IBAN}:id:T1")


def test_ids_of_contents_are_those_that_are_stored() -> None:
    # Should this ever fail: what was imported before would be imported again.
    assert external_ids([entry()]) == [
        f"{IBAN}:content:e77ce1994489ece046c83569581ffd35ade87da330ccd966d7cc63996fb1f408:1"
    ]


def test_two_equal_payments_of_one_day_are_two() -> None:
    first, second = external_ids([entry(), entry()])
    assert (first[-2:], second[-2:]) == (":1", ":2")
    assert first[:-2] == second[:-2]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(entry(amount_minor=-8_900), id="direction"),
        pytest.param(entry(currency="USD"), id="currency"),
        pytest.param(entry(booked_on=MONDAY - timedelta(days=1), value_on=MONDAY), id="booking day"),
        pytest.param(entry(value_on=MONDAY + timedelta(days=1)), id="value day"),
        pytest.param(entry(payer_name="Charles Babbage"), id="payer"),
        pytest.param(entry(payer_iban=None), id="payer's account"),
        pytest.param(entry(reference="RF18539007547034"), id="reference"),
        pytest.param(entry(remittance="Invoice 18"), id="text"),
        pytest.param(entry(iban=OTHER_IBAN), id="our account"),
    ],
)
def test_whatever_differs_makes_another_entry(other: BankEntry) -> None:
    first, second = external_ids([entry(), other])
    assert first.rpartition(":")[0] != second.rpartition(":")[0]


def test_a_bank_cannot_write_an_id_that_stands_for_a_content() -> None:
    (content,) = external_ids([entry()])
    assert external_ids([entry(transaction_id=content.removeprefix(f"{IBAN}:"))]) != [content]


@pytest.mark.parametrize("length", [1, MAX_EXTERNAL_ID - len(IBAN) - 4, MAX_EXTERNAL_ID - len(IBAN) - 3, 10_000])
def test_ids_are_bounded_and_still_tell_apart(length: int) -> None:
    ids = external_ids([entry(transaction_id="T" * length), entry(transaction_id="T" * (length - 1) + "U")])
    assert len(set(ids)) == 2
    assert all(len(each) <= MAX_EXTERNAL_ID for each in ids)


def test_one_id_for_two_contents_is_refused() -> None:
    entries = [entry(transaction_id="T1"), entry(transaction_id="T1", amount_minor=1)]
    with pytest.raises(InvalidStatement, match="'T1' stands for two different entries"):
        external_ids(entries)
    with pytest.raises(InvalidStatement):
        distinct(entries)


def test_what_is_said_twice_under_one_id_is_one_entry() -> None:
    said, other = entry(transaction_id="T1"), entry(transaction_id="T2")
    assert distinct([said, other, said]) == [said, other]
    assert len(set(external_ids([said, other, said]))) == 2


def test_without_an_id_nothing_is_taken_for_a_repetition() -> None:
    assert len(distinct([entry(), entry()])) == 2


@given(entries=files)
def test_ids_are_unique_and_the_same_again(entries: list[BankEntry]) -> None:
    ids = external_ids(entries)
    assert len(set(ids)) == len(ids) == len(entries)
    assert external_ids(entries) == ids
    assert distinct(entries) == entries


@given(entries=files, first=st.integers(0, 3), days=st.integers(1, 4))
def test_a_file_that_overlaps_gives_its_entries_the_same_ids(entries: list[BankEntry], first: int, days: int) -> None:
    begins, ends = MONDAY + timedelta(days=first), MONDAY + timedelta(days=first + days)
    within = [begins <= each.booked_on < ends for each in entries]
    whole = external_ids(entries)
    part = external_ids([each for each, inside in zip(entries, within, strict=True) if inside])
    assert part == [known for known, inside in zip(whole, within, strict=True) if inside]


@pytest.mark.parametrize(
    ("references", "ids"),
    [
        pytest.param([(0, "A"), (0, "B")], ["2025-03-03/A", "2025-03-03/B"], id="ids"),
        pytest.param([(0, "A"), (0, "A"), (0, "B")], [None, None, "2025-03-03/B"], id="twice on one day is no id"),
        pytest.param([(0, "1"), (1, "1")], ["2025-03-03/1", "2025-03-04/1"], id="counted anew every day"),
        pytest.param([(0, None), (0, None)], [None, None], id="none given"),
    ],
)
def test_a_reference_is_an_id_if_it_is_alone_on_its_day(
    references: list[tuple[int, str | None]], ids: list[str | None]
) -> None:
    entries = [(entry(booked_on=MONDAY + timedelta(days=day)), reference) for day, reference in references]
    assert [each.transaction_id for each in with_ids_of_the_day(entries)] == ids
