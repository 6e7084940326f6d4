"""ISO 20022 statements, camt.053.001: what of the bank's XML becomes an entry.

Versions differ in two of the elements that are read here: `Sts` holds a code itself or in a `Cd`, a party has its name
itself or in a `Pty`. Both ways are read in all versions; whatever else is misread fails the balance.
Source: docs/rules.md, "Statements", and docs/adr/0019.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Final
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

# Neither of its modules says its types; what comes out of them is narrowed below.
from defusedxml.common import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import DefusedXMLParser  # type: ignore[import-untyped]
from msgspec import Struct

from shared.domain.statement import BankEntry
from shared.errors import InvalidStatement
from shared.statements import fields
from shared.statements.fields import refused, shown

MAX_DEPTH: Final = 64  # the standard needs 14
MAX_TAG_BYTES: Final = 16_384  # of a start tag and the text after it
MAX_NAME: Final = 256  # of an element or an attribute, with its namespace

_ROOT: Final = re.compile(r"\{urn:iso:std:iso:20022:tech:xsd:camt\.053\.001\.(0[2-9]|1[0-3])\}Document")
_LONG_TAG: Final = re.compile(rb"<[^<]{%d}" % MAX_TAG_BYTES)
_OPENING: Final = ("OPBD", "PRCD")  # balances that may open a statement, the better one first
_SIGN: Final = {"CRDT": 1, "DBIT": -1}
_NOTHING: Final = Element("TxDtls")
_FOREIGN: Final = "-"  # no path leads to such an element


class _Booking(Struct, frozen=True, kw_only=True):
    """What an `Ntry` says for all of its details."""

    where: str
    iban: str
    currency: str
    amount_minor: int
    booked_on: date
    value_on: date
    bank_id: str | None
    returned: bool
    text: str  # of the bank, for a booking without any other


def read(content: bytes) -> list[BankEntry]:
    """The booked entries of all statements of a document. Raises InvalidStatement, which names statement and entry."""
    statements = _document(content).findall("BkToCstmrStmt/Stmt")
    if not statements:
        raise InvalidStatement("the document has no statement (Stmt); export it again as camt.053")
    return [
        entry
        for number, statement in enumerate(statements, 1)
        for entry in _statement(statement, f"statement {number}")
    ]


class _Tree:
    """Builds a tree in which elements of the document's namespace have plain names, within bounds."""

    def __init__(self) -> None:
        self._builder = TreeBuilder()
        self._namespace = ""
        self._depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if not self._namespace:
            self._namespace = _known_namespace(tag)
        self._depth += 1
        if self._depth > MAX_DEPTH or len(tag) > MAX_NAME or any(len(name) > MAX_NAME for name in attributes):
            raise InvalidStatement("elements are nested too deep or named too long for a statement; export it again")
        self._builder.start(self._plain(tag), attributes)

    def end(self, tag: str) -> None:
        """An element ends."""
        self._depth -= 1
        self._builder.end(self._plain(tag))

    def data(self, text: str) -> None:
        """Text within an element."""
        self._builder.data(text)

    def close(self) -> Element:
        """The root."""
        return self._builder.close()

    def _plain(self, tag: str) -> str:
        return tag.removeprefix(self._namespace) if tag.startswith(self._namespace) else _FOREIGN


def _known_namespace(root: str) -> str:
    if not _ROOT.fullmatch(root):
        raise InvalidStatement(
            f"the document is {shown(root.rpartition(':')[2])}, not camt.053.001.02 to .13; export the statement as "
            "camt.053, version 2 or 8"
        )
    return root.removesuffix("Document")


