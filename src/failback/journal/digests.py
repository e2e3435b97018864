"""Digest tables against the replica, at exactly their place in the stream (D12).

Equality is XXH3-128 with the pass's random key as seed; holes of the replica are not read.
"""

from __future__ import annotations

import numpy as np
import xxhash

from failback.block.device import BlockDevice
from failback.errors import ProtocolError
from failback.protocol.messages import DIGEST_BYTES, DigestReply, Digests

_READ_BYTES = 4 << 20


def compare(digests: Digests, device: BlockDevice) -> DigestReply:
    """Which of the blocks differ. The caller has written everything before the table, and nothing after it."""
    count = len(digests.digests) // DIGEST_BYTES
    block_bytes = digests.block_bytes
    start = digests.first_block * block_bytes
    end = min(start + count * block_bytes, device.size_bytes)
    if block_bytes <= 0 or start + (count - 1) * block_bytes >= device.size_bytes:
        raise ProtocolError(f"digests of blocks behind the end of disk {digests.disk_index}")
    found = b"".join(_digests(device, start, end, block_bytes, digests.key))
    mine = np.frombuffer(found, np.uint8).reshape(-1, DIGEST_BYTES)
    theirs = np.frombuffer(digests.digests, np.uint8).reshape(-1, DIGEST_BYTES)
    differing = np.packbits((mine != theirs).any(axis=1), bitorder="little").tobytes()
    return DigestReply(digests.machine_id, digests.epoch, digests.sequence, digests.pass_id, digests.disk_index,
                       digests.first_block, count, differing)  # fmt: skip


def _digests(device: BlockDevice, start: int, end: int, block_bytes: int, key: int) -> list[bytes]:
    zero_digest = xxhash.xxh3_128_digest(bytes(block_bytes), key)
    result: list[bytes] = []
    stride = max(_READ_BYTES // block_bytes, 1) * block_bytes
    buffer = bytearray(stride)
    for place in range(start, end, stride):
        length = min(stride, end - place)
        view = memoryview(buffer)[:length]
        ranges = list(device.data_ranges(place, length))
        if ranges != [(place, length)]:
            view[:] = bytes(length)
        for offset, part in ranges:
            device.read_into(offset, view[offset - place : offset - place + part])
        filled = np.zeros(-(-length // block_bytes), np.bool_)
        for offset, part in ranges:
            filled[(offset - place) // block_bytes : -(-(offset - place + part) // block_bytes)] = True
        for index in range(len(filled)):
            block = view[index * block_bytes : (index + 1) * block_bytes]
            hole = not filled[index] and len(block) == block_bytes
            result.append(zero_digest if hole else xxhash.xxh3_128_digest(block, key))
    return result
