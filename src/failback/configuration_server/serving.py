"""HTTPS for the application: one port, client certificates optional, graceful stop under our own lifecycle.

The client certificate's identity and the connection's round trip are put into each request's ASGI scope; a certificate that
is not of our CA ends the handshake, none at all is fine (the ARM API uses bearer tokens instead).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from failback.configuration_server.enrolment.bootstrap import Installation
from failback.configuration_server.enrolment.routes import PEER, ROUND_TRIP
from failback.errors import AuthenticationError, ConfigurationError
from failback.runtime import logs
from failback.transport.door import Door, DoorLimits, Visitor
from failback.transport.identity import PeerIdentity, peer_identity

log = logs.get(__name__)

KEEP_ALIVE_SECONDS = 75
GRACE_SECONDS = 2
"""For requests that run at a stop; long polls end at once, and a peer that does not close is not waited for longer."""
RENEWAL_LOOK_SECONDS = 12 * 3600.0
FIRST_REQUEST_SECONDS = 30.0
"""For the first request's head to be there: a connection that says nothing must not hold a place for ever."""
_TCP_INFO_RTT_OFFSET = 68
"""Of ``tcpi_rtt`` (microseconds, 32 bits) in Linux's ``struct tcp_info``."""


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP protocol, telling the application who is on the other end of the TLS connection."""

    visitor: Visitor
    """Until the first request's head has come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        application = self.app
        peer = _peer(transport)

        async def told(scope: Any, receive: Any, send: Any) -> None:
            self.visitor.greeted()
            scope[PEER] = peer
            scope[ROUND_TRIP] = round_trip_seconds(transport.get_extra_info("socket"))
            await application(scope, receive, send)

        self.app = told
        self.loop.call_later(FIRST_REQUEST_SECONDS, self._close_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.visitor.left()

    def _close_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()


def _peer(transport: asyncio.Transport) -> PeerIdentity | None:
    connection = transport.get_extra_info("ssl_object")
    if connection is None or not connection.getpeercert():
        return None
    try:
        return peer_identity(connection)
    except AuthenticationError:
        return None


def round_trip_seconds(connection: Any) -> float:
    """The kernel's smoothed round trip of a TCP connection; 0 where it does not say."""
    if connection is None:
        return 0.0
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    except OSError:
        return 0.0
    if len(info) < _TCP_INFO_RTT_OFFSET + 4:
        return 0.0
    [microseconds] = struct.unpack_from("=I", info, _TCP_INFO_RTT_OFFSET)
    return float(microseconds) / 1e6


class _Server(uvicorn.Server):
    """Leaves signals to :mod:`failback.runtime.service`, and connections come in through a :class:`Door`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        await self.lifespan.startup()
        context = self.config.ssl
        assert context is not None
        door = Door(self._protocol, context, DoorLimits(greeting_seconds=FIRST_REQUEST_SECONDS))
        door.listen(sockets)
        self.servers = [door]  # type: ignore[list-item]  # closed and waited for like asyncio's
        self.started = True

    def _protocol(self, visitor: Visitor) -> PeerProtocol:
        protocol = PeerProtocol(self.config, self.server_state, self.lifespan.state)
        protocol.visitor = visitor
        return protocol


def tls_context(installation: Installation) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(installation.certificate_path, installation.key_path)
    context.load_verify_locations(installation.authority.ca_path)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def bind(host: str, port: int) -> socket.socket:
    """The listening socket. Raises ConfigurationError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            possible_causes="another program has the port, or this user may not use it",
            remedy="choose another listen_port, or stop the other program",
        ) from error
    return listening


async def keep_certificate(installation: Installation, addresses: tuple[str, ...], context: ssl.SSLContext) -> None:
    """Until cancelled: renew this server's certificate in time, for new connections; a year without a restart is fine."""
    while True:
        await asyncio.sleep(RENEWAL_LOOK_SECONDS)
        directory = installation.certificate_path.parent
        try:
            pair = await asyncio.to_thread(
                installation.authority.issue_server, directory, installation.component_id, addresses
            )
            context.load_cert_chain(*pair)
        except OSError as error:  # ssl.SSLError is one
            log.error("the server's certificate cannot be renewed", directory=directory, reason=str(error))


def server_for(application: Any, installation: Installation, context: ssl.SSLContext | None = None) -> uvicorn.Server:
    """``context`` is :func:`tls_context`'s, for who wants to renew its certificate."""
    context = context or tls_context(installation)
    config = uvicorn.Config(
        application,
        http=PeerProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_context_factory=lambda _config, _default: context,
    )
    return _Server(config)


def describe(state_directory: Path, listening: socket.socket) -> Path:
    """Write ``listening.json``: where this server listens, for tools on the same machine."""
    import json

    host, port = listening.getsockname()[:2]
    path = state_directory / "listening.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"host": host, "port": port}), encoding="utf-8")
    partial.replace(path)
    return path
