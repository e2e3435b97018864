"""Serving block devices by NBD to its usual clients: qemu, nbdcopy, nbdfuse, the kernel (fixed newstyle handshake).

One :class:`NbdServer` has one listening socket and one thread a connection, so that a client which never reads holds one
thread and one request, not more. What a connection may see is asked when it names an export (``find``), with the certificate
that it showed. With a TLS context nothing but the upgrade is answered before it. Structured replies, block status
(``base:allocation``), trims and writing zeroes are spoken; a read-only export refuses what writes.

The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from failback.block.nbd_options import Client, Find, Negotiation, receive
from failback.errors import FailbackError, OutOfSpaceError
from failback.runtime import logs

log = logs.get(__name__)

_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_REQUEST_MAGIC, _SIMPLE_MAGIC, _CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _CACHE, _ZERO, _STATUS = range(8)
_DONE = 1
_CHUNK_NONE, _CHUNK_DATA, _CHUNK_STATUS, _CHUNK_ERROR = 0, 1, 5, 0x8001
_REQ_ONE = 1 << 3
_HOLE = 3
"""NBD_STATE_HOLE and NBD_STATE_ZERO."""
MAXIMUM_REQUEST_BYTES = 32 << 20
_STATUS_BYTES = 1 << 30
_STATUS_EXTENTS = 4096
MOST_CONNECTIONS = 16
HANDSHAKE_SECONDS = 10.0
ENDING_SECONDS = 20.0
STALLED_SECONDS = 60.0
"""A client that asked and does not take the answer for so long is cut."""


class NbdServer:
    """Serves from the constructor on, until :meth:`close`."""

    def __init__(self, listener: socket.socket, find: Find, names: Callable[[], Sequence[str]],
                 tls: Callable[[], ssl.SSLContext] | None = None) -> None:  # fmt: skip
        """``names``: what a client without TLS is told that there is; one with TLS has to know the name."""
        self._listener = listener
        self._find = find
        self._names = names
        self._tls = tls
        self._lock = threading.Condition()
        self._connections: dict[socket.socket, str] = {}
        """The name of the export that each one uses; empty during the handshake."""
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="nbd listener", daemon=True)
        self._thread.start()

    def connections(self, name: str) -> int:
        """How many use the export now."""
        with self._lock:
            return sum(used == name for used in self._connections.values())

    def end(self, name: str) -> None:
        """Cut the connections to the export and wait until nobody uses its device any more."""
        with self._lock:
            for connection, used in self._connections.items():
                if used == name:
                    _cut(connection)
            if not self._lock.wait_for(lambda: name not in self._connections.values(), ENDING_SECONDS):
                log.warning("a client of a view is still being answered", export=name)

    def close(self) -> None:
        """Nothing is served after it. May be repeated."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                _cut(connection)
            self._lock.wait_for(lambda: not self._connections, ENDING_SECONDS)

    # --- connections ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed or len(self._connections) >= MOST_CONNECTIONS:
                    connection.close()
                    continue
                self._connections[connection] = ""
            threading.Thread(target=self._serve, args=(connection,), name="nbd client", daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        connection = raw
        try:
            deadline = threading.Timer(
                HANDSHAKE_SECONDS, _cut, (raw,)
            )  # for all of it: a byte now and then buys no time
            deadline.daemon = True
            deadline.start()
            try:
                negotiation = Negotiation(raw, self._find, self._names, self._tls, MAXIMUM_REQUEST_BYTES)
                client = negotiation.run()
                connection = negotiation.connection
            finally:
                deadline.cancel()
            if client is None:
                return
            with self._lock:
                self._connections[raw] = client.export.name
            connection.settimeout(None)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(STALLED_SECONDS), 0))
            _Session(connection, client).run()
        except (OSError, EOFError, struct.error) as error:
            log.debug("an NBD client went", reason=str(error))
        finally:
            with self._lock:
                self._connections.pop(raw, None)
                self._lock.notify_all()
            connection.close()
            raw.close()


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class _Request:
    flags: int
    kind: int
    handle: int
    offset: int
    length: int


