"""Where the blocks of a point lie: the run tables of the undo files since it, merged so that the oldest content wins (D15).

An :class:`UndoIndex` serves one open view. It reads the tables of the files once (contents stay on the volume), follows the
open interval's file as it grows and new intervals as they begin, and, while the disks are rolled back, the return file.
The view's pin keeps the files as they are (``views``).

Nothing locks out the applier. It appends a block's old content to an undo file before it overwrites the block, so a
reader that looks at the index, reads the disk, and finds the index unchanged for its blocks afterwards has read what
belongs to the point (:meth:`UndoIndex.sources`, twice). Threads may share an index.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from failback.journal.catalogue import Interval
from failback.journal.format import FILE_HEADER_BYTES, UNDO_BLOCK_BYTES, UNDO_CHUNK_BLOCKS, RunKind
from failback.journal.undo import EMPTY, Durable, UndoRecord, read_records
from failback.journal.undo_packing import RUN_DTYPE, Blocks

_CACHED_RECORDS = 32
_MOST_TABLES = 24
_RETURN_RANK = 1 << 40

Int64s = npt.NDArray[np.int64]


class UndoFiles(Protocol):
    """What a journal tells of its files."""

    def generation(self) -> tuple[int, int]:
        """The first number grows when a file was cut back, the second whenever an interval or the phase of a rollback
        changes: before anything is saved under the new state."""
        ...

    def since_point(self) -> Sequence[Interval]:
        """Intervals since the view's point, oldest first; the last is open."""
        ...

    def return_file(self) -> tuple[str, Durable] | None:
        """What a rollback overwrote; None while the disks follow the stream."""
        ...

    def path(self, name: str) -> Path: ...


@dataclass(frozen=True, slots=True)
class RunTable:
    """Runs of one disk, ascending by ``first``: ``rank`` (age of the file), ``record`` (number), ``place`` in it or -1 (zero)."""

    first: Int64s
    blocks: Int64s
    rank: Int64s
    record: Int64s
    place: Int64s

    def overlapping(self, begin: int, stop: int) -> RunTable | None:
        low = int(np.searchsorted(self.first, begin - UNDO_CHUNK_BLOCKS + 1))  # no run is longer than a record
        high = int(np.searchsorted(self.first, stop))
        if low >= high:
            return None
        keep = np.flatnonzero(self.first[low:high] + self.blocks[low:high] > begin) + low
        return self.take(keep) if len(keep) else None

    def take(self, order: Int64s) -> RunTable:
        return RunTable(self.first[order], self.blocks[order], self.rank[order], self.record[order], self.place[order])


