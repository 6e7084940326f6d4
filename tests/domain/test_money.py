"""Money at the edges: minor units of each currency, exactly, or not at all."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis.strategies import integers, sampled_from

from shared.domain.money import decimals, to_decimal, to_minor, written
from shared.errors import InvalidInput


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [
        pytest.param("89.00", "USD", 8_900, id="cents"),
        pytest.param("89", "USD", 8_900, id="no decimals written"),
        pytest.param("89.0000", "USD", 8_900, id="more zeros than the currency has"),
        pytest.param("-1.05", "EUR", -105, id="negative"),
        pytest.param("890", "JPY", 890, id="no minor unit"),
        pytest.param("0.001", "BHD", 1, id="three decimals"),
        pytest.param("12345678901234567.89", "EUR", 1_234_567_890_123_456_789, id="more digits than a float has"),
    ],
)
def test_an_amount_in_minor_units(amount: str, currency: str, minor: int) -> None:
    assert to_minor(Decimal(amount), currency) == minor


@pytest.mark.parametrize(
    ("amount", "currency"),
    [
        pytest.param("0.001", "USD", id="a tenth of a cent"),
        pytest.param("0.5", "JPY", id="half a yen"),
        pytest.param("NaN", "USD", id="not a number"),
        pytest.param("Infinity", "USD", id="infinite"),
        pytest.param("1", "usd", id="small letters"),
        pytest.param("1", "ABC", id="no such currency"),
        pytest.param("1", "XAU", id="gold has no minor unit"),
    ],
)
def test_what_is_no_amount_is_refused(amount: str, currency: str) -> None:
    with pytest.raises(InvalidInput):
        to_minor(Decimal(amount), currency)


@given(minor=integers(-(10**15), 10**15), currency=sampled_from(["USD", "JPY", "BHD"]))
def test_back_and_forth_loses_nothing(minor: int, currency: str) -> None:
    assert to_minor(to_decimal(minor, currency), currency) == minor


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        (108_900, "USD", "USD 1,089.00"),
        (5, "EUR", "EUR 0.05"),
        (1_234_567, "JPY", "JPY 1,234,567"),
        (0, "USD", "USD 0.00"),
    ],
)
def test_as_people_read_it(minor: int, currency: str, text: str) -> None:
    assert written(minor, currency) == text
    assert len(text.rpartition(".")[2]) == decimals(currency) or not decimals(currency)
