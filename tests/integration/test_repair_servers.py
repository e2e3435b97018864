"""Repairs through the real processes: redo damaged on the retention volume, the volume restored from an old copy, a spool that
was wiped. Each is shown with its code, refused under the old epoch, and ends with identical disks under a new one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import chain_site
import comparing_source
import journal_driver as driver
import master_target_site
import process_server_site
import pytest
from chain_site import ChainAgent
from comparing_source import Source, differing
from master_target_site import Sender
from process_server_site import Agent, eventually

from failback.model.points import PointChoice, PointSelector
from failback.model.stream import GapCause
from failback.protocol.messages import DigestReply

SEED, COUNT = 13, 40
PASSES_NS = driver.START_NS + 10_000_000_000_000


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[master_target_site.Site]:
    async with chain_site.master_target(tmp_path) as built:
        yield built


@pytest.fixture
async def server(tmp_path: Path, target: master_target_site.Site) -> AsyncIterator[process_server_site.Site]:
    async with chain_site.process_server(tmp_path, target) as built:
        yield built


def model(sequence: int) -> dict[int, bytes]:
    return driver.Model(SEED, driver.initial(SEED)).advance(sequence)


async def compared(agent: Sender | Agent, source: Source) -> int:
    """The pass of an agent: table for table, what differs, and the end; returns how many blocks differed."""
    replies: list[DigestReply] = []
    await agent.send(source.batch(GapCause.SYNC))
    for table in source.tables():
        await agent.items.send(table)

        def answered(sequence: int = table.sequence) -> bool:
            found = agent.replies.values() if isinstance(agent.replies, dict) else agent.replies
            replies[:] = [reply for reply in found if reply.epoch == source.epoch]
            return any(reply.sequence == sequence for reply in replies)

        await eventually(answered, 30)
    blocks = differing(replies)
    await agent.send(source.batch(GapCause.SYNC, blocks), source.batch(GapCause.NONE))
    await eventually(lambda: agent.landed == source.sequence, 30)
    return len(blocks)


async def verified(target: master_target_site.Site, final: dict[int, bytes], epoch: int, last: int) -> None:
    """The disks are the source's, and every point that is offered is what it says; ``last`` of the batches before."""
    await eventually(lambda: target.replica().get("epoch") == epoch and target.replica().get("consistent"), 30)
    await eventually(lambda: target.replica()["points"][-1]["epoch"] == epoch)
    assert target.images(fenced=True) == final and target.replica()["problem"] == ""
    for point in [point for point in target.replica()["points"] if not point["abandoned"]][-4:]:
        await target.prepare(PointChoice(PointSelector.POINT, point["point_id"]))
        expected = final if point["epoch"] == epoch else model(point["sequence"])
        assert point["epoch"] == epoch or point["sequence"] <= last
        assert target.images(fenced=True) == expected, point
    await target.plain("resume-replica")
    assert target.images(fenced=True) == final


async def test_damaged_redo_is_repaired_by_a_comparison_with_kills_between(target: master_target_site.Site) -> None:
    target.make_disks(SEED)
    await target.attach()
    target.assign(1)
    sender = target.sender(1)
    for sequence in range(1, 21):
        await sender.send(driver.make_batch(SEED, sequence))
    await target.landed(sender, 20)
    await eventually(lambda: target.replica().get("applied_sequence") == 20)
    await target.prepare(PointChoice(PointSelector.LATEST))  # held at a point: what lands now is not applied
    for sequence in range(21, COUNT + 1):
        await sender.send(driver.make_batch(SEED, sequence))
    await target.landed(sender, COUNT)
    journal = target.retention / "failback" / driver.MACHINE
    target.kill()  # what has landed is not in its memory any more: it has to be read
    await target.prepare(PointChoice(PointSelector.LATEST))  # answered by the process that has opened the journal again
    comparing_source.damage(journal, 31)
    await target.plain("resume-replica")
    await eventually(lambda: target.replica().get("problem", "").startswith("RedoDamaged: redo record 31"))
    target.kill()
    await eventually(lambda: any(error.code == "RedoDamaged" for error in sender.refusals))
    sender.stop()
    status = target.replica()
    assert status["problem"].startswith("RedoDamaged: ") and not status["consistent"] and status["gap"] == "DAMAGED"
    assert target.images(fenced=True) == model(30)

    target.assign(2)
    second = target.sender(2)
    lost = Source(2, model(COUNT), PASSES_NS)
    await second.send(lost.batch(GapCause.SYNC))
    await target.landed(second, 1)
    target.kill()  # the pass has begun, no more: it goes on under yet another epoch
    second.stop()
    target.assign(3)
    third = target.sender(3)
    assert await compared(third, Source(3, model(COUNT), PASSES_NS + 1)) > 0
    await verified(target, model(COUNT), 3, 30)


