"""The link to the master target: items in order, from memory or read back from the spool; landed positions and replies come back.

:class:`ForwardedItems` is the source of a :class:`failback.transport.sender.StreamSender`. Memory for items on their way
is shared by all machines of a master target (``ReadBudget``), so that two hundred backlogs do not add up. On every connection the
master target's journal is compared with what was remembered: another incarnation, or less than it had acknowledged, ends the
stream (D7).
"""

from __future__ import annotations

import asyncio
from collections import deque

from failback.errors import FailbackError
from failback.process_server.spool import SpoolReader
from failback.process_server.stream import ENDING_CODES, MachineStream
from failback.protocol.connection import items_missing, journal_fell_back, journal_replaced
from failback.protocol.frames import RawItem
from failback.protocol.messages import Ack, DigestReply, Hello, Welcome
from failback.transport.wire import ReceiveBudget

_READ_BYTES = 1 << 20


class ReadBudget:
    """Bytes of items that are being written to one master target, or are read from spools to be, over its machines.

    One for each master target: one that takes nothing must not hold up the machines of another.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._budget = ReceiveBudget(limit_bytes)

    async def take(self, count: int) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def grant() -> None:
            if not granted.done():
                granted.set_result(None)
            else:
                self._budget.release(count)

        if self._budget.take(count, grant):
            return
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._budget.release(count)
            else:
                self._budget.forget(grant)
            raise

    def release(self, count: int) -> None:
        self._budget.release(count)

    @property
    def limit_bytes(self) -> int:
        return self._budget.limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, limit: int) -> None:
        self._budget.limit_bytes = limit


class ForwardedItems:
    """One connection after the other to the master target of one stream."""

    def __init__(self, stream: MachineStream, budget: ReadBudget) -> None:
        self._stream = stream
        self._budget = budget
        self._reader = SpoolReader(stream.spool, stream.spool.spooled_sequence)
        self._ready: deque[RawItem] = deque()
        self._next = stream.spool.spooled_sequence + 1
        self._taken_bytes = 0

    def hello(self) -> Hello:
        self._stream.master_target_linked = False
        return self._stream.hello()

    async def resume(self, welcome: Welcome) -> None:
        stream = self._stream
        if stream.problem is not None:
            raise stream.problem
        incarnation, landed_sequence = stream.remembered
        if incarnation and welcome.incarnation != incarnation:
            raise journal_replaced(incarnation, welcome.incarnation)
        if welcome.landed_sequence < landed_sequence:
            raise journal_fell_back(welcome.incarnation, landed_sequence, welcome.landed_sequence)
        if welcome.landed_sequence and not stream.spool.state.incarnation and stream.spool.spooled_sequence:
            # items were taken into an empty spool before the journal was heard: they may bear the numbers of landed ones
            raise items_missing(welcome.landed_sequence + 1, stream.spool.first_held)
        if welcome.landed_sequence > max(stream.spool.spooled_sequence, stream.recent.last_sequence):
            await stream.journal_is_ahead(welcome.landed_sequence, welcome.landed_ring, welcome.incarnation)
        else:
            await stream.landed(welcome.landed_sequence, welcome.landed_ring, welcome.incarnation)
        self.drop_read_items()
        self._next = welcome.spooled_sequence + 1
        await stream.linked()

    async def next(self) -> RawItem:
        item = await self._find()
        self._next += 1
        return item

    async def _find(self) -> RawItem:
        """The next item, from memory where it is there."""
        stream = self._stream
        while True:
            if self._ready and self._ready[0].header.sequence == self._next:
                return self._ready.popleft()
            item = stream.recent.get(self._next)
            if item is not None:
                self.drop_read_items()
                await self._take(item.header.total_bytes)  # a peer that does not read holds it after the spool has it
                if stream.recent.get(self._next) is not item:
                    continue  # spooled and let go of meanwhile: it is read back
                await stream.before_forwarding(self._next)
                return item
            if self._next <= stream.spool.spooled_sequence:
                await self._read()
                continue
            self.drop_read_items()  # what was taken before is written by now
            stream.more.clear()
            await stream.more.wait()

    async def _read(self) -> None:
        self.drop_read_items()
        if self._reader.next_sequence != self._next:
            self._reader = SpoolReader(self._stream.spool, self._next - 1)
        wanted = max(_READ_BYTES, await asyncio.to_thread(self._reader.next_bytes))
        await self._take(wanted)
        self._ready.extend(await asyncio.to_thread(self._reader.read_some, _READ_BYTES))

    async def acknowledged(self, ack: Ack) -> None:
        await self._stream.landed(ack.landed_sequence, ack.landed_ring, ack.incarnation)

    async def answered(self, reply: DigestReply) -> None:
        self._stream.relay(reply)

    async def refused(self, error: FailbackError) -> None:
        stream = self._stream
        stream.master_target_linked = False
        stream.trouble = f"master target: {error.message}"
        if error.code in ENDING_CODES:
            await stream.end(error)

    async def _take(self, count: int) -> None:
        await self._budget.take(count)
        self._taken_bytes = count

    def drop_read_items(self) -> None:
        self._ready.clear()
        self._give_back()

    def _give_back(self) -> None:
        if self._taken_bytes:
            self._budget.release(self._taken_bytes)
            self._taken_bytes = 0
