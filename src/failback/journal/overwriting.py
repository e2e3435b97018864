"""What a rollback overwrites, in stretches that go through three stages at once: saved, durable, overwritten.

While one stretch's blocks are written over, what the next one overwrites is being made durable, and what the one after it
overwrites is being read and saved. The order for each stretch is the one that makes a rollback restartable (``rollback``):
saved, synced, noted in the catalogue, overwritten. Stretches never share a block, so they cannot disturb each other.

    with Overwriting(catalogue, target, preserver) as overwriting:
        overwriting.put(contents); ...; written = overwriting.end()
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from failback.journal.applier import Target
from failback.journal.catalogue import Catalogue
from failback.journal.format import UNDO_BLOCK_BYTES
from failback.journal.undo import Preserver, write_blocks
from failback.journal.undo_packing import Blocks
from failback.runtime import faults

RETURN_FILE = "undo/return.undo"
STRETCH_BYTES = 32 << 20
_TASK_BYTES = 2 << 20

Contents = list[tuple[int, Blocks, "np.typing.NDArray[np.uint8] | None"]]
"""(disk, block ids, content or None for zeroes)"""


@dataclass(frozen=True, slots=True)
class _Saved:
    contents: Contents
    syncing: futures.Future[None]


class Overwriting:
    """One thread calls. Leaving the context waits for what is under way: nothing is written behind the caller's back."""

    def __init__(self, catalogue: Catalogue, target: Target, preserver: Preserver) -> None:
        self._catalogue = catalogue
        self._target = target
        self._preserver = preserver
        self._saved: _Saved | None = None
        self._writing: list[futures.Future[int]] = []
        self._flushing: list[futures.Future[None]] = []
        self._written = 0

    def __enter__(self) -> Overwriting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        futures.wait([*self._writing])
        futures.wait([*self._flushing, *([self._saved.syncing] if self._saved is not None else [])])

    def put(self, contents: Contents) -> None:
        """The next stretch: no block of it was in one before."""
        for disk in sorted({entry[0] for entry in contents}):
            ids = np.sort(np.concatenate([entry[1] for entry in contents if entry[0] == disk]))
            size_bytes = self._target.devices[disk].size_bytes
            self._preserver.preserve(disk, ids * UNDO_BLOCK_BYTES, np.minimum((ids + 1) * UNDO_BLOCK_BYTES, size_bytes))
        file = self._preserver.file
        syncing = self._target.readers.submit(file.sync, file.appended)
        before, self._saved = self._saved, _Saved(contents, syncing)
        self._overwrite(before)

    def end(self) -> int:
        """Overwrite what is left; returns the bytes written by all of it. The disks are not flushed yet."""
        before, self._saved = self._saved, None
        self._overwrite(before)
        self._finish_writing()
        for flushing in self._flushing:
            flushing.result()
        return self._written

    def _overwrite(self, saved: _Saved | None) -> None:
        if saved is None:
            return
        saved.syncing.result()
        self._catalogue.set_durable(RETURN_FILE, self._preserver.file.durable)
        faults.point("rollback.after_save")
        self._finish_writing()
        for some in _tasks(saved.contents):
            self._writing.append(self._target.readers.submit(self._write, some))

    def _write(self, contents: Contents) -> int:
        written = 0
        for disk, ids, content in contents:
            written += write_blocks(self._target.devices[disk], ids, content)
            faults.point("rollback.mid")
        return written

    def _finish_writing(self) -> None:
        if not self._writing:
            return
        for writing in self._writing:
            self._written += writing.result()
        self._writing.clear()
        for flushing in self._flushing:
            flushing.result()
        # so that the last flush, which alone counts, finds little to do
        self._flushing = [self._target.readers.submit(device.flush) for device in self._target.devices.values()]


def _tasks(contents: Contents) -> Iterator[Contents]:
    """Parts of about ``_TASK_BYTES`` for one thread each, in the order of the disk."""
    part: Contents = []
    size = 0
    for entry in sorted(contents, key=lambda entry: (entry[0], int(entry[1][0]))):
        part.append(entry)
        size += len(entry[1]) * UNDO_BLOCK_BYTES
        if size >= _TASK_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
