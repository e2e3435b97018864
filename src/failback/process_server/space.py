"""The bound on all spools together: who wants to append reserves first and waits while there is no room.

Waiting is the back-pressure: the intake of that machine reads nothing more, the agent's ring fills, nothing is lost. What
is reserved counts until the append is over; afterwards the spools' own sizes count. Served in order of arrival.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from failback.runtime import logs

log = logs.get(__name__)


class SpoolSpace:
    """``stored`` gives the bytes that all spools hold on disk now."""

    def __init__(self, limit_bytes: int, stored: Callable[[], int]) -> None:
        self.limit_bytes = limit_bytes
        self._stored = stored
        self._reserved = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used_bytes(self) -> int:
        return self._stored() + self._reserved

    @property
    def is_full(self) -> bool:
        """Somebody waits for room."""
        return bool(self._waiting)

    @asynccontextmanager
    async def reserved(self, count: int) -> AsyncIterator[None]:
        """Room for ``count`` bytes while the body appends them. More than the limit passes when nothing is stored."""
        await self._reserve(count)
        try:
            yield
        finally:
            self._reserved -= count
            self.look()

    def look(self) -> None:
        """Call after something was freed: lets those go on who have room now."""
        while self._waiting and self._fits(self._waiting[0][0]):
            count, waiter = self._waiting.popleft()
            if not waiter.done():
                self._reserved += count
                waiter.set_result(None)

    async def _reserve(self, count: int) -> None:
        if not self._waiting and self._fits(count):
            self._reserved += count
            return
        log.warning("the spool is full: an agent waits", limit_bytes=self.limit_bytes, wanted_bytes=count)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._reserved -= count
            else:
                self._waiting.remove((count, waiter))
            self.look()
            raise

    def _fits(self, count: int) -> bool:
        used = self.used_bytes
        return used == 0 or used + count <= self.limit_bytes


def free_bytes(directory: Path, space: SpoolSpace) -> int:
    """What may still be spooled: the rest of the limit, or less when the file system has less."""
    facts = os.statvfs(directory)
    return max(0, min(space.limit_bytes - space.used_bytes, facts.f_bavail * facts.f_frsize))
