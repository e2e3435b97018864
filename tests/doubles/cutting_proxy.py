"""A TCP proxy that misbehaves when it is told to: cuts, stalls, half-closes, refuses, and cuts in the middle of a frame.

It runs in the test's event loop; the parts on both sides are real processes. ``faults`` counts what was done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

_READ_BYTES = 1 << 18


class CuttingProxy:
    """Forwards ``port`` (chosen at ``start``) to ``target_port`` on this machine."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.faults: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._flow = asyncio.Event()
        self._flow.set()
        self._refusing = False
        self._cut_after_bytes = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_READ_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        self._flow.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what it does to links --------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Both ends get a reset."""
        self.faults["cut"] += bool(self._writers)
        for writer in list(self._writers):
            writer.transport.abort()

    def cut_within(self, number_of_bytes: int) -> None:
        """Cut after so many more bytes: mostly in the middle of a frame."""
        self._cut_after_bytes = max(1, number_of_bytes)

    def half_close(self) -> None:
        """The side that is served hears the end of the stream, the other one nothing yet."""
        self.faults["half-close"] += bool(self._writers)
        for writer in list(self._writers):
            with contextlib.suppress(OSError, RuntimeError):
                writer.write_eof()

    async def stall(self, seconds: float) -> None:
        """Nothing moves, and no connection ends."""
        self.faults["stall"] += 1
        self._flow.clear()
        await asyncio.sleep(seconds)
        self._flow.set()

    async def refuse(self, seconds: float) -> None:
        """Connections are cut and none is made for a while."""
        self.faults["refuse"] += 1
        self._refusing = True
        self.cut()
        await asyncio.sleep(seconds)
        self._refusing = False

    # --- forwarding -------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, RuntimeError, asyncio.CancelledError):  # RuntimeError: one half was closed on purpose
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port, limit=_READ_BYTES)
        pair = (writer, far_writer)
        self._writers.update(pair)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers.difference_update(pair)
            for each in pair:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            await self._flow.wait()
            if self._cut_after_bytes:
                data, left = data[: self._cut_after_bytes], self._cut_after_bytes - len(data)
                self._cut_after_bytes = max(left, 0)
                if left <= 0:
                    writer.write(data)
                    self.faults["cut in a frame"] += 1
                    raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()
