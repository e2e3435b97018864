"""What a disk really holds, read from its image without mounting or changing it.

Used after a failback: are both sides' disks the same byte by byte, are their file systems clean, which of the ledger's
rows and files are there and whole.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from failback.errors import FabricError
from failback.lab.guest import ledger
from failback.lab.witness import Heard

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """``bytes_differing`` counts differing 4 KiB blocks times 4096; ``first_byte`` is -1 when there are none."""

    first_byte: int = -1
    bytes_differing: int = 0
    sizes: tuple[int, int] = (0, 0)

    @property
    def identical(self) -> bool:
        return self.bytes_differing == 0 and self.sizes[0] == self.sizes[1]


def compare_disks(first: Path, second: Path) -> Difference:
    """Compare two raw images to the last byte."""
    block = 4096
    sizes = (first.stat().st_size, second.stat().st_size)
    first_byte, differing, offset = -1, 0, 0
    with first.open("rb") as left, second.open("rb") as right:
        while True:
            here, there = left.read(_CHUNK_BYTES), right.read(_CHUNK_BYTES)
            if not here and not there:
                break
            if here != there:
                for start in range(0, max(len(here), len(there)), block):
                    if here[start : start + block] != there[start : start + block]:
                        first_byte = offset + start if first_byte < 0 else first_byte
                        differing += block
            offset += len(here)
    return Difference(first_byte, differing, sizes)


def file_system_problem(disk: Path) -> str:
    """Empty when ``e2fsck -fn`` finds an ext4 file system clean; else what it says."""
    done = subprocess.run(["e2fsck", "-fn", str(disk)], capture_output=True, text=True, check=False, timeout=300)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()


@dataclass(frozen=True, slots=True)
class LedgerContent:
    """``rows``: number -> checksum, of rows whose checksum is right. ``problem``: what is wrong with the database."""

    rows: dict[int, str]
    problem: str

    @property
    def newest(self) -> int:
        return max(self.rows, default=0)


def read_ledger(data_disk: Path, scratch: Path) -> LedgerContent:
    """Every row of the ledger on a raw ext4 image, read from a copy, as SQLite itself would recover it."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        for name in (ledger.DATABASE, ledger.DATABASE + "-journal"):
            debugfs(data_disk, f"dump /{name} {scratch / name}")
        database = scratch / ledger.DATABASE
        if not database.exists() or database.stat().st_size == 0:
            return LedgerContent({}, f"{ledger.DATABASE} is not on {data_disk}")
        return _read_rows(database)
    finally:
        shutil.rmtree(scratch)


def damaged_files(system_disk: Path, scratch: Path) -> tuple[int, list[str]]:
    """How many of the ledger's files the system disk holds, and the names of those whose content is not theirs."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        debugfs(system_disk, f"rdump /var/lib/ledger/{ledger.FILES} {scratch}")
        files = sorted((scratch / ledger.FILES).glob("*.bin"))
        bad = [path.name for path in files if path.stem.split("-")[1] != hashlib.sha256(path.read_bytes()).hexdigest()]
        return len(files), bad
    finally:
        shutil.rmtree(scratch)


def lost(acknowledged: Iterable[Heard], found: LedgerContent) -> list[int]:
    """Numbers that the witness was told of and that the disk does not hold with the same checksum."""
    return sorted({heard.number for heard in acknowledged if found.rows.get(heard.number) != heard.checksum})


def debugfs(disk: Path, command: str) -> None:
    """One debugfs command on an image; a missing file in it is no error (the caller looks for the result)."""
    done = subprocess.run(
        ["debugfs", "-R", command, str(disk)], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode != 0:
        raise FabricError(f"debugfs could not read {disk}: {done.stderr.strip()}")


def _read_rows(database: Path) -> LedgerContent:
    rows: dict[int, str] = {}
    connection = sqlite3.connect(database)
    try:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        problem = "" if verdict == "ok" else f"integrity_check: {verdict}"
        expected = 0
        for number, side, payload, value in connection.execute("SELECT * FROM entries ORDER BY number"):
            expected += 1
            if number != expected:
                problem = problem or f"row {expected} is missing"
                expected = number
            if ledger.checksum(number, side, payload) == value:
                rows[number] = value
            else:
                problem = problem or f"row {number} does not match its checksum"
    except sqlite3.DatabaseError as error:
        problem = f"SQLite: {error}"
    finally:
        connection.close()
    return LedgerContent(rows, problem)
