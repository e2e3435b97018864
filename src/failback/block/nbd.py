"""A small synchronous NBD client over a unix socket: newstyle negotiation, simple replies, one request at a time.

Protocol: the NBD project's doc/proto.md. Used for qcow2 through qemu-storage-daemon (:mod:`failback.block.qcow2`).
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from failback.block.device import Buffer, check_range
from failback.errors import StorageError

_OPTION_MAGIC = b"IHAVEOPT"
_OPTION_GO = 7
_REPLY_ACK, _REPLY_INFO = 1, 3
_READ, _WRITE, _FLUSH, _WRITE_ZEROES = 0, 1, 3, 6
_HAS_WRITE_ZEROES = 1 << 6
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_MAXIMUM_REQUEST_BYTES = 16 << 20
_MAXIMUM_ZERO_BYTES = 1 << 30


class NbdDevice:
    """One connection; calls from several threads take turns."""

    def __init__(self, path: Path, export: str) -> None:
        self._name = f"nbd+unix:{path}"
        self._lock = threading.Lock()
        self._handle = 0
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
            self._size_bytes, self._flags = self._negotiate(export.encode())
        except OSError as error:
            self._socket.close()
            raise StorageError(f"{self._name}: {error}", retryable=True) from error

    def _negotiate(self, export: bytes) -> tuple[int, int]:
        magic, option_magic, _flags = struct.unpack(">8s8sH", self._receive(18))
        if magic != b"NBDMAGIC" or option_magic != _OPTION_MAGIC:
            raise StorageError(f"{self._name} does not speak NBD")
        self._socket.sendall(struct.pack(">I", 3))
        body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self._socket.sendall(_OPTION_MAGIC + struct.pack(">II", _OPTION_GO, len(body)) + body)
        size_bytes = flags = -1
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._receive(20))
            data = self._receive(length)
            if kind == _REPLY_ACK:
                return size_bytes, flags
            if kind & 0x80000000:
                raise StorageError(f"{self._name}: the server refuses the export: {data.decode('utf-8', 'replace')}")
            if kind == _REPLY_INFO and struct.unpack(">H", data[:2])[0] == 0:
                size_bytes, flags = struct.unpack(">QH", data[2:12])

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(self._size_bytes, offset, len(buffer), self._name)
        for start in range(0, len(buffer), _MAXIMUM_REQUEST_BYTES):
            part = buffer[start : start + _MAXIMUM_REQUEST_BYTES]
            self._call(_READ, offset + start, len(part), into=part)

    def write(self, offset: int, data: Buffer) -> None:
        check_range(self._size_bytes, offset, len(data), self._name)
        view = memoryview(data)
        for start in range(0, len(view), _MAXIMUM_REQUEST_BYTES):
            part = view[start : start + _MAXIMUM_REQUEST_BYTES]
            self._call(_WRITE, offset + start, len(part), data=part)

    def zero(self, offset: int, length: int) -> None:
        check_range(self._size_bytes, offset, length, self._name)
        if self._flags & _HAS_WRITE_ZEROES:
            self._ranged(_WRITE_ZEROES, offset, length)
            return
        zeroes = bytes(1 << 20)
        for start in range(offset, offset + length, len(zeroes)):
            self.write(start, memoryview(zeroes)[: min(len(zeroes), offset + length - start)])

    def discard(self, offset: int, length: int) -> None:
        """Zeroes, as BLKZEROOUT on a block device: a trim leaves the old content in parts of a cluster (D17)."""
        self.zero(offset, length)

    def _ranged(self, command: int, offset: int, length: int) -> None:
        for start in range(offset, offset + length, _MAXIMUM_ZERO_BYTES):
            self._call(command, start, min(_MAXIMUM_ZERO_BYTES, offset + length - start))

    def flush(self) -> None:
        self._call(_FLUSH, 0, 0)

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        check_range(self._size_bytes, offset, length, self._name)
        if length:
            yield offset, length

    def close(self) -> None:
        self._socket.close()

    def _call(self, command: int, offset: int, length: int, *, data: memoryview | None = None,
              into: memoryview | None = None) -> None:  # fmt: skip
        with self._lock:
            self._handle += 1
            try:
                self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, command, self._handle, offset, length))
                if data is not None:
                    self._socket.sendall(data)
                magic, number, handle = _REPLY.unpack(self._receive(_REPLY.size))
                if magic != _REPLY_MAGIC or handle != self._handle:
                    raise StorageError(f"{self._name}: the server broke the NBD protocol")
                if number == 0 and into is not None:
                    self._receive_into(into)
            except OSError as error:
                raise StorageError(f"{self._name}: {error}", retryable=True) from error
        if number:
            raise StorageError(f"{self._name}: the server reports error {number} at offset {offset}")

    def _receive(self, length: int) -> bytes:
        buffer = bytearray(length)
        self._receive_into(memoryview(buffer))
        return bytes(buffer)

    def _receive_into(self, view: memoryview) -> None:
        while len(view):
            count = self._socket.recv_into(view)
            if count == 0:
                raise ConnectionResetError("the NBD server closed the connection")
            view = view[count:]
