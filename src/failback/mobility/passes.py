"""A pass over the disks: which blocks to compare next, what was answered, how far it is (D8, D12). Pure.

COMPARE disks: digests of chunks travel in the stream, a bounded number unanswered. An answer with digests of pieces makes its
blocks wait here for the rounds that send the pieces that differ; blocks of an answer without them become dirty, and the
ordinary re-read rounds send them whole. FULL disks: all blocks become dirty at once. The reading is over when every chunk
is answered and no block waits; the pass is over when, after that, a batch without a gap has landed. A digest that landed and
was not answered in time (a master target that died between the two) is asked again: comparing twice changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from failback.mobility.capture.values import Differing
from failback.model.components import MobilityAssignment, SourceDisk, SyncMode, SyncProgress
from failback.model.ids import PassId
from failback.model.stream import BLOCK_BYTES, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import DIGEST_BYTES, DigestReply

CHUNK_BLOCKS = 512
PIECE_BYTES = 4096
MOST_UNANSWERED = 8
MOST_WAITING = 4096
"""Blocks that wait for their pieces to be sent; no further chunk is hashed then."""
ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Decided:
    """What has to be read when a stream begins. ``done``: the assignment's pass was over before. ``compare_all`` is to be
    remembered until the pass is over."""

    done: bool
    start: bool
    compare_all: bool
    modes: tuple[tuple[SourceDisk, SyncMode], ...]


def decide(
    assignment: MobilityAssignment, *, done: bool, fresh_ring: bool, compare_all: bool, sent_before: bool
) -> Decided:
    """Which disks to compare or copy (D8, D11).

    ``done``: this pass is remembered as finished. ``fresh_ring``: nothing is known of writes before now (a reboot, other disks).
    ``sent_before``: the process server has items of this epoch, so a copy in full had begun and a comparison finds the rest.
    """
    assigned = bool(assignment.pass_id)
    done = assigned and done
    unknown = fresh_ring and (done or not assigned or any(disk.sync is SyncMode.NONE for disk in assignment.disks))
    compare_all = compare_all or unknown
    modes = []
    for disk in assignment.disks:
        mode = disk.sync if assigned and not done else SyncMode.NONE
        begun = mode is SyncMode.FULL and (sent_before if fresh_ring else compare_all)  # and cannot simply go on
        if (mode is SyncMode.NONE and compare_all) or begun:
            mode = SyncMode.COMPARE
        modes.append((disk, mode))
    return Decided(done=done, start=compare_all or (assigned and not done), compare_all=compare_all, modes=tuple(modes))


@dataclass(frozen=True, slots=True)
class Chunk:
    disk_index: int
    first_block: int
    count: int


@dataclass(slots=True)
class DiskPass:
    disk: SourceDisk
    mode: SyncMode
    next_block: int = 0
    answered_blocks: int = 0
    differing_blocks: int = 0
    reread_blocks: int = 0
    sent_bytes: int = 0
    again: deque[Chunk] = field(default_factory=deque)

    @property
    def blocks(self) -> int:
        return -(-self.disk.size_bytes // BLOCK_BYTES)

    @property
    def read(self) -> bool:
        return self.mode is not SyncMode.COMPARE or self.answered_blocks >= self.blocks

    def progress(self, done: bool) -> SyncProgress:
        total = self.disk.size_bytes
        if self.mode is SyncMode.COMPARE:
            compared = min(total, self.answered_blocks * BLOCK_BYTES)
        else:
            compared = total if done else min(total, self.reread_blocks * BLOCK_BYTES)
        return SyncProgress(
            disk_id=self.disk.disk_id, bytes_total=total, bytes_compared=compared,
            bytes_differing=min(total, self.differing_blocks * BLOCK_BYTES), bytes_sent=self.sent_bytes, done=done,
        )  # fmt: skip


@dataclass(slots=True)
class _Unanswered:
    chunk: Chunk
    landed_at: float | None = None


class SyncPass:
    """One pass under one id. ``begin_at`` (blocks answered before a restart, by disk index) lets it go on."""

    background = False
    """Whether nothing waits for it (``scrubbing``)."""
    chunk_blocks = CHUNK_BLOCKS

    def __init__(self, pass_id: PassId, modes: Sequence[tuple[SourceDisk, SyncMode]],
                 begin_at: dict[int, int] | None = None) -> None:  # fmt: skip
        self.pass_id = pass_id
        self.disks = {disk.index: DiskPass(disk, mode) for disk, mode in modes if mode is not SyncMode.NONE}
        for index, block in (begin_at or {}).items():
            if index in self.disks:
                state = self.disks[index]
                state.next_block = state.answered_blocks = min(block, state.blocks)
        self._taken: list[Chunk] = []
        """Given out by ``next_chunk`` and not sent yet."""
        self._unanswered: dict[int, _Unanswered] = {}
        self._waiting: deque[Differing] = deque()
        self._unspooled: set[Differing] = set()
        """Waiting, or their pieces are on the way to the process server: a restart compares them again."""

    @property
    def answered_all(self) -> bool:
        return all(state.read for state in self.disks.values())

    @property
    def read(self) -> bool:
        """Every chunk is answered and no block waits: what remains is to send the dirty blocks."""
        return not self._waiting and self.answered_all

    def holds_back(self, dirty_blocks: int) -> bool:
        """Whether disks are still compared or copied. A pass over no disk is none: it only waits for what is re-sent (D6), and
        what it sends must not look like a comparison to a journal that needs one (D7)."""
        return bool(self.disks) and not (self.read and dirty_blocks == 0)

    def next_chunk(self, now: float = 0.0) -> Chunk | None:
        """What to hash next; None when nothing is left or enough is unanswered (or, of a scrub, when it is too early, on the
        monotonic clock). The chunk counts as taken."""
        if len(self._unanswered) >= MOST_UNANSWERED or len(self._waiting) >= MOST_WAITING:
            return None
        chunk = self._next_chunk()
        if chunk is not None:
            self._taken.append(chunk)
        return chunk

    def _next_chunk(self) -> Chunk | None:
        for state in self.disks.values():
            if state.mode is not SyncMode.COMPARE:
                continue
            if state.again:
                return state.again.popleft()
            if state.next_block < state.blocks:
                count = min(self.chunk_blocks, state.blocks - state.next_block)
                chunk = Chunk(state.disk.index, state.next_block, count)
                state.next_block += count
                return chunk
        return None

    def sent(self, sequence: int, chunk: Chunk) -> None:
        """Raises ValueError for a chunk that this pass did not give out (see ``owns``)."""
        if not self.owns(chunk):
            raise ValueError(f"chunk {chunk} belongs to another pass")
        self._taken = [taken for taken in self._taken if taken is not chunk]
        self._unanswered[sequence] = _Unanswered(chunk)

    def owns(self, chunk: Chunk) -> bool:
        """Whether this very chunk was given out here: one that was hashed for a pass before this one proves nothing now."""
        return any(taken is chunk for taken in self._taken)

    def landed(self, sequence: int, now: float) -> None:
        """Items up to ``sequence`` landed: answers are due. Chunks whose answer is overdue are taken up again."""
        for number, waiting in list(self._unanswered.items()):
            if number <= sequence and waiting.landed_at is None:
                waiting.landed_at = now
            elif waiting.landed_at is not None and now - waiting.landed_at > ANSWER_SECONDS:
                del self._unanswered[number]
                self.disks[waiting.chunk.disk_index].again.append(waiting.chunk)

    def answered(self, reply: DigestReply, key: int = 0) -> Chunk | None:
        """Take a reply; the chunk that it answers, or None for one that nobody waits for. Differing blocks are to be marked
        unless the reply has digests of pieces (made with ``key``): then they wait here."""
        waiting = self._unanswered.pop(reply.sequence, None)
        if waiting is None:
            return None
        state = self.disks[waiting.chunk.disk_index]
        state.answered_blocks += waiting.chunk.count
        state.differing_blocks += int.from_bytes(reply.differing, "little").bit_count()
        if has_pieces(reply):
            found = _differing(waiting.chunk, reply, key)
            self._waiting.extend(found)
            self._unspooled.update(found)
        return waiting.chunk

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def take_waiting(self, most: int) -> list[Differing]:
        """The next blocks whose pieces are to be sent; give them back when that could not be done."""
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def give_back(self, blocks: Sequence[Differing]) -> None:
        self._waiting.extendleft(reversed(blocks))

    def spooled(self, blocks: Iterable[Differing]) -> None:
        """Their pieces are durable at the process server."""
        self._unspooled.difference_update(blocks)

    def reread(self, blocks: Iterable[tuple[int, int]], extents: bytes) -> None:
        """Blocks were read again; ``extents`` says what of them travels as data (zeroes do not)."""
        for disk_index, _ in blocks:
            if disk_index in self.disks:
                self.disks[disk_index].reread_blocks += 1
        for disk_index, operation, _, length, _ in EXTENT.iter_unpack(extents):
            if operation == Operation.DATA and disk_index in self.disks:
                self.disks[disk_index].sent_bytes += length

    def resume_blocks(self) -> dict[int, int]:
        """For each disk the block below which everything is answered (a restart goes on there)."""
        low: dict[int, int] = {}
        for index, state in self.disks.items():
            open_blocks = [
                item.chunk.first_block for item in self._unanswered.values() if item.chunk.disk_index == index
            ]
            open_blocks += [chunk.first_block for chunk in (*state.again, *self._taken) if chunk.disk_index == index]
            open_blocks += [one.block for one in self._unspooled if one.disk_index == index]
            low[index] = min([state.next_block, *open_blocks])
        return low

    def progress(self, done: bool) -> tuple[SyncProgress, ...]:
        return tuple(state.progress(done) for state in self.disks.values())


def has_pieces(reply: DigestReply) -> bool:
    return bool(reply.pieces) and reply.block_pieces * PIECE_BYTES == BLOCK_BYTES


def _differing(chunk: Chunk, reply: DigestReply, key: int) -> list[Differing]:
    """The reply's differing blocks, each with its share of the digests of pieces."""
    bits = int.from_bytes(reply.differing, "little")
    numbers = [number for number in range(reply.count) if bits >> number & 1]
    size = reply.block_pieces * DIGEST_BYTES
    return [
        Differing(
            chunk.disk_index, chunk.first_block + number, key, PIECE_BYTES, reply.pieces[at * size : (at + 1) * size]
        )
        for at, number in enumerate(numbers)
    ]
