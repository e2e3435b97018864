"""The database as rows in files, and back: one form for SQLite and PostgreSQL, so that a backup of one restores into the other.

``export`` reads everything in one transaction with one view (SQLite's snapshot, PostgreSQL's REPEATABLE READ) while the
server goes on. ``fill`` makes the schema of the backup's own revision, puts the rows in and then upgrades it, all in
its caller's transaction. The executor's own records (DBOS) are not kept: our rows are the truth (docs/decisions/0005).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from alembic import command
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, func, insert, inspect, select, text

from failback.configuration_server.database.engine import Database
from failback.configuration_server.database.migrations import configuration
from failback.errors import ConfigurationError, IntegrityError

ROWS_IN_A_PART = 2000
REVISION_TABLE = "alembic_version"
EXECUTOR_SCHEMA = "dbos"


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of one table, as JSON."""

    table: str
    content: bytes
    rows: int


def export(database: Database) -> Iterator[tuple[str, Part]]:
    """(revision of the schema, rows) for every table, those that are pointed to before those that point to them."""
    level = {} if database.sqlite else {"isolation_level": "REPEATABLE READ"}
    with database.engine.connect().execution_options(**level) as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision is None:
            raise ConfigurationError("the database is empty: there is nothing to back up", remedy="check --config")
        for table in reflected(connection).sorted_tables:
            yield from ((revision, part) for part in _parts(connection, table))


def _parts(connection: Connection, table: Table) -> Iterator[Part]:
    keys = list(table.primary_key.columns)
    found = connection.execution_options(stream_results=True).execute(select(table).order_by(*keys))
    for rows in found.mappings().partitions(ROWS_IN_A_PART):
        content = json.dumps([dict(row) for row in rows], ensure_ascii=False).encode("utf-8")
        yield Part(table.name, content, len(rows))


def reflected(connection: Connection) -> MetaData:
    """Our tables as they are in the database, without Alembic's."""
    metadata = MetaData()
    metadata.reflect(connection, only=lambda name, _metadata: name != REVISION_TABLE)
    return metadata


def is_empty(connection: Connection) -> bool:
    return not inspect(connection).get_table_names()


def erase(connection: Connection) -> None:
    """Everything of ours in a PostgreSQL database, the executor's schema too."""
    metadata = MetaData()
    metadata.reflect(connection)
    metadata.drop_all(connection)
    connection.execute(text(f"DROP SCHEMA IF EXISTS {EXECUTOR_SCHEMA} CASCADE"))


def known_revision(revision: str) -> None:
    """Raises ConfigurationError for a schema that is newer than this program."""
    known = {script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()}
    if revision not in known:
        raise ConfigurationError(
            f"the backup's database has revision {revision}, which this version does not know",
            possible_causes="the backup was made by a newer version of the program",
            remedy="install that version and restore with it",
        )


def fill(connection: Connection, revision: str, parts: Iterable[tuple[str, bytes]]) -> int:
    """Rows into an empty database; returns how many. ``connection`` is in a write transaction, the caller commits."""
    known_revision(revision)
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
    tables = reflected(connection).tables
    count = 0
    for name, content in parts:
        rows: list[dict[str, Any]] = json.loads(content)
        if name not in tables:
            raise IntegrityError(f"the backup has rows of a table {name!r} that revision {revision} does not have")
        if rows:
            connection.execute(insert(tables[name]), rows)
        count += len(rows)
    if connection.dialect.name == "postgresql":
        _raise_sequences(connection, tables.values())
    command.upgrade(config, "head")
    return count


def _raise_sequences(connection: Connection, tables: Iterable[Table]) -> None:
    """Rows that come after these get numbers above theirs."""
    for table in tables:
        for column in table.primary_key.columns:
            sequence = connection.execute(
                text("SELECT pg_get_serial_sequence(:table, :column)"), {"table": table.name, "column": column.name}
            ).scalar()
            highest = connection.execute(select(func.max(column))).scalar() if sequence else None
            if highest is not None:
                connection.execute(
                    text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest}
                )