class _Failed(Exception):
    """What the client is told: an NBD error number and a sentence."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.number = number


class _Session:
    """One connection after the handshake: requests one after the other."""

    def __init__(self, connection: socket.socket, client: Client) -> None:
        self._connection = connection
        self._client = client
        self._device = client.export.device
        self._writable = client.export.writable

    def run(self) -> None:
        while True:
            magic, flags, kind, handle, offset, length = _REQUEST.unpack(receive(self._connection, _REQUEST.size))
            request = _Request(flags, kind, handle, offset, length)
            if magic != _REQUEST_MAGIC or kind == _DISCONNECT:
                return
            data = b""
            if kind == _WRITE:
                if length > MAXIMUM_REQUEST_BYTES:
                    return  # what follows cannot be told from requests
                data = receive(self._connection, length)
            try:
                self._execute(request, data)
            except _Failed as error:
                self._fail(request, error.number, str(error))
            except OutOfSpaceError as error:
                self._fail(request, errno.ENOSPC, error.message)
            except FailbackError as error:
                log.warning("an NBD request failed", export=self._client.export.name, reason=error.message)
                self._fail(request, errno.EIO, error.message)

    def _execute(self, request: _Request, data: bytes) -> None:
        if request.kind in (_WRITE, _TRIM, _ZERO) and not self._writable:
            raise _Failed(errno.EPERM, "the export is read-only")
        if request.offset + request.length > self._device.size_bytes:
            raise _Failed(errno.ENOSPC if request.kind == _WRITE else errno.EINVAL, "behind the end of the export")
        if request.kind == _READ:
            self._read(request)
        elif request.kind == _STATUS:
            self._block_status(request)
        else:
            self._change(request, data)
            self._reply(request)

    def _change(self, request: _Request, data: bytes) -> None:
        if request.kind == _WRITE:
            self._device.write(request.offset, data)
        elif request.kind == _TRIM:
            self._device.discard(request.offset, request.length)
        elif request.kind == _ZERO:
            self._device.zero(request.offset, request.length)
        elif request.kind == _FLUSH:
            self._device.flush()
        elif request.kind != _CACHE:
            raise _Failed(errno.EINVAL, "an unknown command")

    def _read(self, request: _Request) -> None:
        if request.length > MAXIMUM_REQUEST_BYTES:
            raise _Failed(errno.EOVERFLOW, "the request is too large")
        buffer = bytearray(request.length)
        self._device.read_into(request.offset, memoryview(buffer))
        if self._client.structured:
            head = _CHUNK.pack(_CHUNK_MAGIC, _DONE, _CHUNK_DATA, request.handle, request.length + 8)
            self._send(head + struct.pack(">Q", request.offset), buffer)
        else:
            self._send(_SIMPLE.pack(_SIMPLE_MAGIC, 0, request.handle), buffer)

    def _block_status(self, request: _Request) -> None:
        context = self._client.allocation_context
        if not context or not request.length:
            raise _Failed(errno.EINVAL, "no metadata context was negotiated")
        extents = self._extents(request)
        body = struct.pack(">I", context) + b"".join(struct.pack(">II", *extent) for extent in extents)
        head = _CHUNK.pack(_CHUNK_MAGIC, _DONE, _CHUNK_STATUS, request.handle, len(body))
        self._send(head, body)

    def _extents(self, request: _Request) -> list[tuple[int, int]]:
        """(length, flags), at least one, of as much of the range as is told at once."""
        length = min(request.length, _STATUS_BYTES)
        extents: list[tuple[int, int]] = []
        most = 1 if request.flags & _REQ_ONE else _STATUS_EXTENTS
        at = request.offset
        for offset, count in self._device.data_ranges(request.offset, length):
            if offset > at:
                extents.append((offset - at, _HOLE))
            if extents and extents[-1][1] == 0:
                extents[-1] = (extents[-1][0] + count, 0)
            else:
                extents.append((count, 0))
            at = offset + count
            if len(extents) > most:
                break
        else:
            if at < request.offset + length:
                extents.append((request.offset + length - at, _HOLE))
        return extents[:most]

    def _reply(self, request: _Request) -> None:
        if self._client.structured:
            self._send(_CHUNK.pack(_CHUNK_MAGIC, _DONE, _CHUNK_NONE, request.handle, 0))
        else:
            self._send(_SIMPLE.pack(_SIMPLE_MAGIC, 0, request.handle))

    def _fail(self, request: _Request, number: int, sentence: str) -> None:
        if not self._client.structured:
            self._send(_SIMPLE.pack(_SIMPLE_MAGIC, number, request.handle))
            return
        text = sentence.encode()[:1000]
        body = struct.pack(">IH", number, len(text)) + text
        self._send(_CHUNK.pack(_CHUNK_MAGIC, _DONE, _CHUNK_ERROR, request.handle, len(body)), body)

    def _send(self, head: bytes, body: bytes | bytearray = b"") -> None:
        if len(body) < 65536:
            self._connection.sendall(head + body)
        else:
            self._connection.sendall(head)
            self._connection.sendall(body)
