"""A loop device under capture and a replica that a small applier builds from what the session gives out.

``captured_disk`` cleans up loop devices, mounts and pins whatever happens. ``Replica`` follows the rules of the stream: batches
in order, a re-read placed at its p0, records after it on top; it is deliberately simple and independent of the product's code.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from failback.mobility.capture.session import CaptureSession
from failback.mobility.capture.values import CaptureDisk, Collected, Reread
from failback.protocol.extents import EXTENT

BLOCK_BYTES = 65536
GENERATIONS = 65535


def sh(command: str, *, check: bool = True) -> str:
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{command}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def is_identical(device: str, replica: Path) -> bool:
    sh("sync")
    sh(f"blockdev --flushbufs {device}")
    return subprocess.run(["cmp", device, str(replica)], check=False, capture_output=True).returncode == 0


@dataclass
class Replica:
    """The other side: a file that gets every extent, in order."""

    path: Path
    extents: int = 0
    rereads: int = 0
    marks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT)

    def apply(self, item: Collected | Reread) -> None:
        at = 0
        payload = b"".join(item.payload)
        for _, operation, _, length, offset in EXTENT.iter_unpack(item.extents):
            assert offset % 512 == 0
            assert length % 512 == 0
            assert length > 0
            if operation == 1:
                os.pwrite(self._descriptor, payload[at : at + length], offset)
                at += length
            else:
                for start in range(offset, offset + length, 1 << 20):
                    os.pwrite(self._descriptor, bytes(min(1 << 20, offset + length - start)), start)
            self.extents += 1
        assert at == len(payload) == item.payload_bytes
        if isinstance(item, Reread):
            self.rereads += 1
        else:
            self.marks += [number for number, _ in item.marks]

    def close(self) -> None:
        os.close(self._descriptor)


class Follower:
    """The agent's loop: collect, apply, release; one re-read round at a time while blocks are dirty."""

    def __init__(
        self, session: CaptureSession, replica: Replica, *, pause_seconds: float = 0.0, limit: int = 4 << 20
    ) -> None:
        self.session = session
        self.replica = replica
        self.pause_seconds = pause_seconds
        self.limit = limit
        self.failed_rounds = 0

    def drain(self, up_to: int | None = None) -> None:
        """Everything up to a position (waiting for records still being filled), or all that is there."""
        while up_to is None or self.session.cursor() < up_to:
            collected = self.session.collect(self.limit, up_to=up_to)
            if collected is None:
                if up_to is None:
                    return
                time.sleep(0.0005)
                continue
            self.replica.apply(collected)
            end = collected.end_position
            del collected
            self.session.release(end)
            if self.pause_seconds:
                time.sleep(self.pause_seconds)

    def round(self, blocks: int = 64) -> bool:
        reread = self.session.reread(blocks)
        if reread is None:
            return False
        if not reread.ok:
            self.failed_rounds += 1
            return True
        self.drain(reread.p0)
        self.replica.apply(reread)
        self.session.reread_durable(reread)
        return True

    def follow_until(self, stop: threading.Event, deadline_seconds: float = 60.0) -> None:
        """Until the event is set and nothing is left to do."""
        deadline = time.monotonic() + deadline_seconds
        while time.monotonic() < deadline:
            stopping = stop.is_set()
            before = self.session.cursor()
            self.drain(self.session.produced_position())
            if self.round() or self.session.cursor() != before:
                continue
            if (
                stopping
                and not self.session.dirty_blocks()
                and self.session.produced_position() == self.session.cursor()
            ):
                return
            time.sleep(0.001)
        raise AssertionError("the replica did not catch up")


@contextlib.contextmanager
def loop_disk(directory: Path, mebibytes: int, *, options: str = "") -> Iterator[tuple[str, Path]]:
    """(device, backing file)."""
    backing = directory / f"disk-{uuid.uuid4().hex[:8]}.img"
    with backing.open("wb") as stream:
        stream.truncate(mebibytes << 20)
    device = sh(f"losetup -f --show {options} {backing}")
    try:
        yield device, backing
    finally:
        sh(f"umount -q {device} {device}p1 {device}p2", check=False)
        sh(f"losetup -d {device}", check=False)
        backing.unlink(missing_ok=True)


@contextlib.contextmanager
def pin_directory() -> Iterator[Path]:
    directory = Path(f"/sys/fs/bpf/failback-test-{uuid.uuid4().hex[:8]}")
    try:
        yield directory
    finally:
        for pin in sorted(directory.glob("*"), key=lambda path: not path.name.startswith("link_")):
            pin.unlink()
        if directory.exists():
            directory.rmdir()


def disk_of(device: str, index: int = 0) -> CaptureDisk:
    return CaptureDisk(index, device, int(sh(f"blockdev --getsize64 {device}")))


def seeded_replica(device: str, path: Path) -> Replica:
    """A replica equal to the device as it is now, nothing being written."""
    sh("sync")
    sh(f"blockdev --flushbufs {device}")
    sh(f"cp --sparse=always {device} {path}")
    return Replica(path)
