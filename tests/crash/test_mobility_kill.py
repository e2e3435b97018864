"""kill -9 of the mobility service under load, at named points and at random: the replica is identical all the same (D5, D11)."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mobility_world import World, load, run

from failback.model.components import SyncMode
from failback.model.stream import GapCause

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")

POINTS = (
    "mobility.after_collect=kill@9",
    "mobility.before_release=kill@7",
    "mobility.after_release=kill@8",
    "mobility.after_reread=kill@1",
    "capture.reread_pending=kill@1",
    "capture.reread_before_read=kill@1",
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, ring_megabytes=4) as made:
        yield made


async def test_killed_at_every_point_and_at_random_under_load(world: World) -> None:
    """One story: compare, load, a dozen deaths, restart each time, identical at the end."""
    point = world.mount()
    world.start("mobility.after_reread=kill@1")
    world.plane.assign(world.assignment())
    await gone(world)
    world.start()
    await world.synced()
    writer = load(point, 12)
    seed = random.Random(7)
    for faults in POINTS:
        world.kill()
        world.start(faults)
        if "reread" in faults:
            # a burst over a 4 MiB ring makes dirty blocks, so that there is something to re-read
            subprocess.Popen(["dd", "if=/dev/urandom", f"of={point}/burst", "bs=1M", "count=20", "oflag=direct"],
                             stderr=subprocess.DEVNULL).wait()  # fmt: skip
        await gone(world)
    for _ in range(4):
        world.start()
        await asyncio.sleep(seed.uniform(0.3, 1.2))
        world.kill()
    world.start()
    await asyncio.to_thread(writer.wait)
    run("umount", str(point))
    await world.settled(60)
    assert world.same()
    assert world.plane.status["sync_done"], "a restart does not compare again"
    assert world.plane.status["self_test"] == "passed", "it is remembered"
    assert {hello.epoch for hello in world.receiver.hellos} == {1}
    assert world.receiver.items[-1].gap is GapCause.NONE


async def test_killed_in_the_middle_of_a_full_copy(world: World) -> None:
    device = world.devices[0]
    run("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=90", "conv=fsync")
    world.start("mobility.before_release=kill@3")
    world.plane.assign(world.assignment(sync=SyncMode.FULL))
    await gone(world)
    before = world.receiver.replicas[0].written_bytes
    assert 0 < before < 80 << 20
    world.start()
    await world.synced()
    await world.settled()
    assert world.same()
    assert world.receiver.replicas[0].written_bytes < before + (90 << 20), "what had arrived is not sent again"


async def gone(world: World) -> None:
    assert world.agent is not None
    agent = world.agent
    await world.until(lambda: agent.poll() is not None, 30)
    assert agent.returncode == -9
