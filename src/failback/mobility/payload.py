"""A batch's bytes for the wire: joined as they are, or compressed with zstd level 1 where a sample shrinks (D3). Pure."""

from __future__ import annotations

from collections.abc import Sequence

import zstandard

from failback.mobility.config import Compression
from failback.model.stream import Codec

SMALLEST_BYTES = 1024
SAMPLE_BYTES = 32768
WORTH_IT = 0.85


def encode(parts: Sequence[memoryview | bytes], total_bytes: int, compression: Compression) -> tuple[Codec, bytes]:
    """The joined parts; one copy either way. AUTO compresses when samples from begin, middle and end shrink below 85 %."""
    if compression is Compression.OFF or total_bytes < SMALLEST_BYTES:
        return Codec.RAW, b"".join(parts)
    if compression is Compression.AUTO and not _shrinks(parts):
        return Codec.RAW, b"".join(parts)
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=total_bytes)
    pieces = [compressor.compress(part) for part in parts]
    pieces.append(compressor.flush())
    encoded = b"".join(pieces)
    if len(encoded) >= total_bytes:
        return Codec.RAW, b"".join(parts)
    return Codec.ZSTD, encoded


def _shrinks(parts: Sequence[memoryview | bytes]) -> bool:
    chosen = {0, len(parts) // 2, len(parts) - 1}
    samples = [bytes(parts[index][:SAMPLE_BYTES]) for index in sorted(chosen)]
    raw = sum(map(len, samples))
    compressor = zstandard.ZstdCompressor(level=1)
    return sum(len(compressor.compress(sample)) for sample in samples) < raw * WORTH_IT
