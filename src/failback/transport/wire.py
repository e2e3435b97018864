"""One TLS connection as an asyncio protocol: bytes to messages, back-pressure both ways, signs of life.

Received bytes are read straight into the frame being built (no copy of a payload). Reading pauses while the queue of
whole messages is above its limit, and while a :class:`ReceiveBudget` shared by all links has no room for the next frame:
the peer then sees a full socket, nothing is dropped. Written frames go out in slices and wait for the high-water mark.
Pings are answered here. Silence is death only when this side was reading: after ``dead_seconds`` the link is cut.

A peer holds no more memory than its part of the budget: frames of items are taken only after the greeting, small messages
count in the queue, pings are not answered into a full socket, a peer that reads no answers is cut, and so is one whose
frame crawls while other links wait for the memory (docs/protocol.md, "Limits").
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from failback.errors import FailbackError, IntegrityError, PeerError, ProtocolError
from failback.protocol.connection import Conversation, End, refusal, refused
from failback.protocol.frames import Decoder, RawItem, encode
from failback.protocol.messages import Batch, DigestReply, Digests, Message, Ping, Pong, Refusal
from failback.transport.limits import Pace

_SLICE_BYTES = 256 << 10
_HIGH_WATER_BYTES = 1 << 20
_ANSWERS_HIGH_WATER_BYTES = 128 << 10
"""Of the receiving end, whose answers are small."""
_LARGEST_UNREAD_BYTES = 64 << 20
"""Of answers that a peer does not read: replies to the digests of a large disk may come all at once."""
_SMALL_MESSAGE_BYTES = 512
"""What a small message counts for in the queue."""
_CRAWL_BYTES_PER_SECOND = 16 << 10
_LONGEST_FRAME_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class LinkTimes:
    ping_seconds: float = 5.0
    dead_seconds: float = 20.0
    handshake_seconds: float = 10.0


class ReceiveBudget:
    """Memory for received frames, shared by links. A frame larger than all of it passes when nothing else is held."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def take(self, count: int, granted: Callable[[], None]) -> bool:
        """True when ``count`` bytes are taken now; otherwise ``granted`` is called once they are."""
        if not self._waiting and self._fits(count):
            self.used_bytes += count
            return True
        self._waiting.append((count, granted))
        return False

    def force(self, count: int) -> None:
        self.used_bytes += count

    @property
    def crowded(self) -> bool:
        """True while somebody waits."""
        return bool(self._waiting)

    def forget(self, granted: Callable[[], None]) -> None:
        """Drop the requests of a link that ended."""
        self._waiting = deque(entry for entry in self._waiting if entry[1] != granted)
        self.release(0)

    def release(self, count: int) -> None:
        self.used_bytes -= count
        while self._waiting and self._fits(self._waiting[0][0]):
            wanted, granted = self._waiting.popleft()
            self.used_bytes += wanted
            granted()

    def _fits(self, count: int) -> bool:
        return self.used_bytes == 0 or self.used_bytes + count <= self.limit_bytes


