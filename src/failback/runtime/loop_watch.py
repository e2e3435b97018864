"""Says when the event loop stands still, and where: a blocked loop sends no heartbeat and answers nobody.

A thread looks every second whether the loop has moved. When it has not for ``LONGEST_SECONDS`` the stack of the loop's
thread is logged once, and the length of the pause when it is over; a whole machine that stood still (a paused guest, a
starved host) is told apart, because then this thread did not run either. Nothing is ever interrupted.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from failback.runtime import logs

log = logs.get(__name__)

LOOK_EVERY_SECONDS = 1.0
LONGEST_SECONDS = 5.0
_FRAMES = 12


class _Watch:
    def __init__(self, longest_seconds: float, look_every_seconds: float) -> None:
        self._longest = longest_seconds
        self._look_every = look_every_seconds
        self._moved = time.monotonic()
        self._looked = self._moved
        self._told = False
        self._thread_id = threading.get_ident()
        self._stopping = threading.Event()

    def move(self) -> None:
        now = time.monotonic()
        if self._told:
            log.warning("the event loop goes on", stood_seconds=round(now - self._moved, 1))
            self._told = False
        self._moved = now

    def run(self) -> None:
        while not self._stopping.wait(self._look_every):
            now = time.monotonic()
            alone = now - self._looked < self._longest  # else nothing ran here: not the loop's doing
            self._looked = now
            if not alone:
                log.warning("this machine stood still, or is starved of processor time")
            elif now - self._moved > self._longest and not self._told:
                self._told = True
                log.error("the event loop stands still", stood_seconds=round(now - self._moved, 1), at=self._stack())

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread_id)
        if frame is None:
            return ""
        return " < ".join(
            f"{entry.filename.rpartition('/')[2]}:{entry.lineno} {entry.name}"
            for entry in reversed(traceback.extract_stack(frame)[-_FRAMES:])
        )

    def stop(self) -> None:
        self._stopping.set()


@asynccontextmanager
async def watched(
    longest_seconds: float = LONGEST_SECONDS, look_every_seconds: float = LOOK_EVERY_SECONDS
) -> AsyncIterator[None]:
    """Watch the running loop for the time of the context."""
    watch = _Watch(longest_seconds, look_every_seconds)

    async def moving() -> None:
        while True:
            watch.move()
            await asyncio.sleep(look_every_seconds)

    task = asyncio.create_task(moving(), name="loop watch")
    thread = threading.Thread(target=watch.run, name="loop watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        task.cancel()
        watch.stop()
