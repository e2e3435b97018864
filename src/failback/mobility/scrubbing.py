"""A scrub: the disks compared with the replica in the background, slowly, while points go on being made (D12). Pure.

It travels as a comparison does (digests, answers with digests of pieces), but nothing waits for it and it opens no gap: what
differs is read again exactly (D8) inside one batch, and only the pieces that still differ are sent. Such a piece was wrong on
the replica, and is reported, unless a write to its block was captured since the first reading began: then it was merely
newer. What differs where the machine discarded and did not write again is brought in step and counted, without a report
(D12). A sector that the source cannot read says nothing about the replica and is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from failback.mobility.capture.values import Differing
from failback.mobility.passes import PIECE_BYTES, Chunk, SyncPass, has_pieces
from failback.model.components import ScrubFinding, ScrubStatus, SourceDisk, SyncMode
from failback.model.ids import PassId
from failback.model.stream import BLOCK_BYTES, ExtentFlag
from failback.protocol.extents import EXTENT
from failback.protocol.messages import DigestReply

CHUNK_BLOCKS = 64
PAUSE_SECONDS = 0.2
"""How often a scrub that keeps to its rate looks whether it may go on."""
SHOWN_FINDINGS = 100
IsDiscarded = Callable[[int, int, int], bool]
"""Whether any of (disk, offset, length) was discarded and not written since."""


class ScrubPass(SyncPass):
    """``bytes_per_second`` bounds what is read on the source, and so on the replica."""

    background = True
    chunk_blocks = CHUNK_BLOCKS

    def __init__(
        self, scrub_id: str, disks: Sequence[SourceDisk], bytes_per_second: float, started_wall_ns: int
    ) -> None:
        super().__init__(PassId(scrub_id), [(disk, SyncMode.COMPARE) for disk in disks])
        self._rate = max(bytes_per_second, 1.0)
        self._may_read_at = 0.0
        self._started_wall_ns = started_wall_ns
        self._open: dict[int, list[Chunk]] = {}
        """Chunks whose reading began and whose differing blocks were not all sent, by disk."""
        self._written: set[tuple[int, int]] = set()
        """Blocks of open chunks that were written since: they prove nothing."""
        self._suspects: dict[tuple[int, int], Chunk] = {}
        self.findings: list[ScrubFinding] = []
        self.repaired_bytes = 0
        self.discarded_bytes = 0
        self.unanswerable = False

    def holds_back(self, dirty_blocks: int) -> bool:
        return False

    def next_chunk(self, now: float = 0.0) -> Chunk | None:
        if now < self._may_read_at:
            return None
        chunk = super().next_chunk(now)
        if chunk is not None:
            self._may_read_at = max(self._may_read_at, now) + chunk.count * BLOCK_BYTES / self._rate
            self._open.setdefault(chunk.disk_index, []).append(chunk)
        return chunk

    def answered(self, reply: DigestReply, key: int = 0) -> Chunk | None:
        chunk = super().answered(reply, key)
        if chunk is None:
            return None
        if any(reply.differing) and not has_pieces(reply):
            self.unanswerable = True  # an old server on the way: what differs cannot be told apart
        for block in self.waiting_blocks(chunk):
            self._suspects[chunk.disk_index, block] = chunk
        self._close(chunk)
        return chunk

    def waiting_blocks(self, chunk: Chunk) -> list[int]:
        stop = chunk.first_block + chunk.count
        return [
            one.block
            for one in self._waiting
            if one.disk_index == chunk.disk_index and chunk.first_block <= one.block < stop
        ]

    def _close(self, chunk: Chunk) -> None:
        """Forget the chunk when nothing of it waits any more."""
        if chunk in self._suspects.values():
            return
        self._open[chunk.disk_index] = [one for one in self._open[chunk.disk_index] if one is not chunk]
        still = self._open[chunk.disk_index]
        stop = chunk.first_block + chunk.count
        self._written = {
            (disk, block)
            for disk, block in self._written
            if disk != chunk.disk_index
            or not chunk.first_block <= block < stop
            or any(one.first_block <= block < one.first_block + one.count for one in still)
        }

    def batch(self, extents: bytes, sent: Sequence[Differing], in_gap: bool, now_wall_ns: int,
              is_discarded: IsDiscarded = lambda disk, offset, length: False) -> None:  # fmt: skip
        """A batch with these extents goes out; ``sent`` are the suspects that were read again in it (all of them exactly).

        ``in_gap``: there may be writes that no record tells of, so what is open now proves nothing.
        """
        rows = list(EXTENT.iter_unpack(extents))
        if in_gap:
            self._written.update(
                (chunk.disk_index, block)
                for chunks in self._open.values()
                for chunk in chunks
                for block in range(chunk.first_block, chunk.first_block + chunk.count)
            )
        for disk, _, flags, length, offset in rows:
            if not (sent and flags & ExtentFlag.REREAD) and self._open.get(disk):
                self._note_write(disk, offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES)
        for disk, _, flags, length, offset in rows if sent else ():
            if flags & ExtentFlag.REREAD:  # it may hold writes whose records come after it in the batch
                self._found(disk, offset, length, now_wall_ns, is_discarded)
        for one in sent:
            chunk = self._suspects.pop((one.disk_index, one.block), None)
            if chunk is not None:
                self._close(chunk)

    def _note_write(self, disk: int, first: int, last: int) -> None:
        for chunk in self._open[disk]:
            low, high = max(first, chunk.first_block), min(last, chunk.first_block + chunk.count - 1)
            self._written.update((disk, block) for block in range(low, high + 1))

    def _found(self, disk: int, offset: int, length: int, now_wall_ns: int, is_discarded: IsDiscarded) -> None:
        """Pieces that differ from the replica: wrong there, piece by piece, unless the block was written meanwhile."""
        end = offset + length
        while offset < end:
            block = offset // BLOCK_BYTES
            part = min(end, (offset // PIECE_BYTES + 1) * PIECE_BYTES) - offset
            if (disk, block) in self._suspects and (disk, block) not in self._written:
                if is_discarded(disk, offset, part):
                    self.discarded_bytes += part
                else:
                    self._add(disk, offset, part, now_wall_ns)
            offset += part

    def _add(self, disk: int, offset: int, length: int, now_wall_ns: int) -> None:
        self.repaired_bytes += length
        last = self.findings[-1] if self.findings else None
        if last is not None and last.disk_index == disk and last.offset_bytes + last.length_bytes == offset:
            self.findings[-1] = ScrubFinding(disk, last.offset_bytes, last.length_bytes + length, last.found_wall_ns)
        elif len(self.findings) < SHOWN_FINDINGS:
            self.findings.append(ScrubFinding(disk, offset, length, now_wall_ns))

    def status(self, state: str, finished_wall_ns: int = 0) -> ScrubStatus:
        return ScrubStatus(
            scrub_id=self.pass_id, state=state, started_wall_ns=self._started_wall_ns, finished_wall_ns=finished_wall_ns,
            bytes_total=sum(disk.disk.size_bytes for disk in self.disks.values()),
            bytes_compared=sum(min(disk.disk.size_bytes, disk.answered_blocks * BLOCK_BYTES) for disk in self.disks.values()),
            findings=tuple(self.findings), repaired_bytes=self.repaired_bytes,
            discarded_bytes=self.discarded_bytes,
        )  # fmt: skip
