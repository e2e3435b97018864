"""Digest tables against the replica, at exactly their place in the stream (D12).

Equality is XXH3-128 with the pass's key as seed; holes of the replica are not read, and where the asker allows it, nor are
blocks whose digest is remembered (:mod:`failback.journal.known_digests`). The table is cut into spans that are
read and hashed in several threads. Where a block differs and the asker wants it, the reply carries the digests of the
replica's pieces of that block, so that only the pieces that differ have to travel.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import xxhash

from failback.block.device import BlockDevice
from failback.errors import ProtocolError
from failback.journal.known_digests import KnownDigests
from failback.model.stream import BLOCK_BYTES
from failback.protocol.messages import DIGEST_BYTES, DigestReply, Digests

SPAN_BYTES = 2 << 20
MOST_PIECES_BYTES = 512 << 10
"""A reply is no longer: an asker whose table would need more gets the bitmap only."""


def compare(digests: Digests, device: BlockDevice, readers: Executor, known: KnownDigests | None = None) -> DigestReply:
    """Which of the blocks differ. The caller has written everything before the table, and nothing after it."""
    count = len(digests.digests) // DIGEST_BYTES
    block_bytes = digests.block_bytes
    if block_bytes <= 0 or (digests.first_block + count - 1) * block_bytes >= device.size_bytes:
        raise ProtocolError(f"digests of blocks behind the end of disk {digests.disk_index}")
    if known is not None and (known.key != digests.key or block_bytes != BLOCK_BYTES):
        known = None
    equal = [False] * count
    if known is not None and digests.remembered:
        equal = known.equal(digests.disk_index, digests.first_block, digests.digests)
    comparison = _Comparison(device, digests, _block_pieces(digests, count), equal)
    per_span = max(SPAN_BYTES // block_bytes, 1)
    spans = [(first, min(per_span, count - first)) for first in range(0, count, per_span)]
    differing = bytearray((count + 7) // 8)
    pieces: list[bytes] = []
    for found, read in readers.map(lambda span: comparison.span(*span), spans):
        for number, block_pieces in found:
            differing[number // 8] |= 1 << number % 8
            pieces.append(block_pieces)
        if known is not None:
            for number, digest in read:
                known.learn(digests.disk_index, digests.first_block + number, digest)
    return DigestReply(
        digests.machine_id, digests.epoch, digests.sequence, digests.pass_id, digests.disk_index, digests.first_block,
        count, bytes(differing), comparison.block_pieces, b"".join(pieces),
    )  # fmt: skip


def _block_pieces(digests: Digests, count: int) -> int:
    """Digests of pieces that each differing block gets; 0: none are wanted, or they would not fit."""
    if not digests.piece_bytes or digests.block_bytes % digests.piece_bytes:
        return 0
    pieces = digests.block_bytes // digests.piece_bytes
    return pieces if count * pieces * DIGEST_BYTES <= MOST_PIECES_BYTES else 0


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One table against one disk; ``span`` may run in several threads at once."""

    device: BlockDevice
    digests: Digests
    block_pieces: int
    equal: list[bool]
    """Blocks that are known to be equal: they are not read."""

    def span(self, first: int, count: int) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
        """Of ``count`` blocks of the table: (number, digests of its pieces) of each that differs, and (number, digest of the
        replica's block) of each that was looked at."""
        found: list[tuple[int, bytes]] = []
        read: list[tuple[int, bytes]] = []
        at, end = first, first + count
        while at < end:
            stop = at
            while stop < end and not self.equal[stop]:
                stop += 1
            if stop > at:
                self._run(at, stop - at, found, read)
            at = stop + 1
        return found, read

    def _run(self, first: int, count: int, found: list[tuple[int, bytes]], read: list[tuple[int, bytes]]) -> None:
        block_bytes, key, table = self.digests.block_bytes, self.digests.key, self.digests.digests
        start = (self.digests.first_block + first) * block_bytes
        length = min(count * block_bytes, self.device.size_bytes - start)
        content = memoryview(bytearray(length))
        filled = bytearray(count)
        for offset, part in self.device.data_ranges(start, length):
            self.device.read_into(offset, content[offset - start : offset - start + part])
            low, high = (offset - start) // block_bytes, -(-(offset - start + part) // block_bytes)
            filled[low:high] = b"\x01" * (high - low)
        zero = b"" if all(filled) else xxhash.xxh3_128_digest(bytes(block_bytes), key)
        for index in range(count):
            block = content[index * block_bytes : (index + 1) * block_bytes]
            hole = not filled[index] and len(block) == block_bytes
            mine = zero if hole else xxhash.xxh3_128_digest(block, key)
            read.append((first + index, mine))
            place = (first + index) * DIGEST_BYTES
            if mine != table[place : place + DIGEST_BYTES]:
                found.append((first + index, self._pieces(block)))

    def _pieces(self, block: memoryview) -> bytes:
        if not self.block_pieces:
            return b""
        step, key = self.digests.piece_bytes, self.digests.key
        found = [xxhash.xxh3_128_digest(block[at : at + step], key) for at in range(0, len(block), step)]
        return b"".join(found).ljust(self.block_pieces * DIGEST_BYTES, b"\0")
