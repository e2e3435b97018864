"""One machine's stream of one epoch: its spool, the link from its agent and what is known of the link to its master target.

Lives in the event loop; disk work goes to threads. The intake and the forwarder meet only here: the intake announces what
is durable (:meth:`MachineStream.spooled_more`), the forwarder announces what has landed and what the master target answers,
which is told upstream at once. A *problem* is something that only a new epoch cures (the journal was replaced, the spool
lost items): the agent is refused with it until the assignment names a higher epoch.
"""

from __future__ import annotations

import asyncio
from collections import deque

from failback import __version__
from failback.errors import FailbackError, PeerError, from_dict
from failback.model.components import SpooledMachine
from failback.model.ids import MachineId
from failback.process_server.space import SpoolSpace
from failback.process_server.spool import Spool
from failback.protocol import layout
from failback.protocol.connection import items_missing
from failback.protocol.messages import FEATURES, Ack, DigestReply, Hello, Welcome
from failback.runtime import logs
from failback.transport.link import Link

log = logs.get(__name__)

ENDING_CODES = frozenset({"JournalReplaced", "RedoDamaged", "ItemsMissing", "SpoolDamaged"})
"""Errors that only a new epoch cures."""
_KEPT_REPLIES = 4096


class MachineStream:
    def __init__(self, machine_id: MachineId, epoch: int, spool: Spool, space: SpoolSpace) -> None:
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
        self.master_target_linked = False
        self.problem: FailbackError | None = from_dict(spool.state.problem) if spool.state.problem else None
        self.trouble = ""
        """Why the master target is not linked; empty while it is."""
        self._remembered: tuple[str, int] = ("", 0)
        self._replies: deque[DigestReply] = deque(maxlen=_KEPT_REPLIES)
        if spool.state.disks:
            self.greeted.set()

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
            next_sequence=self.spool.first_held,
        )

    def tell_agent(self) -> None:
        """Acknowledge upstream what is durable here and there."""
        if self.agent is None:
            return
        spool, state = self.spool, self.spool.state
        self.agent.send_small(
            Ack(
                epoch=self.epoch,
                spooled_sequence=spool.spooled_sequence,
                spooled_ring=spool.spooled_ring,
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

    def spooled_more(self) -> None:
        self.more.set()
        self.tell_agent()

    async def landed(self, sequence: int, ring: int, incarnation: str) -> None:
        """The master target's journal holds everything up to there: free and tell upstream."""
        await asyncio.to_thread(self.spool.landed, sequence, ring, incarnation)
        self.space.look()
        self.tell_agent()

    async def journal_is_ahead(self, sequence: int, ring: int, incarnation: str) -> None:
        """Raises ProtocolError ItemsMissing when an agent already relies on the position before."""
        log.warning("the journal is ahead of the spool", machine=self.machine_id, epoch=self.epoch, landed=sequence)
        if not await asyncio.to_thread(self.spool.fast_forward, sequence, ring, incarnation):
            raise items_missing(sequence + 1, self.spool.first_held)
        self.drop_agent(PeerError("the stream goes on behind what the journal holds: greet again"))
        self.space.look()

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
            problem=f"{self.problem.code}: {self.problem.message}" if self.problem else self.trouble,
        )
