"""One disk of a recovery point as a block device, without rolling back: readable, and writable on a throw-away layer (D15).

A block is looked up in the layer, then in the undo since the point (the oldest content wins), and last on the disk. No lock
keeps the applier away: what was read from the disk counts when the undo still has none of those blocks afterwards
(``run_table``). Threads may share a view.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np

from failback.block.device import BlockDevice, Buffer, check_range
from failback.errors import ConflictError, NotSupportedError
from failback.journal.format import UNDO_BLOCK_BYTES
from failback.journal.layer import Layer
from failback.journal.run_table import Sources, UndoIndex, blocks_of
from failback.journal.undo import UndoDamagedError

_TRIES = 3
_SPAN_BLOCKS = 1024


class View:
    """``layer`` None: read-only. ``on_damage`` is told of undo that cannot be read."""

    def __init__(
        self, disk: int, device: BlockDevice, index: UndoIndex, layer: Layer | None,
        on_damage: Callable[[UndoDamagedError], None],
    ) -> None:  # fmt: skip
        self.disk = disk
        self._device = device
        self._index = index
        self._layer = layer
        self._on_damage = on_damage
        self.on_close: Callable[[], None] = lambda: None
        self._writing = threading.Lock()
        self._closed = self._sealed = False

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    @property
    def writable(self) -> bool:
        return self._layer is not None and not self._sealed

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(self.size_bytes, offset, len(buffer), "view")
        step = _SPAN_BLOCKS * UNDO_BLOCK_BYTES
        for start in range(0, len(buffer), step):
            self._again(lambda at=start: self._read_span(offset + at, buffer[at : at + step]))  # type: ignore[misc]

    def _again(self, work: Callable[[], None]) -> None:
        """A file that was cut or went (a rollback ended) is no damage: look anew, and believe it the last time."""
        if self._closed:
            raise ConflictError("the view is closed", code="ViewClosed")
        for attempt in range(_TRIES):
            try:
                work()
                return
            except (UndoDamagedError, FileNotFoundError) as error:
                if attempt < _TRIES - 1:
                    self._look_anew()
                    continue
                if isinstance(error, UndoDamagedError):
                    self._on_damage(error)
                raise

    def _look_anew(self) -> None:
        try:
            self._index.forget()
        except UndoDamagedError as error:
            self._on_damage(error)
            raise

    def _read_span(self, offset: int, buffer: memoryview) -> None:
        begin, stop = blocks_of(offset, len(buffer))
        written = self._layer.written(begin, stop) if self._layer is not None else np.zeros(stop - begin, np.bool_)
        known = self._index.sources(self.disk, begin, stop)
        while True:
            sources = known[1]
            for first, last in _runs((sources.record < 0) & ~written):
                self._from_device(offset, buffer, begin + first, begin + last)
            now = self._index.sources(self.disk, begin, stop, known)
            if now is known or now[1].same(sources):
                break
            known = now  # overwritten meanwhile: the undo has them now
        self._from_undo(offset, buffer, begin, now[1], written)
        if self._layer is not None:
            for first, last in _runs(written):
                at, part = _part(offset, buffer, begin + first, begin + last)
                self._layer.read_into(at, part)

    def _from_device(self, offset: int, buffer: memoryview, begin: int, stop: int) -> None:
        at, part = _part(offset, buffer, begin, stop)
        self._device.read_into(at, part)

    def _from_undo(self, offset: int, buffer: memoryview, begin: int, sources: Sources, written: np.ndarray) -> None:
        saved = np.flatnonzero((sources.record >= 0) & ~written)
        if len(saved) == 0:
            return
        records, places = sources.record[saved], sources.place[saved]
        follows = (np.diff(saved) == 1) & (np.diff(records) == 0)
        follows &= ((places[:-1] < 0) & (places[1:] < 0)) | (
            (places[:-1] >= 0) & (np.diff(places) == UNDO_BLOCK_BYTES)
        )  # fmt: skip
        firsts = [0, *(np.flatnonzero(~follows) + 1).tolist()]
        for low, high in zip(firsts, [*firsts[1:], len(saved)], strict=True):
            first = begin + int(saved[low])
            at, part = _part(offset, buffer, first, first + high - low)
            place = int(places[low])
            if place < 0:
                part[:] = bytes(len(part))
                continue
            place += at - first * UNDO_BLOCK_BYTES
            part[:] = self._index.content(int(records[low]))[place : place + len(part)]

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """What may hold data, block by block; the rest reads as zeroes."""
        check_range(self.size_bytes, offset, length, "view")
        step = _SPAN_BLOCKS * UNDO_BLOCK_BYTES
        for start in range(offset, offset + length, step):
            found: list[tuple[int, int]] = []
            part = min(step, offset + length - start)
            self._again(lambda at=start, size=part, into=found: self._data_span(at, size, into))  # type: ignore[misc]
            yield from found

    def _data_span(self, offset: int, length: int, found: list[tuple[int, int]]) -> None:
        begin, stop = blocks_of(offset, length)
        written = self._layer.written(begin, stop) if self._layer is not None else np.zeros(stop - begin, np.bool_)
        known = self._index.sources(self.disk, begin, stop)
        while True:
            sources = known[1]
            filled = written | (sources.place >= 0)
            for first, last in _runs((sources.record < 0) & ~written):
                start = (begin + first) * UNDO_BLOCK_BYTES
                size = min((begin + last) * UNDO_BLOCK_BYTES, self.size_bytes) - start
                for place, count in self._device.data_ranges(start, size):
                    low, high = blocks_of(place, count)
                    filled[low - begin : high - begin] = True
            now = self._index.sources(self.disk, begin, stop, known)
            if now is known or now[1].same(sources):
                break
            known = now
        for first, last in _runs(filled):
            low = max(offset, (begin + first) * UNDO_BLOCK_BYTES)
            high = min(offset + length, (begin + last) * UNDO_BLOCK_BYTES)
            found.append((low, high - low))

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer) -> None:
        """Into the throw-away layer only. Raises OutOfSpaceError (its quota), NotSupportedError (a read-only view)."""
        check_range(self.size_bytes, offset, len(data), "view")
        layer = self._writable()
        if not len(data):
            return
        with self._writing:
            begin, stop = blocks_of(offset, len(data))
            start = begin * UNDO_BLOCK_BYTES
            end = min(stop * UNDO_BLOCK_BYTES, self.size_bytes)
            if (start, end) == (offset, offset + len(data)):
                layer.write(offset, memoryview(data))
                return
            whole = bytearray(end - start)
            view = memoryview(whole)
            self.read_into(start, view[:UNDO_BLOCK_BYTES])
            if end - start > UNDO_BLOCK_BYTES:
                last = (stop - 1) * UNDO_BLOCK_BYTES
                self.read_into(last, view[last - start :])
            whole[offset - start : offset - start + len(data)] = data
            layer.write(start, view)

    def zero(self, offset: int, length: int) -> None:
        """The layer hides what was there; whole blocks take no room."""
        check_range(self.size_bytes, offset, length, "view")
        layer = self._writable()
        end = offset + length
        low = min(-(-offset // UNDO_BLOCK_BYTES) * UNDO_BLOCK_BYTES, end)
        high = end if end == self.size_bytes else max(low, end // UNDO_BLOCK_BYTES * UNDO_BLOCK_BYTES)
        self.write(offset, bytes(low - offset))
        with self._writing:
            layer.zero(low, high - low)
        self.write(high, bytes(end - high))

    def discard(self, offset: int, length: int) -> None:
        self.zero(offset, length)

    def flush(self) -> None:
        """Nothing: the layer is thrown away."""

    def seal(self) -> None:
        """Read-only from now on, with what was written so far."""
        self._sealed = True

    def _writable(self) -> Layer:
        if self._layer is None or self._sealed:
            raise NotSupportedError("the view is read-only", code="ViewReadOnly", remedy="open it with --writable")
        return self._layer

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._layer is not None:
                self._layer.close()
            self.on_close()


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """[begin, stop) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _part(offset: int, buffer: memoryview, begin: int, stop: int) -> tuple[int, memoryview]:
    """The part of the buffer, which begins at ``offset``, that the blocks [begin, stop) fill; and where it lies on the disk."""
    low = max(begin * UNDO_BLOCK_BYTES, offset)
    high = min(stop * UNDO_BLOCK_BYTES, offset + len(buffer))
    return low, buffer[low - offset : high - offset]
