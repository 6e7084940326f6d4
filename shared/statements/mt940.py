"""SWIFT statements, MT940, with the German structure of field 86.

The library knows the dialects of single fields. What belongs to a statement is decided here, because the library passes
over what it does not expect, and a payment that is passed over is lost.
Source: docs/rules.md, "Statements", and docs/adr/0019.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct
from mt940 import Options
from mt940.models import Amount, Balance, Transactions
from stdnum import iban, iso11649

from shared.domain.statement import BankEntry, with_ids_of_the_day
from shared.errors import InvalidStatement
from shared.statements import fields
from shared.statements.fields import refused, shown

MAX_ENTRY: Final = 1_000  # of field 61; the standard has 100, and the library tries a long one in hundreds of ways

# The library writes what it cannot read to the log: names and accounts of people.
logging.getLogger("mt940").setLevel(logging.CRITICAL + 1)

_OPTIONS: Final = Options.all()
# Whatever the library makes of a field that it cannot read.
_UNREADABLE: Final = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_TAG: Final = re.compile(r":([0-9]{2}[A-Z]?|NS):(.*)", re.DOTALL)
_OPENING: Final = {"60F": "final_opening_balance", "60M": "intermediate_opening_balance"}
_CLOSING: Final = {"62F": "final_closing_balance", "62M": "intermediate_closing_balance"}
_GERMAN_ACCOUNT: Final = re.compile(r"([0-9]{8})/([0-9]{1,10})")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_RETURNED_TRANSFER: Final = "159"  # German code of a transfer of ours that came back


class _Field(Struct, frozen=True):
    """`:tag:value`, with the line on which it begins."""

    tag: str
    value: str
    line: int


def read(content: bytes) -> list[BankEntry]:
    """The entries of all statements of a file. Raises InvalidStatement, which names the line."""
    entries = [entry for statement in _statements(_decoded(content)) for entry in _statement(statement)]
    return with_ids_of_the_day(entries)


def _decoded(content: bytes) -> str:
    # SWIFT knows letters without accents alone; German banks write ISO 8859-1, and lately UTF-8.
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("iso-8859-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise refused(f"line {line}", "this is neither UTF-8 nor ISO 8859-1; export the statement again as text")
    return text


def _statements(text: str) -> Iterator[list[_Field]]:
    """The fields of each statement, which begins with field 20."""
    statement: list[_Field] = []
    for field in _fields(text):
        if field.tag == "20" and statement:
            yield statement
            statement = []
        if field.tag != "20" and not statement:
            raise refused(f"line {field.line}", "a statement begins with :20:; export it again as MT940")
        statement.append(field)
    if not statement:
        raise InvalidStatement("there is no field :20:, so this is no MT940; export the statement again")
    yield statement


def _fields(text: str) -> Iterator[_Field]:
    """Fields with all of their lines. Lines before the first are the envelope, `-` is the end of a message."""
    tag, lines, begins = "", [""], 0
    for number, line in enumerate(text.split("\n"), 1):
        match = _TAG.fullmatch(line)
        if match:
            if tag:
                yield _Field(tag, "\n".join(lines), begins)
            tag, lines, begins = match[1], [match[2]], number
        elif line.strip() != "-" and not line.startswith("-}"):
            lines.append(line)
    if tag:
        yield _Field(tag, "\n".join(lines), begins)


def _statement(statement: list[_Field]) -> Iterator[tuple[BankEntry, str | None]]:
    """Each entry with the bank's reference. The balances are mandatory, so that a file which ends early is noticed."""
    account = _own_iban(_only(statement, "25"))
    currency, opening_minor = _balance(_only(statement, *_OPENING))
    closing_currency, closing_minor = _balance(_only(statement, *_CLOSING))
    where = f"line {statement[0].line}"
    if closing_currency != currency:
        raise refused(where, f"the statement opens in {currency} and closes in {closing_currency}; export it again")
    entries = [
        _entry(field, _details(statement, index), account, currency)
        for index, field in enumerate(statement)
        if field.tag == "61"
    ]
    fields.balances(opening_minor, sum(entry.amount_minor for entry, _ in entries), closing_minor, where)
    yield from entries


