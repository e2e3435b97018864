"""One world from one seed: a machine, its agent, two process servers, a master target, and what befalls them.

``World(seed, ...).run()`` lets it live for some virtual minutes of load and faults, then heals everything and waits until the
replica is equal to the source. It raises :class:`failback.sim.invariants.Violation` when something does not hold.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any, cast

from failback.block.faulty import Torn
from failback.errors import FailbackError
from failback.journal.journal import Journal
from failback.mobility.stream import Stream
from failback.model.components import Endpoint, Role
from failback.model.ids import ComponentId, DiskId, MachineId
from failback.model.points import RecoveryPoint, ReplicaDisk
from failback.model.stream import Position
from failback.sim import seams
from failback.sim.chaos import Chaos
from failback.sim.disk import MemoryDisk
from failback.sim.files import Files
from failback.sim.invariants import Judge, Violation
from failback.sim.kernel import Machine
from failback.sim.loop import CURRENT, Killed, Process, SimulatedLoop, Stuck
from failback.sim.network import Network
from failback.sim.plane import SERVERS, Plane
from failback.sim.roles import Agent, MasterTarget, ProcessServer
from failback.sim.sabotage import Sabotage
from failback.transport.identity import Identity, PeerIdentity

ROLES = ("agent", *SERVERS, "master-target")
_PORTS = {SERVERS[0]: 1, SERVERS[1]: 2, "master-target": 3}
_ROLE_OF = {"agent": Role.MOBILITY, SERVERS[0]: Role.PROCESS_SERVER, SERVERS[1]: Role.PROCESS_SERVER,
            "master-target": Role.MASTER_TARGET}  # fmt: skip
_DEAD: list[Process] = []
"""Dead processes of all worlds: see ``Process.tasks``."""
HEALING_SECONDS = 900.0


class _Identity(Identity):
    """Knows no keys."""

    def client_context(self) -> Any:
        return self

    def server_context(self) -> Any:
        return self


class World:
    def __init__(self, seed: int, directory: Path, *, load_seconds: float = 30.0, faults: bool = True) -> None:
        self.seed = seed
        chance = random.Random(seed)
        self.root = directory / f"world-{seed}"
        self.loop = SimulatedLoop(random.Random(chance.getrandbits(64)))
        self.loop.set_exception_handler(self._unexpected)
        self.network = self.loop.network = Network(self.loop, random.Random(chance.getrandbits(64)))
        self.files = Files(self.root, random.Random(chance.getrandbits(64)))
        sizes = tuple(65536 * chance.randint(2, 8) for _ in range(chance.choice((1, 2))))
        self.machine = Machine(random.Random(chance.getrandbits(64)), sizes, self.loop.time)
        self.machine_id = MachineId(str(uuid.UUID(int=chance.getrandbits(128), version=4)))
        self.window_bytes = chance.choice((1 << 16, 1 << 20))
        self.batch_bytes = chance.choice((1 << 13, 1 << 16, 8 << 20))
        self.spool_limit_bytes = chance.choice((1 << 20, 1 << 24))
        self.spool_segment_bytes = chance.choice((1 << 14, 1 << 17, 1 << 20))
        chance.choice((1, 3, 10))
        self.paces = random.Random(f"paces of world {seed}")
        """Each life of the master target has another policy."""
        self.raw_disks = {i: MemoryDisk(self._found(chance, i)) for i in range(len(sizes))}
        self.devices = {index: Torn(disk) for index, disk in self.raw_disks.items()}
        self.replica_disks = tuple(
            ReplicaDisk(DiskId(f"disk-{i}"), i, f"/replica-{i}", "raw", size) for i, size in enumerate(sizes)
        )
        self.judge = Judge({index: bytes(disk.content) for index, disk in self.raw_disks.items()})
        self.plane = Plane(self, random.Random(chance.getrandbits(64)))
        self.chaos = Chaos(self, random.Random(chance.getrandbits(64)), load_seconds, quiet=not faults)
        self.sabotage = Sabotage(self, load_seconds if faults else 0.0)
        self.journal: Journal | None = None
        self.lives: dict[str, tuple[Process, Any]] = {}
        self.kills: dict[str, int] = {}
        self.story: list[str] = []
        self.clock: seams.Clock
        self.rolling: Process | None = None
        """The master target's life in which a rollback is under way."""
        self.spools_lost: set[int] = set()
        self.journals_lost: set[int] = set()
        """Epochs in which the journal was damaged or restored from an old copy on purpose."""
        self._released_before: dict[tuple[int, int], int] = {}
        """Where a ring's consumer stood when an epoch's stream was first seen on it."""
        self._landed: dict[int, Position] = {}
        """The newest place of each epoch that was durable in the journal."""
        self._power_of_fuse: dict[str, bool] = {}
        self._failure: BaseException | None = None
        self._seams_chance = random.Random(chance.getrandbits(64))

    def _found(self, chance: random.Random, index: int) -> bytes:
        """The replica's disk before: a copy of the source with differences, or something else."""
        content = bytearray(self.machine.disks[index])
        for _ in range(chance.randint(0, 6)):
            at = 512 * chance.randrange(len(content) // 512)
            content[at : at + 512] = chance.randbytes(512)
        return bytes(content)

    # --- names ------------------------------------------------------------------------------------------------------

    def component(self, name: str) -> ComponentId:
        return ComponentId(str(self.machine_id) if name == "agent" else name)

    def identity(self, name: str) -> Identity:
        return _Identity(self.component(name), _ROLE_OF[name], self.root)

    def port(self, name: str) -> int:
        return _PORTS[name]

    def endpoint(self, name: str) -> Endpoint:
        return Endpoint("simulated", _PORTS[name], self.component(name))

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for name in SERVERS:
            (self.root / name).mkdir(parents=True)
        with (
            self._quiet(),
            seams.installed(self.loop, self.machine, self._passage, self._seams_chance) as self.clock,
            self.files.watched(),
        ):
            try:
                self.loop.run_until_complete(self._live())
            except Stuck as error:
                raise Violation(str(error)) from None
            finally:
                for name in list(self.lives):
                    self._end(name)
        shutil.rmtree(self.root, ignore_errors=True)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        disabled = logging.root.manager.disable
        if not logging.getLogger("failback").isEnabledFor(logging.DEBUG):
            logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)

    async def _live(self) -> None:
        beside = [asyncio.create_task(work()) for work in (self._load, self._watch)]
        for name in ROLES:
            self.start(name)
        story = asyncio.create_task(self._story())
        try:
            await asyncio.wait([story, *beside], return_when=asyncio.FIRST_COMPLETED)
            for task in (*beside, story):
                if task.done():
                    task.result()
        finally:
            for task in (*beside, story):
                task.cancel()

    async def _story(self) -> None:
        sabotage = asyncio.create_task(self.sabotage.run())
        await self.chaos.run()
        await sabotage
        await self._heal()
        await self._last_look()

    async def _load(self) -> None:
        while True:
            self.machine.run(self.machine.chance.randint(1, 8))
            await asyncio.sleep(self.machine.chance.random() * self.chaos.pause_seconds)

    def start(self, name: str) -> None:
        if name in self.lives:
            return
        process = Process(name, PeerIdentity(self.component(name), _ROLE_OF[name]))
        role: Any
        if name == "agent":
            role = Agent(self)
        elif name == "master-target":
            role = MasterTarget(self)
        else:
            role = ProcessServer(self, name)
        self.lives[name] = (process, role)
        self.loop.spawn(process, self._main(name, role))

    async def _main(self, name: str, role: Any) -> None:
        try:
            await role.run()
        except Killed:
            return
        except Exception as error:
            self.loop.call_soon(self._role_ended, name, error, context=self._outside())

    def _role_ended(self, name: str, error: Exception) -> None:
        """A role's main failed: the service manager starts it again; only failures of storage are expected."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, (FailbackError, OSError)):
            self._failure = self._failure or error
        self.note(f"{name} ended: {error!r}")
        self.kill(name)

    def _outside(self) -> Context:
        """A context that belongs to no process."""
        return Context()

    # --- death ------------------------------------------------------------------------------------------------------

    def _passage(self, point: str) -> None:
        """A fault point is passed: the process's fuse burns down."""
        process = CURRENT.get()
        if process is not None and process.alive and point == "landing.before_ack":
            self._note_landed()
        if process is None or not process.fuse or not point.startswith(process.fuse_at):
            return
        if not process.alive:
            raise Killed
        process.fuse -= 1
        if process.fuse == 0:
            process.alive = False
            self.note(f"{process.name} killed at {point}")
            self.loop.call_soon(self._after_fuse, process.name, process, context=self._outside())
            raise Killed

    def _after_fuse(self, name: str, process: Process) -> None:
        if name in self.lives and self.lives[name][0] is process:
            self.kill(name, power=self._power_of_fuse.pop(name, False))

    def light_fuse(self, name: str, passages: int, *, power: bool, at: str = "") -> None:
        """It dies at its so many-th passage of a fault point whose name begins so."""
        if name in self.lives:
            self.lives[name][0].fuse = passages
            self.lives[name][0].fuse_at = at
            self._power_of_fuse[name] = power

    def kill(self, name: str, *, power: bool = False) -> None:
        """kill -9 of the process, or its whole machine loses power."""
        if name not in self.lives:
            return
        self.kills[name] = self.kills.get(name, 0) + 1
        self.note(f"{name} {'loses power' if power else 'is killed'}")
        self._end(name, power=power)
        self.loop.call_later(self.chaos.away_seconds(), self.start, name)

    def _end(self, name: str, *, power: bool = False) -> None:
        process, _ = self.lives.pop(name)
        process.alive = False
        _DEAD.append(process)
        self.network.process_died(process, silently=power)
        self.files.process_died(process.descriptors)
        if name == "master-target" and self.journal is not None:
            self._note_landed()
            self.journal.catalogue._connection.close()
            self.journal = None
        if power:
            self.files.power_cut(self.root / name)
        if power and name == "master-target":
            self.files.power_cut(self.root / "master-target-state")
            for index, device in self.devices.items():
                self.raw_disks[index].failing = 0
                device.lose(self.files.chance)
        if power and name == "agent":
            self.machine.crash()
            shutil.rmtree(self.root / "agent", ignore_errors=True)

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, Killed):
            self._failure = self._failure or error

    def lose_directory(self, name: str) -> None:
        """The disk of a process server that is down is replaced by an empty one."""
        if name not in self.lives:
            for path in (self.root / name).glob("*/*"):
                self.spool_is_lost(path)
            shutil.rmtree(self.root / name)
            (self.root / name).mkdir()

    def spool_is_lost(self, directory: Path) -> None:
        """Of the epoch that the directory is named after, which need not be the newest: its stream may not know of that yet."""
        if directory.name.isdigit():
            self.spools_lost.add(int(directory.name))

    def journal_is_lost(self) -> None:
        self.journals_lost.update(range(1, self.plane.state.epoch + 1))

    def _is_trusted(self, journal: Journal | None, epoch: int) -> bool:
        """The journal has what it acknowledged under this epoch."""
        return journal is not None and journal.epoch == epoch and epoch not in self.journals_lost

    # --- watching ---------------------------------------------------------------------------------------------------

    def note(self, sentence: str) -> None:
        self.story.append(f"{self.loop.now - 1000:9.3f} {sentence}")

    def role(self, name: str) -> Any:
        return self.lives[name][1] if name in self.lives else None

    async def _watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0.25)

    def look(self) -> None:
        """Hear the components as heartbeats do, and judge."""
        if self._failure is not None:
            raise self._failure
        agent = cast(Agent | None, self.role("agent"))
        if agent is not None:
            self._look_at_agent(agent)
        for name in SERVERS:
            server = cast(ProcessServer | None, self.role(name))
            if server is not None and server.streams is not None:
                for stream in server.streams.all():
                    if stream.problem is not None:
                        self.plane.heard(stream.epoch, f"{stream.problem.code}: ")
                for machine in server.streams.status():
                    self.plane.heard(machine.epoch, machine.problem)
        if self.journal is not None and self.journal.started:
            self._look_at_journal(self.journal)

    def _look_at_agent(self, agent: Agent) -> None:
        wanted = self.plane.known_to("agent")
        if wanted != agent.wanted:
            agent.wanted = wanted
            agent.news.set()
        stream = agent.stream
        if agent.pass_done:
            self.plane.pass_is_done(agent.pass_done)
        if stream is not None and stream._begun:
            epoch = stream.assignment.epoch
            journal = stream.known_incarnation()
            life = f"landed in life {self.kills.get('agent', 0)} of the agent"
            self.judge.never_back(life, epoch, journal, stream.landed_sequence)
            if self._is_trusted(self.journal, epoch) and self.journal and journal == self.journal.incarnation:
                self.judge.at_least("the journal", self.journal.landed.sequence, stream.landed_sequence, epoch)
            self._look_at_spools(epoch, stream.spooled_sequence)
            self._look_at_releases(stream)
        if agent.problem and agent.wanted is not None:
            self.plane.heard(agent.wanted.epoch, agent.problem)

    def _look_at_spools(self, epoch: int, acknowledged: int) -> None:
        for name in SERVERS:
            server = cast(ProcessServer | None, self.role(name))
            for stream in server.streams.all() if server is not None and server.streams is not None else ():
                if stream.epoch == epoch and epoch not in self.spools_lost | self.journals_lost:
                    held = max(stream.spool.spooled_sequence, self.landed_in(epoch))
                    self.judge.at_least(name, held, acknowledged, epoch)

    def _look_at_releases(self, stream: Stream) -> None:
        """The ring's room is given back only for what the stream's spool or the journal holds durably (D5)."""
        epoch, ring = stream.assignment.epoch, self.machine.ring
        first = self._released_before.setdefault((ring.ring_id, epoch), ring.consumed)
        if (
            ring.consumed <= first
            or epoch in self.spools_lost | self.journals_lost
            or stream._session.ring_id != ring.ring_id
        ):
            return
        server = cast(ProcessServer | None, self.role(self.plane.state.server))
        for held in server.streams.all() if server is not None and server.streams is not None else ():
            if held.epoch == epoch:
                durable = max(held.spool.spooled_ring, self._landed_ring_in(epoch))
                self.judge.released(epoch, ring.consumed + stream._base, durable)

    def landed_in(self, epoch: int) -> int:
        """What is durable of the epoch, as of now or of the master target's death."""
        self._note_landed()
        return self._landed.get(epoch, Position(epoch, 0, 0)).sequence

    def _landed_ring_in(self, epoch: int) -> int:
        self._note_landed()
        return self._landed.get(epoch, Position(epoch, 0, 0)).ring

    def _note_landed(self) -> None:
        """At every look, before each acknowledgement and when the master target dies: nothing that anybody was told is missed."""
        if self.journal is not None:
            landed = self.journal.landed
            self._landed[landed.epoch] = landed

    def master_target_serves(self) -> None:
        """A master target came back: what it had journaled durably, acknowledged or not, has to be there."""
        assert self.journal is not None
        journal = self.journal
        before = self._landed.get(journal.epoch)
        if before is not None and journal.damage is None and self._is_trusted(journal, journal.epoch):
            self.judge.at_least("the journal", journal.landed.sequence, before.sequence, journal.epoch)
        self._look_at_servers(journal)

    def _look_at_servers(self, journal: Journal) -> None:
        if journal.damage is not None:
            return
        for name in SERVERS:
            server = cast(ProcessServer | None, self.role(name))
            for stream in server.streams.all() if server is not None and server.streams is not None else ():
                state = stream.spool.state
                if self._is_trusted(journal, stream.epoch) and state.incarnation == journal.incarnation:
                    self.judge.at_least("the journal", journal.landed.sequence, state.landed_sequence, stream.epoch)

    def _look_at_journal(self, journal: Journal) -> None:
        self._look_at_servers(journal)
        damage = journal.damage
        if damage is not None and damage.refuses(journal.epoch):
            self.plane.heard(journal.epoch, f"{damage.code}: {damage.reason}")
        self._note_landed()
        self.judge.never_back("the journal's epoch", 0, journal.incarnation, journal.epoch)
        if journal.catalogue.get("rollback_phase") and self.rolling is not self.lives["master-target"][0]:
            self.rolling = self.lives["master-target"][0]
            self.loop.spawn(self.rolling, self.chaos.give_back(journal))
        applier = journal._applier
        if applier is None or applier._stale or damage is not None:
            return
        self.judge.points(journal)
        replica = self.role("master-target").replica
        follows = not journal.catalogue.get("rollback_phase") and not journal.unproven
        if replica.clean and applier.written == applier.durable and follows:
            self.judge.applied(journal, {i: disk.content for i, disk in self.raw_disks.items()})

    def judge_prepared(self, journal: Journal, point: RecoveryPoint) -> None:
        self.judge.at_point("the prepared replica", point, {i: disk.content for i, disk in self.raw_disks.items()})

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _heal(self) -> None:
        """No more faults, no more writes: everything has to arrive."""
        self.note("healing")
        self.machine.settle()
        deadline = self.loop.now + HEALING_SECONDS
        while not self._is_equal():
            if self.loop.now > deadline:
                raise Violation(f"the replica did not become equal in {HEALING_SECONDS:.0f} s: {self._why_not()}")
            await asyncio.sleep(1.0)

    def _is_equal(self) -> bool:
        journal = self.journal
        if (
            journal is None
            or not journal.started
            or journal.catalogue.get("rollback_phase")
            or len(self.lives) < len(ROLES)
        ):
            return False
        machine = self.machine
        if any(machine.dirty) or machine.misses != machine.word("acknowledged_missed"):
            return False  # the agent may not have looked yet
        agent = cast(Agent, self.role("agent"))
        stream = agent.stream
        if stream is None or not stream._begun or stream.assignment.epoch != self.plane.state.epoch or stream.gap:
            return False
        if (
            stream._session.produced_position() > stream._session.cursor()
            or stream.comparing
            or any(self.machine.dirty)
        ):
            return False
        applied = journal.applied
        done = applied.epoch == journal.epoch == self.plane.state.epoch and not applied.gap and journal.caught_up
        if not done or applied.sequence < stream.sent_sequence:
            return False
        if any(disk.content != self.machine.disks[index] for index, disk in self.raw_disks.items()):
            raise Violation("everything is applied without a gap, and the replica differs from the source")
        return True

    def _why_not(self) -> str:
        agent = cast(Agent | None, self.role("agent"))
        stream = agent.stream if agent is not None else None
        said = f"agent: {agent.problem or 'well'}" if agent is not None else "agent: away"
        if stream is not None:
            said += f", gap {stream.gap or 'none'}, sent {stream.sent_sequence}, landed {stream.landed_sequence}"
        if self.journal is not None:
            said += f"; journal: {self.journal.landed}, applied {self.journal.applied}"
        if self.journal is not None:
            phase, applier = self.journal.catalogue.get("rollback_phase"), self.journal._applier
            said += f", rollback {phase or None}, behind {applier.behind if applier else None}"
            problem = self.role("master-target").replica.problem
            said += f", problem {problem}, damage {self.journal.damage}"
        return f"{said}; plane: {self.plane.state}; alive: {sorted(self.lives)}"

    async def _last_look(self) -> None:
        """Every point once more, then a crash, and everything applied again: nothing may change."""
        self.look()
        assert self.journal is not None
        self.judge.points(self.journal, again=True)
        if not self.journals_lost:
            self.judge.redo(self.journal)
        if not any(point.epoch for point in self.journal.points()):
            raise Violation("no point was ever published")
        self.kill("master-target")
        while self.journal is None or not self.journal.started or not self.journal.caught_up:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        await asyncio.sleep(3.0)
        assert self.journal is not None
        self.judge.points(self.journal, again=True)
        if any(disk.content != self.machine.disks[index] for index, disk in self.raw_disks.items()):
            raise Violation("applying again changed the replica")
