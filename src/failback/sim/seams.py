"""Where the simulation takes the place of the world outside: clocks, chance, threads, kernel and disk reads.

All of it in one context manager, so that production code needs to know nothing. Sizes that decide when things happen
are drawn by the seed here too, so that small worlds meet large borders.
"""

from __future__ import annotations

import random
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from failback.journal import applier, journal, recent_redo
from failback.journal import format as journal_format
from failback.mobility import comparing, passes, stream
from failback.mobility.capture import libbpf, rereading, session
from failback.process_server import recent, spool
from failback.runtime import faults
from failback.sim.capture import SimulatedHasher, read_device
from failback.sim.kernel import Machine
from failback.sim.loop import InlineExecutor, SimulatedLoop
from failback.transport import link

_WALL_SECONDS = 1_800_000_000.0


class Clock:
    """``step`` moves the wall clock; the monotonic one only ever goes on."""

    def __init__(self, loop: SimulatedLoop, machine: Machine) -> None:
        self._loop = loop
        self._machine = machine
        self.step = 0.0

    def wall(self) -> float:
        return _WALL_SECONDS + self._loop.now + self.step

    def sleep(self, seconds: float) -> None:
        """A thread waits: the clock goes on and so do the disks."""
        self._loop.now += seconds
        self._machine.run(3)


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def installed(
    loop: SimulatedLoop, machine: Machine, watcher: Callable[[str], None], chance: random.Random
) -> Iterator[Clock]:
    clock = Clock(loop, machine)
    inline = InlineExecutor()
    random.seed(chance.getrandbits(64))
    ids = random.Random(chance.getrandbits(64))
    late = random.Random(str(chance.getstate()))  # draws nothing: seeds keep their worlds

    class Hasher(SimulatedHasher):
        pass

    Hasher.machine = machine

    def read(index: int, buffer: memoryview, offset: int) -> list[tuple[int, int]]:
        return read_device(machine, index, buffer, offset)

    replaced: list[tuple[Any, str, Any]] = [
        (time, "monotonic", loop.time),
        (time, "monotonic_ns", lambda: int(loop.now * 1e9)),
        (time, "time", clock.wall),
        (time, "time_ns", lambda: int(clock.wall() * 1e9)),
        (time, "sleep", clock.sleep),
        (uuid, "uuid4", lambda: uuid.UUID(int=ids.getrandbits(128), version=4)),
        (secrets, "randbits", ids.getrandbits),
        (link, "open_door", loop.open_door),
        (journal, "_readers", lambda: inline),
        (libbpf, "hash_elements", lambda handle, *_: handle.elements()),
        (rereading, "read_direct", read),
        (rereading, "_readers", lambda: inline),
        (session, "read_direct", read),
        (session, "writes_in_flight", lambda _: len(machine.in_flight)),
        (comparing, "BlockHasher", Hasher),
        (stream, "REREAD_BLOCKS", chance.choice((2, 5, 128))),
        (passes, "CHUNK_BLOCKS", chance.choice((1, 3, 512))),
        (journal_format, "REDO_SEGMENT_BYTES", chance.choice((1 << 14, 1 << 18, 64 << 20))),
        (applier, "GROUP_BYTES", chance.choice((1 << 14, 1 << 18, 8 << 20))),
        (recent_redo, "SHARED", recent_redo.RedoMemory()),
        (recent_redo, "LIMIT_BYTES", late.choice((0, 1 << 16, 64 << 20))),
        (spool, "_KEPT_SEGMENT_BYTES", chance.choice((1 << 12, 1 << 20))),
        (recent, "SPOOL_AFTER_SECONDS", late.choice((0.0, 0.05, 0.5, 5.0))),
        (recent, "SPOOL_ABOVE_BYTES", late.choice((1 << 14, 1 << 18, 64 << 20))),
        (recent, "SPOOL_ABOVE_RING_BYTES", late.choice((1 << 14, 1 << 18, 24 << 20))),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(_set(owner, name, value))
        faults.watch(watcher)
        stack.callback(faults.watch, None)
        yield clock
