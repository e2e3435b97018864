"""Figures of an agent's stream for metrics; bytes are counted since its mobility service (or the epoch) began."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamFigures:
    ring_bytes: int = 0
    ring_used_bytes: int = 0
    """Captured and not yet put into batches."""
    dirty_blocks: int = 0
    """Blocks that wait to be read again."""
    unspooled_bytes: int = 0
    """Sent, or waiting to be sent, and not yet durable at the process server."""
    unlanded_items: int = 0
    batches: int = 0
    captured_bytes: int = 0
    """Of writes that were captured as records."""
    reread_bytes: int = 0
    """Of blocks that were read from the disks."""
    digest_bytes: int = 0
    payload_bytes: int = 0
    """Of data in batches before compression."""
    payload_sent_bytes: int = 0
    """The same after compression."""
