"""One round of fuzzy copy (D8): take dirty blocks, wait until every older write to them has completed, read them.

The order matters, and why it is this one stands in docs/capture.md: pending set, dirty cleared, p0 sampled, generation
raised, grace wait, read, end sampled. A write that enters the in-flight table with an older generation is waited for; one
that enters later has its ring record after p0 and wins over what is read here.

The wait is proved in either of two ways: the programs' counters of all older generations are zero, or no entry of an older
generation covers one of the blocks. A wait of 2 s without either proves nothing and gives the blocks back.
"""

from __future__ import annotations

import functools
import mmap
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import xxhash

from failback.mobility.capture import libbpf
from failback.mobility.capture.block_device import read_direct
from failback.mobility.capture.block_maps import Run
from failback.mobility.capture.layout import GENERATION_SLOTS, INFLIGHT
from failback.mobility.capture.pins import Control, DiskPlace
from failback.mobility.capture.values import Differing
from failback.model.stream import BLOCK_BYTES, ExtentFlag, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import DIGEST_BYTES

GRACE_SECONDS = 2.0
_FIRST_SLEEP_SECONDS = 0.0001
_LONGEST_SLEEP_SECONDS = 0.01
_SCAN_AFTER_SECONDS = 0.05
_SECTORS_PER_BLOCK = BLOCK_BYTES // 512
READ_SPAN_BYTES = 1 << 20
READERS = 8
"""Reads under way at once: a single one waits for the disk most of the time."""
MOST_BUFFERS = 6
_ZERO_BLOCK = bytes(BLOCK_BYTES)


@functools.cache
def _readers() -> Executor:
    """The threads that read a round's blocks."""
    return ThreadPoolExecutor(READERS, thread_name_prefix="re-reading")


def raise_generation(control: Control) -> tuple[int, bool]:
    """Begin a new generation; returns it and whether its counter starts from zero (else only a scan can prove the wait)."""
    generation = control.get("generation") + 1
    clean = control.slots("inflight", GENERATION_SLOTS)[generation % GENERATION_SLOTS] == 0
    control.set("generation", generation)
    return generation, clean


def older_writes_done(control: Control, inflight_map: int, generation: int, clean: bool, runs: Sequence[Run]) -> bool:
    """Wait, at most GRACE_SECONDS, until no write of an older generation to these blocks is in flight."""
    deadline = time.monotonic() + GRACE_SECONDS
    scan_at = time.monotonic() + (_SCAN_AFTER_SECONDS if clean else 0.0)
    sleep = _FIRST_SLEEP_SECONDS
    while True:
        slots = control.slots("inflight", GENERATION_SLOTS)
        slots[generation % GENERATION_SLOTS] = 0
        if clean and not any(slots):
            return True
        now = time.monotonic()
        if now >= scan_at:
            if not older_entries(inflight_map, generation, runs):
                return True
            scan_at = now + _SCAN_AFTER_SECONDS
        if now >= deadline:
            return False
        time.sleep(sleep)
        sleep = min(2 * sleep, _LONGEST_SLEEP_SECONDS)


def older_entries(inflight_map: int, generation: int, runs: Sequence[Run] | None) -> list[tuple[int, int, int]]:
    """In-flight writes (address, generation, global first sector) of other generations, to these blocks or to any."""
    found: list[tuple[int, int, int]] = []
    for key, value in libbpf.hash_elements(inflight_map, 8, INFLIGHT.size):
        parent, sector, base, size, left, born, _ = INFLIGHT.unpack(value)
        if parent or not left or born == generation & 0xFFFF_FFFF:
            continue
        first = base * _SECTORS_PER_BLOCK + sector
        if runs is None or _touches(runs, first, size >> 9):
            found.append((int.from_bytes(key, "little"), born, first))
    return found


def _touches(runs: Sequence[Run], first_sector: int, sectors: int) -> bool:
    first, last = first_sector // _SECTORS_PER_BLOCK, (first_sector + sectors - 1) // _SECTORS_PER_BLOCK
    return any(start <= last and first < start + count for start, count in runs)


class ReadBuffers:
    """Page-aligned memory for rounds: several may be under way (being compressed), and each is used again for a later one."""

    def __init__(self) -> None:
        self._free: deque[mmap.mmap] = deque(maxlen=MOST_BUFFERS)

    def take(self, length: int) -> mmap.mmap:
        while self._free:
            memory = self._free.pop()
            if len(memory) >= length:
                return memory
        return mmap.mmap(-1, max(length, BLOCK_BYTES))

    def give_back(self, memory: mmap.mmap) -> None:
        """Nothing in it is needed any more. From any thread."""
        self._free.append(memory)

    def forget(self) -> None:
        """Nothing is to be read for now."""
        self._free.clear()


