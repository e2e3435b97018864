"""The link to the master target: items read back from the spool, in order; landed positions and replies come back.

:class:`SpooledItems` is the source of a :class:`failback.transport.sender.StreamSender`. Memory for items read ahead is
shared by all machines (``ReadBudget``), so that two hundred backlogs do not add up. On every connection the master target's
journal is compared with what was remembered: another incarnation, or less than it had acknowledged, ends the stream (D7).
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
    """Bytes of items that are read from spools and not yet written to a link, over all machines."""

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


class SpooledItems:
    """One connection after the other to the master target of one stream."""

    def __init__(self, stream: MachineStream, budget: ReadBudget) -> None:
        self._stream = stream
        self._budget = budget
        self._reader = SpoolReader(stream.spool, stream.spool.spooled_sequence)
        self._ready: deque[RawItem] = deque()
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
        if welcome.landed_sequence > stream.spool.spooled_sequence:
            await stream.journal_is_ahead(welcome.landed_sequence, welcome.landed_ring, welcome.incarnation)
        else:
            await stream.landed(welcome.landed_sequence, welcome.landed_ring, welcome.incarnation)
        self.drop_read_items()
        self._reader = SpoolReader(stream.spool, welcome.spooled_sequence)
        stream.master_target_linked = True
        stream.trouble = ""

    async def next(self) -> RawItem:
        if not self._ready:
            self._give_back()
            await self._wait_for_more()
            wanted = max(_READ_BYTES, await asyncio.to_thread(self._reader.next_bytes))
            await self._budget.take(wanted)
            self._taken_bytes = wanted
            self._ready.extend(await asyncio.to_thread(self._reader.read_some, _READ_BYTES))
        return self._ready.popleft()

    async def _wait_for_more(self) -> None:
        stream = self._stream
        while stream.spool.spooled_sequence < self._reader.next_sequence:
            stream.more.clear()
            await stream.more.wait()

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

    def drop_read_items(self) -> None:
        self._ready.clear()
        self._give_back()

    def _give_back(self) -> None:
        if self._taken_bytes:
            self._budget.release(self._taken_bytes)
            self._taken_bytes = 0
