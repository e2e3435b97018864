"""Reading the kernel ring: walk the records in reservation order and gather them to extents, without copying data.

The walk stops at the first record that is still being filled (BUSY), because what lies after it is not a prefix of what the
machine wrote. Records of one bio become one extent, also when records of other processors lie between them; the place of
the first counts (bios that overlap while in flight are re-read anyway, D10). A bio is cut only when a mark or ``up_to`` cuts
it, or when the rest of it does not come (the ring was full): a cut inside a sector drops the torn sector and reports it.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from failback.errors import StorageError
from failback.mobility.capture.layout import (
    BUSY,
    DISCARDED,
    FLAG_FIRST,
    FLAG_LAST,
    LENGTH_MASK,
    PAGE_BYTES,
    RECORD,
    RECORD_BYTES,
    RECORD_MARK,
    SELF_TEST_DISK,
)
from failback.mobility.capture.libbpf import map_memory
from failback.mobility.capture.values import Collected
from failback.model.stream import Operation
from failback.protocol.extents import EXTENT, MAXIMUM_EXTENT_BYTES, SECTOR_BYTES

_DATA = int(Operation.DATA)
_OPEN_BIO_SECONDS = 0.05
_OPEN_BIO_BYTES = 32 << 20
_UNBOUNDED_BYTES = 1 << 63


@dataclass(slots=True)
class _Extent:
    disk: int
    operation: int
    offset: int
    length: int
    pieces: list[memoryview]


@dataclass(slots=True)
class _Walk:
    """State of one collect; the snapshot is what it was before the first bio that is still open."""

    position: int
    extents: list[_Extent] = field(default_factory=list)
    open_ends: dict[tuple[int, int], _Extent] = field(default_factory=dict)
    oldest_ktime_ns: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)
    snapshot: tuple[int, int, int, int] | None = None  # position, extents, length and pieces of the last of them


class Ring:
    """The mapped ring. ``cursor`` is where the next collect begins; ``consumed`` is what the kernel may overwrite."""

    def __init__(self, descriptor: int, size: int, disk_bytes: Mapping[int, int] | None = None) -> None:
        self.size = size
        self._disk_bytes = disk_bytes or {}
        """What lies behind is left out: the disk grew, and its new part is read when it is assigned."""
        self._mask = size - 1
        self._consumer = map_memory(descriptor, PAGE_BYTES, writable=True)
        self._producer = map_memory(descriptor, PAGE_BYTES + 2 * size, writable=False, offset=PAGE_BYTES)
        self._consumer_position = memoryview(self._consumer)[:8].cast("Q")
        self._producer_position = memoryview(self._producer)[:8].cast("Q")
        self._data = memoryview(self._producer)[PAGE_BYTES:]
        self.cursor = self.consumed()
        self.torn: list[tuple[int, int]] = []
        """(disk, offset) of sectors that a cut tore: the session marks their blocks dirty."""
        self._open_since: tuple[int, float] = (-1, 0.0)

    def produced(self) -> int:
        return self._producer_position[0]

    def consumed(self) -> int:
        return self._consumer_position[0]

    def release(self, position: int) -> None:
        if position > self.consumed():
            self._consumer_position[0] = position

    def close(self) -> None:
        for view in (self._consumer_position, self._producer_position, self._data):
            view.release()
        for memory in (self._consumer, self._producer):
            _close_memory(memory)

    def collect(self, limit_bytes: int, up_to: int | None) -> Collected | None:
        stop = self.produced()
        if up_to is not None:
            stop = min(stop, up_to)
        walk = _Walk(self.cursor)
        self._advance(walk, stop, limit_bytes)
        forced = bool(walk.marks) or walk.position == up_to
        if walk.open_ends and not forced:
            self._cut_before_open_bios(walk)
        if walk.position == self.cursor:
            return None
        first, self.cursor = self.cursor, walk.position
        return self._finish(first, walk)

    def find(self, position: int, content: bytes) -> list[tuple[int, bytes]]:
        """Records after ``position`` whose first sector occurs in ``content``: (where in it, data). Moves no cursor."""
        found: list[tuple[int, bytes]] = []
        end = self.produced()
        while position < end:
            size, _, _, _, length, operation, _, _, _ = RECORD.unpack_from(self._data, position & self._mask)
            if size & BUSY:
                break
            if not size & DISCARDED and operation == _DATA and length:
                at = (position & self._mask) + RECORD_BYTES
                data = bytes(self._data[at : at + length])
                where = content.find(data[:SECTOR_BYTES])
                if where >= 0:
                    found.append((where, data))
            position += ((size & LENGTH_MASK) + 15) & ~7
        return found

    def extents_from(self, position: int, end: int) -> tuple[int, list[tuple[int, int, int]]]:
        """(where the walk stopped, [(disk, offset, length)]) of the records from ``position``; order and data are of no interest.
        Raises BlockingIOError when the first of them is still being filled. Moves no cursor."""
        found: list[tuple[int, int, int]] = []
        while position < end:
            size, _, offset, _, length, operation, _, disk, extent_bytes = RECORD.unpack_from(
                self._data, position & self._mask
            )
            if size & BUSY:
                if not found:
                    raise BlockingIOError
                break
            if not size & DISCARDED and operation != RECORD_MARK and disk != SELF_TEST_DISK:
                found.append((disk, offset, length if operation == _DATA else extent_bytes))
            position += ((size & LENGTH_MASK) + 15) & ~7
        return position, found

    def next_ktime_ns(self, position: int) -> int | None:
        """CLOCK_MONOTONIC of the first write at or after ``position``; None: there is none yet, 0: it is still being recorded."""
        produced = self.produced()
        while position < produced:
            size, _, _, ktime, _, operation, _, disk, _ = RECORD.unpack_from(self._data, position & self._mask)
            if size & BUSY:
                return 0
            if not size & DISCARDED and operation != RECORD_MARK and disk != SELF_TEST_DISK:
                return int(ktime)
            position += ((size & LENGTH_MASK) + 15) & ~7
        return None

    def find_mark(self, position: int, number: int) -> int:
        """Where the mark's record lies, at or after ``position``; records of other writes may lie before it."""
        while position < self.produced():
            size, _, offset, _, _, operation, _, _, _ = RECORD.unpack_from(self._data, position & self._mask)
            if not size & (BUSY | DISCARDED) and operation == RECORD_MARK and offset == number:
                return position
            position += ((size & LENGTH_MASK) + 15) & ~7
        raise StorageError("the mark is not in the ring", code="CaptureFailed")

    def _advance(self, walk: _Walk, stop: int, limit_bytes: int) -> None:  # noqa: PLR0912 (the hot loop)
        data, mask, unpack = self._data, self._mask, RECORD.unpack_from
        position, soft, hard = walk.position, walk.position + limit_bytes, walk.position + limit_bytes + _OPEN_BIO_BYTES
        extents, open_ends = walk.extents, walk.open_ends
        oldest = 0
        last: _Extent | None = None
        while position < stop:
            if position >= soft and (not open_ends or position >= hard):
                break
            at = position & mask
            size, _, offset, ktime, length, operation, flags, disk, extent_bytes = unpack(data, at)
            if size & BUSY:
                break
            following = position + (((size & LENGTH_MASK) + 15) & ~7)
            if size & DISCARDED or disk == SELF_TEST_DISK:
                position = following
                continue
            if operation == RECORD_MARK:
                walk.marks.append((offset, position))
                position = following
                break
            if not oldest or ktime < oldest:
                oldest = ktime
            if operation != _DATA:
                last = _Extent(disk, operation, offset, extent_bytes, [])
                extents.append(last)
                position = following
                continue
            piece = data[at + RECORD_BYTES : at + RECORD_BYTES + length]
            if not flags & FLAG_LAST and not open_ends:
                walk.snapshot = (position, len(extents), last.length if last else 0, len(last.pieces) if last else 0)
            target = None if flags & FLAG_FIRST else open_ends.pop((disk, offset), None)
            if target is None and last is not None and last.offset + last.length == offset and last.disk == disk:
                joins = last.operation == _DATA and last.length + length <= MAXIMUM_EXTENT_BYTES
                if joins and not (open_ends and (disk, offset) in open_ends):  # an open bio's rest belongs there
                    target = last
            if target is None:
                target = last = _Extent(disk, _DATA, offset, length, [piece])
                extents.append(target)
            else:
                target.length += length
                target.pieces.append(piece)
            if not flags & FLAG_LAST:
                open_ends[(disk, offset + length)] = target
            position = following
        walk.position = position
        walk.oldest_ktime_ns = oldest

    def _cut_before_open_bios(self, walk: _Walk) -> None:
        """Go back to before the first unfinished bio, unless it has been unfinished for long: then its rest never comes."""
        assert walk.snapshot is not None
        position, extents, length, pieces = walk.snapshot
        now = time.monotonic()
        if self._open_since[0] != position:
            self._open_since = (position, now)
        if now - self._open_since[1] > _OPEN_BIO_SECONDS:
            return
        walk.position = position
        del walk.extents[extents:]
        if walk.extents and pieces:
            walk.extents[-1].length = length
            del walk.extents[-1].pieces[pieces:]

    def _finish(self, first: int, walk: _Walk) -> Collected:
        table: list[bytes] = []
        payload: list[memoryview | bytes] = []
        payload_bytes = 0
        for extent in walk.extents:
            if extent.offset + extent.length > self._disk_bytes.get(extent.disk, _UNBOUNDED_BYTES):
                self._clip(extent)
                if not extent.length:
                    continue
            if extent.operation == _DATA:
                if extent.offset % SECTOR_BYTES or extent.length % SECTOR_BYTES:
                    self._trim(extent)
                    if not extent.length:
                        continue
                payload.extend(extent.pieces)
                payload_bytes += extent.length
            table.append(EXTENT.pack(extent.disk, extent.operation, 0, extent.length, extent.offset))
        return Collected(
            first_position=first, end_position=walk.position, extents=b"".join(table), payload=payload,
            payload_bytes=payload_bytes, oldest_ktime_ns=walk.oldest_ktime_ns if table else 0, marks=tuple(walk.marks),
        )  # fmt: skip

    def _clip(self, extent: _Extent) -> None:
        """Leave out what lies behind the disk's known size. A whole number of sectors stays."""
        extent.length = left = max(0, self._disk_bytes[extent.disk] - extent.offset)
        pieces = []
        for piece in extent.pieces:
            part = piece[:left]
            left -= len(part)
            if len(part):
                pieces.append(part)
        extent.pieces = pieces

    def _trim(self, extent: _Extent) -> None:
        """Drop a torn sector at either end of an extent that a cut bio left, and report it."""
        head = -extent.offset % SECTOR_BYTES
        if head:
            self.torn.append((extent.disk, extent.offset))
        keep = max(0, extent.length - head)
        tail = keep % SECTOR_BYTES
        if tail:
            self.torn.append((extent.disk, extent.offset + extent.length - 1))
        keep -= tail
        pieces: list[memoryview] = []
        skip, left = head, keep
        for piece in extent.pieces:
            part = piece[skip:]
            skip = max(0, skip - len(piece))
            part = part[:left]
            left -= len(part)
            if len(part):
                pieces.append(part)
        extent.offset += head
        extent.length = keep
        extent.pieces = pieces


def _close_memory(memory: mmap.mmap) -> None:
    try:
        memory.close()
    except BufferError:  # views handed out are still alive: the mapping goes with the last of them
        return
