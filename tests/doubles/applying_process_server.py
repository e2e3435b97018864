"""A receiving end for the mobility service's tests: a process server and a master target in one, in this process.

It takes the stream of one machine over a real link, checks that items and positions have no hole, applies batches to replica
files, answers digests from them at exactly their place, and acknowledges at once (or holds landed back on demand).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
import zstandard

from failback.model.stream import Codec, GapCause, MarkKind, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.frames import RawItem
from failback.protocol.messages import DIGEST_BYTES, Ack, Batch, DigestReply, Digests, Hello, Welcome
from failback.transport.identity import Identity
from failback.transport.link import Link, LinkServer, serve_links


@dataclass
class Received:
    """What the double remembers of an item."""

    epoch: int
    sequence: int
    kind: str
    gap: GapCause = GapCause.NONE
    mark_kind: MarkKind = MarkKind.NONE
    mark_id: str = ""
    payload_bytes: int = 0
    rereads: int = 0
    wall_ns: int = 0


@dataclass
class Replica:
    path: Path
    size: int
    written_bytes: int = 0
    descriptor: int = -1

    def __post_init__(self) -> None:
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT)
        if os.fstat(self.descriptor).st_size != self.size:
            os.ftruncate(self.descriptor, self.size)


@dataclass
class ApplyingProcessServer:
    identity: Identity
    replicas: dict[int, Replica]
    incarnation: str = "journal-1"
    epoch: int = 0
    sequence: int = 0
    ring: int = 0
    items: list[Received] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    land: bool = True
    landed: tuple[int, int] = (0, 0)
    refuse: Exception | None = None
    snapshots: dict[str, dict[int, Path]] = field(default_factory=dict)
    on_item: Callable[[Received], None] | None = None
    server: LinkServer | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _current: Link | None = None

    async def start(self, port: int = 0) -> int:
        self.server = await serve_links("127.0.0.1", port, self.identity, self._accept)
        return self.server.port

    async def close(self) -> None:
        if self.server is not None:
            await self.server.close()
        for replica in self.replicas.values():
            os.close(replica.descriptor)

    async def _accept(self, link: Link, hello: Hello) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.hellos.append(hello)
        if self._current is not None:
            await self._current.close()
        async with self._lock:  # the older link's last item is finished before the Welcome says where we stand
            self._current = link
            if hello.epoch != self.epoch:
                assert hello.epoch > self.epoch, "a stale epoch"
                self.epoch, self.sequence, self.ring, self.landed = hello.epoch, 0, 0, (0, 0)
            await link.send(
                Welcome(1, "double", self.epoch, self.sequence, self.ring, *self._landed(), self.incarnation)
            )
        while True:
            for item in await link.receive_some():
                assert isinstance(item, RawItem)
                async with self._lock:
                    if self._current is not link:
                        return
                    self._take(link, item)
            await asyncio.sleep(0)

    def _landed(self) -> tuple[int, int]:
        if self.land:
            self.landed = (self.sequence, self.ring)
        return self.landed

    def _take(self, link: Link, raw: RawItem) -> None:
        item = raw.decode()
        assert item.sequence == self.sequence + 1, f"item {item.sequence} after {self.sequence}"
        if isinstance(item, Batch):
            assert item.first_position >= self.ring or self.ring == 0, f"{item.first_position} before {self.ring}"
            self._apply(item)
            self.ring = item.end_position
        else:
            self._compare(link, item)
        self.sequence = item.sequence
        link.send_small(Ack(self.epoch, self.sequence, self.ring, *self._landed(), self.incarnation))

    def _apply(self, batch: Batch) -> None:
        payload = bytes(batch.payload)
        if batch.codec is Codec.ZSTD:
            payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=batch.payload_raw_bytes)
        assert len(payload) == batch.payload_raw_bytes
        place, rereads = 0, 0
        for disk, operation, flags, length, offset in EXTENT.iter_unpack(batch.extents):
            replica = self.replicas[disk]
            rereads += flags & 1
            if operation == Operation.DATA:
                os.pwrite(replica.descriptor, payload[place : place + length], offset)
                place += length
                replica.written_bytes += length
            else:
                os.pwrite(replica.descriptor, bytes(length), offset)
        assert place == len(payload)
        received = Received(
            batch.epoch,
            batch.sequence,
            "batch",
            batch.gap,
            batch.mark_kind,
            batch.mark_id,
            place,
            rereads,
            batch.wall_ns,
        )
        self.items.append(received)
        if batch.mark_kind is not MarkKind.NONE:
            self.snapshots[batch.mark_id] = {index: self.snapshot(index, batch.mark_id) for index in self.replicas}
        if self.on_item is not None:
            self.on_item(received)

    def snapshot(self, index: int, name: str) -> Path:
        replica = self.replicas[index]
        copy = replica.path.with_name(f"{replica.path.name}.{name}")
        shutil.copyfile(replica.path, copy)
        return copy

    def _compare(self, link: Link, digests: Digests) -> None:
        replica = self.replicas[digests.disk_index]
        count = len(digests.digests) // DIGEST_BYTES
        bitmap = bytearray((count + 7) // 8)
        for index in range(count):
            offset = (digests.first_block + index) * digests.block_bytes
            block = os.pread(replica.descriptor, digests.block_bytes, offset)
            expected = digests.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
            if xxhash.xxh3_128_digest(block, seed=digests.key) != expected:
                bitmap[index // 8] |= 1 << (index % 8)
        self.items.append(Received(digests.epoch, digests.sequence, "digests"))
        link.send_small(DigestReply(digests.machine_id, digests.epoch, digests.sequence, digests.pass_id,
                                    digests.disk_index, digests.first_block, count, bytes(bitmap)))  # fmt: skip

    def same_as(self, index: int, device: str) -> bool:
        """Whether the replica and the device are equal, byte by byte, past the page cache of the device."""
        subprocess.run(["blockdev", "--flushbufs", device], check=True)
        return subprocess.run(["cmp", "-s", str(self.replicas[index].path), device], check=False).returncode == 0
