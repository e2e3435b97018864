"""The capture on real loop devices with the real kernel programs: what was written is what comes out, every time.

Each test ends with ``cmp``: device and replica are identical. Needs root and a kernel with BTF.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from capture_disk import (
    BLOCK_BYTES,
    Follower,
    Replica,
    disk_of,
    is_identical,
    loop_disk,
    pin_directory,
    seeded_replica,
    sh,
)

from failback.errors import ConfigurationError
from failback.mobility.capture.session import CaptureSession, is_capturable
from failback.mobility.capture.values import CaptureDisk, Counters
from failback.protocol.extents import EXTENT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing writes needs root")

FIO = "fio --output=/dev/null --group_reporting --name=w --time_based"
DIRECT = "--ioengine=libaio --direct=1"
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878


@contextlib.contextmanager
def followed(
    device: str, replica: Replica, pins: Path, *, ring_bytes: int = 64 << 20, pause: float = 0.0
) -> Iterator[Follower]:
    """A follower in a thread for the time of the context; at its end everything was applied."""
    session = CaptureSession.open([disk_of(device)], ring_bytes=ring_bytes, pin_directory=pins)
    follower = Follower(session, replica, pause_seconds=pause)
    stop = threading.Event()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            follower.follow_until(stop)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield follower
        sh("sync")
    finally:
        stop.set()
        thread.join()
        session.detach()
        replica.close()
    if failure:
        raise failure[0]


def unexplained(counters: Counters) -> int:
    """Gaps that neither a slow test machine explains (overflow) nor completions that the kernel did not report: such an entry
    overlaps with the next write to its place until it is healed."""
    phantoms = counters.overlaps if counters.healed else 0
    return counters.gap_sum() - counters.drops - counters.skipped - phantoms


def write_partition_table(device: str, partitions: list[tuple[int, int]]) -> None:
    """A DOS table of (first sector, sectors)."""
    table = bytearray(512)
    for index, (first, sectors) in enumerate(partitions):
        struct.pack_into("<4xB3xII", table, 446 + 16 * index, 0x83, first, sectors)
    table[510:] = b"\x55\xaa"
    descriptor = os.open(device, os.O_RDWR)
    os.pwrite(descriptor, table, 0)
    os.fsync(descriptor)
    os.close(descriptor)


def file_system_load(device: str, mountpoint: Path, seconds: int = 1) -> None:
    """Buffered, direct and mapped writes, deletes, punched and zeroed ranges, and a trim."""
    mountpoint.mkdir(exist_ok=True)
    sh(f"mount -o discard {device} {mountpoint}")
    try:
        sh(
            f"{FIO} --directory={mountpoint} --rw=randrw --bsrange=512-300k --size=16m --ioengine=psync --fsync=8 --rate=20m "
            f"--runtime={seconds}"
        )
        sh(
            f"{FIO} --directory={mountpoint} --rw=randwrite --bs=4k {DIRECT} --size=16m --iodepth=8 --rate_iops=4000 --runtime=1"
        )
        sh(
            f"{FIO} --directory={mountpoint} --rw=randwrite --bs=4k --ioengine=mmap --size=16m --rate_iops=9000 --runtime=1"
        )
        sh(f"fallocate -l 20M {mountpoint}/a; fallocate -p -o 0 -l 4M {mountpoint}/a", check=False)
        sh(
            f"fallocate -z -o 8M -l 4M {mountpoint}/a; sync; rm -f {mountpoint}/w*; sync; fstrim {mountpoint}",
            check=False,
        )
    finally:
        sh(f"umount {mountpoint}")


def test_this_kernel_is_capturable(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 16) as (device, _):
        is_capturable([disk_of(device)])


def test_partitions_wrong_sizes_and_doubled_disks_are_refused(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 16, options="-P") as (device, _), pin_directory() as pins:
        disk = disk_of(device)
        with pytest.raises(ConfigurationError, match="bytes"):
            CaptureSession.open([CaptureDisk(0, device, disk.size_bytes + 512)], pin_directory=pins)
        with pytest.raises(ConfigurationError, match="twice"):
            CaptureSession.open([disk, CaptureDisk(1, device, disk.size_bytes)], pin_directory=pins)
        with pytest.raises(ConfigurationError, match="not a block device"):
            CaptureSession.open([CaptureDisk(0, "/dev/null", 0)], pin_directory=pins)


def test_self_test_passes_on_a_file_and_on_a_loop_device(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 64) as (device, _), pin_directory() as pins:
        sh(f"mkfs.ext4 -q -F {device}")
        mountpoint = tmp_path / "mnt"
        mountpoint.mkdir()
        sh(f"mount {device} {mountpoint}")
        session = CaptureSession.open([disk_of(device)], pin_directory=pins)
        try:
            on_file = session.self_test(mountpoint)
            assert on_file.passed, on_file.detail
            assert "loop" not in on_file.detail
            assert list(mountpoint.glob(".failback*")) == []
            elsewhere = session.self_test(Path("/dev/shm"))
            assert elsewhere.passed, elsewhere.detail
            assert "loop" in elsewhere.detail
        finally:
            session.detach()
            sh(f"umount {mountpoint}")


def test_self_test_fails_when_addresses_are_wrong(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 16) as (device, _), pin_directory() as pins:
        session = CaptureSession.open([disk_of(device)], pin_directory=pins)
        try:
            right = session._control.get("page_offset_base")
            session._control.set("page_offset_base", right + (1 << 20))
            assert not session.self_test().passed
            session._control.set("page_offset_base", right)
            assert session.self_test().passed
        finally:
            session.detach()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_file_systems_with_discard(tmp_path: Path, kind: str) -> None:
    with loop_disk(tmp_path, 400) as (device, _), pin_directory() as pins:
        sh(f"mkfs.{kind} -q {'-F' if kind == 'ext4' else '-f'} {device}")
        replica = seeded_replica(device, tmp_path / "replica")
        with followed(device, replica, pins) as follower:
            file_system_load(device, tmp_path / "mnt")
            counters = follower.session.counters()
        assert counters.discards > 0
        assert unexplained(counters) == 0, counters
        assert is_identical(device, tmp_path / "replica")


def test_partitions_made_formatted_and_filled_under_capture(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 500, options="-P") as (device, _), pin_directory() as pins:
        replica = seeded_replica(device, tmp_path / "replica")
        with followed(device, replica, pins):
            write_partition_table(device, [(2048, 100 << 11), (2048 + (100 << 11), 300 << 11)])
            sh(f"addpart {device} 1 2048 {100 << 11}; addpart {device} 2 {2048 + (100 << 11)} {300 << 11}", check=False)
            for number in (1, 2):
                node = Path(f"{device}p{number}")
                numbers = Path(f"/sys/class/block/{node.name}/dev").read_text().strip().split(":")
                node.unlink(missing_ok=True)
                os.mknod(node, 0o600 | 0o060000, os.makedev(int(numbers[0]), int(numbers[1])))
            sh(f"mkfs.ext4 -q -F {device}p1; mkfs.xfs -q -f {device}p2")
            file_system_load(f"{device}p1", tmp_path / "mnt")
        assert is_identical(device, tmp_path / "replica")
        for number in (1, 2):
            Path(f"{device}p{number}").unlink()


def test_raw_writes_of_every_kind(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 300) as (device, _), pin_directory() as pins:
        replica = seeded_replica(device, tmp_path / "replica")
        with followed(device, replica, pins) as follower:
            sh(f"dd if=/dev/urandom of={device} bs=1M count=20 conv=notrunc; sync")
            sh(f"dd if=/dev/urandom of={device} bs=1M count=20 seek=40 oflag=direct conv=notrunc")
            descriptor = os.open(device, os.O_RDWR)
            with mmap.mmap(descriptor, 8 << 20, offset=100 << 20) as mapped:
                mapped[:] = os.urandom(8 << 20)
                mapped.flush()
            os.fsync(descriptor)
            os.close(descriptor)
            memory = mmap.mmap(-1, 4 << 20)
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory[:] = os.urandom(4 << 20)
            view = memoryview(memory)
            direct = os.open(device, os.O_RDWR | os.O_DIRECT)
            os.pwrite(direct, memory, 120 << 20)
            unaligned = [view[512 * 3 : 512 * 4], view[4096 * 5 + 512 : 4096 * 9], view[1024:1536]]
            os.pwritev(direct, unaligned, 130 << 20)
            for index in range(1, 200):  # every length in sectors, from every offset in a page
                start = (index * 1536) % (3 << 20)
                os.pwrite(direct, view[start : start + 512 * index], (140 << 20) + index * 512 * 211)
            os.close(direct)
            synchronous = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
            os.pwrite(synchronous, view[:BLOCK_BYTES], 200 << 20)
            os.close(synchronous)
            sh(
                f"blkdiscard -o 1M -l 3M {device}; blkdiscard -z -o 10M -l 3M {device}; fallocate -z -o 45M -l 1M {device}"
            )
            counters = follower.session.counters()
        assert unexplained(counters) == 0, counters
        assert is_identical(device, tmp_path / "replica")


def unaligned_writes(device: str) -> tuple[int, int]:
    """Direct I/O from addresses that are no multiple of 512: (accepted, refused or failed)."""
    memory = mmap.mmap(-1, 2 << 20)
    memory[:] = os.urandom(2 << 20)
    view = memoryview(memory)
    direct = os.open(device, os.O_RDWR | os.O_DIRECT)
    accepted = failed = 0
    for shift in (4, 8, 100, 260, 508, 1000, 4092):
        for size in (512, 4096, 12288, 65536, 200704):
            try:
                os.pwrite(direct, view[shift : shift + size], ((accepted + failed) * 7 % 120) * (512 << 10))
                accepted += 1
            except OSError:
                failed += 1
    os.close(direct)
    return accepted, failed


def test_writes_that_the_device_failed_are_read_again(tmp_path: Path) -> None:
    """A kernel or device may refuse unaligned memory only after the write was captured: then stream and disk differ."""
    with loop_disk(tmp_path, 64, options="--direct-io=on") as (device, _), pin_directory() as pins:
        replica = seeded_replica(device, tmp_path / "replica")
        with followed(device, replica, pins) as follower:
            accepted, failed = unaligned_writes(device)
            counters = follower.session.counters()
        assert accepted > 0
        assert counters.write_errors <= failed
        assert replica.rereads > 0 or not counters.write_errors
        assert is_identical(device, tmp_path / "replica")


def test_overflow_of_a_tiny_ring_is_healed_by_rereads(tmp_path: Path) -> None:
    with loop_disk(Path("/dev/shm"), 128) as (device, _), pin_directory() as pins:
        replica = seeded_replica(device, tmp_path / "replica")
        with followed(device, replica, pins, ring_bytes=512 << 10, pause=0.002) as _:
            sh(
                f"{FIO} --filename={device} --rw=randwrite --bsrange=4k-256k --size=128m --runtime=3 {DIRECT} --iodepth=16"
            )
        assert replica.rereads > 0
        assert is_identical(device, tmp_path / "replica")


def test_first_copy_of_a_disk_in_use(tmp_path: Path) -> None:
    """All blocks dirty, nothing known: fuzzy copy and log under load give the same disk, and zero blocks carry no data."""
    with loop_disk(Path("/dev/shm"), 96) as (device, _), pin_directory() as pins:
        sh(f"dd if=/dev/urandom of={device} bs=1M count=30 oflag=direct")
        (tmp_path / "replica").write_bytes(os.urandom(96 << 20))
        load = subprocess.Popen(
            f"exec {FIO} --filename={device} --rw=randwrite --bs=4k --size=40m --runtime=4 {DIRECT} --iodepth=8",
            shell=True,
        )
        time.sleep(0.5)  # writes in flight when the programs attach
        with followed(device, Replica(tmp_path / "replica"), pins) as follower:
            follower.session.mark_all_dirty(0)
            assert load.wait() == 0
        assert is_identical(device, tmp_path / "replica")


def test_overlapping_writes_in_flight_are_read_again(tmp_path: Path) -> None:
    """D10: mixed sizes at a queue depth over a small area have no defined order on the device."""
    with loop_disk(tmp_path, 64, options="--direct-io=on") as (device, _), pin_directory() as pins:
        replica = seeded_replica(device, tmp_path / "replica")
        with followed(device, replica, pins) as follower:
            sh(
                f"{FIO} --filename={device} --rw=randwrite --bsrange=4k-64k --size=4m --runtime=3 {DIRECT} "
                "--iodepth=32 --numjobs=2 --norandommap"
            )
            sh("sync")
            counters = follower.session.counters()
        assert counters.overlaps > 0
        assert is_identical(device, tmp_path / "replica")


def test_ordinary_random_load_reports_no_overlaps(tmp_path: Path) -> None:
    with loop_disk(Path("/dev/shm"), 256) as (device, _), pin_directory() as pins:
        replica = seeded_replica(device, tmp_path / "replica")
        with followed(device, replica, pins) as follower:
            # random_generator=lfsr with the map: no block twice until all were written, so no two in flight
            sh(
                f"{FIO} --filename={device} --rw=randwrite --bs=4k --size=256m --runtime=2 {DIRECT} --iodepth=32 --rate_iops=9000"
            )
            counters = follower.session.counters()
        assert counters.bios > 1000
        assert unexplained(counters) == 0, counters
        assert is_identical(device, tmp_path / "replica")


def test_marks_cut_the_stream_and_a_frozen_prefix_is_clean(tmp_path: Path) -> None:
    """The prefix up to a mark put between FIFREEZE and FITHAW is a file system that needs no recovery."""
    with loop_disk(tmp_path, 128) as (device, _), pin_directory() as pins:
        sh(f"mkfs.ext4 -q -F {device}")
        mountpoint = tmp_path / "mnt"
        mountpoint.mkdir()
        replica = seeded_replica(device, tmp_path / "replica")
        session = CaptureSession.open([disk_of(device)], pin_directory=pins)
        sh(f"mount {device} {mountpoint}")
        load = subprocess.Popen(
            f"exec {FIO} --directory={mountpoint} --rw=randwrite --bsrange=1k-64k --size=20m --ioengine=psync --fsync=4 "
            "--rate=8m --runtime=20",
            shell=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        descriptor = os.open(mountpoint, os.O_RDONLY)
        try:
            time.sleep(1.0)
            fcntl.ioctl(descriptor, FIFREEZE, 0)
            try:
                position = session.put_mark(42)
            finally:
                fcntl.ioctl(descriptor, FITHAW, 0)
            time.sleep(0.3)
            while 42 not in replica.marks:
                collected = session.collect(1 << 20)
                assert collected is not None
                replica.apply(collected)
                if collected.marks:
                    assert collected.marks == ((42, position),)
                    assert collected.end_position > position >= collected.first_position
            assert session.produced_position() > session.cursor()
            features = sh(f"dumpe2fs -h {tmp_path}/replica 2>/dev/null | grep -i features")
            assert "needs_recovery" not in features
            sh(f"e2fsck -fn {tmp_path}/replica")
        finally:
            load.terminate()
            load.wait()
            os.close(descriptor)
            sh(f"umount {mountpoint}")
            session.detach()
            replica.close()


def test_wait_wakes_up_for_data(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 32) as (device, _), pin_directory() as pins:
        session = CaptureSession.open([disk_of(device)], pin_directory=pins)
        try:
            assert not session.wait(0.05)
            timer = threading.Timer(0.2, lambda: sh(f"dd if=/dev/urandom of={device} bs=1M count=4 oflag=direct"))
            timer.start()
            began = time.monotonic()
            assert session.wait(5.0)
            assert time.monotonic() - began < 2.0
            timer.join()
        finally:
            session.detach()


def test_unlanded_blocks_keep_the_latest_generation(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 16) as (device, _), pin_directory() as pins:
        session = CaptureSession.open([disk_of(device)], pin_directory=pins)
        try:
            first = EXTENT.pack(0, 1, 0, 4 * BLOCK_BYTES, 0)
            second = EXTENT.pack(0, 1, 0, 4096, 2 * BLOCK_BYTES + 512)
            session.set_unlanded(first, 7)
            session.set_unlanded(second, 8)
            session.clear_unlanded(first, 7)
            assert session.unlanded_blocks() == [1]
            session.close()
            session = CaptureSession.open([disk_of(device)], pin_directory=pins)
            assert session.reattached
            assert session.unlanded_blocks() == [1]
            session.clear_unlanded_generations(65000, 7)
            assert session.unlanded_blocks() == [1]
            assert session.mark_unlanded_dirty() == 1
            assert session.unlanded_blocks() == [0]
            assert session.dirty_blocks() == 1
            reread = session.reread(10)
            assert reread is not None
            assert list(reread.blocks) == [(0, 2)]
        finally:
            session.detach()
