"""Single values as banks write them: the same strictness for all formats.

Names and free texts are cut to a length. What identifies or counts something is refused when it does not fit, with the
place where it stands. Source: docs/rules.md, "Statements".
"""

import re
from datetime import date
from decimal import Decimal
from typing import Final

from stdnum import iban

from shared.domain.money import to_minor
from shared.errors import InvalidInput, InvalidStatement

MAX_NAME: Final = 140
MAX_REMITTANCE: Final = 2_000
MAX_REFERENCE: Final = 35  # ISO 20022's; ISO 11649 takes 25
MAX_TRANSACTION_ID: Final = 140
MAX_AMOUNT_MINOR: Final = 10**15  # a hundred thousand such still fit a bigint with its sign

# The standard library also takes digits of other scripts, exponents and infinities.
_AMOUNT: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{0,5})?")
_DAY: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(T.*|Z|[+-][0-9]{2}:[0-9]{2})?")
_IBAN: Final = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}")
# What stands where an id is mandatory and the bank or the payer has none.
_PLACEHOLDERS: Final = frozenset({"NONREF", "NOREF", "NOTPROVIDED", "NOTAVAILABLE", "NONE"})


def refused(where: str, what: str) -> InvalidStatement:
    """The refusal of a whole file; `where` is the place as its reader finds it, such as `line 3`."""
    return InvalidStatement(f"{where}: {what}", at=where)


def shown(value: str) -> str:
    """A value in a sentence, cut to a length that a sentence bears."""
    return repr(value if len(value) <= 40 else f"{value[:40]}…")


def plain(value: str | None, limit: int) -> str:
    """Free text in one line, with single spaces, cut to a length."""
    return " ".join((value or "").split())[:limit].rstrip()


def name(value: str | None) -> str | None:
    """A name, or None when there is nothing in it."""
    return plain(value, MAX_NAME) or None


def identifier(value: str | None, limit: int, where: str) -> str | None:
    """An id in one line, or None when it is empty or a placeholder. Raises InvalidStatement when it is too long."""
    found = " ".join((value or "").split())
    if not found or re.sub(r"[\W_]", "", found.upper()) in _PLACEHOLDERS or not re.search(r"[^\W0]", found):
        return None
    if len(found) > limit:
        raise refused(where, f"{shown(found)} is longer than an id of {limit} characters; export the statement again")
    return found


def valid_iban(value: str) -> str | None:
    """An IBAN as compact capitals, or None when it is none."""
    compact = re.sub(r"\s", "", value).upper()
    return compact if _IBAN.fullmatch(compact) and iban.is_valid(compact) else None


def own_iban(value: str, where: str) -> str:
    """The account that a statement is about. Raises InvalidStatement when it is no IBAN."""
    found = valid_iban(value)
    if found is None:
        raise refused(where, f"{shown(value)} is no IBAN; ask the bank for statements that name ours")
    return found


def unsigned_minor(value: str, currency: str, where: str) -> int:
    """`89.00` of EUR is 8900. Raises InvalidStatement for what is no decimal number or no amount of the currency."""
    if not _AMOUNT.fullmatch(value):
        raise refused(where, f"{shown(value)} is no amount such as 89.00")
    return in_minor(Decimal(value), currency, where)


def in_minor(amount: Decimal, currency: str, where: str) -> int:
    """An amount of at most 15 digits before its point, in minor units. Raises InvalidStatement as above."""
    try:
        minor = to_minor(amount, currency)
    except InvalidInput as refusal:
        raise refused(where, refusal.detail) from None
    if abs(minor) > MAX_AMOUNT_MINOR:
        raise refused(where, f"{amount} {currency} is more than is accepted")
    return minor


def day(value: str, where: str) -> date:
    """A date, also of an instant, as the bank wrote it: in its own time zone. Raises InvalidStatement."""
    match = _DAY.fullmatch(value.strip())
    try:
        return date.fromisoformat(match[1] if match else "")
    except ValueError:
        raise refused(where, f"{shown(value)} is no date such as 2025-03-31") from None


def balances(opening_minor: int, amounts_minor: int, closing_minor: int, where: str) -> None:
    """A statement has all of its entries. Raises InvalidStatement when they do not lead from balance to balance."""
    if opening_minor + amounts_minor != closing_minor:
        raise refused(
            where,
            f"the opening balance {opening_minor} and the entries {amounts_minor} do not make the closing balance "
            f"{closing_minor} (in minor units); the file is not complete, export it again",
        )
