"""Bank statements: what a booked line of our account is, and when two lines are the same one.

A statement is imported again, or overlaps with the last one, sooner or later. What decides is the external id of each
line: the bank's own id where it gives one, and otherwise the content, with a number for lines that are alike.
Source: docs/rules.md, "Statements".
"""

from collections import Counter
from collections.abc import Sequence
from datetime import date
from enum import StrEnum
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from shared.errors import InvalidStatement

MAX_EXTERNAL_ID: Final = 200


class StatementFormat(StrEnum):
    """What `shared.statements.parse` reads."""

    CAMT053 = "camt053"
    MT940 = "mt940"
    CSV = "csv"


class BankEntry(Struct, frozen=True, kw_only=True):
    """One booked line of our account. Texts have single spaces and no line breaks; IBANs are compact capitals."""

    iban: str  # our account
    transaction_id: str | None = None  # the bank's own id of this line, unique in our account
    amount_minor: int  # in the account's currency; money in is positive, money out negative
    currency: str
    booked_on: date
    value_on: date
    payer_name: str | None = None  # the other party; for money out, who was paid
    payer_iban: str | None = None
    reference: str | None = None  # structured creditor reference, as the bank passed it on
    remittance: str = ""  # what the payer wrote
    returned: bool = False  # undoes an earlier booking or brings back a payment of ours; nobody pays with it


def external_ids(entries: Sequence[BankEntry]) -> list[str]:
    """The id of each entry of one file, in order; the same again for the same file and for one that overlaps with it.

    entries: all of one file, each once, as `distinct` leaves them. Entries without an id of the bank are told apart by
    their content, and equal ones by counting them: two equal payments of one day are two. That holds as long as a file
    has the whole of each day. An entry that is there twice under one transaction id gets one id twice.
    Raises InvalidStatement when a transaction id stands for two contents. Source: docs/rules.md, "Statements".
    """
    first: dict[str, BankEntry] = {}
    alike: Counter[str] = Counter()
    ids = []
    for entry in entries:
        if entry.transaction_id is not None:
            external_id = _of_bank(entry.iban, entry.transaction_id)
            if first.setdefault(external_id, entry) != entry:
                raise InvalidStatement(
                    f"transaction id {entry.transaction_id[:40]!r} stands for two different entries; "
                    "export the statement again, and ask the bank if it stays so"
                )
        else:
            content = _of_content(entry)
            alike[content] += 1
            external_id = f"{content}:{alike[content]}"
        ids.append(external_id)
    return ids


def distinct(entries: Sequence[BankEntry]) -> list[BankEntry]:
    """The entries in order, without those that say the same under the same transaction id again.

    Banks repeat an entry where a statement continues on another page. Without an id nothing tells a repetition from a
    second payment, so such entries all stay. Raises InvalidStatement as `external_ids` does.
    """
    return list(dict(zip(external_ids(entries), entries, strict=True)).values())


def with_ids_of_the_day(entries: Sequence[tuple[BankEntry, str | None]]) -> list[BankEntry]:
    """Entries, each with the bank's reference that came with it, which becomes the transaction id if it deserves it.

    For formats whose references need not be ids: a reference counts if it is the only one of its kind on its booking
    day, and is prefixed with that day. Looking at a day instead of the file gives the same answer for every file that
    has the day, and the prefix parts references that start anew every day.
    """
    seen = Counter((entry.iban, entry.booked_on, reference) for entry, reference in entries)
    return [
        replace(entry, transaction_id=f"{entry.booked_on}/{reference}")
        if reference is not None and seen[entry.iban, entry.booked_on, reference] == 1
        else entry
        for entry, reference in entries
    ]


def _of_bank(iban: str, transaction_id: str) -> str:
    external_id = f"{iban}:id:{transaction_id}"
    if len(external_id) <= MAX_EXTERNAL_ID:
        return external_id
    return f"{iban}:long:{sha256(transaction_id.encode()).hexdigest()}"


def _of_content(entry: BankEntry) -> str:
    # Ids are stored for good: what is added here, or read in another way, is imported a second time.
    facts = (
        entry.amount_minor,
        entry.currency,
        entry.booked_on,
        entry.value_on,
        entry.payer_name,
        entry.payer_iban,
        entry.reference,
        entry.remittance,
    )
    return f"{entry.iban}:content:{sha256(msgspec.json.encode(facts)).hexdigest()}"
