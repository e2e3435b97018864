"""Messages to frames and back (byte tables: :mod:`failback.protocol.layout`, document: docs/protocol.md).

``encode(message)`` gives the parts to write, in order, without copying a payload. A :class:`Decoder` takes bytes as they
arrive: either ``feed(data)``, or without a copy ``get_buffer()`` / ``received(count)``, which let a transport read a
large body straight to its place. With ``raw_items=True`` items come out as :class:`RawItem` (their frame as it came,
checksums proven); otherwise as Batch and Digests. Whatever is wrong raises ProtocolError or IntegrityError; the decoder
is then dead and the link has to be closed: nothing of a damaged frame is ever given out.
"""

from __future__ import annotations

import json
from typing import Any

import xxhash

from failback.errors import ConfigurationError, IntegrityError, ProtocolError
from failback.model.ids import MachineId, PassId
from failback.protocol import layout
from failback.protocol.extents import EXTENT
from failback.protocol.frame_memory import FrameMemory
from failback.protocol.items import (
    Buffer,
    FrameHeader,
    ItemHeader,
    RawItem,
    check_header,
    checksum,
    item_header,
    optional_uuid_text,
    parse_frame_header,
    parse_item_header,
    uuid_bytes,
    uuid_text,
)
from failback.protocol.layout import ITEM_HEADER_BYTES, FrameType
from failback.protocol.messages import (
    DIGEST_BYTES,
    Ack,
    Batch,
    DigestReply,
    Digests,
    Hello,
    Message,
    Ping,
    Pong,
    Refusal,
    Welcome,
)
from failback.runtime import records

__all__ = [
    "ITEM_HEADER_BYTES",
    "Buffer",
    "Decoder",
    "ItemHeader",
    "RawItem",
    "encode",
    "encode_item",
    "parse_item_header",
]

_CONTROL_TYPES: dict[type[Any], FrameType] = {
    Hello: FrameType.HELLO,
    Welcome: FrameType.WELCOME,
    Refusal: FrameType.REFUSAL,
}
_CONTROL_CLASSES = {frame_type: cls for cls, frame_type in _CONTROL_TYPES.items()}
_ONLY_WHEN_FILLED = ("features",)
"""Fields that came after the first release: left out when empty, so that the bytes of the first stay what they were."""
_STAGING_BYTES = 64 << 10
_memory = FrameMemory(24 << 20)


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode(message: Message | RawItem) -> list[bytes | memoryview]:  # noqa: PLR0911
    """The parts of the message's frame in order; a payload is passed on as it is. Raises ProtocolError."""
    if isinstance(message, RawItem):
        return [message.buffer]
    if isinstance(message, Batch):
        return _encode_batch(message)
    if isinstance(message, Digests):
        return _encode_digests(message)
    if isinstance(message, DigestReply):
        return _encode_digest_reply(message)
    if isinstance(message, Ack):
        return [_headers(FrameType.ACK, _ack_header(message), 0)]
    if isinstance(message, Ping):
        return [_headers(FrameType.PING, layout.NONCE.pack(message.nonce), 0)]
    if isinstance(message, Pong):
        return [_headers(FrameType.PONG, layout.NONCE.pack(message.nonce), 0)]
    fields = {name: value for name, value in records.encode(message).items() if value or name not in _ONLY_WHEN_FILLED}
    body = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    typed = layout.CONTROL.pack(checksum(body))
    return [_headers(_CONTROL_TYPES[type(message)], typed, len(body)) + body]


def encode_item(item: Batch | Digests) -> RawItem:
    """One contiguous frame of the item (this copies the payload)."""
    return RawItem.from_buffer(b"".join(encode(item)))


def _headers(frame_type: FrameType, typed: bytes, body_bytes: int) -> bytes:
    total = layout.FRAME_HEADER_BYTES + len(typed) + body_bytes
    limit = layout.MAXIMUM_FRAME_BYTES if frame_type in layout.ITEM_TYPES else layout.MAXIMUM_CONTROL_BYTES
    if total > limit:
        raise ProtocolError(
            f"a {frame_type.name} frame of {total} bytes is above the limit of {limit}", code="FrameTooLarge"
        )
    fields = (layout.MAGIC, layout.VERSION, frame_type, 0, len(typed), 0, body_bytes)
    unsigned = layout.FRAME_HEADER.pack(*fields, 0)[: layout.CHECKED_BYTES]
    digest = xxhash.xxh3_64_intdigest(unsigned + typed)
    return layout.FRAME_HEADER.pack(*fields, digest) + typed


