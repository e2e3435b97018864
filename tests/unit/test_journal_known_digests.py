"""The digest cache: it answers for what was applied and for nothing else (D12)."""

from __future__ import annotations

import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash

from failback.block.faulty import Wrapping
from failback.block.raw import RawDevice, create_sparse
from failback.journal import last_write
from failback.journal.digests import compare
from failback.journal.known_digests import KnownDigests
from failback.model.ids import MachineId, PassId
from failback.model.stream import Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import Digests, digest_key

BLOCK = 65536
BLOCKS = 24
INCARNATION = "a journal"
KEY = digest_key(INCARNATION)


class Counting(Wrapping):
    """Which blocks were read."""

    def __init__(self, device: RawDevice) -> None:
        super().__init__(device)
        self.blocks: set[int] = set()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.blocks |= set(range(offset // BLOCK, (offset + len(buffer) - 1) // BLOCK + 1))
        super().read_into(offset, buffer)


class Replica:
    """A disk, its content as it should be, and the cache that the applier would keep."""

    def __init__(self, path: Path) -> None:
        create_sparse(path, BLOCKS * BLOCK)
        self.device = Counting(RawDevice(path))
        self.content = bytearray(BLOCKS * BLOCK)
        self.known = KnownDigests({0: self.device}, INCARNATION)

    def write(self, extents: list[tuple[Operation, int, bytes]]) -> None:
        table = b"".join(EXTENT.pack(0, operation, 0, len(data), offset) for operation, offset, data in extents)
        payload = b"".join(data for operation, _, data in extents if operation is Operation.DATA)
        pieces = last_write.resolve([last_write.extent_table(table)])[0]
        self.known.forget(0, pieces)
        for _, offset, data in extents:
            self.device.write(offset, data)
            self.content[offset : offset + len(data)] = data
        self.known.learn_pieces(0, pieces, lambda source, length: memoryview(payload)[source : source + length])

    def ask(self, content: bytes, *, key: int = KEY, remembered: bool = True) -> tuple[list[int], set[int]]:
        """(blocks that differ, blocks that were read)."""
        table = b"".join(
            xxhash.xxh3_128_digest(content[at : at + BLOCK], key) for at in range(0, BLOCKS * BLOCK, BLOCK)
        )
        asked = Digests(
            MachineId(str(uuid.UUID(int=1))), 1, 7, 0, PassId("p"), 0, BLOCK, 0, key, table, 4096, remembered
        )
        self.device.blocks = set()
        with ThreadPoolExecutor(2) as readers:
            reply = compare(asked, self.device, readers, self.known)
        bits = int.from_bytes(reply.differing, "little")
        return [number for number in range(BLOCKS) if bits >> number & 1], self.device.blocks


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    made = Replica(tmp_path / "disk")
    made.write([(Operation.DATA, 0, random.Random(1).randbytes(BLOCKS * BLOCK))])
    return made


def test_what_was_written_whole_is_not_read(replica: Replica) -> None:
    assert replica.ask(bytes(replica.content)) == ([], set())


def test_a_difference_is_found_and_only_its_block_is_read(replica: Replica) -> None:
    changed = bytearray(replica.content)
    changed[5 * BLOCK + 100] ^= 1
    assert replica.ask(bytes(changed)) == ([5], {5})


def test_a_block_that_was_written_in_part_is_read_once(replica: Replica) -> None:
    replica.write([(Operation.DATA, 7 * BLOCK + 512, b"x" * 512), (Operation.DATA, 9 * BLOCK - 512, b"y" * 1024)])
    assert replica.ask(bytes(replica.content)) == ([], {7, 8, 9})
    assert replica.ask(bytes(replica.content)) == ([], set())


def test_zeroed_blocks_are_known_and_discarded_ones_are_not(replica: Replica) -> None:
    replica.write([(Operation.ZERO, 2 * BLOCK, bytes(3 * BLOCK)), (Operation.DISCARD, 10 * BLOCK, bytes(BLOCK))])
    assert replica.ask(bytes(replica.content)) == ([], {10})


def test_a_scrub_and_another_key_read_everything(replica: Replica) -> None:
    everything = set(range(BLOCKS))
    assert replica.ask(bytes(replica.content), remembered=False) == ([], everything)
    assert replica.ask(bytes(replica.content), key=KEY + 1) == ([], everything)
    replica.known.clear()
    assert replica.ask(bytes(replica.content)) == ([], everything)


def test_random_writes_never_leave_a_wrong_answer(replica: Replica) -> None:
    chance = random.Random(2)
    for _ in range(60):
        extents = []
        for _ in range(chance.randint(1, 4)):
            low, high = sorted(chance.sample(range(BLOCKS * 128 + 1), 2))
            high = min(high, low + chance.choice((1, 8, 128, 400)))
            if extents and any(low * 512 < o + len(d) and o < high * 512 for _, o, d in extents):
                continue
            size = (high - low) * 512
            operation = chance.choice((Operation.DATA, Operation.DATA, Operation.ZERO))
            extents.append(
                (operation, low * 512, bytes(size) if operation is Operation.ZERO else chance.randbytes(size))
            )
        replica.write(extents)
        assert replica.ask(bytes(replica.content))[0] == []
        changed = bytearray(replica.content)
        wrong = sorted(chance.sample(range(BLOCKS), 3))
        for block in wrong:
            changed[block * BLOCK + 512 * chance.randrange(128)] ^= 1
        assert replica.ask(bytes(changed))[0] == wrong
    assert np.asarray(replica.known.equal(0, 0, b"\0" * 16 * BLOCKS)).sum() == 0
