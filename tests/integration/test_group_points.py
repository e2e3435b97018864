"""Two machines that pass numbers to each other: no group point ever tears a number from its sender (D19).

All processes are real. The control shows that the proof can fail: the same marks, over programs that are not held, are torn.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from group_world import GroupWorld, torn

from failback.cli.client import ApiError

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="capturing and freezing need root"),
    pytest.mark.timeout(400),
]

POINTS = int(os.environ.get("FAILBACK_GROUP_POINTS", "200"))
"""Group points of the proof; fewer, but at least FEWEST, when they take longer than MOST_SECONDS."""
FEWEST = 40
MOST_SECONDS = 90.0


async def make_points(world: GroupWorld, count: int) -> list[str]:
    """Ids of ``count`` group points. Marks that fall into a gap (writes that overlapped) are void, and are not many."""
    world.talk()
    await world.talking()
    made: list[dict[str, Any]] = []
    void = 0
    began = time.monotonic()
    while len(made) < count and (len(made) < FEWEST or time.monotonic() - began < MOST_SECONDS):
        try:
            made.append(await world.mark())
        except ApiError as error:
            void += 1
            assert error.code == "GroupMarkVoid" and "gap" in error.message, f"{error}\n{world.logs()}"
            assert void <= 5 + count // 4
    await world.talking()
    await world.all_decided()
    for machine in world.machines.values():
        machine.stop_programs()
    states = {each["id"]: each for each in world.marks()}
    complete = [each["id"] for each in made if states[each["id"]]["state"] == "complete"]
    lost = [states[each["id"]]["reason"] for each in made if states[each["id"]]["state"] != "complete"]
    assert len(lost) <= 5 + count // 10 and all("gap" in reason for reason in lost), f"{lost}\n{world.logs()}"
    print(f"{len(complete)} group points, {void + len(lost)} marks void")
    report(made)
    world.stop_servers()
    return complete


def report(made: list[dict[str, Any]]) -> None:
    held = sorted(member["heldMilliseconds"] for each in made for member in each["members"])
    enter = sorted(member["enterMilliseconds"] for each in made for member in each["members"])
    for what, values in (("held", held), ("enter", enter)):
        at = {share: values[min(len(values) - 1, int(len(values) * share))] for share in (0.5, 0.9, 0.99)}
        print(f"{what}: {len(values)} times, p50 {at[0.5]} p90 {at[0.9]} p99 {at[0.99]} worst {values[-1]} ms")


async def test_no_group_point_tears_a_number_from_its_sender(tmp_path: Path) -> None:
    async with GroupWorld(tmp_path) as world:
        await world.make_group()
        numbers = world.numbers_at(await make_points(world, POINTS))
        last = list(numbers.values())[-1]
        assert min(value for pair in last.values() for value in pair) > 10  # the machines did talk meanwhile
        assert torn(numbers) == []


LATE = {"b": "group.before_mark=sleep:0.02"}
"""One machine puts its mark 20 ms after the other."""


async def test_a_late_mark_tears_nothing_from_machines_that_are_held(tmp_path: Path) -> None:
    async with GroupWorld(tmp_path, faults=LATE) as world:
        await world.make_group()
        assert torn(world.numbers_at(await make_points(world, 20))) == []


async def test_the_same_marks_without_the_hold_are_torn(tmp_path: Path) -> None:
    """The control: the programs run in no control group that an agent holds."""
    async with GroupWorld(tmp_path, held=False, faults=LATE) as world:
        await world.make_group()
        numbers = world.numbers_at(await make_points(world, 20))
        broken = torn(numbers)
        print(f"torn without a hold: {len(broken)} of {len(numbers)}")
        assert broken
