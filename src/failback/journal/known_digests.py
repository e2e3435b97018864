"""The digest cache (D12): what the replica's blocks hash to, so that a comparison after a reboot reads only what is not known.

A digest is learned when a whole block is written and when a comparison hashed it, and forgotten before anything of its block is
overwritten. The cache lives in memory, as long as the journal's disks are open: it never says anything about content that a
crash, another incarnation or a rollback left behind. Its key is the incarnation's, so an agent can ask with the same. It knows
what was written, not whether the disk still holds it: only an asker that says so is answered from it (a scrub does not).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import xxhash

from failback.block.device import BlockDevice
from failback.journal.last_write import Pieces
from failback.model.stream import BLOCK_BYTES, Operation
from failback.protocol.messages import DIGEST_BYTES, digest_key

MOST_BYTES = 64 << 20
"""For one machine: 256 GiB of its disks. What lies behind is read when it is compared."""
_ZEROES = bytes(BLOCK_BYTES)


class KnownDigests:
    """One thread learns and forgets; others may look up meanwhile only what is not being changed."""

    def __init__(self, devices: Mapping[int, BlockDevice], incarnation: str) -> None:
        self.key = digest_key(incarnation)
        self._zero = xxhash.xxh3_128_digest(_ZEROES, self.key)
        self._digests: dict[int, npt.NDArray[np.uint8]] = {}
        self._valid: dict[int, npt.NDArray[np.bool_]] = {}
        room = MOST_BYTES // DIGEST_BYTES
        for index, device in sorted(devices.items()):
            blocks = min(device.size_bytes // BLOCK_BYTES, room)  # a shorter last block is always read
            room -= blocks
            self._digests[index] = np.zeros((blocks, DIGEST_BYTES), np.uint8)
            self._valid[index] = np.zeros(blocks, np.bool_)

    def clear(self) -> None:
        """The disks are changed by another hand."""
        for valid in self._valid.values():
            valid[:] = False

    def forget(self, disk: int, pieces: Pieces) -> None:
        """These pieces are about to be written."""
        valid = self._valid[disk]
        first, last = pieces.offset // BLOCK_BYTES, (pieces.end - 1) // BLOCK_BYTES
        inside = first < len(valid)
        first, last = first[inside], np.minimum(last[inside], len(valid) - 1)
        valid[first] = False
        valid[last] = False
        for low, high in zip(first[last > first + 1].tolist(), last[last > first + 1].tolist(), strict=True):
            valid[low : high + 1] = False

    def learn_pieces(self, disk: int, pieces: Pieces, content: Callable[[int, int], memoryview]) -> None:
        """These were written: whole blocks are known from now on. ``content`` gives a DATA piece's bytes by place and length."""
        large = pieces.length >= BLOCK_BYTES
        columns = (pieces.offset, pieces.length, pieces.source, pieces.operation)
        for offset, length, source, operation in zip(*(column[large].tolist() for column in columns), strict=True):
            low, high = -(-offset // BLOCK_BYTES), min((offset + length) // BLOCK_BYTES, len(self._valid[disk]))
            if operation == Operation.ZERO and high > low:
                self._digests[disk][low:high] = np.frombuffer(self._zero, np.uint8)
                self._valid[disk][low:high] = True
            elif operation == Operation.DATA and high > low:
                data = content(source, length)
                for block in range(low, high):
                    at = block * BLOCK_BYTES - offset
                    self.learn(disk, block, xxhash.xxh3_128_digest(data[at : at + BLOCK_BYTES], self.key))

    def learn(self, disk: int, block: int, digest: bytes) -> None:
        """A comparison read the block."""
        if block < len(self._valid[disk]):
            self._digests[disk][block] = np.frombuffer(digest, np.uint8)
            self._valid[disk][block] = True

    def equal(self, disk: int, first: int, digests: bytes) -> list[bool]:
        """For each block from ``first`` on: whether its digest is known and is this one."""
        count = len(digests) // DIGEST_BYTES
        theirs = np.frombuffer(digests, np.uint8).reshape(count, DIGEST_BYTES)
        mine, valid = self._digests[disk][first : first + count], self._valid[disk][first : first + count]
        found = (mine == theirs[: len(mine)]).all(axis=1) & valid
        return [*found.tolist(), *[False] * (count - len(mine))]
