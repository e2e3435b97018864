"""What the capture hands out and takes in: plain values, no behaviour.

Positions are byte positions in the machine's kernel ring: they grow with submission order and never repeat while the
ring lives. Blocks are 64 KiB (``model.stream.BLOCK_BYTES``) and counted from 0 on each disk. Views in ``payload`` point
into the kernel ring or into a round's memory: copy or send them before ``release``, or before that memory is given back.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CaptureDisk:
    """A whole disk (never a partition). ``index`` is its number in the stream, below ``MAXIMUM_DISKS``."""

    index: int
    device: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Whether known random content, written with O_DIRECT, was seen exactly; ``detail`` is one sentence for people."""

    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Collected:
    """Captured writes of the half-open ring range [first_position, end_position), in submission order."""

    first_position: int
    end_position: int
    extents: bytes
    """``protocol.extents`` layout; lengths and offsets are whole sectors; contiguous writes are one extent."""
    payload: Sequence[memoryview | bytes]
    """The DATA extents' bytes in the table's order; views into the ring, valid until ``release(end_position)``."""
    payload_bytes: int
    oldest_ktime_ns: int
    """CLOCK_MONOTONIC of the oldest write in it; 0 when there is none."""
    marks: Sequence[tuple[int, int]]
    """(mark number, position): at most one, and then ``end_position`` lies directly after it."""


@dataclass(frozen=True, slots=True)
class Differing:
    """A block that a comparison found different, with the replica's digests of its pieces (D12)."""

    disk_index: int
    block: int
    key: int
    piece_bytes: int
    pieces: bytes
    """16 bytes of XXH3-128 a piece; those behind the disk's end are zero."""


@dataclass(frozen=True, slots=True)
class Reread:
    """One round of fuzzy copy (D8). When ``ok`` is false nothing was read, the blocks are dirty again, and ``reason`` tells
    why; ask again later. Otherwise emit, inside one batch: records up to ``p0``, these extents (flag REREAD), records
    from ``p0`` to an end at or after ``end_position``; then, once that is spooled, ``reread_durable``."""

    p0: int
    end_position: int
    extents: bytes
    payload: Sequence[memoryview | bytes]
    """Views into ``memory``, valid until it is given back."""
    payload_bytes: int
    blocks: Sequence[tuple[int, int]]
    """(disk index, block) of every block taken, unreadable ones included."""
    ok: bool
    reason: str
    unreadable: Sequence[tuple[int, int, int]] = ()
    """(disk index, offset, length) that the device could not read after a second try: named holes (D12); not in extents."""
    generation: int = 0
    """The round's number."""
    compared: Sequence[Differing] = ()
    """Instead of ``blocks``: of these only the pieces that differ are in it; they were not dirty and are not pending."""
    memory: mmap.mmap | None = None


@dataclass(frozen=True, slots=True)
class BlocksRead:
    """Result of ``read_blocks``: bytes placed in the buffer, and the sectors (offset, length on the disk) left zero in it
    because the device could not read them."""

    length: int
    unreadable: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals since the programs were loaded; read them *after* fixing a batch's end (D9). A rise of any of the fields
    above the line means the batch is inside a gap from the previous batch on."""

    drops: int
    """Bios (or ends of bios) not captured because the ring was full: their blocks are dirty."""
    bytes_dropped: int
    skipped: int
    """Bios to a block that was dirty already: only marked (their blocks stay or became dirty)."""
    unreadable_pages: int
    """Bios whose memory could not be read, or which are encrypted inline: their blocks are dirty."""
    unsupported: int
    """Writes whose extent is not known (zone append, zone reset): the disk needs a hash comparison."""
    recursion_misses: int
    """Runs of a program that the kernel skipped: writes of unknown extent were lost; hash comparison of every disk."""
    untracked: int
    """Writes that the in-flight table could not hold: their blocks are dirty, and re-reads wait for an idle device."""
    write_errors: int
    """Writes that the device failed after they were captured: their blocks are dirty."""
    overlaps: int
    """Writes to sectors that another write in flight covers (D10): their blocks are dirty."""
    unannounced: int
    """Writes whose submission was not seen, only their completion (submitted before the programs were attached, untracked,
    or skipped by the kernel): their blocks were dirty before the writer heard of the completion."""
    # ---- ordinary traffic, no gap
    bios: int
    bytes_written: int
    discards: int
    """Discards and zeroings captured as extents without data."""
    barriers: int
    healed: int
    """In-flight entries that were settled late, by a new write at the same address or by an idle device."""

    def gap_sum(self) -> int:
        """Grows whenever a gap opened since an earlier reading."""
        return (
            self.drops + self.skipped + self.unreadable_pages + self.unsupported + self.recursion_misses
            + self.untracked + self.write_errors + self.overlaps + self.unannounced
        )  # fmt: skip
