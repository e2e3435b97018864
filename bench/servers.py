"""Many machines into one process server and one master target: streams as agents send them, without agents, so that what the two
servers cost can be told from what the machines do.

Each machine has one disk and one sender with that machine's certificate. ``send`` gives every machine's items to its sender as
fast as it takes them (or paced) and returns when all of them are applied and flushed.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.chain import Chain, Role
from failback.model import orders
from failback.model.components import (
    Endpoint,
    MasterTargetAssignment,
    ProcessServerAssignment,
    ReplicaAssignment,
    RoutedMachine,
)
from failback.model.ids import NO_GROUP, ComponentId, DiskId, MachineId, MarkId
from failback.model.points import ReplicaDisk
from failback.model.stream import Codec, GapCause, MarkKind, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import Ack, Batch, Hello, StreamDisk, Welcome
from failback.transport.sender import HeldItems, StreamSender


@dataclass
class Machine:
    """One stream: its identity, where it stands, when its items landed."""

    number: int
    machine_id: str
    size_bytes: int
    sequence: int = 0
    landed: int = 0
    sent_at: dict[int, float] = field(default_factory=dict)
    lags: list[float] = field(default_factory=list)

    def disk_path(self, target: Path) -> Path:
        return target / f"disk-{self.number}.img"

    def replica_path(self, target: Path) -> Path:
        return target / f"disk-{self.number}.img.replica"


class Fleet:
    """``chain`` runs a process server and a master target; use within it. Attaches and assigns on creation."""

    def __init__(self, chain: Chain, sizes: list[int]) -> None:
        self.chain = chain
        self.machines = [Machine(number, str(uuid.uuid4()), size) for number, size in enumerate(sizes)]
        self._attach()
        self._assign()

    def _attach(self) -> None:
        for machine in self.machines:
            path = str(machine.disk_path(self.chain.target))
            disk = ReplicaDisk(DiskId(str(uuid.UUID(int=1))), 0, path, "raw", machine.size_bytes, True)
            arguments = orders.AttachReplica(MachineId(machine.machine_id), "retention", (disk,))
            self.chain.planes[Role.MASTER_TARGET].order(orders.ATTACH_REPLICA, arguments, 60)

    def _assign(self) -> None:
        chain = self.chain
        chain.epoch += 1
        target = Endpoint("127.0.0.1", chain.ports[Role.MASTER_TARGET], ComponentId(chain.target_id))
        server, policy = ComponentId(chain.server_id), chain.policy
        named = [MachineId(machine.machine_id) for machine in self.machines]
        chain.planes[Role.MASTER_TARGET].assign(
            MasterTargetAssignment(tuple(ReplicaAssignment(one, chain.epoch, server, policy) for one in named))
        )
        chain.planes[Role.PROCESS_SERVER].assign(
            ProcessServerAssignment(tuple(RoutedMachine(one, chain.epoch, target) for one in named))
        )
        chain.until(
            lambda: [one["epoch"] for one in chain._spooled()] == [chain.epoch] * len(named), 60
        )

    def applied(self, machine: Machine) -> int:
        for replica in self.chain.planes[Role.MASTER_TARGET].status.get("replicas", []):
            if replica["machine_id"] == machine.machine_id and replica.get("epoch") == self.chain.epoch:
                return int(replica["applied_sequence"])
        return -1

    def send(self, items: Callable[[Machine], Iterator[Batch]], *, pace_seconds: float = 0.0) -> dict[str, Any]:
        """``items`` gives a machine's batches (see :class:`Batches`); returns seconds and processor seconds by role."""
        before, began = self.chain.cpu_seconds(), time.monotonic()
        asyncio.run(self._send(items, pace_seconds))
        landed = time.monotonic() - began
        self.chain.until(lambda: all(self.applied(one) >= one.sequence for one in self.machines), 600)
        used = {role: round(after - before[role], 3) for role, after in self.chain.cpu_seconds().items()}
        return {"landed_seconds": round(landed, 3), "seconds": round(time.monotonic() - began, 3),
                **{f"cpu_{role}": seconds for role, seconds in used.items()}}  # fmt: skip

    async def _send(self, items: Callable[[Machine], Iterator[Batch]], pace_seconds: float) -> None:
        async with asyncio.TaskGroup() as group:
            for machine in self.machines:
                group.create_task(self._stream(machine, items(machine), pace_seconds))

    async def _stream(self, machine: Machine, batches: Iterator[Batch], pace_seconds: float) -> None:
        disks = (StreamDisk(DiskId(str(uuid.UUID(int=1))), 0, machine.size_bytes),)
        everything = asyncio.Event()

        async def acknowledged(message: Ack | Welcome) -> None:
            now = time.monotonic()
            for sequence in range(machine.landed + 1, message.landed_sequence + 1):
                machine.lags.append(now - machine.sent_at.pop(sequence, now))
            machine.landed = max(machine.landed, message.landed_sequence)
            if machine.landed >= machine.sequence:
                everything.set()

        held = HeldItems(
            lambda: Hello(MachineId(machine.machine_id), self.chain.epoch, "bench", 1, 1, disks, "", 0, machine.landed + 1),
            on_welcome=acknowledged, on_ack=acknowledged, limit_bytes=64 << 20,
        )  # fmt: skip
        endpoint = Endpoint("127.0.0.1", self.chain.ports[Role.PROCESS_SERVER], ComponentId(self.chain.server_id))
        identity = self.chain.authority.identity(machine.machine_id, Role.MOBILITY)
        sending = asyncio.create_task(StreamSender(endpoint, identity, held, expect=Role.PROCESS_SERVER).run())
        try:
            due = time.monotonic()
            for batch in batches:
                due += pace_seconds
                await asyncio.sleep(max(0.0, due - time.monotonic()) if pace_seconds else 0)
                machine.sent_at[batch.sequence] = time.monotonic()
                await held.send(batch)
            while machine.landed < machine.sequence:
                everything.clear()
                if sending.done():
                    sending.result()
                await asyncio.wait_for(everything.wait(), 300)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


