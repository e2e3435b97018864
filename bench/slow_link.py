"""A link of a given rate: ``slow_link.py LISTEN_PORT TARGET_PORT MEGABITS`` relays TCP through a token bucket, until killed.

Only what goes to the target is counted and held back, as nbdkit's rate filter does for the peer. The bucket holds 0.1 s.
"""

import socket
import sys
import threading
import time

CHUNK_BYTES = 256 << 10
BURST_SECONDS = 0.1


class Bucket:
    def __init__(self, bytes_a_second: float) -> None:
        self._rate = bytes_a_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def take(self, count: int) -> None:
        """Wait until so many bytes may pass."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() - BURST_SECONDS) + count / self._rate
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


def relay(source: socket.socket, target: socket.socket, bucket: Bucket | None) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    try:
        while count := source.recv_into(buffer):
            if bucket is not None:
                bucket.take(count)
            target.sendall(buffer[:count])
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


def main() -> None:
    listen_port, target_port, megabits = map(int, sys.argv[1:])
    bucket = Bucket(megabits * 1e6 / 8)
    with socket.create_server(("127.0.0.1", listen_port)) as server:
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", target_port))
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for ends in ((near, far, bucket), (far, near, None)):
                threading.Thread(target=relay, args=ends, daemon=True).start()


if __name__ == "__main__":
    main()
