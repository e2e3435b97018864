"""The running stream of one epoch: ring and disks in, items out, acknowledgements back to the ring (D1 to D12).

One coroutine (``_pump``) does everything that has an order: it takes what the links reported, then makes the next item, and
again. All use of the capture session goes through its own thread. Beside it: ``upstream`` (the link), ``comparing`` (the
open pass and its hashing), ``resuming`` (where to go on). The rules are pure and elsewhere: ``gaps`` (may this end be a
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
from typing import TypeVar

from failback.errors import ConflictError, FailbackError, FreezeError, NotSupportedError
from failback.mobility import assemble, gaps
from failback.mobility.capture.source import Source
from failback.mobility.capture.values import Differing
from failback.mobility.comparing import Comparing
from failback.mobility.config import Compression
from failback.mobility.giving_way import Pressure
from failback.mobility.hashing import Hashed
from failback.mobility.lag import LagHistogram
from failback.mobility.marks import Mark, Placed
from failback.mobility.memory import MemoryFile
from failback.mobility.outstanding import (
    MOST_UNLANDED_ITEMS,
    Landed,
    Outstanding,
    Sent,
    interval_seconds,
)
from failback.mobility.packing import Packing, Parts
from failback.mobility.passes import has_pieces
from failback.mobility.periodic import Periodic
from failback.mobility.resuming import decide_pass, resume
from failback.mobility.scrubbing import ScrubPass
from failback.mobility.settling import settle
from failback.mobility.traffic import Traffic
from failback.mobility.upstream import Upstream
from failback.model.components import ComparisonStatus, LagFigures, MobilityAssignment, ScrubStatus, SyncProgress
from failback.model.ids import NO_GROUP, GroupId, MarkId
from failback.model.stream import Codec, GapCause, MarkKind
from failback.model.traffic import StreamFigures
from failback.protocol.messages import Batch, DigestReply, Welcome
from failback.runtime import logs
from failback.transport.identity import Identity
from failback.transport.limits import Pace

log = logs.get(__name__)
T = TypeVar("T")

POLL_SECONDS = 0.02
KEEPALIVE_SECONDS = 10.0
"""An idle machine sends an empty batch so often: its newest point stays young."""
REREAD_BLOCKS = 128
MOST_REREADS = 6
"""Rounds sent and not yet durable at the process server."""
REREAD_PAUSE_SECONDS = 0.5
DIFFERING_BLOCKS = 256
"""Of a comparison, in one round: read whole, of each as much is sent as differs."""
MOST_DIFFERING_ROUNDS = 8
CLOSING_SECONDS = 0.02


class Stream:
    """See the module. ``run`` until cancelled; raises what makes going on impossible."""

    def __init__(self, session: Source, thread: ThreadPoolExecutor, assignment: MobilityAssignment, *,
                 devices: dict[int, str], identity: Identity, memory: MemoryFile, compression: Compression,
                 window_bytes: int, changed: Callable[[], None], pace: Pace | None = None,
                 periodic: Periodic | None = None) -> None:  # fmt: skip
        self.assignment = assignment
        self.lag = LagHistogram()
        self.traffic = Traffic()
        self.bytes_changed = 0
        self.backlog_bytes = 0
        stored = memory.value
        self.pass_done = stored.pass_done and (stored.epoch, stored.pass_id) == (assignment.epoch, assignment.pass_id)
        self._session = session
        self._periodic = periodic
        self._thread = thread
        self._memory = memory
        self._window_bytes = window_bytes
        self._changed = changed
        self._wake = asyncio.Event()
        self._upstream = Upstream(
            assignment, identity, memory, window_bytes=window_bytes, wake=self._wake.set, changed=changed, pace=pace
        )
        self._packing = Packing(self._upstream.items.send, compression)
        self._comparing = Comparing(session, memory, assignment, devices, call=self._call, wake=self._wake.set)
        self._outstanding = Outstanding(0, 0)
        self._gaps = gaps.GapRule(gaps.NOTHING)
        self._counters = gaps.NOTHING
        self._gap = GapCause.NONE
        self._base = 0
        self._dirty = 0
        self._open_rereads = 0
        self._open_blocks = 0
        self._open_differing = 0
        self._reread_after = 0.0
        self._batch_wanted = False
        self._closed_at = time.monotonic()
        self._as_of_ns = 0
        self._marks: deque[Mark] = deque()
        self._resting: asyncio.Event | None = None
        """While set nothing is collected; done when the pump has noticed."""
        self._landed_ring = 0
        self._begun = self._ended = False
        self._sent_before = 0

    # --- what others see --------------------------------------------------------------------------------------------

    @property
    def linked(self) -> bool:
        return self._upstream.sender.linked

    @property
    def problem(self) -> str:
        """What the process server says against this stream that waiting does not cure; empty when nothing."""
        return self._upstream.problem

    @property
    def comparing(self) -> bool:
        return self._comparing.holding

    def scrub(self, scrub_id: str, bytes_per_second: float) -> None:
        """Compare the disks with the replica in the background. Raises ConflictError, NotSupportedError."""
        if self._periodic is not None:
            raise NotSupportedError("this machine is replicated by periodic comparison: every comparison is a scrub")
        if not self._begun:
            raise ConflictError("the stream is being opened", code="NotCapturing", retryable=True)
        self._comparing.scrub(ScrubPass(scrub_id, self.assignment.disks, bytes_per_second, time.time_ns()))
        self._changed()

    def ended_scrub(self) -> ScrubStatus | None:
        """The stream is over, and the scrub with it."""
        self._comparing.end_scrub("interrupted")
        return self._comparing.scrub_before

    def scrub_status(self) -> ScrubStatus | None:
        return self._comparing.scrub_status()

    def known_incarnation(self) -> str:
        return self._upstream.known_incarnation()

    @property
    def bytes_sent(self) -> int:
        return self._sent_before + self._upstream.sender.sent_bytes

    def carry_on(self, earlier: Stream) -> None:
        """Go on with the figures of an earlier stream of the same epoch."""
        if earlier.assignment.epoch == self.assignment.epoch:
            self.lag, self.bytes_changed = earlier.lag, earlier.bytes_changed
            self._sent_before = earlier.bytes_sent
            self.traffic = earlier.traffic
            self._comparing.progress_before = earlier.progress()
        self._comparing.scrub_before = earlier.ended_scrub()

    def stream_figures(self) -> StreamFigures:
        """Of the ring as the pump last saw it; does not touch the session."""
        outstanding = self._outstanding
        return self.traffic.figures(
            ring_bytes=self._session.ring_bytes, ring_used_bytes=self.backlog_bytes - outstanding.unspooled_bytes,
            dirty_blocks=self._dirty, unspooled_bytes=outstanding.unspooled_bytes,
            unlanded_items=outstanding.unlanded_items,
        )  # fmt: skip

    def pressure(self) -> Pressure | None:
        """How far behind the stream is; None while it does more than to follow: then nothing should hold it up."""
        if not self._begun or self._ended or self.gap or self.comparing or self._resting is not None:
            return None
        return Pressure(self.backlog_bytes / self._session.ring_bytes, self.lag.last_seconds)

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
        return self._comparing.progress()

    async def mark(self, kind: MarkKind, mark_id: MarkId, check: Callable[[], None]) -> Placed:
        """Put a mark where the image is consistent: waits for open gaps to close, tries again if one opened under it.

        ``check`` is called before each try and raises when waiting has become pointless (limit, lost freeze).
        """
        if self._periodic is not None:
            await self._call(self._periodic.ask)
        while True:
            self._check(check)
            if self._gap is not GapCause.NONE or self.comparing or self._dirty:
                if self._periodic is not None and not self.comparing:
                    await self._call(self._periodic.ask)
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

    # --- a common mark of a replication group (D19) -----------------------------------------------------------------

    def unmarkable(self) -> str:
        """Why a mark put now would become no point; empty when it would."""
        if self._ended or not self._begun or not self.linked:
            return "the process server is not connected"
        if self._periodic is not None:
            return "it is replicated by periodic comparison: a common mark would hold all members still for its whole length"
        if self.comparing:
            return "its disks are being compared"
        return f"a gap is open ({self.gap})" if self.gap else "blocks are being read again" if self._dirty else ""

    def waits_for(self, limit_seconds: float) -> str:
        """Why the machine is not to be held still for a mark yet; empty when it may be. Raises NotSupportedError when a mark
        would take longer than ``limit_seconds``."""
        if not self.linked:
            return "the process server is not connected"
        return self._periodic.waits_for(limit_seconds) if self._periodic is not None else self.gap

    @property
    def comparison(self) -> ComparisonStatus | None:
        return self._periodic.status() if self._periodic is not None else None

    async def rest(self, limit_seconds: float) -> None:
        """Collect nothing until :meth:`go_on`: then a mark is put at once. Raises FreezeError when that takes too long."""
        self._resting = asyncio.Event()
        self._wake.set()
        try:
            async with asyncio.timeout(limit_seconds):
                await self._resting.wait()
        except BaseException as error:
            self.go_on()
            if not isinstance(error, TimeoutError):
                raise
            raise FreezeError(f"the stream did not come to rest within {limit_seconds:g} s", retryable=True) from None

    async def put_common_mark(self, mark_id: MarkId) -> int:
        """Put the mark while the stream rests; its batch is sent after :meth:`go_on`. Returns its position.

        Raises FreezeError when the stream ended or does not rest, StorageError when the ring is full.
        """
        self._check(lambda: None)
        if self._resting is None or not self._resting.is_set():
            raise FreezeError("the stream does not rest", retryable=True)
        number = secrets.randbits(31) + 1
        position = await self._call(self._session.put_mark, number)
        placed: asyncio.Future[Placed] = asyncio.get_running_loop().create_future()
        self._marks.appendleft(Mark(MarkKind.GROUP, mark_id, number, lambda: None, placed, position))
        return position + self._base

    def go_on(self) -> None:
        self._resting = None
        self._wake.set()

    # ----------------------------------------------------------------------------------------------------------------

    async def landed(self, sequence: int, check: Callable[[], None]) -> None:
        """Wait until the item landed; ``check`` as in :meth:`mark`."""
        while self._outstanding.landed_sequence < sequence:
            self._check(check)
            await asyncio.sleep(POLL_SECONDS)

    def _check(self, check: Callable[[], None]) -> None:
        check()
        if self._ended:
            raise FreezeError("the stream ended under the mark", remedy="try again", retryable=True)

    # --- running ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._upstream.sender.run(), name="sender")
                tasks.create_task(self._pump(), name="pump")
                tasks.create_task(self._packing.run(), name="packing")
                tasks.create_task(self._comparing.run(), name="hashing")
                await self._upstream.until_diverged()
        finally:
            self._ended = True

    async def _call(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _pump(self) -> None:
        await self._begin(await self._upstream.welcome)
        while True:
            self._wake.clear()
            await self._take_news()
            if self._periodic is not None and self._periodic.is_due(time.monotonic(), comparing=self.comparing):
                await self._call(self._periodic.begin)
                self._comparing.again()
            if await self._make_item():
                continue
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _begin(self, welcome: Welcome) -> None:
        resumed = await resume(self._session, self._memory, self.assignment, welcome, self._call)
        self._base, self._outstanding = resumed.base, resumed.outstanding
        self._landed_ring = welcome.landed_ring
        self._counters, self._dirty = resumed.counters, resumed.dirty_blocks
        decided, begin_at = decide_pass(self._session, self._memory, self.assignment, resumed)
        self.pass_done = decided.done
        self._comparing.greeted(welcome)
        if self._periodic is not None:
            await self._call(self._periodic.begin)
        if decided.start:
            await self._comparing.start(decided.modes, begin_at)
            self._dirty = await self._call(self._session.dirty_blocks)
        current = self._comparing.current
        self._gap = GapCause.SYNC if current is not None and current.disks else resumed.cause
        self._gaps = gaps.GapRule(
            self._counters, cause=self._gap, consistent_from=resumed.produced if self._gap is not GapCause.NONE else 0
        )
        log.info("stream begins", epoch=self.assignment.epoch, sequence=self._outstanding.next_sequence,
                 fresh_ring=resumed.fresh_ring, position=self._session.cursor(), dirty_blocks=self._dirty,
                 comparing=self.comparing)  # fmt: skip
        self._upstream.begun(self._outstanding, self._base)
        self._begun = True
        self._changed()

    # --- acknowledgements and answers -------------------------------------------------------------------------------

    async def _take_news(self) -> None:
        upstream = self._upstream
        if upstream.diverged is not None:  # whatever is released is what the process server really holds: begin anew
            raise upstream.diverged
        while upstream.acks:
            ack, now_ns = upstream.acks.popleft()
            if ack.epoch != self.assignment.epoch:
                continue
            if ack.incarnation:
                self._memory.update(incarnation=ack.incarnation, newest_incarnation=ack.incarnation)
            self._landed_ring = max(self._landed_ring, ack.landed_ring)
            spooled = self._outstanding.spooled(ack.spooled_sequence)
            landed = self._outstanding.landed(ack.landed_sequence)
            if spooled is not None or landed is not None:
                await self._call(settle, self._session, spooled, landed)
            if spooled is not None and spooled.rereads:
                self._open_differing -= sum(1 for reread in spooled.rereads if reread.compared)
                self._open_rereads -= sum(1 for reread in spooled.rereads if not reread.compared)
                self._open_blocks -= sum(len(reread.blocks) for reread in spooled.rereads)
                self._comparing.spooled(spooled.rereads)
                self._dirty = await self._call(self._session.dirty_blocks)
            if landed is not None:
                self._note_landed(landed, now_ns)
        while upstream.replies:
            await self._take_reply(upstream.replies.popleft())

    def _note_landed(self, landed: Landed, now_ns: int) -> None:
        for item in landed.items:
            if item.captured_bytes and item.oldest_ktime_ns:
                self.lag.landed(
                    (now_ns - item.oldest_ktime_ns) / 1e6, (now_ns - item.newest_ktime_ns) / 1e6, item.captured_bytes
                )
            if item.consistent:
                self._memory.update(others_spooled=False)
            current = self._comparing.current
            if item.consistent and self._periodic is not None:
                self._periodic.consistent(item.wall_ns)
            if item.ends_pass and current is not None and current.read:
                self._comparing.finish(consistent=item.consistent)
                if self._periodic is not None:
                    self._periodic.ended(consistent=item.consistent)
                self.pass_done = self.pass_done or (bool(self.assignment.pass_id) and not current.background)
                self._changed()
        self._comparing.landed(self._outstanding.landed_sequence)

    async def _take_reply(self, reply: DigestReply) -> None:
        comparing = self._comparing
        chunk = await comparing.take_reply(reply)
        if chunk is None or not comparing.holding:
            return
        if any(reply.differing) and not has_pieces(reply):
            self._dirty = max(1, self._dirty)
        if comparing.current is not None and comparing.current.answered_all:
            self._gaps.consistent_from = self._session.produced_position()
            self._batch_wanted = True
            log.info("every block is compared", pass_id=self.assignment.pass_id)

    # --- making items -----------------------------------------------------------------------------------------------

    async def _make_item(self) -> bool:
        """Make and hand over the next item if one is due. Returns whether one was made."""
        if self._resting is not None:
            self._resting.set()
        if self._resting is not None or self._window_is_full():
            return False
        if self._marks:
            await self._mark_batch(self._marks.popleft())
            return True
        waiting = self._session.produced_position() - self._session.cursor()
        self.backlog_bytes = waiting + self._outstanding.unspooled_bytes
        now = time.monotonic()
        if not self._comparing.hashed.empty():  # first: the answer takes its time
            if waiting:
                await self._batch()
            await self._digests(self._comparing.hashed.get_nowait())
            return True
        if now >= self._reread_after and waiting <= 2 * self.assignment.batch_bytes:
            if self._dirty > self._open_blocks and self._open_rereads < MOST_REREADS:
                return await self._batch(reread_blocks=REREAD_BLOCKS)
            current = self._comparing.current
            if current is not None and current.waiting and self._open_differing < MOST_DIFFERING_ROUNDS:
                return await self._batch(differing=current.take_waiting(DIFFERING_BLOCKS))
        due = waiting >= self.assignment.batch_bytes or self._batch_due(waiting, now - self._closed_at)
        if due:
            await self._batch()
        return due

    def _window_is_full(self) -> bool:
        outstanding = self._outstanding
        return outstanding.unspooled_bytes >= self._window_bytes or outstanding.unlanded_items >= MOST_UNLANDED_ITEMS

    def _batch_due(self, waiting: int, elapsed: float) -> bool:
        current = self._comparing.current
        closing = (
            self._gap is not GapCause.NONE
            and not self._dirty
            and (not self.comparing or current is None or current.read)
        )
        if closing and current is None and self._periodic is not None and self._periodic.written:
            closing = False  # only the next comparison closes it
        if closing and current is not None and elapsed >= CLOSING_SECONDS:
            return True
        if elapsed < interval_seconds(self.assignment.batch_milliseconds, self._outstanding.unlanded_items):
            return False
        return waiting > 0 or closing or self._batch_wanted or elapsed >= KEEPALIVE_SECONDS

    async def _batch(self, *, reread_blocks: int = 0, differing: Sequence[Differing] = (), up_to: int | None = None,
                     mark: Mark | None = None) -> bool:  # fmt: skip
        wanted = assemble.Wanted(
            sequence=self._outstanding.next_sequence, limit_bytes=self.assignment.batch_bytes,
            reread_blocks=reread_blocks, differing=differing, up_to=up_to,
        )  # fmt: skip
        content = await self._call(assemble.assemble, self._session, wanted)
        current = self._comparing.current
        if content.refused:
            self._reread_after = time.monotonic() + REREAD_PAUSE_SECONDS
            if current is not None:
                current.give_back(differing)
        await self._note_counters(content)
        current = self._comparing.current
        pass_open = self._session.outgrown or (current is not None and current.holds_back(content.dirty_blocks))
        if self._periodic is not None and not content.as_of_ns:
            pass_open = True  # written since, or not proved: no state that the disks had
        gap = self._gaps.decide(content.counters, dirty_blocks=content.dirty_blocks, pass_open=pass_open,
                                end_position=content.end_position)  # fmt: skip
        self._comparing.batch(content.extents, () if content.refused else differing, gap is not GapCause.NONE)
        await self._send_batch(content, gap, mark)
        return True

    async def _note_counters(self, content: assemble.Assembled) -> None:
        """Take over what the assembly saw; writes of unknown extent ask for a comparison of everything."""
        missed = gaps.comparison_needed(self._counters, content.counters)
        self.bytes_changed += content.captured_bytes
        self._counters = content.counters
        self._dirty = content.dirty_blocks
        self._closed_at = time.monotonic()
        self._batch_wanted = False
        if content.reread is not None:
            self._open_differing += bool(content.reread.compared)
            self._open_rereads += not content.reread.compared
            self._open_blocks += len(content.reread.blocks)
            self._comparing.reread(content.reread)
        if missed:
            log.error("the capture missed writes of unknown extent: every disk is compared")
            await self._comparing.start_over()
            self._dirty = await self._call(self._session.dirty_blocks)
            self._session.acknowledge_missed(self._session.missed())

    async def _send_batch(self, content: assemble.Assembled, gap: GapCause, mark: Mark | None) -> None:
        marked = mark is not None and gap is GapCause.NONE and mark.still_valid()
        current = self._comparing.current
        sequence = self._outstanding.next_sequence
        now_ns = time.monotonic_ns()
        self._as_of_ns = max(self._as_of_ns, content.as_of_ns)
        batch = Batch(
            machine_id=self.assignment.machine_id, group_id=self.assignment.group_id or GroupId(NO_GROUP),
            epoch=self.assignment.epoch, sequence=sequence,
            first_position=content.first_position + self._base, end_position=content.end_position + self._base,
            wall_ns=time.time_ns() - (now_ns - self._as_of_ns if self._as_of_ns else 0),
            oldest_ns=now_ns - content.oldest_ktime_ns if content.oldest_ktime_ns else 0,
            gap=gap, mark_kind=mark.kind if mark is not None and marked else MarkKind.NONE,
            mark_id=mark.mark_id if mark is not None and marked else MarkId(""), codec=Codec.RAW,
            payload_raw_bytes=content.payload_bytes, extents=content.extents, payload=b"",
        )  # fmt: skip
        consistent = gap is GapCause.NONE and (current is None or current.background or current.read)
        compared = self._periodic is not None and current is not None and not current.holds_back(content.dirty_blocks)
        item = Sent(
            sequence=sequence, end_position=content.end_position, wire_bytes=content.payload_bytes + len(content.extents),
            captured_bytes=content.captured_bytes, oldest_ktime_ns=content.oldest_ktime_ns,
            newest_ktime_ns=content.newest_ktime_ns, extents=content.extents, reread=content.reread,
            consistent=consistent, ends_pass=consistent or compared, wall_ns=batch.wall_ns,
        )  # fmt: skip
        self._outstanding.add(item)
        if (gap is GapCause.NONE) != (self._gap is GapCause.NONE):
            log.info(
                "a gap opens" if gap is not GapCause.NONE else "the gap is closed", cause=gap.name, sequence=sequence
            )
            self._changed()
        self._gap = gap

        def packed(whole: Batch) -> None:
            self._outstanding.packed(item, len(whole.payload) + len(whole.extents))
            self.traffic.batch(
                content.captured_bytes, content.payload_bytes, len(whole.payload), reread=content.reread is not None
            )
            if content.reread is not None:
                self._session.give_back(content.reread)

        def sent() -> None:
            if mark is not None and not mark.placed.done():
                mark.placed.set_result(Placed(sequence, batch.end_position, gap))

        await self._packing.put(batch, Parts(content.payload, content.payload_bytes, packed), sent)

    async def _mark_batch(self, mark: Mark) -> None:
        """The batch that ends at the mark; what lies far before it goes out in batches of ordinary size first."""
        if mark.placed.done():
            return
        try:
            position = mark.position
            if position is None:
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
        sequence, position = self._outstanding.next_sequence, self._session.cursor()
        item = await self._comparing.digests(hashed, sequence, position + self._base)
        if item is not None:
            self._outstanding.add(Sent(sequence, position, len(hashed.digests)))
            self.traffic.digest_bytes += len(hashed.digests)
            await self._packing.put(item)
