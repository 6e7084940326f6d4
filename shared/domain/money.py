"""Money at the edges: integers in minor units inside, decimal text where people and banks write it.

Source: docs/rules.md, "Money".
"""

from decimal import Decimal
from functools import lru_cache

from iso4217 import Currency

from shared.errors import InvalidInput


@lru_cache
def decimals(currency: str) -> int:
    """Digits of the minor unit: 2 for USD, 0 for JPY, 3 for BHD. Raises InvalidInput for what is no currency."""
    try:
        exponent = Currency(currency).exponent
    except ValueError:
        exponent = None
    if exponent is None:
        raise InvalidInput(f"{currency!r} is no ISO 4217 currency that has a minor unit")
    return int(exponent)


def to_minor(amount: Decimal, currency: str) -> int:
    """`Decimal("89.00")` of USD is 8900. Raises InvalidInput when there is less than one minor unit in it."""
    minor = amount.scaleb(decimals(currency))
    if not minor.is_finite() or minor != minor.to_integral_value():
        raise InvalidInput(f"{amount} is no amount in {currency}, which has {decimals(currency)} decimals")
    return int(minor)


def to_decimal(amount_minor: int, currency: str) -> Decimal:
    """8900 of USD is `Decimal("89.00")`."""
    return Decimal(amount_minor).scaleb(-decimals(currency))


def written(amount_minor: int, currency: str) -> str:
    """`USD 1,089.00`: as people read it, whatever their language."""
    return f"{currency} {to_decimal(amount_minor, currency):,f}"
