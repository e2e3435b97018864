"""A role's own metrics on a loopback port: ``GET /metrics``, plain HTTP, nothing else.

Figures tell what a company writes and when, so they do not leave the machine unprotected: an address that is not
loopback is refused. From elsewhere the configuration server answers for all components, over TLS and with a token
(docs/decisions/0019). Small on purpose: one request a connection, bounded in size, time and number.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable

from failback.errors import ConfigurationError
from failback.runtime import logs
from failback.runtime.metrics import CONTENT_TYPE, Sample, render

log = logs.get(__name__)

LONGEST_REQUEST_SECONDS = 5.0
LARGEST_REQUEST_BYTES = 8 << 10
MOST_CONNECTIONS = 8


def parse_listen(text: str) -> tuple[str, int]:
    """``127.0.0.1:9187`` or ``[::1]:9187``. Raises ConfigurationError (also for an address that others can reach)."""
    host, _, port = text.rpartition(":")
    try:
        address, number = ipaddress.ip_address(host.strip("[]")), int(port)
    except ValueError:
        raise ConfigurationError(
            f"metrics_listen: {text!r} is not ADDRESS:PORT", remedy='write metrics_listen = "127.0.0.1:9187"'
        ) from None
    if not address.is_loopback or not 0 <= number < 65536:
        raise ConfigurationError(
            f"metrics_listen: {text!r} could be read by others: only a loopback address is served",
            remedy="scrape https://CONFIGURATION-SERVER/metrics with its metrics token, or put a proxy with TLS before it",
        )
    return str(address), number


class Exposition:
    """``samples`` is called in the event loop for each scrape and must not block."""

    def __init__(self, samples: Callable[[], Iterable[Sample]]) -> None:
        self._samples = samples
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self, listen: str) -> None:
        """An empty ``listen``: no endpoint. Raises ConfigurationError."""
        if not listen:
            return
        host, port = parse_listen(listen)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=LARGEST_REQUEST_BYTES)
        except OSError as error:
            raise ConfigurationError(
                f"metrics_listen: cannot listen on {listen}: {error.strerror}", remedy="choose a free port"
            ) from error
        log.info("metrics", listen=f"{host}:{self.port}")

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MOST_CONNECTIONS:
                async with asyncio.timeout(LONGEST_REQUEST_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("a scrape was not finished")
        finally:
            self._connections -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split()
        if len(words) != 3 or words[0] != b"GET":
            return _response("405 Method Not Allowed", "GET /metrics\n")
        if words[1].split(b"?", 1)[0] != b"/metrics":
            return _response("404 Not Found", "GET /metrics\n")
        return _response("200 OK", render(self._samples()))


def _response(status: str, text: str) -> bytes:
    body = text.encode("utf-8")
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
