"""In-process wake-ups by key (a component id, an item id, ``ANY``).

The database is the truth; a wake-up only says "look again". Waiters of several event loops and threads may
share one :class:`News`. A subscription begins before its owner reads, so nothing falls between reading and waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from failback.configuration_server.database.items import ItemRow

ANY = "*"
"""Key that every announcement wakes."""


class Subscription:
    """Wakes one waiter; made by :meth:`News.subscribe`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, closed: bool) -> None:
        self._loop = loop
        self._event = asyncio.Event()
        self.closed = closed

    def wake(self, closed: bool) -> None:
        """From any thread."""
        self.closed = self.closed or closed
        with contextlib.suppress(RuntimeError):  # the waiter's loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_seconds: float) -> bool:
        """True when something was announced since the last call (or the subscription's start); False after the time."""
        if self.closed:
            return True
        try:
            async with asyncio.timeout(max(0.0, timeout_seconds)):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class News:
    """The board. ``close`` wakes everybody for good (shutdown)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, set[Subscription]] = {}
        self._closed = False

    @contextmanager
    def subscribe(self, *keys: str) -> Iterator[Subscription]:
        subscription = Subscription(asyncio.get_running_loop(), self._closed)
        with self._lock:
            for key in keys:
                self._waiting.setdefault(key, set()).add(subscription)
        try:
            yield subscription
        finally:
            with self._lock:
                for key in keys:
                    waiters = self._waiting.get(key, set())
                    waiters.discard(subscription)
                    if not waiters:
                        self._waiting.pop(key, None)

    def announce(self, *keys: str | None) -> None:
        """Wake those who wait for any of the keys. From any thread; None is skipped."""
        with self._lock:
            woken = {one for key in (*keys, ANY) if key for one in self._waiting.get(key, ())}
        for subscription in woken:
            subscription.wake(False)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            woken = {one for waiters in self._waiting.values() for one in waiters}
        for subscription in woken:
            subscription.wake(True)


def announce_item(news: News, item: ItemRow) -> None:
    """After an item changed: its agent, process server and master target are told now."""
    news.announce(item.item_id, item.machine_id, item.process_server_id, item.master_target_id)
