"""When a scrub begins: on an order, or by itself when the last comparison of the disks is long ago.

``scrub_every_hours`` and ``scrub_megabytes_per_second`` of the configuration; 0 hours: only on an order. A scrub that was
interrupted (a new epoch, a restart, writes that were missed) begins anew when the next look finds the stream quiet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from failback.errors import ConflictError, FailbackError
from failback.mobility.config import MobilityConfig
from failback.mobility.memory import MemoryFile
from failback.mobility.stream import Stream
from failback.model.components import Order
from failback.model.ids import new_id
from failback.model.orders import Scrub
from failback.runtime import logs, records

log = logs.get(__name__)

LOOK_SECONDS = 30.0


class Scrubs:
    """``running`` gives the stream, or None while there is none."""

    def __init__(self, config: MobilityConfig, memory: MemoryFile, running: Callable[[], Stream | None]) -> None:
        self._every_seconds = config.scrub_every_hours * 3600
        self._rate = config.scrub_megabytes_per_second * 1e6
        self._memory = memory
        self._running = running

    async def order(self, order: Order, progress: Callable[[int, int], None]) -> dict[str, Any]:
        arguments = records.decode(order.arguments, Scrub, "scrub")
        stream = self._running()
        if stream is None:
            raise ConflictError("this machine is not being captured now", code="NotCapturing", retryable=True,
                                remedy="see the item's health")  # fmt: skip
        known = stream.scrub_status()
        if known is None or known.scrub_id != arguments.scrub_id:
            stream.scrub(arguments.scrub_id, arguments.bytes_per_second or self._rate)
        return {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            stream = self._running()
            if stream is not None and not stream.comparing and stream.comparison is None:
                self._look(stream)

    def _look(self, stream: Stream) -> None:
        status, compared_at = stream.scrub_status(), self._memory.value.compared_at
        if status is not None and status.state == "running":
            return
        finished_at = status.finished_wall_ns / 1e9 if status is not None and status.state == "finished" else 0.0
        if finished_at > compared_at or not compared_at:
            compared_at = finished_at or time.time()  # a stream begins with a comparison: that counts
            self._memory.update(compared_at=compared_at)
        if self._every_seconds and abs(time.time() - compared_at) >= self._every_seconds:
            try:
                stream.scrub(new_id(), self._rate)
            except FailbackError as error:
                log.info("a scrub is due and cannot begin", reason=error.message)
