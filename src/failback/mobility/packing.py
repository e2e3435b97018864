"""Between the pump and the link: batches are compressed beside the pump, and leave in the order in which they were made.

``put`` takes an item that is complete but for its payload's encoding, and waits while several are under way; ``run`` hands them
to the link one after the other. So reading the disk, compressing and encrypting go on at once, each on another processor.
An item that dies here with the process was never sent: its ring range was not released and its blocks are still pending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from failback.mobility.config import Compression
from failback.mobility.payload import encode
from failback.model.stream import Codec
from failback.protocol.messages import Batch, Digests

THREADS = 2
MOST_PACKING = 3
"""Items waiting behind the one that is being handed to the link."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a batch's payload is made of. ``packed`` is called (in the event loop) when the views are no longer needed."""

    views: Sequence[memoryview | bytes]
    total_bytes: int
    packed: Callable[[Batch], None]


@dataclass(frozen=True, slots=True)
class _Waiting:
    item: Batch | Digests
    parts: Parts | None
    encoding: asyncio.Future[tuple[Codec, bytes]] | None
    sent: Callable[[], None] | None


class Packing:
    """``send`` is the link's: it waits while the link has no room."""

    def __init__(self, send: Callable[[Batch | Digests], Awaitable[None]], compression: Compression) -> None:
        self._send = send
        self._compression = compression
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(MOST_PACKING)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="compressing")

    async def put(
        self, item: Batch | Digests, parts: Parts | None = None, sent: Callable[[], None] | None = None
    ) -> None:
        """``sent`` is called when the link has taken the item."""
        encoding = None
        if parts is not None:
            loop = asyncio.get_running_loop()
            encoding = loop.run_in_executor(
                self._threads, encode, parts.views, parts.total_bytes, self._compression
            )  # fmt: skip
        await self._queue.put(_Waiting(item, parts, encoding, sent))

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                waiting = await self._queue.get()
                item = waiting.item
                if waiting.encoding is not None and waiting.parts is not None and isinstance(item, Batch):
                    codec, payload = await waiting.encoding
                    item = replace(item, codec=codec, payload=payload)
                    waiting.parts.packed(item)
                await self._send(item)
                if waiting.sent is not None:
                    waiting.sent()
                del waiting, item  # waiting for the next one must not keep this one in memory
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