def _joined(tables: Sequence[RunTable]) -> RunTable:
    return RunTable(
        *(np.concatenate([getattr(table, name) for table in tables]) for name in RunTable.__slots__)
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sources:
    """For each block of a range: the number of the record that has it, or -1 (the disk), and the place in it, or -1 (zero)."""

    record: Int64s
    place: Int64s

    def same(self, other: Sources) -> bool:
        return bool(np.array_equal(self.record < 0, other.record < 0))


@dataclass(slots=True)
class _Reading:
    """How far a file that still grows was read."""

    path: Path
    rank: int
    offset: int = FILE_HEADER_BYTES
    records: int = 0


@dataclass(slots=True)
class _State:
    generation: tuple[int, int] = (-1, -1)
    newest_closed: int = -1
    tables: dict[int, list[RunTable]] = field(default_factory=dict)
    """By disk."""
    records: list[UndoRecord] = field(default_factory=list)
    growing: list[_Reading] = field(default_factory=list)
    version: int = 0


class UndoIndex:
    def __init__(self, files: UndoFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._state = _State()
        self._cache: OrderedDict[int, memoryview] = OrderedDict()
        self.forget()

    def forget(self) -> None:
        """Take everything from the files anew: one that was read was cut or is gone. Raises UndoDamagedError."""
        with self._lock:
            self._cache.clear()
            self._state = _State(version=self._state.version + 1)
            self._refresh()

    def sources(
        self, disk: int, begin: int, stop: int, known: tuple[int, Sources] | None = None
    ) -> tuple[int, Sources]:
        """Where the blocks [begin, stop) are now, and the index's version; ``known`` is given back while nothing changed."""
        with self._lock:
            self._refresh()
            state = self._state
            if known is not None and known[0] == state.version:
                return known
            found = [table.overlapping(begin, stop) for table in state.tables.get(disk, ())]
            version = state.version
        hits = [table for table in found if table is not None]
        record: Int64s = np.full(stop - begin, -1, np.int64)
        place: Int64s = np.full(stop - begin, -1, np.int64)
        if hits:
            joined = _joined(hits)
            joined = joined.take(np.argsort(-joined.rank, kind="stable"))  # painted last: the oldest content
            step = np.arange(int(joined.blocks.sum())) - np.repeat(
                np.cumsum(joined.blocks) - joined.blocks, joined.blocks
            )
            blocks = np.repeat(joined.first, joined.blocks) + step - begin
            inside = (blocks >= 0) & (blocks < stop - begin)
            places = np.repeat(joined.place, joined.blocks)
            places = np.where(places < 0, -1, places + step * UNDO_BLOCK_BYTES)
            record[blocks[inside]] = np.repeat(joined.record, joined.blocks)[inside]
            place[blocks[inside]] = places[inside]
        return version, Sources(record, place)

    def content(self, record: int) -> memoryview:
        """The decoded content of a record. Raises UndoDamagedError, OSError."""
        with self._lock:
            if record in self._cache:
                self._cache.move_to_end(record)
                return self._cache[record]
            wanted = self._state.records[record]
        loaded = wanted.load()
        with self._lock:
            self._cache[record] = loaded
            while len(self._cache) > _CACHED_RECORDS:
                self._cache.popitem(last=False)
        return loaded

    # --- following the files ----------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        state = self._state
        generation = self._files.generation()
        if generation[0] != state.generation[0]:  # what was read of a file may not be there any more
            self._cache.clear()
            state = self._state = _State(version=state.version + 1)
        if generation != state.generation:
            self._follow(state)
            state.generation = generation
        for reading in state.growing:
            if _size(reading.path) > reading.offset:
                self._add(state, [(reading.rank, _read_on(reading, EMPTY))])

    def _follow(self, state: _State) -> None:
        """Intervals began, or a rollback went on: read what is closed now to its end."""
        intervals = self._files.since_point()
        known = {reading.path: reading for reading in state.growing}
        state.growing = []
        found: list[tuple[int, list[UndoRecord]]] = []
        for interval in intervals:
            if interval.interval_id <= state.newest_closed:
                continue
            path = self._files.path(interval.file)
            reading = known.get(path) or _Reading(path, interval.interval_id)
            found.append((reading.rank, _read_on(reading, interval.durable)))
            if interval is intervals[-1]:
                state.growing.append(reading)
            else:
                state.newest_closed = interval.interval_id
        returning = self._files.return_file()
        for disk, tables in state.tables.items():
            state.tables[disk] = [table for table in tables if table.rank[0] < _RETURN_RANK]
        if returning is not None:
            reading = _Reading(self._files.path(returning[0]), _RETURN_RANK)
            if reading.path.exists():
                found.append((reading.rank, _read_on(reading, returning[1])))
            state.growing.append(reading)
        self._add(state, [entry for entry in found if entry[0] < _RETURN_RANK])
        self._add(state, [entry for entry in found if entry[0] >= _RETURN_RANK])
        state.version += 1

    def _add(self, state: _State, found: Sequence[tuple[int, list[UndoRecord]]]) -> None:
        """Take over the records of files, each with the file's rank, as one table a disk."""
        numbered = [(rank, record) for rank, group in found for record in group]
        if not numbered:
            return
        number = len(state.records)
        state.records += [record for _, record in numbered]
        for disk, table in _tables(numbered, number).items():
            tables = state.tables.setdefault(disk, [])
            tables.append(table)
            if len(tables) > _MOST_TABLES:
                state.tables[disk] = _merged(tables)
        state.version += 1


def _read_on(reading: _Reading, durable: Durable) -> list[UndoRecord]:
    found = list(read_records(reading.path, durable, reading.offset, reading.records))
    if found:
        reading.offset = found[-1].offset + found[-1].total_bytes
        reading.records += len(found)
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tables(records: Sequence[tuple[int, UndoRecord]], number: int) -> dict[int, RunTable]:
    """The run tables of records (with their ranks) by disk; the first record is ``number``."""
    runs = np.frombuffer(b"".join(record.runs.tobytes() for _, record in records), RUN_DTYPE)
    counts = np.array([len(record.runs) for _, record in records])
    blocks = runs["blocks"].astype(np.int64)
    has_data = runs["kind"] == RunKind.DATA
    stored = np.where(has_data, blocks * UNDO_BLOCK_BYTES, 0)
    before = np.cumsum(stored) - stored
    begins = np.cumsum(counts) - counts
    place = np.where(has_data, before - np.repeat(before[begins], counts), -1)
    record = np.repeat(np.arange(number, number + len(records)), counts)
    ranks = np.repeat(np.array([rank for rank, _ in records], np.int64), counts)
    whole = RunTable(runs["first"].astype(np.int64), blocks, ranks, record, place)
    result = {}
    for disk in np.unique(runs["disk"]).tolist():
        mine = np.flatnonzero(runs["disk"] == disk)
        result[disk] = whole.take(mine[np.argsort(whole.first[mine], kind="stable")])
    return result


def _merged(tables: list[RunTable]) -> list[RunTable]:
    """One table for the intervals and one for the return file, which is dropped alone."""
    result = []
    for returning in (False, True):
        mine = [table for table in tables if bool(table.rank[0] >= _RETURN_RANK) is returning]
        if mine:
            joined = _joined(mine)
            result.append(joined.take(np.argsort(joined.first, kind="stable")))
    return result


def blocks_of(offset: int, length: int) -> tuple[int, int]:
    """The undo blocks [begin, stop) that a byte range touches."""
    return offset // UNDO_BLOCK_BYTES, -(-(offset + length) // UNDO_BLOCK_BYTES)


__all__ = ["Blocks", "RunTable", "Sources", "UndoFiles", "UndoIndex", "blocks_of"]
