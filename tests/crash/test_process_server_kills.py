"""kill -9 of the real process server at every fault point, and at random moments under load: the sender resumes, the
master target gets every item exactly in order with the bytes that were sent, and what was acknowledged is never lost."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from process_server_doubles import make_batch
from process_server_site import Agent, Site, eventually

SMALL = 30_000


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    built = Site(tmp_path, spool_limit_bytes=16 << 20)  # segments of 1 MiB
    yield built
    await built.close()


async def _send_all(agent: Agent, count: int, payload_bytes: int = SMALL, pause_seconds: float = 0.003) -> None:
    for sequence in range(1, count + 1):
        await agent.send(make_batch(agent.machine_id, sequence, payload_bytes=payload_bytes))
        await asyncio.sleep(pause_seconds)  # so that several syncs are needed


async def _check(site: Site, agent: Agent, count: int, payload_bytes: int = SMALL) -> None:
    stream = await site.target.wait_for(agent.machine_id, count, seconds=40)
    assert [item.header.sequence for item in stream.items] == list(range(1, count + 1))
    for sequence, item in enumerate(stream.items, 1):
        assert item.decode() == make_batch(agent.machine_id, sequence, payload_bytes=payload_bytes)
    await eventually(lambda: agent.landed == count)
    assert agent.items.held_bytes == 0
    assert agent.forgotten == 0


@pytest.mark.parametrize(
    "fault",
    [
        "spool.before_sync=kill@1",
        "spool.before_sync=kill@3",
        "spool.after_sync=kill@1",
        "spool.after_sync=kill@4",
        "spool.before_ack=kill@2",
        "forward.after_send=kill@1",
        "forward.after_send=kill@25",
        "spool.before_state=kill@1",
        "spool.before_state=kill@3",
        "spool.before_free=kill@1",
        "spool.after_free=kill@1",
    ],
)
async def test_killed_at_a_fault_point_it_goes_on_as_if_nothing_happened(site: Site, fault: str) -> None:
    site.faults = fault
    site.recent_memory_bytes = 1
    await site.start()
    agent = site.agent()
    sending = asyncio.create_task(_send_all(agent, 90))
    await eventually(lambda: site.killed)
    site.faults = ""
    site.launch()
    await site.listening()
    await sending
    await _check(site, agent, 90)


async def test_killed_while_a_spool_is_deleted(site: Site) -> None:
    site.faults = "spool.before_delete=kill@1"
    await site.start()
    agent = site.agent()
    await agent.send(make_batch(agent.machine_id, 1))
    await eventually(lambda: agent.landed == 1)
    site.assign()
    await eventually(lambda: site.killed)
    leftover = site.directory / "spool" / f"deleted-{agent.machine_id}-7"
    (leftover / "deep").mkdir(parents=True)
    site.faults = ""
    site.launch()
    await eventually(lambda: site.spools() == [] and not leftover.exists())


async def test_kills_at_random_moments_under_load_of_several_machines(site: Site) -> None:
    chance = random.Random(7)
    await site.start()
    agents = [Agent(site, str(uuid.uuid4())) for _ in range(3)]
    site.assign(*((agent.machine_id, 1) for agent in agents))
    sending = [asyncio.create_task(_send_all(agent, 150, 60_000, pause_seconds=0.02)) for agent in agents]
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0.05, 0.5))
        await site.restart()
    for agent, task in zip(agents, sending, strict=True):
        await task
        await _check(site, agent, 150, 60_000)
        hellos = site.target.streams[(agent.machine_id, 1)].hellos
        assert all(later.landed_sequence >= hellos[0].landed_sequence for later in hellos)


async def test_acknowledged_items_survive_the_loss_of_the_agent_and_a_kill(site: Site) -> None:
    await site.start()
    site.target.flow.clear()
    agent = site.agent()
    await _send_all(agent, 40)
    await eventually(lambda: agent.spooled == 40)
    agent.stop()
    await site.restart()
    site.target.flow.set()
    stream = await site.target.wait_for(agent.machine_id, 40)
    assert [item.decode() for item in stream.items] == [
        make_batch(agent.machine_id, sequence, payload_bytes=SMALL) for sequence in range(1, 41)
    ]
    assert stream.hellos[-1].disks
