"""kill -9 of the real master target at fault points of every order and of the landing: started again, the same order gives
the same result, nothing that was acknowledged is missing, the fence holds."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import journal_driver as driver
import pytest
from master_target_site import Site
from process_server_site import eventually

from failback.model import orders
from failback.model.points import PointChoice, PointSelector
from failback.model.stream import MarkKind

SEED = 9
COUNT = 30
MARK = str(uuid.UUID(int=98))

FAULTS = (
    "journal.after_create=kill@1",
    "fence.mid=kill@1",
    "fence.mid=kill@2",
    "journal.after_append=kill@7",
    "journal.after_sync=kill@2",
    "landing.before_ack=kill@1",
    "undo.after_sync=kill@1",
    "apply.mid=kill@23",
    "apply.before_flush=kill@1",
    "catalogue.before_commit=kill@5",
    "rollback.after_save=kill@1",
    "rollback.mid=kill@1",
    "rollback.returning=kill@1",
    "release.before_unfence=kill@1",
    "unfence.mid=kill@1",
)


async def _killed_once(directory: Path, fault: str) -> None:
    directory.mkdir()
    site = Site(directory)
    site.faults = fault
    site.start()
    try:
        site.make_disks(SEED)
        await _story(site)
        assert site.kills == 1, f"{fault} was not passed"
    finally:
        await site.close()


@pytest.mark.parametrize("third", [0, 1, 2])
async def test_killed_once_in_the_story(tmp_path: Path, third: int) -> None:
    async with asyncio.TaskGroup() as stories:  # side by side: most of their time is waiting
        for number, fault in enumerate(FAULTS[third::3]):
            stories.create_task(_killed_once(tmp_path / str(number), fault))


async def test_killed_every_half_second(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.start()
    try:
        site.make_disks(SEED)
        story = asyncio.create_task(_story(site))
        for _ in range(6):
            await asyncio.sleep(0.7)
            if story.done():
                break
            site.kill()
        await story
        assert site.kills >= 3
    finally:
        await site.close()


async def _story(site: Site) -> None:
    """Attach, stream to the last mark, go to the oldest point, change the mind, release, cancel, release for good."""
    attached = await site.attach()
    site.assign(1)
    sender = site.sender(1)
    for sequence in range(1, COUNT):
        await sender.send(driver.make_batch(SEED, sequence))
        await asyncio.sleep(0.002)
    await sender.send(driver.make_batch(SEED, COUNT, mark=(MarkKind.FINAL, MARK)))
    await site.landed(sender, COUNT)
    model = driver.Model(SEED, driver.initial(SEED))
    final = {disk: bytes(data) for disk, data in model.advance(COUNT).items()}

    def applied() -> bool:
        site.revive()
        return site.replica().get("applied_sequence") == COUNT

    await eventually(applied)
    oldest = site.replica()["points"][0]
    await site.prepare(PointChoice(PointSelector.POINT, oldest["point_id"]))
    assert site.images(fenced=True) == driver.initial(SEED)
    prepared = await site.prepare(PointChoice(PointSelector.LATEST), MARK)
    assert prepared.point.point_id == MARK
    assert site.images(fenced=True) == final
    await site.plain(orders.RELEASE_REPLICA)
    assert site.images(fenced=False) == final
    await site.plain(orders.RESUME_REPLICA)
    assert site.images(fenced=True) == final
    assert attached == await site.attach()
    await site.prepare(PointChoice(PointSelector.LATEST), MARK)
    await site.plain(orders.RELEASE_REPLICA)
    await site.plain(orders.COMMIT_POINT)
    assert site.images(fenced=False) == final
