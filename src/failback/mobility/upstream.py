"""The stream's side towards its process server: the greeting, and what the link reports, kept for the pump.

The callbacks run whenever the link has something; nothing that has an order happens in them. They put acknowledgements and
answers into ``acks`` and ``replies``, call ``wake``, and the pump takes them in its own time. What makes going on impossible
(the process server holds other items than were sent) is set once in ``diverged``.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from failback import __version__
from failback.errors import FailbackError
from failback.mobility.memory import MemoryFile
from failback.mobility.outstanding import Outstanding, spool_differs
from failback.model.components import MobilityAssignment, Role
from failback.protocol.connection import journal_replaced
from failback.protocol.layout import VERSION
from failback.protocol.messages import Ack, DigestReply, Hello, StreamDisk, Welcome
from failback.transport.identity import Identity
from failback.transport.limits import Pace
from failback.transport.sender import HeldItems, StreamSender


class Upstream:
    """``items`` takes what is to be sent; ``sender`` sends it; ``welcome`` is done at the first Welcome."""

    def __init__(self, assignment: MobilityAssignment, identity: Identity, memory: MemoryFile, *, window_bytes: int,
                 wake: Callable[[], None], changed: Callable[[], None], pace: Pace | None = None) -> None:  # fmt: skip
        assert assignment.process_server is not None
        self.problem = ""
        self.acks: deque[tuple[Ack, int]] = deque()
        """With the monotonic time in nanoseconds at which each came."""
        self.replies: deque[DigestReply] = deque()
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.diverged: FailbackError | None = None
        self.items = HeldItems(self._hello, limit_bytes=window_bytes, on_welcome=self._on_welcome, on_ack=self._on_ack,
                               on_digest_reply=self._on_reply, on_refused=self._on_refused)  # fmt: skip
        self.sender = StreamSender(
            assignment.process_server,
            identity,
            self.items,
            expect=Role.PROCESS_SERVER,
            window_bytes=window_bytes,
            pace=pace,
        )
        self._assignment = assignment
        self._memory = memory
        self._wake = wake
        self._changed = changed
        self._divergence = asyncio.Event()
        self._outstanding = Outstanding(0, 0)
        self._base = 0
        self._begun = False

    def begun(self, outstanding: Outstanding, base: int) -> None:
        """From now on a Welcome is compared with what was sent."""
        self._outstanding, self._base, self._begun = outstanding, base, True

    async def until_diverged(self) -> None:
        """Never returns: raises when going on has become impossible (the pump may be waiting for room that nothing makes)."""
        await self._divergence.wait()
        assert self.diverged is not None
        raise self.diverged

    def known_incarnation(self) -> str:
        """Of the journal in which this epoch's items landed until now (D7)."""
        return self._memory.value.incarnation if self._memory.value.epoch == self._assignment.epoch else ""

    def _hello(self) -> Hello:
        assignment = self._assignment
        return Hello(
            machine_id=assignment.machine_id, epoch=assignment.epoch, software=f"failback {__version__}",
            lowest_version=VERSION, highest_version=VERSION,
            disks=tuple(StreamDisk(disk.disk_id, disk.index, disk.size_bytes) for disk in assignment.disks),
            incarnation=self.known_incarnation(), landed_sequence=self._outstanding.landed_sequence,
            next_sequence=self._outstanding.spooled_sequence + 1 if self.welcome.done() else 1,
        )  # fmt: skip

    async def _on_welcome(self, welcome: Welcome) -> None:
        known = self.known_incarnation()
        if known and welcome.incarnation and welcome.incarnation != known:
            raise journal_replaced(known, welcome.incarnation)
        self.problem = ""
        if not self.welcome.done():
            self.welcome.set_result(welcome)
            return
        if self._begun and self._outstanding.contradicts(welcome.spooled_sequence, welcome.spooled_ring - self._base):
            self.diverged = spool_differs(welcome.spooled_sequence)
            self._memory.update(others_spooled=True)
            self._divergence.set()
            raise self.diverged
        ack = Ack(welcome.epoch, welcome.spooled_sequence, welcome.spooled_ring, welcome.landed_sequence,
                  welcome.landed_ring, welcome.incarnation)  # fmt: skip
        await self._on_ack(ack)
        self._changed()

    async def _on_ack(self, ack: Ack) -> None:
        self.acks.append((ack, time.monotonic_ns()))
        self._wake()

    async def _on_reply(self, reply: DigestReply) -> None:
        self.replies.append(reply)
        self._wake()

    def _on_refused(self, error: FailbackError) -> None:
        self.problem = "" if error.retryable else f"{error.code}: {error.message}"
        if error.code in ("JournalReplaced", "RedoDamaged"):
            self._memory.update(compare_all=True, compared_blocks={})
        self._changed()
