"""Items that arrived and have not landed, in memory: what is forwarded without ever being read from a disk, and is written to
the spool only when the master target does not take it in time (decision 0010).

:class:`RecentItems` belongs to one stream, :class:`RecentMemory` bounds all of them. An item leaves when it has landed, or,
once it is spooled, when the memory is wanted. Everything here is called from the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from failback.protocol.frames import RawItem

SPOOL_AFTER_SECONDS = 1.0
SPOOL_ABOVE_BYTES = 64 << 20
SPOOL_ABOVE_RING_BYTES = 24 << 20
"""A stream spools what is older, or when more than so much of it, or of its machine's ring, is neither landed nor spooled."""


class RecentMemory:
    """The bound on the items that all streams keep in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._freed = asyncio.Event()
        self._holders: list[RecentItems] = []

    @property
    def is_short(self) -> bool:
        return self.used_bytes >= self.limit_bytes

    def join(self, holder: RecentItems) -> None:
        self._holders.append(holder)

    def leave(self, holder: RecentItems) -> None:
        self._holders.remove(holder)

    def used(self, count: int) -> None:
        self.used_bytes += count
        if count < 0 and not self.is_short:
            self._freed.set()

    def make_room(self) -> None:
        """Let go of everything that is spooled."""
        for holder in self._holders:
            holder.forget_spooled()

    async def room(self) -> None:
        """Wait until it is not short."""
        while self.is_short:
            self.make_room()
            if self.is_short:
                self._freed.clear()
                await self._freed.wait()


class RecentItems:
    """Without a hole, oldest first. ``changed`` is called when there is more to spool, or less."""

    def __init__(self, memory: RecentMemory, changed: Callable[[], None]) -> None:
        self.last_sequence = 0
        """Of the last item that arrived in this process's life; 0: none yet."""
        self._memory = memory
        self._changed = changed
        self._items: deque[tuple[RawItem, float]] = deque()
        self._unspooled_bytes = 0
        self._spooled_sequence = 0
        self._spooled_ring = 0
        memory.join(self)

    @property
    def first_sequence(self) -> int:
        """Of the oldest item that is here; 0 when none is."""
        return self._items[0][0].header.sequence if self._items else 0

    def add(self, items: list[RawItem]) -> None:
        now = time.monotonic()
        if not self._unspooled_bytes:
            self._spooled_ring = items[0].header.first_position
        for item in items:
            self._items.append((item, now))
            self._unspooled_bytes += len(item.buffer)
            self._memory.used(len(item.buffer))
            self.last_sequence = item.header.sequence
        self._changed()

    def get(self, sequence: int) -> RawItem | None:
        index = sequence - self.first_sequence
        return self._items[index][0] if self._items and 0 <= index < len(self._items) else None

    def unspooled(self) -> list[RawItem]:
        return [item for item, _ in self._items if item.header.sequence > self._spooled_sequence]

    def spooled(self, sequence: int) -> None:
        """Up to there nothing has to be spooled any more."""
        for item, _ in self._items:
            if item.header.sequence > sequence:
                break
            if item.header.sequence > self._spooled_sequence:
                self._unspooled_bytes -= len(item.buffer)
                self._spooled_ring = item.header.end_position
        self._spooled_sequence = max(self._spooled_sequence, sequence)
        if self._memory.is_short:
            self._memory.make_room()

    def landed(self, sequence: int) -> None:
        self.spooled(sequence)
        self._drop(sequence)
        self._changed()

    def forget_spooled(self) -> None:
        self._drop(self._spooled_sequence)

    def clear(self) -> None:
        """All of it; what is not spooled was never acknowledged."""
        self.spooled(self.last_sequence)
        self._drop(self.last_sequence)

    def leave(self) -> None:
        self.clear()
        self._memory.leave(self)

    def seconds_to_spooling(self, *, master_target_linked: bool) -> float | None:
        """When the oldest unspooled item has to be spooled: 0 now, None: there is none."""
        if not self._unspooled_bytes:
            return None
        ring_bytes = self._items[-1][0].header.end_position - self._spooled_ring
        much = self._unspooled_bytes >= SPOOL_ABOVE_BYTES or ring_bytes >= SPOOL_ABOVE_RING_BYTES
        if not master_target_linked or much or self._memory.is_short:
            return 0.0
        arrived = next(at for item, at in self._items if item.header.sequence > self._spooled_sequence)
        return max(0.0, arrived + SPOOL_AFTER_SECONDS - time.monotonic())

    def _drop(self, sequence: int) -> None:
        freed = 0
        while self._items and self._items[0][0].header.sequence <= sequence:
            freed += len(self._items.popleft()[0].buffer)
        if freed:
            self._memory.used(-freed)
