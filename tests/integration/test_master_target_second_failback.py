"""A second failback whose mark arrives while the disks are still at the point of the first one (D15, D20)."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import journal_driver as driver
import pytest
from master_target_site import Site

from failback.model.points import PointChoice, PointSelector
from failback.model.stream import MarkKind

SEED = 5
LATEST = PointChoice(PointSelector.LATEST)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    built = Site(tmp_path)
    built.start()
    yield built
    await built.close()


async def test_the_newest_mark_decides_and_not_the_disks_that_are_still_at_an_older_one(site: Site) -> None:
    marks = [str(uuid.UUID(int=number)) for number in (71, 72)]
    site.make_disks(SEED)
    await site.attach()
    site.assign(1)
    sender = site.sender(1)
    for sequence in range(1, 10):
        await sender.send(driver.make_batch(SEED, sequence))
    await sender.send(driver.make_batch(SEED, 10, mark=(MarkKind.FINAL, marks[0])))
    await site.landed(sender, 10)
    assert (await site.prepare(LATEST, marks[0])).point.sequence == 10
    for sequence in range(11, 15):
        await sender.send(driver.make_batch(SEED, sequence))
    await sender.send(driver.make_batch(SEED, 15, mark=(MarkKind.FINAL, marks[1])))
    await site.landed(sender, 15)
    prepared = await site.prepare(LATEST, marks[1])
    assert (prepared.point.point_id, prepared.point.sequence) == (marks[1], 15)
    assert await site.prepare(LATEST, marks[1]) == prepared
