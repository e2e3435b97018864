"""The whole service while its disks change: three disks in one stream, one grows, one joins, one leaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from mobility_world import World, run

from failback.mobility import facts
from failback.model.components import MobilityAssignment, SourceDisk, SyncMode
from failback.model.ids import DiskId, PassId
from failback.model.stream import GapCause

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capture needs root")
MEBIBYTE = 1 << 20
SIZES = (64 * MEBIBYTE, 48 * MEBIBYTE, 32 * MEBIBYTE)
GROWN = 96 * MEBIBYTE


def write_load(devices: list[str], seconds: float) -> list[subprocess.Popen[bytes]]:
    return [
        subprocess.Popen(
            ["fio", "--name=load", f"--filename={device}", "--rw=randwrite", "--bsrange=4k-64k", "--ioengine=psync",
             "--direct=1", "--time_based", f"--runtime={seconds}", "--rate=4m", "--randrepeat=0", "--size=32m",
             "--output=/dev/null"],
        )
        for device in devices
    ]  # fmt: skip


def with_disks(before: MobilityAssignment, *disks: SourceDisk) -> MobilityAssignment:
    return replace(before, epoch=before.epoch + 1, pass_id=PassId(str(uuid.uuid4())), disks=disks)


async def test_a_disk_that_grew_is_told_holds_points_back_and_only_its_new_part_is_sent(tmp_path: Path) -> None:
    async with World(tmp_path, sizes=SIZES) as world:
        world.start()
        first = world.assignment()
        world.plane.assign(first)
        await world.synced()
        writers = write_load(world.devices, 6)
        os.truncate(tmp_path / "disk1", GROWN)
        run("losetup", "-c", world.devices[1])
        run("dd", "if=/dev/urandom", f"of={world.devices[1]}", "bs=1M", "count=8", "seek=60", "oflag=direct",
            "conv=notrunc", "status=none")  # fmt: skip
        await world.until(lambda: world.plane.status.get("gap") == "sync")
        await world.until(lambda: GROWN in [disk["size_bytes"] for disk in world.plane.status["disks"]])
        open_since = len(world.receiver.items)
        for writer in writers:
            await asyncio.to_thread(writer.wait)
        later = [item for item in world.receiver.items[open_since:] if item.kind == "batch"]
        assert all(item.gap is not GapCause.NONE for item in later)  # no point without the new part

        replica = world.receiver.replicas[1]
        os.ftruncate(replica.descriptor, GROWN)
        replica.size = GROWN
        disks = [replace(disk, sync=SyncMode.NONE) for disk in first.disks]
        disks[1] = replace(disks[1], size_bytes=GROWN, sync=SyncMode.FULL, sync_from_bytes=SIZES[1])
        sent = len(world.receiver.items)
        world.plane.assign(with_disks(first, *disks))
        await world.until(lambda: world.plane.status["epoch"] == 2)
        await world.synced()
        await world.settled()
        assert world.same()
        assert "capture handed over" in world.log()
        assert {item.kind for item in world.receiver.items[sent:]} == {"batch"}  # nothing is compared
        assert sum(item.payload_bytes for item in world.receiver.items[sent:]) < 32 * MEBIBYTE


async def test_a_disk_joins_and_another_leaves_while_the_others_go_on(tmp_path: Path) -> None:
    async with World(tmp_path, sizes=SIZES) as world:
        world.start()
        every = world.assignment()
        first = replace(every, disks=every.disks[:2])
        world.plane.assign(first)
        await world.synced()
        writers = write_load(world.devices, 5)
        sent = len(world.receiver.items)
        stay = replace(every.disks[1], sync=SyncMode.NONE)
        join = SourceDisk(DiskId(str(uuid.uuid4())), 2, facts.device_match(Path(world.devices[2]).name), SIZES[2],
                          SyncMode.FULL)  # fmt: skip
        world.plane.assign(with_disks(first, stay, join))
        await world.until(lambda: world.plane.status["epoch"] == 2)
        await world.synced(60)
        for writer in writers:
            await asyncio.to_thread(writer.wait)
        await world.settled()
        assert all(world.receiver.same_as(number, world.devices[number]) for number in (1, 2))
        assert [disk.index for disk in world.receiver.hellos[-1].disks] == [1, 2]
        assert {item.kind for item in world.receiver.items[sent:]} == {"batch"}
        assert "capture handed over" in world.log()
