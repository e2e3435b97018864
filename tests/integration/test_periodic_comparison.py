"""A machine whose capture is refused, replicated by periodic comparison: equal at the end, and no point that never was.

The agent runs without the capabilities that capture needs, so the refusal is the kernel's, not a switch's.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import struct
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from applying_process_server import Received
from mobility_world import World, load, run
from test_mobility_chain import Server

from failback.model.components import (
    Endpoint,
    MasterTargetAssignment,
    MobilityAssignment,
    ProcessServerAssignment,
    ReplicaAssignment,
    Role,
    RoutedMachine,
)
from failback.model.ids import ComponentId, MachineId
from failback.model.policy import ReplicationPolicy
from failback.model.stream import GapCause, MarkKind

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
WITHOUT_CAPTURE = ("setpriv", "--bounding-set=-perfmon,-bpf", "--inh-caps=-perfmon,-bpf")
PAGE = 4096


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, prefix=WITHOUT_CAPTURE) as made:
        yield made


def comparing(world: World, seconds: int, **changes: object) -> MobilityAssignment:
    return replace(world.assignment(), comparison_seconds=seconds, **changes)


class Numbers:
    """Writes one number at the disk's beginning, then at its end, and the next; in bursts. One without the other is a state
    that the disk had only if they differ by one at most."""

    def __init__(self, device: str, size: int) -> None:
        self._descriptor = os.open(device, os.O_RDWR | os.O_DIRECT)
        self._places = (0, size - PAGE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.number = 0

    def __enter__(self) -> Numbers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._descriptor)

    def _run(self) -> None:
        page, chance = mmap.mmap(-1, PAGE), random.Random(1)
        while not self._stop.is_set():
            for _ in range(chance.randrange(20, 400)):
                self.number += 1
                page[:8] = struct.pack("<Q", self.number)
                for place in self._places:
                    os.pwrite(self._descriptor, page, place)
            self._stop.wait(chance.random() * 2)


def numbers_of(path: Path, size: int) -> tuple[int, int]:
    with path.open("rb") as file:
        first = struct.unpack("<Q", file.read(8))[0]
        file.seek(size - PAGE)
        return first, struct.unpack("<Q", file.read(8))[0]


async def test_no_point_is_a_state_that_the_disk_never_had(world: World) -> None:
    """Comparisons of a disk that is written in bursts: some are smeared, and none of those is a point."""
    size = world.sizes[0]
    points: list[tuple[int, int]] = []
    smeared: list[tuple[int, int]] = []

    def look(item: Received) -> None:
        if item.kind == "batch":
            seen = numbers_of(world.receiver.replicas[0].path, size)
            (points if item.gap is GapCause.NONE else smeared).append(seen)

    world.start()
    await world.until(lambda: world.plane.status.get("self_test") == "failed")
    assert "CAP_PERFMON" in world.plane.status["capture_reason"]
    world.receiver.on_item = look
    with Numbers(world.devices[0], size):
        world.plane.assign(comparing(world, 1))
        await world.until(lambda: world.plane.status.get("sync_done") is True)
        assert world.plane.status["capture"] == "comparing"
        await world.until(lambda: len({first for first, _ in points if first}) >= 2, 120)
        await world.until(lambda: any(not first - 1 <= last <= first for first, last in smeared), 120)
    assert all(first - 1 <= last <= first for first, last in points), points
    await world.until(lambda: world.plane.status["gap"] == "" and world.same())
    comparison = world.plane.status["comparison"]
    assert comparison["consistent_wall_ns"] > 0 and comparison["smeared"] == 0 and comparison["seconds"] > 0


async def test_a_mark_holds_the_machine_for_one_comparison(world: World) -> None:
    """Under load no comparison is consistent; the marks of a failback and of an app-consistent point are, by a freeze."""
    point = world.mount()
    world.start()
    world.plane.assign(comparing(world, 3600))
    await world.until(lambda: world.plane.status.get("sync_done") is True)
    writer = load(point, 60)
    mark_id, final_id = str(uuid.uuid4()), str(uuid.uuid4())
    report = await world.result(world.order("app-consistent-mark", mark_id=mark_id, limit_seconds=60.0), 90)
    assert report["state"] == "succeeded", report
    await asyncio.sleep(0.5)
    report = await world.result(world.order("freeze-lease", mark_id=final_id, lease_seconds=60.0), 90)
    assert report["state"] == "succeeded", report
    await world.until(lambda: world.plane.status["freeze"] == "frozen")
    assert world.same(), "the machine is held still, and the replica is what it holds"
    thawed = await world.result(world.order("thaw"))
    assert thawed["state"] == "succeeded"
    writer.kill()
    await asyncio.to_thread(writer.wait)
    marks = [item.mark_kind for item in world.receiver.items if item.mark_id]
    assert marks == [MarkKind.APP_CONSISTENT, MarkKind.FINAL]
    for snapshot in (mark_id, final_id):
        image = world.receiver.snapshots[snapshot][0]
        assert subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, check=False).returncode == 0
    refused = await world.result(world.order("app-consistent-mark", mark_id=str(uuid.uuid4()), limit_seconds=0.001))
    assert refused["error"]["code"] == "ComparisonTooLong"
    refused = await world.result(world.order("scrub", scrub_id=str(uuid.uuid4()), bytes_per_second=0))
    assert refused["error"]["code"] == "NotSupported"


async def test_killed_in_the_middle_of_a_comparison(world: World) -> None:
    run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=1M", "count=60", "oflag=direct")
    world.start("mobility.after_reread=kill@2")
    world.plane.assign(comparing(world, 3600))
    await world.until(lambda: world.agent is not None and world.agent.poll() is not None)
    assert not world.same() and world.receiver.items
    assert all(item.gap is not GapCause.NONE for item in world.receiver.items if item.kind == "batch")
    world.kill()
    world.start()
    await world.synced()
    assert world.same()


async def test_from_capture_to_comparison_and_back(tmp_path: Path) -> None:
    """The choice is the operator's: a capture that runs ends, and begins again with a comparison."""
    async with World(tmp_path) as world:
        world.start()
        world.plane.assign(world.assignment())
        await world.synced()
        assert world.plane.status["capture"] == "capturing" and world.pins.is_dir()
        world.plane.assign(comparing(world, 3600, epoch=2))
        await world.until(lambda: world.plane.status.get("epoch") == 2 and world.plane.status.get("sync_done") is True)
        assert world.plane.status["capture"] == "comparing" and not any(world.pins.glob("*"))
        run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=1M", "count=3", "seek=7", "oflag=direct")
        world.plane.assign(world.assignment(epoch=3))
        await world.until(lambda: world.plane.status.get("epoch") == 3 and world.plane.status.get("sync_done") is True)
        await world.synced()
        assert world.plane.status["capture"] == "capturing" and world.same()


