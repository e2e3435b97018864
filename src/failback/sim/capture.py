"""The production capture session on a simulated kernel.

Everything that decides (taking dirty blocks, pending, generations, grace waits, unlanded map) is the real code of
``mobility.capture``; replaced are the mapped memories, the ring's parser and the device reads. Every access to shared
memory gives the machine's other processors a chance to run.
"""

from __future__ import annotations

import mmap
import threading
from typing import Any, cast

from failback.mobility.capture import block_maps, rereading
from failback.mobility.capture.layout import CALL, CALL_MARK
from failback.mobility.capture.session import CaptureSession
from failback.mobility.capture.values import Collected
from failback.mobility.hashing import SPAN_BYTES, BlockHasher
from failback.model.stream import Operation
from failback.protocol.extents import EXTENT
from failback.sim.kernel import Machine, Record


class SimulatedControl:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def get(self, name: str) -> int:
        self._machine.preempt()
        return self._machine.word(name)

    def set(self, name: str, value: int) -> None:
        self._machine.words[name] = value
        self._machine.preempt()

    def slots(self, name: str, count: int) -> list[int]:
        self._machine.preempt()
        return list(self._machine.slots)


class SimulatedRing:
    """One process's view; ``cursor`` is lost with it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._ring = machine.ring
        self.size = self._ring.size
        self.cursor = self._ring.consumed
        self.torn: list[tuple[int, int]] = []

    def produced(self) -> int:
        self._machine.preempt()
        return self._ring.produced

    def consumed(self) -> int:
        return self._ring.consumed

    def release(self, position: int) -> None:
        self._ring.consumed = max(self._ring.consumed, position)

    def next_ktime_ns(self, position: int) -> int | None:
        for record in self._ring.records:
            if record.start >= position and (record.busy or record.operation is not None):
                return 0 if record.busy else record.ktime_ns
        return None

    def find_mark(self, position: int, number: int) -> int:
        found = [r for r in self._ring.records if r.operation is None and r.offset == number and r.start >= position]
        return found[0].start

    def close(self) -> None:
        return

    def collect(self, limit_bytes: int, up_to: int | None) -> Collected | None:
        taken: list[Record] = []
        marks: list[tuple[int, int]] = []
        stop = self._ring.produced if up_to is None else min(self._ring.produced, up_to)
        position = self.cursor
        for record in self._ring.records:
            if record.start < self.cursor:
                continue
            whole = not taken or taken[-1].last
            if record.start >= stop or record.busy or (position - self.cursor >= limit_bytes and whole):
                break
            position = record.end
            taken.append(record)
            if record.operation is None:
                marks.append((record.offset, record.start))
                break
        while taken and not taken[-1].last and not marks and position != up_to:
            position = taken.pop().start
        if position == self.cursor:
            return None
        first, self.cursor = self.cursor, position
        return _collected(first, position, [r for r in taken if r.operation is not None], marks)


def _collected(first: int, end: int, records: list[Record], marks: list[tuple[int, int]]) -> Collected:
    table = b"".join(EXTENT.pack(r.disk, int(r.operation or 0), 0, r.length, r.offset) for r in records)
    payload = [record.data for record in records if record.operation is Operation.DATA]
    oldest = min((record.ktime_ns for record in records), default=0)
    return Collected(first, end, table, payload, sum(map(len, payload)), oldest, tuple(marks))


class _Parts:
    def __init__(self, machine: Machine) -> None:
        self.maps: dict[str, Any] = {"inflight": machine}


class SimulatedSession(CaptureSession):
    """Made as :meth:`CaptureSession.open` does when the agent starts."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.reattached = machine.captured
        machine.captured = True
        self._parts = cast(Any, _Parts(machine))
        self._control = cast(Any, SimulatedControl(machine))
        self._places = list(machine.places)
        self._by_index = {place.disk.index: place for place in machine.places}
        self._bases = {place.disk.index: place.base_block for place in machine.places}
        self._ring = cast(Any, SimulatedRing(machine))
        self._dirty = block_maps.ByteMap(cast(Any, machine.dirty))
        self._pending = block_maps.ByteMap(cast(Any, machine.pending))
        self._unlanded = block_maps.GenerationMap(cast(Any, machine.unlanded))
        self._readers = {place.disk.index: place.disk.index for place in machine.places}
        self._buffers = rereading.ReadBuffers()
        self._pending_owner = {}
        self._stuck_since = {}
        self._fence = threading.Lock()
        if self.reattached:
            self._recover_pending()

    @property
    def ring_id(self) -> int:
        return self._machine.ring.ring_id

    @property
    def outgrown(self) -> bool:
        return False

    def close(self) -> None:
        self._unlanded.close()

    def _recursion_misses(self) -> int:
        return self._machine.misses

    def _call(self, kind: int, argument: int, a: int = 0, b: int = 0, c: int = 0) -> bytes:
        full = kind == CALL_MARK and not self._machine.put_mark(argument)
        return CALL.pack(kind, argument, int(full), a, b, c)


class SimulatedHasher(BlockHasher):
    """Reads the simulated disk; hashing is the real one."""

    machine: Machine

    def __init__(self, device: str, size_bytes: int, key: int) -> None:
        self._size, self._key, self._descriptor = size_bytes, key, -1
        self._buffer = mmap.mmap(-1, SPAN_BYTES)
        self._view = memoryview(self._buffer)
        self._index = int(device.removeprefix("/dev/sim"))

    def _read_span(self, place: int, begin: int, length: int) -> bool:
        self._view[place : place + length] = self.machine.disks[self._index][begin : begin + length]
        self.machine.preempt()
        return True

    def close(self) -> None:
        self._view.release()
        self._buffer.close()


def read_device(machine: Machine, index: int, buffer: memoryview, offset: int) -> list[tuple[int, int]]:
    """``block_device.read_direct``: piece by piece, while writes go on."""
    for at in range(0, len(buffer), 16384):
        machine.preempt()
        size = min(16384, len(buffer) - at)
        buffer[at : at + size] = machine.disks[index][offset + at : offset + at + size]
    return []
