"""A table of entries, for whatever bank: a fixed set of columns that an operator fills.

Source: docs/statements.md, docs/rules.md, "Statements".
"""

import csv
import io
from collections import Counter
from typing import Final

from shared.domain.statement import BankEntry
from shared.statements import fields
from shared.statements.fields import refused, shown

COLUMNS: Final = (
    "iban",
    "booked_on",
    "value_on",
    "amount",
    "currency",
    "payer_name",
    "payer_iban",
    "reference",
    "remittance",
    "transaction_id",
)


def read(content: bytes) -> list[BankEntry]:
    """The rows below the header. Raises InvalidStatement, which names the line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refused(f"line {line}", "the text is not UTF-8; save the table as CSV in UTF-8") from None
    header = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in header else ",", strict=True)
    try:
        columns = _columns(next(rows, []))
        return [_entry(columns, row, f"line {rows.line_num}") for row in rows if row]
    except csv.Error as error:
        raise refused(f"line {rows.line_num}", f"{error}; check the quotes, and save the table again") from None


def _columns(header: list[str]) -> list[str]:
    columns = [column.strip() for column in header]
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise refused("line 1", f"the header lacks {', '.join(missing)}; it has to be {','.join(COLUMNS)}")
    for column, times in Counter(columns).items():
        if column not in COLUMNS:
            raise refused("line 1", f"{shown(column)} is no column; the header has to be {','.join(COLUMNS)}")
        if times > 1:
            raise refused("line 1", f"the column {column} is there {times} times; keep one")
    return columns


def _entry(columns: list[str], row: list[str], where: str) -> BankEntry:
    if len(row) != len(columns):
        raise refused(where, f"{len(row)} values do not fit {len(columns)} columns; quote those that hold delimiters")
    cell = {column: value.strip() for column, value in zip(columns, row, strict=True)}
    amount = cell["amount"]
    minor = fields.unsigned_minor(amount.removeprefix("-"), cell["currency"], where)
    return BankEntry(
        iban=fields.own_iban(cell["iban"], where),
        transaction_id=fields.identifier(cell["transaction_id"], fields.MAX_TRANSACTION_ID, where),
        amount_minor=-minor if amount.startswith("-") else minor,
        currency=cell["currency"],
        booked_on=fields.day(cell["booked_on"], where),
        value_on=fields.day(cell["value_on"], where),
        payer_name=fields.name(cell["payer_name"]),
        payer_iban=_payer_iban(cell["payer_iban"], where),
        reference=fields.identifier(cell["reference"], fields.MAX_REFERENCE, where),
        remittance=fields.plain(cell["remittance"], fields.MAX_REMITTANCE),
    )


def _payer_iban(value: str, where: str) -> str | None:
    # A bank's file may hold accounts of any kind. This table is filled by somebody who can correct it.
    found = fields.valid_iban(value)
    if value and found is None:
        raise refused(where, f"{shown(value)} is no IBAN; correct payer_iban or leave it empty")
    return found
