"""What befalls a world: which faults, when, drawn from the seed. Each world has its own temper."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from failback.errors import FailbackError
from failback.journal.journal import Journal
from failback.model.ids import MarkId, new_id
from failback.model.points import PointChoice, PointSelector
from failback.model.stream import MarkKind
from failback.sim.plane import SERVERS

if TYPE_CHECKING:
    from failback.sim.roles import Agent
    from failback.sim.world import World

_NAMES = ("agent", SERVERS[0], SERVERS[1], "master-target")


class Chaos:
    def __init__(self, world: World, chance: random.Random, load_seconds: float, *, quiet: bool) -> None:
        self._world = world
        self._chance = chance
        self._load_seconds = load_seconds
        self.pause_seconds = chance.choice((0.01, 0.05, 0.2))
        self._wish = chance.choice((0.2, 0.5, 0.9))
        actions: list[tuple[float, Callable[[], None]]] = [
            (3, self._kill), (2, self._fuse), (2, self._power), (4, self._cut), (1, self._reboot), (1, self._move),
            (0.5, self._lose_spool), (0.5, self._miss), (1, self._full_ring), (0.7, self._disk_fails), (0.5, self._sync_fails),
            (1, self._clock_steps), (2, self._mark), (1.5, self._roll), (0.3, self._old_clock),
        ]  # fmt: skip
        self._actions = [] if quiet else [(weight * chance.choice((0, 1, 1, 3)), act) for weight, act in actions]
        self._every_seconds = chance.choice((1.0, 3.0, 8.0))

    def away_seconds(self) -> float:
        return self._chance.choice((0.05, 0.5, 3.0, 12.0)) * self._chance.random()

    async def run(self) -> None:
        machine = self._world.machine
        machine.wish = self._wish
        end = self._world.loop.now + self._load_seconds
        while self._world.loop.now < end:
            await asyncio.sleep(self._every_seconds * self._chance.random() * 2)
            weights = [weight for weight, _ in self._actions]
            if any(weights):
                self._chance.choices([act for _, act in self._actions], weights)[0]()
        machine.wish = 0.0
        machine.failing = 0.0
        for disk in self._world.raw_disks.values():
            disk.failing = 0
        self._world.files.fail_sync = 0

    def _name(self) -> str:
        return self._chance.choice(_NAMES)

    def _kill(self) -> None:
        self._world.kill(self._name())

    def _fuse(self) -> None:
        """Dies at a fault point soon, perhaps with the whole machine."""
        name = self._name()
        power = name != "agent" and self._chance.random() < 0.4
        self._world.light_fuse(name, self._chance.choice((1, 2, 5, 20, 60)), power=power)

    def _power(self) -> None:
        self._world.kill(self._chance.choice(_NAMES[1:]), power=True)

    def _reboot(self) -> None:
        self._world.kill("agent", power=True)

    def _cut(self) -> None:
        self._world.note("a link is cut")
        self._world.network.cut()

    def _move(self) -> None:
        self._world.plane.new_epoch("moved", move=self._chance.random() < 0.7)

    def _lose_spool(self) -> None:
        """The process server's disk is replaced by an empty one."""
        name = self._chance.choice(SERVERS)
        self._world.kill(name)
        self._world.note(f"the spool of {name} is lost")
        self._world.lose_directory(name)

    def _miss(self) -> None:
        """The kernel skipped a program: a write of unknown extent."""
        machine = self._world.machine
        machine.miss()

    def _full_ring(self) -> None:
        machine = self._world.machine
        wish, machine.wish = machine.wish, 1.0
        machine.run(400)
        machine.wish = wish

    def _disk_fails(self) -> None:
        self._chance.choice([*self._world.raw_disks.values()]).failing = self._chance.randint(1, 3)

    def _sync_fails(self) -> None:
        self._world.files.fail_sync = self._chance.randint(1, 3)

    def _clock_steps(self) -> None:
        self._world.clock.step += self._chance.choice((-3600.0, 3600.0, -1.0))

    def _old_clock(self) -> None:
        self._world.clock.step = 0.0

    def _mark(self) -> None:
        agent = cast("Agent | None", self._world.role("agent"))
        if agent is not None and agent.stream is not None and agent.stream._begun:
            process = self._world.lives["agent"][0]
            self._world.loop.spawn(process, _put_mark(agent))

    def _roll(self) -> None:
        """To a point and back again, as a failback that is cancelled does; the disks have to be the point in between."""
        if self._world.journal is not None and "master-target" in self._world.lives:
            process = self._world.lives["master-target"][0]
            if self._world.rolling is not process:
                self._world.rolling = process
                self._world.loop.spawn(process, self._roll_and_return())

    async def _roll_and_return(self) -> None:
        world = self._world
        journal = world.journal
        assert journal is not None
        points = [point for point in journal.points() if not point.abandoned]
        if points and journal.started:
            point = self._chance.choice(points)
            choice = PointChoice(PointSelector.POINT, point.point_id)
            try:
                await asyncio.to_thread(journal.prepare, choice, lambda *_: None)
                world.note(f"rolled back to {point.kind.value} of item {point.sequence}")
                world.judge_prepared(journal, point)
                await asyncio.sleep(self._chance.random() * 2)
            except (FailbackError, OSError) as error:
                world.note(f"rolling failed: {error}")
                await asyncio.sleep(1.0)
        await self.give_back(journal)

    async def give_back(self, journal: Journal) -> None:
        """As the cancelling workflow: again and again until it is done."""
        while journal.started and journal.catalogue.get("rollback_phase"):
            try:
                await asyncio.to_thread(journal.resume)
            except (FailbackError, OSError) as error:
                self._world.note(f"giving back failed: {error}")
                await asyncio.sleep(2.0)
        self._world.rolling = None


async def _put_mark(agent: Agent) -> None:
    stream = agent.stream
    assert stream is not None
    try:
        async with asyncio.timeout(20):
            await stream.mark(MarkKind.APP_CONSISTENT, MarkId(new_id()), lambda: None)
    except (FailbackError, TimeoutError, OSError):
        return
