"""A checksum over all rows of a catalogue: SQLite alone does not notice a bit that flips inside a row.

The digest is the sum of a hash of every row, modulo 2**63, in a table of its own. Triggers of the connection keep it in the
same transaction as the change; they are temporary, so that a reader without them can open the file. Opening counts anew
and compares: a difference, a page that SQLite cannot read or an index that disagrees means ``CatalogueDamaged``; then nothing
of the journal is used. A lost end of the write-ahead log is an older catalogue, which the witness notices (D7).
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import xxhash

from failback.errors import IntegrityError

_TABLE = "digest"
_MODULUS = 1 << 63


def _row_hash(table: str, *values: object) -> int:
    return xxhash.xxh3_64_intdigest(repr((table, values)).encode()) % _MODULUS


def _changed(digest: int, sign: int, table: str, *values: object) -> int:
    return (digest + sign * _row_hash(table, *values)) % _MODULUS


def attach(connection: sqlite3.Connection, path: Path, schema: str) -> None:
    """Check the whole catalogue and keep its digest from now on. Raises IntegrityError CatalogueDamaged."""
    try:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise damaged(path, found)
        connection.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} (one INTEGER PRIMARY KEY, value INTEGER NOT NULL)")
        tables = _tables(connection)
        _check_columns(path, tables, schema)
        connection.execute("BEGIN IMMEDIATE")
        counted = _count(connection, tables)
        stored = connection.execute(f"SELECT value FROM {_TABLE}").fetchone()
        if stored is None:
            connection.execute(f"INSERT INTO {_TABLE} VALUES (1, ?)", (counted,))
        connection.execute("COMMIT")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise damaged(path, str(error)) from error
    if stored is not None and stored[0] != counted:
        raise damaged(path, "its rows do not match their checksum")
    connection.execute("PRAGMA recursive_triggers=ON")  # INSERT OR REPLACE deletes with triggers, too
    connection.create_function("changed_digest", -1, _changed, deterministic=True)
    for table, columns in tables.items():
        _keep(connection, table, columns)


def damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"CatalogueDamaged: {path} cannot be used: {reason}",
        code="CatalogueDamaged",
        possible_causes="the retention volume lost or changed bytes that were durable",
        remedy="move the journal's folder away and reprotect the machine: its disks are compared by hash, its points are lost;"
        " check the retention volume",
    )


def _tables(connection: sqlite3.Connection) -> dict[str, list[str]]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {
        name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
        for (name,) in names.fetchall()
        if name != _TABLE
    }


def _check_columns(path: Path, found: dict[str, list[str]], schema: str) -> None:
    """The names of tables and columns are bytes of the file, too."""
    with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(schema)
        for table, columns in _tables(fresh).items():
            missing = set(columns) - set(found.get(table, ()))
            if missing:
                raise damaged(path, f"table {table} lacks {', '.join(sorted(missing))}")


def _count(connection: sqlite3.Connection, tables: dict[str, list[str]]) -> int:
    total = 0
    for table, columns in tables.items():
        for row in connection.execute(f"SELECT {', '.join(columns)} FROM {table}"):
            total += _row_hash(table, *row)
    return total % _MODULUS


def _keep(connection: sqlite3.Connection, table: str, columns: list[str]) -> None:
    new = ", ".join(f"NEW.{column}" for column in columns)
    old = ", ".join(f"OLD.{column}" for column in columns)
    remove = f"UPDATE {_TABLE} SET value = changed_digest(value, -1, '{table}', {old});"
    add = f"UPDATE {_TABLE} SET value = changed_digest(value, 1, '{table}', {new});"
    for event, body in (("INSERT", add), ("DELETE", remove), ("UPDATE", remove + add)):
        connection.execute(
            f"CREATE TEMP TRIGGER digest_{table}_{event.lower()} AFTER {event} ON main.{table} BEGIN {body} END"
        )