async def test_through_the_real_servers_only_still_places_become_points(tmp_path: Path) -> None:
    """Process server and master target know no difference: while the machine writes a gap is open, at rest there are points."""
    async with World(tmp_path, prefix=WITHOUT_CAPTURE) as world:
        (tmp_path / "retention").mkdir()
        (tmp_path / "datastore").mkdir()
        target = Server(
            world, Role.MASTER_TARGET,
            f'retention_volumes = [{{name = "retention", path = "{tmp_path}/retention"}}]\n'
            f'datastores = [{{name = "store", path = "{tmp_path}/datastore"}}]',
        )  # fmt: skip
        server = Server(
            world, Role.PROCESS_SERVER, f'spool_directory = "{tmp_path}/spool"\nspool_limit_bytes = 268435456'
        )
        try:
            await _chain(world, server, target, tmp_path / "datastore" / "disk.raw")
        finally:
            for each in (server, target):
                each.kill()
                each.plane.close()


async def _chain(world: World, server: Server, target: Server, disk: Path) -> None:
    run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=1M", "count=20", "oflag=direct")
    disk.touch()
    os.truncate(disk, world.sizes[0])
    target.start()
    server.start()
    world.start()
    world.port, world.server_id = server.port, server.component_id
    assignment = comparing(world, 1)
    await target.result(
        "attach-replica", machine_id=world.machine_id, retention_volume="retention",
        disks=[{"disk_id": assignment.disks[0].disk_id, "index": 0, "path": str(disk), "format": "raw",
                "size_bytes": world.sizes[0], "create": False}],
    )  # fmt: skip
    machine = MachineId(world.machine_id)
    policy = ReplicationPolicy("p", crash_consistent_seconds=1)
    replica = ReplicaAssignment(machine, 1, ComponentId(server.component_id), policy)
    target.plane.assign(MasterTargetAssignment((replica,)))
    endpoint = Endpoint("127.0.0.1", target.port, ComponentId(target.component_id))
    server.plane.assign(ProcessServerAssignment((RoutedMachine(machine, 1, endpoint),)))
    world.plane.assign(assignment)

    def points() -> list[str]:
        replicas = target.plane.status.get("replicas") or [{"points": []}]
        return [point["point_id"] for point in replicas[0]["points"] if point["kind"] == "CrashConsistent"]

    await world.until(points, 120)
    with Numbers(world.devices[0], world.sizes[0]):
        await world.until(lambda: target.plane.status["replicas"][0]["gap"], 120)
    count = len(points())
    await world.until(lambda: world.plane.status["gap"] == "" and len(points()) > count, 120)
    mark_id = str(uuid.uuid4())
    report = await world.result(world.order("freeze-lease", mark_id=mark_id, lease_seconds=60.0), 90)
    assert report["state"] == "succeeded", report
    await target.result(
        "prepare-point", machine_id=world.machine_id, choice={"selector": "latest", "value": ""}, after_mark=mark_id
    )
    await target.result("release-replica", machine_id=world.machine_id)
    assert subprocess.run(["cmp", str(disk), world.devices[0]], check=False).returncode == 0
