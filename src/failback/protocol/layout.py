"""The byte tables of the replication protocol, version 1. The document is docs/protocol.md; a test compares the two.

Every frame is: frame header (32 bytes), typed header (a fixed size for each type), body. All numbers are little-endian.
Reserved fields are zero when sent and ignored when read. The frame header's checksum (XXH3-64) covers its first 24 bytes
and the typed header, so that every length is proven before one byte of a body is stored. Bodies have checksums of their
own (XXH3-128) in the typed header. Numbers of types never change their meaning.
"""

from __future__ import annotations

import enum
import struct

MAGIC = b"FBK1"
VERSION = 1
LOWEST_VERSION = 1

FRAME_HEADER = struct.Struct("<4sBBHIIQQ")
FRAME_HEADER_BYTES = 32
CHECKED_BYTES = 24
"""The frame header's bytes before its checksum."""

MAXIMUM_FRAME_BYTES = 128 << 20
MAXIMUM_CONTROL_BYTES = 1 << 20
"""Largest body of a frame that is not an item."""
MAXIMUM_PAYLOAD_BYTES = MAXIMUM_FRAME_BYTES
"""Largest decoded payload of a batch: compressed or not, it has to fit into a frame."""
MAXIMUM_DIGEST_BLOCK_BYTES = 4 << 20
INCARNATION_BYTES = 64
CHECKSUM_BYTES = 16


class FrameType(enum.IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSAL = 3
    ACK = 4
    PING = 5
    PONG = 6
    DIGEST_REPLY = 7
    BATCH = 16
    DIGESTS = 17
    # 18 to 31 are reserved for further kinds of items (18: a mark of a replication group, 19: data that bypasses redo).


ITEM_TYPES = (FrameType.BATCH, FrameType.DIGESTS)

ITEM_PREFIX = struct.Struct("<16sQQQ")
"""What every item's typed header begins with: machine id, epoch, sequence, end position."""

BATCH = struct.Struct("<16sQQQ16s16sQQQBBBBIIQ16s16s12s")
DIGESTS = struct.Struct("<16sQQQ16sHHIQQII16s")
DIGEST_REPLY = struct.Struct("<16sQQ16sHHIQ16s")
ACK = struct.Struct(f"<QQQQQ{INCARNATION_BYTES}s")
NONCE = struct.Struct("<Q")
CONTROL = struct.Struct("<16s")
"""Hello, Welcome and Refusal: the checksum of the JSON body."""

TYPED_HEADERS: dict[FrameType, struct.Struct] = {
    FrameType.HELLO: CONTROL,
    FrameType.WELCOME: CONTROL,
    FrameType.REFUSAL: CONTROL,
    FrameType.ACK: ACK,
    FrameType.PING: NONCE,
    FrameType.PONG: NONCE,
    FrameType.DIGEST_REPLY: DIGEST_REPLY,
    FrameType.BATCH: BATCH,
    FrameType.DIGESTS: DIGESTS,
}

ITEM_HEADER_BYTES = FRAME_HEADER_BYTES + max(BATCH.size, DIGESTS.size)
"""So many bytes from a frame's beginning are enough to parse the header of any item."""
