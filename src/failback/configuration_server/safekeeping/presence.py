"""Whether a configuration server runs on a state directory or a database, told by locks that end with their process.

Servers hold them shared (several may serve one PostgreSQL), a restore wants them alone. A restore that did not end leaves
a mark in the state directory, and no server starts on half of a backup.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from failback.errors import ConfigurationError, ConflictError

LOCK_FILE = "serving.lock"
RESTORING_FILE = "restore-not-finished"
DATABASE_LOCK = 0x6661696D
"""PostgreSQL's advisory lock; shared by servers."""


@contextmanager
def serving(state_directory: Path, database_url: str) -> Iterator[None]:
    """As long as this server runs. Raises ConfigurationError while or after a restore that is not over."""
    state_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _held(state_directory, database_url, alone=False) as free:
        if not free or (state_directory / RESTORING_FILE).exists():
            raise ConfigurationError(
                f"a backup is being restored into {state_directory}, or was not to its end",
                remedy="wait for failback restore, or run it again with --replace",
            )
        yield


@contextmanager
def alone(state_directory: Path, database_url: str) -> Iterator[None]:
    """No server runs here meanwhile. Raises ConflictError when one does."""
    with _held(state_directory, database_url, alone=True) as free:
        if not free:
            raise ConflictError(
                f"a configuration server runs on {state_directory} or on its database",
                code="ServerRuns",
                remedy="stop it (systemctl stop failback-configuration-server), on every host that shares the database",
            )
        yield


@contextmanager
def _held(state_directory: Path, database_url: str, *, alone: bool) -> Iterator[bool]:
    with ExitStack() as stack:
        descriptor = os.open(state_directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        if not database_url.startswith("postgresql"):
            yield True
            return
        engine = create_engine(database_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        connection = stack.enter_context(engine.connect())
        function = "pg_try_advisory_lock" if alone else "pg_try_advisory_lock_shared"
        yield bool(connection.execute(text(f"SELECT {function}(:key)"), {"key": DATABASE_LOCK}).scalar())
