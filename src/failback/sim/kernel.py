"""The captured machine: disks, writes in flight, and what the eBPF programs leave in ring, maps and counters.

A write goes through the steps of the real programs one by one (``bpf/capture.bpf.c``): entered into the in-flight table,
checked against the dirty map, recorded or marked, on the device, completed. Between any two of them the agent may run,
and between any two accesses of the agent to shared memory writes go on (:meth:`Machine.preempt`). ``history`` keeps every
write in the order of the ring: what the disks hold at a ring position is computed from it (``invariants``).
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from failback.mobility.capture.layout import GENERATION_SLOTS, INFLIGHT
from failback.mobility.capture.pins import DiskPlace, places
from failback.mobility.capture.values import CaptureDisk
from failback.model.stream import BLOCK_BYTES, Operation

SECTOR = 512
HEADER_BYTES = 48


@dataclass(slots=True)
class Record:
    start: int
    end: int
    operation: Operation | None
    """None: a mark, whose number is ``offset``."""
    disk: int
    offset: int
    data: bytes
    length: int
    ktime_ns: int
    last: bool
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the history. ``silent``: not in the ring; then ``position`` is where the ring ended at that moment."""

    position: int
    silent: bool
    disk: int
    offset: int
    data: bytes


@dataclass(slots=True)
class Write:
    key: int
    place: DiskPlace
    offset: int
    data: bytes
    operation: Operation
    generation: int
    step: str = "entered"
    skip: bool = False
    overlaps: bool = False
    over_missed: bool = False
    """A write that no program saw went to the same sectors after this one was recorded, and before it reaches the device."""
    fails: bool = False
    on_device: bool = False

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(slots=True)
class Ring:
    """One boot's ring and the disks' content when it was made."""

    ring_id: int
    size: int
    before: dict[int, bytes]
    records: deque[Record] = field(default_factory=deque)
    history: list[Change] = field(default_factory=list)
    produced: int = 0
    consumed: int = 0