async def test_a_retention_volume_from_an_old_copy_is_refused_then_compared(
    target: master_target_site.Site, server: process_server_site.Site
) -> None:
    target.make_disks(SEED)
    await target.attach()
    target.assign(1)
    server.assign((driver.MACHINE, 1))
    agent = ChainAgent(server, driver.MACHINE)
    for sequence in range(1, 16):
        await agent.send(driver.make_batch(SEED, sequence))
    await eventually(lambda: target.replica().get("applied_sequence") == 15, 30)
    await stopped(target)
    shutil.copytree(target.retention, target.directory / "copy")
    target.launch()
    for sequence in range(16, COUNT + 1):
        await agent.send(driver.make_batch(SEED, sequence))
    await eventually(lambda: target.replica().get("applied_sequence") == COUNT, 30)
    await stopped(target)
    shutil.rmtree(target.retention)
    (target.directory / "copy").rename(target.retention)
    target.launch()

    await eventually(
        lambda: server.machine_status(driver.MACHINE).get("problem", "").startswith("JournalReplaced:"), 30
    )
    await eventually(lambda: target.replica().get("problem", "").startswith("JournalReplaced:"))
    await eventually(lambda: any(error.code == "JournalReplaced" for error in agent.refusals))
    assert target.images(fenced=True) == model(COUNT)  # nothing of the old copy was written over the disks
    assert all(point["abandoned"] for point in target.replica()["points"])
    await server.restart()  # it remembers
    await eventually(lambda: server.machine_status(driver.MACHINE).get("problem", "").startswith("JournalReplaced:"))
    agent.stop()

    changed = {0: driver.initial(SEED)[0], 1: model(COUNT)[1]}
    target.assign(2)
    server.assign((driver.MACHINE, 2))
    again = ChainAgent(server, driver.MACHINE, epoch=2)
    assert await compared(again, Source(2, changed, PASSES_NS)) > 0
    await verified(target, changed, 2, 0)
    await eventually(lambda: server.machine_status(driver.MACHINE)["problem"] == "")
    assert server.spools() == [(driver.MACHINE, "2")]


async def test_a_wiped_spool_ends_the_epoch_and_the_next_one_goes_on(
    target: master_target_site.Site, server: process_server_site.Site
) -> None:
    target.make_disks(SEED)
    await target.attach()
    target.assign(1)
    server.assign((driver.MACHINE, 1))
    agent = ChainAgent(server, driver.MACHINE)
    for sequence in range(1, 21):
        await agent.send(driver.make_batch(SEED, sequence))
    await eventually(lambda: target.replica().get("applied_sequence") == 20, 30)
    await stopped(target)
    for sequence in range(21, COUNT + 1):  # spooled, not landed, and then lost
        await agent.send(driver.make_batch(SEED, sequence))
    await eventually(lambda: agent.spooled == COUNT, 30)
    server.kill()
    shutil.rmtree(server.directory / "spool")
    server.launch()
    target.launch()
    await eventually(lambda: server.machine_status(driver.MACHINE).get("problem", "").startswith("ItemsMissing:"), 30)
    await eventually(lambda: any(error.code == "ItemsMissing" for error in agent.refusals))
    agent.stop()
    target.assign(2)
    server.assign((driver.MACHINE, 2))
    again = ChainAgent(server, driver.MACHINE, epoch=2)
    assert await compared(again, Source(2, model(COUNT), PASSES_NS)) > 0
    await verified(target, model(COUNT), 2, 20)


async def test_a_volume_that_came_back_empty_gets_a_new_journal_when_asked(target: master_target_site.Site) -> None:
    target.make_disks(SEED)
    first = await target.attach()
    target.assign(1)
    sender = target.sender(1)
    for sequence in range(1, 16):
        await sender.send(driver.make_batch(SEED, sequence))
    await eventually(lambda: target.replica().get("applied_sequence") == 15, 30)
    sender.stop()
    await stopped(target)
    shutil.rmtree(target.retention / "failback")
    target.launch()
    await eventually(lambda: "there is no journal" in target.replica().get("problem", ""))
    assert target.images(fenced=True) == model(15)  # still fenced, still whole
    again = await target.attach()
    assert again.incarnation != first.incarnation and again.created == ()
    assert target.images(fenced=True) == model(15)
    await eventually(lambda: target.replica().get("problem", "").startswith("JournalReplaced:"))
    old = target.sender(1)
    await eventually(lambda: any(error.code == "JournalReplaced" for error in old.refusals))
    old.stop()
    target.assign(2)
    assert await compared(target.sender(2), Source(2, model(COUNT), PASSES_NS)) > 0
    await verified(target, model(COUNT), 2, 0)


async def stopped(target: master_target_site.Site) -> None:
    assert target.process is not None
    target.process.terminate()
    assert await asyncio.to_thread(target.process.wait, 20) == 0
