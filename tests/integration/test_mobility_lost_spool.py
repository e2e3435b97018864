"""What a restarted agent may not take for granted: that the process server still has what it acknowledged, that the ring it
finds is the one it knew, that items of the same numbers are the same items (D5, D6, D11)."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from mobility_world import World, run

from failback.errors import PeerError
from failback.model.components import SyncMode
from failback.model.stream import GapCause

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, sizes=(32 << 20,)) as made:
        yield made


def _write(world: World, megabytes: int, at: int = 0) -> None:
    run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=1M", f"count={megabytes}", f"seek={at}", "oflag=direct",
        "conv=notrunc")  # fmt: skip


async def test_a_spool_that_lost_what_it_acknowledged_ends_the_epoch(world: World) -> None:
    """The process server's disk was replaced while the agent was restarted: what was released is not held by anybody."""
    world.start()
    world.plane.assign(world.assignment())
    await world.synced()
    receiver, replica = world.receiver, world.receiver.replicas[0]
    receiver.land = False  # from here on items are spooled, and do not land
    before = (*receiver.landed, receiver.snapshot(0, "landed"))
    sequence = receiver.sequence
    _write(world, 4)
    await world.until(lambda: receiver.sequence > sequence + 1 and world.plane.status["backlog_bytes"] == 0)
    await asyncio.sleep(0.5)  # what is spooled is released
    world.kill()
    receiver.sequence, receiver.ring = before[0], before[1]
    shutil.copyfile(before[2], replica.path)
    receiver.land = True
    items = len(receiver.items)
    world.start()
    await world.until(lambda: "acknowledged" in world.plane.status["capture_reason"])
    assert len(receiver.items) == items, "nothing was sent on top of the hole"
    world.plane.assign(world.assignment(epoch=2, sync=SyncMode.NONE))
    await world.synced()
    await world.settled()
    assert world.same(), "the unlanded blocks came again under the new epoch"
    assert receiver.items[items].gap is GapCause.RESEND


async def test_a_ring_that_a_dead_agent_began_is_as_unknown_as_a_new_one(world: World) -> None:
    """The ring's size was changed; the agent died before it could reach the process server and decide to compare."""
    assignment = world.assignment()
    world.start()
    world.plane.assign(assignment)
    await world.synced()
    world.receiver.refuse = PeerError("the process server is away")
    world.kill()
    _write(world, 3)  # into the old ring, which goes away with its program
    world.ring_megabytes = 8
    world.start()
    await world.until(lambda: world.plane.status.get("capture") == "capturing" and not world.plane.status["linked"])
    world.kill()
    world.receiver.refuse = None
    world.start()
    await world.until(lambda: world.plane.status.get("linked"))
    await world.synced()
    await world.settled()
    assert world.same()


async def test_items_that_others_sent_under_these_numbers_release_nothing(world: World) -> None:
    """The process server stands ahead of the agent, as after its spool was lost and the journal was ahead."""
    world.start()
    world.plane.assign(replace(world.assignment(), batch_milliseconds=200))
    await world.synced()
    receiver = world.receiver
    async with receiver._lock:  # nothing is taken meanwhile
        _write(world, 2)
        receiver.sequence += 40
        assert receiver._current is not None
        await receiver._current.close()
    await world.until(lambda: "other items" in world.plane.status["capture_reason"])
    await world.until(lambda: world.plane.status["capture"] == "capturing")
    await world.settled(60)
    assert world.same()
