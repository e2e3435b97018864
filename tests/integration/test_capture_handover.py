"""Programs of another build, or for other disks, take over from those that run: nothing is lost and nothing compared (D11)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from capture_disk import Follower, disk_of, is_identical, loop_disk, pin_directory, seeded_replica, sh

from failback.mobility.capture import pins
from failback.mobility.capture.layout import EARLIER_LAYOUT, LAYOUT_VERSION
from failback.mobility.capture.session import CaptureSession
from failback.mobility.capture.values import CaptureDisk
from failback.protocol.extents import EXTENT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capture needs root")
CHECKOUT = Path(__file__).parents[2]
RING_BYTES = 32 << 20


def write_load(device: str, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["fio", "--name=load", f"--filename={device}", "--rw=randwrite", "--bsrange=4k-64k", "--ioengine=libaio", "--direct=1",
         "--iodepth=8", "--time_based", f"--runtime={seconds}", "--rate=10m", "--randrepeat=0", "--refill_buffers",
         "--output=/dev/null"],
    )  # fmt: skip


def earlier_build(directory: Path) -> Path:
    """The capture program as layout version 1 had it: without what version 2 appended to the control block."""
    sources = directory / "bpf"
    shutil.copytree(CHECKOUT / "bpf", sources)
    state = (sources / "state.h").read_text()
    before, _, rest = state.partition("\t/* written by user space, once:")
    assert rest
    (sources / "state.h").write_text(before + rest[rest.index("};") :])
    target = directory / "earlier.bpf.o"
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86",
               "-I/usr/include/x86_64-linux-gnu", "-c", str(sources / "capture.bpf.c"), "-o", str(target)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return target


def follow(session: CaptureSession, follower: Follower, seconds: float) -> None:
    """As an agent does, for a while; what lies in the ring at the end is not collected."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        follower.drain()
        follower.round()
        time.sleep(0.002)


def test_an_upgrade_under_load_loses_nothing_and_reads_only_what_was_under_way(tmp_path: Path) -> None:
    earlier = earlier_build(tmp_path)
    with loop_disk(tmp_path, 512) as (device, _), pin_directory() as directory:
        replica = seeded_replica(device, tmp_path / "replica")
        disks = [disk_of(device)]
        old = CaptureSession.open(disks, ring_bytes=RING_BYTES, pin_directory=directory, object_path=earlier)
        old_ring = old.ring_id
        load = write_load(device, 6.0)
        follow(old, Follower(old, replica), 2.0)
        pins.Control(old._parts.maps["control"]).set("layout_version", EARLIER_LAYOUT)  # as that version stamped it
        old.mark_dirty(0, 7, 1)
        generations = EXTENT.pack(0, 1, 0, 65536, 9 * 65536)
        old.set_unlanded(generations, 77)
        produced = old.produced_position()
        old.close()

        new = CaptureSession.open([disk_of(device)], ring_bytes=RING_BYTES, pin_directory=directory)
        assert not new.reattached
        assert new.predecessor_ring == old_ring != new.ring_id
        assert new.is_carried(0)
        assert not new.is_carried(1)
        assert new._control.get("layout_version") == LAYOUT_VERSION
        assert not pins.beside(directory).exists()
        dirty = new.dirty_blocks()
        assert 1 <= dirty <= 8192 // 2  # of 8192: what the ring held, never the whole disk
        assert new.unlanded_blocks() == [1]
        new.clear_unlanded(generations, 77)
        assert new.unlanded_blocks() == [0]

        stop = threading.Event()
        thread = threading.Thread(target=lambda: (load.wait(), stop.set()))
        thread.start()
        Follower(new, replica).follow_until(stop, 120)
        thread.join()
        assert new.missed() == 0
        assert new.produced_position() > 0 < produced
        assert is_identical(device, replica.path)
        print(f"handed over under load: {dirty} of 8192 blocks read again")
        new.detach()
        replica.close()


