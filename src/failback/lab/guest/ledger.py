#!/usr/bin/python3
"""The lab's workload: a ledger that cannot lie about what it lost. Runs in the guest with the standard library only.

Rows are numbered from 1 without a hole and carry a checksum over number, side and payload; each is committed alone
(``synchronous=EXTRA``: the journal's deletion is synced too) and then told to the witness on the host. Every few rows a
file with its own checksum in its name is written to the system disk, and old ones are deleted, so that discards travel.
While ``/run/ledger/hold`` exists nothing is committed (the scripts around an app-consistent point make and remove it).

Drills, for tests of the lab only: the witness may answer with a word of ``DRILLS`` after its ``ok``, and the ledger, which is
root here, carries it out. While held it keeps asking for one, so that a drill also reaches a frozen machine.
"""

import hashlib
import json
import os
import random
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path

DATABASE = "ledger.sqlite"
FILES = "files"
ROWS_PER_FILE = 20
FILES_KEPT = 24
ASK_SECONDS = 0.25
AGENT_GROUP = Path("/sys/fs/cgroup/failback.slice/failback-mobility.service/cgroup.procs")
SCHEMA = "CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, side TEXT, payload BLOB, checksum TEXT)"


def checksum(number: int, side: str, payload: bytes) -> str:
    return hashlib.sha256(b"%d:%s:" % (number, side.encode()) + payload).hexdigest()


def open_database(directory: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(directory / DATABASE, isolation_level=None, timeout=60)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA synchronous=EXTRA")
    connection.execute(SCHEMA)
    return connection


def newest(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM entries").fetchone()
    return int(number)


def commit(connection: sqlite3.Connection, number: int, side: str) -> str:
    """One row in one transaction; returns its checksum once the commit is on the disk."""
    payload = os.urandom(random.randint(200, 1500))
    value = checksum(number, side, payload)
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (number, side, payload, value))
    return value


def write_file(directory: Path, number: int) -> None:
    """A durable file of random size whose name holds its digest; the oldest beyond the limit are deleted."""
    directory.mkdir(parents=True, exist_ok=True)
    content = os.urandom(random.randint(1000, 200_000))
    name = f"{number:08d}-{hashlib.sha256(content).hexdigest()}.bin"
    partial = directory / "partial"
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(directory / name)
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    for old in sorted(directory.glob("*.bin"))[:-FILES_KEPT]:
        old.unlink()


def kill_agent() -> None:
    """What ``systemctl kill -s KILL failback-mobility`` does, without a child process: it works while disks are frozen."""
    for pid in AGENT_GROUP.read_text(encoding="ascii").split():
        os.kill(int(pid), signal.SIGKILL)


DRILLS = {b"kill-agent": kill_agent}


class Witness:
    """A line to the host. A witness that is away never stops the ledger; what it did not hear is not acknowledged."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.channel: socket.socket | None = None

    def tell(self, number: int, value: str, side: str) -> None:
        self._say({"number": number, "checksum": value, "side": side})

    def ask(self, side: str) -> None:
        """Nothing was committed; is there a drill?"""
        self._say({"held": side})

    def _say(self, told: dict[str, object]) -> None:
        try:
            if self.channel is None:
                self.channel = socket.create_connection(self.address, timeout=3)
            self.channel.sendall(json.dumps(told).encode() + b"\n")
            answer = self.channel.recv(64)
            if not answer.endswith(b"\n"):
                raise OSError("the witness closed the line")
        except OSError:
            if self.channel is not None:
                self.channel.close()
            self.channel = None
            return
        for word in answer.split()[1:]:
            self._carry_out(word)

    def _carry_out(self, word: bytes) -> None:
        try:
            DRILLS[word]()
        except (KeyError, OSError) as error:
            print(f"the drill {word!r} was not carried out: {error!r}", flush=True)


def wait_while_held(run_directory: Path, witness: Witness, side: str) -> None:
    """Confirm a hold by a file of our own; both live in memory, so nothing is written to a disk that may be frozen."""
    hold, held = run_directory / "hold", run_directory / "held"
    if not hold.exists():
        return
    held.touch()
    ask_at = time.monotonic()
    while hold.exists():
        if time.monotonic() >= ask_at:
            witness.ask(side)
            ask_at = time.monotonic() + ASK_SECONDS
        time.sleep(0.02)
    held.unlink(missing_ok=True)


def run(data: Path, files: Path, host: str, port: int, pause_seconds: float) -> None:
    side = Path("/sys/class/dmi/id/product_uuid").read_text(encoding="ascii").strip().lower()
    run_directory = Path("/run/ledger")
    run_directory.mkdir(exist_ok=True)
    witness = Witness(host, port)
    connection = open_database(data)
    number = newest(connection)
    while True:
        wait_while_held(run_directory, witness, side)
        number += 1
        value = commit(connection, number, side)
        witness.tell(number, value, side)
        if number % ROWS_PER_FILE == 0:
            write_file(files, number)
        time.sleep(pause_seconds)


def seed(data: Path, rows: int, side: str) -> None:
    """What the ledger held before the failover: made on the host when the lab's disks are made."""
    connection = open_database(data)
    connection.execute("BEGIN")
    for number in range(newest(connection) + 1, rows + 1):
        commit(connection, number, side)
    connection.execute("COMMIT")
    connection.close()


if __name__ == "__main__":
    run(Path("/srv/ledger"), Path("/var/lib/ledger") / FILES, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
