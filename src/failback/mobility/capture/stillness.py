"""Whether disks were written since a moment, by the kernel's own counters (``/sys/dev/block/M:N/stat``).

For machines whose writes cannot be captured this is the only proof that what was read, block after block, is one state that
the disks had: no write was in flight when the reading began, none was completed and none is in flight at its end. That the
kernel counts at all on a disk (``queue/iostats``, drivers that do not) is proved by our own reading: since the beginning at
least the disk's size has to be counted as read. What is not proved counts as written.

The counters are read in an order and with a pause that lets a write be counted twice but never be missed: a driver takes a
completed write out of *in flight* an instant before it counts it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from failback.errors import NotSupportedError
from failback.mobility.capture.block_device import device_number

COUNTED_AFTER_SECONDS = 0.02
_BEGIN_ATTEMPTS = 50
SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Activity:
    """Of one disk since it appeared. ``changes``: writes, sectors written, discards, sectors discarded."""

    read_sectors: int
    changes: tuple[int, ...]


def parse(text: str) -> Activity:
    """The file ``stat`` (Documentation/block/stat.rst): 11 figures, with discards from Linux 4.18 on."""
    figures = [int(word) for word in text.split()]
    return Activity(figures[2], (figures[4], figures[6], *figures[11:12], *figures[13:14]))


def is_unwritten(before: Sequence[Activity], now: Sequence[Activity]) -> bool:
    return all(then.changes == after.changes for then, after in zip(before, now, strict=True))


def is_counted(before: Sequence[Activity], now: Sequence[Activity], sizes: Sequence[int]) -> bool:
    """Whether the whole of every disk was seen to be read."""
    return all(
        (after.read_sectors - then.read_sectors) * SECTOR_BYTES >= size
        for then, after, size in zip(before, now, sizes, strict=True)
    )


class Stillness:
    """Of these devices, from :meth:`begin` on. ``written`` stays true until the next ``begin``."""

    def __init__(
        self, devices: Sequence[str], sizes: Sequence[int], *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._attributes = [Path(f"/sys/dev/block/{n >> 20}:{n & 0xFFFFF}") for n in map(device_number, devices)]
        self._sizes = list(sizes)
        self._sleep = sleep
        self._begun = self._read()
        self.written = True

    def begin(self) -> None:
        """Everything that is read from here on is to be one state of the disks. Waits a little for writes in flight."""
        for _ in range(_BEGIN_ATTEMPTS):
            self._begun = self._read()
            self.written = bool(self._in_flight())
            if not self.written:
                return
            self._sleep(COUNTED_AFTER_SECONDS)

    def still_ns(self) -> int:
        """CLOCK_MONOTONIC of a moment up to which no disk was written and all of every disk was read; 0 when there was a write,
        or nothing is proved."""
        if self.written:
            return 0
        if self._in_flight():
            self.written = True
            return 0
        now_ns = time.monotonic_ns()
        self._sleep(COUNTED_AFTER_SECONDS)
        seen = self._read()
        self.written = not is_unwritten(self._begun, seen)
        return now_ns if not self.written and is_counted(self._begun, seen, self._sizes) else 0

    def read_sectors(self) -> int:
        """Counted as read, over all disks."""
        return sum(one.read_sectors for one in self._read())

    def _read(self) -> list[Activity]:
        try:
            return [parse((attributes / "stat").read_text()) for attributes in self._attributes]
        except (OSError, ValueError, IndexError) as error:
            raise NotSupportedError(
                f"the kernel does not count what is written to a disk: {error}", code="DiskNotCounted",
                remedy="exclude the disk",
            ) from error  # fmt: skip

    def _in_flight(self) -> int:
        try:
            return sum(int((attributes / "inflight").read_text().split()[1]) for attributes in self._attributes)
        except (OSError, ValueError, IndexError):
            return 1  # where it cannot be told, a write may be in flight
