"""A replica's disk in memory, with the interface of a block device; wrapped in ``Torn`` it forgets what was not flushed."""

from __future__ import annotations

from collections.abc import Iterator

from failback.block.device import Buffer, check_range
from failback.errors import StorageError
from failback.sim.loop import check_alive


class MemoryDisk:
    """``failing``: so many of the next writes fail."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.failing = 0

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        check_range(self.size_bytes, offset, length, "the simulated disk")
        return bytes(self.content[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(self.size_bytes, offset, len(buffer), "the simulated disk")
        buffer[:] = self.content[offset : offset + len(buffer)]

    def write(self, offset: int, data: Buffer) -> None:
        check_alive()
        check_range(self.size_bytes, offset, len(data), "the simulated disk")
        if self.failing > 0:
            self.failing -= 1
            raise StorageError("simulated failure of the replica's disk")
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def discard(self, offset: int, length: int) -> None:
        check_alive()

    def flush(self) -> None:
        check_alive()
        if self.failing > 0:
            self.failing -= 1
            raise StorageError("simulated failure of the replica's disk")

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        if length:
            yield offset, length

    def close(self) -> None:
        return
