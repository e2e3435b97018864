"""The sending end that never gives up: connects, resumes where the Welcome says, sends, reconnects with back-off.

What is sent comes from an :class:`ItemSource`, the interface that the owner of the items implements: the mobility service
holds them in memory until they are spooled (:class:`HeldItems`), a process server reads them back from its spool. Bytes
sent and not yet acknowledged as spooled are bounded by ``window_bytes``; the source is asked for no more until
acknowledgements arrive. A refusal that a retry cannot cure is told to the source and tried again only slowly, because
what cures it (an assignment, a new epoch) arrives by another way.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from failback.errors import FailbackError
from failback.model.components import Endpoint, Role
from failback.protocol.connection import items_missing
from failback.protocol.frames import RawItem
from failback.protocol.messages import Ack, Batch, DigestReply, Digests, Hello, Welcome
from failback.runtime import faults, logs
from failback.transport.identity import Identity
from failback.transport.limits import Pace
from failback.transport.link import DEFAULT_TIMES, Link, LinkTimes, check_again, open_link

log = logs.get(__name__)

SendItem = Batch | Digests | RawItem


class ItemSource(Protocol):
    """Where a sender's items come from and where its news go. All calls come from the event loop, one at a time but for
    ``next``, which runs beside the others."""

    def hello(self) -> Hello:
        """What to greet with; called at every connection."""
        ...

    async def resume(self, welcome: Welcome) -> None:
        """Connected: ``next`` has to go on right after ``welcome.spooled_sequence``. May raise a FailbackError, which
        closes the link and comes back as ``refused``."""
        ...

    async def next(self) -> SendItem:
        """Wait for the next item. May be cancelled while waiting (then it has given out nothing)."""
        ...

    async def acknowledged(self, ack: Ack) -> None: ...

    async def answered(self, reply: DigestReply) -> None: ...

    async def refused(self, error: FailbackError) -> None:
        """The link could not be opened, was refused or ended; ``error.retryable`` says whether waiting may help."""
        ...


class StreamSender:
    """``await sender.run()`` until cancelled. ``linked`` tells whether a Welcome was received on the living link."""

    def __init__(
        self,
        endpoint: Endpoint,
        identity: Identity,
        source: ItemSource,
        *,
        expect: Role,
        window_bytes: int = 64 << 20,
        times: LinkTimes = DEFAULT_TIMES,
        first_backoff_seconds: float = 0.2,
        longest_backoff_seconds: float = 5.0,
        sent_fault: str = "",
        pace: Pace | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.linked = False
        self.last_error: FailbackError | None = None
        self.sent_sequence = 0
        self.sent_bytes = 0
        self._identity = identity
        self._source = source
        self._expect = expect
        self._window_bytes = window_bytes
        self._times = times
        self._backoff = (first_backoff_seconds, longest_backoff_seconds)
        self._sent_fault = sent_fault
        self._pace = pace
        self._flying: deque[tuple[int, int]] = deque()
        self._flying_bytes = 0
        self._up_since = math.inf
        self._room = asyncio.Event()
        self._context: ssl.SSLContext | None = None

    async def run(self) -> None:
        first, longest = self._backoff
        delay = first
        loop = asyncio.get_running_loop()
        while True:
            self._up_since = math.inf
            try:
                await self._connected()
            except FailbackError as error:
                await self._report(error)
                if loop.time() - self._up_since > 1.0:
                    delay = first
                wait = delay if error.retryable else max(delay, longest / 4)
            finally:
                self.linked = False
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            delay = min(delay * 2, longest)

    async def _report(self, error: FailbackError) -> None:
        if self.last_error is None or self.last_error.message != error.message:
            log.warning(
                "link is down", peer=f"{self.endpoint.host}:{self.endpoint.port}", code=error.code, reason=error.message
            )
        self.last_error = error
        await self._source.refused(error)

    async def _connected(self) -> None:
        """One connection, from greeting to its end. Raises the FailbackError that ended it."""
        if self._context is None:
            self._context = self._identity.client_context()
        link, welcome = await open_link(
            self.endpoint,
            self._identity,
            self._source.hello(),
            expect=self._expect,
            times=self._times,
            context=self._context,
        )
        deaf = self._identity.denied.listen(lambda: check_again(link, self._identity.denied))
        try:
            await self._source.resume(welcome)
            self._flying.clear()
            self._flying_bytes = 0
            self._room.set()
            self.linked = True
            self._up_since = asyncio.get_running_loop().time()
            self.last_error = None
            log.info("link is up", peer=link.address, spooled=welcome.spooled_sequence, landed=welcome.landed_sequence)
            await _until_one_fails(self._send(link), self._receive(link))
        finally:
            deaf()
            self.linked = False
            await link.close()

    async def _send(self, link: Link) -> None:
        while True:
            await self._room.wait()
            item = await self._source.next()
            size = item.header.total_bytes if isinstance(item, RawItem) else _size(item)
            sequence = item.header.sequence if isinstance(item, RawItem) else item.sequence
            self._flying.append((sequence, size))
            self._flying_bytes += size
            if self._flying_bytes >= self._window_bytes:
                self._room.clear()
            await link.send(item, self._pace)
            self.sent_sequence = sequence
            self.sent_bytes += size
            del item  # waiting for the next one must not keep this one in memory
            if self._sent_fault:
                faults.point(self._sent_fault)

    async def _receive(self, link: Link) -> None:
        while True:
            newest: Ack | None = None  # of those that came together: acknowledgements are cumulative
            for message in await link.receive_some():
                if isinstance(message, Ack):
                    newest = message
                elif isinstance(message, DigestReply):
                    await self._source.answered(message)
            if newest is not None:
                self._make_room(newest.spooled_sequence)
                await self._source.acknowledged(newest)

    def _make_room(self, spooled_sequence: int) -> None:
        while self._flying and self._flying[0][0] <= spooled_sequence:
            self._flying_bytes -= self._flying.popleft()[1]
        if self._flying_bytes < self._window_bytes:
            self._room.set()


def _size(item: Batch | Digests) -> int:
    if isinstance(item, Digests):
        return len(item.digests)
    return len(item.extents) + len(item.payload)


async def _until_one_fails(*halves: Coroutine[Any, Any, None]) -> None:
    """Run both halves of a link until one fails, then end the other. Raises what failed, an unexpected error first.

    Not a TaskGroup: that of Python 3.11 and 3.12 swallows a cancellation that arrives while it ends by a child's error, and a
    sender that is stopped just when its link breaks would run for ever.
    """
    tasks = [asyncio.ensure_future(half) for half in halves]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, FailbackError)):
        raise error


async def _ignore(_: object) -> None:
    return None


class HeldItems:
    """An :class:`ItemSource` that keeps items in memory until they are spooled.

    ``await items.send(item)`` waits while more than ``limit_bytes`` are held. ``on_welcome`` is awaited at every
    connection before anything is sent: an owner that has just started learns there where the stream stands.
    """

    def __init__(
        self,
        hello: Callable[[], Hello],
        *,
        limit_bytes: int = 32 << 20,
        on_welcome: Callable[[Welcome], Awaitable[None]] = _ignore,
        on_ack: Callable[[Ack], Awaitable[None]] = _ignore,
        on_digest_reply: Callable[[DigestReply], Awaitable[None]] = _ignore,
        on_refused: Callable[[FailbackError], None] | None = None,
    ) -> None:
        self._hello = hello
        self._limit_bytes = limit_bytes
        self._on_welcome = on_welcome
        self._on_ack = on_ack
        self._on_digest_reply = on_digest_reply
        self._on_refused = on_refused
        self._held: deque[Batch | Digests] = deque()
        self.held_bytes = 0
        self._next = 0  # index into _held of the item that is sent next
        self._changed = asyncio.Condition()

    async def send(self, item: Batch | Digests) -> None:
        """Hand an item over; waits for room. Items come in sequence order without a hole."""
        async with self._changed:
            while self._held and self.held_bytes + _size(item) > self._limit_bytes:
                await self._changed.wait()
            self._held.append(item)
            self.held_bytes += _size(item)
            self._changed.notify_all()

    async def clear(self) -> None:
        """Forget everything held (a new epoch began)."""
        async with self._changed:
            self._held.clear()
            self.held_bytes = 0
            self._next = 0
            self._changed.notify_all()

    def hello(self) -> Hello:
        return self._hello()

    async def resume(self, welcome: Welcome) -> None:
        await self._on_welcome(welcome)
        async with self._changed:
            self._drop(welcome.spooled_sequence)
            self._next = 0
            if self._held and self._held[0].sequence != welcome.spooled_sequence + 1:
                raise items_missing(welcome.spooled_sequence + 1, self._held[0].sequence)
            self._changed.notify_all()

    async def next(self) -> Batch | Digests:
        async with self._changed:
            while self._next >= len(self._held):
                await self._changed.wait()
            item = self._held[self._next]
            self._next += 1
            return item

    async def acknowledged(self, ack: Ack) -> None:
        async with self._changed:
            self._drop(ack.spooled_sequence)
            self._changed.notify_all()
        await self._on_ack(ack)

    async def answered(self, reply: DigestReply) -> None:
        await self._on_digest_reply(reply)

    async def refused(self, error: FailbackError) -> None:
        if self._on_refused is not None:
            self._on_refused(error)

    def _drop(self, spooled_sequence: int) -> None:
        while self._held and self._held[0].sequence <= spooled_sequence:
            self.held_bytes -= _size(self._held.popleft())
            self._next = max(0, self._next - 1)
