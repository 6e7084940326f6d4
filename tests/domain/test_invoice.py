"""The rules of docs/rules.md, "Invoices": creditor references."""

from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iso11649

from shared.domain.invoice import creditor_reference

years = st.integers(1970, 9999)
numbers = st.integers(1, 99_999_999)


@settings(max_examples=200, derandomize=True)
@given(years, numbers)
def test_a_reference_is_valid_under_iso_11649_and_tells_its_invoice(year: int, number: int) -> None:
    reference = creditor_reference(year, number)
    assert iso11649.is_valid(reference)
    assert int("".join(str(int(digit, 36)) for digit in reference[4:] + reference[:4])) % 97 == 1  # by the book
    assert (reference[:2], int(reference[4:8]), int(reference[8:])) == ("RF", year, number)
    assert len(reference) == 16


@settings(max_examples=200, derandomize=True)
@given(years, numbers, st.integers(4, 15), st.integers(1, 9))
def test_one_mistyped_digit_is_noticed(year: int, number: int, place: int, by: int) -> None:
    reference = creditor_reference(year, number)
    digit = (int(reference[place]) + by) % 10
    assert not iso11649.is_valid(reference[:place] + str(digit) + reference[place + 1 :])


def test_a_known_reference() -> None:
    assert creditor_reference(2026, 1) == "RF75202600000001"


def test_references_are_unique_over_years_and_numbers() -> None:
    references = {creditor_reference(year, number) for year in range(2024, 2030) for number in range(1, 2_001)}
    assert len(references) == 6 * 2_000