def _encode_batch(batch: Batch) -> list[bytes | memoryview]:
    count, rest = divmod(len(batch.extents), EXTENT.size)
    if rest:
        raise ProtocolError(f"the extent table of batch {batch.sequence} is not a multiple of {EXTENT.size} bytes")
    typed = layout.BATCH.pack(
        uuid_bytes(batch.machine_id, "machine id"), batch.epoch, batch.sequence, batch.end_position,
        uuid_bytes(batch.group_id, "group id"), uuid_bytes(batch.mark_id, "mark id"),
        batch.first_position, batch.wall_ns, batch.oldest_ns,
        batch.gap, batch.mark_kind, batch.codec, 0, count, 0, batch.payload_raw_bytes,
        checksum(batch.extents), checksum(batch.payload), bytes(12),
    )  # fmt: skip
    headers = _headers(FrameType.BATCH, typed, len(batch.extents) + len(batch.payload))
    return [headers + batch.extents, batch.payload]


def _encode_digests(digests: Digests) -> list[bytes | memoryview]:
    count, rest = divmod(len(digests.digests), DIGEST_BYTES)
    if rest:
        raise ProtocolError(f"the digests of item {digests.sequence} are not a multiple of {DIGEST_BYTES} bytes")
    typed = layout.DIGESTS.pack(
        uuid_bytes(digests.machine_id, "machine id"), digests.epoch, digests.sequence, digests.position,
        uuid_bytes(digests.pass_id, "pass id"), digests.disk_index, int(digests.remembered), digests.block_bytes,
        digests.first_block, digests.key, count, digests.piece_bytes, checksum(digests.digests),
    )  # fmt: skip
    return [_headers(FrameType.DIGESTS, typed, len(digests.digests)), digests.digests]


def _encode_digest_reply(reply: DigestReply) -> list[bytes | memoryview]:
    body = reply.differing + reply.pieces
    typed = layout.DIGEST_REPLY.pack(
        uuid_bytes(reply.machine_id, "machine id"), reply.epoch, reply.sequence,
        uuid_bytes(reply.pass_id, "pass id"), reply.disk_index, reply.block_pieces, reply.count, reply.first_block,
        checksum(body),
    )  # fmt: skip
    return [_headers(FrameType.DIGEST_REPLY, typed, len(body)) + body]


def _ack_header(ack: Ack) -> bytes:
    incarnation = ack.incarnation.encode()
    if len(incarnation) > layout.INCARNATION_BYTES:
        raise ProtocolError(f"the journal incarnation {ack.incarnation!r} is longer than {layout.INCARNATION_BYTES}")
    return layout.ACK.pack(
        ack.epoch, ack.spooled_sequence, ack.spooled_ring, ack.landed_sequence, ack.landed_ring, incarnation
    )


# --- decoding ---------------------------------------------------------------------------------------------------------


class Decoder:
    """Bytes of one direction of a link to messages. ``frame_bytes`` is the size of the frame being received, or 0."""

    def __init__(self, *, raw_items: bool = False) -> None:
        self.takes_items = True
        """False: an item is out of place now, and not even the memory for it is taken."""
        self._raw_items = raw_items
        self._staging = memoryview(bytearray(_STAGING_BYTES))
        self._staged = 0
        self._header: FrameHeader | None = None
        self._item: ItemHeader | None = None
        self._frame = memoryview(b"")
        self._filled = 0
        self._dead = False

    @property
    def frame_bytes(self) -> int:
        """Memory that the frame being received takes: from the next ``get_buffer`` on, so there is time to refuse it."""
        return self._header.total_bytes if self._header is not None else 0

    @property
    def filled_bytes(self) -> int:
        """How much of that frame has come."""
        return self._filled or self._staged

    @property
    def mid_frame(self) -> bool:
        """True when bytes of an unfinished frame were received: an end of the connection now has cut it."""
        return self._header is not None or self._staged > 0

    def get_buffer(self) -> memoryview:
        """Where the next bytes belong; call ``received`` with how many were put there."""
        if self._header is not None:
            if not self._filled:
                self._frame = _memory.take(self._header.total_bytes)
                self._frame[: self._staged] = self._staging[: self._staged]
                self._filled, self._staged = self._staged, 0
            return self._frame[self._filled :]
        return self._staging[self._staged :]

    def received(self, count: int) -> list[Message | RawItem]:
        """Take ``count`` bytes that were put into the buffer; return the messages that became whole."""
        if self._dead:
            raise ProtocolError("bytes after a damaged frame")
        try:
            return self._received(count)
        except (ProtocolError, IntegrityError):
            self._dead = True
            raise

    def drop(self) -> None:
        """The link is over: give back the memory of the frame that will not be finished."""
        self._dead = True
        self._header, self._item, self._frame, self._filled, self._staged = None, None, memoryview(b""), 0, 0

    def feed(self, data: Buffer) -> list[Message | RawItem]:
        """Take bytes (copied); return the messages that became whole. Raises ProtocolError, IntegrityError."""
        view, messages = memoryview(data), []
        while view:
            buffer = self.get_buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            messages.extend(self.received(count))
            view = view[count:]
        return messages

    def _received(self, count: int) -> list[Message | RawItem]:
        messages: list[Message | RawItem] = []
        if self._header is not None:
            self._filled += count
            if self._filled == len(self._frame):
                messages.append(self._finish())
            return messages
        self._staged += count
        start = 0
        while taken := self._begin(start):
            start += taken
            messages.append(self._finish())
        rest = self._staged - start
        self._staging[:rest] = self._staging[start : self._staged]
        self._staged = rest
        return messages

    def _begin(self, start: int) -> int:
        """Begin a frame from the staged bytes at ``start``; return its length when all of it is there, else 0."""
        available = self._staging[start : self._staged]
        if len(available) < layout.FRAME_HEADER_BYTES:
            return 0
        header = parse_frame_header(available)
        head_bytes = layout.FRAME_HEADER_BYTES + header.typed_bytes
        if len(available) < head_bytes:
            return 0
        check_header(header, available)
        if header.type in layout.ITEM_TYPES and not self.takes_items:
            raise ProtocolError(f"a {header.type.name} frame came where no item is expected")
        self._item = item_header(header, available) if header.type in layout.ITEM_TYPES else None
        self._header = header
        if len(available) < header.total_bytes:
            return 0
        self._frame = memoryview(bytearray(available[: header.total_bytes]))
        return header.total_bytes

    def _finish(self) -> Message | RawItem:
        header, item, frame = self._header, self._item, self._frame
        assert header is not None
        self._header, self._item, self._frame, self._filled = None, None, memoryview(b""), 0
        if item is not None:
            RawItem(item, frame).verify()
            raw = RawItem(item, frame.toreadonly(), proven=True)
            return raw if self._raw_items else raw.decode()
        return _decode_control(header, frame)


