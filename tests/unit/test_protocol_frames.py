"""Frames: round trips, every single damaged byte, every cut, limits, order; golden frames of each released version."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from failback.errors import FailbackError, IntegrityError, ProtocolError
from failback.model.stream import Codec, GapCause, MarkKind
from failback.protocol import layout
from failback.protocol.extents import EXTENT
from failback.protocol.frames import (
    ITEM_HEADER_BYTES,
    Decoder,
    RawItem,
    encode,
    encode_item,
    parse_item_header,
)
from failback.protocol.layout import FrameType
from failback.protocol.messages import (
    Ack,
    Batch,
    DigestReply,
    Digests,
    Hello,
    Message,
    Ping,
    Pong,
    Refusal,
    StreamDisk,
    Welcome,
)

GOLDEN = Path(__file__).parent / "golden"
_ID = str(uuid.UUID(int=0x1234567890ABCDEF1234567890ABCDEF))
_OTHER = str(uuid.UUID(int=0xFEDCBA0987654321))
_NIL = str(uuid.UUID(int=0))


def sample_messages() -> dict[str, Message]:
    extents = EXTENT.pack(0, 1, 1, 512, 4096) + EXTENT.pack(3, 2, 0, 65536, 1 << 40)
    return {
        "hello": Hello(_ID, 3, "0.1.0", 1, 1, (StreamDisk(_OTHER, 0, 1 << 35),), "journal", 7, 8),  # type: ignore[arg-type]
        "welcome": Welcome(1, "0.1.0", 3, 9, 900, 8, 800, "journal"),
        "welcome_features": Welcome(1, "0.1.0", 3, 9, 900, 8, 800, "journal", ("piece-digests",)),
        "refusal": Refusal("StaleEpoch", "epoch 3 is over", "wait", False),
        "ack": Ack(3, 9, 900, 8, 800, "journal"),
        "ping": Ping(1),
        "pong": Pong((1 << 64) - 1),
        "digest_reply": DigestReply(_ID, 3, 9, _OTHER, 2, 4096, 11, b"\x01\x04"),  # type: ignore[arg-type]
        "digest_reply_pieces": DigestReply(
            _ID, 3, 9, _OTHER, 2, 4096, 11, b"\x01\x04", 2, bytes(range(64)),  # type: ignore[arg-type]
        ),
        "batch": Batch(
            _ID, _NIL, 3, 9, 800, 900, 1_700_000_000_123_456_789, 250_000_000, GapCause.SYNC,  # type: ignore[arg-type]
            MarkKind.APP_CONSISTENT, _OTHER, Codec.RAW, 512, extents, bytes(range(256)) * 2,  # type: ignore[arg-type]
        ),
        "digests": Digests(_ID, 3, 10, 900, _OTHER, 2, 65536, 4096, 99, bytes(range(32))),  # type: ignore[arg-type]
        "digests_pieces": Digests(_ID, 3, 10, 900, _OTHER, 2, 65536, 4096, 99, bytes(range(32)), 4096),  # type: ignore[arg-type]
    }  # fmt: skip


def frame_of(message: Message) -> bytes:
    return b"".join(bytes(part) for part in encode(message))


_u64 = st.integers(0, (1 << 64) - 1)
_text = st.text(max_size=20)
_uuid = st.uuids().map(str)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    payload = draw(st.binary(max_size=3000))
    codec = draw(st.sampled_from(Codec))
    first, end = sorted((draw(_u64), draw(_u64)))
    count = draw(st.integers(0, 5))
    return Batch(
        draw(_uuid), draw(_uuid), draw(_u64), draw(st.integers(1, (1 << 64) - 1)), first, end, draw(_u64), draw(_u64),
        draw(st.sampled_from(GapCause)), draw(st.sampled_from(MarkKind)), draw(_uuid | st.just("")), codec,
        len(payload) if codec is Codec.RAW else draw(st.integers(0, layout.MAXIMUM_PAYLOAD_BYTES)),
        draw(st.binary(min_size=16 * count, max_size=16 * count)),
        payload,
    )  # fmt: skip


@st.composite
def control_messages(draw: st.DrawFn) -> Message:
    disks = st.lists(st.builds(StreamDisk, _text, st.integers(0, 63), _u64), max_size=3).map(tuple)
    return draw(
        st.one_of(
            st.builds(Hello, _uuid, _u64, _text, _u64, _u64, disks, _text, _u64, _u64),
            st.builds(Welcome, _u64, _text, _u64, _u64, _u64, _u64, _u64, _text),
            st.builds(Refusal, _text, _text, _text, st.booleans()),
            st.builds(Ack, _u64, _u64, _u64, _u64, _u64, st.sampled_from(["", _ID])),
            st.builds(Ping, _u64),
            st.builds(Pong, _u64),
            st.builds(Digests, _uuid, _u64, st.integers(1, 99), _u64, _uuid, st.integers(0, 63),
                      st.integers(1, layout.MAXIMUM_DIGEST_BLOCK_BYTES),
                      _u64, _u64, st.integers(0, 9).flatmap(lambda n: st.binary(min_size=16 * n, max_size=16 * n))),
        )
    )  # fmt: skip


@given(st.lists(batches() | control_messages(), max_size=6), st.integers(1, 700))
@settings(max_examples=80, deadline=None)
def test_what_is_encoded_is_decoded_however_it_is_cut(messages: list[Message], step: int) -> None:
    data = b"".join(frame_of(message) for message in messages)
    decoder, decoded = Decoder(), []
    for start in range(0, len(data), step):
        decoded += decoder.feed(data[start : start + step])
    assert decoded == messages
    assert not decoder.mid_frame


@pytest.mark.parametrize("name", sorted(sample_messages()))
def test_golden_frames_of_every_version_are_read(name: str) -> None:
    message = sample_messages()[name]
    stored = sorted(GOLDEN.glob(f"v*_{name}.frame"))
    assert stored, "each message type has a golden frame"
    for path in stored:
        assert Decoder().feed(path.read_bytes()) == [message]
    current = GOLDEN / f"v{layout.VERSION}_{name}.frame"
    assert frame_of(message) == current.read_bytes(), "the bytes of a released version never change"


def test_every_frame_type_has_a_golden_frame() -> None:
    types = {type_in_file(path) for path in GOLDEN.glob("v1_*.frame")}
    assert types == set(FrameType)


def type_in_file(path: Path) -> FrameType:
    return FrameType(path.read_bytes()[5])


@pytest.mark.parametrize("name", sorted(sample_messages()))
def test_any_flipped_bit_is_noticed(name: str) -> None:
    frame = frame_of(sample_messages()[name])
    follower = frame_of(Ping(1)) * 4
    for index in range(len(frame)):
        for bit in (0, 7):
            damaged = bytearray(frame)
            damaged[index] ^= 1 << bit
            with pytest.raises((ProtocolError, IntegrityError)):
                Decoder().feed(bytes(damaged) + follower)


@pytest.mark.parametrize("name", sorted(sample_messages()))
def test_a_cut_frame_is_never_given_out(name: str) -> None:
    frame = frame_of(sample_messages()[name])
    for length in range(1, len(frame)):
        decoder = Decoder()
        assert decoder.feed(frame[:length]) == []
        assert decoder.mid_frame


def test_a_dead_decoder_stays_dead() -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError, match="does not speak"):
        decoder.feed(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
    with pytest.raises(ProtocolError, match="after a damaged frame"):
        decoder.feed(frame_of(Ping(1)))


@pytest.mark.parametrize(
    ("frame_type", "body_bytes"),
    [(FrameType.BATCH, layout.MAXIMUM_FRAME_BYTES), (FrameType.HELLO, layout.MAXIMUM_CONTROL_BYTES)],
)
def test_an_oversized_frame_is_refused_at_its_header(frame_type: FrameType, body_bytes: int) -> None:
    typed = layout.TYPED_HEADERS[frame_type].size
    header = layout.FRAME_HEADER.pack(layout.MAGIC, layout.VERSION, frame_type, 0, typed, 0, body_bytes, 0)
    with pytest.raises(ProtocolError, match="above the limit") as caught:
        Decoder().feed(header)
    assert caught.value.code == "FrameTooLarge"


def test_an_oversized_batch_is_not_encoded() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return layout.MAXIMUM_FRAME_BYTES

    batch = sample_messages()["batch"]
    assert isinstance(batch, Batch)
    fields = {name: getattr(batch, name) for name in Batch.__slots__}
    with pytest.raises(ProtocolError, match="above the limit"):
        encode(Batch(**{**fields, "payload": Huge()}))


def test_payloads_are_not_copied_by_the_encoder() -> None:
    batch = sample_messages()["batch"]
    assert isinstance(batch, Batch)
    assert encode(batch)[-1] is batch.payload


def test_raw_items_are_the_bytes_that_came() -> None:
    messages = sample_messages()
    batch, digests = messages["batch"], messages["digests"]
    data = frame_of(batch) + frame_of(Ping(5)) + frame_of(digests)
    first, ping, second = Decoder(raw_items=True).feed(data)
    assert isinstance(first, RawItem) and isinstance(second, RawItem) and ping == Ping(5)
    assert bytes(first.buffer) == frame_of(batch) and first.decode() == batch
    assert bytes(second.buffer) == frame_of(digests) and second.decode() == digests
    assert (first.header.sequence, first.header.end_position, first.header.mark_kind) == (
        9,
        900,
        MarkKind.APP_CONSISTENT,
    )
    assert (second.header.sequence, second.header.end_position) == (10, 900)
    assert first.header.total_bytes == len(first.buffer)
    assert encode(first) == [first.buffer]


def test_an_item_header_needs_only_the_first_bytes_and_names_what_is_wrong() -> None:
    frame = bytes(encode_item(sample_messages()["batch"]).buffer)  # type: ignore[arg-type]
    assert parse_item_header(frame[:ITEM_HEADER_BYTES]).sequence == 9
    with pytest.raises(IntegrityError, match="cut"):
        parse_item_header(frame[:40])
    with pytest.raises(IntegrityError, match="cut or joined"):
        RawItem.from_buffer(frame[:-1])
    with pytest.raises(ProtocolError, match="PING frame stands"):
        parse_item_header(frame_of(Ping(1)) + bytes(200))


@pytest.mark.parametrize(("part", "code"), [("extents", "ExtentListDamaged"), ("payload", "PayloadDamaged")])
def test_damage_names_the_part_that_decides_the_repair(part: str, code: str) -> None:
    item = encode_item(sample_messages()["batch"])  # type: ignore[arg-type]
    frame = bytearray(item.buffer)
    offset = item.header.header_bytes + (0 if part == "extents" else item.header.extents_bytes)
    frame[offset] ^= 0x10
    with pytest.raises(IntegrityError) as caught:
        RawItem.from_buffer(frame).verify()
    assert caught.value.code == code


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 0},
        {"first_position": 901},
        {"payload_raw_bytes": 511},
        {"machine_id": "not-a-uuid"},
        {"extents": b"123"},
    ],
)
def test_impossible_batches_are_refused(change: dict[str, object]) -> None:
    batch = sample_messages()["batch"]
    fields = {name: getattr(batch, name) for name in Batch.__slots__}
    with pytest.raises(FailbackError):
        Decoder().feed(frame_of(Batch(**{**fields, **change})))  # type: ignore[arg-type]


def test_json_that_lacks_a_key_or_is_none_is_a_protocol_error() -> None:
    for body in (b"{", b"{}", b"[]"):
        typed = layout.CONTROL.pack(xxhash.xxh3_128_digest(body))
        fields = (layout.MAGIC, layout.VERSION, FrameType.HELLO, 0, len(typed), 0, len(body))
        start = layout.FRAME_HEADER.pack(*fields, 0)[: layout.CHECKED_BYTES]
        digest = xxhash.xxh3_64_intdigest(start + typed)
        with pytest.raises(ProtocolError, match="cannot be read"):
            Decoder().feed(layout.FRAME_HEADER.pack(*fields, digest) + typed + body)
