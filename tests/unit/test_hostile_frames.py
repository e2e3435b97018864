"""Frames that lie about sizes: refused before memory is taken for them, and never by anything but an error of ours."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import xxhash
import zstandard
from test_protocol_frames import frame_of, sample_messages

from failback.errors import FailbackError, IntegrityError, ProtocolError
from failback.model.stream import Codec
from failback.protocol import layout
from failback.protocol.compression import decompress
from failback.protocol.frames import Decoder
from failback.protocol.items import checksum
from failback.protocol.layout import FrameType
from failback.protocol.messages import Batch, Digests

MIB = 1 << 20


def header(kind: FrameType, typed: bytes, body_bytes: int) -> bytes:
    """A frame's head with a true checksum, whatever it says."""
    unsigned = layout.FRAME_HEADER.pack(layout.MAGIC, layout.VERSION, kind, 0, len(typed), 0, body_bytes, 0)[:24]
    return unsigned + xxhash.xxh3_64_intdigest(unsigned + typed).to_bytes(8, "little") + typed


def peak_bytes(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bomb(raw_bytes: int) -> bytes:
    """A zstd frame that truly decodes to so many zeroes."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=True).compressobj(size=raw_bytes)
    chunk = bytes(MIB)
    return b"".join([*(compressor.compress(chunk) for _ in range(raw_bytes // MIB)), compressor.flush()])


def test_a_payload_that_would_decode_to_more_than_it_says_takes_no_memory() -> None:
    data = bomb(256 * MIB)
    assert len(data) < MIB

    def decode() -> None:
        with pytest.raises(IntegrityError):
            decompress(data, 4096, "the payload")

    assert peak_bytes(decode) < MIB


def test_a_frame_that_names_no_size_is_bounded_by_the_expected_one() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(IntegrityError):
        decompress(compressor.compress(bytes(64 * MIB)), 4096, "the payload")
    assert decompress(compressor.compress(bytes(4096)), 4096, "the payload") == bytes(4096)


@pytest.mark.parametrize("raw", [b"", b"\x28", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8, b"text"])
def test_what_is_no_zstd_is_damage(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        decompress(raw, 512, "the payload")


def test_a_batch_that_would_decode_to_more_than_a_frame_is_refused() -> None:
    batch = sample_messages()["batch"]
    assert isinstance(batch, Batch)
    huge = replace(batch, codec=Codec.ZSTD, payload_raw_bytes=layout.MAXIMUM_PAYLOAD_BYTES + 1)
    with pytest.raises(ProtocolError) as caught:
        Decoder().feed(frame_of(huge))
    assert caught.value.code == "FrameTooLarge"
    Decoder().feed(frame_of(replace(huge, payload_raw_bytes=layout.MAXIMUM_PAYLOAD_BYTES)))


@pytest.mark.parametrize("block_bytes", [0, layout.MAXIMUM_DIGEST_BLOCK_BYTES + 1, 0xFFFF_FFFF])
def test_digests_of_blocks_that_nobody_could_read_at_once_are_refused(block_bytes: int) -> None:
    digests = sample_messages()["digests"]
    assert isinstance(digests, Digests)
    with pytest.raises(ProtocolError):
        Decoder().feed(frame_of(replace(digests, block_bytes=block_bytes)))


def test_before_the_greeting_no_memory_is_taken_for_an_item() -> None:
    typed = layout.DIGESTS.pack(uuid.uuid4().bytes, 1, 1, 0, bytes(16), 0, 0, 4096, 0, 0, 6 * MIB, 0, bytes(16))
    head = header(FrameType.DIGESTS, typed, 6 * MIB * 16)
    decoder = Decoder(raw_items=True)
    decoder.takes_items = False

    def feed() -> None:
        with pytest.raises(ProtocolError):
            decoder.feed(head)

    assert peak_bytes(feed) < MIB
    assert Decoder().feed(head) == []  # a link that takes items waits for the rest


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"machine_id":' * 100_000,
        b"9" * 5000,
        b'"\\ud800"',
        b"\xff\xfe",
        b"NaN",
        b"null",
        json.dumps({"machine_id": [], "epoch": {}, "software": None}).encode(),
        b'{"machine_id":"m","epoch":1e999,"software":"","lowest_version":1,"highest_version":1,"disks":[]}',
    ],
)
@pytest.mark.parametrize("kind", [FrameType.HELLO, FrameType.WELCOME, FrameType.REFUSAL])
def test_a_greeting_of_nonsense_is_refused(kind: FrameType, body: bytes) -> None:
    with pytest.raises(FailbackError):
        Decoder().feed(header(kind, layout.CONTROL.pack(checksum(body)), len(body)) + body)
