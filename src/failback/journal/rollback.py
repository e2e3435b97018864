"""The disks to a point, and back again (D15). Journaled, restartable, and nothing is lost before the commit.

Phases, kept in the catalogue::

    (none) --roll--> rolling --disks are at the point--> rolled --give_back--> returning --> (none)

Rolling puts every block back that an interval after the point saved, the oldest content first found, then replays redo
forward when the target lies between two points. What it overwrites is saved in ``undo/return.undo`` first, durably, so
that ``give_back`` makes the disks again what they were: at the applied position. Each phase may be repeated after a
crash: what it writes depends only on files that it does not change, and the return file keeps the first content.

Undo is read and decoded ahead by the reader threads; records of which an older interval has every block are not read. What
is overwritten together (``overwriting``) is saved by sorted reads, without compressing it: the return file lives until
the commit only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from failback.errors import ConflictError
from failback.journal import last_write
from failback.journal.applier import Payloads, Target, decode, payload_of, write_pieces
from failback.journal.catalogue import Catalogue
from failback.journal.format import UNDO_BLOCK_BYTES
from failback.journal.overwriting import RETURN_FILE, STRETCH_BYTES, Contents, Overwriting
from failback.journal.redo import RedoLog
from failback.journal.undo import (
    Durable,
    Piece,
    Preserver,
    SavedBlocks,
    UndoFolder,
    UndoRecord,
    add_ids,
    contents_of,
    pieces_of,
    read_records,
    write_runs,
)
from failback.journal.undo_packing import Blocks
from failback.model.points import PointChoice, RecoveryPoint
from failback.runtime import faults, records

ROLLING, ROLLED, RETURNING = "rolling", "rolled", "returning"
_RETURN_NUMBER = 0
_RECORDS_AHEAD = 24

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Destination:
    """``base_ordinal``: of the point to undo to; ``ordinal``: of the batch to redo forward to (equal for a point)."""

    choice: PointChoice
    point: RecoveryPoint
    base_ordinal: int
    ordinal: int
    bytes_rolled_back: int = 0


class Rollback:
    """The caller has settled the applier and lets it rest while ``phase`` is not empty."""

    def __init__(self, folder: UndoFolder, catalogue: Catalogue, redo: RedoLog, target: Target) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._redo = redo
        self._target = target

    @property
    def phase(self) -> str:
        return self._catalogue.get("rollback_phase") or ""

    @property
    def destination(self) -> Destination | None:
        stored = self._catalogue.get("rollback_destination")
        return records.decode(stored, Destination) if stored and self.phase else None

    def recover(self) -> None:
        """After a start: finish what a crash interrupted."""
        if self.phase == ROLLING:
            self._roll(lambda done, total: None)
        elif self.phase == RETURNING:
            self.give_back()
        elif not self.phase:
            self._folder.path(RETURN_FILE).unlink(missing_ok=True)

    def roll(self, destination: Destination, progress: Progress) -> Destination:
        """Bring the disks to the destination; returns it with the bytes rolled back."""
        if self.phase:
            raise ConflictError("the disks are already at a chosen point", remedy="resume the replica first")
        self._folder.path(RETURN_FILE).unlink(missing_ok=True)
        with self._catalogue.transaction():
            self._catalogue.forget_durable(RETURN_FILE)
            self._catalogue.set("rollback_phase", ROLLING)
            self._catalogue.set("rollback_destination", records.encode(destination))
        return self._roll(progress)

    def finish(self, progress: Progress) -> Destination:
        """Go on with a rollback that failed in the middle: the disks are neither here nor there."""
        return self._roll(progress)

    def _roll(self, progress: Progress) -> Destination:
        destination = self.destination
        if destination is None:
            raise ConflictError("no destination is recorded for the rollback")
        file = self._folder.open(RETURN_FILE, _RETURN_NUMBER, self._catalogue.durable(RETURN_FILE))
        preserver = Preserver(file, self._target.devices, self._target.readers, compress=False)
        try:
            written = self._undo(destination, preserver, progress)
            if destination.ordinal > destination.base_ordinal:
                self._redo_forward(destination, preserver)
        except BaseException:
            file.cut_back()
            raise
        finally:
            file.close()
        self._target.flush()
        done = Destination(
            destination.choice, destination.point, destination.base_ordinal, destination.ordinal, written
        )
        with self._catalogue.transaction():
            self._catalogue.set_durable(RETURN_FILE, file.durable)
            self._catalogue.set("rollback_phase", ROLLED)
            self._catalogue.set("rollback_destination", records.encode(done))
        return done

    def _undo(self, destination: Destination, preserver: Preserver, progress: Progress) -> int:
        done = SavedBlocks()
        stretch: Contents = []
        size = seen = 0
        intervals = [item for item in self._catalogue.intervals() if item.first_ordinal >= destination.base_ordinal]
        paths = [self._folder.path(interval.file) for interval in intervals]
        total = sum(path.stat().st_size for path in paths if path.exists())
        with Overwriting(self._catalogue, self._target, preserver) as overwriting:
            for path, interval in zip(paths, intervals, strict=True):
                # the oldest first: the first content found for a block is the one at the point; a file holds each once
                found: dict[int, list[Blocks]] = {}
                for body_bytes, contents in self._decoded(path, interval.durable, done):
                    for disk, ids, _ in contents:
                        found.setdefault(disk, []).append(ids)
                        size += len(ids) * UNDO_BLOCK_BYTES
                    stretch += contents
                    seen += body_bytes
                    if size >= STRETCH_BYTES:
                        overwriting.put(stretch)
                        stretch, size = [], 0
                        progress(seen, total)
                for disk, ids_of_disk in found.items():
                    add_ids(done, disk, np.concatenate(ids_of_disk))
            overwriting.put(stretch)
            written = overwriting.end()
        progress(total, total)
        return written

    def _decoded(self, path: Path, durable: Durable, done: SavedBlocks) -> Iterator[tuple[int, Contents]]:
        """(bytes of the record, what of it is not in ``done``) for each record, read and decoded ahead."""
        ahead: deque[tuple[UndoRecord, list[Piece], futures.Future[list[np.typing.NDArray[np.uint8] | None]]]] = deque()

        def first() -> tuple[int, Contents]:
            record, pieces, content = ahead.popleft()
            named = zip(pieces, content.result(), strict=True)
            return record.header.body_bytes, [(piece.disk, piece.ids, found) for piece, found in named]

        for record in read_records(path, durable):
            pieces = pieces_of(record, done, present=False)
            if not pieces and record.has_proven_table:
                yield record.header.body_bytes, []
                continue
            ahead.append((record, pieces, self._target.readers.submit(contents_of, record, pieces)))
            if len(ahead) >= _RECORDS_AHEAD:
                yield first()
        while ahead:
            yield first()

    def _redo_forward(self, destination: Destination, preserver: Preserver) -> None:
        for record in self._redo.read_after(destination.base_ordinal):
            if record.ordinal > destination.ordinal:
                break
            if record.item.header.extents_bytes == 0:
                continue
            batch = decode(record)
            resolved = last_write.resolve([last_write.extent_table(batch.extents)])
            for disk, pieces in resolved.items():
                preserver.preserve(disk, pieces.offset, pieces.end)
            preserver.sync()
            payloads = Payloads([payload_of(batch)])
            for disk, pieces in resolved.items():
                write_pieces(self._target.devices[disk], pieces, payloads)

    def give_back(self) -> None:
        """Make the disks again what they were before rolling: at the applied position."""
        if not self.phase:
            return
        self._catalogue.set("rollback_phase", RETURNING)
        path = self._folder.path(RETURN_FILE)
        durable = self._catalogue.durable(RETURN_FILE)
        self._folder.open(RETURN_FILE, _RETURN_NUMBER, durable).close()  # proves it, and cuts a torn tail: those blocks
        for record in read_records(path, durable):  # were not overwritten
            write_runs(self._target.devices, record.runs, record.load())
            faults.point("rollback.returning")
        self._target.flush()
        with self._catalogue.transaction():
            self._catalogue.set("rollback_phase", "")
            self._catalogue.set("rollback_destination", None)
            self._catalogue.forget_durable(RETURN_FILE)
        path.unlink(missing_ok=True)

    def forget(self) -> None:
        """After a commit: the way back is no longer needed."""
        with self._catalogue.transaction():
            self._catalogue.set("rollback_phase", "")
            self._catalogue.set("rollback_destination", None)
            self._catalogue.forget_durable(RETURN_FILE)
        self._folder.path(RETURN_FILE).unlink(missing_ok=True)
