"""Memory for large frames, used again and again.

Fresh memory of some megabytes is zeroed by the kernel and then by Python before the first byte is received into it: a tenth
of the processor time of a server that hands on what it gets. A kept buffer is free when nobody refers to it any more: every
view of it, however often sliced, holds a reference, so the reference count tells.
"""

from __future__ import annotations

import sys

SMALLEST_BYTES = 256 << 10
_STEP_BYTES = 1 << 20
_WASTE = 4


class FrameMemory:
    """For one thread that takes; views may be dropped by any. At most ``limit_bytes`` are kept while nobody uses them."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: list[bytearray] = []

    def take(self, size_bytes: int) -> memoryview:
        """Writable memory of that size with any content."""
        if size_bytes < SMALLEST_BYTES:
            return memoryview(bytearray(size_bytes))
        found = self._unused(size_bytes)
        if found < 0:
            self._kept.append(bytearray(-(-size_bytes // _STEP_BYTES) * _STEP_BYTES))
            self._forget_surplus()
        return memoryview(self._kept[found])[:size_bytes]

    def _unused(self, size_bytes: int) -> int:
        """Index of a kept buffer that fits and that nobody uses, or -1."""
        for index in range(len(self._kept)):
            if size_bytes <= len(self._kept[index]) <= _WASTE * size_bytes and self._is_unused(index):
                return index
        return -1

    def _is_unused(self, index: int) -> bool:
        return sys.getrefcount(self._kept[index]) == 2  # this list, and the argument

    def _forget_surplus(self) -> None:
        """The newest stays: it is about to be given out."""
        index = 0
        while sum(map(len, self._kept)) > self.limit_bytes and index < len(self._kept) - 1:
            del self._kept[index]
