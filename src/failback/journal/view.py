"""A recovery point as a block device, without rolling back: readable, and writable on a throw-away layer (D15).

A block is looked up in the layer, then in the undo of the intervals after the point (the oldest content wins), then, while
the disks are rolled back, in the return file, and last on the disk itself. Lookups and reads hold the journal's lock, so
that the applier cannot overwrite a block between the two.
"""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from failback.block.device import BlockDevice, Buffer, check_range
from failback.journal.format import UNDO_BLOCK_BYTES, RunKind
from failback.journal.undo import Blocks, Durable, UndoDamagedError, UndoRecord, read_records

_CACHED_RECORDS = 16


@dataclass(frozen=True, slots=True)
class _Index:
    """Where each saved block's content is: ``ids`` ascending, ``record`` into ``records``, ``place`` in it or -1 (zero)."""

    records: list[UndoRecord]
    ids: Blocks
    record: Blocks
    place: Blocks


@dataclass(frozen=True, slots=True)
class ViewPlace:
    """``files`` gives the undo files to look into, oldest first, with what is durable and their present sizes; called under
    the lock."""

    files: Callable[[], list[tuple[Path, Durable, int]]]
    on_damage: Callable[[UndoDamagedError], None]
    lock: threading.RLock
    layer_directory: Path
    on_close: Callable[[], None]


class View:
    """One disk of the point."""

    def __init__(self, disk: int, device: BlockDevice, place: ViewPlace) -> None:
        self._device = device
        self._disk = disk
        self._files = place.files
        self._lock = place.lock
        self._on_close = place.on_close
        self._on_damage = place.on_damage
        self._known: list[tuple[Path, Durable, int]] = []
        self._index = _Index([], *(np.empty(0, np.int64) for _ in range(3)))
        self._cache: OrderedDict[int, memoryview] = OrderedDict()
        self._layer = tempfile.TemporaryFile(dir=place.layer_directory)  # noqa: SIM115
        self._layered: set[int] = set()
        self._closed = False

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    def _refresh(self) -> None:
        files = self._files()
        if files == self._known:
            return
        found = [record for path, durable, _ in files for record in read_records(path, durable)]
        ids: list[Blocks] = []
        which: list[Blocks] = []
        places: list[Blocks] = []
        for number, record in enumerate(found):
            place = 0
            for disk, kind, _, blocks, first in record.runs.tolist():
                has_data = kind == RunKind.DATA
                if disk == self._disk:
                    ids.append(np.arange(first, first + blocks, dtype=np.int64))
                    which.append(np.full(blocks, number, np.int64))
                    step = np.arange(blocks, dtype=np.int64) * UNDO_BLOCK_BYTES + place
                    places.append(step if has_data else np.full(blocks, -1, np.int64))
                place += blocks * UNDO_BLOCK_BYTES if has_data else 0
        if ids:
            joined = np.concatenate(ids)
            unique, first_seen = np.unique(joined, return_index=True)
            self._index = _Index(found, unique, np.concatenate(which)[first_seen], np.concatenate(places)[first_seen])
        else:
            self._index = _Index(found, *(np.empty(0, np.int64) for _ in range(3)))
        self._cache.clear()
        self._known = files

    def _block(self, block: int) -> bytes:
        offset = block * UNDO_BLOCK_BYTES
        length = min(UNDO_BLOCK_BYTES, self.size_bytes - offset)
        if block in self._layered:
            self._layer.seek(offset)
            return self._layer.read(length)
        index = self._index
        at = int(np.searchsorted(index.ids, block))
        if at == len(index.ids) or index.ids[at] != block:
            return self._device.read(offset, length)
        place = int(index.place[at])
        if place < 0:
            return bytes(length)
        return bytes(self._content(int(index.record[at]))[place : place + length])

    def _content(self, number: int) -> memoryview:
        if number not in self._cache:
            if len(self._cache) >= _CACHED_RECORDS:
                self._cache.popitem(last=False)
            self._cache[number] = self._index.records[number].load()
        return self._cache[number]

    def read(self, offset: int, length: int) -> bytes:
        check_range(self.size_bytes, offset, length, "view")
        if length == 0:
            return b""
        first, last = offset // UNDO_BLOCK_BYTES, (offset + length - 1) // UNDO_BLOCK_BYTES
        with self._lock:
            try:
                self._refresh()
                joined = b"".join(self._block(block) for block in range(first, last + 1))
            except UndoDamagedError as error:
                self._on_damage(error)
                raise
        begin = offset - first * UNDO_BLOCK_BYTES
        return joined[begin : begin + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))

    def write(self, offset: int, data: Buffer) -> None:
        """Into the throw-away layer only."""
        check_range(self.size_bytes, offset, len(data), "view")
        if not len(data):
            return
        first, last = offset // UNDO_BLOCK_BYTES, (offset + len(data) - 1) // UNDO_BLOCK_BYTES
        begin = first * UNDO_BLOCK_BYTES
        with self._lock:
            whole = bytearray(self.read(begin, min((last + 1) * UNDO_BLOCK_BYTES, self.size_bytes) - begin))
            whole[offset - begin : offset - begin + len(data)] = data
            self._layer.seek(begin)
            self._layer.write(whole)
            self._layered.update(range(first, last + 1))

    def zero(self, offset: int, length: int) -> None:
        for start in range(offset, offset + length, 1 << 20):
            self.write(start, bytes(min(1 << 20, offset + length - start)))

    def discard(self, offset: int, length: int) -> None:
        self.zero(offset, length)

    def flush(self) -> None:
        """Nothing: the layer is thrown away."""

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        if length:
            yield offset, length

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._layer.close()
            self._on_close()