def _only(statement: list[_Field], *tags: str) -> _Field:
    found = [field for field in statement if field.tag in tags]
    if len(found) != 1:
        names = " or ".join(f":{tag}:" for tag in tags)
        where = f"line {statement[0].line}"
        raise refused(where, f"the statement has {len(found)} fields {names}, not one; export it again")
    return found[0]


def _own_iban(field: _Field) -> str:
    """An IBAN, perhaps with a currency after it, or a German bank code and account number, which make one."""
    where = f"line {field.line}"
    account = re.sub(r"\s", "", field.value)
    for candidate in (account, account[:-3]):  # EUR after it
        german = _GERMAN_ACCOUNT.fullmatch(candidate)
        if german:
            basic = f"{german[1]}{german[2]:0>10}"
            candidate = f"DE{iban.calc_check_digits(f'DE00{basic}')}{basic}"  # noqa: PLW2901 (the same account)
        found = fields.valid_iban(candidate)
        if found is not None:
            return found
    return fields.own_iban(account, where)


def _balance(field: _Field) -> tuple[str, int]:
    """Currency and signed amount."""
    where = f"line {field.line}"
    collection = _parsed(f":{field.tag}:{field.value}", where)
    balance = collection.data.get((_OPENING | _CLOSING)[field.tag])
    if not isinstance(balance, Balance) or not isinstance(balance.amount, Amount) or collection.transactions:
        raise refused(where, f"{shown(field.value)} is no balance; export the statement again")
    currency = balance.amount.currency or ""
    return currency, fields.in_minor(balance.amount.amount, currency, where)


def _details(statement: list[_Field], index: int) -> str:
    """The fields 86 that follow the one at `index`, as text. Those that follow a balance are about the statement."""
    details = []
    for field in statement[index + 1 :]:
        if field.tag != "86":
            break
        details.append(field.value)
    return "\n".join(details)


def _entry(field: _Field, details: str, account: str, currency: str) -> tuple[BankEntry, str | None]:
    where = f"line {field.line}"
    told = _told(field, details, where)
    amount: Amount = told["amount"]
    reference, remittance = _remittance(told)
    entry = BankEntry(
        iban=account,
        amount_minor=fields.in_minor(amount.amount, currency, where),
        currency=currency,
        booked_on=fields.day(str(told.get("entry_date", told["date"])), where),
        value_on=fields.day(str(told["date"]), where),
        payer_name=fields.name(told.get("applicant_name")),
        payer_iban=fields.valid_iban(told.get("applicant_iban") or told.get("gvc_applicant_iban") or ""),
        reference=reference,
        remittance=remittance,
        returned=len(told["status"]) > 1 or told.get("transaction_code") == _RETURNED_TRANSFER,
    )
    return entry, fields.identifier(told.get("bank_reference"), fields.MAX_TRANSACTION_ID, where)


def _told(field: _Field, details: str, where: str) -> dict[str, Any]:
    """One entry as the library reads it. Without a type it would take the next entry for the same one."""
    if len(field.value) > MAX_ENTRY:
        raise refused(where, f"the entry is longer than {MAX_ENTRY} characters; export the statement again")
    transactions = _parsed(f":61:{field.value}\n:86:{details}" if details else f":61:{field.value}", where).transactions
    if len(transactions) != 1 or not transactions[0].data.get("id"):
        raise refused(where, "this is no single entry with a type such as NTRF; export the statement again")
    return transactions[0].data


def _parsed(text: str, where: str) -> Transactions:
    # `mt940.parse` would open a file whose name the text happens to be.
    collection = Transactions(options=_OPTIONS)
    try:
        collection.parse(text)
    except _UNREADABLE:
        raise refused(where, "the field does not fit MT940; export the statement again") from None
    return collection


def _remittance(told: dict[str, Any]) -> tuple[str | None, str]:
    """A text that is nothing but an ISO 11649 reference is a structured one; SEPA has either one or the other."""
    written = [told.get("purpose"), told.get("additional_purpose"), told.get("transaction_details")]
    text = fields.plain(" ".join(part for part in written if part), fields.MAX_REMITTANCE)
    if iso11649.is_valid(text):
        return text, ""
    return None, text
