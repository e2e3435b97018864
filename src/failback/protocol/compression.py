"""Decompressing what a peer or a file sent, without believing what it says about its size.

A zstd frame names its decoded size itself, and zstandard allocates that much whatever ``max_output_size`` says: some bytes
could ask for terabytes. Here the decoded size is known beforehand (it is bounded by the header's parser), and a frame
that says or holds anything else is damaged. Pure.
"""

from __future__ import annotations

import zstandard

from failback.errors import IntegrityError

_UNKNOWN = -1
"""What ``frame_content_size`` gives for a frame that does not say."""


def decompress(data: bytes | memoryview, raw_bytes: int, what: str) -> bytes:
    """Exactly ``raw_bytes`` decoded bytes. Raises IntegrityError (PayloadDamaged), whose sentence begins with ``what``."""
    try:
        said = zstandard.frame_content_size(data)
        if said not in (_UNKNOWN, raw_bytes):
            raise IntegrityError(f"{what} would decode to {said} bytes, not {raw_bytes}", code="PayloadDamaged")
        raw: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=max(raw_bytes, 1))
    except zstandard.ZstdError as error:
        raise IntegrityError(f"{what} cannot be decompressed: {error}", code="PayloadDamaged") from error
    if len(raw) != raw_bytes:
        raise IntegrityError(f"{what} has {len(raw)} bytes, not {raw_bytes}", code="PayloadDamaged")
    return raw
