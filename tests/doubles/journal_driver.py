"""A process that feeds random batches (real frames) into a journal and applies them: what the crash tests kill.

Everything is derived from the seed: batch ``n`` is the same in every run, so that a restarted process goes on after what
has landed, and a model can say what the disks have to be after any batch. Run it: ``journal_driver.py FOLDER SEED COUNT``.
"""

from __future__ import annotations

import random
import sys
import uuid
from pathlib import Path

import zstandard

from failback.block.device import BlockDevice
from failback.block.raw import RawDevice, create_sparse
from failback.journal.journal import Journal
from failback.model.ids import NO_GROUP, DiskId, MachineId, MarkId
from failback.model.points import PointChoice, PointKind, PointSelector, ReplicaDisk
from failback.model.policy import ReplicationPolicy
from failback.model.stream import Codec, GapCause, MarkKind, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.frames import encode
from failback.protocol.items import RawItem
from failback.protocol.messages import Batch

MACHINE = MachineId("11111111-2222-3333-4444-555555555555")
SIZES = {0: (1 << 20) + 1536, 1: 640 * 1024}
START_NS = 1_800_000_000_000_000_000


def disks(folder: Path) -> tuple[ReplicaDisk, ...]:
    return tuple(
        ReplicaDisk(DiskId(f"disk-{index}"), index, str(folder / f"{index}.img"), "raw", size, create=True)
        for index, size in SIZES.items()
    )


def mark_id(seed: int, sequence: int) -> str:
    return str(uuid.UUID(int=random.Random(f"mark {seed} {sequence}").getrandbits(128)))


def make_batch(seed: int, sequence: int, epoch: int = 1, mark: tuple[MarkKind, str] | None = None) -> Batch:
    """Batch ``sequence`` of the stream: overlapping data, zero and discard extents, now and then a mark or a gap."""
    chance = random.Random(f"{seed} {sequence}")
    extents, payload = [], []
    for _ in range(chance.choice((0, 1, 3, 12))):
        disk = chance.choice((0, 0, 1))
        length = chance.choice((512, 1024, 4096, 4096, 16384, 70144))
        offset = chance.randrange((SIZES[disk] - length) // 512 + 1) * 512
        operation = chance.choice((Operation.DATA,) * 5 + (Operation.ZERO, Operation.DISCARD))
        extents.append(EXTENT.pack(disk, operation, 0, length, offset))
        if operation is Operation.DATA:
            word = chance.randbytes(chance.choice((1, 8, 512)))
            payload.append((word * (length // len(word) + 1))[:length])
    raw = b"".join(payload)
    packed = zstandard.compress(raw, 1) if raw and chance.random() < 0.5 else raw
    gap = GapCause.SYNC if sequence <= 3 else GapCause.OVERFLOW if 20 <= sequence <= 22 else GapCause.NONE
    marked = gap is GapCause.NONE and chance.random() < 0.15
    return Batch(
        machine_id=MACHINE, group_id=NO_GROUP, epoch=epoch, sequence=sequence,
        first_position=(sequence - 1) * 1000, end_position=sequence * 1000,
        wall_ns=START_NS + sequence * 1_000_000_000, oldest_ns=0, gap=gap,
        mark_kind=mark[0] if mark else MarkKind.APP_CONSISTENT if marked else MarkKind.NONE,
        mark_id=MarkId(mark[1] if mark else mark_id(seed, sequence) if marked else ""),
        codec=Codec.RAW if packed is raw else Codec.ZSTD, payload_raw_bytes=len(raw),
        extents=b"".join(extents), payload=packed,
    )  # fmt: skip


def frame(batch: Batch) -> RawItem:
    return RawItem.from_buffer(b"".join(bytes(part) for part in encode(batch)))


class Model:
    """What the disks have to be after each batch, extent by extent."""

    def __init__(self, seed: int, initial: dict[int, bytes]) -> None:
        self.seed = seed
        self.sequence = 0
        self.content = {disk: bytearray(data) for disk, data in initial.items()}

    def advance(self, sequence: int) -> dict[int, bytes]:
        while self.sequence < sequence:
            self.sequence += 1
            batch = make_batch(self.seed, self.sequence)
            raw = bytes(batch.payload)
            if batch.codec is Codec.ZSTD:
                raw = zstandard.decompress(raw, max_output_size=batch.payload_raw_bytes)
            place = 0
            for disk, operation, _, length, offset in EXTENT.iter_unpack(batch.extents):
                if operation == Operation.DATA:
                    self.content[disk][offset : offset + length] = raw[place : place + length]
                    place += length
                else:
                    self.content[disk][offset : offset + length] = bytes(length)
        return {disk: bytes(data) for disk, data in self.content.items()}


def initial(seed: int) -> dict[int, bytes]:
    """The disks as found: half text, half holes."""
    chance = random.Random(f"initial {seed}")
    return {
        disk: (chance.randbytes(64) * 8192)[: size // 2 // 512 * 512].ljust(size, b"\0") for disk, size in SIZES.items()
    }


def open_world(folder: Path, seed: int) -> tuple[Journal, dict[int, BlockDevice]]:
    folder.mkdir(exist_ok=True)
    for disk in disks(folder):
        if not Path(disk.path).exists():
            create_sparse(Path(disk.path + ".new"), disk.size_bytes)
            device = RawDevice(Path(disk.path + ".new"))
            device.write(0, initial(seed)[disk.index])
            device.flush()
            device.close()
            Path(disk.path + ".new").rename(disk.path)
    journal = Journal.create(folder / "journal", MACHINE, disks(folder), START_NS)
    journal.policy = ReplicationPolicy(name="test", crash_consistent_seconds=10)
    return journal, {disk.index: RawDevice(Path(disk.path)) for disk in disks(folder)}


def run(folder: Path, seed: int, count: int) -> None:
    """Land and apply up to batch ``count``, with thinning, a rollback and a return on the way."""
    journal, devices = open_world(folder, seed)
    journal.start(devices, lambda reply: None)
    if journal.epoch == 0:
        journal.begin_epoch(1)
    if journal.destination is not None:
        journal.resume()
    chance = random.Random(f"run {seed} {journal.landed.sequence}")
    while journal.landed.sequence < count:
        for sequence in range(
            journal.landed.sequence + 1, min(journal.landed.sequence + chance.randint(1, 4), count) + 1
        ):
            journal.append(frame(make_batch(seed, sequence)))
        journal.sync()
        while chance.random() < 0.7 and journal.apply_step():
            pass
        if chance.random() < 0.15:
            living = [point for point in journal.points() if point.kind is not PointKind.BEFORE_REPROTECT]
            if len(living) > 2:
                journal.drop_point(chance.choice(living[:-1]).point_id)
        if chance.random() < 0.15:
            point = chance.choice(journal.points())
            journal.prepare(PointChoice(PointSelector.POINT, point.point_id), lambda done, total: None)
            journal.resume()
    while journal.apply_step():
        pass
    journal.stop()
    journal.close()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
