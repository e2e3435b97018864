"""A replica with a qcow2 disk (through qemu-storage-daemon) beside a raw one, in the real master target: locked for the
hypervisor all the time, found again after kill -9 of the master target and of the daemon, exact and clean when released."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import journal_driver as driver
import pytest
from master_target_site import MACHINE, Site
from process_server_site import eventually

from failback.model import orders
from failback.model.ids import DiskId
from failback.model.points import PointChoice, PointKind, PointSelector, ReplicaDisk
from failback.model.stream import MarkKind

SEED = 11
COUNT = 40
MARK = str(uuid.UUID(int=97))
LATEST = PointChoice(PointSelector.LATEST)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    built = Site(tmp_path)
    yield built
    await built.close()
    assert _daemons(built) == []


def _make_disks(site: Site) -> tuple[ReplicaDisk, ReplicaDisk]:
    """Disk 0 is qcow2, disk 1 raw; both as found."""
    content = driver.initial(SEED)
    plain, layered, raw = site.directory / "0.raw", site.datastore / "disk-0.qcow2", site.datastore / "disk-1.img"
    plain.write_bytes(content[0])
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(plain), str(layered)], check=True)
    raw.write_bytes(content[1])
    return (
        ReplicaDisk(DiskId("disk-0"), 0, str(layered), "qcow2", driver.SIZES[0], create=False),
        ReplicaDisk(DiskId("disk-1"), 1, str(raw), "raw", driver.SIZES[1], create=False),
    )


async def _attach(site: Site, disks: tuple[ReplicaDisk, ...]) -> None:
    await site.order(orders.ATTACH_REPLICA, orders.AttachReplica(MACHINE, "retention", disks))


def _daemons(site: Site) -> list[int]:
    done = subprocess.run(
        ["pgrep", "-f", f"^qemu-storage-daemon .*{site.datastore}"], capture_output=True, text=True, check=False
    )
    return [int(word) for word in done.stdout.split()]


def _hypervisor_refused(disk: ReplicaDisk) -> bool:
    """What a start of the machine does with the disk: open it for writing. Under either of its names."""
    image_format = "qcow2" if disk.format == "qcow2" else "raw"
    present = Path(disk.path + ".replica") if not Path(disk.path).exists() else Path(disk.path)
    done = subprocess.run(
        ["qemu-io", "-f", image_format, "-c", "write 0 512", str(present)], capture_output=True, text=True, check=False
    )
    return "lock" in done.stderr + done.stdout and "wrote" not in done.stdout


def _expect_released(site: Site, disks: tuple[ReplicaDisk, ...], content: dict[int, bytes]) -> None:
    """Own names, no daemon, exact to the last byte, metadata clean."""
    assert _daemons(site) == []
    for disk in disks:
        expected = site.directory / f"expected-{disk.index}.raw"
        expected.write_bytes(content[disk.index])
        command = ["qemu-img", "compare", "-f", "raw", "-F", disk.format, str(expected), disk.path]
        compared = subprocess.run(command, capture_output=True, text=True, check=False)
        assert compared.returncode == 0, compared.stdout + compared.stderr
    check = subprocess.run(["qemu-img", "check", disks[0].path], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr


async def test_stream_kills_older_point_release_and_cancel(site: Site) -> None:
    site.start()
    disks = _make_disks(site)
    await _attach(site, disks)
    assert not any(Path(disk.path).exists() for disk in disks)
    site.assign(1)
    sender = site.sender(1)
    for sequence in range(1, COUNT // 2):
        await sender.send(driver.make_batch(SEED, sequence))
    await site.landed(sender, COUNT // 2 - 1)

    (orphan,) = _daemons(site)
    assert site.process is not None
    site.process.kill()
    site.process.wait()
    assert _daemons(site) == [orphan]
    assert _hypervisor_refused(disks[0])
    site.launch()
    await eventually(lambda: _daemons(site) not in ([], [orphan]))
    for sequence in range(COUNT // 2, COUNT - 5):
        await sender.send(driver.make_batch(SEED, sequence))
    await site.landed(sender, COUNT - 6)

    site.process.kill()  # and the daemon with it, as systemd ends a unit whose main process died
    for pid in _daemons(site):
        os.kill(pid, signal.SIGKILL)
    site.process.wait()
    site.launch()
    for sequence in range(COUNT - 5, COUNT):
        await sender.send(driver.make_batch(SEED, sequence))
    await sender.send(driver.make_batch(SEED, COUNT, mark=(MarkKind.FINAL, MARK)))
    await site.landed(sender, COUNT)
    await eventually(lambda: site.replica().get("applied_sequence") == COUNT)
    assert all(_hypervisor_refused(disk) for disk in disks)

    model = driver.Model(SEED, driver.initial(SEED))
    living = [point for point in site.replica()["points"] if point["kind"] != PointKind.BEFORE_REPROTECT.value]
    older = living[len(living) // 2 - 1]
    then = {disk: bytes(data) for disk, data in model.advance(older["sequence"]).items()}
    final = model.advance(COUNT)
    assert then != final
    await site.prepare(PointChoice(PointSelector.POINT, older["point_id"]))
    assert all(_hypervisor_refused(disk) for disk in disks)
    await site.plain(orders.RELEASE_REPLICA)
    _expect_released(site, disks, then)

    await site.plain(orders.RESUME_REPLICA)
    assert all(_hypervisor_refused(disk) for disk in disks)
    await site.prepare(LATEST, MARK)
    await site.plain(orders.RELEASE_REPLICA)
    await site.plain(orders.COMMIT_POINT)
    _expect_released(site, disks, final)


async def test_killed_while_the_daemon_starts(site: Site) -> None:
    """The daemon holds the lock and nobody has written down yet that it is there."""
    site.faults = "qcow2.after_start=kill@2"
    site.start()
    disks = _make_disks(site)
    await _attach(site, disks)
    assert site.kills == 1
    assert len(_daemons(site)) == 1
    assert all(_hypervisor_refused(disk) for disk in disks)
    await site.plain(orders.DETACH_REPLICA)
    _expect_released(site, disks, driver.initial(SEED))


async def test_a_daemon_that_dies_alone_is_replaced(site: Site) -> None:
    """The master target lives on: it takes the disks anew and applies again what was not flushed."""
    site.start()
    disks = _make_disks(site)
    await _attach(site, disks)
    site.assign(1)
    sender = site.sender(1)
    for sequence in range(1, COUNT):
        await sender.send(driver.make_batch(SEED, sequence))
        if sequence in (COUNT // 3, 2 * COUNT // 3):
            (daemon,) = await asyncio.to_thread(_daemons, site)
            os.kill(daemon, signal.SIGKILL)
            await eventually(lambda: _daemons(site) not in ([], [daemon]))  # noqa: B023
    await sender.send(driver.make_batch(SEED, COUNT, mark=(MarkKind.FINAL, MARK)))
    await site.landed(sender, COUNT)
    await eventually(lambda: site.replica().get("applied_sequence") == COUNT)
    assert site.kills == 0 and site.replica()["problem"] == ""
    assert all(_hypervisor_refused(disk) for disk in disks)
    await site.prepare(LATEST, MARK)
    await site.plain(orders.RELEASE_REPLICA)
    _expect_released(site, disks, driver.Model(SEED, driver.initial(SEED)).advance(COUNT))