@dataclass(frozen=True)
class Batches:
    """Batches of ``batch_bytes`` in extents of ``extent_bytes`` at random places, or in order; each a slice of ``content``."""

    total_bytes: int
    batch_bytes: int
    extent_bytes: int
    content: bytes
    epoch: int
    sequential: bool = False
    spread: int = 1
    """In order: leave so much room that the writes lie all over the disk."""
    gap: GapCause = GapCause.NONE
    mark_at_end: bool = False

    def __call__(self, machine: Machine) -> Iterator[Batch]:
        chance = random.Random(machine.number)
        count = self.batch_bytes // self.extent_bytes
        blocks = machine.size_bytes // self.extent_bytes
        number = self.total_bytes // self.batch_bytes
        for index in range(number):
            first = index * count
            in_order = [(first + one) * self.spread % blocks for one in range(count)]
            places = in_order if self.sequential else chance.sample(range(blocks), count)
            begin = chance.randrange(max(1, (len(self.content) - self.batch_bytes) // 4096)) * 4096
            machine.sequence += 1
            last = index == number - 1
            mark = str(uuid.uuid4()) if self.mark_at_end and last else ""
            yield Batch(
                machine_id=MachineId(machine.machine_id), group_id=NO_GROUP, epoch=self.epoch, sequence=machine.sequence,
                first_position=(machine.sequence - 1) * 1000, end_position=machine.sequence * 1000, wall_ns=time.time_ns(),
                oldest_ns=0, gap=GapCause.NONE if last else self.gap,
                mark_kind=MarkKind.APP_CONSISTENT if mark else MarkKind.NONE, mark_id=MarkId(mark), codec=Codec.RAW,
                payload_raw_bytes=self.batch_bytes,
                extents=b"".join(EXTENT.pack(0, Operation.DATA, 0, self.extent_bytes, one * self.extent_bytes) for one in places),
                payload=memoryview(self.content)[begin : begin + self.batch_bytes],
            )  # fmt: skip


    def lie_on(self, machine: Machine, target: Path) -> bool:
        """Whether the machine's replica holds what was sent (in order, each place once)."""
        again = Machine(machine.number, machine.machine_id, machine.size_bytes)
        with machine.replica_path(target).open("rb") as replica:
            for batch in self(again):
                for number, (_, _, _, length, offset) in enumerate(EXTENT.iter_unpack(batch.extents)):
                    replica.seek(offset)
                    if replica.read(length) != batch.payload[number * length : (number + 1) * length]:
                        return False
        return True


def random_content(size_bytes: int) -> bytes:
    return os.urandom(size_bytes)
