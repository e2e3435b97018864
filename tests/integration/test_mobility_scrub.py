"""A scrub over the whole real chain: what rotted on the replica is found, repaired and named; what is written is not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from pathlib import Path

import pytest
from mobility_world import World, load, run
from test_mobility_chain import Server

from failback.mobility.capture.values import Differing
from failback.mobility.scrubbing import CHUNK_BLOCKS, ScrubPass
from failback.model.components import (
    Endpoint,
    MasterTargetAssignment,
    ProcessServerAssignment,
    ReplicaAssignment,
    Role,
    RoutedMachine,
    SourceDisk,
    SyncMode,
)
from failback.model.ids import ComponentId, DiskId, MachineId, PassId
from failback.model.policy import ReplicationPolicy
from failback.model.stream import BLOCK_BYTES, ExtentFlag, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import DigestReply

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")


@needs_root
async def test_rot_on_the_replica_is_found_and_repaired_under_load(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        retention, datastore = tmp_path / "retention", tmp_path / "datastore"
        retention.mkdir()
        datastore.mkdir()
        target = Server(
            world, Role.MASTER_TARGET,
            f'retention_volumes = [{{name = "retention", path = "{retention}"}}]\n'
            f'datastores = [{{name = "store", path = "{datastore}"}}]',
        )  # fmt: skip
        server = Server(
            world, Role.PROCESS_SERVER, f'spool_directory = "{tmp_path}/spool"\nspool_limit_bytes = 268435456'
        )
        try:
            await _story(world, server, target, datastore / "disk.raw")
        finally:
            for each in (server, target):
                each.kill()
                each.plane.close()


async def _story(world: World, server: Server, target: Server, disk: Path) -> None:
    point = world.mount()
    (point / "quiet").write_bytes(os.urandom(8 << 20))
    (point / "gone").write_bytes(os.urandom(4 << 20))
    run("sync")
    run("cp", "--sparse=always", str(world.directory / "disk0"), str(disk))
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
    await _discarded(world, target, point, disk)
    place = _place(point / "quiet")  # nothing writes there
    with (disk.with_name("disk.raw.replica")).open("rb+") as stream:
        stream.seek(place + 65536 + 512)
        stream.write(b"rot")
        stream.seek(place + 1048576)
        stream.write(bytes(12288))
    writer = load(point, 12)
    scrub_id = str(uuid.uuid4())
    report = await world.result(world.order("scrub", scrub_id=scrub_id, bytes_per_second=40e6))
    assert report["state"] == "succeeded", report
    await world.until(lambda: _scrub(world)["state"] == "finished", 60)
    status = _scrub(world)
    assert status["scrub_id"] == scrub_id and status["bytes_compared"] == status["bytes_total"] == world.sizes[0]
    found = sorted((one["offset_bytes"], one["length_bytes"]) for one in status["findings"])
    assert found == [(place + 65536, 4096), (place + 1048576, 12288)] and status["repaired_bytes"] == 16384
    await asyncio.to_thread(writer.wait)
    run("umount", str(point))
    assert _passes(target) <= 1, "only the first pass is a gap: a scrub opens none (the load may)"
    mark_id = str(uuid.uuid4())
    report = await world.result(world.order("freeze-lease", mark_id=mark_id, lease_seconds=60.0), 60)
    assert report["state"] == "succeeded", report
    await target.result(
        "prepare-point", machine_id=world.machine_id, choice={"selector": "latest", "value": ""}, after_mark=mark_id
    )
    await target.result("release-replica", machine_id=world.machine_id)
    run("blockdev", "--flushbufs", world.devices[0])
    assert subprocess.run(["cmp", str(disk), world.devices[0]], check=False).returncode == 0


def _place(file: Path) -> int:
    """Where the file begins on the disk."""
    extent = run("filefrag", "-b4096", "-v", str(file)).splitlines()[3].split()
    return int(extent[3].rstrip(".")) * 4096


async def _discarded(world: World, target: Server, point: Path, disk: Path) -> None:
    """A file is removed and its place trimmed; the replica holds something else there: no alarm (D12)."""
    place = _place(point / "gone")
    (point / "gone").unlink()
    run("sync")
    run("fstrim", str(point))
    report = await world.result(world.order("app-consistent-mark", mark_id=str(uuid.uuid4()), limit_seconds=20.0))
    sequence = report["result"]["sequence"]
    await world.until(lambda: target.plane.status["replicas"][0]["applied_sequence"] >= sequence)
    with (disk.with_name("disk.raw.replica")).open("rb+") as stream:
        stream.seek(place + 131072)
        stream.write(b"left over")
    await world.result(world.order("scrub", scrub_id=str(uuid.uuid4()), bytes_per_second=1e9))
    await world.until(lambda: _scrub(world)["state"] == "finished", 60)
    status = _scrub(world)
    assert (status["findings"], status["repaired_bytes"], status["discarded_bytes"]) == ([], 0, 4096), status


def _scrub(world: World) -> dict[str, object]:
    found: dict[str, object] = world.plane.status.get("scrub") or {"state": ""}
    return found


def _passes(target: Server) -> int:
    return sum(gap["cause"] in ("SYNC", "MISSED") for gap in target.plane.status["replicas"][0]["gaps"])


def _pass() -> ScrubPass:
    disk = SourceDisk(DiskId("disk"), 0, "match", 4 * CHUNK_BLOCKS * BLOCK_BYTES, SyncMode.NONE)
    return ScrubPass("scrub", [disk], 8 << 20, 1)


def _reply(sequence: int, first: int, differing: tuple[int, ...]) -> DigestReply:
    bits = sum(1 << block - first for block in differing).to_bytes(CHUNK_BLOCKS // 8, "little")
    return DigestReply(MachineId("m"), 1, sequence, PassId("scrub"), 0, first, CHUNK_BLOCKS, bits, 16,
                       bytes(16 * 16 * len(differing)))  # fmt: skip


def _row(block: int, flag: ExtentFlag = ExtentFlag.NONE) -> bytes:
    return EXTENT.pack(0, Operation.DATA, int(flag), 4096, block * BLOCK_BYTES + 8192)


def test_a_block_that_was_written_since_proves_nothing() -> None:
    scrub = _pass()
    chunk = scrub.next_chunk(1.0)
    assert chunk is not None and scrub.next_chunk(1.1) is None, "the rate bounds what is read"
    assert scrub.next_chunk(1.5) is not None
    scrub.sent(1, chunk)
    scrub.batch(_row(3), (), False, 5)
    assert scrub.answered(_reply(1, 0, (3, 4, 5))) is chunk
    wanted: list[Differing] = scrub.take_waiting(10)
    assert [one.block for one in wanted] == [3, 4, 5]
    reread = b"".join(_row(block, ExtentFlag.REREAD) for block in (3, 4, 5))
    scrub.batch(reread + _row(5), wanted, False, 6)  # 5 was written while it was read: its record comes after it
    assert [(one.offset_bytes, one.length_bytes) for one in scrub.findings] == [(4 * BLOCK_BYTES + 8192, 4096)]
    scrub.batch(_row(4, ExtentFlag.REREAD), (), False, 7)
    assert len(scrub.findings) == 1 and not scrub.holds_back(9)


def test_what_was_discarded_is_no_mismatch() -> None:
    """D12: brought in step, counted, and no finding; the piece beside it is one."""
    scrub = _pass()
    chunk = scrub.next_chunk(1.0)
    assert chunk is not None
    scrub.sent(1, chunk)
    assert scrub.answered(_reply(1, 0, (3,))) is chunk
    place = 3 * BLOCK_BYTES
    reread = EXTENT.pack(0, Operation.DATA, int(ExtentFlag.REREAD), 12288, place)
    scrub.batch(reread, scrub.take_waiting(10), False, 6, lambda _, offset, __: offset == place + 4096)
    found = [(one.offset_bytes, one.length_bytes) for one in scrub.findings]
    assert found == [(place, 4096), (place + 8192, 4096)]
    assert (scrub.repaired_bytes, scrub.discarded_bytes) == (8192, 4096)
