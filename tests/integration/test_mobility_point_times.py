"""What a batch says of its time: a point bears no time at which it does not yet hold what had been written (D15)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mobility_world import World, run

from failback.model.stream import GapCause


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, ring_megabytes=32) as built:
        yield built


async def test_a_batch_of_a_backlog_bears_the_time_of_its_content(world: World) -> None:
    """While the agent is away the ring fills; the first batch afterwards holds only the older part of it."""
    world.start()
    world.plane.assign(world.assignment())
    await world.synced()
    await world.settled()
    world.kill()
    before = len(world.receiver.items)
    run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=1M", "count=12", "oflag=direct")
    time.sleep(1.5)
    between_ns = time.time_ns()
    time.sleep(0.2)
    run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=1M", "count=6", "seek=40", "oflag=direct")
    world.start()
    await world.settled()
    assert world.same()
    batches = [item for item in world.receiver.items[before:] if item.kind == "batch"]
    first = next(item for item in batches if item.payload_bytes)
    assert first.payload_bytes < 12 << 20, "the older part is more than one batch"
    assert first.gap is GapCause.NONE
    assert first.wall_ns < between_ns
    walls = [item.wall_ns for item in batches]
    assert walls == sorted(walls)
    assert walls[-1] > between_ns
