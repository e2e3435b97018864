"""Counting what a stream carries, by kind, for the metrics: plain additions, over the streams of one mobility service."""

from __future__ import annotations

from dataclasses import dataclass

from failback.model.traffic import StreamFigures


@dataclass(slots=True)
class Traffic:
    batches: int = 0
    captured_bytes: int = 0
    reread_bytes: int = 0
    digest_bytes: int = 0
    payload_bytes: int = 0
    payload_sent_bytes: int = 0

    def batch(self, captured_bytes: int, payload_raw_bytes: int, payload_bytes: int, *, reread: bool) -> None:
        """``reread``: the batch carries blocks that were read from the disks beside (or instead of) captured writes."""
        self.batches += 1
        self.captured_bytes += captured_bytes
        self.payload_bytes += payload_raw_bytes
        self.payload_sent_bytes += payload_bytes
        if reread:
            self.reread_bytes += max(0, payload_raw_bytes - captured_bytes)

    def figures(self, *, ring_bytes: int, ring_used_bytes: int, dirty_blocks: int, unspooled_bytes: int,
                unlanded_items: int) -> StreamFigures:  # fmt: skip
        return StreamFigures(
            ring_bytes, max(0, ring_used_bytes), dirty_blocks, unspooled_bytes, unlanded_items, self.batches,
            self.captured_bytes, self.reread_bytes, self.digest_bytes, self.payload_bytes, self.payload_sent_bytes,
        )  # fmt: skip
