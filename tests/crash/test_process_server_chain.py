"""The chain with both servers real: a sender, the process server's process and the master target's process, each killed
again and again under load. At the end the replica's disks are what the batches say, and every item landed once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import chain_site
import journal_driver as driver
import master_target_site
import process_server_site
import pytest
from chain_site import ChainAgent
from process_server_site import eventually

SEED, COUNT = 11, 240


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[master_target_site.Site]:
    async with chain_site.master_target(tmp_path) as built:
        yield built


@pytest.fixture
async def server(tmp_path: Path, target: master_target_site.Site) -> AsyncIterator[process_server_site.Site]:
    async with chain_site.process_server(tmp_path, target) as built:
        yield built


async def test_both_servers_killed_under_load_leave_an_identical_replica(
    target: master_target_site.Site, server: process_server_site.Site
) -> None:
    target.make_disks(SEED)
    attached = await target.attach()
    target.assign(1)
    server.assign((driver.MACHINE, 1))
    agent = ChainAgent(server, driver.MACHINE)

    async def send() -> None:
        for sequence in range(1, COUNT + 1):
            await agent.items.send(driver.make_batch(SEED, sequence))
            await asyncio.sleep(0.01)

    sending = asyncio.create_task(send())
    chance = random.Random(3)
    for kill in range(6):
        await asyncio.sleep(chance.uniform(0.2, 0.6))
        if kill % 2:
            target.kill()
        else:
            await server.restart()
    await sending
    await eventually(lambda: agent.landed == COUNT, 60)
    assert agent.acks[-1].incarnation == attached.incarnation
    assert agent.forgotten == 0
    assert not [error for error in agent.refusals if not error.retryable]
    await eventually(lambda: target.replica().get("applied_sequence") == COUNT, 60)
    assert target.images(fenced=True) == driver.Model(SEED, driver.initial(SEED)).advance(COUNT)
    await eventually(lambda: server.machine_status(driver.MACHINE)["problem"] == "")
