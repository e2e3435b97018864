"""An agent of its own process, for tests that kill it: ``capture_consumer.py DEVICE REPLICA PINS RING_BYTES LAG_BYTES``.

Applies at once and releases late, so that a kill leaves records applied but not released; a re-read is durable once applied
and synced. Ends when a line "stop" arrives on standard input and everything was applied. Prints what it did as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from pathlib import Path

from capture_disk import Follower, Replica, disk_of

from failback.mobility.capture.session import CaptureSession
from failback.mobility.capture.values import Reread


def main() -> None:
    device, replica_path, pins, ring_bytes, lag_bytes = sys.argv[1:6]
    session = CaptureSession.open([disk_of(device)], ring_bytes=int(ring_bytes), pin_directory=Path(pins))
    began = session.cursor()
    backlog = session.produced_position() - began
    print(json.dumps({"reattached": session.reattached, "backlog": backlog}), flush=True)
    release = session.release
    ends: deque[int] = deque()

    def release_late(position: int) -> None:
        ends.append(position)
        while len(ends) > 1 and ends[0] <= position - int(lag_bytes):
            release(ends.popleft())

    durable = session.reread_durable

    def durable_after_release(reread: Reread) -> None:
        ends.clear()
        release(session.cursor())  # records before p0 must not come again on top of what was read
        durable(reread)

    session.release = release_late  # type: ignore[method-assign]
    session.reread_durable = durable_after_release  # type: ignore[method-assign]
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    replica = Replica(Path(replica_path))
    Follower(session, replica, limit=1 << 20).follow_until(stop)
    release(session.cursor())
    print(
        json.dumps(
            {"rereads": replica.rereads, "healed": session.counters().healed, "drops": session.counters().drops}
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
