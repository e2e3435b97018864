"""Replication links: one TLS connection carries one machine's stream from a sending to a receiving end.

Both ends show certificates of the same CA; who a peer is stands in its certificate (component id and role), and a sender
names whom it expects. A revoked certificate opens no link, and ends the links that it had. :func:`open_link` connects,
greets and returns when the receiver said Welcome; :func:`serve_links` calls ``accept(link, hello)`` for every greeting, as a
task: it answers with ``link.send(Welcome(...))`` or raises a FailbackError, which goes to the peer as a Refusal. When
``accept`` returns or raises, the link is closed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from failback.errors import AuthenticationError, FailbackError, PeerError, ProtocolError
from failback.model.components import Endpoint, Role
from failback.protocol.connection import End, negotiate
from failback.protocol.frames import RawItem
from failback.protocol.messages import Hello, Message, Welcome
from failback.runtime import logs
from failback.transport.denied import DenyList
from failback.transport.door import Door, DoorLimits, Visitor, open_door
from failback.transport.identity import Identity, PeerIdentity, peer_identity
from failback.transport.limits import Pace
from failback.transport.wire import LinkTimes, ReceiveBudget, Wire

__all__ = ["Accept", "Link", "LinkServer", "LinkTimes", "ReceiveBudget", "open_link", "serve_links"]

log = logs.get(__name__)

DEFAULT_TIMES = LinkTimes()
_QUEUE_BYTES = 16 << 20


class Link:
    """One end of an established connection. Not for use by several receiving tasks; sending tasks may be many."""

    def __init__(self, wire: Wire, peer: PeerIdentity) -> None:
        self._wire = wire
        self.peer = peer
        self.address = wire.peer_address

    @property
    def ended(self) -> FailbackError | None:
        """Why the link is over; None while it lives."""
        return self._wire.ended

    async def send(self, message: Message | RawItem, pace: Pace | None = None) -> None:
        """Write a message; waits while the peer does not read. Raises PeerError or what the peer refused with."""
        await self._wire.send(message, pace)

    def send_small(self, message: Message) -> None:
        """Write an acknowledgement or a reply without waiting; silent when the link is over."""
        self._wire.send_small(message)

    async def receive(self) -> Message | RawItem:
        """The next message (never Ping, Pong or Refusal). Raises PeerError, ProtocolError, IntegrityError or what the
        peer refused with; every message received before is given out first."""
        return await self._wire.receive()

    async def receive_some(self) -> list[Message | RawItem]:
        """As :meth:`receive`: all that are there, at least one. The memory of the call before counts as given back."""
        return await self._wire.receive_some()

    def refuse(self, error: FailbackError) -> None:
        """Tell the peer why, and close."""
        self._wire.fail(error, tell_peer=True)

    async def close(self) -> None:
        """Close after what was written went out; cut after two seconds."""
        if self._wire.ended is None:
            self._wire.fail(PeerError("this side closed the link"), tell_peer=False)
        try:
            async with asyncio.timeout(2.0):
                await asyncio.shield(self._wire.closed)
        except TimeoutError:
            log.debug("a link did not close in time and is cut", address=self.address)
        finally:
            self._wire.dispose()


async def open_link(
    endpoint: Endpoint,
    identity: Identity,
    hello: Hello,
    *,
    expect: Role,
    times: LinkTimes = DEFAULT_TIMES,
    context: ssl.SSLContext | None = None,
) -> tuple[Link, Welcome]:
    """Connect and greet. Raises PeerError (away), AuthenticationError (somebody else), or what the peer refused with."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(times.handshake_seconds):
            _, wire = await loop.create_connection(
                lambda: Wire(End.SENDING, times, raw_items=True, queue_bytes=_QUEUE_BYTES, budget=None),
                endpoint.host,
                endpoint.port,
                ssl=context or identity.client_context(),
                server_hostname=endpoint.host,
            )
    except TimeoutError:
        raise _away(endpoint, "no answer") from None
    except ssl.SSLCertVerificationError as error:
        raise AuthenticationError(
            f"the certificate of {endpoint.host}:{endpoint.port} is not trusted: {error.verify_message}",
            possible_causes="another machine has the address, its certificate has expired, or a clock is wrong",
            remedy="check that the address is that of our server, then enrol it again",
        ) from error
    except OSError as error:
        raise _away(endpoint, str(error)) from error
    link: Link | None = None
    try:
        link = Link(wire, _expected_peer(wire, endpoint, expect, identity.denied))
        async with asyncio.timeout(times.handshake_seconds):
            await link.send(hello)
            answer = await link.receive()
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"{type(answer).__name__} came where Welcome had to come")
        return link, answer
    except BaseException as error:
        wire.dispose()
        if isinstance(error, TimeoutError):
            raise _away(endpoint, "no Welcome") from None
        raise


