"""A hold that loses its agent or its configuration server: the machines go on, and the mark is void (D19)."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from group_world import GroupWorld

from failback.cli.client import ApiError
from failback.errors import PeerError

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="capturing and freezing need root"),
    pytest.mark.timeout(300),
]

HOLD_SECONDS = 1.5


async def confirmed(world: GroupWorld, seconds: float = 90.0) -> None:
    """A group point can be made again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            made = await world.mark()
        except (ApiError, PeerError) as error:  # an agent or a server is coming back
            assert time.monotonic() < deadline, f"{error}\n{world.logs()}"
            await asyncio.sleep(0.5)
            continue
        await world.all_decided()
        if next(each for each in world.marks() if each["id"] == made["id"])["state"] == "complete":
            return
        assert time.monotonic() < deadline, world.logs()


async def reasons(world: GroupWorld) -> list[str]:
    return [each["reason"] for each in world.marks() if each["state"] == "void"]


async def running(world: GroupWorld) -> None:
    await world.talking()
    assert not any(machine.frozen for machine in world.machines.values())


async def test_whoever_dies_in_a_hold_the_machines_go_on_and_the_mark_is_void(tmp_path: Path) -> None:
    async with GroupWorld(tmp_path, hold_seconds=HOLD_SECONDS) as world:
        await world.make_group()
        world.talk()
        await world.talking()
        await marked_every_second(world)
        await agent_killed(world)
        await server_killed(world)
        await server_stuck(world)
        await server_killed_before_deciding(world)
        points = {each["id"] for each in world.marks(complete=True)}
        void = {each["id"] for each in world.marks() if each["state"] == "void"}
        assert len(points) >= 4 and not points & void
        assert points <= world.published("a") & world.published("b")


async def marked_every_second(world: GroupWorld) -> None:
    """The shortest distance that a group can be given."""
    await world.make_group(every_seconds=1)
    began = time.monotonic()
    await world.until(lambda: len(world.marks(complete=True)) >= 6, 90)
    assert time.monotonic() - began > 4
    await world.make_group()
    assert world.group()["problem"] == ""
    assert world.group()["newestRecoveryPointTime"]


async def agent_killed(world: GroupWorld) -> None:
    """Both machines held, then one agent is gone: its watchdog lets it go."""
    machine = world.machines["b"]
    machine.kill_agent()
    machine.start(world.server, "group.held=kill@1")
    assert machine.agent is not None
    deadline = time.monotonic() + 90
    while machine.agent.poll() is None:  # marks are tried until the agent takes part in one
        assert time.monotonic() < deadline, world.logs()
        try:
            await world.mark()
        except ApiError as error:
            assert error.code in ("GroupMarkVoid", "GroupNotReady"), error
    await running(world)
    assert any("b was not held" in reason for reason in await reasons(world)), world.marks()
    machine.start(world.server)
    await confirmed(world)


async def killed_at(world: GroupWorld, point: str) -> None:
    """The server dies at a fault point of the next mark, and comes back."""
    known = {each["id"] for each in world.marks()}
    world.server.kill()
    world.server.launch(f"{point}=kill@1")
    await world.until(lambda: answers(world), 60)
    deadline = time.monotonic() + 60
    asked = asyncio.create_task(asyncio.to_thread(attempt, world))
    while world.server.running:
        assert time.monotonic() < deadline, world.logs()
        if asked.done():
            asked = asyncio.create_task(asyncio.to_thread(attempt, world))
        await asyncio.sleep(0.02)
    await running(world)  # nobody waits for the server to come back
    world.server.start()
    await asked
    fresh = [each for each in world.marks() if each["id"] not in known]
    assert any("restarted" in each["reason"] for each in fresh if each["state"] == "void"), fresh
    events = world.api.every("/replicationEvents")
    assert any(each["properties"]["eventCode"] == "GroupMarkVoid" for each in events)
    await confirmed(world)


def attempt(world: GroupWorld) -> None:
    try:
        world.api.post("/replicationGroups/pair/createRecoveryPoint")
    except (ApiError, PeerError):
        time.sleep(0.2)


def answers(world: GroupWorld) -> bool:
    try:
        return world.server.get("/healthz")["status"] == "ok"
    except OSError:
        return False


async def server_killed(world: GroupWorld) -> None:
    await killed_at(world, "group.all_held")


async def server_killed_before_deciding(world: GroupWorld) -> None:
    """All were held and marked, but nobody wrote it down: the mark is void though every member has a point there."""
    await killed_at(world, "group.released")


async def server_stuck(world: GroupWorld) -> None:
    """A server that answers nobody for long: the limit lets the machines go while it is stuck."""
    known = {each["id"] for each in world.marks()}
    world.server.start_again_with(f"group.all_held=sleep:{4 * HOLD_SECONDS}@1")
    asked = asyncio.create_task(asyncio.to_thread(attempt, world))
    held_since = 0.0
    deadline = time.monotonic() + 60
    while not held_since or any(machine.frozen for machine in world.machines.values()):
        if not held_since and all(machine.frozen for machine in world.machines.values()):
            held_since = time.monotonic()
        if asked.done() and not held_since:
            asked = asyncio.create_task(asyncio.to_thread(attempt, world))
        assert time.monotonic() < deadline, world.logs()
        await asyncio.sleep(0.002)
    assert time.monotonic() - held_since < 3.5 * HOLD_SECONDS
    await running(world)
    await asked
    fresh = [each for each in world.marks() if each["id"] not in known]
    assert any(each["state"] == "void" and each["reason"] for each in fresh), fresh
    world.server.start_again_with("")
    await confirmed(world)
