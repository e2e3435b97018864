"""Opening the database and running short transactions in it.

SQLite: WAL, foreign keys on, ``synchronous=FULL`` (what was answered stays), a busy timeout, and writers that begin with
``BEGIN IMMEDIATE`` (two writers wait for one another instead of failing in mid-transaction).
PostgreSQL: any SQLAlchemy URL; writers queue there on one advisory lock, so that read, decide, write in one transaction
is safe on both.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from failback.errors import ConfigurationError, OutOfSpaceError, PeerError

T = TypeVar("T")

BUSY_TIMEOUT_MILLISECONDS = 20_000
WORKERS = 4
WRITER_LOCK = 0x6661696C
"""PostgreSQL's advisory lock of a writer; any number that other programs in that database do not use."""


_FULL_SIGNS = ("disk is full", "no space left")
"""As SQLite and PostgreSQL say it."""


class Database:
    """One engine and its transactions. Threads may share it; each transaction is its own session."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = url.startswith("sqlite")
        arguments: dict[str, Any] = {"check_same_thread": False} if self.sqlite else {}
        self.engine: Engine = create_engine(url, connect_args=arguments, pool_pre_ping=not self.sqlite)
        if self.sqlite:
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._writing = threading.Lock()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="database")

    @classmethod
    def in_directory(cls, directory: Path) -> Database:
        """The default database of a state directory: one SQLite file."""
        return cls(f"sqlite:///{directory / 'configuration-server.sqlite'}")

    def upgrade(self) -> None:
        """Bring the schema to this version. Raises ConfigurationError when the database is newer than the program."""
        from failback.configuration_server.database.migrations import upgrade

        upgrade(self.engine)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed at the block's end, rolled back when it raises."""
        with self._alone(), Session(self.engine, expire_on_commit=False) as session:
            if self.sqlite:
                session.connection(execution_options={"failback_write": True})
            elif self.engine.dialect.name == "postgresql":
                session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})
            try:
                yield session
                session.commit()
            except OperationalError as error:
                full = _full(error)
                if full is None:
                    raise
                raise full from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """SQLite has one writer at a time: threads queue here instead of polling its lock."""
        if not self.sqlite:
            yield
            return
        if not self._writing.acquire(timeout=BUSY_TIMEOUT_MILLISECONDS / 1000):
            raise PeerError("the database is busy: another transaction of this process does not end")
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent view; nothing is written."""
        with Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session
            session.expunge_all()
            session.rollback()

    async def run(self, work: Callable[[Session], T]) -> T:
        """``work(session)`` in one write transaction on a worker thread: for async callers.

        A cancelled caller does not stop a begun transaction: it commits or fails as a whole.
        """
        return await asyncio.get_running_loop().run_in_executor(self._workers, self._write, work)

    async def look(self, work: Callable[[Session], T]) -> T:
        """``work(session)`` in one read transaction on a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, self._read, work)

    def _write(self, work: Callable[[Session], T]) -> T:
        with self.write() as session:
            return work(session)

    def _read(self, work: Callable[[Session], T]) -> T:
        with self.read() as session:
            return work(session)

    def close(self) -> None:
        self._workers.shutdown(wait=True)
        self.engine.dispose()


def _full(error: OperationalError) -> OutOfSpaceError | None:
    """What to tell when the database's disk is full: nothing was changed, and the same call works when there is room."""
    words = str(error.orig).lower()
    if not any(sign in words for sign in _FULL_SIGNS):
        return None
    return OutOfSpaceError(
        "the configuration server's disk has no space left: nothing can be written",
        possible_causes="its database, its log or something else filled the disk",
        remedy="make room on the configuration server's disk; replication goes on meanwhile, and jobs go on by themselves",
    )


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves (see _begin_sqlite)
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
        mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode not in ("wal", "memory"):
            raise ConfigurationError(
                f"SQLite cannot use its write-ahead log here (it says {mode})",
                possible_causes="the state directory lies on a network file system",
                remedy="put the state directory on a local file system",
            )
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA synchronous=FULL")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("failback_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
