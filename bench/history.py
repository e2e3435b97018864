"""A long history for ``points`` and ``history_space``: batches with marks, sent to the real master target over TLS by a sender
that has a process server's certificate, and a mirror of what the disk has to be.

64 KiB extents at random places; every point is a mark. The journal and the disk lie on a file system of their own.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from bench.chain import Chain, Role
from bench.ground import MEBIBYTE, run
from failback.model.components import Endpoint, MasterTargetAssignment, ReplicaAssignment
from failback.model.ids import NO_GROUP, ComponentId, DiskId, MachineId, MarkId
from failback.model.stream import Codec, GapCause, MarkKind, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import Ack, Batch, Hello, StreamDisk, Welcome
from failback.transport.sender import HeldItems, StreamSender

EXTENT_BYTES = 65536
BATCH_BYTES = 4 * MEBIBYTE


def digest(path: Path) -> str:
    found = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while piece := stream.read(16 * MEBIBYTE):
            found.update(piece)
    return found.hexdigest()


@dataclass
class Told:
    """What was sent: payload bytes, marks in order, and the mirror's digest at the marks that were asked for."""

    raw_bytes: int
    marks: list[str]
    digests: dict[int, str]
    seconds: float


class History:
    """Use within a started chain whose replica is attached with the content of ``mirror``."""

    def __init__(self, chain: Chain, mirror: Path, contents: Callable[[random.Random], bytes]) -> None:
        self._chain, self._mirror, self._contents = chain, mirror, contents
        self._landed = 0
        self._observe: Callable[[int], None] | None = None

    def send(
        self, total_bytes: int, points: int, check_at: set[int], observe: Callable[[int], None] | None = None
    ) -> Told:
        """``observe`` is called at each point, when the mirror is exactly at it."""
        self._observe = observe
        return asyncio.run(self._send(total_bytes, points, check_at))

    async def _send(self, total_bytes: int, points: int, check_at: set[int]) -> Told:
        chain = self._chain
        chain.epoch += 1
        machine, server = MachineId(chain.machine_id), str(uuid.uuid4())
        chain.planes[Role.MASTER_TARGET].assign(
            MasterTargetAssignment((ReplicaAssignment(machine, chain.epoch, ComponentId(server), chain.policy),))
        )
        await asyncio.sleep(1.0)  # the assignment is under way
        disks = (StreamDisk(DiskId(str(uuid.UUID(int=1))), 0, chain.size_bytes),)

        async def acknowledged(message: Ack | Welcome) -> None:
            self._landed = max(self._landed, message.landed_sequence)

        items = HeldItems(
            lambda: Hello(machine, chain.epoch, "bench", 1, 1, disks, "", 0, self._landed + 1),
            on_welcome=acknowledged, on_ack=acknowledged, limit_bytes=64 * MEBIBYTE,
        )  # fmt: skip
        endpoint = Endpoint("127.0.0.1", chain.ports[Role.MASTER_TARGET], ComponentId(chain.target_id))
        identity = chain.authority.identity(server, Role.PROCESS_SERVER)
        sending = asyncio.create_task(StreamSender(endpoint, identity, items, expect=Role.MASTER_TARGET).run())
        began = time.monotonic()
        try:
            told, sequence = await self._points(items, total_bytes, points, check_at)
            while chain._applied() < sequence:
                if sending.done():
                    sending.result()
                await asyncio.sleep(0.05)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        told.seconds = time.monotonic() - began
        return told

    async def _points(self, items: HeldItems, total_bytes: int, points: int, check_at: set[int]) -> tuple[Told, int]:
        chance = random.Random(11)
        told = Told(0, [], {}, 0.0)
        sequence = 0
        mirror = os.open(self._mirror, os.O_RDWR)
        for point in range(points):
            left = total_bytes // points
            while left > 0:
                size = min(BATCH_BYTES, left)
                left -= size
                sequence += 1
                batch = self._batch(sequence, size, chance, "" if left > 0 else str(uuid.uuid4()), mirror)
                told.raw_bytes += len(batch.payload)
                await items.send(batch)
            told.marks.append(batch.mark_id)
            if self._observe is not None:
                await asyncio.to_thread(self._observe, point)
            if point in check_at:
                told.digests[point] = digest(self._mirror)
        os.close(mirror)
        return told, sequence

    def _batch(self, sequence: int, size: int, chance: random.Random, mark: str, mirror: int) -> Batch:
        places = sorted(chance.sample(range(self._chain.size_bytes // EXTENT_BYTES), max(1, size // EXTENT_BYTES)))
        pieces = [self._contents(chance) for _ in places]
        for place, piece in zip(places, pieces, strict=True):
            os.pwrite(mirror, piece, place * EXTENT_BYTES)
        extents = [EXTENT.pack(0, Operation.DATA, 0, EXTENT_BYTES, place * EXTENT_BYTES) for place in places]
        payload = b"".join(pieces)
        return Batch(
            machine_id=MachineId(self._chain.machine_id), group_id=NO_GROUP, epoch=self._chain.epoch, sequence=sequence,
            first_position=(sequence - 1) * 1000, end_position=sequence * 1000, wall_ns=time.time_ns(), oldest_ns=0,
            gap=GapCause.NONE, mark_kind=MarkKind.APP_CONSISTENT if mark else MarkKind.NONE, mark_id=MarkId(mark),
            codec=Codec.RAW, payload_raw_bytes=len(payload), extents=b"".join(extents), payload=payload,
        )  # fmt: skip


def undo_bytes(journal: Path) -> int:
    return sum(path.stat().st_size for path in journal.rglob("*.undo"))


def place_disk(chain: Chain, mirror: Path) -> None:
    run("cp", "--sparse=always", str(mirror), str(chain.target / "disk-0.img"))
    chain.attach(create=False)
