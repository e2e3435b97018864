"""The catalogue: points, intervals, gaps and positions of one journal, in SQLite on the retention volume.

Every change of meaning is one transaction (WAL, synchronous=FULL): applied position, gap state and a new point with its
new interval change together or not at all (D13). The file describes its machine, so that a control plane can be rebuilt
from retention volumes alone.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failback.errors import IntegrityError, StorageError
from failback.journal import catalogue_digest
from failback.journal.undo import UNKNOWN, Durable
from failback.model.ids import MachineId, PassId, PointId
from failback.model.points import Gap, PointKind, RecoveryPoint, ReplicaDisk
from failback.model.stream import Position
from failback.protocol.messages import DigestReply
from failback.runtime import faults, records

FORMAT = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS points (
    point_id TEXT PRIMARY KEY, kind TEXT NOT NULL, ordinal INTEGER NOT NULL, wall_ns INTEGER NOT NULL,
    epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, ring INTEGER NOT NULL, abandoned INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS intervals (
    interval_id INTEGER PRIMARY KEY, first_ordinal INTEGER NOT NULL, file TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS undo_files (
    file TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, records INTEGER NOT NULL, damage TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gaps (
    gap_id INTEGER PRIMARY KEY, cause TEXT NOT NULL, started_wall_ns INTEGER NOT NULL, ended_wall_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS marks (mark_id TEXT PRIMARY KEY, ordinal INTEGER NOT NULL, published INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS replies (
    epoch INTEGER, sequence INTEGER, pass_id TEXT, disk_index INTEGER, first_block INTEGER, count INTEGER,
    differing BLOB, PRIMARY KEY (epoch, sequence));
"""


@dataclass(frozen=True, slots=True)
class CataloguedPoint:
    """``ordinal`` is the redo record after which the disks are the point."""

    point: RecoveryPoint
    ordinal: int


@dataclass(frozen=True, slots=True)
class Interval:
    """From ``first_ordinal`` (exclusive: the ordinal of the point that it follows) to the next interval's.

    ``durable`` is what its file holds at least; ``damage`` says why that cannot be read, or is empty.
    """

    interval_id: int
    first_ordinal: int
    file: str
    durable: Durable = UNKNOWN
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """How far the target disks durably are, and whether that place lies in a gap (``gap`` is its cause's name)."""

    ordinal: int = 0
    epoch: int = 0
    sequence: int = 0
    ring: int = 0
    wall_ns: int = 0
    gap: str = ""

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.sequence, self.ring)


@dataclass(frozen=True, slots=True)
class Mark:
    mark_id: str
    ordinal: int
    published: bool


