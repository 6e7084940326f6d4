"""Set statements: many rows in one INSERT or UPDATE, handed over as one array per column.

Table and column names come from constants of this package, never from a request.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shared.db.engine import Tx


def insert_many(tx: Tx, table: str, types: Mapping[str, str], rows: Sequence[object]) -> None:
    """Insert `rows`, whose attributes are named like the columns. types: column → PostgreSQL type."""
    if rows:
        tx.execute(
            f"INSERT INTO {table} ({', '.join(types)}) SELECT * FROM unnest({_placeholders(types)})",  # noqa: S608
            **_columns(types, rows),
        )


def update_many(tx: Tx, table: str, types: Mapping[str, str], rows: Sequence[object], *, key: Sequence[str]) -> None:
    """Write every column of `types` that is not in `key` to the row that `key` names."""
    if rows:
        assignments = ", ".join(f"{column} = v.{column}" for column in types if column not in key)
        match = " AND ".join(f"t.{column} = v.{column}" for column in key)
        tx.execute(
            f"UPDATE {table} t SET {assignments} FROM unnest({_placeholders(types)}) AS v ({', '.join(types)}) "  # noqa: S608
            f"WHERE {match}",
            **_columns(types, rows),
        )


def delete_many(tx: Tx, table: str, types: Mapping[str, str], rows: Sequence[object]) -> None:
    """Delete the rows that the columns of `types` name."""
    if rows:
        match = " AND ".join(f"t.{column} = v.{column}" for column in types)
        tx.execute(
            f"DELETE FROM {table} t USING unnest({_placeholders(types)}) AS v ({', '.join(types)}) WHERE {match}",  # noqa: S608
            **_columns(types, rows),
        )


def _placeholders(types: Mapping[str, str]) -> str:
    return ", ".join(f"%({column})s::{type_}[]" for column, type_ in types.items())


def _columns(types: Mapping[str, str], rows: Sequence[object]) -> dict[str, list[Any]]:
    columns = {column: [getattr(row, column) for row in rows] for column in types}
    for column, type_ in types.items():
        if type_ == "text":  # psycopg dumps a list by the type of its first element: enums and strings must not mix
            columns[column] = [None if value is None else str(value) for value in columns[column]]
    return columns
