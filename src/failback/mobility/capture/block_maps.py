"""The maps that keep one byte (dirty, pending) or one generation (unlanded) for each 64 KiB block of the captured disks.

They are memory shared with the kernel program, which may set a dirty byte at any moment; one store of a byte is atomic.
Blocks are numbered globally here: a disk's block plus its base, which is a multiple of 4096. Scans run at memory speed
(``find``, comparison of whole pages), never byte by byte in Python.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping

from failback.mobility.capture.layout import BLOCKS_PER_PAGE, GENERATIONS_PER_PAGE, PAGE_BYTES
from failback.model.stream import BLOCK_BYTES
from failback.protocol.extents import EXTENT

_ZERO_PAGE = bytes(PAGE_BYTES)
_SCAN_BYTES = 1 << 20
Run = tuple[int, int]
"""(first global block, number of blocks)."""


class ByteMap:
    """``dirty`` or ``pending``: byte 1 means set."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def set_run(self, first: int, count: int) -> None:
        self._memory[first : first + count] = b"\x01" * count

    def clear_run(self, first: int, count: int) -> None:
        self._memory[first : first + count] = bytes(count)

    def any(self, first: int, count: int) -> bool:
        return self._memory.find(b"\x01", first, first + count) >= 0

    def count(self, first: int, count: int) -> int:
        end = first + count
        return sum(self._memory[at : min(at + _SCAN_BYTES, end)].count(1) for at in range(first, end, _SCAN_BYTES))

    def runs(self, first: int, count: int, limit: int) -> list[Run]:
        """The lowest set blocks in [first, first + count), at most ``limit`` of them, as runs of neighbours."""
        found: list[Run] = []
        at, end = first, first + count
        while limit > 0:
            at = self._memory.find(b"\x01", at, end)
            if at < 0:
                break
            beyond = self._memory.find(b"\x00", at, min(end, at + limit))
            if beyond < 0:
                beyond = min(end, at + limit)
            found.append((at, beyond - at))
            limit -= beyond - at
            at = beyond
        return found


class GenerationMap:
    """``unlanded``: two bytes a block, the generation of the last batch that holds it, 0 for none. Only user space writes."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("H")

    def set_run(self, first: int, count: int, generation: int) -> None:
        self._memory[first * 2 : (first + count) * 2] = generation.to_bytes(2, "little") * count

    def clear_run(self, first: int, count: int, generation: int) -> None:
        """Clear those blocks of the run that still carry this very generation."""
        wanted = generation.to_bytes(2, "little") * count
        if self._memory[first * 2 : (first + count) * 2] == wanted:
            self._memory[first * 2 : (first + count) * 2] = bytes(2 * count)
            return
        words = self._words
        for block in range(first, first + count):
            if words[block] == generation:
                words[block] = 0

    def set_extents(self, extents: bytes, bases: Mapping[int, int], generation: int) -> None:
        """The blocks of a packed extent table; ``bases``: where each disk begins in the map. An extent that lies in one block,
        as most small writes do, is one store."""
        words = self._words
        for disk, _, _, length, offset in EXTENT.iter_unpack(extents):
            base = bases[disk]
            first, last = base + offset // BLOCK_BYTES, base + (offset + length - 1) // BLOCK_BYTES
            if first == last:
                words[first] = generation
            else:
                self.set_run(first, last - first + 1, generation)

    def clear_extents(self, extents: bytes, bases: Mapping[int, int], generation: int) -> None:
        """Those of the extents' blocks that still carry this very generation."""
        words = self._words
        for disk, _, _, length, offset in EXTENT.iter_unpack(extents):
            base = bases[disk]
            first, last = base + offset // BLOCK_BYTES, base + (offset + length - 1) // BLOCK_BYTES
            if first != last:
                self.clear_run(first, last - first + 1, generation)
            elif words[first] == generation:
                words[first] = 0

    def clear_generations(self, first: int, count: int, low: int, high: int) -> None:
        wraps = low > high
        words = self._words
        for block, generation in self._set_blocks(first, count):
            inside = (generation >= low or generation <= high) if wraps else low <= generation <= high
            if inside:
                words[block] = 0

    def blocks(self, first: int, count: int) -> Iterator[int]:
        return (block for block, _ in self._set_blocks(first, count))

    def close(self) -> None:
        self._words.release()

    def _set_blocks(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        for page_first in range(first, first + count, GENERATIONS_PER_PAGE):
            size = min(GENERATIONS_PER_PAGE, first + count - page_first)
            page = self._memory[page_first * 2 : (page_first + size) * 2]
            if page == _ZERO_PAGE[: len(page)]:
                continue
            for index, generation in enumerate(memoryview(page).cast("H")):
                if generation:
                    yield page_first + index, generation


def as_runs(blocks: Iterable[int]) -> list[Run]:
    """Sorted block numbers as runs of neighbours."""
    found: list[Run] = []
    for block in blocks:
        if found and found[-1][0] + found[-1][1] == block:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found


def runs_told(first: int, blocks: int | bytes) -> list[Run]:
    """What a caller wants marked: so many blocks from ``first`` on, or those of a bitmap that begins there."""
    return [(first, blocks)] if isinstance(blocks, int) else as_runs(blocks_of_bitmap(first, blocks))


def blocks_of_bitmap(first: int, bitmap: bytes) -> list[int]:
    """Bit i of byte i // 8, least significant first, is block ``first + i``."""
    bits = int.from_bytes(bitmap, "little")
    found: list[int] = []
    while bits:
        lowest = bits & -bits
        found.append(first + lowest.bit_length() - 1)
        bits ^= lowest
    return found


def pages_for(blocks: int) -> int:
    return (blocks + BLOCKS_PER_PAGE - 1) // BLOCKS_PER_PAGE