class Wire(asyncio.BufferedProtocol):
    """See the module. Used by :class:`failback.transport.link.Link` only."""

    def __init__(
        self,
        own: End,
        times: LinkTimes,
        *,
        raw_items: bool,
        queue_bytes: int,
        budget: ReceiveBudget | None,
        connected: Callable[[Wire], None] | None = None,
    ) -> None:
        self.conversation = Conversation(own)
        self.times = times
        self.ended: FailbackError | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(raw_items=raw_items)
        self._queue: deque[tuple[Message | RawItem, int]] = deque()
        self._queued_bytes = 0
        self._queue_limit = queue_bytes
        self._budget = budget
        self._frame_charge = 0
        self._frame_asked = False
        self._charged = 0
        self._frame_watched = (0.0, 0)
        """Since when the frame being received is watched, and how much of it had come then."""
        self._unread = (0.0, 0)
        """Since when the peer has read nothing of what it is sent, and how much had gone out then."""
        self._written_bytes = 0
        self._high_water = _HIGH_WATER_BYTES
        self._arrival = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._writing = asyncio.Lock()
        self._mid_frame = False
        self._between_frames: list[bytes] = []
        self._pauses: set[str] = set()
        self._connected = connected
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_received = self._last_sent = self._loop.time()
        self._pings = 0
        self._peer_address = "unknown"
        self._ssl_object: ssl.SSLObject | None = None

    @property
    def ssl_object(self) -> ssl.SSLObject:
        assert self._ssl_object is not None
        return self._ssl_object

    @property
    def peer_address(self) -> str:
        return self._peer_address

    # --- callbacks of the transport ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ssl_object = transport.get_extra_info("ssl_object")
        address = transport.get_extra_info("peername")
        self._peer_address = f"{address[0]}:{address[1]}" if address else "unknown"
        self._high_water = _HIGH_WATER_BYTES if self.conversation.own is End.SENDING else _ANSWERS_HIGH_WATER_BYTES
        transport.set_write_buffer_limits(high=self._high_water)
        self._last_received = self._last_sent = self._loop.time()
        self._timer = self._loop.call_later(self.times.ping_seconds, self._look)
        if self._connected is not None:
            self._connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._last_received = self._loop.time()
        self._decoder.takes_items = self.conversation.takes_items
        try:
            for message in self._decoder.received(nbytes):
                self._take(message)
        except (ProtocolError, IntegrityError) as error:
            self.fail(error, tell_peer=True)
            return
        self._ask_budget()
        self._pause("queue", self._queued_bytes > self._queue_limit)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ended is None:
            if self._decoder.mid_frame:
                text = "the connection was cut in the middle of a frame"
            else:
                text = f"the connection was lost: {exc}" if exc else "the peer closed the link"
            self.ended = PeerError(text)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._arrival.set()
        self._writable.set()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- receiving --------------------------------------------------------------------------------------------------

    def _take(self, message: Message | RawItem) -> None:
        self.conversation.received(message)
        if isinstance(message, Ping):
            if self._writable.is_set():  # else bytes wait for the peer already: they are sign enough of our life
                self.send_small(Pong(message.nonce))
            return
        if isinstance(message, Pong):
            return
        if isinstance(message, Refusal):
            self.fail(refused(message), tell_peer=False)
            return
        size = _SMALL_MESSAGE_BYTES
        if isinstance(message, RawItem):
            size = message.header.total_bytes
        elif isinstance(message, Batch):
            size = len(message.extents) + len(message.payload)
        elif isinstance(message, Digests):
            size = len(message.digests)
        elif isinstance(message, DigestReply):
            size += len(message.differing)
        self._charge(size)
        self._queue.append((message, size))
        self._queued_bytes += size
        self._arrival.set()

    def _charge(self, size: int) -> None:
        """The frame is whole: bring what the budget holds for it to ``size``."""
        if self._budget is None:
            return
        if self._frame_asked and not self._frame_charge:
            self._budget.forget(self._granted)
            self._pause("budget", False)
        self._budget.force(size - self._frame_charge)
        self._frame_charge, self._frame_asked = 0, False
        self._charged += size

    def _ask_budget(self) -> None:
        wanted = self._decoder.frame_bytes
        if self._budget is None or not wanted or self._frame_asked:
            return
        self._frame_asked = True
        self._watch_frame()
        if self._budget.take(wanted, self._granted):
            self._frame_charge = wanted
        else:
            self._pause("budget", True)

    def _granted(self) -> None:
        self._frame_charge = self._decoder.frame_bytes
        self._pause("budget", False)

    def _pause(self, reason: str, wanted: bool) -> None:
        before = bool(self._pauses)
        if wanted:
            self._pauses.add(reason)
        else:
            self._pauses.discard(reason)
        if self._transport is None or self._transport.is_closing() or bool(self._pauses) == before:
            return
        if self._pauses:
            self._transport.pause_reading()
        else:
            self._last_received = self._loop.time()
            self._watch_frame()
            self._transport.resume_reading()

    def _watch_frame(self) -> None:
        self._frame_watched = (self._loop.time(), self._decoder.filled_bytes)

    async def receive_some(self) -> list[Message | RawItem]:
        """All whole messages that are there, at least one. What the call before gave out counts as used up.

        Raises the error that ended the link, after the messages that came before it.
        """
        self.release_received()
        while not self._queue:
            if self.ended is not None:
                raise self.ended
            self._arrival.clear()
            await self._arrival.wait()
        taken = [message for message, _ in self._queue]
        self._forget_queue()
        return taken

    async def receive(self) -> Message | RawItem:
        """The next message; otherwise as :meth:`receive_some`."""
        self.release_received()
        while not self._queue:
            if self.ended is not None:
                raise self.ended
            self._arrival.clear()
            await self._arrival.wait()
        message, size = self._queue.popleft()
        self._queued_bytes -= size
        if self._queued_bytes <= self._queue_limit:
            self._pause("queue", False)
        return message

    def _forget_queue(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0
        self._pause("queue", False)

    def release_received(self) -> None:
        """Give back the budget of what was handed out."""
        if self._budget is not None and self._charged > self._queued_bytes:
            count, self._charged = self._charged - self._queued_bytes, self._queued_bytes
            self._budget.release(count)

    def dispose(self) -> None:
        """Give everything back that the budget holds for this link; call once, when the link is over."""
        self.abort()
        self._decoder.drop()
        self._queue.clear()
        self._queued_bytes = 0
        self.release_received()
        if self._budget is not None:
            self._budget.forget(self._granted)
            charge, self._frame_charge = self._frame_charge, 0
            self._budget.release(charge)

    # --- sending ----------------------------------------------------------------------------------------------------

    async def send(self, message: Message | RawItem, pace: Pace | None = None) -> None:
        """Write the frame, waiting while the peer does not read, and for ``pace`` before each slice.

        Raises the error that ended the link.
        """
        async with self._writing:
            self._check_open()
            parts = encode(message)
            self.conversation.sent(message)
            self._mid_frame = True
            try:
                for part in parts:
                    await self._write_part(memoryview(part), pace)
            except asyncio.CancelledError:
                self.abort()  # half a frame is out: nothing sensible can follow it
                raise
            self._mid_frame = False
            for small in self._between_frames:
                self._write(small)
            self._between_frames.clear()

    async def _write_part(self, view: memoryview, pace: Pace | None) -> None:
        for start in range(0, len(view), _SLICE_BYTES):
            await self._writable.wait()
            if pace is not None:
                await pace(min(_SLICE_BYTES, len(view) - start))
                await self._writable.wait()
            self._check_open()
            self._write(view[start : start + _SLICE_BYTES])

    def send_small(self, message: Message) -> None:
        """Write a small message now, or right after the frame that is going out. Silent when the link has ended."""
        if self.ended is not None or self._transport is None:
            return
        self.conversation.sent(message)
        data = b"".join(encode(message))
        if self._mid_frame:
            self._between_frames.append(data)
        else:
            self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        assert self._transport is not None
        self._last_sent = self._loop.time()
        self._written_bytes += len(data)
        self._transport.write(data)

    def _check_open(self) -> None:
        if self.ended is not None:
            raise self.ended

    # --- the end ----------------------------------------------------------------------------------------------------

    def fail(self, error: FailbackError, *, tell_peer: bool) -> None:
        """End the link with an error; the first one counts. ``tell_peer`` sends it as a Refusal before closing."""
        if self.ended is not None:
            return
        if tell_peer and self._transport is not None and not self._mid_frame:
            self._write(b"".join(encode(refusal(error))))
        self.ended = error
        self._arrival.set()
        self._writable.set()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self.ended is None:
            self.ended = PeerError("this side closed the link")
        self._arrival.set()
        self._writable.set()
        transport, self._transport = self._transport, None  # a second abort would fail inside asyncio
        if transport is not None:
            transport.abort()

    def _look(self) -> None:
        """The timer: cut a dead link, ping over a quiet one."""
        now = self._loop.time()
        if self.ended is not None:
            self.abort()  # a close that did not come to its end
            return
        if not self._pauses and now - self._last_received > self.times.dead_seconds:
            self.ended = PeerError(f"no sign of life from the peer for {self.times.dead_seconds:g} s")
            self.abort()
            return
        if self._is_crawling(now) or self._is_not_read(now):
            self.abort()
            return
        if now - self._last_sent >= self.times.ping_seconds * 0.9 and self._writable.is_set():
            self._pings += 1
            self.send_small(Ping(self._pings))
        self._timer = self._loop.call_later(self.times.ping_seconds, self._look)

    def _is_crawling(self, now: float) -> bool:
        """The peer holds memory that others wait for, and hardly fills it."""
        if self._budget is None or not self._frame_charge or self._pauses or not self._budget.crowded:
            return False
        since, before = self._frame_watched
        seconds = now - since
        if seconds < 2 * self.times.ping_seconds:
            return False
        rate = max(_CRAWL_BYTES_PER_SECOND, self._decoder.frame_bytes / _LONGEST_FRAME_SECONDS)
        if self._decoder.filled_bytes - before >= rate * seconds:
            self._watch_frame()
            return False
        self.ended = PeerError("the peer sends too slowly while others wait for the memory that it holds")
        return True

    def _is_not_read(self, now: float) -> bool:
        """The peer does not read the answers to what it sends (only a receiving end: a sending one waits patiently)."""
        if self.conversation.own is not End.RECEIVING or self._transport is None:
            return False
        waiting = self._transport.get_write_buffer_size()
        gone = self._written_bytes - waiting
        if waiting <= self._high_water or gone > self._unread[1]:
            self._unread = (now, gone)
        if waiting <= _LARGEST_UNREAD_BYTES and now - self._unread[0] <= self.times.dead_seconds:
            return False
        self.ended = PeerError("the peer does not read what it is sent")
        return True
