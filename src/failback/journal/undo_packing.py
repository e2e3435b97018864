"""Undo records before they are written: run table, compressed or plain content, and the memory that old blocks are read into.

A record leaves here in parts, so that its content is copied nowhere between the read and the write. The memory is used
again for the next chunk: a fresh MiB costs the kernel 256 page faults, more than reading it.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import zstandard

from failback.journal import format as layout
from failback.journal.format import UNDO_BLOCK_BYTES, UNDO_CHUNK_BLOCKS, RunKind, UndoCodec

RUN_DTYPE = np.dtype(layout.RUN_DTYPE)
SAMPLE_STRIDE = 8
SAMPLED_FROM_BLOCKS = 32
SHRINKS = 0.97
_MOST_FREE_CHUNKS = 24

Blocks = npt.NDArray[np.int64]
Runs = npt.NDArray[np.void]
Content = npt.NDArray[np.uint8]
Parts = tuple[bytes | memoryview, ...]


class ChunkMemory:
    """Arrays of n x 4096 bytes for chunks of old blocks; any thread may take and give back."""

    def __init__(self) -> None:
        self._free: list[Content] = []

    def take(self) -> Content:
        """UNDO_CHUNK_BLOCKS rows of undefined content."""
        try:
            return self._free.pop()
        except IndexError:
            return np.empty((UNDO_CHUNK_BLOCKS, UNDO_BLOCK_BYTES), np.uint8)

    def give_back(self, content: Content) -> None:
        """Nobody refers to it any more."""
        if len(self._free) < _MOST_FREE_CHUNKS:
            self._free.append(content)


def pack_record(
    disk: int, ids: Blocks, content: Content, interval_id: int, *, compress: bool = True
) -> tuple[Parts, Runs]:
    """A record of the blocks ``ids`` (ascending) with ``content`` (n x 4096); zero blocks carry no content. The parts may refer
    to ``content``."""
    filled = content.view(np.uint64).any(axis=1)
    kinds = np.where(filled, int(RunKind.DATA), int(RunKind.ZERO))
    breaks = np.flatnonzero((np.diff(ids) != 1) | (np.diff(kinds) != 0)) + 1
    first = np.concatenate([[0], breaks])
    runs = np.zeros(len(first), RUN_DTYPE)
    runs["disk"] = disk
    runs["kind"] = kinds[first]
    runs["first"] = ids[first]
    runs["blocks"] = np.diff(np.concatenate([first, [len(ids)]]))
    kept = content if filled.all() else content[filled]
    return join_record(runs, kept, interval_id, compress=compress), runs


_local = threading.local()


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=1)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def shrinks(content: Content) -> bool:
    """Whether compressing is worth the try: of a larger chunk every eighth block is asked."""
    if len(content) < SAMPLED_FROM_BLOCKS:
        return True
    sample = np.ascontiguousarray(content[::SAMPLE_STRIDE])
    return len(_compressor().compress(sample.data)) < sample.nbytes * SHRINKS


def join_record(runs: Runs, content: Content, interval_id: int, *, compress: bool = True) -> Parts:
    """A whole record in two parts: header with run table, and content (zstd level 1 where it shrinks)."""
    raw = memoryview(np.ascontiguousarray(content).data).cast("B") if len(content) else memoryview(b"")
    stored: bytes | memoryview = raw
    codec = UndoCodec.RAW
    if len(raw) and compress and shrinks(content):
        packed = _compressor().compress(raw)
        if len(packed) < len(raw):
            stored, codec = packed, UndoCodec.ZSTD
    table = runs.tobytes()
    checksum = layout.body_checksum(table, stored)
    header = layout.UndoRecordHeader(codec, len(runs), len(stored), len(raw), interval_id, checksum,
        layout.table_checksum(table))  # fmt: skip
    return layout.pack_undo_record(header) + table, stored
