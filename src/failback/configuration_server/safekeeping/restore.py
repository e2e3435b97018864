"""``failback restore FILE``: a configuration server again, on this host, under whatever address and database it has now.

The whole backup is verified before anything is touched. The database is filled beside the old one (SQLite) or in one
transaction (PostgreSQL). A mark in the state directory keeps servers from starting until all is in its place; the command run
again with ``replace`` finishes what was interrupted. The configuration is ``config_path``'s; where there is none, the backup's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from failback.configuration_server.config import ServerConfig, load
from failback.configuration_server.database import Database
from failback.configuration_server.database.engine import WRITER_LOCK
from failback.configuration_server.safekeeping import tables
from failback.configuration_server.safekeeping.backup import CONFIGURATION, FILES, Summary, members, verify
from failback.configuration_server.safekeeping.presence import RESTORING_FILE, alone
from failback.configuration_server.safekeeping.told_anew import tell_anew
from failback.errors import ConflictError, StorageError
from failback.runtime import faults
from failback.runtime.clock import SystemClock
from failback.runtime.durable_files import PUBLIC, rename_file, replace_file, sync_directory

SQLITE_FILE = "configuration-server.sqlite"
EXECUTOR_FILE = "jobs.sqlite"
SQLITE_URL = "sqlite:///"


@dataclass(frozen=True, slots=True)
class Restored:
    backup: Summary
    stopped_jobs: tuple[str, ...]
    """Jobs that ran when the backup was made; they are failed now."""


def restore(
    path: Path, config_path: Path, passphrase: str, *, replace: bool = False, files_only: bool = False
) -> Restored:
    """``files_only``: authority and secrets, for one more server on a PostgreSQL database that is well.

    Raises AuthenticationError, IntegrityError (nothing was touched), ConflictError (a server runs, or the target is not
    empty and ``replace`` is not given) and StorageError.
    """
    summary = verify(path, passphrase)
    tables.known_revision(summary.revision)
    try:
        if not config_path.exists():
            [content] = [content for name, content in members(path, passphrase) if name == CONFIGURATION]
            config_path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(config_path, content)
        config = load(config_path)
        directory = config.state_directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if files_only:
            _refuse_files(directory, replace)
            _write_files(path, passphrase, directory)
            return Restored(summary, ())
        with alone(directory, config.database_url):
            return _restore(path, config, passphrase, summary, replace)
    except OSError as error:
        raise StorageError(f"cannot restore: {error.strerror or error}", remedy="run failback restore again") from error


def _restore(path: Path, config: ServerConfig, passphrase: str, summary: Summary, replace: bool) -> Restored:
    directory = config.state_directory
    mark = directory / RESTORING_FILE
    if not replace:
        _refuse_files(directory, replace)
        _refuse_database(config)
    replace_file(mark, b"failback restore\n")
    faults.point("restore.marked")
    parts = ((name.split("/")[1], content) for name, content in members(path, passphrase) if name.startswith("tables/"))
    _remove_sqlite(directory / EXECUTOR_FILE)
    file = _sqlite_file(config)
    stopped = _fill_file(file, summary, parts) if file else _fill(Database(config.database_url), summary, parts)
    faults.point("restore.database_filled")
    _write_files(path, passphrase, directory)
    faults.point("restore.files_written")
    mark.unlink()
    sync_directory(directory)
    return Restored(summary, tuple(stopped))


def _sqlite_file(config: ServerConfig) -> Path | None:
    """None for PostgreSQL."""
    if not config.database_url:
        return config.state_directory / SQLITE_FILE
    return Path(config.database_url.removeprefix(SQLITE_URL)) if config.database_url.startswith(SQLITE_URL) else None


def _fill_file(file: Path, summary: Summary, parts: Iterator[tuple[str, bytes]]) -> list[str]:
    fresh = file.with_name(file.name + ".restoring")
    _remove_sqlite(fresh)
    stopped = _fill(Database(f"{SQLITE_URL}{fresh}"), summary, parts)
    _remove_sqlite(file)
    rename_file(fresh, file)
    return stopped


def _fill(database: Database, summary: Summary, parts: Iterator[tuple[str, bytes]]) -> list[str]:
    """One transaction; the last connection's end leaves no write-ahead log beside an SQLite file."""
    try:
        with database.engine.connect().execution_options(failback_write=True) as connection:
            connection.begin()
            if not database.sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
                tables.erase(connection)
            elif not tables.is_empty(connection):
                raise ConflictError("the SQLite database to be filled is not empty")
            tables.fill(connection, summary.revision, parts)
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                stopped = tell_anew(session, summary.made_wall_ns, SystemClock().wall_ns())
                session.commit()
            faults.point("restore.before_commit")
            connection.commit()
    finally:
        database.close()
    return stopped


def _remove_sqlite(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _write_files(path: Path, passphrase: str, directory: Path) -> None:
    found = {name: content for name, content in members(path, passphrase) if name.startswith("files/")}
    for name in FILES:
        content = found.get(f"files/{name}")
        if content is not None:
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(target, content, PUBLIC if name in ("ca/ca.pem", "server/certificate.pem") else 0o600)


def _refuse_files(directory: Path, replace: bool) -> None:
    if (directory / "ca" / "ca.pem").exists() and not replace:
        raise ConflictError(
            f"{directory} holds a configuration server already", code="TargetNotEmpty",
            remedy="add --replace to give up what it holds, or name another state_directory",
        )  # fmt: skip


def _refuse_database(config: ServerConfig) -> None:
    file = _sqlite_file(config)
    if file is not None and not file.exists():
        return
    database = Database(f"{SQLITE_URL}{file}" if file else config.database_url)
    try:
        with database.engine.connect() as connection:
            empty = tables.is_empty(connection)
    finally:
        database.close()
    if not empty:
        raise ConflictError(
            "the database is not empty", code="TargetNotEmpty",
            remedy="add --replace to give up what it holds, or name another database_url",
        )  # fmt: skip
