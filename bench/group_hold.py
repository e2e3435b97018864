"""How long a common mark of a replication group holds its machines still, and that nothing is torn by it (D19).

Two machines pass numbers to each other over TCP, each number durable on the sender's disk before it is told. All roles are
real processes on this machine: the two agents, the configuration server with the barrier, process server, master target.
``verified_equal``: at no group point does a machine know a number that the other's disk does not hold. There is no peer: the
bound is absolute.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.ground import PAIRS, SMALL, machine_facts
from bench.results import Bound, Result, percentile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "doubles"))

from group_world import GroupWorld, torn

from failback.cli.client import ApiError

MARKS = 30 if SMALL else 200


def bench() -> Result:
    runs: list[dict[str, Any]] = []
    whole = True
    for _ in range(PAIRS):
        directory = Path(tempfile.mkdtemp(prefix="failback-bench-", dir="/dev/shm"))
        try:
            figures, nothing_torn = asyncio.run(measure(directory))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        runs.append(figures)
        whole &= nothing_torn
        print(figures, flush=True)
    return Result(
        "group_hold", (Bound("held_p99_milliseconds", 50),), runs, whole,
        "a network between the machines and the configuration server (each mark takes two round trips more), and many programs "
        "in one machine: here two. Disks lie in memory: an O_DSYNC write under way delays the hold by its own time. Agents and "
        "servers share the processors with both machines' programs, which run on in the one that is not held yet.",
        machine_facts(), {"marks": MARKS, "machines": 2},
    )  # fmt: skip


async def measure(directory: Path) -> tuple[dict[str, Any], bool]:
    async with GroupWorld(directory) as world:
        await world.make_group()
        world.talk()
        await world.talking()
        made: list[dict[str, Any]] = []
        void = 0
        while len(made) < MARKS and void < MARKS:
            try:
                made.append(await world.mark())
            except ApiError:
                void += 1
        await world.all_decided(120)
        for machine in world.machines.values():
            machine.stop_programs()
        points = [each["id"] for each in world.marks(complete=True)]
        world.stop_servers()
        broken = torn(world.numbers_at(points))
        held = [member["heldMilliseconds"] for each in made for member in each["members"]]
        enter = [member["enterMilliseconds"] for each in made for member in each["members"]]
    figures = {
        "held_p99_milliseconds": round(percentile(held, 0.99), 2), "held_p50_milliseconds": round(percentile(held, 0.5), 2),
        "held_worst_milliseconds": round(max(held), 2), "enter_p50_milliseconds": round(percentile(enter, 0.5), 2),
        "enter_p99_milliseconds": round(percentile(enter, 0.99), 2), "points": len(points), "void": void, "torn": len(broken),
    }  # fmt: skip
    return figures, not broken and len(points) >= MARKS * 3 // 4
