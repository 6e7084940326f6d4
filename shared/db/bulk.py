"""Sets of rows in one statement each, in PostgreSQL's binary format, which psycopg writes in C.

Rows are objects whose attributes are named like the columns. Table and column names come from constants of
this package, never from a request. docs/adr/0015 has the figures.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter, is_not
from types import MappingProxyType
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple

from shared.db.engine import Jsonb, Tx


def insert_many(tx: Tx, table: str, types: Mapping[str, str], rows: Sequence[object]) -> None:
    """Insert `rows`. types: column → the column's exact type, for at least two columns."""
    if not rows:
        return
    columns = ", ".join(types)
    if tx.copies:
        tx.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)", types, map(attrgetter(*types), rows))
    else:
        tx.execute(
            f"INSERT INTO {table} ({columns}) SELECT {columns} FROM unnest({_placeholders(types)}) AS v ({columns})",  # noqa: S608 (as in `insert_new`)
            **_columns(types, rows),
        )


def insert_new(
    tx: Tx, table: str, types: Mapping[str, str], rows: Sequence[object], *, conflict: str, key: str
) -> set[Any]:
    """Insert those of `rows` that are new; the values that they have in column `key`.

    conflict: what `ON CONFLICT` names: the unique columns by which a row is known. Rows are inserted in the order of
    `key`, so that two transactions with the same rows wait for each other in one order.
    """
    if not rows:
        return set()
    columns = ", ".join(types)
    # S608 is let be in this module: the names are constants of its callers, and values are bound.
    inserted = tx.rows(
        f"INSERT INTO {table} ({columns}) SELECT {columns} FROM unnest({_placeholders(types)}) AS v ({columns}) "  # noqa: S608
        f"ORDER BY {key} ON CONFLICT {conflict} DO NOTHING RETURNING {key}",
        **_columns(types, rows),
    )
    return {row[0] for row in inserted}


def update_many(
    tx: Tx,
    table: str,
    types: Mapping[str, str],
    rows: Sequence[object],
    *,
    key: Sequence[str],
    derived: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> None:
    """Write every column of `types` that is not in `key` to the row that `key` names.

    derived: columns whose values are no attributes of the rows, one value for each row.
    """
    if rows and len(types) > len(key):
        assignments = ", ".join(f"{column} = v.{column}" for column in types if column not in key)
        match = " AND ".join(f"t.{column} = v.{column}" for column in key)
        tx.execute(
            f"UPDATE {table} t SET {assignments} FROM unnest({_placeholders(types)}) AS v ({', '.join(types)}) "  # noqa: S608
            f"WHERE {match}",
            **_columns(types, rows, derived),
        )


def delete_many(tx: Tx, table: str, types: Mapping[str, str], rows: Sequence[object]) -> None:
    """Delete the rows that the columns of `types` name."""
    if rows:
        match = " AND ".join(f"t.{column} = v.{column}" for column in types)
        tx.execute(
            f"DELETE FROM {table} t USING unnest({_placeholders(types)}) AS v ({', '.join(types)}) WHERE {match}",  # noqa: S608
            **_columns(types, rows),
        )


def columns(kind: type[Struct], table: str = "", **instead: str) -> str:
    """The columns that are the fields of `kind`, in its order, for `Tx.structs`. instead: field → expression."""
    prefix = f"{table}." if table else ""
    return ", ".join(instead.get(field, f"{prefix}{field}") for field in kind.__struct_fields__)


def changed_fields(before: Sequence[Struct], after: Sequence[Struct]) -> Collection[str]:
    """Fields of which any value was replaced between two versions of the same rows."""
    if not after:
        return ()
    columns = zip(
        after[0].__struct_fields__,
        zip(*map(astuple, before), strict=True),
        zip(*map(astuple, after), strict=True),
        strict=True,
    )
    return {field for field, old, new in columns if any(map(is_not, old, new))}


def _placeholders(types: Mapping[str, str]) -> str:
    return ", ".join(f"%({column})b::{type_}[]" for column, type_ in types.items())


def _columns(
    types: Mapping[str, str], rows: Sequence[object], derived: Mapping[str, Sequence[Any]] = MappingProxyType({})
) -> dict[str, list[Any]]:
    columns = {}
    for column, type_ in types.items():
        values: Iterable[Any] = derived[column] if column in derived else map(attrgetter(column), rows)
        if type_ == "text":  # psycopg dumps a list by the type of its first element: enums and strings must not mix
            values = (None if value is None else str(value) for value in values)
        elif type_ == "jsonb":
            values = map(Jsonb, values)
        columns[column] = list(values)
    return columns
