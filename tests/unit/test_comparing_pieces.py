"""Comparing by pieces: what the master target answers, and what a pass makes of it (D12)."""

from __future__ import annotations

import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash

from failback.block.raw import RawDevice, create_sparse
from failback.errors import ProtocolError
from failback.journal.digests import compare
from failback.mobility import passes
from failback.model.components import SourceDisk, SyncMode
from failback.model.ids import DiskId, MachineId, PassId
from failback.protocol.messages import DigestReply, Digests

BLOCK, PIECE, KEY = 65536, 4096, 77
SIZE = 40 * BLOCK + 5 * 512


def digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data, KEY)


def table(content: bytes, first: int, count: int, piece_bytes: int = PIECE) -> Digests:
    blocks = [content[(first + n) * BLOCK : (first + n + 1) * BLOCK] for n in range(count)]
    return Digests(MachineId(str(uuid.UUID(int=1))), 1, 7, 0, PassId("p"), 0, BLOCK, first, KEY,
                   b"".join(map(digest, blocks)), piece_bytes)  # fmt: skip


@pytest.fixture
def replica(tmp_path: Path) -> tuple[RawDevice, bytearray]:
    chance = random.Random(1)
    create_sparse(tmp_path / "disk", SIZE)
    device, content = RawDevice(tmp_path / "disk"), bytearray(SIZE)
    for block in (0, 3, 4, 39, 40):  # the others are holes
        data = chance.randbytes(min(BLOCK, SIZE - block * BLOCK))
        device.write(block * BLOCK, data)
        content[block * BLOCK : block * BLOCK + len(data)] = data
    return device, content


def test_an_equal_disk_with_holes_and_a_short_end_differs_nowhere(replica: tuple[RawDevice, bytearray]) -> None:
    device, content = replica
    with ThreadPoolExecutor(4) as readers:
        reply = compare(table(bytes(content), 0, 41), device, readers)
    assert (reply.count, any(reply.differing), reply.pieces) == (41, False, b"")


def test_differing_blocks_come_with_the_replicas_pieces(replica: tuple[RawDevice, bytearray]) -> None:
    device, content = replica
    source = bytearray(content)
    changed = [3 * BLOCK + 9 * PIECE, 20 * BLOCK, 40 * BLOCK + 512]
    for place in changed:
        source[place] ^= 1
    with ThreadPoolExecutor(4) as readers:
        reply = compare(table(bytes(source), 2, 39), device, readers)
    bits = int.from_bytes(reply.differing, "little")
    assert [n + 2 for n in range(39) if bits >> n & 1] == [3, 20, 40]
    assert reply.block_pieces == 16
    found = [reply.pieces[at : at + 256] for at in range(0, len(reply.pieces), 256)]
    for number, block in enumerate((3, 20, 40)):
        mine = bytes(content[block * BLOCK : (block + 1) * BLOCK])
        expected = b"".join(digest(mine[at : at + PIECE]) for at in range(0, len(mine), PIECE))
        assert found[number] == expected.ljust(256, b"\0")


def test_an_asker_that_wants_no_pieces_gets_none(replica: tuple[RawDevice, bytearray]) -> None:
    device, content = replica
    content[0] ^= 1
    with ThreadPoolExecutor(1) as readers:
        reply = compare(table(bytes(content), 0, 41, 0), device, readers)
        assert (reply.differing[0], reply.block_pieces, reply.pieces) == (1, 0, b"")
        with pytest.raises(ProtocolError):
            compare(table(bytes(content), 30, 12), device, readers)


def sync_pass(blocks: int) -> passes.SyncPass:
    disk = SourceDisk(DiskId("d"), 0, "serial:0", blocks * BLOCK, SyncMode.COMPARE)
    return passes.SyncPass(PassId("p"), [(disk, SyncMode.COMPARE)])


def reply(sequence: int, chunk: passes.Chunk, numbers: list[int]) -> DigestReply:
    bits = sum(1 << number for number in numbers)
    pieces = b"".join(number.to_bytes(2, "little") * 8 * 16 for number in numbers)
    return DigestReply(MachineId("m"), 1, sequence, PassId("p"), 0, chunk.first_block, chunk.count,
                       bits.to_bytes((chunk.count + 7) // 8, "little"), 16, pieces)  # fmt: skip


def test_blocks_wait_for_their_pieces_and_a_restart_compares_them_again() -> None:
    sync = sync_pass(1024)
    chunks = [sync.next_chunk(), sync.next_chunk()]
    for sequence, chunk in enumerate(chunks):
        assert chunk is not None
        sync.sent(sequence, chunk)
        assert sync.answered(reply(sequence, chunk, [5, 500] if sequence else [300]), KEY) is chunk
    assert sync.answered_all
    assert not sync.read
    assert sync.holds_back(0)
    assert sync.resume_blocks() == {0: 300}
    first = sync.take_waiting(2)
    assert [(one.block, one.key, one.pieces) for one in first] == [
        (300, KEY, (300).to_bytes(2, "little") * 128), (512 + 5, KEY, (5).to_bytes(2, "little") * 128),
    ]  # fmt: skip
    sync.give_back(first)
    assert sync.take_waiting(2) == first
    last = sync.take_waiting(2)
    assert [one.block for one in last] == [1012]
    assert sync.read
    assert not sync.holds_back(0)
    assert sync.resume_blocks() == {0: 300}
    sync.spooled(first)
    assert sync.resume_blocks() == {0: 1012}
    sync.spooled(last)
    assert sync.resume_blocks() == {0: 1024}


def test_no_further_chunk_is_hashed_while_many_blocks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MOST_WAITING", 3)
    sync = sync_pass(2048)
    chunk = sync.next_chunk()
    assert chunk is not None
    sync.sent(1, chunk)
    sync.answered(reply(1, chunk, [1, 2, 3]), KEY)
    assert sync.next_chunk() is None
    sync.take_waiting(1)
    assert sync.next_chunk() is not None
