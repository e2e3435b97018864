"""The data path as real processes under load while everything fails: twenty kills, cut links, full disks, damaged files, stepped
clocks, old copies. At the end the disks are identical and points hold every commit that was acknowledged before them.

``FAILBACK_CHAOS_SEED`` chooses the seed; it is printed. ``make soak`` runs the same for long (tests/soak).
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_faults import LARGE
from chaos_round import Report, Round
from chaos_site import ChaosSite

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root"), pytest.mark.timeout(900)]

KILLS, POINTS = 20, 30


@pytest.fixture
def directory() -> Iterator[Path]:
    """Readable by PostgreSQL's own user, which the folders of ``tmp_path`` are not."""
    made = Path(tempfile.mkdtemp(prefix="failback-chaos-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


async def test_nothing_is_lost_while_everything_fails(directory: Path) -> None:
    seed = int(os.environ.get("FAILBACK_CHAOS_SEED") or random.SystemRandom().randrange(10_000))
    print(f"\nchaos with seed {seed}", flush=True)
    chance = random.Random(seed)
    report = Report()
    async with ChaosSite(directory, chance) as site:
        story = Round(site, report)
        try:
            async with story.running():
                await story.begin()
                await story.chaos(KILLS, chance.sample(LARGE, len(LARGE)), 400)
                await story.more_points(POINTS)
                await story.prove(POINTS)
        finally:
            print("\n".join((*site.story, *report.lines())), flush=True)
    assert report.lost == []
    assert report.kills >= KILLS
    assert report.points >= POINTS
    assert report.points_with_commits > 0
