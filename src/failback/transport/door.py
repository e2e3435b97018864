"""Where connections come in: accepted, counted and through their TLS handshake before anything else sees them.

A port of ours may be reached by anybody. Until somebody has greeted (handshake over, first message there) they are a
:class:`Visitor`: each has a time limit, one address has only a few at once, all together have a bound, and one more is
closed at once, without a handshake. So neither half-open connections nor slow handshakes take the place of others from
other addresses. What happens after the greeting is for the protocol to bound.

    door = await open_door(factory, host, port, context, handshake_seconds=10.0)    # factory(visitor) -> protocol
    visitor.greeted()                                                               # called by the protocol's owner
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from failback.runtime import logs

log = logs.get(__name__)

_BACKLOG = 256
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """``of_address``, ``of_all``: connections that have not greeted yet. A process server that comes back links all of its
    machines at once from one address, and so do the machines behind one NAT."""

    handshake_seconds: float = 10.0
    greeting_seconds: float = 10.0
    of_address: int = 128
    of_all: int = 512


class Visitor:
    """A connection that has not greeted. ``greeted`` and ``left`` may be called more than once."""

    def __init__(self, door: Door, address: str) -> None:
        self.address = address
        self._door: Door | None = door

    def greeted(self) -> None:
        """It counts among the visitors no more."""
        door, self._door = self._door, None
        if door is not None:
            door.forget(self)

    left = greeted


Factory = Callable[[Visitor], asyncio.BaseProtocol]


class Door:
    """See the module; made by :func:`open_door`."""

    def __init__(self, factory: Factory, context: ssl.SSLContext, limits: DoorLimits) -> None:
        self.sockets: list[socket.socket] = []
        self.turned_away = 0
        self._factory = factory
        self._context = context
        self._limits = limits
        self._visitors: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_at = float("-inf")

    @property
    def visitors(self) -> int:
        return self._visitors.total()

    def listen(self, sockets: list[socket.socket]) -> None:
        self.sockets = sockets
        for listening in sockets:
            listening.listen(_BACKLOG)
            listening.setblocking(False)
            self._run(self._accept(listening), "door")

    def _run(self, work: object, name: str) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, place = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno not in _NO_RESOURCES:
                    log.debug("a connection went away while it was accepted", reason=str(error))
                    continue
                log.error("no more connections can be taken", reason=str(error), remedy="raise LimitNOFILE")
                await asyncio.sleep(0.5)
                continue
            address = str(place[0])
            if self._visitors[address] >= self._limits.of_address or self.visitors >= self._limits.of_all:
                self._turn_away(connection, address)
                continue
            self._visitors[address] += 1
            self._run(self._enter(connection, Visitor(self, address)), f"visitor {address}")

    def _turn_away(self, connection: socket.socket, address: str) -> None:
        connection.close()
        self.turned_away += 1
        now = asyncio.get_running_loop().time()
        if now - self._told_at > 60.0:
            self._told_at = now
            log.warning("connections are turned away: too many have not greeted", address=address,
                        of_address=self._visitors[address], of_all=self.visitors, turned_away=self.turned_away)  # fmt: skip

    async def _enter(self, connection: socket.socket, visitor: Visitor) -> None:
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._factory(visitor), connection, ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_seconds,
                ssl_shutdown_timeout=self._limits.handshake_seconds,
            )  # fmt: skip
        except (OSError, EOFError) as error:  # ssl.SSLError, TimeoutError and resets are of them
            visitor.left()
            connection.close()
            log.debug("a handshake failed", address=visitor.address, reason=str(error) or type(error).__name__)
        except BaseException:
            visitor.left()
            connection.close()
            raise

    def forget(self, visitor: Visitor) -> None:
        self._visitors[visitor.address] -= 1
        if not self._visitors[visitor.address]:
            del self._visitors[visitor.address]

    def close(self) -> None:
        """Listen no more and end handshakes; established connections are their owner's."""
        for task in self._tasks:
            task.cancel()
        for listening in self.sockets:
            listening.close()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def open_door(
    factory: Factory, host: str, port: int, context: ssl.SSLContext, limits: DoorLimits | None = None
) -> Door:
    """Listen on every address that ``host`` stands for (empty: all). Raises OSError when one cannot be bound."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, place in dict.fromkeys(found):
            sockets.append(bind(family, place[:2] if port else (place[0], _port_of(sockets))))
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    door = Door(factory, context, limits or DoorLimits())
    door.listen(sockets)
    return door


def _port_of(sockets: list[socket.socket]) -> int:
    """The port that the first socket was given, for the others too; 0 for the first."""
    port: int = sockets[0].getsockname()[1] if sockets else 0
    return port


def bind(family: int, place: tuple[object, ...]) -> socket.socket:
    """A bound TCP socket. Raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(place)
    except OSError:
        listening.close()
        raise
    return listening