class Machine:
    """``wish`` in 0..1: how eager the load is; 0 stops new writes."""

    def __init__(self, chance: random.Random, sizes: tuple[int, ...], clock: Callable[[], float]) -> None:
        self.chance = chance
        self.clock = clock
        self.disks = {index: bytearray(size) for index, size in enumerate(sizes)}
        self.places = places(
            [CaptureDisk(index, f"/dev/sim{index}", size) for index, size in enumerate(sizes)],
            [*range(len(sizes))],
            [0] * len(sizes),
        )
        self.ring_bytes = chance.choice((1 << 15, 1 << 17, 1 << 20))
        self.wish = 0.0
        self.most_in_flight = chance.choice((1, 4, 16))
        self.hot = chance.random() < 0.3
        self.failing = chance.choice((0.0, 0.0, 0.01))
        self.written = 0
        self.torn_overlaps = False
        """Programs of overlapping writes may be interrupted between entering the in-flight table and the ring (D10)."""
        self._ring_number = 0
        self._next_key = 1
        self._inside = False
        for disk in self.disks.values():
            for block in range(0, len(disk), BLOCK_BYTES):
                if chance.random() < 0.6:
                    disk[block : block + SECTOR] = chance.randbytes(SECTOR)
        self.boot()

    # --- life -------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """A new boot: nothing of the capture is left (D11)."""
        self._ring_number += 1
        self.ring = Ring(self._ring_number, self.ring_bytes, {i: bytes(d) for i, d in self.disks.items()})
        blocks = max(place.base_block for place in self.places) + 4096
        self.dirty, self.pending, self.unlanded = bytearray(blocks), bytearray(blocks), bytearray(2 * blocks)
        self.words: dict[str, int] = {"generation": 1}
        self.slots = [0] * GENERATION_SLOTS
        self.in_flight: dict[int, Write] = {}
        self.misses = 0
        self.captured = False

    def crash(self) -> None:
        """Power is lost: each write in flight reached its device or did not, sector by sector."""
        for write in self.in_flight.values():
            if not write.on_device:
                for at in range(0, len(write.data), SECTOR):
                    if self.chance.random() < 0.5:
                        first = write.offset + at
                        self.disks[write.place.disk.index][first : first + SECTOR] = write.data[at : at + SECTOR]
        self.boot()

    # --- what happens by itself -------------------------------------------------------------------------------------

    def preempt(self) -> None:
        """Other processors run for a moment."""
        if not self._inside and self.chance.random() < 0.15:
            self.run(self.chance.randint(1, 3))

    def run(self, steps: int) -> None:
        self._inside = True
        try:
            for _ in range(steps):
                self._step()
        finally:
            self._inside = False

    def settle(self) -> None:
        """Let everything in flight complete."""
        wish, self.wish = self.wish, 0.0
        for _ in range(10_000):
            if not self.in_flight and not any(record.busy for record in self.ring.records):
                break
            self.run(1)
        self.wish = wish

    def _step(self) -> None:
        for record in self.ring.records:
            if record.busy and self.chance.random() < 0.7:
                record.busy = False
        if self.wish > self.chance.random() and len(self.in_flight) < self.most_in_flight:
            self._enter(*self._choose())
        elif self.in_flight:
            write = self.in_flight[self.chance.choice([*self.in_flight])]
            self._advance(write)

    def _choose(self) -> tuple[DiskPlace, int, bytes, Operation]:
        chance = self.chance
        place = chance.choice(self.places)
        size = place.disk.size_bytes
        length = SECTOR * chance.choice((1, 1, 1, 8, 8, 16, 40))
        if self.hot and chance.random() < 0.7:
            offset = SECTOR * chance.randint(0, 24)
        else:
            offset = SECTOR * chance.randint(0, (size - length) // SECTOR)
        roll = chance.random()
        if roll < 0.08:
            return place, offset, bytes(length), Operation.ZERO
        return place, offset, chance.randbytes(SECTOR) * (length // SECTOR), Operation.DATA

    # --- a write's steps --------------------------------------------------------------------------------------------

    def _enter(self, place: DiskPlace, offset: int, data: bytes, operation: Operation) -> None:
        if not self.torn_overlaps:
            for other in [*self.in_flight.values()]:
                while other.place is place and other.offset < offset + len(data) and offset < other.end:
                    if other.step == "submitted":
                        break
                    self._advance(other)
        self.written += 1
        generation = self.word("generation")
        write = Write(self._next_key, place, offset, data, operation, generation)
        self._next_key += 1
        write.fails = self.chance.random() < self.failing
        for other in self.in_flight.values():
            if other.place is place and other.offset < write.end and offset < other.end:
                write.overlaps = other.overlaps = True
        self.in_flight[write.key] = write
        self.slots[generation % GENERATION_SLOTS] += 1
        if write.overlaps:
            self.count("overlaps")
            self.mark_overlap(write)
        while write.overlaps and write.step != "submitted" and not self.torn_overlaps:
            self._advance(write)

    def _advance(self, write: Write) -> None:
        if write.step == "entered":
            write.skip = bool(self.word("degraded")) and self._any_dirty(write)
            write.step = "checked"
        elif write.step == "checked":
            self._record(write)
            write.step = "submitted"
        elif not write.on_device:
            self._reach_device(write)
        else:
            self._complete(write)

    def _record(self, write: Write) -> None:
        place, disk = write.place, write.place.disk.index
        if write.skip:
            self.count("skipped")
            self.mark(place, write.offset, len(write.data))
            self._silently(disk, write.offset, write.data)
            return
        half = len(write.data) // 2 // SECTOR * SECTOR
        cuts = [0, half, len(write.data)] if half and self.chance.random() < 0.3 else [0, len(write.data)]
        for first, last in itertools.pairwise(cuts):
            offset, data = write.offset + first, write.data[first:last]
            size = HEADER_BYTES + (len(data) if write.operation is Operation.DATA else 0)
            if not self._put(write.operation, disk, offset, data, size, last == len(write.data)):
                self.mark(place, offset, len(data))
                self.count("drops")
                self._silently(disk, offset, data)

    def _put(self, operation: Operation | None, disk: int, offset: int, data: bytes, size: int, last: bool) -> bool:  # noqa: PLR0917
        ring = self.ring
        if ring.produced + size - ring.consumed > ring.size:
            return False
        while ring.records and ring.records[0].end <= ring.consumed:
            ring.records.popleft()
        busy = operation is not None and self.chance.random() < 0.1
        record = Record(ring.produced, ring.produced + size, operation, disk, offset, data, len(data),
                        int(self.clock() * 1e9), last, busy)  # fmt: skip
        ring.records.append(record)
        ring.produced = record.end
        if operation is not None:
            ring.history.append(Change(record.end, False, disk, offset, data))
        return True

    def put_mark(self, number: int) -> bool:
        return self._put(None, 0, number, b"", HEADER_BYTES, True)

    def _silently(self, disk: int, offset: int, data: bytes) -> None:
        self.ring.history.append(Change(self.ring.produced, True, disk, offset, data))

    def _reach_device(self, write: Write) -> None:
        disk = self.disks[write.place.disk.index]
        before = bytes(disk[write.offset : write.end])
        if not write.fails:
            disk[write.offset : write.end] = write.data
        write.on_device = True
        if write.fails:
            self._silently(write.place.disk.index, write.offset, before)
        elif write.overlaps or write.over_missed:
            self._silently(write.place.disk.index, write.offset, write.data)

    def _complete(self, write: Write) -> None:
        if write.fails:
            self.mark(write.place, write.offset, len(write.data))
            self.count("write_errors")
        if write.overlaps:
            self.mark_overlap(write)  # a round may have taken the blocks before its record
        self.slots[write.generation % GENERATION_SLOTS] -= 1
        del self.in_flight[write.key]

    def miss(self) -> None:
        """A write that no program saw (D9: ``recursion_misses``)."""
        place, offset, data, _ = self._choose()
        self.misses += 1
        self.disks[place.disk.index][offset : offset + len(data)] = data
        self._silently(place.disk.index, offset, data)
        for write in self.in_flight.values():
            if (
                write.place == place
                and not write.on_device
                and write.offset < offset + len(data)
                and offset < write.end
            ):
                write.over_missed = True

    # --- maps and words ---------------------------------------------------------------------------------------------

    def word(self, name: str) -> int:
        return self.words.get(name, 0)

    def count(self, name: str) -> None:
        self.words[name] = self.word(name) + 1

    def _blocks(self, place: DiskPlace, offset: int, length: int) -> range:
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        return range(place.base_block + first, place.base_block + last + 1)

    def mark(self, place: DiskPlace, offset: int, length: int) -> None:
        for block in self._blocks(place, offset, length):
            self.dirty[block] = 1
        self.words["degraded"] = 1

    def mark_overlap(self, write: Write) -> None:
        """Which of two overlapping writes reached the device last is not known: the blocks are read again (D10)."""
        self.mark(write.place, write.offset, len(write.data))

    def _any_dirty(self, write: Write) -> bool:
        return any(self.dirty[block] for block in self._blocks(write.place, write.offset, len(write.data)))

    def elements(self) -> list[tuple[bytes, bytes]]:
        """The in-flight table as the programs lay it out."""
        return [
            (write.key.to_bytes(8, "little"),
             INFLIGHT.pack(0, write.offset // SECTOR, write.place.base_block, len(write.data), len(write.data),
                           write.generation & 0xFFFF_FFFF, 0))
            for write in self.in_flight.values()
        ]  # fmt: skip
