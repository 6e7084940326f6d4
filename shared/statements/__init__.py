"""Readers of bank statements: a file's bytes become entries, all of them or none.

Whatever the bytes are, the answer is a list or InvalidStatement; a statement comes from outside.
Source: docs/rules.md, "Statements", and docs/adr/0019.
"""

from collections.abc import Callable
from typing import Final

from shared.domain.statement import BankEntry, StatementFormat, distinct
from shared.errors import InvalidStatement
from shared.statements import camt053, csv_table, mt940

MAX_ENTRIES: Final = 100_000

_READERS: Final[dict[StatementFormat, Callable[[bytes], list[BankEntry]]]] = {
    StatementFormat.CAMT053: camt053.read,
    StatementFormat.MT940: mt940.read,
    StatementFormat.CSV: csv_table.read,
}


def parse(content: bytes, format: StatementFormat) -> list[BankEntry]:  # noqa: A002 (what it is called everywhere)
    """The booked entries of a file, in its order, each once.

    Raises InvalidStatement, which says where and what to do, when any of it cannot be read. Takes memory in proportion
    to the file, whose size the caller limits.
    """
    if not content.strip():
        raise InvalidStatement("the file is empty; export the statement again")
    if b"\0" in content:
        raise InvalidStatement("the file holds NUL bytes; export the statement as text in UTF-8, not zipped")
    entries = _READERS[format](content)
    if len(entries) > MAX_ENTRIES:
        raise InvalidStatement(f"the file has {len(entries)} entries, more than {MAX_ENTRIES}; export shorter periods")
    return distinct(entries)
