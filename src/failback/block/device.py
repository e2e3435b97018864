"""The interface that every disk of a replica offers, whatever file format lies below.

Rules: offsets and lengths are bytes inside the device; a read returns exactly what was asked for; ``write``, ``zero``
and ``discard`` are durable only after ``flush``; all calls block and may come from several threads at once, but two
calls on overlapping ranges have no defined order. Failures raise :class:`failback.errors.StorageError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from failback.errors import StorageError

Buffer = bytes | bytearray | memoryview


class BlockDevice(Protocol):
    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer from ``offset``."""
        ...

    def write(self, offset: int, data: Buffer) -> None: ...

    def zero(self, offset: int, length: int) -> None:
        """The range reads back as zeroes; space may be given back."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """The content becomes undefined (D17); never an error because the device cannot discard."""
        ...

    def flush(self) -> None:
        """Returns when everything written before is durable."""
        ...

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of the parts that may hold data; what lies between them reads as zeroes."""
        ...

    def close(self) -> None: ...


def check_range(size_bytes: int, offset: int, length: int, name: str) -> None:
    """Raise StorageError when the range is not inside the device."""
    if offset < 0 or length < 0 or offset + length > size_bytes:
        raise StorageError(
            f"{name}: range {offset}+{length} lies outside the disk of {size_bytes} bytes",
            possible_causes="the disk on the source was enlarged after the replica was attached",
            remedy="reprotect the machine again with the disks' present sizes",
        )
