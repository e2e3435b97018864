"""The handshake of an NBD server: options until the client chose an export, TLS first where it is asked for.

After ``run`` the socket to go on with is :attr:`Negotiation.connection` (wrapped when TLS began). A client that sends
what cannot be is left alone: the connection ends. The caller bounds the time of the whole.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from failback.block.device import BlockDevice

_GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 0b11)
"""Fixed newstyle, no zeroes."""
_OPTION = struct.Struct(">8sII")
_REPLY = struct.Struct(">QIII")
_REPLY_MAGIC = 0x0003E889045565A9
_EXPORT_NAME, _ABORT, _LIST, _STARTTLS, _INFO, _GO, _STRUCTURED, _LIST_META, _SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10
_ACK, _SERVER, _INFORMATION, _META = 1, 2, 3, 4
_UNSUPPORTED, _POLICY, _INVALID, _UNKNOWN, _TLS_REQUIRED = (1 << 31 | number for number in (1, 2, 3, 6, 5))
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_HAS_FLAGS, _READ_ONLY, _FLUSH, _FUA, _TRIM, _ZEROES, _DF, _MULTI = (1 << bit for bit in (0, 1, 2, 3, 5, 6, 7, 8))
_MOST_OPTION_BYTES = 65536
_MOST_OPTIONS = 64
_CONTEXT = b"base:allocation"
_CONTEXT_ID = 1


@dataclass(frozen=True, slots=True)
class Export:
    name: str
    device: BlockDevice
    writable: bool


Find = Callable[[str, str], Export | None]
"""Export by name, for the common name of the client's certificate (empty without TLS); None: there is none for it."""


@dataclass(frozen=True, slots=True)
class Client:
    """What was agreed on. ``allocation_context`` 0: block status was not asked for."""

    export: Export
    structured: bool
    allocation_context: int


class Negotiation:
    def __init__(
        self, connection: socket.socket, find: Find, names: Callable[[], Sequence[str]],
        tls: Callable[[], ssl.SSLContext] | None, most_bytes: int,
    ) -> None:  # fmt: skip
        self.connection = connection
        self._find = find
        self._names = names
        self._tls = tls
        self._most_bytes = most_bytes
        self._secure = tls is None
        self._peer = ""
        self._structured = False
        self._context = 0
        self._zeroes = True

    def run(self) -> Client | None:
        """None when the client only looked, or may not go on. Raises OSError, EOFError."""
        self.connection.sendall(_GREETING)
        (flags,) = struct.unpack(">I", receive(self.connection, 4))
        if flags & ~0b11 or not flags & 1:
            return None
        self._zeroes = not flags & 2
        for _ in range(_MOST_OPTIONS):
            magic, option, length = _OPTION.unpack(receive(self.connection, _OPTION.size))
            if magic != b"IHAVEOPT" or length > _MOST_OPTION_BYTES:
                return None
            data = receive(self.connection, length)
            if option == _ABORT:
                self._reply(option, _ACK)
                return None
            if option == _EXPORT_NAME:
                return self._old_way(data)
            if not self._secure and option != _STARTTLS:
                self._reply(option, _TLS_REQUIRED, b"TLS first")
                continue
            client = self._take(option, data)
            if client is not None:
                return client
        return None

    def _take(self, option: int, data: bytes) -> Client | None:
        """Answer one option; the client when it was the last."""
        try:
            if option == _STARTTLS:
                self._start_tls(data)
            elif option in (_INFO, _GO):
                return self._export(option, data)
            elif option == _STRUCTURED:
                self._structured = True
                self._reply(option, _ACK)
            elif option in (_LIST_META, _SET_META):
                self._meta(option, data)
            elif option == _LIST:
                for name in self._names() if self._tls is None else ():
                    self._reply(option, _SERVER, struct.pack(">I", len(name)) + name.encode())
                self._reply(option, _ACK)
            else:
                self._reply(option, _UNSUPPORTED)
        except (struct.error, UnicodeDecodeError):
            self._reply(option, _INVALID, b"the option cannot be read")
        return None

    def _start_tls(self, data: bytes) -> None:
        if self._tls is None or self._secure or data:
            self._reply(_STARTTLS, _INVALID if data else _POLICY)
            return
        self._reply(_STARTTLS, _ACK)
        self.connection = self._tls().wrap_socket(self.connection.dup(), server_side=True)  # the caller keeps its own
        certificate: Any = self.connection.getpeercert() or {}
        names = {name: value for parts in certificate.get("subject", ()) for name, value in parts}
        self._peer = str(names.get("commonName", ""))
        self._secure = True
        self._structured, self._context = False, 0  # what was agreed in the clear does not count

    def _old_way(self, data: bytes) -> Client | None:
        """NBD_OPT_EXPORT_NAME has no way to refuse but to end the connection."""
        export = self._find(data.decode("utf-8", "replace"), self._peer) if self._secure else None
        if export is None:
            return None
        answer = struct.pack(">QH", export.device.size_bytes, _flags(export, self._structured))
        self.connection.sendall(answer + (bytes(124) if self._zeroes else b""))
        return Client(export, self._structured, self._context)

    def _export(self, option: int, data: bytes) -> Client | None:
        (length,) = struct.unpack_from(">I", data)
        name = data[4 : 4 + length].decode()
        (count,) = struct.unpack_from(">H", data, 4 + length)
        if len(data) != 6 + length + 2 * count:
            raise struct.error("lengths do not fit")
        export = self._find(name, self._peer)
        if export is None:
            self._reply(option, _UNKNOWN, b"there is no such export")
            return None
        facts = struct.pack(">HQH", _INFO_EXPORT, export.device.size_bytes, _flags(export, self._structured))
        self._reply(option, _INFORMATION, facts)
        self._reply(option, _INFORMATION, struct.pack(">HIII", _INFO_BLOCK_SIZE, 1, 4096, self._most_bytes))
        self._reply(option, _ACK)
        return Client(export, self._structured, self._context) if option == _GO else None

    def _meta(self, option: int, data: bytes) -> None:
        if not self._structured:
            self._reply(option, _INVALID, b"structured replies first")
            return
        (length,) = struct.unpack_from(">I", data)
        name = data[4 : 4 + length].decode()
        if self._find(name, self._peer) is None:
            self._reply(option, _UNKNOWN, b"there is no such export")
            return
        at = 4 + length
        (count,) = struct.unpack_from(">I", data, at)
        at += 4
        queries = []
        for _ in range(min(count, _MOST_OPTION_BYTES)):
            (size,) = struct.unpack_from(">I", data, at)
            queries.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        wanted = (not queries and option == _LIST_META) or any(
            query == _CONTEXT or (query == b"base:" and option == _LIST_META) for query in queries
        )
        if option == _SET_META:
            self._context = _CONTEXT_ID if wanted else 0
        if wanted:
            self._reply(option, _META, struct.pack(">I", _CONTEXT_ID) + _CONTEXT)
        self._reply(option, _ACK)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self.connection.sendall(_REPLY.pack(_REPLY_MAGIC, option, kind, len(data)) + data)


def _flags(export: Export, structured: bool) -> int:
    flags = _HAS_FLAGS | _FLUSH | _FUA | _MULTI
    if structured:
        flags |= _DF
    return flags | (_TRIM | _ZEROES if export.writable else _READ_ONLY)


def receive(connection: socket.socket, length: int) -> bytes:
    """Exactly so many bytes. Raises EOFError when the client went."""
    buffer = bytearray(length)
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise EOFError("the client closed the connection")
        view = view[count:]
    return bytes(buffer)
