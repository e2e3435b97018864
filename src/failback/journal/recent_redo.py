"""The newest redo records in memory, so that what has just landed is applied without being read back and proven again.

They were proven when they arrived and are in the redo log as well; only records that are durable there are given out.
Bounded over all journals of the process: a record that has no room is left out, and those behind it too until the applier
has caught up.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from failback.protocol.items import RawItem

LIMIT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class RedoRecord:
    """``proven``: its checksums were verified when it arrived, and it never left memory."""

    ordinal: int
    item: RawItem
    proven: bool = False


class RedoMemory:
    """What all journals keep."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used_bytes = 0

    def take(self, count: int) -> bool:
        with self._lock:
            if self._used_bytes + count > LIMIT_BYTES:
                return False
            self._used_bytes += count
            return True

    def release(self, count: int) -> None:
        with self._lock:
            self._used_bytes -= count


SHARED = RedoMemory()


class RecentRedo:
    """One journal's: consecutive records, oldest first. Calls may come from several threads."""

    def __init__(self) -> None:
        self._memory = SHARED
        self._lock = threading.Lock()
        self._records: deque[RedoRecord] = deque()

    def add(self, record: RedoRecord) -> None:
        """Behind the last one, where there is room."""
        with self._lock:
            if self._records and self._records[-1].ordinal != record.ordinal - 1:
                return
            if self._memory.take(len(record.item.buffer)):
                self._records.append(record)

    def get(self, ordinal: int) -> RedoRecord | None:
        with self._lock:
            if not self._records:
                return None
            index = ordinal - self._records[0].ordinal
            return self._records[index] if 0 <= index < len(self._records) else None

    def forget_up_to(self, ordinal: int) -> None:
        with self._lock:
            while self._records and self._records[0].ordinal <= ordinal:
                self._memory.release(len(self._records.popleft().item.buffer))

    def forget_after(self, ordinal: int) -> None:
        with self._lock:
            while self._records and self._records[-1].ordinal > ordinal:
                self._memory.release(len(self._records.pop().item.buffer))