def _expected_peer(wire: Wire, endpoint: Endpoint, expect: Role, denied: DenyList) -> PeerIdentity:
    peer = peer_identity(wire.ssl_object)
    if peer.component_id != endpoint.component_id or peer.role is not expect:
        raise AuthenticationError(
            f"{endpoint.host}:{endpoint.port} is {peer.role.value} {peer.component_id}, "
            f"not {expect.value} {endpoint.component_id}",
            possible_causes="the address was given to another machine",
            remedy="check the address that the component reports",
        )
    denied.check(peer)
    return peer


def check_again(link: Link, denied: DenyList) -> None:
    """End a link whose peer's certificate was revoked since its handshake."""
    try:
        denied.check(link.peer)
    except AuthenticationError as error:
        link.refuse(error)


def _away(endpoint: Endpoint, reason: str) -> PeerError:
    return PeerError(
        f"{endpoint.host}:{endpoint.port} cannot be reached: {reason}",
        possible_causes="the server is down, or a firewall is between",
        remedy="check the server, the route and the port",
    )


Accept = Callable[[Link, Hello], Awaitable[None]]


class LinkServer:
    """The listening side; see :func:`serve_links`."""

    def __init__(
        self,
        accept: Accept,
        times: LinkTimes,
        budget: ReceiveBudget,
        *,
        raw_items: bool,
        limits: DoorLimits,
        denied: DenyList,
    ) -> None:
        self._accept = accept
        self._denied = denied
        self._links: set[Link] = set()
        self._deaf: Callable[[], None] | None = None
        self._times = times
        self._raw_items = raw_items
        self.budget = budget
        self._limits = limits
        self._door: Door | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._door is not None
        port: int = self._door.sockets[0].getsockname()[1]
        return port

    async def start(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._door = await open_door(self._wire, host, port, context, self._limits)
        self._deaf = self._denied.listen(self._look_again)

    def _look_again(self) -> None:
        """The list of revoked certificates changed: links that live end too."""
        for link in list(self._links):
            check_again(link, self._denied)

    def _wire(self, visitor: Visitor) -> Wire:
        return Wire(
            End.RECEIVING, self._times, raw_items=self._raw_items, queue_bytes=_QUEUE_BYTES, budget=self.budget,
            connected=lambda wire: self._begin(wire, visitor),
        )  # fmt: skip

    def _begin(self, wire: Wire, visitor: Visitor) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(wire, visitor), name=f"link {wire.peer_address}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, wire: Wire, visitor: Visitor) -> None:
        link: Link | None = None
        try:
            link = Link(wire, peer_identity(wire.ssl_object))
            self._denied.check(link.peer)
            self._links.add(link)
            async with asyncio.timeout(self._limits.greeting_seconds):
                hello = await link.receive()
            if not isinstance(hello, Hello):
                raise ProtocolError(f"{type(hello).__name__} came where Hello had to come")
            negotiate(hello)
            visitor.greeted()
            await self._accept(link, hello)
        except FailbackError as error:
            log.info("link ended", address=wire.peer_address, code=error.code, reason=error.message)
            wire.fail(error, tell_peer=True)
        except TimeoutError:
            wire.fail(PeerError("no Hello came in time"), tell_peer=True)
        except Exception as error:  # the border of one connection: it ends, the others go on
            log.exception("link ended by an unexpected error", address=wire.peer_address)
            wire.fail(FailbackError(f"the receiver failed: {error!r}", retryable=True), tell_peer=True)
        finally:
            visitor.left()
            if link is not None:
                self._links.discard(link)
                await link.close()
            else:
                wire.dispose()

    async def close(self) -> None:
        """Stop listening and end every link; returns when all tasks are over."""
        if self._deaf is not None:
            self._deaf()
            self._deaf = None
        if self._door is not None:
            self._door.close()
            await self._door.wait_closed()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def serve_links(
    host: str,
    port: int,
    identity: Identity,
    accept: Accept,
    *,
    times: LinkTimes = DEFAULT_TIMES,
    budget_bytes: int = 64 << 20,
    raw_items: bool = True,
    limits: DoorLimits | None = None,
) -> LinkServer:
    """Listen. Port 0 takes a free one (``server.port``). ``budget_bytes`` bounds the memory of frames of all links.

    Raises OSError when the address cannot be bound.
    """
    limits = limits or DoorLimits(times.handshake_seconds, times.handshake_seconds)
    server = LinkServer(
        accept, times, ReceiveBudget(budget_bytes), raw_items=raw_items, limits=limits, denied=identity.denied
    )
    await server.start(host, port, identity.server_context())
    return server
