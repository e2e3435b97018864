"""Reading blocks with O_DIRECT and hashing them, in a thread of its own (D8, D12).

Digests are XXH3-128 with the pass's random key as the seed. A block that cannot be read whole is named, and counts as
differing: the re-read rounds then try it again and name what stays unreadable.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass

import xxhash

from failback.mobility.passes import Chunk
from failback.model.stream import BLOCK_BYTES

SPAN_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Hashed:
    chunk: Chunk
    digests: bytes
    unreadable: tuple[int, ...]
    """Blocks whose digest is that of zeroes because the device failed the read."""


class BlockHasher:
    """One disk's reader. Use from one thread; ``close`` it."""

    def __init__(self, device: str, size_bytes: int, key: int) -> None:
        self._size = size_bytes
        self._key = key
        self._descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._buffer = mmap.mmap(-1, SPAN_BYTES)
        self._view = memoryview(self._buffer)

    def hash_chunk(self, chunk: Chunk) -> Hashed:
        digests: list[bytes] = []
        unreadable: list[int] = []
        per_span = SPAN_BYTES // BLOCK_BYTES
        for first in range(chunk.first_block, chunk.first_block + chunk.count, per_span):
            count = min(per_span, chunk.first_block + chunk.count - first)
            length = min(count * BLOCK_BYTES, self._size - first * BLOCK_BYTES)
            unreadable += self._read(first, length)
            for offset in range(0, length, BLOCK_BYTES):
                block = self._view[offset : min(offset + BLOCK_BYTES, length)]
                digests.append(xxhash.xxh3_128_digest(block, seed=self._key))
        return Hashed(chunk, b"".join(digests), tuple(unreadable))

    def _read(self, first_block: int, length: int) -> list[int]:
        """Fill the buffer; returns blocks that failed (then read one by one, zeroes in their place)."""
        begin = first_block * BLOCK_BYTES
        with contextlib.suppress(OSError):
            if self._read_span(0, begin, length):
                return []
        failed = []
        for offset in range(0, length, BLOCK_BYTES):
            count = min(BLOCK_BYTES, length - offset)
            try:
                whole = self._read_span(offset, begin + offset, count)
            except OSError:
                whole = False
            if not whole:
                self._view[offset : offset + count] = bytes(count)
                failed.append(first_block + offset // BLOCK_BYTES)
        return failed

    def _read_span(self, place: int, begin: int, length: int) -> bool:
        done = 0
        while done < length:
            got = os.preadv(self._descriptor, [self._view[place + done : place + length]], begin + done)
            if not got:
                return False
            done += got
        return True

    def close(self) -> None:
        self._view.release()
        self._buffer.close()
        os.close(self._descriptor)
