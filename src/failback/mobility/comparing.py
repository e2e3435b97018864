"""The running pass of a stream: hashing beside it, digests for it, answers from it (D8, D12).

``run`` hashes what the pass asks for in threads of its own and hands the results over through a queue of two, never further
ahead. Everything else is called by the stream's pump. What to compare and how far it is, is decided in ``passes``. Of a block
that differs only the pieces that differ are sent, where the master target told their digests; else the block becomes dirty,
and the ordinary rounds of re-reading send it whole.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from failback.errors import ConflictError, NotSupportedError
from failback.mobility.capture.source import Source
from failback.mobility.capture.values import Differing, Reread
from failback.mobility.discards import Discards
from failback.mobility.hashing import BlockHasher, Hashed
from failback.mobility.memory import MemoryFile
from failback.mobility.passes import PIECE_BYTES, Chunk, SyncPass, has_pieces
from failback.mobility.resuming import Call
from failback.mobility.scrubbing import PAUSE_SECONDS, ScrubPass
from failback.model.components import MobilityAssignment, ScrubStatus, SourceDisk, SyncMode, SyncProgress
from failback.model.stream import BLOCK_BYTES
from failback.protocol.messages import PIECE_DIGESTS, DigestReply, Digests, Welcome, digest_key
from failback.runtime import logs

log = logs.get(__name__)

MEMORY_SECONDS = 1.0
HASHING_THREADS = 3
"""Each reads and hashes one chunk: while one waits for the disk, another computes."""


class Comparing:
    """``current`` is the open pass, None when there is none. ``settled``: no write from before the pass is in flight any more,
    so that hashing may begin."""

    def __init__(self, session: Source, memory: MemoryFile, assignment: MobilityAssignment,
                 devices: Mapping[int, str], *, call: Call, wake: Callable[[], None]) -> None:  # fmt: skip
        self.current: SyncPass | None = None
        self.settled = False
        self.hashed: asyncio.Queue[Hashed] = asyncio.Queue(2)
        self.progress_before: tuple[SyncProgress, ...] = ()
        self._session = session
        self._memory = memory
        self._assignment = assignment
        self._devices = devices
        self._call = call
        self._wake = wake
        self._hash_wake = asyncio.Event()
        self._key = secrets.randbits(63)
        self._remembered_at = 0.0
        self._piece_bytes = 0
        self.scrub_before: ScrubStatus | None = None
        self._discards = Discards(memory.directory / "discards.json")

    def greeted(self, welcome: Welcome) -> None:
        """What the process server can relay decides what is asked for."""
        self._piece_bytes = PIECE_BYTES if PIECE_DIGESTS in welcome.features else 0

    def progress(self) -> tuple[SyncProgress, ...]:
        current = self.current
        return current.progress(False) if current is not None and not current.background else self.progress_before

    @property
    def holding(self) -> bool:
        """Whether a pass is open that others have to wait for: not a scrub."""
        return self.current is not None and not self.current.background

    # --- scrubbing --------------------------------------------------------------------------------------------------

    def scrub(self, scrub: ScrubPass) -> None:
        """Begin, unless this one runs. Raises ConflictError while a pass or another scrub is open."""
        if self.current is not None and self.current.pass_id != scrub.pass_id:
            raise ConflictError("the disks are being compared already", code="ComparisonRunning", retryable=True,
                                remedy="wait until that is over")  # fmt: skip
        if not self._piece_bytes:
            raise NotSupportedError("a server on the way to the replica cannot relay what a scrub asks for",
                                    remedy="upgrade the process server and the master target")  # fmt: skip
        if self.current is None:
            self.current = scrub
            self.settled = True  # what differs is read again after every older write (D8)
            self._hash_wake.set()
            log.info("scrub begins", scrub_id=scrub.pass_id)

    def scrub_status(self) -> ScrubStatus | None:
        return self.current.status("running") if isinstance(self.current, ScrubPass) else self.scrub_before

    def batch(self, extents: bytes, sent: Sequence[Differing], in_gap: bool) -> None:
        """A batch with these extents is about to go out; ``sent``: what differed and was read again in it."""
        if isinstance(self.current, ScrubPass):
            known = self.current.repaired_bytes
            self.current.batch(extents, sent, in_gap, time.time_ns(), self._discards.touch)
            if self.current.repaired_bytes > known:
                log.error("the replica was wrong and is repaired", scrub_id=self.current.pass_id,
                          bytes=self.current.repaired_bytes - known)  # fmt: skip
        self._discards.take(extents)
        self._discards.save(time.monotonic())

    def end_scrub(self, state: str) -> None:
        if isinstance(self.current, ScrubPass):
            self.scrub_before = self.current.status(state, time.time_ns())
            self.current = None
            log.info("scrub ended", scrub_id=self.scrub_before.scrub_id, state=state,
                     repaired_bytes=self.scrub_before.repaired_bytes)  # fmt: skip

    # --- for the pump -----------------------------------------------------------------------------------------------

    async def start(self, modes: Sequence[tuple[SourceDisk, SyncMode]], begin_at: dict[int, int]) -> None:
        """Open the pass; what has to be read at once is dirty then."""
        journal = self._memory.value.incarnation or self._memory.value.newest_incarnation
        if journal:
            self._key = digest_key(journal)  # so that remembered digests can answer
        self.current = SyncPass(self._assignment.pass_id, modes, begin_at)
        self.settled = False
        for disk, mode in modes:
            if mode is SyncMode.COMPARE:
                # a re-read of one block proves that no write from before the attachment is still in flight (D8)
                await self._call(self._session.mark_dirty, disk.index, 0, 1)
            elif mode is SyncMode.FULL and disk.index not in self._memory.value.full_marked:
                first = disk.sync_from_bytes // BLOCK_BYTES
                count = -(-disk.size_bytes // BLOCK_BYTES) - first
                await self._call(self._session.mark_dirty, disk.index, first, count)
                self._memory.update(full_marked=(*self._memory.value.full_marked, disk.index))
        dirty = await self._call(self._session.dirty_blocks)
        self.settled = dirty == 0
        self._hash_wake.set()
        log.info("pass begins", pass_id=self._assignment.pass_id, dirty_blocks=dirty,
                 disks=",".join(f"{disk.index}:{mode.value}" for disk, mode in modes))  # fmt: skip

    async def start_over(self) -> None:
        """Writes of unknown extent were missed: compare every disk from the beginning, once those are no more in flight."""
        self._memory.update(compare_all=True, compared_blocks={})
        self.end_scrub("interrupted")
        modes = [(disk, SyncMode.COMPARE) for disk in self._assignment.disks]
        self.current = SyncPass(self._assignment.pass_id, modes)
        self.settled = False
        for disk in self._assignment.disks:
            await self._call(self._session.mark_dirty, disk.index, 0, 1)  # its re-read is the proof (D8)

    def reread(self, reread: Reread) -> None:
        """A round of re-reading went into the stream."""
        if not self.settled:
            self.settled = True
            self._hash_wake.set()
        if self.current is not None:
            self.current.reread(reread.blocks, reread.extents)
            self._hash_wake.set()

    def spooled(self, rereads: Sequence[Reread]) -> None:
        """Rounds of re-reading are durable at the process server."""
        if self.current is not None:
            for reread in rereads:
                self.current.spooled(reread.compared)

    def landed(self, sequence: int) -> None:
        if self.current is not None:
            self.current.landed(sequence, time.monotonic())
            self._hash_wake.set()

    def again(self) -> None:
        """Compare every disk (anew): nothing else tells what was written (``periodic``)."""
        self.current = SyncPass(self._assignment.pass_id, [(disk, SyncMode.COMPARE) for disk in self._assignment.disks])
        self.settled = True
        self._hash_wake.set()

    def finish(self, *, consistent: bool = True) -> None:
        assert self.current is not None
        if self.current.background:
            self.end_scrub("finished")
            return
        self.progress_before = self.current.progress(True)
        self.current = None
        self._session.forget_buffers()
        pass_id = self._assignment.pass_id
        self._memory.update(pass_done=bool(pass_id), compare_all=False, compared_blocks={})
        log.info("pass is over: the replica is consistent" if consistent else "comparison is over: the machine wrote meanwhile",
                 pass_id=pass_id)  # fmt: skip

    async def take_reply(self, reply: DigestReply) -> Chunk | None:
        """Take up what differs. Returns the chunk that is answered; None for an answer that nobody waits for."""
        chunk = self.current.answered(reply, self._key) if self.current is not None else None
        if self.current is None or chunk is None:
            return None
        if self.current.background:
            self._hash_wake.set()
            return chunk
        if any(reply.differing) and not has_pieces(reply):
            await self._call(self._session.mark_dirty, chunk.disk_index, chunk.first_block, reply.differing)
        now = time.monotonic()
        if now - self._remembered_at > MEMORY_SECONDS:
            self._remembered_at = now
            compared = {str(index): block for index, block in self.current.resume_blocks().items()}
            self._memory.update(compared_blocks=compared)
        self._hash_wake.set()
        return chunk

    async def digests(self, hashed: Hashed, sequence: int, position: int) -> Digests | None:
        """The item for what was hashed; None when it was hashed for a pass that another one replaced."""
        if self.current is None or not self.current.owns(hashed.chunk):
            return None
        for block in () if self.current.background else hashed.unreadable:
            await self._call(self._session.mark_dirty, hashed.chunk.disk_index, block, 1)
        self.current.sent(sequence, hashed.chunk)
        return Digests(
            machine_id=self._assignment.machine_id, epoch=self._assignment.epoch, sequence=sequence, position=position,
            pass_id=self._assignment.pass_id, disk_index=hashed.chunk.disk_index, block_bytes=BLOCK_BYTES,
            first_block=hashed.chunk.first_block, key=self._key, digests=hashed.digests, piece_bytes=self._piece_bytes,
            remembered=not self.current.background,
        )  # fmt: skip

    # --- hashing ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        with ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="hashing") as threads:
            tasks = [asyncio.ensure_future(self._hash(threads)) for _ in range(HASHING_THREADS)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _hash_news(self, seconds: float | None) -> None:
        """Wait for something to hash, at most so long."""
        waiting = asyncio.ensure_future(self._hash_wake.wait())
        try:
            await asyncio.wait([waiting], timeout=seconds)
        finally:
            waiting.cancel()

    async def _hash(self, threads: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        readers: dict[int, BlockHasher] = {}
        sizes = {disk.index: disk.size_bytes for disk in self._assignment.disks}
        running: asyncio.Future[Hashed] | None = None
        try:
            while True:
                self._hash_wake.clear()
                current = self.current
                chunk = current.next_chunk(time.monotonic()) if current is not None and self.settled else None
                if chunk is None:
                    await self._hash_news(PAUSE_SECONDS if current is not None and current.background else None)
                    continue
                if chunk.disk_index not in readers:
                    index = chunk.disk_index
                    readers[index] = BlockHasher(self._devices[index], sizes[index], self._key)
                running = loop.run_in_executor(threads, readers[chunk.disk_index].hash_chunk, chunk)
                hashed = await asyncio.shield(running)
                if current is self.current:
                    await self.hashed.put(hashed)
                    self._wake()
        finally:
            if running is not None:  # a cancelled wait does not stop the thread, and it uses the reader
                await asyncio.wait([running])
            for reader in readers.values():
                reader.close()
