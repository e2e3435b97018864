"""What travels from captured disks to a replica (data-path rules D1 to D9).

A machine has one stream under an epoch: a sequence of *items* numbered from 1 without a hole. An item is a batch of
extents or a table of digests to compare. ``position`` is the byte position in the machine's kernel ring: it grows
with submission order, never repeats within an epoch, and every batch covers the half-open range
[first_position, end_position). A new epoch begins a new sequence and may begin a new ring.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

BLOCK_BYTES = 65536
"""Size of the blocks of dirty map, unlanded map and re-reads."""

MAXIMUM_DISKS = 64
"""Disks of one machine in one stream (Azure Site Recovery's limit of 64 data disks is below it by the system disk)."""


class Operation(enum.IntEnum):
    """What an extent does to the replica."""

    DATA = 1
    ZERO = 2
    """Reads back as zeroes; the replica may punch a hole."""
    DISCARD = 3
    """Content undefined until rewritten; the replica punches a hole or ignores it (D17)."""


class ExtentFlag(enum.IntFlag):
    NONE = 0
    REREAD = 1
    """Read from the disk (sync, resync, overflow), not captured: placed at its p0 (D8)."""


class Codec(enum.IntEnum):
    RAW = 0
    ZSTD = 1


class MarkKind(enum.IntEnum):
    """Why a batch ends where it ends."""

    NONE = 0
    CRASH_CONSISTENT = 1
    APP_CONSISTENT = 2
    FINAL = 3
    """The last mark of a failback: nothing acknowledged lies after it (D20)."""
    GROUP = 4
    """A common mark of a replication group (D19): a crash-consistent point whose id all members share."""


class GapCause(enum.IntEnum):
    """Why no recovery point may be published at a batch's end (D9). NONE: the batch's end is crash-consistent."""

    NONE = 0
    SYNC = 1
    """A pass of comparing or copying is going on."""
    OVERFLOW = 2
    """The ring was full: dirty blocks are being re-read."""
    MISSED = 3
    """The capture program was skipped or saw what it cannot follow: a hash comparison is due."""
    WRITE_ERROR = 4
    """The device failed a write that the stream contains: the extent is being re-read."""
    OVERLAP = 5
    """Overlapping writes were in flight at once (D10): the blocks are being re-read."""
    UNREADABLE = 6
    """The source cannot read a sector."""
    RESEND = 7
    """Unlanded blocks are re-sent after a process server was lost (D6)."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a machine's stream: compared by epoch, then by item sequence. ``ring`` is the byte position there."""

    epoch: int
    sequence: int
    ring: int


ORIGIN = Position(0, 0, 0)
