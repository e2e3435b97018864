"""What the two ends of a replication link say to each other. A link carries one machine's stream in one direction.

Link 1: mobility service (sender) -> process server. Link 2: process server (sender) -> master target. The sender opens
the link with :class:`Hello`; the receiver answers :class:`Welcome` or :class:`Refusal`. Then items (:class:`Batch`,
:class:`Digests`) flow downstream in sequence order and :class:`Ack`, :class:`DigestReply` upstream. Either side pings.
A :class:`Refusal` may come at any time; after it the link is closed.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

from failback.model.ids import DiskId, GroupId, MachineId, MarkId, PassId
from failback.model.stream import Codec, GapCause, MarkKind

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class StreamDisk:
    disk_id: DiskId
    index: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Hello:
    """``incarnation``, ``landed_sequence``: what the sender remembers of the journal (D7); empty and 0 at first.

    ``next_sequence`` is the first item that the sender still holds: a receiver that needs an older one refuses.
    """

    machine_id: MachineId
    epoch: int
    software: str
    lowest_version: int
    highest_version: int
    disks: tuple[StreamDisk, ...]
    incarnation: str = ""
    landed_sequence: int = 0
    next_sequence: int = 1


@dataclass(frozen=True, slots=True)
class Welcome:
    """Where the receiver stands: the sender goes on after ``spooled_sequence`` (on link 2 spooled equals landed)."""

    version: int
    software: str
    epoch: int
    spooled_sequence: int
    spooled_ring: int
    landed_sequence: int
    landed_ring: int
    incarnation: str
    features: tuple[str, ...] = ()
    """What the receiver can do beyond the version's first form; see ``FEATURES``."""


PIECE_DIGESTS = "piece-digests"
"""Replies to digests may carry digests of the pieces of blocks that differ."""
FEATURES = (PIECE_DIGESTS,)


def digest_key(incarnation: str) -> int:
    """The key of digests that are remembered: random for each journal, because its incarnation is."""
    return xxhash.xxh3_64_intdigest(b"digests of " + incarnation.encode()) >> 1


@dataclass(frozen=True, slots=True)
class Batch:
    """All writes between two ring positions, applied atomically (D3).

    ``extents`` is the packed table (:mod:`failback.protocol.extents`); ``payload`` is encoded with ``codec`` and has
    ``payload_raw_bytes`` bytes when decoded. ``oldest_ns`` is the age of the batch's oldest write when the batch was
    closed, in nanoseconds; ``wall_ns`` the source's wall time of its content: every write submitted before lies in this
    batch or an earlier one.
    """

    machine_id: MachineId
    group_id: GroupId
    epoch: int
    sequence: int
    first_position: int
    end_position: int
    wall_ns: int
    oldest_ns: int
    gap: GapCause
    mark_kind: MarkKind
    mark_id: MarkId
    codec: Codec
    payload_raw_bytes: int
    extents: bytes
    payload: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of consecutive blocks of one disk, to be compared with the replica at exactly this place (D12).

    Each digest is XXH3-128 of the block's bytes with ``key`` (random for each pass) as the seed, big-endian canonical
    form, 16 bytes. The last block of a disk may be shorter. ``piece_bytes`` above 0 asks for the replica's digests of the
    pieces of blocks that differ; a master target that does not know it answers without them.
    """

    machine_id: MachineId
    epoch: int
    sequence: int
    position: int
    pass_id: PassId
    disk_index: int
    block_bytes: int
    first_block: int
    key: int
    digests: bytes
    piece_bytes: int = 0
    remembered: bool = False
    """Digests that the master target remembers of what it applied are good enough as an answer: it need not read."""


@dataclass(frozen=True, slots=True)
class DigestReply:
    """``differing`` is a bitmap, least significant bit first, of ``count`` blocks from ``first_block``.

    ``pieces`` holds, for each differing block in order, ``block_pieces`` digests of the replica's pieces, with the same key;
    those behind the disk's end are zero. 0 and empty when the asker did not want them or they are no longer known.
    """

    machine_id: MachineId
    epoch: int
    sequence: int
    pass_id: PassId
    disk_index: int
    first_block: int
    count: int
    differing: bytes
    block_pieces: int = 0
    pieces: bytes = b""


@dataclass(frozen=True, slots=True)
class Ack:
    """Cumulative: every item up to the sequence is durable there. The ring positions are those items' ends (D5)."""

    epoch: int
    spooled_sequence: int
    spooled_ring: int
    landed_sequence: int
    landed_ring: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class Refusal:
    code: str
    message: str
    remedy: str = ""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    nonce: int


@dataclass(frozen=True, slots=True)
class Pong:
    nonce: int


Item = Batch | Digests
Message = Hello | Welcome | Batch | Digests | DigestReply | Ack | Refusal | Ping | Pong
