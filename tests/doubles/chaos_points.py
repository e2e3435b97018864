"""Points of a journal opened as an operator would after a disaster: every disk of a point as a file, mounted, its databases
recovered and counted. Needs the master target stopped; uses the journal's library."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos_load import as_postgres, program

from failback.block.raw import RawDevice
from failback.errors import IntegrityError
from failback.journal.journal import Journal
from failback.model.points import PointKind, RecoveryPoint

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Witnessed:
    """At this place of the stream both databases had acknowledged so many commits before."""

    epoch: int
    sequence: int
    sqlite: int
    postgres: int


@dataclass(frozen=True, slots=True)
class Opened:
    """What a point held."""

    point: RecoveryPoint
    sqlite: int
    postgres: int
    problems: tuple[str, ...]


@contextlib.contextmanager
def opened_journal(directory: Path) -> Iterator[Journal]:
    journal = Journal.open(directory)
    devices = {disk.index: RawDevice(Path(f"{disk.path}.replica")) for disk in journal.catalogue.disks}
    try:
        journal.start(devices, lambda _: None)
        yield journal
    finally:
        journal.close()
        for device in devices.values():
            device.close()


def open_points(
    directory: Path, witnessed: list[Witnessed], chance: random.Random, most: int, scratch: Path
) -> list[Opened]:
    """Up to ``most`` points drawn by chance, the newest among them. Points whose undo is found damaged have to be withdrawn."""
    found = []
    with opened_journal(directory) as journal:
        offered = [p for p in journal.points() if not p.abandoned and p.kind is not PointKind.BEFORE_REPROTECT]
        for point in [*offered[-1:], *chance.sample(offered[:-1], len(offered) - 1)] if offered else ():
            if len(found) == most:
                break
            scratch.mkdir()
            try:
                for disk in journal.catalogue.disks:
                    _copy(journal, point, disk.index, scratch / f"disk{disk.index}")
                found.append(_examined(point, witnessed, scratch))
            except IntegrityError:  # noticed, and withdrawn: never shown as something else
                if any(still.point_id == point.point_id for still in journal.points()):
                    raise
            finally:
                shutil.rmtree(scratch)
    return found


def _copy(journal: Journal, point: RecoveryPoint, disk: int, path: Path) -> None:
    view = journal.view(point.point_id, disk)
    try:
        with path.open("wb") as stream:
            stream.truncate(view.size_bytes)
            for offset in range(0, view.size_bytes, CHUNK_BYTES):
                data = view.read(offset, min(CHUNK_BYTES, view.size_bytes - offset))
                if data.count(0) != len(data):
                    stream.seek(offset)
                    stream.write(data)
    finally:
        view.close()


def _examined(point: RecoveryPoint, witnessed: list[Witnessed], scratch: Path) -> Opened:
    problems = []
    place = (point.epoch, point.sequence)
    before = [one for one in witnessed if (one.epoch, one.sequence) <= place]
    with _mounted(scratch / "disk0", scratch / "mnt0", problems) as mount:
        sqlite, problem = _sqlite_commits(mount / "ledger.sqlite", scratch)
        problems += [problem] if problem else []
    with _mounted(scratch / "disk1", scratch / "mnt1", problems) as mount:
        postgres, problem = _postgres_commits(mount / "data")
        problems += [problem] if problem else []
    needed = (max((one.sqlite for one in before), default=0), max((one.postgres for one in before), default=0))
    if sqlite < needed[0] or postgres < needed[1]:
        problems.append(f"{needed} commits were acknowledged before it, it holds {(sqlite, postgres)}")
    return Opened(point, sqlite, postgres, tuple(problems))


@contextlib.contextmanager
def _mounted(image: Path, mount: Path, problems: list[str]) -> Iterator[Path]:
    """As after a power cut: the journal is played back, then the file system has to be clean."""
    subprocess.run(["e2fsck", "-y", "-E", "journal_only", str(image)], capture_output=True, check=False)
    checked = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, check=False)
    if checked.returncode:
        problems.append(f"{image.name}: {checked.stdout[-300:]}")
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True, capture_output=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True, capture_output=True)


def _sqlite_commits(path: Path, scratch: Path) -> tuple[int, str]:
    """(rows 1 to n without a hole, what is wrong)."""
    if not path.exists():
        return 0, ""
    for part in path.parent.glob(f"{path.name}*"):
        shutil.copy(part, scratch)
    connection = sqlite3.connect(scratch / path.name)
    try:
        whole = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if whole != "ok":
            return 0, f"SQLite: {whole}"
        if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'commits'").fetchone()[0]:
            return 0, ""
        count, last = connection.execute("SELECT count(*), coalesce(max(number), 0) FROM commits").fetchone()
    finally:
        connection.close()
    return int(last), "" if count == last else f"SQLite has {count} of {last} rows"


def _postgres_commits(data: Path) -> tuple[int, str]:
    """PostgreSQL recovers in a mode without clients, and counts."""
    if not (data / "global" / "pg_control").exists():
        return 0, ""
    (data / "postmaster.pid").unlink(missing_ok=True)
    query = "SELECT 'rows=' || count(*) || ' last=' || coalesce(max(number), 0) AS answer FROM commits\n"
    done = subprocess.run(
        [*as_postgres(), program("postgres"), "--single", "-D", str(data), "postgres"], input=query, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    answer = re.search(r"rows=(\d+) last=(\d+)", done.stdout)
    if answer is None:
        missing = (
            'relation "commits" does not exist' in done.stderr or 'database "postgres" does not exist' in done.stderr
        )
        return 0, "" if missing else f"PostgreSQL: {done.stderr[-400:]}"
    count, last = map(int, answer.groups())
    return last, "" if count == last else f"PostgreSQL has {count} of {last} rows"