class Gathered:
    """Extents and payload of the blocks read in one round into ``memory``."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._view = memoryview(memory)
        self._rows: list[tuple[int, Operation, int, int]] = []
        self._parts: list[tuple[int, int]] = []
        self.payload_bytes = 0
        self.unreadable: list[tuple[int, int, int]] = []

    @property
    def payload(self) -> list[memoryview | bytes]:
        return [self._view[begin:end] for begin, end in self._parts]

    def read_runs(self, taken: Iterable[tuple[DiskPlace, Run, int]]) -> None:
        """Read runs of blocks (with the disk's descriptor), one behind the other; each block lies on a page's border."""
        jobs: list[tuple[int, int, int, memoryview]] = []
        at = 0
        for place, run, descriptor in taken:
            offset = (run[0] - place.base_block) * BLOCK_BYTES
            length = min(run[1] * BLOCK_BYTES, place.disk.size_bytes - offset)
            for done in range(0, length, READ_SPAN_BYTES):
                size = min(READ_SPAN_BYTES, length - done)
                jobs.append((place.disk.index, descriptor, offset + done, self._view[at + done : at + done + size]))
            at += run[1] * BLOCK_BYTES
        at = 0
        for (disk, _, offset, part), (holes, zero) in zip(jobs, _readers().map(_read_span, jobs), strict=True):
            self.unreadable += [(disk, hole, size) for hole, size in holes]
            for number, is_zero in enumerate(zero):
                first = number * BLOCK_BYTES
                size = min(BLOCK_BYTES, len(part) - first)
                self._take(disk, (offset + first, size), at + first, is_zero, holes)
            at += -(-len(part) // BLOCK_BYTES) * BLOCK_BYTES

    def read_differing(self, blocks: Iterable[tuple[DiskPlace, int, Differing]]) -> None:
        """Read the blocks (with their descriptors); take over the pieces that differ from the replica's."""
        view = self._view
        jobs = []
        for number, (place, descriptor, wanted) in enumerate(blocks):
            offset = wanted.block * BLOCK_BYTES
            size = min(BLOCK_BYTES, place.disk.size_bytes - offset)
            content = view[number * BLOCK_BYTES : number * BLOCK_BYTES + size]
            jobs.append((descriptor, offset, content, wanted))
        answers = _readers().map(_read_and_compare, jobs)
        for number, ((_, offset, content, wanted), (holes, pieces)) in enumerate(zip(jobs, answers, strict=True)):
            self.unreadable += [(wanted.disk_index, hole, size) for hole, size in holes]
            for at, size in pieces:
                is_zero = _is_zero(content[at : at + size])
                self._take(wanted.disk_index, (offset + at, size), number * BLOCK_BYTES + at, is_zero, holes)

    def _take(self, disk: int, block: Run, at: int, is_zero: bool, holes: Sequence[tuple[int, int]]) -> None:
        """What was read to ``at``: all zero becomes a ZERO extent, holes are left out, all else is DATA."""
        offset, size = block
        if any(hole < offset + size and offset < hole + hole_size for hole, hole_size in holes):
            for first, count in _without(offset, size, holes):
                self._add(disk, Operation.DATA, first, count)
                self._append(at + first - offset, count)
        elif is_zero:
            self._add(disk, Operation.ZERO, offset, size)
        else:
            self._add(disk, Operation.DATA, offset, size)
            self._append(at, size)

    def _add(self, disk: int, operation: Operation, offset: int, length: int) -> None:
        if self._rows:
            last = self._rows[-1]
            if last[0] == disk and last[1] == operation and last[2] + last[3] == offset:
                self._rows[-1] = (disk, operation, last[2], last[3] + length)
                return
        self._rows.append((disk, operation, offset, length))

    def _append(self, at: int, size: int) -> None:
        self.payload_bytes += size
        if self._parts and self._parts[-1][1] == at:
            self._parts[-1] = (self._parts[-1][0], at + size)
        else:
            self._parts.append((at, at + size))

    def table(self) -> bytes:
        flag = int(ExtentFlag.REREAD)
        return b"".join(
            EXTENT.pack(disk, operation, flag, length, offset) for disk, operation, offset, length in self._rows
        )


def _is_zero(content: memoryview) -> bool:
    """Copies: comparing a view goes byte by byte."""
    return bytes(content[:64]) == _ZERO_BLOCK[: len(content[:64])] and bytes(content) == _ZERO_BLOCK[: len(content)]


def _read_span(job: tuple[int, int, int, memoryview]) -> tuple[list[tuple[int, int]], list[bool]]:
    """What could not be read, as ``read_direct`` tells it, and which of the blocks are all zero."""
    _, descriptor, offset, part = job
    holes = read_direct(descriptor, part, offset)
    return holes, [_is_zero(part[at : at + BLOCK_BYTES]) for at in range(0, len(part), BLOCK_BYTES)]


def _read_and_compare(
    job: tuple[int, int, memoryview, Differing],
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What could not be read, as ``read_direct`` tells it, and the (place, size) of the block's pieces that differ."""
    descriptor, offset, content, wanted = job
    holes = read_direct(descriptor, content, offset)
    if holes:
        return holes, [(0, len(content))]
    found = []
    for number, at in enumerate(range(0, len(content), wanted.piece_bytes)):
        piece = content[at : at + wanted.piece_bytes]
        theirs = wanted.pieces[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        if xxhash.xxh3_128_digest(piece, wanted.key) != theirs:
            found.append((at, len(piece)))
    return [], found


def _without(start: int, size: int, holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of [start, start + size) outside the holes, which are sorted."""
    parts: list[tuple[int, int]] = []
    at = start
    for hole, hole_size in holes:
        if hole > at and hole < start + size:
            parts.append((at, hole - at))
        if hole + hole_size > at and hole < start + size:
            at = hole + hole_size
    if at < start + size:
        parts.append((at, start + size - at))
    return parts
