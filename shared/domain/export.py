"""The ledger as CSV (RFC 4180): its columns, and text that no spreadsheet takes for a formula.

Source: docs/rules.md, "Explanations".
"""

import csv
from collections.abc import Iterable, Sequence
from datetime import datetime
from io import StringIO
from typing import Final

from shared.domain.explanation import callers_key

COLUMNS: Final = (
    *("seq", "effective_at", "recorded_at", "kind", "amount", "balance_after"),
    *("grant_id", "grant_source", "grant_expires_at", "idempotency_key", "reason"),
    *("source", "source_id", "reverses_seq"),
)
FORMULAS_BEGIN_WITH: Final = ("=", "+", "-", "@", "\t", "\r")


def heading() -> str:
    """The first line."""
    return _written([COLUMNS])


def lines(rows: Iterable[Sequence[object]]) -> str:
    """A line per row. A row has what COLUMNS name, in that order; its key as it was posted."""
    return _written([_cell(name, value) for name, value in zip(COLUMNS, row, strict=True)] for row in rows)


def _written(table: Iterable[Sequence[object]]) -> str:
    out = StringIO()
    csv.writer(out).writerows(table)
    return out.getvalue()


def _cell(name: str, value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        told = callers_key(value) if name == "idempotency_key" else value
        return f"'{told}" if told is not None and told.startswith(FORMULAS_BEGIN_WITH) else told
    return value
