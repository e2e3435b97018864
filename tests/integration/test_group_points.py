"""Two machines that pass numbers to each other: no group point ever tears a number from its sender (D19).

All processes are real. The control shows that the proof can fail: with the same marks, but programs that are not held, points
are torn.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from group_world import GroupWorld, torn

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="capturing and freezing need root"),
    pytest.mark.timeout(400),
]

POINTS = int(os.environ.get("FAILBACK_GROUP_POINTS", "200"))
"""Group points of the proof."""


async def make_points(world: GroupWorld, count: int) -> list[str]:
    world.talk()
    await world.talking()
    made = [await world.mark() for _ in range(count)]
    await world.talking()
    await world.all_decided()
    for machine in world.machines.values():
        machine.stop_programs()
    states = {each["id"]: each["state"] for each in world.marks()}
    assert all(states[each["id"]] == "complete" for each in made), world.logs()
    report(made)
    world.stop_servers()
    return [each["id"] for each in made]


def report(made: list[dict]) -> None:  # type: ignore[type-arg]
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


async def test_without_the_hold_points_are_torn(tmp_path: Path) -> None:
    async with GroupWorld(tmp_path, held=False) as world:
        await world.make_group()
        numbers = world.numbers_at(await make_points(world, 40))
        broken = torn(numbers)
        print(f"torn without a hold: {len(broken)} of {len(numbers)}")
        assert broken
