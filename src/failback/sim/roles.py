"""The roles of a simulated world: the production code of each, started as its ``main`` starts it, without TLS and files of keys.

Each function is the main task of one process. What a process leaves behind for its next life lies in the world: files,
the replica's disks, the machine's kernel, and the last assignment of a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from failback.errors import FailbackError
from failback.journal.journal import Journal
from failback.master_target.intake import Intake
from failback.master_target.replica import ATTACHED
from failback.master_target.witness import WitnessFile
from failback.mobility.config import Compression
from failback.mobility.memory import MemoryFile
from failback.mobility.stream import Stream
from failback.model.components import MobilityAssignment
from failback.model.policy import ReplicationPolicy
from failback.process_server.assignment import Streams
from failback.process_server.intake import check_peer, take_stream
from failback.protocol.messages import DigestReply, Hello
from failback.sim.capture import SimulatedSession
from failback.sim.disk import MemoryDisk
from failback.transport.link import Link, serve_links

if TYPE_CHECKING:
    from failback.sim.world import World

RETRY_SECONDS = 5.0


class Agent:
    """``mobility.reconcile`` without discovery of disks, self-test and freezes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.stream: Stream | None = None
        self.problem = ""
        self.pass_done = ""
        self.news = asyncio.Event()
        self.wanted: MobilityAssignment | None = None
        self._registered: Stream | None = None

    async def run(self) -> None:
        world = self._world
        directory = world.root / "agent"
        memory = MemoryFile(directory)
        thread = ThreadPoolExecutor(1)
        loop = asyncio.get_running_loop()
        while True:
            self.news.clear()
            if self.wanted is None:
                await self.news.wait()
                continue
            session = await loop.run_in_executor(thread, SimulatedSession, world.machine)
            try:
                self._begin(session, thread, memory)
                await self._until_news()
            except (FailbackError, OSError, BaseExceptionGroup) as error:
                self._failed(error)
                await self._pause()
            finally:
                self.stream = None
                await loop.run_in_executor(thread, session.close)

    def _begin(self, session: SimulatedSession, thread: ThreadPoolExecutor, memory: MemoryFile) -> None:
        assert self.wanted is not None
        self.stream = Stream(
            session, thread, self.wanted, devices={disk.index: disk.device_match for disk in self.wanted.disks},
            identity=self._world.identity("agent"), memory=memory, compression=Compression.AUTO,
            window_bytes=self._world.window_bytes, changed=self._changed,
        )  # fmt: skip

    async def _until_news(self) -> None:
        assert self.stream is not None
        running = asyncio.create_task(self.stream.run())
        news = asyncio.create_task(self.news.wait())
        try:
            await asyncio.wait({running, news}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await running
        finally:
            for task in (running, news):
                task.cancel()
            await asyncio.gather(running, news, return_exceptions=True)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await self.news.wait()
        except TimeoutError:
            return

    def _changed(self) -> None:
        stream = self.stream
        if stream is None:
            return
        if stream._begun and self._registered is not stream:
            self._registered = stream
            landed = self._world.landed_in(stream.assignment.epoch)  # what landed belongs to what was sent before
            first = max(stream._outstanding.spooled_sequence, landed) + 1
            self._world.judge.stream_begins(stream.assignment.epoch, first, stream._base, self._world.machine.ring)
        self.problem = stream.problem
        if stream.pass_done:
            self.pass_done = stream.assignment.pass_id

    def _failed(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, (FailbackError, OSError)):
            raise error
        self.problem = f"{getattr(error, 'code', 'OSError')}: {error}"


class ProcessServer:
    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self.streams: Streams | None = None

    async def run(self) -> None:
        world = self._world
        directory = world.root / self._name
        identity = world.identity(self._name)
        async with asyncio.TaskGroup() as group:
            streams = Streams(directory, identity, group, limit_bytes=world.spool_limit_bytes)
            streams._segment_bytes = world.spool_segment_bytes

            async def accept(link: Link, hello: Hello) -> None:
                check_peer(link, hello)
                await take_stream(streams.find(hello.machine_id, hello.epoch), link, hello)

            await serve_links("", world.port(self._name), identity, accept)
            self.streams = streams
            group.create_task(streams.remember_landed())
            known = None
            while True:
                wanted = world.plane.known_to(self._name)
                if wanted != known:
                    try:
                        await streams.apply(wanted)
                        known = wanted
                    except FailbackError as error:
                        world.note(f"{self._name}: {error.code}")
                await asyncio.sleep(0.2)


class Replica:
    """``master_target.replica`` with the applying thread as a task and the disks in memory."""

    def __init__(self, journal: Journal, witness: WitnessFile) -> None:
        self.journal = journal
        self._witness = witness
        self.state = ATTACHED
        self.landing_problem = ""
        self.problem = ""
        self.on_reply: Callable[[DigestReply], None] = lambda reply: None
        self.work = asyncio.Event()
        self.clean = False
        """The disks are where the applier says: no step has failed since, and none was cut short by a crash."""

    def begin_epoch(self, epoch: int) -> None:
        self._witness.expect_epoch(epoch)
        self.journal.begin_epoch(epoch)

    def landed_more(self) -> None:
        self.work.set()


class MasterTarget:
    def __init__(self, world: World) -> None:
        self._world = world
        self.replica: Replica | None = None
        self.applying = True

    def find(self, machine_id: str) -> Replica:
        assert self.replica is not None
        return self.replica

    def assigned(self, machine_id: str) -> Any:
        return self._world.plane.known_to("master-target")

    async def run(self) -> None:
        world = self._world
        journal = await asyncio.to_thread(self._open)
        witness = WitnessFile(world.root / "master-target-state" / "witness.json")
        self.replica = Replica(journal, witness)
        world.journal = journal
        await asyncio.to_thread(self._start, journal, witness)
        intake = Intake(cast(Any, self))
        await serve_links("", world.port("master-target"), world.identity("master-target"), intake.accept)
        world.master_target_serves()
        known = None
        while True:
            wanted = world.plane.known_to("master-target")
            if wanted != known:
                known = wanted
                intake.drop_unassigned()
            self.replica.work.clear()
            if not await self._step(journal, witness):
                try:
                    async with asyncio.timeout(0.25):
                        await self.replica.work.wait()
                except TimeoutError:
                    continue

    def _open(self) -> Journal:
        world = self._world
        directory = world.root / "master-target" / "failback" / str(world.machine_id)
        (world.root / "master-target-state").mkdir(parents=True, exist_ok=True)
        journal = Journal.create(directory, world.machine_id, world.replica_disks, int(world.clock.wall() * 1e9))
        journal.redo._reserve_bytes = 0
        return journal

    def _start(self, journal: Journal, witness: WitnessFile) -> None:
        world, known = self._world, witness.read()
        if known is not None:
            journal.distrust(known)
        journal.begin_life()
        witness.keep(journal.witness, now=True)
        journal.policy = ReplicationPolicy("simulated", crash_consistent_seconds=world.paces.choice((1, 3, 10)))
        journal.start(self._world.devices, self._reply)

    def _reply(self, reply: DigestReply) -> None:
        assert self.replica is not None
        self.replica.on_reply(reply)

    async def _step(self, journal: Journal, witness: WitnessFile) -> bool:
        assert self.replica is not None
        try:
            progressed = await asyncio.to_thread(self._apply, journal, witness)
            self.replica.clean = self.replica.clean or progressed
            return progressed
        except (FailbackError, OSError) as error:
            self.replica.clean = False
            self.replica.problem = str(error)
            await asyncio.sleep(2.0)
            return True

    def _apply(self, journal: Journal, witness: WitnessFile) -> bool:
        with journal.apply_lock:
            witness.keep(journal.witness)
            return journal.apply_step()


__all__ = ["Agent", "MasterTarget", "MemoryDisk", "ProcessServer"]
