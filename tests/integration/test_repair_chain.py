"""Repairs with every program real, from the capture to the disk: a process server lost with its spool, whose unlanded blocks
are re-sent through another one without a comparison (D6), and a retention volume restored from an old copy (D7)."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from mobility_world import World, load, run
from test_mobility_chain import Server

from failback.model.components import (
    Endpoint,
    MasterTargetAssignment,
    ProcessServerAssignment,
    ReplicaAssignment,
    Role,
    RoutedMachine,
    SyncMode,
)
from failback.model.ids import ComponentId, MachineId
from failback.model.policy import ReplicationPolicy

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")

SIZE = 64 << 20


class Chain:
    def __init__(self, world: World) -> None:
        self.world = world
        directory = world.directory
        self.retention, self.disk = directory / "retention", directory / "datastore" / "disk.raw"
        self.retention.mkdir()
        self.disk.parent.mkdir()
        self.target = Server(
            world, Role.MASTER_TARGET,
            f'retention_volumes = [{{name = "retention", path = "{self.retention}"}}]\n'
            f'datastores = [{{name = "datastore", path = "{self.disk.parent}"}}]',
        )  # fmt: skip
        self.servers = [
            Server(world, Role.PROCESS_SERVER, f'spool_directory = "{directory}/spool-{number}"', name=f"ps-{number}")
            for number in (1, 2)
        ]

    async def attach(self) -> None:
        run("cp", "--sparse=always", str(self.world.directory / "disk0"), str(self.disk))
        disk = self.world.assignment().disks[0]
        await self.target.result(
            "attach-replica", machine_id=self.world.machine_id, retention_volume="retention",
            disks=[{"disk_id": disk.disk_id, "index": 0, "path": str(self.disk), "format": "raw", "size_bytes": SIZE,
                    "create": False}],
        )  # fmt: skip

    def route(self, epoch: int, server: Server, sync: SyncMode) -> None:
        """What the configuration server tells all parts when it issues an epoch."""
        machine, target = MachineId(self.world.machine_id), self.target
        policy = ReplicationPolicy("p", crash_consistent_seconds=1)
        replica = ReplicaAssignment(machine, epoch, ComponentId(server.component_id), policy)
        target.plane.assign(MasterTargetAssignment((replica,)))
        endpoint = Endpoint("127.0.0.1", target.port, ComponentId(target.component_id))
        for each in self.servers:
            routed = (RoutedMachine(machine, epoch, endpoint),) if each is server else ()
            each.plane.assign(ProcessServerAssignment(routed))
        assigned = self.world.assignment(epoch=epoch, sync=sync)
        address = Endpoint("127.0.0.1", server.port, ComponentId(server.component_id))
        self.world.plane.assign(replace(assigned, process_server=address))

    async def identical(self) -> None:
        """Freeze, last mark, landed, applied: then the replica's disk is the machine's."""
        mark_id = str(uuid.uuid4())
        report = await self.world.result(self.world.order("app-consistent-mark", mark_id=mark_id, limit_seconds=20.0))
        assert report["state"] == "succeeded", report
        choice = {"selector": "latest", "value": ""}
        await self.target.result(
            "prepare-point", machine_id=self.world.machine_id, choice=choice, after_mark=mark_id
        )  # fmt: skip
        run("blockdev", "--flushbufs", self.world.devices[0])
        fenced = f"{self.disk}.replica"
        assert subprocess.run(["cmp", fenced, self.world.devices[0]], check=False).returncode == 0
        await self.target.result("resume-replica", machine_id=self.world.machine_id)

    async def ends(self, code: str) -> None:
        await self.world.until(lambda: str(self.world.plane.status.get("problem", "")).startswith(f"{code}:"))

    def write(self, megabytes: int, at: int) -> None:
        run("dd", "if=/dev/urandom", f"of={self.world.devices[0]}", "bs=1M", f"count={megabytes}", f"seek={at}",
            "oflag=direct", "conv=notrunc")  # fmt: skip


async def test_a_lost_process_server_and_an_old_copy_of_the_journal(tmp_path: Path) -> None:
    async with World(tmp_path, sizes=(SIZE,)) as world:
        chain = Chain(world)
        try:
            await story(world, chain)
        finally:
            for each in (chain.target, *chain.servers):
                each.kill()
                each.plane.close()


async def story(world: World, chain: Chain) -> None:
    target, (first, second) = chain.target, chain.servers
    for each in (target, first, second):
        each.start()
    world.start()
    chain.write(24, at=0)
    await chain.attach()
    chain.write(2, at=10)
    chain.route(1, first, SyncMode.COMPARE)
    await world.synced(60)
    await chain.identical()
    target.kill()
    copy = world.directory / "copy"
    shutil.copytree(chain.retention, copy)
    target.start()

    # a process server is lost with what it had not passed on
    chain.write(2, at=4)
    await chain.identical()
    target.kill()
    chain.write(6, at=30)
    await world.until(lambda: world.plane.status["backlog_bytes"] == 0)
    await asyncio.sleep(0.5)
    first.kill()
    shutil.rmtree(world.directory / "spool-1")
    chain.write(2, at=50)
    target.start()
    chain.route(2, second, SyncMode.NONE)
    await world.until(lambda: world.plane.status["epoch"] == 2)
    await world.synced(60)
    await chain.identical()
    assert world.plane.status["sync"] == [], "nothing was compared"
    await world.until(lambda: world.plane.status["bytes_sent"] >= 6 << 20)
    assert world.plane.status["bytes_sent"] <= 14 << 20

    # the retention volume comes back from an old copy
    first.start()
    target.kill()
    shutil.rmtree(chain.retention)
    copy.rename(chain.retention)
    target.start()
    await chain.ends("JournalReplaced")
    chain.write(3, at=20)
    chain.route(3, second, SyncMode.COMPARE)
    await world.until(lambda: world.plane.status["epoch"] == 3)
    await world.synced(60)
    await chain.identical()
    await world.until(lambda: world.plane.status["problem"] == "")
    point = world.mount()
    writer = load(point, 2)
    await asyncio.to_thread(writer.wait)
    run("umount", str(point))  # what is mounted goes on writing after the mark
    await chain.identical()
