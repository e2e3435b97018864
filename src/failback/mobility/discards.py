"""Ranges that the machine discarded and has not written since: what they hold is not defined (D12, D17).

A replica may hold other bytes there than the source reads, and nothing is wrong: a scrub brings them in step without an
alarm. Kept as sorted ranges of each disk, fed with the extents of every batch in order, and in a file of the runtime directory,
so that a restarted agent knows them too. At most :data:`MOST_RANGES` a disk; of more the smallest are forgotten, which costs an
alarm too many and never one too few.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from pathlib import Path

from failback.model.stream import Operation
from failback.protocol.extents import EXTENT

MOST_RANGES = 20_000
SAVE_SECONDS = 5.0
_OPERATION_AT = len(EXTENT.pack(0, 1, 0, 0, 0).split(b"\x01", 1)[0])


class Discards:
    """``path``: where they are kept; an unreadable file is an empty one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts: dict[int, list[int]] = {}
        self._ends: dict[int, list[int]] = {}
        self._changed = False
        self._saved_at = 0.0
        try:
            for disk, ranges in json.loads(path.read_text(encoding="ascii")).items():
                self._starts[int(disk)] = [int(first) for first, _ in ranges]
                self._ends[int(disk)] = [int(end) for _, end in ranges]
        except (OSError, ValueError, TypeError, AttributeError):
            self._starts, self._ends = {}, {}

    def take(self, extents: bytes) -> None:
        """The extents of the next batch."""
        if not self._starts and Operation.DISCARD not in extents[_OPERATION_AT :: EXTENT.size]:
            return
        for disk, operation, _, length, offset in EXTENT.iter_unpack(extents):
            if operation == Operation.DISCARD:
                self._replace(disk, offset, offset + length, discarded=True)
            elif disk in self._starts:
                self._replace(disk, offset, offset + length, discarded=False)

    def touch(self, disk: int, offset: int, length: int) -> bool:
        """Whether any of the range is discarded."""
        starts = self._starts.get(disk)
        if not starts:
            return False
        at = bisect_left(starts, offset + length) - 1
        return at >= 0 and self._ends[disk][at] > offset

    def ranges(self, disk: int) -> list[tuple[int, int]]:
        return list(zip(self._starts.get(disk, ()), self._ends.get(disk, ()), strict=True))

    def save(self, now: float) -> None:
        """Write them down when they changed and some seconds have passed (monotonic clock)."""
        if not self._changed or now - self._saved_at < SAVE_SECONDS:
            return
        self._saved_at, self._changed = now, False
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({disk: self.ranges(disk) for disk in self._starts}), encoding="ascii")
        partial.replace(self._path)

    def _replace(self, disk: int, first: int, end: int, *, discarded: bool) -> None:
        """Take the range out, and in again when it is discarded, joined with its neighbours."""
        starts, ends = self._starts.setdefault(disk, []), self._ends.setdefault(disk, [])
        low, high = bisect_left(ends, first) if discarded else bisect_right(ends, first), bisect_left(starts, end)
        if discarded and high < len(starts) and starts[high] == end:
            high += 1
        new: list[tuple[int, int]] = []
        if discarded:
            new = [(min([first, *starts[low:high]]), max([end, *ends[low:high]]))]
        elif low < high:
            new = [(starts[low], first)] if starts[low] < first else []
            new += [(end, ends[high - 1])] if ends[high - 1] > end else []
        if low >= high and not new:
            return
        starts[low:high], ends[low:high] = [one for one, _ in new], [one for _, one in new]
        self._changed = True
        if len(starts) > MOST_RANGES:
            self._forget_smallest(disk)

    def _forget_smallest(self, disk: int) -> None:
        kept = sorted(self.ranges(disk), key=lambda one: one[0] - one[1])[: MOST_RANGES // 2]
        kept.sort()
        self._starts[disk], self._ends[disk] = [first for first, _ in kept], [end for _, end in kept]
