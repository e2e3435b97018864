"""One machine's stream of one epoch: its spool, the link from its agent and what is known of the link to its master target.

Lives in the event loop; disk work goes to threads. The intake, the forwarder and the spooling meet only here: the intake hands
over what arrived (:meth:`MachineStream.received`), the forwarder announces what has landed and what the master target
answers, :meth:`MachineStream.keep_spooling` writes what does not land in time; all of it is told upstream at once. A
*problem* is something that only a new epoch cures (the journal was replaced, the spool lost items): the agent is refused with
it until the assignment names a higher epoch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

from failback import __version__
from failback.errors import FailbackError, OutOfSpaceError, PeerError, StorageError, from_dict
from failback.model.components import SpooledMachine
from failback.model.ids import MachineId
from failback.process_server.recent import RecentItems, RecentMemory
from failback.process_server.space import SpoolSpace
from failback.process_server.spool import Spool
from failback.protocol import layout
from failback.protocol.connection import items_missing
from failback.protocol.frames import RawItem
from failback.protocol.messages import FEATURES, Ack, DigestReply, Hello, Welcome
from failback.runtime import faults, logs
from failback.transport.limits import Pacer
from failback.transport.link import Link

log = logs.get(__name__)

ENDING_CODES = frozenset({"JournalReplaced", "RedoDamaged", "ItemsMissing", "SpoolDamaged"})
"""Errors that only a new epoch cures."""
_KEPT_REPLIES = 4096
_RETRY_SECONDS = 1.0


class MachineStream:
    def __init__(
        self, machine_id: MachineId, epoch: int, spool: Spool, space: SpoolSpace, memory: RecentMemory
    ) -> None:
        self.machine_id = machine_id
        self.epoch = epoch
        self.spool = spool
        self.space = space
        self.agent: Link | None = None
        self._agent_task: asyncio.Task[None] | None = None
        self.intake = asyncio.Lock()
        """Held by the one link that takes items from the agent."""
        self.greeted = asyncio.Event()
        """The stream's disks are known: the master target can be greeted."""
        self.more = asyncio.Event()
        """There is more to forward."""
        self.recent = RecentItems(memory, self._recent_changed)
        self.memory = memory
        self.heard = asyncio.Event()
        """The journal's position is known as far as it matters to where the stream stands."""
        if not spool.state.forwards_early:
            self.heard.set()
        self._linked = False
        self._to_spool = asyncio.Event()
        self._spooling = asyncio.Lock()
        self._early = asyncio.Lock()
        self.problem: FailbackError | None = from_dict(spool.state.problem) if spool.state.problem else None
        self.trouble = ""
        """Why the master target is not linked; empty while it is."""
        self.spool_trouble = ""
        """Why nothing can be spooled; empty while it can."""
        self._remembered: tuple[str, int] = ("", 0)
        self.pacer = Pacer()
        """Of the link to the master target."""
        self._replies: deque[DigestReply] = deque(maxlen=_KEPT_REPLIES)
        if spool.state.disks:
            self.greeted.set()

    @property
    def master_target_linked(self) -> bool:
        return self._linked

    @master_target_linked.setter
    def master_target_linked(self, linked: bool) -> None:
        self._linked = linked
        self._to_spool.set()

    # --- what is said ------------------------------------------------------------------------------------------------

    def welcome(self, version: int, spooled_sequence: int, spooled_ring: int) -> Welcome:
        state = self.spool.state
        return Welcome(
            version=version,
            software=__version__,
            epoch=self.epoch,
            spooled_sequence=spooled_sequence,
            spooled_ring=spooled_ring,
            landed_sequence=state.landed_sequence,
            landed_ring=state.landed_ring,
            incarnation=state.incarnation,
            features=FEATURES,
        )

    def hello(self) -> Hello:
        """The greeting for the master target."""
        state = self.spool.state
        return Hello(
            machine_id=self.machine_id,
            epoch=self.epoch,
            software=__version__,
            lowest_version=layout.LOWEST_VERSION,
            highest_version=layout.VERSION,
            disks=state.disks,
            incarnation=state.incarnation,
            landed_sequence=state.landed_sequence,
            next_sequence=self.first_held,
        )

    @property
    def first_held(self) -> int:
        """Sequence of the oldest item that can be forwarded; one after the last when nothing is held."""
        if self.spool.segments or not self.recent.first_sequence:
            return self.spool.first_held
        return self.recent.first_sequence

    def tell_agent(self) -> None:
        """Acknowledge upstream what is durable here and there."""
        if self.agent is None:
            return
        state, spool = self.spool.state, self.spool  # in this order: a thread may be moving both
        self.agent.send_small(
            Ack(
                epoch=self.epoch,
                spooled_sequence=max(spool.spooled_sequence, state.landed_sequence),
                spooled_ring=max(spool.spooled_ring, state.landed_ring),
                landed_sequence=state.landed_sequence,
                landed_ring=state.landed_ring,
                incarnation=state.incarnation,
            )
        )

    def agent_linked(self, link: Link) -> None:
        """The agent was welcomed, the current task serves it: hand it the replies that came while it was away."""
        self.agent, self._agent_task = link, asyncio.current_task()
        while self._replies:
            link.send_small(self._replies.popleft())

    def agent_gone(self, link: Link) -> None:
        if self.agent is link:
            self.agent, self._agent_task = None, None

    def relay(self, reply: DigestReply) -> None:
        """Pass a reply upstream; the newest are kept while the agent is away (an agent asks again for lost ones)."""
        if self.agent is not None and self.agent.ended is None:
            self.agent.send_small(reply)
        else:
            self._replies.append(reply)

    def agent_remembers(self, incarnation: str, landed_sequence: int) -> None:
        """Which journal the agent knows and how far it had landed: the master target must not offer less (D7)."""
        self._remembered = (incarnation, landed_sequence)

    @property
    def remembered(self) -> tuple[str, int]:
        """(incarnation, landed sequence) that the master target has to know, by the memory of either side."""
        state, (incarnation, landed) = self.spool.state, self._remembered
        return state.incarnation or incarnation, max(state.landed_sequence, landed)

    # --- what happened -----------------------------------------------------------------------------------------------

    def received(self, items: list[RawItem]) -> None:
        """Items arrived, the next ones in order."""
        self.recent.add(items)
        self.more.set()

    def _recent_changed(self) -> None:
        self._to_spool.set()

    async def landed(self, sequence: int, ring: int, incarnation: str) -> None:
        """The master target's journal holds everything up to there: free and tell upstream."""
        if not self.spool.landed_at_once(sequence, ring, incarnation):
            await asyncio.to_thread(self.spool.landed, sequence, ring, incarnation)
        self.recent.landed(sequence)
        self.space.look()
        self.tell_agent()

    async def journal_is_ahead(self, sequence: int, ring: int, incarnation: str) -> None:
        """Raises ProtocolError ItemsMissing when an agent already relies on the position before."""
        log.warning("the journal is ahead of the spool", machine=self.machine_id, epoch=self.epoch, landed=sequence)
        async with self._spooling:
            forwarded_unspooled = not self.heard.is_set()  # by the process before this one: nobody was greeted since
            forward = partial(
                self.spool.fast_forward, sequence, ring, incarnation, although_greeted=forwarded_unspooled
            )
            if not await asyncio.to_thread(forward):
                raise items_missing(sequence + 1, self.spool.first_held)
            self.recent.clear()
        self.drop_agent(PeerError("the stream goes on behind what the journal holds: greet again"))
        self.space.look()

    # --- spooling what does not land in time (decision 0010) -------------------------------------------------------------

    async def keep_spooling(self) -> None:
        """Until cancelled. A spool that fails is told to the agent and tried again; items that land need no spool."""
        while True:
            self._to_spool.clear()
            delay = self.recent.seconds_to_spooling(master_target_linked=self._linked)
            if delay is None and not self._linked:
                await self._end_early()
            if delay is None:
                self.spool_trouble = ""
            if delay != 0.0:
                await self._until_news(delay)
                continue
            try:
                await self.spool_all()
                self.spool_trouble = ""
            except FailbackError as error:
                self.spool_trouble = error.message
                self.drop_agent(error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _until_news(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._to_spool.wait()
        except TimeoutError:
            return

    async def spool_all(self) -> None:
        """Make all that arrived durable here, unless it lands meanwhile. Raises StorageError, OutOfSpaceError."""
        async with self._spooling:
            for together in groups(self.recent.unspooled(), self.space.limit_bytes // 4):
                await self._spool_group(together)
                together.clear()  # must not keep these in memory

    async def _spool_group(self, together: list[RawItem]) -> None:
        """Synced together, or in parts when the disk has no room for all: what fits is spooled."""
        try:
            async with self.space.reserved(sum(len(item.buffer) for item in together)):
                await asyncio.to_thread(self.spool.append, together)
        except OutOfSpaceError:
            if len(together) == 1:
                raise
            middle = len(together) // 2
            await self._spool_group(together[:middle])
            await self._spool_group(together[middle:])
            return
        faults.point("spool.before_ack")
        self.recent.spooled(self.spool.spooled_sequence)
        self.tell_agent()

    async def before_forwarding(self, sequence: int) -> None:
        """An item that is not spooled goes out only after it is durable that this happens."""
        if sequence <= self.spool.spooled_sequence or (self.spool.state.forwards_early and not self._early.locked()):
            return
        async with self._early:
            await asyncio.to_thread(self.spool.set_early, True)

    async def linked(self) -> None:
        """The master target is there and said where its journal stands: items may go on from memory."""
        self.heard.set()
        self.master_target_linked = True
        self.trouble = ""
        try:
            async with self._early:  # now, so that the first item need not wait for it
                await asyncio.to_thread(self.spool.set_early, True)
        except StorageError as error:
            self.trouble = error.message  # what is spooled is forwarded all the same

    async def _end_early(self) -> None:
        """The master target is away and everything is spooled: after a restart it need not be asked first."""
        async with self._early:
            if (
                self._linked
                or self.recent.unspooled()
                or not self.spool.state.forwards_early
                or not self.heard.is_set()
            ):
                return
            try:
                await asyncio.to_thread(self.spool.set_early, False)
            except StorageError as error:
                self.trouble = error.message

    async def settle(self) -> None:
        """The process server stops or hands over: what arrived is spooled, and the journal need not be asked first."""
        self.master_target_linked = False
        try:
            await self.spool_all()
        except FailbackError as error:
            log.warning("what has not landed could not be spooled: it was not acknowledged", machine=self.machine_id,
                        reason=error.message)  # fmt: skip
        await self._end_early()

    async def end(self, problem: FailbackError) -> None:
        """This epoch cannot go on: refuse the agent with the reason from now on, also after a restart."""
        if self.problem is None:
            log.error("stream cannot go on under this epoch", machine=self.machine_id, epoch=self.epoch,
                      code=problem.code, reason=problem.message, remedy=problem.remedy)  # fmt: skip
            await asyncio.to_thread(self.spool.end, problem)
        self.problem = problem
        self.drop_agent(problem)

    def drop_agent(self, error: FailbackError) -> None:
        """Refuse the agent's link and end the task that serves it, also while that waits for room in the spool."""
        if self.agent is not None:
            self.agent.refuse(error)
        if self._agent_task is not None:
            self._agent_task.cancel()
        self.agent, self._agent_task = None, None

    def status(self) -> SpooledMachine:
        spool = self.spool
        return SpooledMachine(
            machine_id=self.machine_id,
            epoch=self.epoch,
            agent_connected=self.agent is not None and self.agent.ended is None,
            master_target_connected=self.master_target_linked,
            spooled_sequence=spool.spooled_sequence,
            landed_sequence=spool.state.landed_sequence,
            pending_bytes=spool.pending_bytes,
            problem=f"{self.problem.code}: {self.problem.message}" if self.problem else self._standing(),
        )

    def _standing(self) -> str:
        """Why the stream does not flow now; it goes on by itself when that is over."""
        if self.spool_trouble:
            return self.spool_trouble
        if self.space.is_full and self.recent.unspooled():
            return f"the spools are full: they hold what they may ({self.space.limit_bytes} bytes); the agent waits"
        return self.trouble


def groups(items: list[RawItem], limit_bytes: int) -> list[list[RawItem]]:
    """The items in order, in groups of at most ``limit_bytes`` or one item: what is synced together."""
    found: list[list[RawItem]] = []
    size = 0
    for item in items:
        if not found or size + len(item.buffer) > limit_bytes:
            found.append([])
            size = 0
        found[-1].append(item)
        size += len(item.buffer)
    return found
