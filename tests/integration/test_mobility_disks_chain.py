"""The whole data path with the real programs while the disks change under load, and the way back to before the change."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mobility_world import World, run
from test_mobility_chain import Server
from test_mobility_disks_change import GROWN, SIZES, with_disks, write_load

from failback.model.components import (
    Endpoint,
    MasterTargetAssignment,
    MobilityAssignment,
    ProcessServerAssignment,
    ReplicaAssignment,
    Role,
    RoutedMachine,
    SyncMode,
)
from failback.model.ids import ComponentId, MachineId
from failback.model.policy import ReplicationPolicy

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")


class Chain:
    def __init__(self, world: World, directory: Path) -> None:
        self.world, self.datastore = world, directory / "datastore"
        for path in (directory / "retention", self.datastore):
            path.mkdir()
        self.target = Server(
            world, Role.MASTER_TARGET,
            f'retention_volumes = [{{name = "retention", path = "{directory}/retention"}}]\n'
            f'datastores = [{{name = "datastore", path = "{self.datastore}"}}]',
        )  # fmt: skip
        self.server = Server(
            world, Role.PROCESS_SERVER, f'spool_directory = "{directory}/spool"\nspool_limit_bytes = 268435456'
        )

    def path(self, index: int) -> Path:
        return self.datastore / f"disk{index}.raw"

    async def attach(self, sizes: dict[int, int], gone: tuple[int, ...] = ()) -> None:
        known = self.world.assignment().disks
        disks = [
            {"disk_id": known[index].disk_id, "index": index, "path": str(self.path(index)), "format": "raw",
             "size_bytes": size, "create": True, "removed": index in gone}
            for index, size in sizes.items()
        ]  # fmt: skip
        await self.target.result(
            "attach-replica", machine_id=self.world.machine_id, retention_volume="retention", disks=disks
        )

    def assign(self, assignment: MobilityAssignment) -> None:
        machine, epoch = MachineId(self.world.machine_id), assignment.epoch
        replica = ReplicaAssignment(
            machine, epoch, ComponentId(self.server.component_id), ReplicationPolicy("p", crash_consistent_seconds=1)
        )
        self.target.plane.assign(MasterTargetAssignment((replica,)))
        endpoint = Endpoint("127.0.0.1", self.target.port, ComponentId(self.target.component_id))
        self.server.plane.assign(ProcessServerAssignment((RoutedMachine(machine, epoch, endpoint),)))
        self.world.plane.assign(assignment)

    def points(self) -> list[dict[str, Any]]:
        return next(iter(self.target.plane.status.get("replicas", [])), {}).get("points", [])

    async def marked(self) -> str:
        """An application-consistent point here and now."""
        mark_id = str(uuid.uuid4())
        report = await self.world.result(
            self.world.order("app-consistent-mark", mark_id=mark_id, limit_seconds=20.0), 60
        )
        assert report["state"] == "succeeded", report
        await self.world.until(lambda: mark_id in [point["point_id"] for point in self.points()], 60)
        return mark_id

    async def at(self, point_id: str) -> dict[str, Any]:
        choice = {"selector": "point", "value": point_id}
        return dict(await self.target.result("prepare-point", machine_id=self.world.machine_id, choice=choice))


def content(path: str) -> bytes:
    run("blockdev", "--flushbufs", path)
    return Path(path).read_bytes()


async def test_disks_grow_join_and_leave_under_load_and_the_point_before_is_whole(tmp_path: Path) -> None:
    async with World(tmp_path, sizes=SIZES) as world:
        chain = Chain(world, tmp_path)
        try:
            await story(world, chain)
        finally:
            for each in (chain.server, chain.target):
                each.kill()
                each.plane.close()


async def story(world: World, chain: Chain) -> None:
    chain.target.start()
    chain.server.start()
    world.start()
    world.port, world.server_id = chain.server.port, chain.server.component_id
    every = world.assignment(sync=SyncMode.FULL)
    first = replace(every, disks=every.disks[:2])
    await chain.attach(dict(enumerate(SIZES[:2])))
    chain.assign(first)
    await world.synced(60)
    for writer in write_load(world.devices[:2], 2):
        await asyncio.to_thread(writer.wait)
    before = await chain.marked()
    kept = [content(device) for device in world.devices[:2]]

    writers = write_load(world.devices, 8)
    os.truncate(world.directory / "disk0", GROWN)
    run("losetup", "-c", world.devices[0])
    await world.until(lambda: world.plane.status.get("gap") == "sync")
    grown = replace(every.disks[0], size_bytes=GROWN, sync=SyncMode.FULL, sync_from_bytes=SIZES[0])
    await chain.attach({0: GROWN, 1: SIZES[1], 2: SIZES[2]}, gone=(1,))
    chain.assign(with_disks(first, grown, every.disks[2]))
    await world.until(lambda: world.plane.status["epoch"] == 2)
    world.kill(signal.SIGKILL)
    world.start()
    await world.synced(90)
    run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=1M", "count=8", "seek=80", "oflag=direct", "conv=notrunc",
        "status=none")  # fmt: skip
    for writer in writers:
        await asyncio.to_thread(writer.wait)
    after = await chain.marked()
    now = [content(world.devices[0]), content(world.devices[2])]

    told = await chain.at(before)
    assert [(disk["index"], disk["size_bytes"]) for disk in told["disks"]] == [(0, SIZES[0]), (1, SIZES[1])]
    replicas = [Path(f"{chain.path(index)}.replica").read_bytes() for index in range(3)]
    assert replicas[0][: SIZES[0]] == kept[0]
    assert replicas[0][SIZES[0] :].count(0) == GROWN - SIZES[0]
    assert replicas[1] == kept[1]
    assert replicas[2].count(0) == SIZES[2]
    await chain.target.result("resume-replica", machine_id=world.machine_id)
    told = await chain.at(after)
    assert [(disk["index"], disk["size_bytes"], disk["removed"]) for disk in told["disks"]] == [
        (0, GROWN, False), (1, SIZES[1], True), (2, SIZES[2], False),
    ]  # fmt: skip
    assert Path(f"{chain.path(0)}.replica").read_bytes() == now[0]
    assert Path(f"{chain.path(2)}.replica").read_bytes() == now[1]
    await chain.target.result("release-replica", machine_id=world.machine_id)
    done = subprocess.run(["cmp", str(chain.path(0)), world.devices[0]], check=False)
    assert done.returncode == 0
