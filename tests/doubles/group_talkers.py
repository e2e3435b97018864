"""Programs that pass numbers to each other over TCP, each number on the sender's disk before it is told: a test's workload.

``sender DEVICE OFFSET PORT`` and ``receiver DEVICE OFFSET PORT``: the sender writes n durably at the offset, tells n and waits
until it is answered; the receiver writes what it was told durably, and answers. So at any moment the receiver knows no
number that the sender's disk does not hold.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
import time

BLOCK_BYTES = 4096


class Number:
    """One number on a disk, written past every cache."""

    def __init__(self, device: str, offset: int) -> None:
        self._fd = os.open(device, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
        self._offset = offset
        self._buffer = mmap.mmap(-1, BLOCK_BYTES)

    def write(self, value: int) -> None:
        self._buffer[:] = struct.pack("<Q", value) * (BLOCK_BYTES // 8)
        os.pwrite(self._fd, self._buffer, self._offset)


def exactly(connection: socket.socket) -> int:
    content = b""
    while len(content) < 8:
        chunk = connection.recv(8 - len(content))
        if not chunk:
            sys.exit(0)
        content += chunk
    return int(struct.unpack("<Q", content)[0])


def sender(number: Number, port: int) -> None:
    connection = None
    while connection is None:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(0.05)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    value = 0
    while True:
        value += 1
        number.write(value)
        connection.sendall(struct.pack("<Q", value))
        exactly(connection)


def receiver(number: Number, port: int) -> None:
    listening = socket.create_server(("127.0.0.1", port))
    connection, _ = listening.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        value = exactly(connection)
        number.write(value)
        connection.sendall(struct.pack("<Q", value))


if __name__ == "__main__":
    kind, device, offset, port = sys.argv[1:]
    {"sender": sender, "receiver": receiver}[kind](Number(device, int(offset)), int(port))