def _document(content: bytes) -> Element:
    # Names are expanded by their namespace's address, once for each attribute: a long one in a long tag is a bomb.
    if _LONG_TAG.search(content):
        raise InvalidStatement(f"an element is longer than {MAX_TAG_BYTES} bytes; export the statement again")
    parser = DefusedXMLParser(target=_Tree(), forbid_dtd=True, forbid_entities=True, forbid_external=True)
    try:
        parser.feed(content)
        root = parser.close()
    except DefusedXmlException:
        raise InvalidStatement("the document brings a DTD or entities, which no bank does; export it again") from None
    except ParseError as error:
        raise refused(f"line {error.position[0]}", "this is not well-formed XML; export the statement again") from None
    except (LookupError, ValueError):
        raise InvalidStatement("the document's encoding is not known; export the statement as UTF-8") from None
    assert isinstance(root, Element)  # noqa: S101 - narrows what a library without types leaves open
    return root


def _statement(statement: Element, where: str) -> list[BankEntry]:
    iban = fields.own_iban(_text(statement, "Acct/Id/IBAN"), where)
    bookings = list(_bookings(statement, iban, where))
    _check_balances(statement, bookings, where)
    return [entry for booking, details in bookings for entry in _entries(booking, details)]


def _bookings(statement: Element, iban: str, where: str) -> Iterator[tuple[_Booking, list[Element]]]:
    for number, ntry in enumerate(statement.findall("Ntry"), 1):
        place = f"{where}, entry {number}"
        status = _text(ntry, "Sts/Cd", "Sts")
        if not status and ntry.find("Sts/Prtry") is None:
            raise refused(place, "there is no status (Sts); export the statement again")
        if status == "BOOK":  # others are announced, and come again once they are booked
            yield _booking(ntry, iban, place), ntry.findall("NtryDtls/TxDtls")


def _booking(ntry: Element, iban: str, where: str) -> _Booking:
    value_on = _text(ntry, "ValDt/Dt", "ValDt/DtTm")
    booked_on = _text(ntry, "BookgDt/Dt", "BookgDt/DtTm") or value_on
    currency, amount_minor = _money(ntry.find("Amt"), where)
    return _Booking(
        where=where,
        iban=iban,
        currency=currency,
        amount_minor=_sign(ntry, where) * amount_minor,
        booked_on=fields.day(booked_on, where),
        value_on=fields.day(value_on or booked_on, where),
        bank_id=_bank_id(ntry, "AcctSvcrRef", where),
        # The sign of a reversal is its own: CRDT brings back what a debit took.
        returned=_text(ntry, "RvslInd") in {"true", "1"} or ntry.find("NtryDtls/TxDtls/RtrInf") is not None,
        text=fields.plain(_text(ntry, "AddtlNtryInf"), fields.MAX_REMITTANCE),
    )


def _entries(booking: _Booking, details: list[Element]) -> Iterator[BankEntry]:
    details = details or [_NOTHING]
    amounts = _amounts(booking, details)
    ids = _transaction_ids(booking, details)
    for detail, amount_minor, transaction_id in zip(details, amounts, ids, strict=True):
        # Parties keep the roles that they had in the payment that is undone.
        party = "Dbtr" if (amount_minor > 0) is not booking.returned else "Cdtr"
        reference, remittance = _remittance(booking, detail)
        yield BankEntry(
            iban=booking.iban,
            transaction_id=transaction_id,
            amount_minor=amount_minor,
            currency=booking.currency,
            booked_on=booking.booked_on,
            value_on=booking.value_on,
            payer_name=fields.name(_text(detail, f"RltdPties/{party}/Pty/Nm", f"RltdPties/{party}/Nm")),
            payer_iban=fields.valid_iban(_text(detail, f"RltdPties/{party}Acct/Id/IBAN")),
            reference=reference,
            remittance=remittance,
            returned=booking.returned,
        )


def _amounts(booking: _Booking, details: list[Element]) -> list[int]:
    """What each detail moves. The booked amount where there is one, or the parts of a batch, which must make it up."""
    if len(details) == 1:
        return [booking.amount_minor]  # a detail may also tell what was instructed, in another currency
    amounts = []
    for detail in details:
        amount = detail.find("Amt")
        currency, minor = _money(detail.find("AmtDtls/TxAmt/Amt") if amount is None else amount, booking.where)
        if currency != booking.currency:
            raise refused(booking.where, f"a part of the batch is in {currency}, and the batch in {booking.currency}")
        own_sign = detail.find("CdtDbtInd") is not None
        sign = _sign(detail, booking.where) if own_sign else (1 if booking.amount_minor > 0 else -1)
        amounts.append(sign * minor)
    if sum(amounts) != booking.amount_minor:
        raise refused(booking.where, "the parts of the batch do not add up to it; ask the bank for single bookings")
    return amounts


