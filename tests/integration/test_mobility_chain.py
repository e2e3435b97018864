"""The whole data path with the real programs: capture, mobility service, process server, master target, disk."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mobility_world import World, load, run
from process_server_doubles import FixedControlPlane

from failback.model.components import (
    Endpoint,
    MasterTargetAssignment,
    ProcessServerAssignment,
    ReplicaAssignment,
    Role,
    RoutedMachine,
)
from failback.model.ids import ComponentId, MachineId
from failback.model.policy import ReplicationPolicy

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """A real role in a process of its own, told what to do by a control plane of its own."""

    world: World
    role: Role
    toml: str
    component_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        directory = self.world.directory / (self.name or self.role.value)
        self.world.authority.identity(self.component_id, self.role, directory / "identity")
        self.plane = FixedControlPlane(
            self.world.authority.identity(str(uuid.uuid4()), Role.CONFIGURATION_SERVER, directory / "plane")
        )
        self.config = directory / "config.toml"
        self.config.write_text(
            f'state_directory = "{directory}"\nlisten_host = "127.0.0.1"\nlisten_port = {self.port}\n{self.toml}\n'
            f'[configuration_server]\nurl = "{self.plane.url}"\nca_file = "{self.world.directory}/ca/ca.pem"\n'
            "heartbeat_seconds = 0.3\n"
        )

    def start(self) -> None:
        with (self.config.parent / "server.log").open("ab") as log:
            command = [sys.executable, "-m", "failback", "serve", self.role.value, "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    async def result(self, kind: str, **arguments: object) -> dict[str, object]:
        order_id = str(uuid.uuid4())
        self.plane.orders.append({"order_id": order_id, "kind": kind, "generation": 1, "arguments": arguments})
        for _ in range(1500):
            for report in self.plane.reports:
                if report["order_id"] == order_id and report["state"] in ("succeeded", "failed"):
                    self.plane.orders.clear()
                    assert report["state"] == "succeeded", report
                    result: dict[str, object] = report["result"]
                    return result
            await asyncio.sleep(0.02)
        raise AssertionError(f"{kind}: {(self.config.parent / 'server.log').read_text()[-4000:]}")


async def test_a_machine_arrives_whole_though_every_part_is_killed(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        retention, datastore = tmp_path / "retention", tmp_path / "datastore"
        retention.mkdir()
        datastore.mkdir()
        places = ", ".join(f'{{name = "{path.name}", path = "{path}"}}' for path in (retention,))
        stores = ", ".join(f'{{name = "{path.name}", path = "{path}"}}' for path in (datastore,))
        target = Server(world, Role.MASTER_TARGET, f"retention_volumes = [{places}]\ndatastores = [{stores}]")
        server = Server(
            world, Role.PROCESS_SERVER, f'spool_directory = "{tmp_path}/spool"\nspool_limit_bytes = 268435456'
        )
        disk = datastore / "disk.raw"
        try:
            await story(world, server, target, disk)
        finally:
            for each in (server, target):
                each.kill()
                each.plane.close()


async def story(world: World, server: Server, target: Server, disk: Path) -> None:
    point = world.mount()
    run("cp", "--sparse=always", str(world.directory / "disk0"), str(disk))
    run("dd", "if=/dev/urandom", f"of={disk}", "bs=1M", "seek=50", "count=2", "conv=notrunc")
    target.start()
    server.start()
    world.start()
    world.port, world.server_id = server.port, server.component_id
    assignment = world.assignment()
    await target.result(
        "attach-replica", machine_id=world.machine_id, retention_volume="retention",
        disks=[{"disk_id": assignment.disks[0].disk_id, "index": 0, "path": str(disk), "format": "raw",
                "size_bytes": world.sizes[0], "create": False}],
    )  # fmt: skip
    machine = MachineId(world.machine_id)
    replica = ReplicaAssignment(
        machine, 1, ComponentId(server.component_id), ReplicationPolicy("p", crash_consistent_seconds=1)
    )
    target.plane.assign(MasterTargetAssignment((replica,)))
    endpoint = Endpoint("127.0.0.1", target.port, ComponentId(target.component_id))
    server.plane.assign(ProcessServerAssignment((RoutedMachine(machine, 1, endpoint),)))
    world.plane.assign(assignment)
    await world.synced(60)
    writer = load(point, 7)
    for part in (world, server, target):
        await asyncio.sleep(1.5)
        part.kill()
        await asyncio.sleep(0.5)
        part.start()
    await asyncio.to_thread(writer.wait)
    run("umount", str(point))
    mark_id = str(uuid.uuid4())
    report = await world.result(world.order("freeze-lease", mark_id=mark_id, lease_seconds=60.0), 60)
    assert report["state"] == "succeeded", report
    await target.result(
        "prepare-point", machine_id=world.machine_id, choice={"selector": "latest", "value": ""}, after_mark=mark_id
    )
    await target.result("release-replica", machine_id=world.machine_id)
    run("blockdev", "--flushbufs", world.devices[0])
    assert subprocess.run(["cmp", str(disk), world.devices[0]], check=False).returncode == 0
    await world.until(lambda: world.plane.status["lag"]["samples"] > 0)