@pytest.mark.parametrize(
    "place", ["capture.pinned_maps", "capture.attached", "capture.carried_over", "capture.earlier_removed"]
)
def test_a_handover_that_dies_anywhere_is_finished_by_the_next_process(tmp_path: Path, place: str) -> None:
    program = (
        "import sys; from pathlib import Path; from capture_disk import disk_of\n"
        "from failback.mobility.capture.session import CaptureSession\n"
        "CaptureSession.open([disk_of(sys.argv[1])], ring_bytes=1 << 20, pin_directory=Path(sys.argv[2])).close()"
    )
    with loop_disk(tmp_path, 64) as (device, _), pin_directory() as directory:
        replica = seeded_replica(device, tmp_path / "replica")
        old = CaptureSession.open([disk_of(device)], ring_bytes=RING_BYTES, pin_directory=directory)
        old_ring = old.ring_id
        old.close()
        sh(f"dd if=/dev/urandom of={device} bs=64k count=200 seek=11 oflag=direct conv=notrunc status=none")
        environment = dict(os.environ, FAILBACK_FAULTS=f"{place}=kill@1", PYTHONPATH=str(Path(__file__).parent))
        died = subprocess.run([sys.executable, "-c", program, device, str(directory)], env=environment, check=False)
        assert died.returncode == -signal.SIGKILL
        sh(f"dd if=/dev/urandom of={device} bs=64k count=100 seek=411 oflag=direct conv=notrunc status=none")

        new = CaptureSession.open([disk_of(device)], ring_bytes=1 << 20, pin_directory=directory)
        assert new.predecessor_ring == old_ring
        assert not pins.beside(directory).exists()
        stop = threading.Event()
        stop.set()
        Follower(new, replica).follow_until(stop)
        assert is_identical(device, replica.path)
        new.detach()
        replica.close()


def test_a_disk_that_joins_is_not_carried_and_one_that_stays_is(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 64) as (first, _), loop_disk(tmp_path, 32) as (second, _), pin_directory() as directory:
        old = CaptureSession.open([disk_of(second, 1)], ring_bytes=RING_BYTES, pin_directory=directory)
        old.mark_dirty(1, 3, 2)
        old.close()
        disks = [disk_of(first, 0), disk_of(second, 1)]
        new = CaptureSession.open(disks, ring_bytes=RING_BYTES, pin_directory=directory)
        assert (new.is_carried(0), new.is_carried(1)) == (False, True)
        assert new.dirty_blocks() == 2
        taken = new.reread(16)
        assert taken is not None
        assert sorted(taken.blocks) == [(1, 3), (1, 4)]
        new.detach()


def test_what_missed_writes_is_not_relied_on(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 16) as (device, _), pin_directory() as directory:
        old = CaptureSession.open([disk_of(device)], ring_bytes=RING_BYTES, pin_directory=directory)
        old._control.set("unsupported", 1)
        old.close()
        new = CaptureSession.open([disk_of(device)], ring_bytes=1 << 20, pin_directory=directory)
        assert (new.predecessor_ring, new.is_carried(0)) == (0, False)
        new.detach()


def test_a_disk_that_grew_keeps_what_is_known_of_its_old_part(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 16) as (device, backing), pin_directory() as directory:
        before = disk_of(device)
        old = CaptureSession.open([before], ring_bytes=RING_BYTES, pin_directory=directory)
        old.mark_dirty(0, 255, 1)
        old.close()
        os.truncate(backing, 24 << 20)
        sh(f"losetup -c {device}")
        after = disk_of(device)
        assert after == CaptureDisk(0, device, 24 << 20)
        new = CaptureSession.open([after], ring_bytes=RING_BYTES, pin_directory=directory)
        assert new.is_carried(0)
        assert new.dirty_blocks() == 1
        new.detach()


def test_another_device_under_the_same_number_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    with loop_disk(tmp_path, 16) as (device, _), pin_directory() as directory:
        old = CaptureSession.open([disk_of(device)], ring_bytes=RING_BYTES, pin_directory=directory)
        assert old.replaced() == []
        old.close()
        sh(f"losetup -d {device}")
        other = tmp_path / "other.img"
        with other.open("wb") as stream:
            stream.truncate(16 << 20)
        sh(f"losetup {device} {other}")
        assert old.replaced() == [device]
        new = CaptureSession.open([disk_of(device)], ring_bytes=RING_BYTES, pin_directory=directory)
        assert not new.reattached
        assert not new.is_carried(0)
        assert new.replaced() == []
        new.detach()
