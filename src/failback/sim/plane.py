"""The control plane of a simulated world: epochs, passes, which process server; what each component knows of it, and when.

News reach components late. A stream that says it cannot go on gets a new epoch, with a comparison where the journal is not
to be trusted, as the configuration server does.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from failback.model.components import (
    MobilityAssignment,
    ProcessServerAssignment,
    ReplicaAssignment,
    RoutedMachine,
    SourceDisk,
    SyncMode,
)
from failback.model.ids import DiskId, PassId
from failback.model.policy import ReplicationPolicy
from failback.process_server.stream import ENDING_CODES

if TYPE_CHECKING:
    from failback.sim.world import World

COMPARING_CODES = ("JournalReplaced", "RedoDamaged")
SERVERS = ("process-server-1", "process-server-2")


def _pass_id(number: int) -> PassId:
    return PassId(str(uuid.UUID(int=number)))


@dataclass(frozen=True, slots=True)
class State:
    epoch: int = 1
    pass_id: PassId = _pass_id(1)
    mode: SyncMode = SyncMode.FULL
    server: str = SERVERS[0]


class Plane:
    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        mode = chance.choice((SyncMode.FULL, SyncMode.COMPARE))
        self.state = State(mode=mode)
        self._known: dict[str, State] = {}
        self._news_at: dict[str, float] = {}
        self.epochs_for: dict[str, int] = {}
        self._passes_done: set[str] = set()

    def known_to(self, role: str) -> Any:
        """The assignment as the component knows it now."""
        now = self._world.loop.now
        if role not in self._known or (self._known[role] != self.state and now >= self._news_at.get(role, 0.0)):
            self._known[role] = self.state
        state = self._known[role]
        world = self._world
        if role == "master-target":
            return ReplicaAssignment(
                machine_id=world.machine_id, epoch=state.epoch, process_server_id=world.component(state.server),
                policy=ReplicationPolicy("simulated"),
            )  # fmt: skip
        if role == "agent":
            return self._mobility(state)
        if role != state.server:
            return ProcessServerAssignment(())
        return ProcessServerAssignment((RoutedMachine(world.machine_id, state.epoch, world.endpoint("master-target")),))

    def _mobility(self, state: State) -> MobilityAssignment:
        world = self._world
        mode = state.mode if state.pass_id else SyncMode.NONE
        disks = tuple(
            SourceDisk(DiskId(f"disk-{index}"), index, f"/dev/sim{index}", len(disk), mode)
            for index, disk in world.machine.disks.items()
        )
        return MobilityAssignment(
            active=True, machine_id=world.machine_id, epoch=state.epoch, pass_id=state.pass_id,
            process_server=world.endpoint(state.server), disks=disks, batch_milliseconds=250, batch_bytes=world.batch_bytes,
        )  # fmt: skip

    def new_epoch(self, why: str, *, compare: bool = False, move: bool = False) -> None:
        before = self.state
        state = replace(before, epoch=before.epoch + 1)
        if before.pass_id in self._passes_done:
            state = replace(state, pass_id=PassId(""))
        if compare:
            state = replace(state, pass_id=_pass_id(state.epoch), mode=SyncMode.COMPARE)
        if move:
            state = replace(state, server=SERVERS[1 - SERVERS.index(before.server)])
        self.state = state
        self.epochs_for[why] = self.epochs_for.get(why, 0) + 1
        for role in ("agent", "master-target", *SERVERS):
            late = self._chance.choice((0.1, 1.0, 5.0, 30.0 if self._chance.random() < 0.2 else 1.0))
            self._news_at[role] = self._world.loop.now + late * self._chance.random()
        self._world.note(f"epoch {state.epoch}: {why}")

    def pass_is_done(self, pass_id: str) -> None:
        self._passes_done.add(pass_id)

    def heard(self, epoch: int, problem: str) -> None:
        """A component reports why its stream stands still."""
        code = problem.split(":", 1)[0]
        if epoch == self.state.epoch and code in ENDING_CODES:
            self.new_epoch(code, compare=code in COMPARING_CODES)
