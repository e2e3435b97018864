"""The real mobility service on loop devices, over real links: the replica is identical, points are where they should be."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from mobility_world import World, load, run

from failback.model.components import SyncMode
from failback.model.stream import GapCause, MarkKind

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as made:
        yield made


async def test_silent_until_told_then_compares_sends_changes_and_stops(world: World) -> None:
    """D2, D8, D12: nothing before the assignment; only what differs travels; then changes; inactive ends the capture."""
    device = world.devices[0]
    run("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=16", "conv=fsync")
    run("dd", f"if={device}", f"of={world.receiver.replicas[0].path}", "bs=1M", "count=12", "conv=notrunc")
    began = time.monotonic()
    world.start()
    await world.until(lambda: world.plane.status.get("self_test") == "passed")
    assert time.monotonic() - began < 5
    assert world.plane.status["capture"] == "idle" and not world.receiver.hellos and not world.pins.exists()
    assert [disk["device"] for disk in world.plane.status["disks"]] == [device]
    world.plane.assign(world.assignment())
    await world.synced()
    assert world.same()
    (progress,) = world.plane.status["sync"]
    assert progress["done"] and progress["bytes_compared"] == 96 << 20
    assert 4 << 20 <= progress["bytes_differing"] <= 5 << 20, "12 of 16 MiB were equal already"
    point = world.mount()
    writer = load(point, 2)
    await asyncio.to_thread(writer.wait)
    run("umount", str(point))
    await world.settled()
    assert world.same()
    status = world.plane.status
    assert status["lag"]["samples"] > 5 and 0 < status["lag"]["p50"] <= status["lag"]["p99"]
    assert status["bytes_changed"] > 1 << 20
    world.plane.assign(replace(world.assignment(), active=False))
    await world.until(lambda: world.plane.status["capture"] == "idle")
    assert not world.pins.exists()


async def test_full_copy_skips_zeroes_while_the_machine_writes(world: World) -> None:
    point = world.mount()
    writer = load(point, 3)
    world.start()
    world.plane.assign(world.assignment(sync=SyncMode.FULL))
    await world.synced()
    await asyncio.to_thread(writer.wait)
    run("umount", str(point))
    await world.settled()
    assert world.same()
    gaps = [item.gap for item in world.receiver.items if item.kind == "batch"]
    assert gaps[0] is GapCause.SYNC and gaps[-1] is GapCause.NONE


async def test_application_consistent_mark_is_a_clean_file_system(world: World) -> None:
    """D18: at the mark the replica needs no recovery and holds exactly what was acknowledged."""
    point = world.mount()
    world.start()
    world.plane.assign(world.assignment())
    await world.synced()
    writer = load(point, 30)
    await asyncio.sleep(1.0)
    mark_id = str(uuid.uuid4())
    report = await world.result(world.order("app-consistent-mark", mark_id=mark_id, limit_seconds=20.0))
    assert report["state"] == "succeeded", report
    assert 0 < report["result"]["frozen_milliseconds"] < 5000
    await world.until(lambda: mark_id in world.receiver.snapshots)
    writer.kill()
    await asyncio.to_thread(writer.wait)
    image = world.receiver.snapshots[mark_id][0]
    checked = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "needs_recovery" not in run("dumpe2fs", "-h", str(image))


async def test_freeze_lease_holds_the_machine_until_thawed(world: World, tmp_path: Path) -> None:
    """D20: the last mark has landed when the order answers, and no write comes after it until the thaw."""
    point = world.mount()
    journal = tmp_path / "scripts.txt"
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\necho $1 >> {journal}\n")
    script.chmod(0o755)
    world.extra_toml = f'pre_script = "{script}"\npost_script = "{script}"'
    world.start()
    world.plane.assign(world.assignment())
    await world.synced()
    writer = load(point, 30)
    await asyncio.sleep(1.0)
    mark_id = str(uuid.uuid4())
    report = await world.result(world.order("freeze-lease", mark_id=mark_id, lease_seconds=30.0))
    assert report["state"] == "succeeded", report
    assert world.receiver.landed[0] >= report["result"]["sequence"]
    await world.until(lambda: world.plane.status["freeze"] == "frozen")
    count = sum(item.payload_bytes for item in world.receiver.items)
    await asyncio.sleep(1.0)
    assert sum(item.payload_bytes for item in world.receiver.items) == count
    assert [item.mark_kind for item in world.receiver.items if item.mark_id == mark_id] == [MarkKind.FINAL]
    refused = await world.result(world.order("freeze-lease", mark_id=str(uuid.uuid4()), lease_seconds=30.0))
    assert refused["state"] == "failed" and refused["error"]["code"] == "Conflict"
    thawed = await world.result(world.order("thaw"))
    assert thawed["state"] == "succeeded"
    await world.until(lambda: world.plane.status["freeze"] == "")
    await world.until(lambda: sum(item.payload_bytes for item in world.receiver.items) > count)
    writer.kill()
    await asyncio.to_thread(writer.wait)
    assert journal.read_text().split() == ["failback", "failback-cancelled"]
    image = world.receiver.snapshots[mark_id][0]
    assert subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, check=False).returncode == 0


async def test_thaw_ends_a_lease_that_is_still_beginning(world: World) -> None:
    """The last mark cannot land: the thaw must not wait for it, and the order fails."""
    point = world.mount()
    world.start()
    world.plane.assign(world.assignment())
    await world.synced()
    world.receiver.land = False
    mark_id = str(uuid.uuid4())
    order_id = world.order("freeze-lease", mark_id=mark_id, lease_seconds=60.0)
    await world.until(lambda: mark_id in world.receiver.snapshots)
    thawed = await world.result(world.order("thaw"))
    assert thawed["state"] == "succeeded"
    report = await world.result(order_id)
    assert report["state"] == "failed" and report["error"]["code"] == "FreezeLeaseLost"
    run("dd", "if=/dev/zero", f"of={point}/after", "bs=4k", "count=1", "conv=fsync")


async def test_agent_killed_under_a_lease_leaves_the_machine_thawed_and_the_lease_lost(world: World) -> None:
    point = world.mount()
    world.start()
    world.plane.assign(world.assignment())
    await world.synced()
    order_id = world.order("freeze-lease", mark_id=str(uuid.uuid4()), lease_seconds=60.0)
    await world.until(lambda: world.plane.status["freeze"] == "frozen")
    world.kill()
    done = await asyncio.to_thread(
        subprocess.run, ["dd", "if=/dev/zero", f"of={point}/after", "bs=4k", "count=1", "conv=fsync"],
        capture_output=True, timeout=5, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    world.plane.reports = []
    world.start()
    report = await world.result(order_id)
    assert report["state"] == "failed" and report["error"]["code"] == "FreezeLeaseLost"


async def test_a_process_server_that_is_unknown_for_a_while_costs_nothing(world: World) -> None:
    """Its address may vanish from the assignment and come back: the capture goes on and nothing is compared again."""
    world.start()
    told = world.assignment()
    world.plane.assign(told)
    await world.synced()
    world.plane.assign(replace(told, process_server=None))
    run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=64k", "count=20", "conv=fsync")
    await asyncio.sleep(1)
    world.plane.assign(replace(told, batch_milliseconds=60))
    await world.synced()
    await world.settled()
    assert world.same()
    assert len([item for item in world.receiver.items if item.kind == "digests"]) == 3
    await world.until(lambda: world.plane.status["bytes_changed"] >= 20 << 16)


async def test_overflow_of_a_tiny_ring_heals_and_shows_a_gap(tmp_path: Path) -> None:
    """D8, D9: more is written than the ring holds; the gap closes and the replica is identical."""
    async with World(tmp_path, ring_megabytes=1) as world:
        world.start()
        world.plane.assign(world.assignment())
        await world.synced()
        device = world.devices[0]
        writers = [
            subprocess.Popen(["dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=24", f"seek={seek}", "oflag=direct"],
                             stderr=subprocess.DEVNULL)
            for seek in (0, 30, 60)
        ]  # fmt: skip
        for writer in writers:
            await asyncio.to_thread(writer.wait)
        await world.settled()
        assert world.same()
        assert any(item.gap is GapCause.OVERFLOW for item in world.receiver.items if item.kind == "batch")


async def test_another_process_server_gets_only_what_had_not_landed(world: World) -> None:
    """D6: a new epoch without a pass re-reads unlanded blocks, nothing else."""
    device = world.devices[0]
    world.start()
    first = world.assignment(pass_id=str(uuid.uuid4()))
    world.plane.assign(first)
    await world.synced()
    await world.settled()
    world.receiver.land = False
    run("dd", "if=/dev/urandom", f"of={device}", "bs=64k", "count=10", "seek=7", "conv=fsync")
    await world.until(lambda: world.plane.status["spooled_sequence"] > world.plane.status["landed_sequence"])
    await asyncio.sleep(0.5)
    os.pwrite(
        world.receiver.replicas[0].descriptor, bytes(10 << 16), 7 << 16
    )  # the lost spool never reached the replica
    written = world.receiver.replicas[0].written_bytes
    world.receiver.land = True
    disks = tuple(replace(disk, sync=SyncMode.NONE) for disk in first.disks)
    world.plane.assign(replace(first, epoch=2, disks=disks))
    await world.until(lambda: world.plane.status["epoch"] == 2)
    await world.synced()
    await world.settled()
    assert world.same()
    assert world.receiver.replicas[0].written_bytes - written <= 16 << 16
    assert any(item.gap is not GapCause.NONE for item in world.receiver.items if item.epoch == 2)


async def test_a_memory_bound_holds_while_the_server_is_away(tmp_path: Path) -> None:
    async with World(tmp_path, sizes=(256 << 20,), ring_megabytes=16) as world:
        world.start()
        world.plane.assign(world.assignment())
        await world.synced()
        idle = resident_megabytes(world)
        world.receiver.refuse = RuntimeError("away")
        port = world.port
        await world.receiver.server.close()  # type: ignore[union-attr]
        run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=1M", "count=200", "oflag=direct")
        await asyncio.sleep(1)
        busy = resident_megabytes(world)
        world.receiver.refuse = None
        await world.receiver.start(port)
        await world.settled(60)
        assert world.same()
        peak = resident_megabytes(world, "VmHWM")
        assert idle < 60 + 2 * 16 and busy < 150 + 2 * 16 and peak < 150 + 2 * 16, (idle, busy, peak)


def resident_megabytes(world: World, field: str = "VmRSS") -> float:
    assert world.agent is not None
    text = Path(f"/proc/{world.agent.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) / 1024
