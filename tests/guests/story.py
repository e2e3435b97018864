"""Runs in a guest as its first process's only child: the capture below LVM, md and dm-crypt on the guest's kernel.

Three disks are captured in one session all the time; each chapter stacks something else on them, loads a file system on it,
takes the stack down and compares every disk with what the stream made of its replica, byte by byte. Every line that begins
with ``STORY`` is read by the test on the host; the last one is ``STORY end``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from capture_disk import BLOCK_BYTES, disk_of, sh

from failback.mobility.capture.session import CaptureSession, is_capturable
from failback.mobility.selftest import self_test_without_capture
from failback.protocol.extents import EXTENT
from failback.runtime import logs

DISKS = ("/dev/vdc", "/dev/vdd", "/dev/vde")
SECONDS = 2
LVM = (
    "--config 'activation{udev_sync=0 udev_rules=0} devices{use_devicesfile=0} "
    "global{use_lvmpolld=0 event_activation=0} backup{backup=0 archive=0}'"
)
MOUNTED = Path("/tmp/mounted")


def say(*words: object) -> None:
    print("STORY", *words, flush=True)


class Replicas:
    """One file for each disk, from the records of one ring."""

    def __init__(self) -> None:
        self.paths = [Path(f"/tmp/replica{index}") for index in range(len(DISKS))]
        for device, path in zip(DISKS, self.paths, strict=True):
            sh(f"cp --sparse=always {device} {path}")
        self.files = [os.open(path, os.O_RDWR) for path in self.paths]

    def apply(self, extents: bytes, pieces: list[memoryview | bytes]) -> None:
        payload, at = b"".join(pieces), 0
        for disk, operation, _, length, offset in EXTENT.iter_unpack(extents):
            if operation == 1:
                os.pwrite(self.files[disk], payload[at : at + length], offset)
                at += length
            else:
                for start in range(offset, offset + length, 1 << 20):
                    os.pwrite(self.files[disk], bytes(min(1 << 20, offset + length - start)), start)


class Agent:
    """Collects, applies and releases in a thread; one round of re-reading at a time."""

    def __init__(self, session: CaptureSession, replicas: Replicas) -> None:
        self.session, self.replicas = session, replicas
        self.rereads = 0
        self.failed = ""
        self._stop = threading.Event()
        self._quiet = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                busy = self._drain(self.session.produced_position())
                reread = self.session.reread(64)
                if reread is not None and reread.ok:
                    self._drain(reread.p0)
                    self.replicas.apply(reread.extents, list(reread.payload))
                    self.session.reread_durable(reread)
                    self.rereads += len(reread.blocks)
                elif not busy and not self.session.dirty_blocks():
                    self._quiet.set()
                    time.sleep(0.005)
        except Exception:
            self.failed = traceback.format_exc()

    def _drain(self, up_to: int) -> bool:
        moved = False
        while self.session.cursor() < up_to:
            part = self.session.collect(4 << 20, up_to=up_to)
            if part is None:
                time.sleep(0.0005)
                continue
            self.replicas.apply(part.extents, list(part.payload))
            end = part.end_position
            del part
            self.session.release(end)
            moved = True
        return moved

    def settled(self) -> None:
        deadline = time.monotonic() + 120
        for _ in range(2):  # the second time everything before the first was seen
            self._quiet.clear()
            while not self._quiet.wait(0.1):
                if self.failed or time.monotonic() > deadline:
                    raise AssertionError(self.failed or "the replica did not catch up")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def fio(target: str) -> None:
    sh(f"fio --name=load {target} --rw=randwrite --bsrange=4k-64k --ioengine=libaio --direct=1 --iodepth=8 --size=24m "
       f"--time_based --runtime={SECONDS} --randrepeat=0 --refill_buffers --output=/dev/null")  # fmt: skip


def load_file_system(device: str) -> None:
    MOUNTED.mkdir(exist_ok=True)
    sh(f"mkfs.ext4 -q -F {device}")
    sh(f"mount {device} {MOUNTED}")
    try:
        fio(f"--directory={MOUNTED} --numjobs=2 --thread")
        sh(f"cp -r /etc {MOUNTED}/copied && sync && rm -r {MOUNTED}/copied")
    finally:
        sh(f"umount {MOUNTED}")


def raw() -> None:
    """Three disks at once, no stack."""
    writers = [threading.Thread(target=fio, args=(f"--filename={device}",)) for device in DISKS]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()


@contextlib.contextmanager
def volume_group() -> Iterator[None]:
    sh(f"pvcreate -ff -y {LVM} {' '.join(DISKS)}")
    sh(f"vgcreate {LVM} group {' '.join(DISKS)}")
    try:
        yield
    finally:
        sh(f"vgchange -an {LVM} group")
        sh(f"vgremove -ff -y {LVM} group")
        sh(f"pvremove -ff -y {LVM} {' '.join(DISKS)}")


def lvm_linear() -> None:
    with volume_group():
        sh(f"lvcreate -y -Wn -Zn {LVM} -l 90%VG -n linear group")
        load_file_system("/dev/mapper/group-linear")


def lvm_thin() -> None:
    with volume_group():
        sh(f"lvcreate -y {LVM} --type thin-pool -L 160m --poolmetadatasize 8m -n pool group")
        sh(f"lvcreate -y {LVM} -V 400m --thinpool pool -n thin group")
        load_file_system("/dev/mapper/group-thin")


def md(level: str) -> None:
    sh(
        f"mdadm --create /dev/md0 --run --metadata=1.2 --level={level} --raid-devices=2 {DISKS[0]} {DISKS[2]} --assume-clean"
    )
    try:
        load_file_system("/dev/md0")
    finally:
        sh("mdadm --stop /dev/md0")


def luks() -> None:
    Path("/tmp/key").write_text("a key for a test")
    sh(f"cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /tmp/key {DISKS[1]}")
    sh(f"cryptsetup open --key-file /tmp/key {DISKS[1]} secret")
    try:
        load_file_system("/dev/mapper/secret")
    finally:
        sh("cryptsetup close secret")


def in_order() -> str:
    """Numbers written one after the other round the disks come in that order, whatever the disk (D1)."""
    files = [os.open(device, os.O_RDWR | os.O_DIRECT) for device in DISKS]
    import mmap

    page = mmap.mmap(-1, 4096)
    for number in range(600):
        page[:8] = number.to_bytes(8, "little")
        page[8:16] = b"in order"
        os.pwrite(files[number % 3], page, (8 + number // 3) * BLOCK_BYTES)
    for file in files:
        os.close(file)
    return "600 numbers"


def check_order(session: CaptureSession) -> None:
    position = session.produced_position()
    assert session.cursor() == position, "something else writes"
    in_order()
    seen: list[int] = []
    disks = set()
    part = session.collect(1 << 30, up_to=session.produced_position())
    assert part is not None
    payload, at = b"".join(part.payload), 0
    for disk, operation, _, length, _ in EXTENT.iter_unpack(part.extents):
        if operation == 1:
            if payload[at + 8 : at + 16] == b"in order":
                seen.append(int.from_bytes(payload[at : at + 8], "little"))
                disks.add(disk)
            at += length
    assert seen == sorted(seen) == list(range(600)), seen[:20]
    assert disks == {0, 1, 2}
    say("passed order of 600 writes round 3 disks")


def compare(replicas: Replicas) -> None:
    for device, path in zip(DISKS, replicas.paths, strict=True):
        sh(f"blockdev --flushbufs {device}")
        done = subprocess.run(["cmp", device, str(path)], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def main() -> None:
    logs.configure("guest")
    say("kernel", os.uname().release)
    for module in ("loop", "dm-thin-pool", "dm-crypt", "raid0", "raid1", "dm-mod"):
        sh(f"modprobe {module}")
    is_capturable()
    began = time.monotonic()
    tested = self_test_without_capture()
    assert tested.passed, tested.detail
    say("passed self-test:", tested.detail, f"({time.monotonic() - began:.1f} s)")
    replicas = Replicas()
    disks = [disk_of(device, index) for index, device in enumerate(DISKS)]
    session = CaptureSession.open(disks, ring_bytes=64 << 20)
    check_order(session)
    session.detach()
    replicas = Replicas()
    session = CaptureSession.open(disks, ring_bytes=64 << 20)
    agent = Agent(session, replicas)
    chapters: tuple[tuple[str, Callable[[], None]], ...] = (
        ("raw", raw), ("lvm-linear", lvm_linear), ("lvm-thin", lvm_thin), ("md-raid1", lambda: md("1")),
        ("md-raid0", lambda: md("0")), ("dm-crypt", luks),
    )  # fmt: skip
    for name, chapter in chapters:
        before = session.counters()
        began = time.monotonic()
        chapter()
        agent.settled()
        compare(replicas)
        after = session.counters()
        assert session.missed() == 0
        mebibytes = (after.bytes_written - before.bytes_written) >> 20
        assert mebibytes >= 1
        say("passed", f"{name}: {mebibytes} MiB written, 3 disks identical, {agent.rereads} blocks read again,",
            f"{time.monotonic() - began:.1f} s")  # fmt: skip
    agent.stop()
    session.detach()


if __name__ == "__main__":
    os.environ.update(DM_DISABLE_UDEV="1", MDADM_NO_UDEV="1")
    try:
        main()
        say("end")
    except BaseException:
        for line in traceback.format_exc().splitlines():
            say("failed", line)
    sys.stdout.flush()
