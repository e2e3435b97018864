"""A source without captured writes, for machines whose kernel cannot be captured: only comparing tells what changed.

It offers what the stream asks of a session (``source.Source``). Its positions are numbers that grow with each round of
reading and each mark; nothing lies between them. Nothing outlives the process: after a start every disk is compared. The one
thing that decides whether a place of such a stream is a state that the disks had is ``stillness``.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from failback.errors import NotSupportedError
from failback.mobility.capture import block_maps, pins, rereading
from failback.mobility.capture.block_device import check_disk, device_sequence
from failback.mobility.capture.layout import PAGE_BYTES
from failback.mobility.capture.pins import DiskPlace
from failback.mobility.capture.stillness import Stillness
from failback.mobility.capture.values import CaptureDisk, Collected, Counters, Differing, Reread, SelfTest
from failback.model.stream import BLOCK_BYTES

NO_COUNTERS = Counters(**dict.fromkeys(Counters.__slots__, 0))
STEP = 8
"""Positions grow as those of a ring do: by whole words."""


class ComparisonSession:
    """One worker thread uses it, as any source. ``stillness`` is asked by :meth:`as_of_ns`, after each batch's end."""

    reattached = False
    ring_bytes = 0
    predecessor_ring = 0

    def __init__(self, places: Sequence[DiskPlace]) -> None:
        self.ring_id = secrets.randbits(53) | 1 << 53  # never the number of a ring
        self._places = list(places)
        self._by_index = {place.disk.index: place for place in places}
        last = places[-1]
        self._memory = mmap.mmap(-1, max(PAGE_BYTES, last.base_block + last.blocks))
        self._dirty = block_maps.ByteMap(self._memory)
        self._open = 0
        """Blocks taken by rounds that are not durable yet."""
        self._produced = self._cursor = 0
        self._buffers = rereading.ReadBuffers()
        self._readers = {place.disk.index: os.open(place.disk.device, os.O_RDONLY | os.O_DIRECT) for place in places}
        self.stillness = Stillness([place.disk.device for place in places], [place.disk.size_bytes for place in places])

    @classmethod
    def open(cls, disks: Sequence[CaptureDisk]) -> ComparisonSession:
        """Raises NotSupportedError, ConfigurationError (a partition, a wrong size)."""
        numbers = [check_disk(disk) for disk in disks]
        places = pins.places(disks, numbers, [device_sequence(number) for number in numbers])
        return cls(places)

    def close(self) -> None:
        for descriptor in self._readers.values():
            os.close(descriptor)
        self._readers = {}
        self._memory.close()

    def detach(self) -> None:
        self.close()

    def self_test(self, scratch_directory: Path | None = None) -> SelfTest:
        """Whether the kernel counts what is read from each disk."""
        memory = mmap.mmap(-1, PAGE_BYTES)
        for place in self._places:
            still = Stillness([place.disk.device], [PAGE_BYTES])
            before = still.read_sectors()
            os.preadv(self._readers[place.disk.index], [memory], 0)
            if still.read_sectors() <= before:
                return SelfTest(
                    False, f"the kernel does not count what is read from {place.disk.device} (queue/iostats)"
                )
        return SelfTest(True, "the kernel counts what is read and written")

    # --- positions --------------------------------------------------------------------------------------------------

    def is_carried(self, disk_index: int) -> bool:
        return False

    def replaced(self) -> list[str]:
        return [place.disk.device for place in self._places if device_sequence(place.number) != place.sequence]

    @property
    def outgrown(self) -> bool:
        return any(
            os.lseek(self._readers[place.disk.index], 0, os.SEEK_END) > place.disk.size_bytes for place in self._places
        )

    def produced_position(self) -> int:
        return self._produced

    def cursor(self) -> int:
        return self._cursor

    def as_of_ns(self) -> int:
        return self.stillness.still_ns()

    def collect(self, limit_bytes: int, *, up_to: int | None = None) -> Collected | None:
        end = self._produced if up_to is None else up_to
        if end <= self._cursor:
            return None
        first, self._cursor = self._cursor, end
        self._produced = max(self._produced, end)
        return Collected(first, end, b"", (), 0, 0, ())

    def release(self, position: int) -> None:
        """There is no ring whose room could be given back."""

    def put_mark(self, number: int) -> int:
        self._produced += STEP
        return self._produced

    def counters(self) -> Counters:
        return NO_COUNTERS

    def missed(self) -> int:
        return 0

    def acknowledge_missed(self, number: int) -> None:
        """Nothing is ever told as missed: everything is."""

    # --- reading again ----------------------------------------------------------------------------------------------

    def mark_dirty(self, disk_index: int, first_block: int, blocks: int | bytes) -> None:
        place = self._by_index[disk_index]
        runs = block_maps.runs_told(first_block, blocks)
        for first, count in runs:
            if first < place.blocks:
                self._dirty.set_run(place.base_block + first, min(count, place.blocks - first))

    def dirty_blocks(self) -> int:
        return self._open + sum(self._dirty.count(place.base_block, place.blocks) for place in self._places)

    def reread(self, limit_blocks: int) -> Reread | None:
        taken: list[tuple[DiskPlace, block_maps.Run]] = []
        for place in self._places:
            for run in self._dirty.runs(place.base_block, place.blocks, limit_blocks):
                taken.append((place, run))
                limit_blocks -= run[1]
            if limit_blocks <= 0:
                break
        if not taken:
            return None
        for _, run in taken:
            self._dirty.clear_run(*run)
        blocks = tuple(
            (place.disk.index, block - place.base_block) for place, run in taken for block in range(run[0], sum(run))
        )
        self._open += len(blocks)
        p0 = self._step()
        gathered = rereading.Gathered(memory := self._buffers.take(len(blocks) * BLOCK_BYTES))
        gathered.read_runs([(place, run, self._readers[place.disk.index]) for place, run in taken])
        return Reread(p0, self._produced, gathered.table(), gathered.payload, gathered.payload_bytes, blocks, True, "",
                      tuple(gathered.unreadable), memory=memory)  # fmt: skip

    def reread_differing(self, wanted: Sequence[Differing]) -> Reread:
        blocks = sorted(wanted, key=lambda one: (one.disk_index, one.block))
        p0 = self._step()
        gathered = rereading.Gathered(memory := self._buffers.take(len(blocks) * BLOCK_BYTES))
        gathered.read_differing(
            [(self._by_index[one.disk_index], self._readers[one.disk_index], one) for one in blocks]
        )
        return Reread(p0, self._produced, gathered.table(), gathered.payload, gathered.payload_bytes, (), True, "",
                      tuple(gathered.unreadable), 0, wanted, memory)  # fmt: skip

    def _step(self) -> int:
        self._produced += STEP
        return self._produced

    def give_back(self, reread: Reread) -> None:
        if reread.memory is not None:
            self._buffers.give_back(reread.memory)

    def forget_buffers(self) -> None:
        self._buffers.forget()

    def reread_durable(self, reread: Reread) -> None:
        self._open -= len(reread.blocks)

    # --- unlanded blocks: after a lost server everything is compared, so nobody has to remember them --------------------

    def set_unlanded(self, extents: bytes, generation: int) -> None:
        """Not kept."""

    def clear_unlanded(self, extents: bytes, generation: int) -> None:
        """Not kept."""

    def clear_unlanded_generations(self, low: int, high: int) -> None:
        """Not kept."""

    def mark_unlanded_dirty(self) -> int:
        return 0


def too_long(comparison_seconds: float, limit_seconds: float) -> NotSupportedError:
    """The machine would have to be held still for longer than it may."""
    return NotSupportedError(
        f"a comparison of the disks takes {comparison_seconds:.0f} s, the machine may be held still for {limit_seconds:.0f} s",
        code="ComparisonTooLong",
        possible_causes="writes of this machine cannot be captured: only a comparison while nothing writes is consistent",
        remedy="allow a longer time (freeze lease), or do it when the machine is at rest",
    )
