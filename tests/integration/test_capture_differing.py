"""A comparison that sends only the pieces that differ, on a real disk that is written to all the while (D8, D12)."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from capture_disk import BLOCK_BYTES, Follower, disk_of, is_identical, loop_disk, pin_directory, seeded_replica, sh

from failback.mobility.capture.session import CaptureSession
from failback.mobility.capture.values import Differing
from failback.mobility.hashing import BlockHasher
from failback.mobility.passes import PIECE_BYTES, Chunk
from failback.protocol.extents import EXTENT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing writes needs root")

MEBIBYTES = 96
KEY = 4711


def spoil(path: Path, chance: random.Random, places: int) -> None:
    """Differences of a sector to some pieces, holes and zeroes among them."""
    with path.open("r+b") as stream:
        for _ in range(places):
            size = 512 * chance.choice((1, 1, 8, 20))
            stream.seek(512 * chance.randrange((MEBIBYTES << 11) - 20))
            stream.write(bytes(size) if chance.random() < 0.2 else chance.randbytes(size))


def digests(content: bytes, size: int) -> list[bytes]:
    return [xxhash.xxh3_128_digest(content[at : at + size], KEY) for at in range(0, len(content), size)]


def compared(device: str, replica: Path, first: int, count: int) -> Iterator[Differing]:
    """What the master target would answer now for digests that are made now."""
    hasher = BlockHasher(device, MEBIBYTES << 20, KEY)
    theirs = hasher.hash_chunk(Chunk(0, first, count)).digests
    hasher.close()
    with replica.open("rb") as stream:
        stream.seek(first * BLOCK_BYTES)
        content = stream.read(count * BLOCK_BYTES)
    for number, mine in enumerate(digests(content, BLOCK_BYTES)):
        if mine != theirs[number * 16 : number * 16 + 16]:
            block = content[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            yield Differing(0, first + number, KEY, PIECE_BYTES, b"".join(digests(block, PIECE_BYTES)))


def follow(follower: Follower, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        follower.drain(follower.session.produced_position())
        follower.round()


def send(follower: Follower, wanted: list[Differing]) -> int:
    """Bytes of the pieces that went to the replica."""
    while not (reread := follower.session.reread_differing(wanted)).ok:
        follow(follower, 0.1)
    follower.drain(reread.p0)
    follower.replica.apply(reread)
    follower.drain(reread.end_position)
    follower.session.reread_durable(reread)
    return sum(length for _, _, _, length, _ in EXTENT.iter_unpack(reread.extents))


def test_pieces_that_differ_make_a_disk_in_use_equal(tmp_path: Path) -> None:
    with loop_disk(Path("/dev/shm"), MEBIBYTES) as (device, _), pin_directory() as pins:
        sh(f"dd if=/dev/urandom of={device} bs=1M count={MEBIBYTES // 2} oflag=direct")
        replica = seeded_replica(device, tmp_path / "replica")
        spoil(tmp_path / "replica", random.Random(3), 300)
        load = subprocess.Popen(
            ["fio", "--output=/dev/null", "--name=w", f"--filename={device}", "--rw=randwrite", "--bsrange=512-16k",
             "--time_based", "--runtime=6", "--ioengine=libaio", "--direct=1", "--iodepth=4", "--rate_iops=1500",
             "--serialize_overlap=1"],
        )  # fmt: skip
        session = CaptureSession.open([disk_of(device)], pin_directory=pins)
        try:
            follower = Follower(session, replica)
            session.mark_dirty(0, 0, 1)  # proves that nothing from before is in flight
            follow(follower, 0.5)
            per_chunk = 256
            for first in range(0, MEBIBYTES * 16, per_chunk):
                follower.drain(session.produced_position())
                wanted = list(compared(device, replica.path, first, per_chunk))
                follow(follower, 0.3)  # the stream goes on between question and answer
                for at in range(0, len(wanted), 40):
                    send(follower, wanted[at : at + 40])
            assert load.wait() == 0
            follow(follower, 0.3)
            assert not session.dirty_blocks()
            follower.drain(session.produced_position())
        finally:
            load.kill()
            session.detach()
        assert is_identical(device, replica.path)


def test_only_pieces_that_differ_travel(tmp_path: Path) -> None:
    with loop_disk(Path("/dev/shm"), MEBIBYTES) as (device, _), pin_directory() as pins:
        sh(f"dd if=/dev/urandom of={device} bs=1M count={MEBIBYTES // 2} oflag=direct")
        replica = seeded_replica(device, tmp_path / "replica")
        chosen = random.Random(4).sample(range(MEBIBYTES * 256), 100)
        for piece in chosen:
            os.pwrite(replica._descriptor, os.urandom(PIECE_BYTES), piece * PIECE_BYTES)
        session = CaptureSession.open([disk_of(device)], pin_directory=pins)
        try:
            follower = Follower(session, replica)
            wanted = list(compared(device, replica.path, 0, MEBIBYTES * 16))
            assert {one.block for one in wanted} == {piece * PIECE_BYTES // BLOCK_BYTES for piece in chosen}
            assert send(follower, wanted) == len(chosen) * PIECE_BYTES
            assert session.dirty_blocks() == 0
        finally:
            session.detach()
        assert is_identical(device, replica.path)