def _decode_control(header: FrameHeader, frame: memoryview) -> Message:
    typed = frame[layout.FRAME_HEADER_BYTES : layout.FRAME_HEADER_BYTES + header.typed_bytes]
    body = bytes(frame[layout.FRAME_HEADER_BYTES + header.typed_bytes :])
    if header.type in _CONTROL_CLASSES:
        return _decode_json(header.type, layout.CONTROL.unpack(typed)[0], body)
    if header.type is FrameType.DIGEST_REPLY:
        return _decode_digest_reply(typed, body)
    if body:
        raise ProtocolError(f"a {header.type.name} frame has a body of {len(body)} bytes")
    if header.type is FrameType.ACK:
        epoch, spooled, spooled_ring, landed, landed_ring, incarnation = layout.ACK.unpack(typed)
        return Ack(epoch, spooled, spooled_ring, landed, landed_ring, _text(incarnation))
    (nonce,) = layout.NONCE.unpack(typed)
    return Ping(nonce) if header.type is FrameType.PING else Pong(nonce)


def _decode_json(frame_type: FrameType, expected: bytes, body: bytes) -> Message:
    if checksum(body) != expected:
        raise IntegrityError(f"the body of a {frame_type.name} frame does not match its checksum")
    try:
        message: Message = records.decode(
            records.parse_json(body), _CONTROL_CLASSES[frame_type], frame_type.name.lower()
        )
    except (ValueError, ConfigurationError) as error:
        raise ProtocolError(f"a {frame_type.name} frame cannot be read: {error}") from error
    return message


def _decode_digest_reply(typed: memoryview, body: bytes) -> DigestReply:
    machine, epoch, sequence, pass_id, disk_index, block_pieces, count, first_block, expected = (
        layout.DIGEST_REPLY.unpack(typed)
    )  # fmt: skip
    if checksum(body) != expected:
        raise IntegrityError(f"the reply to digests {sequence} does not match its checksum")
    bitmap = body[: (count + 7) // 8]
    wanted = len(bitmap) + int.from_bytes(bitmap, "little").bit_count() * block_pieces * DIGEST_BYTES
    if len(bitmap) != (count + 7) // 8 or len(body) != wanted:
        raise ProtocolError(f"the reply to digests {sequence} has {len(body)} bytes for {count} blocks")
    return DigestReply(
        machine_id=MachineId(uuid_text(machine)),
        epoch=epoch,
        sequence=sequence,
        pass_id=PassId(optional_uuid_text(pass_id)),
        disk_index=disk_index,
        first_block=first_block,
        count=count,
        differing=bitmap,
        block_pieces=block_pieces,
        pieces=body[len(bitmap) :],
    )


def _text(data: bytes) -> str:
    try:
        return data.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise ProtocolError("a journal incarnation is not UTF-8") from None
