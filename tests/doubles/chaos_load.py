"""What a captured machine does while everything around it fails: fio with verification, SQLite and PostgreSQL commits.

Each database counts: row ``number`` is inserted and committed, and only after the database said so ``acknowledged`` becomes that
number. A point made after ``acknowledged`` was read has to hold every row up to it, without a hole.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

FIO = ["fio", "--name=verified", "--rw=randwrite", "--size=20m", "--bsrange=4k-64k", "--ioengine=psync", "--fsync=32",
       "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randrepeat=0", "--buffer_compress_percentage=60",
       "--refill_buffers", "--rate=6m", "--verify_state_save=0", "--output-format=terse"]  # fmt: skip
POSTGRES_SETTINGS = ("listen_addresses=", "shared_buffers=8MB", "max_wal_size=24MB", "min_wal_size=4MB", "max_connections=8",
                     "autovacuum=off", "full_page_writes=on", "fsync=on", "synchronous_commit=on")  # fmt: skip


class Counting(threading.Thread):
    """Calls ``commit(number)`` for 1, 2, 3 ... until stopped. ``failure`` says why it ended by itself."""

    def __init__(self, name: str, commit: Callable[[int], None], pause_seconds: float) -> None:
        super().__init__(name=name, daemon=True)
        self._commit = commit
        self._pause_seconds = pause_seconds
        self._stopping = threading.Event()
        self.acknowledged = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.wait(self._pause_seconds):
                self._commit(self.acknowledged + 1)
                self.acknowledged += 1
        except BaseException as error:
            if not self._stopping.is_set():
                self.failure = error

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)
        assert not self.is_alive(), f"{self.name} hangs"


class SqliteLedger:
    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS commits (number INTEGER PRIMARY KEY, filler TEXT)")

    def commit(self, number: int) -> None:
        self._connection.execute("INSERT INTO commits VALUES (?, ?)", (number, f"{number} " * 40))

    def close(self) -> None:
        self._connection.close()


class PostgresLedger:
    """A real server on a captured disk, and a ``psql`` that hears each commit."""

    def __init__(self, data: Path, socket_directory: Path) -> None:
        self.data = data
        self._sockets = socket_directory
        self._server: subprocess.Popen[bytes] | None = None
        self._client: subprocess.Popen[str] | None = None

    def create(self) -> None:
        account = pwd.getpwnam("postgres")
        for directory in (self.data, self._sockets):
            directory.mkdir(exist_ok=True)
            os.chown(directory, account.pw_uid, account.pw_gid)
        subprocess.run(
            [*as_postgres(), program("initdb"), "-D", str(self.data), "-A", "trust", "--wal-segsize=1", "-E", "UTF8",
             "--no-locale"], check=True, capture_output=True,
        )  # fmt: skip

    def start(self) -> None:
        settings = [part for setting in POSTGRES_SETTINGS for part in ("-c", setting)]
        with (self._sockets / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [*as_postgres(), program("postgres"), "-D", str(self.data), "-k", str(self._sockets), *settings],
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        ready = [program("pg_isready"), "-q", "-h", str(self._sockets)]
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < deadline, (self._sockets / "server.log").read_text()[-2000:]
            time.sleep(0.1)
        self._client = subprocess.Popen(
            [program("psql"), "-X", "-q", "-A", "-t", "-h", str(self._sockets), "-U", "postgres", "postgres"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._client.stdin is not None
        self._client.stdin.write("CREATE TABLE IF NOT EXISTS commits (number bigint PRIMARY KEY, filler text);\n")
        self._client.stdin.flush()

    def commit(self, number: int) -> None:
        client = self._client
        assert client is not None
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(f"INSERT INTO commits VALUES ({number}, repeat('{number} ', 60)) RETURNING number;\n")
        client.stdin.flush()
        said = client.stdout.readline().strip()
        if said != str(number):
            raise RuntimeError(f"PostgreSQL answered {said!r} to commit {number}")

    def stop(self) -> None:
        """Fast shutdown."""
        if self._client is not None:
            assert self._client.stdin is not None
            self._client.stdin.close()
            self._client.wait(60)
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(2)
            self._server.wait(120)


def program(name: str) -> str:
    """Debian keeps the server's programs out of the path."""
    found = shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), "")
    assert found, f"{name} is not installed: apt-get install postgresql"
    return found


def as_postgres() -> list[str]:
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


class FioLoops(threading.Thread):
    """Writes a file at random places, reads it back against its checksums, again and again."""

    def __init__(self, directory: Path) -> None:
        super().__init__(name="fio", daemon=True)
        self._directory = directory
        self._stopping = threading.Event()
        self.loops = 0
        self.failure = ""

    def run(self) -> None:
        while not self._stopping.is_set():
            done = subprocess.run([*FIO, f"--directory={self._directory}"], capture_output=True, text=True, check=False)
            if done.returncode:
                self.failure = f"fio ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}"
                return
            self.loops += 1

    def stop(self) -> None:
        """After the loop that is under way."""
        self._stopping.set()
        self.join(180)
        assert not self.is_alive(), "fio hangs"


def fio_problem(directory: Path) -> str:
    """What a copy of the file says against its checksums; empty when it is whole."""
    done = subprocess.run(
        [*FIO, f"--directory={directory}", "--verify_only=1"], capture_output=True, text=True, check=False
    )
    return f"{done.stdout[-300:]} {done.stderr[-500:]}" if done.returncode else ""
