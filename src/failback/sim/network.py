"""Simulated connections: bytes arrive late, in order, until the connection is cut; ends may learn of a cut late or never.

The transports serve the production code's own ``Wire`` protocol. A killed process's connections are closed by its kernel;
one whose machine lost power just falls silent, and the other end finds out by its own means.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from failback.sim.loop import CURRENT, Process, SimulatedLoop

Factory = Callable[[], asyncio.BufferedProtocol]


class _Certificate:
    """What ``peer_identity`` reads from a TLS connection."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def getpeercert(self) -> dict[str, object]:
        identity = self._process.identity
        subject = ((("commonName", str(identity.component_id)),), (("organizationalUnitName", identity.role.value),))
        return {"subject": subject}


class _Socket:
    def __init__(self, port: int) -> None:
        self._port = port

    def getsockname(self) -> tuple[str, int]:
        return ("simulated", self._port)


class Listener:
    def __init__(self, network: Network, port: int, factory: Factory, process: Process) -> None:
        self._network = network
        self._port = port
        self.factory = factory
        self.process = process
        self.sockets = [_Socket(port)]

    def close(self) -> None:
        if self._network.listeners.get(self._port) is self:
            del self._network.listeners[self._port]

    async def wait_closed(self) -> None:
        return

    def forget(self, visitor: object) -> None:
        """Nobody here comes without greeting."""


class End(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: Network, process: Process) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.context: Context = process.new_context()
        self.peer: End
        self.protocol: asyncio.BufferedProtocol
        self.severed = False
        self._high = 1 << 16
        self._closing = False
        self._lost = False
        self._paused = False
        self._full = False
        self._unread: deque[bytes] = deque()
        self._buffered = 0
        self._arrives_at = 0.0

    # --- the transport's interface ----------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return _Certificate(self.peer.process)
        return ("simulated", 0) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or self._high

    def get_write_buffer_size(self) -> int:
        return self._buffered

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self.network.loop.call_soon(self._feed, context=self.context)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not self.process.alive:
            return
        sent = bytes(data)
        self._buffered += len(sent)
        if self._buffered > self._high and not self._full:
            self._full = True
            self.network.loop.call_soon(self.protocol.pause_writing, context=self.context)
        self._later(self.peer._arrived, sent)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._later(self.peer._end_of_file)
        self.network.loop.call_at(self._arrives_at, self._lose, None, context=self.context)

    def abort(self) -> None:
        if self._lost:
            return
        self._closing = True
        self._buffered = 0
        self.network.loop.call_soon(self._lose, None, context=self.context)
        self._later(self.peer._lose, ConnectionResetError("reset by peer"))

    # --- the wire ---------------------------------------------------------------------------------------------------

    def _later(self, deliver: Callable[..., None], *arguments: object) -> None:
        """At the other end, after what was sent before."""
        if self.severed:
            return
        self._arrives_at = max(self._arrives_at + 1e-6, self.network.loop.time() + self.network.delay())  # never a tie
        self.network.loop.call_at(self._arrives_at, deliver, *arguments, context=self.peer.context)

    def _arrived(self, data: bytes) -> None:
        if self._lost or self.severed:
            return
        self._unread.append(data)
        self._feed()

    def _feed(self) -> None:
        while self._unread and not self._paused and not self._lost:
            data = self._unread.popleft()
            view = memoryview(data)
            while view and not self._closing:
                room = memoryview(self.protocol.get_buffer(-1))
                count = min(len(room), len(view))
                room[:count] = view[:count]
                view = view[count:]
                self.protocol.buffer_updated(count)
            self.peer._drained(len(data))

    def _drained(self, count: int) -> None:
        self._buffered = max(0, self._buffered - count)
        if self._full and self._buffered <= self._high // 4 and not self._lost:
            self._full = False
            self.network.loop.call_soon(self.protocol.resume_writing, context=self.context)

    def _end_of_file(self) -> None:
        if self._unread and self._paused:
            self.network.loop.call_later(0.1, self._end_of_file, context=self.context)
        else:
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = self._closing = True
            self.protocol.connection_lost(error)
            self.network.forget(self)

    def sever(self, notice_after: float | None) -> None:
        """Nothing arrives any more; the end hears of it after so many seconds, or never."""
        self.severed = True
        if notice_after is not None:
            error = ConnectionResetError("the connection was cut")
            self.network.loop.call_later(notice_after, self._lose, error, context=self.context)


class Network:
    """``slow``: the mean seconds that bytes are under way."""

    def __init__(self, loop: SimulatedLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.slow = chance.choice((0.0005, 0.005, 0.05))
        self.listeners: dict[int, Listener] = {}
        self.ends: list[End] = []

    def delay(self) -> float:
        return self.chance.random() * self.slow * (40 if self.chance.random() < 0.01 else 2)

    def listen(self, factory: Factory, port: int) -> Listener:
        process = CURRENT.get()
        assert process is not None
        self.listeners[port] = Listener(self, port, factory, process)
        return self.listeners[port]

    async def connect(self, factory: Factory, port: int) -> tuple[End, asyncio.BufferedProtocol]:
        process = CURRENT.get()
        assert process is not None
        late = 8.0 if self.chance.random() < 0.02 else 0.0  # connections overtake each other
        await asyncio.sleep(self.delay() + late * self.chance.random())
        listener = self.listeners.get(port)
        if listener is None or not listener.process.alive:
            raise ConnectionRefusedError(f"nobody listens on port {port}")
        near, far = End(self, process), End(self, listener.process)
        near.peer, far.peer = far, near
        near.protocol = factory()
        far.protocol = far.context.run(listener.factory)
        self.ends += [near, far]
        near.protocol.connection_made(near)
        self.loop.call_soon(far.protocol.connection_made, far, context=far.context)
        return near, near.protocol

    def forget(self, end: End) -> None:
        if end in self.ends:
            self.ends.remove(end)

    def cut(self, process: Process | None = None) -> None:
        """Cut one living connection (of that process)."""
        found = [end for end in self.ends if process is None or end.process is process]
        if found:
            end = self.chance.choice(found)
            for side in (end, end.peer):
                side.sever(self.chance.choice((0.0, 0.01, 1.0, None)))

    def process_died(self, process: Process, *, silently: bool) -> None:
        """Its kernel closes the connections, or the whole machine is gone."""
        for end in [end for end in self.ends if end.process is process]:
            if silently:
                end.peer.sever(self.chance.choice((None, 3.0)))
            else:
                end._later(end.peer._lose, ConnectionResetError("the process died"))
            end.severed = end._lost = True
            self.forget(end)
