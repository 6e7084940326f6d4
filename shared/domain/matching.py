"""Which invoice a booked payment is for: certain enough to settle it, or likely enough to show it to an admin.

Only a reference that is right to its check digits settles by itself. Whatever is guessed, from a mistyped reference or
from a name, is a suggestion. Source: docs/rules.md, "Statements".
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeVar
from uuid import UUID

from msgspec import Struct
from rapidfuzz import fuzz, utils

from shared.domain.invoice import InvoiceStatus, creditor_reference
from shared.domain.statement import BankEntry
from shared.errors import InvoiceNotOpen, PaymentMismatch

MAX_SUGGESTIONS: Final = 10
MAX_NEAR: Final = 50
MIN_SIMILARITY: Final = 85  # of names, in percent

DIGITS: Final = 14  # of a reference of ours: two check digits, year, number
# What people and banks put between the characters: spaces, the hyphens of Unicode, dots, slashes.
_GAP: Final = r"[\s\-\u2010-\u2015.,/]{0,3}"
_REFERENCE: Final = re.compile(rf"R{_GAP}F((?:{_GAP}[0-9]){{{DIGITS}}})(?![0-9])")
_PREFIX: Final = re.compile(rf"R{_GAP}F+(?={_GAP}[0-9A-Z])")
_BAD_PREFIXES: Final = (
    re.compile(rf"(?:[RF][0-9A-Z]?|[0-9A-Z][RF]){_GAP}([0-9](?:{_GAP}[0-9]){{{DIGITS - 1}}})(?![0-9])"),
    re.compile(rf"R{_GAP}([0-9]{_GAP}F(?:{_GAP}[0-9]){{{DIGITS - 1}}})(?![0-9])"),  # swapped with the first digit
)
_CHARACTER: Final = re.compile(rf"({_GAP})([0-9A-Z])")


class Reason(StrEnum):
    """Why an invoice is suggested, and what speaks against it."""

    REFERENCE = "reference"  # in the entry, right to its check digits
    SIMILAR_REFERENCE = "similar_reference"  # one typing error away from what is in the entry
    PAYER_NAME = "payer_name"
    AMOUNT = "amount"  # and currency
    OTHER_AMOUNT = "other_amount"
    OTHER_CURRENCY = "other_currency"
    ALREADY_PAID = "already_paid"  # perhaps paid twice
    VOID = "void"
    SEVERAL_REFERENCES = "several_references"  # the entry names more invoices than this one
    RETURNED = "returned"  # money that came back


class UnappliedReason(StrEnum):
    """Why money that a statement brings settles nothing, or nothing yet."""

    MATCHED = "matched"  # all fits: it is being applied, or an admin is to do it where nothing settles by itself
    UNMATCHED = "unmatched"  # it names no invoice
    AMBIGUOUS = "ambiguous"  # it names several, or another reference beside the invoice's
    RETURNED = "returned"  # nobody pays with it: money of ours that came back
    INVOICE_NOT_OPEN = InvoiceNotOpen.code  # it names an invoice that is paid or void
    PAYMENT_MISMATCH = PaymentMismatch.code  # it names an open invoice over another amount or currency


# Points out of 100. A right reference starts from the top and loses some for whatever does not fit.
_PENALTY: Final = {
    Reason.OTHER_AMOUNT: 10,
    Reason.OTHER_CURRENCY: 15,
    Reason.ALREADY_PAID: 20,
    Reason.VOID: 25,
    Reason.SEVERAL_REFERENCES: 5,
    Reason.RETURNED: 10,
}
_SIMILAR_REFERENCE: Final = 70
_AND_PAYER_NAME: Final = 10
_PAYER_NAME: Final = 40  # and what the similarity is above the least, up to 15


class Candidate(Struct, frozen=True, kw_only=True):
    """An invoice that a payment may be for."""

    invoice_id: UUID
    reference: str
    amount_minor: int
    currency: str
    status: InvoiceStatus
    payer_names: tuple[str, ...] = ()  # of the account, and as given with submitted transfers


C = TypeVar("C", bound=Candidate)


class Suggestion(Struct, frozen=True, kw_only=True):
    """An invoice to show to an admin, best first by `score`, from 1 to 100."""

    invoice_id: UUID
    score: int
    reasons: tuple[Reason, ...]


def references_in(entry: BankEntry) -> list[str]:
    """The references of our shape in an entry, each once, in the order in which they stand there.

    From the structured field and the text; in small letters too, and however they are spaced or hyphenated. Only what
    `creditor_reference` would have given counts: other creditors' references and wrong check digits do not.
    """
    return list(dict.fromkeys(found for text in _texts(entry) for _, found in _references(text)))


def near_references(entry: BankEntry) -> set[str]:
    """The references of our shape that are one typing error away from what an entry holds; at most MAX_NEAR.

    An error is another character, two neighbours that are swapped, one that is missing or doubled, or check digits that
    are not those of year and number. What the entry holds without an error is not in it.
    """
    right = set(references_in(entry))
    near: set[str] = set()
    for text in _texts(entry):
        for reference in _mistyped(text):
            if len(near) < MAX_NEAR and reference not in right:
                near.add(reference)
    return near


def suggestions(entry: BankEntry, candidates: Iterable[Candidate]) -> list[Suggestion]:
    """The candidates that a payment may be for, best first, at most MAX_SUGGESTIONS; none for money that goes out.

    A right reference is shown whatever else is wrong. A similar one needs the amount, and a similar name needs it too;
    both are shown for open invoices alone. Equal scores are in the order of references, that is of invoices.
    """
    if entry.amount_minor <= 0:
        return []
    right, near = references_in(entry), near_references(entry)
    found = []
    for candidate in candidates:
        score, reasons = _judge(entry, candidate, right, near)
        if score:
            suggestion = Suggestion(invoice_id=candidate.invoice_id, score=score, reasons=reasons)
            found.append((-score, candidate.reference[4:], suggestion))  # behind the check digits
    return [suggestion for _, _, suggestion in sorted(found, key=lambda item: item[:2])[:MAX_SUGGESTIONS]]


def settles(entry: BankEntry, candidate: Candidate) -> bool:
    """Whether a payment settles an invoice without anybody looking at it.

    The entry holds one reference, this invoice's; amount and currency are the invoice's; the invoice is open; and the
    money came in, and did not come back.
    """
    return (
        entry.amount_minor > 0
        and not entry.returned
        and references_in(entry) == [candidate.reference]
        and _same_money(entry, candidate)
        and candidate.status is InvoiceStatus.OPEN
    )


def meant_for(entry: BankEntry, invoices: Mapping[str, C]) -> tuple[C | None, UnappliedReason]:
    """The invoice that an entry names, if it names just one, and how money that came in with it stands to it.

    invoices: by their references; at least those of `references_in(entry)` that exist.
    """
    references = references_in(entry)
    named = [invoices[reference] for reference in references if reference in invoices]
    invoice = named[0] if len(named) == 1 else None
    if entry.returned:
        return invoice, UnappliedReason.RETURNED
    if not named:
        return None, UnappliedReason.UNMATCHED
    if invoice is None or len(references) > 1:
        return invoice, UnappliedReason.AMBIGUOUS
    if settles(entry, invoice):
        return invoice, UnappliedReason.MATCHED
    if invoice.status is not InvoiceStatus.OPEN:
        return invoice, UnappliedReason.INVOICE_NOT_OPEN
    return invoice, UnappliedReason.PAYMENT_MISMATCH


def _judge(
    entry: BankEntry, candidate: Candidate, right: Sequence[str], near: set[str]
) -> tuple[int, tuple[Reason, ...]]:
    """Score and reasons; the score is 0 when the candidate is not worth showing."""
    if candidate.reference in right:
        against = _objections(entry, candidate, right)
        for_it = (Reason.REFERENCE, Reason.AMOUNT) if _same_money(entry, candidate) else (Reason.REFERENCE,)
        return 100 - sum(_PENALTY[reason] for reason in against), (*for_it, *against)
    if candidate.status is not InvoiceStatus.OPEN or not _same_money(entry, candidate) or entry.returned:
        return 0, ()
    similarity = _similarity(entry.payer_name, candidate.payer_names)
    by_name = (Reason.PAYER_NAME,) if similarity >= MIN_SIMILARITY else ()
    if candidate.reference in near:
        score = _SIMILAR_REFERENCE + (_AND_PAYER_NAME if by_name else 0)
        return score, (Reason.SIMILAR_REFERENCE, Reason.AMOUNT, *by_name)
    if by_name:
        return _PAYER_NAME + similarity - MIN_SIMILARITY, (Reason.AMOUNT, *by_name)
    return 0, ()


def _objections(entry: BankEntry, candidate: Candidate, right: Sequence[str]) -> tuple[Reason, ...]:
    facts = {
        Reason.OTHER_AMOUNT: entry.amount_minor != candidate.amount_minor,
        Reason.OTHER_CURRENCY: entry.currency != candidate.currency,
        Reason.ALREADY_PAID: candidate.status is InvoiceStatus.PAID,
        Reason.VOID: candidate.status is InvoiceStatus.VOID,
        Reason.SEVERAL_REFERENCES: len(right) > 1,
        Reason.RETURNED: entry.returned,
    }
    return tuple(reason for reason, holds in facts.items() if holds)


def _same_money(entry: BankEntry, candidate: Candidate) -> bool:
    return (entry.amount_minor, entry.currency) == (candidate.amount_minor, candidate.currency)


def _similarity(payer_name: str | None, known: Iterable[str]) -> int:
    """Percent of the best of the known names, whatever the order of words, case and punctuation."""
    payer = utils.default_process((payer_name or "").casefold())
    if not payer:
        return 0  # nothing is all too similar to nothing
    names = (utils.default_process(name.casefold()) for name in known)
    return int(max((fuzz.token_sort_ratio(payer, name) for name in names), default=0))


def _texts(entry: BankEntry) -> tuple[str, str]:
    return (entry.reference or "").upper(), entry.remittance.upper()


def _references(text: str) -> Iterator[tuple[int, str]]:
    """Right references in upper-case text, with the place where each begins."""
    for match in _REFERENCE.finditer(text):
        digits = re.sub(r"[^0-9]", "", match[1])
        if _is_right(digits):
            yield match.start(), f"RF{digits}"


def _is_right(digits: str) -> bool:
    # Several check digits have the same remainder, but only one pair is ever given.
    return len(digits) == DIGITS and _given(digits[2:]) == digits


def _given(body: str) -> str:
    """The digits of the reference for year and number."""
    return creditor_reference(int(body[:4]), int(body[4:])).removeprefix("RF")


def _mistyped(text: str) -> Iterator[str]:
    """References that upper-case text may have meant."""
    right = {start for start, _ in _references(text)}
    for pattern in _BAD_PREFIXES:
        for match in pattern.finditer(text):
            digits = re.sub(r"[^0-9]", "", match[1])
            if _is_right(digits):
                yield f"RF{digits}"
    for match in _PREFIX.finditer(text):
        if match.start() not in right:
            for typed in _typed_after(text, match.end()):
                for digits in _corrections(typed):
                    if _is_right(digits):
                        yield f"RF{digits}"


def _typed_after(text: str, start: int) -> list[str]:
    """What may have been typed as digits from `start` on: one too few, right, or one too many, and at most one letter.

    A word ends at a gap, or where a letter follows digits; where it ends among digits it is another number.
    """
    typed, ends = "", []
    while len(typed) <= DIGITS + 1:
        match = _CHARACTER.match(text, start)
        if match is None or match[1] or (typed[-1:].isdigit() and match[2].isalpha()):
            ends.append(typed)
        if match is None:
            break
        typed += match[2]
        start = match.end()
    return [end for end in ends if abs(len(end) - DIGITS) <= 1 and sum(map(str.isalpha, end)) <= 1]


def _corrections(typed: str) -> Iterator[str]:
    """What becomes of `typed` by undoing one error; most of it is no reference."""
    letters = [place for place, character in enumerate(typed) if character.isalpha()]
    if len(typed) == DIGITS:
        for place in letters or range(DIGITS):
            yield from (typed[:place] + digit + typed[place + 1 :] for digit in "0123456789")
        if not letters:
            yield _given(typed[2:])
            for place in range(DIGITS - 1):
                yield typed[:place] + typed[place + 1] + typed[place] + typed[place + 2 :]
    elif len(typed) < DIGITS and not letters:
        for place in range(len(typed) + 1):
            yield from (typed[:place] + digit + typed[place:] for digit in "0123456789")
    elif not letters:
        for place in range(1, len(typed)):
            if typed[place] == typed[place - 1]:
                yield typed[:place] + typed[place + 1 :]