def _transaction_ids(booking: _Booking, details: list[Element]) -> list[str | None]:
    """The booking's id for the only detail; in a batch the details' own, or the booking's with a number."""
    own = [_bank_id(detail, "Refs/AcctSvcrRef", booking.where) for detail in details]
    if len(details) == 1:
        return [booking.bank_id or own[0]]
    if None not in own and len(set(own)) == len(own):
        return list(own)
    if booking.bank_id is None:
        return [None] * len(details)
    return [f"{booking.bank_id}/{number}" for number in range(1, len(details) + 1)]


def _remittance(booking: _Booking, detail: Element) -> tuple[str | None, str]:
    """The structured reference, and the text: what was written, further references, or else the bank's own words."""
    structured = [_text(found, "CdtrRefInf/Ref") for found in detail.findall("RmtInf/Strd")]
    references = [reference for reference in structured if reference]
    texts = [found.text or "" for path in ("RmtInf/Ustrd", "RmtInf/Strd/AddtlRmtInf") for found in detail.findall(path)]
    text = fields.plain(" ".join([*texts, *references[1:]]), fields.MAX_REMITTANCE)
    if not text and not references:
        return None, fields.plain(_text(detail, "AddtlTxInf"), fields.MAX_REMITTANCE) or booking.text
    return fields.identifier("".join(references[:1]), fields.MAX_REFERENCE, booking.where), text


def _check_balances(statement: Element, bookings: list[tuple[_Booking, list[Element]]], where: str) -> None:
    """Where a statement says how it opens and closes, its booked entries lead from one to the other."""
    found = _balances(statement, where)
    opening = next((found[kind] for kind in _OPENING if kind in found), None)
    closing = found.get("CLBD")
    if opening is None or closing is None:
        return
    currencies = {opening[0], closing[0]} | {booking.currency for booking, _ in bookings}
    if len(currencies) > 1:
        raise refused(where, f"one account cannot be in {' and '.join(sorted(currencies))}; export the statement again")
    fields.balances(opening[1], sum(booking.amount_minor for booking, _ in bookings), closing[1], where)


def _balances(statement: Element, where: str) -> Mapping[str, tuple[str, int]]:
    """Currency and signed amount by kind of balance."""
    found: dict[str, tuple[str, int]] = {}
    for balance in statement.findall("Bal"):
        kind = _text(balance, "Tp/CdOrPrtry/Cd")
        if kind in (*_OPENING, "CLBD"):
            currency, minor = _money(balance.find("Amt"), where)
            signed = (currency, _sign(balance, where) * minor)
            if found.setdefault(kind, signed) != signed:
                raise refused(where, f"there are two balances {kind}; export the statement again")
    return found


def _money(amount: Element | None, where: str) -> tuple[str, int]:
    if amount is None:
        raise refused(where, "there is no amount (Amt); export the statement again")
    currency = amount.get("Ccy", "")
    return currency, fields.unsigned_minor((amount.text or "").strip(), currency, where)


def _sign(element: Element, where: str) -> int:
    found = _text(element, "CdtDbtInd")
    if found not in _SIGN:
        raise refused(where, f"CdtDbtInd is {shown(found)}, neither CRDT nor DBIT; export the statement again")
    return _SIGN[found]


def _bank_id(element: Element, path: str, where: str) -> str | None:
    return fields.identifier(_text(element, path), fields.MAX_TRANSACTION_ID, where)


def _text(element: Element, *paths: str) -> str:
    """The first text that is found, trimmed; empty where there is none."""
    for path in paths:
        text = (element.findtext(path) or "").strip()
        if text:
            return text
    return ""
