"""Items as they lie in a spool, a journal or a buffer: the frame's bytes, and the header read out of them.

A process server and a journal store an item's frame exactly as it came and hand it on: they need :class:`ItemHeader`
(what is it, where in the stream, how long) and :meth:`RawItem.verify` (are these the bytes that were sent), never the
payload. :meth:`RawItem.decode` gives the message to whoever applies it. Nothing here copies a payload.

    header = parse_item_header(first_bytes)     # ITEM_HEADER_BYTES are enough
    item = RawItem.from_buffer(frame)           # exactly one whole frame
    item.verify()
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import xxhash

from failback.errors import IntegrityError, ProtocolError
from failback.model.ids import NIL, GroupId, MachineId, MarkId, PassId
from failback.model.stream import Codec, GapCause, MarkKind
from failback.protocol import layout
from failback.protocol.extents import EXTENT
from failback.protocol.layout import FrameType
from failback.protocol.messages import DIGEST_BYTES, Batch, Digests, Item

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class FrameHeader:
    type: FrameType
    typed_bytes: int
    body_bytes: int
    checksum: int

    @property
    def total_bytes(self) -> int:
        return layout.FRAME_HEADER_BYTES + self.typed_bytes + self.body_bytes


@dataclass(frozen=True, slots=True)
class ItemHeader:
    """The fixed part of an item's frame. For Digests the batch's fields have their neutral values."""

    type: FrameType
    machine_id: MachineId
    epoch: int
    sequence: int
    first_position: int
    end_position: int
    header_bytes: int
    """Frame header and typed header: the body begins here."""
    extents_bytes: int
    payload_bytes: int
    """As encoded; for Digests the digests themselves."""
    extents_checksum: bytes
    payload_checksum: bytes
    group_id: GroupId = GroupId(NIL)
    wall_ns: int = 0
    oldest_ns: int = 0
    gap: GapCause = GapCause.NONE
    mark_kind: MarkKind = MarkKind.NONE
    mark_id: MarkId = MarkId("")
    codec: Codec = Codec.RAW
    payload_raw_bytes: int = 0
    pass_id: PassId = PassId("")
    disk_index: int = 0
    block_bytes: int = 0
    first_block: int = 0
    key: int = 0
    piece_bytes: int = 0
    remembered: bool = False

    @property
    def total_bytes(self) -> int:
        return self.header_bytes + self.extents_bytes + self.payload_bytes


@dataclass(frozen=True, slots=True)
class RawItem:
    """One item's whole frame; ``buffer`` is exactly ``header.total_bytes`` long. ``proven``: its checksums were verified when it
    was received, and it has been in memory since."""

    header: ItemHeader
    buffer: memoryview
    proven: bool = field(default=False, compare=False)

    @staticmethod
    def from_buffer(frame: Buffer) -> RawItem:
        """Read the header of exactly one stored frame. Raises IntegrityError, ProtocolError; the body is not checked."""
        view = memoryview(frame)
        header = parse_item_header(view)
        if len(view) != header.total_bytes:
            raise IntegrityError(
                f"item {header.sequence} has {len(view)} bytes instead of {header.total_bytes}: it was cut or joined"
            )
        return RawItem(header, view)

    @property
    def extents(self) -> memoryview:
        start = self.header.header_bytes
        return self.buffer[start : start + self.header.extents_bytes]

    @property
    def payload(self) -> memoryview:
        return self.buffer[self.header.header_bytes + self.header.extents_bytes :]

    def verify(self) -> None:
        """Raises IntegrityError naming the part (extent list or payload, D7) that does not match its checksum."""
        self.verify_extents()
        self.verify_payload()

    def verify_extents(self) -> None:
        if checksum(self.extents) != self.header.extents_checksum:
            raise IntegrityError(
                f"the extent list of item {self.header.sequence} (epoch {self.header.epoch}) is damaged",
                code="ExtentListDamaged",
                remedy="compare the machine's disks by hash",
            )

    def verify_payload(self) -> None:
        if checksum(self.payload) != self.header.payload_checksum:
            raise IntegrityError(
                f"the payload of item {self.header.sequence} (epoch {self.header.epoch}) is damaged",
                code="PayloadDamaged",
                remedy="the blocks that it holds are read again from the source",
            )

    def decode(self) -> Item:
        """The message. The payload stays a view into the buffer; checksums are not looked at (see :meth:`verify`)."""
        header = self.header
        if header.type is FrameType.DIGESTS:
            return Digests(
                machine_id=header.machine_id,
                epoch=header.epoch,
                sequence=header.sequence,
                position=header.end_position,
                pass_id=header.pass_id,
                disk_index=header.disk_index,
                block_bytes=header.block_bytes,
                first_block=header.first_block,
                key=header.key,
                digests=bytes(self.payload),
                piece_bytes=header.piece_bytes,
                remembered=header.remembered,
            )
        return Batch(
            machine_id=header.machine_id,
            group_id=header.group_id,
            epoch=header.epoch,
            sequence=header.sequence,
            first_position=header.first_position,
            end_position=header.end_position,
            wall_ns=header.wall_ns,
            oldest_ns=header.oldest_ns,
            gap=header.gap,
            mark_kind=header.mark_kind,
            mark_id=header.mark_id,
            codec=header.codec,
            payload_raw_bytes=header.payload_raw_bytes,
            extents=bytes(self.extents),
            payload=self.payload,
        )


def checksum(data: Buffer) -> bytes:
    """XXH3-128 in its canonical (big-endian) form, 16 bytes."""
    return xxhash.xxh3_128_digest(data)


def parse_frame_header(data: Buffer) -> FrameHeader:
    """Read the 32 bytes that begin every frame; limits are checked, the checksum (which needs the typed header) is not.

    Raises ProtocolError.
    """
    magic, version, kind, _flags, typed_bytes, _reserved, body_bytes, digest = layout.FRAME_HEADER.unpack_from(data)
    if magic != layout.MAGIC:
        raise ProtocolError(
            f"the peer does not speak the replication protocol: a frame began with {magic!r}",
            possible_causes="another program uses this port, or bytes were lost or added on the way",
        )
    if version != layout.VERSION:
        raise ProtocolError(f"frame layout {version} is not known (this side reads layout {layout.VERSION})")
    try:
        frame_type = FrameType(kind)
    except ValueError:
        raise ProtocolError(f"frame type {kind} is not known") from None
    expected = layout.TYPED_HEADERS[frame_type].size
    if typed_bytes != expected:
        raise ProtocolError(f"a {frame_type.name} frame has a header of {typed_bytes} bytes instead of {expected}")
    header = FrameHeader(frame_type, typed_bytes, body_bytes, digest)
    limit = layout.MAXIMUM_FRAME_BYTES if frame_type in layout.ITEM_TYPES else layout.MAXIMUM_CONTROL_BYTES
    if header.total_bytes > limit:
        raise ProtocolError(
            f"a {frame_type.name} frame of {header.total_bytes} bytes is above the limit of {limit}",
            code="FrameTooLarge",
        )
    return header


def check_header(header: FrameHeader, data: Buffer) -> None:
    """Raises IntegrityError when frame header and typed header, which begin ``data``, do not match their checksum."""
    view = memoryview(data)
    digest = xxhash.xxh3_64(view[: layout.CHECKED_BYTES])
    digest.update(view[layout.FRAME_HEADER_BYTES : layout.FRAME_HEADER_BYTES + header.typed_bytes])
    if digest.intdigest() != header.checksum:
        raise IntegrityError(f"the header of a {header.type.name} frame does not match its checksum")


def parse_item_header(data: Buffer) -> ItemHeader:
    """Parse and prove the header of the item whose frame begins ``data`` (more may follow, less than all may be there).

    Raises IntegrityError (cut, damaged) and ProtocolError (no item).
    """
    if len(data) < layout.FRAME_HEADER_BYTES:
        raise IntegrityError("an item's frame header is cut")
    frame = parse_frame_header(data)
    if frame.type not in layout.ITEM_TYPES:
        raise ProtocolError(f"a {frame.type.name} frame stands where an item has to be")
    if len(data) < layout.FRAME_HEADER_BYTES + frame.typed_bytes:
        raise IntegrityError("an item's header is cut")
    check_header(frame, data)
    return item_header(frame, data)


def item_header(frame: FrameHeader, data: Buffer) -> ItemHeader:
    """The item header of a frame whose header checksum was proven. Raises ProtocolError for impossible values."""
    if frame.type is FrameType.DIGESTS:
        return _digests_header(frame, data)
    return _batch_header(frame, data)


def _batch_header(frame: FrameHeader, data: Buffer) -> ItemHeader:
    (
        machine, epoch, sequence, end_position, group, mark, first_position, wall_ns, oldest_ns,
        gap, mark_kind, codec, _reserved1, extent_count, _reserved2, payload_raw_bytes,
        extents_checksum, payload_checksum, _reserved3,
    ) = layout.BATCH.unpack_from(data, layout.FRAME_HEADER_BYTES)  # fmt: skip
    extents_bytes = extent_count * EXTENT.size
    payload_bytes = frame.body_bytes - extents_bytes
    if payload_bytes < 0:
        raise ProtocolError(f"batch {sequence} is shorter than its {extent_count} extents")
    if first_position > end_position:
        raise ProtocolError(f"batch {sequence} ends at {end_position}, before it begins at {first_position}")
    try:
        known_gap, known_mark, known_codec = GapCause(gap), MarkKind(mark_kind), Codec(codec)
    except ValueError as error:
        raise ProtocolError(f"batch {sequence} holds an unknown value: {error}") from None
    if payload_raw_bytes > layout.MAXIMUM_PAYLOAD_BYTES:
        raise ProtocolError(
            f"batch {sequence} would decode to {payload_raw_bytes} bytes, above {layout.MAXIMUM_PAYLOAD_BYTES}",
            code="FrameTooLarge",
        )
    if known_codec is Codec.RAW and payload_raw_bytes != payload_bytes:
        raise ProtocolError(f"batch {sequence} has {payload_bytes} raw bytes instead of {payload_raw_bytes}")
    return ItemHeader(
        type=frame.type,
        machine_id=MachineId(uuid_text(machine)),
        epoch=epoch,
        sequence=_sequence(sequence),
        first_position=first_position,
        end_position=end_position,
        header_bytes=layout.FRAME_HEADER_BYTES + frame.typed_bytes,
        extents_bytes=extents_bytes,
        payload_bytes=payload_bytes,
        extents_checksum=extents_checksum,
        payload_checksum=payload_checksum,
        group_id=GroupId(uuid_text(group)),
        wall_ns=wall_ns,
        oldest_ns=oldest_ns,
        gap=known_gap,
        mark_kind=known_mark,
        mark_id=MarkId(optional_uuid_text(mark)),
        codec=known_codec,
        payload_raw_bytes=payload_raw_bytes,
    )


_NOTHING = checksum(b"")


def _digests_header(frame: FrameHeader, data: Buffer) -> ItemHeader:
    (
        machine, epoch, sequence, position, pass_id, disk_index, flags, block_bytes,
        first_block, key, count, piece_bytes, digests_checksum,
    ) = layout.DIGESTS.unpack_from(data, layout.FRAME_HEADER_BYTES)  # fmt: skip
    if frame.body_bytes != count * DIGEST_BYTES:
        raise ProtocolError(f"item {sequence} has {frame.body_bytes} bytes for {count} digests")
    if not 0 < block_bytes <= layout.MAXIMUM_DIGEST_BLOCK_BYTES:
        raise ProtocolError(f"item {sequence} has digests of blocks of {block_bytes} bytes")
    return ItemHeader(
        type=frame.type,
        machine_id=MachineId(uuid_text(machine)),
        epoch=epoch,
        sequence=_sequence(sequence),
        first_position=position,
        end_position=position,
        header_bytes=layout.FRAME_HEADER_BYTES + frame.typed_bytes,
        extents_bytes=0,
        payload_bytes=frame.body_bytes,
        extents_checksum=_NOTHING,
        payload_checksum=digests_checksum,
        payload_raw_bytes=frame.body_bytes,
        pass_id=PassId(optional_uuid_text(pass_id)),
        disk_index=disk_index,
        block_bytes=block_bytes,
        first_block=first_block,
        key=key,
        piece_bytes=piece_bytes,
        remembered=bool(flags & 1),
    )


def _sequence(number: int) -> int:
    if number < 1:
        raise ProtocolError("an item carries sequence 0; sequences begin at 1")
    return number


def uuid_bytes(text: str, what: str) -> bytes:
    """16 bytes of a UUID's text; all zero for an empty text. Raises ProtocolError."""
    if not text:
        return bytes(16)
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise ProtocolError(f"{what} {text!r} is not a UUID") from None


def uuid_text(data: bytes) -> str:
    return str(uuid.UUID(bytes=data))


def optional_uuid_text(data: bytes) -> str:
    return uuid_text(data) if any(data) else ""
