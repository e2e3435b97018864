"""Wrappers with the interface of a block device that fail, wait or tear: for drills and crash tests.

Wrap any device: ``Failing(device, after=3)`` raises from the fourth write on; ``Delaying(device, seconds)`` waits before
each call; ``Torn(device)`` keeps writes back until ``flush`` and lets ``lose(random)`` drop or tear them as a power cut does.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

from failback.block.device import BlockDevice, Buffer
from failback.errors import StorageError

SECTOR_BYTES = 512


class Wrapping:
    """Passes every call on; wrappers override what they change."""

    def __init__(self, device: BlockDevice) -> None:
        self.device = device

    @property
    def size_bytes(self) -> int:
        return self.device.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        return self.device.read(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.device.read_into(offset, buffer)

    def write(self, offset: int, data: Buffer) -> None:
        self.device.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self.device.zero(offset, length)

    def discard(self, offset: int, length: int) -> None:
        self.device.discard(offset, length)

    def flush(self) -> None:
        self.device.flush()

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        return self.device.data_ranges(offset, length)

    def close(self) -> None:
        self.device.close()


class Failing(Wrapping):
    """Every changing call after the first ``after`` ones raises StorageError until ``heal`` is called."""

    def __init__(self, device: BlockDevice, after: int = 0) -> None:
        super().__init__(device)
        self.left = after
        self.healed = False

    def _count(self) -> None:
        if self.healed:
            return
        if self.left <= 0:
            raise StorageError("injected failure of a block device")
        self.left -= 1

    def heal(self) -> None:
        self.healed = True

    def write(self, offset: int, data: Buffer) -> None:
        self._count()
        super().write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._count()
        super().zero(offset, length)

    def discard(self, offset: int, length: int) -> None:
        self._count()
        super().discard(offset, length)

    def flush(self) -> None:
        self._count()
        super().flush()


class Delaying(Wrapping):
    """Waits before every read, write and flush."""

    def __init__(self, device: BlockDevice, seconds: float) -> None:
        super().__init__(device)
        self.seconds = seconds

    def read_into(self, offset: int, buffer: memoryview) -> None:
        time.sleep(self.seconds)
        super().read_into(offset, buffer)

    def read(self, offset: int, length: int) -> bytes:
        time.sleep(self.seconds)
        return super().read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        time.sleep(self.seconds)
        super().write(offset, data)

    def flush(self) -> None:
        time.sleep(self.seconds)
        super().flush()


class Torn(Wrapping):
    """Remembers the sectors' content from before each write since the last flush; ``lose`` puts a random part back."""

    def __init__(self, device: BlockDevice) -> None:
        super().__init__(device)
        self._lock = threading.Lock()
        self._before: dict[int, bytes] = {}

    def _remember(self, offset: int, length: int) -> None:
        with self._lock:
            first = offset // SECTOR_BYTES * SECTOR_BYTES
            for sector in range(first, offset + length, SECTOR_BYTES):
                if sector not in self._before:
                    self._before[sector] = self.device.read(sector, min(SECTOR_BYTES, self.size_bytes - sector))

    def write(self, offset: int, data: Buffer) -> None:
        self._remember(offset, len(data))
        super().write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._remember(offset, length)
        super().zero(offset, length)

    def discard(self, offset: int, length: int) -> None:
        self._remember(offset, length)
        super().discard(offset, length)

    def flush(self) -> None:
        super().flush()
        with self._lock:
            self._before.clear()

    def lose(self, chance: random.Random) -> int:
        """As after a power cut: about half of the unflushed sectors go back to what they were. Returns how many."""
        lost = [sector for sector in sorted(self._before) if chance.random() < 0.5]
        for sector in lost:
            self.device.write(sector, self._before[sector])
        self._before.clear()
        return len(lost)