class Catalogue:
    """Safe for use by several threads: one connection, one lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        self.layout_changes = 0
        """Grows with every change of an interval or of a rollback's phase, in this process."""
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.OperationalError as error:
            raise StorageError(f"cannot open {path}: {error}", remedy="check the retention volume") from error
        except sqlite3.Error as error:
            raise catalogue_digest.damaged(path, str(error)) from error

    def _open(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)
        catalogue_digest.attach(self._connection, self.path, _SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside become durable together when the outermost block ends."""
        with self._lock:
            if self._depth == 0:
                self._execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._connection.rollback()
                raise
            self._depth -= 1
            if self._depth == 0:
                faults.point("catalogue.before_commit")
                self._execute("COMMIT")
                faults.point("catalogue.after_commit")

    def _execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise StorageError(f"{self.path}: {error}", remedy="check the retention volume") from error

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What a query without parameters gives, for who looks at the whole. Raises StorageError."""
        return self._execute(statement)

    # --- facts ------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        rows = self._execute("SELECT value FROM facts WHERE key = ?", key)
        try:
            return records.parse_json(rows[0][0]) if rows else None
        except (ValueError, TypeError) as error:
            raise IntegrityError(f"{self.path}: the fact {key!r} cannot be read", code="CatalogueDamaged") from error

    def set(self, key: str, value: object) -> None:
        if key == "rollback_phase":
            self.layout_changes += 1
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", key, json.dumps(value))

    def check_format(self) -> None:
        found = self.get("format")
        if found != FORMAT:
            raise IntegrityError(f"{self.path} has journal format {found}, this version reads {FORMAT}",
                                 remedy="use the version of failback that wrote it")  # fmt: skip

    @property
    def applied(self) -> Applied:
        stored = self.get("applied")
        return records.decode(stored, Applied) if stored else Applied()

    def set_applied(self, applied: Applied) -> None:
        self.set("applied", records.encode(applied))

    @property
    def disks(self) -> tuple[ReplicaDisk, ...]:
        return tuple(records.decode(disk, ReplicaDisk) for disk in self.get("disks") or ())

    def change_disks(self, disks: tuple[ReplicaDisk, ...]) -> None:
        """Another list from the next epoch on; points of this epoch and before keep the one that was (``disks_at``)."""
        with self.transaction():
            history = self.get("disk_history") or []
            epoch = int(self.get("epoch"))
            if not any(
                entry["until_epoch"] == epoch for entry in history
            ):  # changed twice: the first list is the epoch's
                history.append({"until_epoch": epoch, "disks": self.get("disks")})
            self.set("disk_history", history)
            self.set("disks", records.encode(disks))

    def disks_at(self, epoch: int) -> tuple[ReplicaDisk, ...]:
        """The disks that the machine had, with their sizes, at points of the epoch."""
        for entry in self.get("disk_history") or ():
            if epoch <= entry["until_epoch"]:
                return tuple(records.decode(disk, ReplicaDisk) for disk in entry["disks"])
        return self.disks

    # --- points, marks and intervals --------------------------------------------------------------------------------

    def points(self) -> list[CataloguedPoint]:
        """Oldest first."""
        machine_id = MachineId(str(self.get("machine_id")))
        rows = self._execute(
            "SELECT point_id, kind, wall_ns, epoch, sequence, ring, abandoned, ordinal FROM points ORDER BY ordinal, rowid"
        )
        return [CataloguedPoint(_point(machine_id, row), row[7]) for row in rows]

    def add_point(self, point: RecoveryPoint, ordinal: int) -> None:
        self._execute(
            "INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
            point.point_id, point.kind.value, ordinal, point.wall_ns, point.epoch, point.sequence, point.ring,
        )  # fmt: skip

    def rename_point(self, point_id: str, fresh_id: str) -> None:
        self._execute("UPDATE points SET point_id = ? WHERE point_id = ?", fresh_id, point_id)

    def remove_point(self, point_id: str) -> None:
        self._execute("DELETE FROM points WHERE point_id = ?", point_id)

    def abandon_after(self, ordinal: int) -> None:
        self._execute("UPDATE points SET abandoned = 1 WHERE ordinal > ?", ordinal)

    def intervals(self) -> list[Interval]:
        """Oldest first; the last one is open."""
        rows = self._execute(
            "SELECT interval_id, first_ordinal, intervals.file, size_bytes, records, damage FROM intervals "
            "LEFT JOIN undo_files ON undo_files.file = intervals.file ORDER BY interval_id"
        )
        return [Interval(row[0], row[1], row[2], Durable(row[3] or 0, row[4] or 0), row[5] or "") for row in rows]

    def put_interval(self, interval: Interval) -> None:
        self.layout_changes += 1
        self._execute(
            "INSERT OR REPLACE INTO intervals VALUES (?, ?, ?)",
            interval.interval_id,
            interval.first_ordinal,
            interval.file,
        )
        self._execute(
            "INSERT OR REPLACE INTO undo_files VALUES (?, ?, ?, ?)",
            interval.file, interval.durable.size_bytes, interval.durable.records, interval.damage,
        )  # fmt: skip

    def durable(self, file: str) -> Durable:
        """What is known to be durable in the undo file."""
        rows = self._execute("SELECT size_bytes, records FROM undo_files WHERE file = ?", file)
        return Durable(*rows[0]) if rows else UNKNOWN

    def set_durable(self, file: str, durable: Durable) -> None:
        """The file was synced up to here."""
        self._execute(
            "INSERT INTO undo_files VALUES (?, ?, ?, '') ON CONFLICT (file) DO UPDATE "
            "SET size_bytes = excluded.size_bytes, records = excluded.records",
            file, durable.size_bytes, durable.records,
        )  # fmt: skip

    def forget_durable(self, file: str) -> None:
        self._execute("DELETE FROM undo_files WHERE file = ?", file)

    def lost_until(self) -> int:
        """Points up to this ordinal need undo that is damaged; -1 when none does."""
        return max((interval.first_ordinal for interval in self.intervals() if interval.damage), default=-1)

    def newest_interval(self) -> int:
        return int(self._execute("SELECT max(interval_id) FROM intervals")[0][0] or 0)

    def remove_interval(self, interval_id: int) -> None:
        self.layout_changes += 1
        self._execute(
            "DELETE FROM undo_files WHERE file IN (SELECT file FROM intervals WHERE interval_id = ?)", interval_id
        )
        self._execute("DELETE FROM intervals WHERE interval_id = ?", interval_id)

    def add_mark(self, mark: Mark) -> None:
        self._execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", mark.mark_id, mark.ordinal, int(mark.published))

    def mark(self, mark_id: str) -> Mark | None:
        rows = self._execute("SELECT * FROM marks WHERE mark_id = ?", mark_id)
        return Mark(rows[0][0], rows[0][1], bool(rows[0][2])) if rows else None

    # --- gaps -------------------------------------------------------------------------------------------------------

    def gaps(self) -> list[Gap]:
        rows = self._execute("SELECT cause, started_wall_ns, ended_wall_ns FROM gaps ORDER BY gap_id")
        return [Gap(*row) for row in rows]

    def open_gap(self, cause: str, wall_ns: int) -> None:
        self._execute("INSERT INTO gaps (cause, started_wall_ns, ended_wall_ns) VALUES (?, ?, 0)", cause, wall_ns)

    def close_gap(self, wall_ns: int) -> None:
        self._execute("UPDATE gaps SET ended_wall_ns = ? WHERE ended_wall_ns = 0", wall_ns)

    def forget_gaps(self, before_wall_ns: int) -> None:
        self._execute("DELETE FROM gaps WHERE ended_wall_ns != 0 AND ended_wall_ns < ?", before_wall_ns)

    # --- replies to digests -----------------------------------------------------------------------------------------

    def add_reply(self, reply: DigestReply) -> None:
        self._execute(
            "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)",
            reply.epoch, reply.sequence, reply.pass_id, reply.disk_index, reply.first_block, reply.count, reply.differing,
        )  # fmt: skip

    def replies(self, epoch: int) -> list[DigestReply]:
        machine_id = MachineId(str(self.get("machine_id")))
        rows = self._execute("SELECT * FROM replies WHERE epoch = ? ORDER BY sequence", epoch)
        return [DigestReply(machine_id, row[0], row[1], PassId(row[2]), *row[3:]) for row in rows]

    def forget_replies(self, before_epoch: int) -> None:
        self._execute("DELETE FROM replies WHERE epoch < ?", before_epoch)

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _point(machine_id: MachineId, row: tuple[Any, ...]) -> RecoveryPoint:
    point_id, kind, wall_ns, epoch, sequence, ring, abandoned = row[:7]
    return RecoveryPoint(
        PointId(point_id), machine_id, PointKind(kind), wall_ns, epoch, sequence, ring, bool(abandoned)
    )
