"""The running stream of one epoch: ring and disks in, items out, acknowledgements back to the ring (D1 to D12).

One coroutine (``_pump``) does everything that has an order: it takes what the links reported, then makes the next item, and
again. All use of the capture session goes through its own thread. Hashing for a comparison runs beside it in another
thread and hands its results over through a queue of two. The rules are pure and elsewhere: ``gaps`` (may this end be a
point), ``passes`` (what to compare), ``outstanding`` (what to release), ``assemble`` (what goes into a batch).

A stream object serves one (session, epoch). After a change of either a new one is made on a re-opened session: what was sent and
not spooled is then collected from the ring again under the same sequence numbers (D11).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from failback import __version__
from failback.errors import FailbackError, FreezeError
from failback.mobility import assemble, gaps, passes
from failback.mobility.capture.session import CaptureSession
from failback.mobility.config import Compression
from failback.mobility.hashing import BlockHasher, Hashed
from failback.mobility.lag import LagHistogram
from failback.mobility.marks import Mark, Placed
from failback.mobility.memory import MemoryFile
from failback.mobility.outstanding import (
    MOST_UNLANDED_ITEMS,
    Landed,
    Outstanding,
    Sent,
    generation_of,
    interval_seconds,
    spool_differs,
    spool_lost,
)
from failback.mobility.passes import SyncPass
from failback.mobility.settling import settle
from failback.model.components import LagFigures, MobilityAssignment, Role, SourceDisk, SyncMode, SyncProgress
from failback.model.ids import NO_GROUP, GroupId, MarkId
from failback.model.stream import BLOCK_BYTES, GapCause, MarkKind
from failback.protocol.connection import journal_replaced
from failback.protocol.layout import VERSION
from failback.protocol.messages import Ack, Batch, DigestReply, Digests, Hello, StreamDisk, Welcome
from failback.runtime import logs
from failback.transport.identity import Identity
from failback.transport.sender import HeldItems, StreamSender

log = logs.get(__name__)
T = TypeVar("T")

POLL_SECONDS = 0.02
KEEPALIVE_SECONDS = 10.0
"""An idle machine sends an empty batch so often: its newest point stays young."""
REREAD_BLOCKS = 128
MOST_REREADS = 3
"""Rounds sent and not yet durable at the process server."""
REREAD_PAUSE_SECONDS = 0.5
MEMORY_SECONDS = 1.0


@dataclass(slots=True)
class _News:
    """What the link reported since the pump last looked."""

    acks: deque[tuple[Ack, int]] = field(default_factory=deque)
    replies: deque[DigestReply] = field(default_factory=deque)


class Stream:
    """See the module. ``run`` until cancelled; raises what makes going on impossible."""

    def __init__(self, session: CaptureSession, thread: ThreadPoolExecutor, assignment: MobilityAssignment, *,
                 devices: dict[int, str], identity: Identity, memory: MemoryFile, compression: Compression,
                 window_bytes: int, changed: Callable[[], None]) -> None:  # fmt: skip
        assert assignment.process_server is not None
        self.assignment = assignment
        self.lag = LagHistogram()
        self.bytes_changed = 0
        self.backlog_bytes = 0
        stored = memory.value
        self.pass_done = stored.pass_done and (stored.epoch, stored.pass_id) == (assignment.epoch, assignment.pass_id)
        self.problem = ""
        self._session = session
        self._thread = thread
        self._devices = devices
        self._memory = memory
        self._compression = compression
        self._window_bytes = window_bytes
        self._changed = changed
        self._news = _News()
        self._wake = asyncio.Event()
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._items = HeldItems(self._hello, limit_bytes=window_bytes, on_welcome=self._on_welcome, on_ack=self._on_ack,
                                on_digest_reply=self._on_reply, on_refused=self._on_refused)  # fmt: skip
        self._sender = StreamSender(
            assignment.process_server, identity, self._items, expect=Role.PROCESS_SERVER, window_bytes=window_bytes
        )
        self._outstanding = Outstanding(0, 0)
        self._gaps = gaps.GapRule(gaps.NOTHING)
        self._counters = gaps.NOTHING
        self._gap = GapCause.NONE
        self._pass: SyncPass | None = None
        self._key = secrets.randbits(63)
        self._hashed: asyncio.Queue[Hashed] = asyncio.Queue(2)
        self._hash_wake = asyncio.Event()
        self._settled = False
        self._base = 0
        self._dirty = 0
        self._open_rereads = 0
        self._open_blocks = 0
        self._reread_after = 0.0
        self._batch_wanted = False
        self._closed_at = time.monotonic()
        self._remembered_at = 0.0
        self._marks: deque[Mark] = deque()
        self._progress: tuple[SyncProgress, ...] = ()
        self._landed_ring = 0
        self._begun = self._ended = False
        self._diverged: FailbackError | None = None
        self._divergence = asyncio.Event()
        self._sent_before = 0

    # --- what others see --------------------------------------------------------------------------------------------

    @property
    def linked(self) -> bool:
        return self._sender.linked

    @property
    def bytes_sent(self) -> int:
        return self._sent_before + self._sender.sent_bytes

    def carry_on(self, earlier: Stream) -> None:
        """Go on with the figures of an earlier stream of the same epoch."""
        if earlier.assignment.epoch == self.assignment.epoch:
            self.lag, self.bytes_changed = earlier.lag, earlier.bytes_changed
            self._sent_before = earlier.bytes_sent
            self._progress = earlier.progress()

    @property
    def sent_sequence(self) -> int:
        return self._outstanding.next_sequence - 1

    @property
    def spooled_sequence(self) -> int:
        return self._outstanding.spooled_sequence

    @property
    def landed_sequence(self) -> int:
        return self._outstanding.landed_sequence

    @property
    def landed_ring(self) -> int:
        return self._landed_ring

    @property
    def gap(self) -> str:
        return "" if self._gap is GapCause.NONE else self._gap.name.lower()

    def figures(self) -> LagFigures | None:
        return self.lag.figures()

    def progress(self) -> tuple[SyncProgress, ...]:
        return self._pass.progress(False) if self._pass is not None else self._progress

    async def mark(self, kind: MarkKind, mark_id: MarkId, check: Callable[[], None]) -> Placed:
        """Put a mark where the image is consistent: waits for open gaps to close, tries again if one opened under it.

        ``check`` is called before each try and raises when waiting has become pointless (limit, lost freeze).
        """
        while True:
            self._check(check)
            if self._gap is not GapCause.NONE or self._pass is not None or self._dirty:
                await asyncio.sleep(POLL_SECONDS)
                continue
            placed: asyncio.Future[Placed] = asyncio.get_running_loop().create_future()
            self._marks.append(Mark(kind, mark_id, secrets.randbits(31) + 1, check, placed))
            self._wake.set()
            try:
                while not placed.done():
                    self._check(check)
                    await asyncio.wait([placed], timeout=POLL_SECONDS)
            finally:
                placed.cancel()  # no effect on one that is placed
            if placed.result().gap is GapCause.NONE:
                return placed.result()

    async def landed(self, sequence: int, check: Callable[[], None]) -> None:
        """Wait until the item landed; ``check`` as in :meth:`mark`."""
        while self._outstanding.landed_sequence < sequence:
            self._check(check)
            await asyncio.sleep(POLL_SECONDS)

    def _check(self, check: Callable[[], None]) -> None:
        check()
        if self._ended:
            raise FreezeError("the stream ended under the mark", remedy="try again", retryable=True)

    # --- the link's side --------------------------------------------------------------------------------------------

    def _hello(self) -> Hello:
        assignment = self.assignment
        return Hello(
            machine_id=assignment.machine_id, epoch=assignment.epoch, software=f"failback {__version__}",
            lowest_version=VERSION, highest_version=VERSION,
            disks=tuple(StreamDisk(disk.disk_id, disk.index, disk.size_bytes) for disk in assignment.disks),
            incarnation=self._known_incarnation(), landed_sequence=self._outstanding.landed_sequence,
            next_sequence=self._outstanding.spooled_sequence + 1 if self._welcome.done() else 1,
        )  # fmt: skip

    def _known_incarnation(self) -> str:
        """Of the journal in which this epoch's items landed until now (D7)."""
        return self._memory.value.incarnation if self._memory.value.epoch == self.assignment.epoch else ""

    async def _on_welcome(self, welcome: Welcome) -> None:
        known = self._known_incarnation()
        if known and welcome.incarnation and welcome.incarnation != known:
            raise journal_replaced(known, welcome.incarnation)
        self.problem = ""
        if not self._welcome.done():
            self._welcome.set_result(welcome)
            return
        if self._begun and self._outstanding.contradicts(welcome.spooled_sequence, welcome.spooled_ring - self._base):
            self._diverged = spool_differs(welcome.spooled_sequence)
            self._memory.update(others_spooled=True)
            self._divergence.set()
            raise self._diverged
        ack = Ack(welcome.epoch, welcome.spooled_sequence, welcome.spooled_ring, welcome.landed_sequence,
                  welcome.landed_ring, welcome.incarnation)  # fmt: skip
        await self._on_ack(ack)
        self._changed()

    async def _on_ack(self, ack: Ack) -> None:
        self._news.acks.append((ack, time.monotonic_ns()))
        self._wake.set()

    async def _on_reply(self, reply: DigestReply) -> None:
        self._news.replies.append(reply)
        self._wake.set()

    def _on_refused(self, error: FailbackError) -> None:
        self.problem = "" if error.retryable else f"{error.code}: {error.message}"
        if error.code in ("JournalReplaced", "RedoDamaged"):
            self._memory.update(compare_all=True, compared_blocks={})
        self._changed()

    # --- running ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sender.run(), name="sender")
                tasks.create_task(self._pump(), name="pump")
                tasks.create_task(self._hash(), name="hashing")
                await self._divergence.wait()  # the pump may be waiting for room that nothing will make
                assert self._diverged is not None
                raise self._diverged
        finally:
            self._ended = True

    async def _call(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _pump(self) -> None:
        await self._begin(await self._welcome)
        while True:
            self._wake.clear()
            await self._take_news()
            if await self._make_item():
                continue
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _begin(self, welcome: Welcome) -> None:
        """Find the place to go on from (D11) and what the assignment asks for beyond changes (D6, D8)."""
        session, memory, assignment = self._session, self._memory, self.assignment
        fresh = memory.value.ring_id != session.ring_id  # also when an earlier process made the ring and died
        cause = GapCause.NONE
        known = memory.value.epoch == assignment.epoch
        # what is held there is no prefix of this ring: send all of it (D6)
        others = known and memory.value.others_spooled
        if not known or others:
            resend = await self._call(session.mark_unlanded_dirty)
            cause = GapCause.RESEND if resend or others else cause
            log.info("blocks that had not landed are read again", blocks=resend)
        if others:  # until a consistent place landed: what is sent again passes places that the replica left behind
            memory.update(position_base=welcome.spooled_ring - session.cursor())
        if not known:
            memory.update(epoch=assignment.epoch, pass_id="", pass_done=False, incarnation=welcome.incarnation,
                          position_base=welcome.spooled_ring - session.cursor(), full_marked=(), compared_blocks={},
                          others_spooled=False)  # fmt: skip
        elif fresh:
            memory.update(position_base=welcome.spooled_ring - session.cursor(), full_marked=(), compared_blocks={})
        self._base = memory.value.position_base
        position = welcome.spooled_ring - self._base
        if position < session.cursor():  # the unlanded map stays as it is: a new epoch reads those blocks again (D6)
            raise spool_lost(welcome.spooled_sequence)
        await self._call(assemble.skip, session, position)
        self._outstanding = Outstanding(welcome.spooled_sequence, welcome.landed_sequence, position)
        self._landed_ring = welcome.landed_ring
        if welcome.landed_sequence:
            low = generation_of(welcome.spooled_sequence + 1)
            await self._call(session.clear_unlanded_generations, low, generation_of(welcome.landed_sequence))
        missed = await self._call(session.missed)
        if missed:
            log.error("the capture missed writes of unknown extent: every disk is compared", runs=missed)
            memory.update(compare_all=True, compared_blocks={})
            await self._call(session.acknowledge_missed, missed)
        self._counters = await self._call(session.counters)
        self._dirty = await self._call(session.dirty_blocks)
        produced = session.produced_position()
        if self._dirty and cause is GapCause.NONE:
            cause = GapCause.OVERFLOW
        await self._begin_pass(fresh)
        self._gap = GapCause.SYNC if self._pass is not None and self._pass.disks else cause
        self._gaps = gaps.GapRule(
            self._counters, cause=self._gap, consistent_from=produced if self._gap is not GapCause.NONE else 0
        )
        log.info("stream begins", epoch=assignment.epoch, sequence=self._outstanding.next_sequence, fresh_ring=fresh,
                 position=session.cursor(), dirty_blocks=self._dirty, comparing=self._pass is not None)  # fmt: skip
        self._begun = True
        self._changed()

    async def _begin_pass(self, fresh: bool) -> None:
        """Start the assignment's pass unless it is done; compare everything where nothing can be known (D11)."""
        memory, assignment = self._memory, self.assignment
        stored = memory.value
        same = stored.pass_id == assignment.pass_id
        decided = passes.decide(
            assignment, done=same and stored.pass_done, fresh_ring=fresh, compare_all=stored.compare_all,
            sent_before=self._outstanding.spooled_sequence > 0,
        )  # fmt: skip
        self.pass_done = decided.done
        begin_at = {int(index): block for index, block in stored.compared_blocks.items()} if same and not fresh else {}
        # a new epoch may come without this pass before it is over: what only comparing tells stays due
        comparing = decided.start and any(mode is SyncMode.COMPARE for _, mode in decided.modes)
        memory.update(compare_all=decided.compare_all or comparing, ring_id=self._session.ring_id)
        if not same:
            memory.update(pass_id=assignment.pass_id, pass_done=False, compared_blocks={}, full_marked=())
        if decided.start:
            await self._start_pass(decided.modes, begin_at)

    async def _start_pass(self, modes: Sequence[tuple[SourceDisk, SyncMode]], begin_at: dict[int, int]) -> None:
        self._pass = SyncPass(self.assignment.pass_id, modes, begin_at)
        self._settled = False
        for disk, mode in modes:
            if mode is SyncMode.COMPARE:
                # a re-read of one block proves that no write from before the attachment is still in flight (D8)
                await self._call(self._session.mark_dirty, disk.index, 0, 1)
            elif mode is SyncMode.FULL and disk.index not in self._memory.value.full_marked:
                await self._call(self._session.mark_all_dirty, disk.index)
                marked = (*self._memory.value.full_marked, disk.index)
                self._memory.update(full_marked=marked)
        self._dirty = await self._call(self._session.dirty_blocks)
        self._settled = self._dirty == 0
        self._hash_wake.set()
        log.info("pass begins", pass_id=self.assignment.pass_id, dirty_blocks=self._dirty,
                 disks=",".join(f"{disk.index}:{mode.value}" for disk, mode in modes))  # fmt: skip

    # --- acknowledgements and answers -------------------------------------------------------------------------------

    async def _take_news(self) -> None:
        news = self._news
        if self._diverged is not None:  # whatever is released is what the process server really holds: begin anew
            raise self._diverged
        while news.acks:
            ack, now_ns = news.acks.popleft()
            if ack.epoch != self.assignment.epoch:
                continue
            if ack.incarnation:
                self._memory.update(incarnation=ack.incarnation)
            self._landed_ring = max(self._landed_ring, ack.landed_ring)
            spooled = self._outstanding.spooled(ack.spooled_sequence)
            landed = self._outstanding.landed(ack.landed_sequence)
            if spooled is not None or landed is not None:
                await self._call(settle, self._session, spooled, landed)
            if spooled is not None and spooled.rereads:
                self._open_rereads -= len(spooled.rereads)
                self._open_blocks -= sum(len(reread.blocks) for reread in spooled.rereads)
                self._dirty = await self._call(self._session.dirty_blocks)
            if landed is not None:
                self._note_landed(landed, now_ns)
        while news.replies:
            await self._take_reply(news.replies.popleft())

    def _note_landed(self, landed: Landed, now_ns: int) -> None:
        for item in landed.items:
            if item.captured_bytes and item.oldest_ktime_ns:
                self.lag.landed(
                    (now_ns - item.oldest_ktime_ns) / 1e6, (now_ns - item.newest_ktime_ns) / 1e6, item.captured_bytes
                )
            if item.consistent:
                self._memory.update(others_spooled=False)
            if item.consistent and self._pass is not None and self._pass.read:
                self._finish_pass()
        if self._pass is not None:
            self._pass.landed(self._outstanding.landed_sequence, time.monotonic())
            self._hash_wake.set()

    def _finish_pass(self) -> None:
        assert self._pass is not None
        self._progress = self._pass.progress(True)
        self._pass = None
        self.pass_done = bool(self.assignment.pass_id)
        self._memory.update(pass_done=self.pass_done, compare_all=False, compared_blocks={})
        log.info("pass is over: the replica is consistent", pass_id=self.assignment.pass_id)
        self._changed()

    async def _take_reply(self, reply: DigestReply) -> None:
        if self._pass is None:
            return
        chunk = self._pass.answered(reply)
        if chunk is None:
            return
        if any(reply.differing):
            await self._call(self._session.mark_dirty, chunk.disk_index, chunk.first_block, reply.differing)
            self._dirty = max(1, self._dirty)
        if self._pass.read:
            self._gaps.consistent_from = self._session.produced_position()
            self._batch_wanted = True
            log.info("every block is compared", pass_id=self.assignment.pass_id)
        now = time.monotonic()
        if now - self._remembered_at > MEMORY_SECONDS:
            self._remembered_at = now
            compared = {str(index): block for index, block in self._pass.resume_blocks().items()}
            self._memory.update(compared_blocks=compared)
        self._hash_wake.set()

    # --- making items -----------------------------------------------------------------------------------------------

    async def _make_item(self) -> bool:
        """Make and hand over the next item if one is due. Returns whether one was made."""
        outstanding = self._outstanding
        if outstanding.unspooled_bytes >= self._window_bytes or outstanding.unlanded_items >= MOST_UNLANDED_ITEMS:
            return False
        if self._marks:
            await self._mark_batch(self._marks.popleft())
            return True
        waiting = self._session.produced_position() - self._session.cursor()
        self.backlog_bytes = waiting + outstanding.unspooled_bytes
        now = time.monotonic()
        dirty = self._dirty > self._open_blocks and self._open_rereads < MOST_REREADS
        reread = dirty and now >= self._reread_after
        if reread and waiting <= 2 * self.assignment.batch_bytes:
            return await self._batch(reread_blocks=REREAD_BLOCKS)
        hashed = not self._hashed.empty()
        due = waiting >= self.assignment.batch_bytes or self._batch_due(waiting, now - self._closed_at)
        if due or (hashed and waiting):
            await self._batch()
        if hashed:
            await self._digests(self._hashed.get_nowait())
        return due or hashed

    def _batch_due(self, waiting: int, elapsed: float) -> bool:
        if elapsed < interval_seconds(self.assignment.batch_milliseconds, self._outstanding.unlanded_items):
            return False
        closing = self._gap is not GapCause.NONE and not self._dirty and (self._pass is None or self._pass.read)
        return waiting > 0 or closing or self._batch_wanted or elapsed >= KEEPALIVE_SECONDS

    async def _batch(self, *, reread_blocks: int = 0, up_to: int | None = None, mark: Mark | None = None) -> bool:
        wanted = assemble.Wanted(
            sequence=self._outstanding.next_sequence, limit_bytes=self.assignment.batch_bytes,
            reread_blocks=reread_blocks, up_to=up_to,
        )  # fmt: skip
        content = await self._call(assemble.assemble, self._session, wanted, self._compression)
        if content.refused:
            self._reread_after = time.monotonic() + REREAD_PAUSE_SECONDS
        self._note_counters(content)
        pass_open = self._pass is not None and self._pass.holds_back(content.dirty_blocks)
        gap = self._gaps.decide(content.counters, dirty_blocks=content.dirty_blocks, pass_open=pass_open,
                                end_position=content.end_position)  # fmt: skip
        await self._send_batch(content, gap, mark)
        return True

    def _note_counters(self, content: assemble.Assembled) -> None:
        """Take over what the assembly saw; writes of unknown extent ask for a comparison of everything."""
        missed = gaps.comparison_needed(self._counters, content.counters)
        self.bytes_changed += content.captured_bytes
        self._counters = content.counters
        self._dirty = content.dirty_blocks
        self._closed_at = time.monotonic()
        self._batch_wanted = False
        if content.reread is not None:
            self._open_rereads += 1
            self._open_blocks += len(content.reread.blocks)
            if not self._settled:
                self._settled = True
                self._hash_wake.set()
            if self._pass is not None:
                self._pass.reread(content.reread.blocks, content.reread.extents)
        if missed:
            log.error("the capture missed writes of unknown extent: every disk is compared")
            self._memory.update(compare_all=True, compared_blocks={})
            self._session.acknowledge_missed(self._session.missed())
            modes = [(disk, SyncMode.COMPARE) for disk in self.assignment.disks]
            self._pass = SyncPass(self.assignment.pass_id, modes)
            self._hash_wake.set()

    async def _send_batch(self, content: assemble.Assembled, gap: GapCause, mark: Mark | None) -> None:
        marked = mark is not None and gap is GapCause.NONE and mark.still_valid()
        sequence = self._outstanding.next_sequence
        now_ns = time.monotonic_ns()
        batch = Batch(
            machine_id=self.assignment.machine_id, group_id=self.assignment.group_id or GroupId(NO_GROUP),
            epoch=self.assignment.epoch, sequence=sequence,
            first_position=content.first_position + self._base, end_position=content.end_position + self._base,
            wall_ns=time.time_ns(), oldest_ns=now_ns - content.oldest_ktime_ns if content.oldest_ktime_ns else 0,
            gap=gap, mark_kind=mark.kind if mark is not None and marked else MarkKind.NONE,
            mark_id=mark.mark_id if mark is not None and marked else MarkId(""), codec=content.codec,
            payload_raw_bytes=content.payload_raw_bytes, extents=content.extents, payload=content.payload,
        )  # fmt: skip
        item = Sent(
            sequence=sequence, end_position=content.end_position, wire_bytes=len(content.payload) + len(content.extents),
            captured_bytes=content.captured_bytes, oldest_ktime_ns=content.oldest_ktime_ns,
            newest_ktime_ns=content.newest_ktime_ns, extents=content.extents, reread=content.reread,
            consistent=gap is GapCause.NONE and (self._pass is None or self._pass.read),
        )  # fmt: skip
        self._outstanding.add(item)
        if (gap is GapCause.NONE) != (self._gap is GapCause.NONE):
            log.info(
                "a gap opens" if gap is not GapCause.NONE else "the gap is closed", cause=gap.name, sequence=sequence
            )
            self._changed()
        self._gap = gap
        await self._items.send(batch)
        if mark is not None and not mark.placed.done():
            mark.placed.set_result(Placed(sequence, batch.end_position, gap))

    async def _mark_batch(self, mark: Mark) -> None:
        """The batch that ends at the mark; what lies far before it goes out in batches of ordinary size first."""
        if mark.placed.done():
            return
        try:
            position = await self._call(self._session.put_mark, mark.number)
        except FailbackError as error:
            if not error.retryable and not mark.placed.done():
                mark.placed.set_exception(FreezeError(error.message, remedy=error.remedy))
            if mark.placed.done():
                return
            self._marks.appendleft(mark)  # the ring is full: drain first
            await self._batch()
            return
        while position - self._session.cursor() > 2 * self.assignment.batch_bytes:
            await self._batch()
        await self._batch(up_to=position, mark=mark)

    async def _digests(self, hashed: Hashed) -> None:
        if self._pass is None or not self._pass.owns(hashed.chunk):
            return  # hashed for a pass that another one replaced
        for block in hashed.unreadable:
            await self._call(self._session.mark_dirty, hashed.chunk.disk_index, block, 1)
        sequence, position = self._outstanding.next_sequence, self._session.cursor()
        item = Digests(
            machine_id=self.assignment.machine_id, epoch=self.assignment.epoch, sequence=sequence,
            position=position + self._base, pass_id=self.assignment.pass_id, disk_index=hashed.chunk.disk_index,
            block_bytes=BLOCK_BYTES, first_block=hashed.chunk.first_block, key=self._key, digests=hashed.digests,
        )  # fmt: skip
        self._pass.sent(sequence, hashed.chunk)
        self._outstanding.add(Sent(sequence, position, len(hashed.digests)))
        await self._items.send(item)

    # --- hashing ----------------------------------------------------------------------------------------------------

    async def _hash(self) -> None:
        """Hash what the pass asks for, never more than two chunks ahead of the stream."""
        loop = asyncio.get_running_loop()
        readers: dict[int, BlockHasher] = {}
        sizes = {disk.index: disk.size_bytes for disk in self.assignment.disks}
        with ThreadPoolExecutor(1, thread_name_prefix="hashing") as thread:
            try:
                while True:
                    self._hash_wake.clear()
                    current = self._pass
                    chunk = current.next_chunk() if current is not None and self._settled else None
                    if chunk is None:
                        await self._hash_wake.wait()
                        continue
                    if chunk.disk_index not in readers:
                        index = chunk.disk_index
                        readers[index] = BlockHasher(self._devices[index], sizes[index], self._key)
                    hashed = await loop.run_in_executor(thread, readers[chunk.disk_index].hash_chunk, chunk)
                    if current is self._pass:
                        await self._hashed.put(hashed)
                        self._wake.set()
            finally:
                for reader in readers.values():
                    reader.close()
