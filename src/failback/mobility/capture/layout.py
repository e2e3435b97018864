"""Byte layouts shared with bpf/capture.bpf.c: records in the ring, the control block, map elements.

Change both sides together, and LAYOUT_VERSION with them: a running kernel program of the same version is taken over as it is,
one of a version in READABLE_LAYOUTS hands over what it knows to a new one loaded beside it (``handover``), any other is
detached, and its disks are compared.

Version 2 appended ``predecessor_ring`` and ``carried_disks`` to the control block of version 1.
"""

from __future__ import annotations

import struct

LAYOUT_VERSION = 2
EARLIER_LAYOUT = 1
READABLE_LAYOUTS = (EARLIER_LAYOUT, LAYOUT_VERSION)
"""Versions whose records, disks, maps and control fields (as far as they have them) lie where this version has them."""

RECORD = struct.Struct("<IIQQIBBHQ")
"""Ring header (length and state bits, page offset), then offset, ktime_ns, length, operation, flags, disk, extent_bytes."""
RECORD_BYTES = RECORD.size
RING_HEADER_BYTES = 8
BUSY = 1 << 31
DISCARDED = 1 << 30
LENGTH_MASK = (1 << 30) - 1

RECORD_MARK = 0xFE
FLAG_FIRST = 1
FLAG_LAST = 2
SELF_TEST_DISK = 0xFFFE
"""Disk number of the throw-away loop device: its records are never emitted."""

PAGE_BYTES = 4096
BLOCKS_PER_PAGE = 4096
GENERATIONS_PER_PAGE = PAGE_BYTES // 2
SELF_TEST_BLOCKS = BLOCKS_PER_PAGE

DISK = struct.Struct("<QII")
"""Value of the map ``disks`` by device number: base_block, index, the kernel's disk sequence number (low half; version 1: 0)."""
SEQUENCE_MASK = 0xFFFFFFFF

INFLIGHT = struct.Struct("<QQQIIII")
"""Value of the map ``inflight`` by bio address: parent, sector, base_block, bytes, left, generation, index."""

CALL = struct.Struct("<6Q")
CALL_MARK = 1
CALL_SYMBOLS = 2
CALL_SEARCH = 3
CALL_SETTLE = 4

_CONTROL_FIELDS = (
    ("layout_version", 1),
    ("fingerprint", 4),
    ("vmemmap_base", 1),
    ("page_offset_base", 1),
    ("generation", 1),
    ("wake_position", 1),
    ("calibrate_tgid", 1),
    ("acknowledged_missed", 1),
    ("degraded", 1),
    ("inflight", 8),
    ("calibrated_page", 1),
    ("calibrated_count", 1),
    ("bios", 1),
    ("bytes_written", 1),
    ("discards", 1),
    ("barriers", 1),
    ("drops", 1),
    ("bytes_dropped", 1),
    ("skipped", 1),
    ("unreadable_pages", 1),
    ("unsupported", 1),
    ("untracked", 1),
    ("write_errors", 1),
    ("overlaps", 1),
    ("overlap_scans", 1),
    ("unannounced", 1),
    ("healed", 1),
    ("splits", 1),
    ("largest_bio", 1),
    ("predecessor_ring", 1),
    ("carried_disks", 1),
)


def _control_offsets() -> dict[str, int]:
    offsets: dict[str, int] = {}
    at = 0
    for name, words in _CONTROL_FIELDS:
        offsets[name] = at
        at += words
    return offsets


CONTROL_WORD = _control_offsets()
"""Index of each field's first 64-bit word in the control block."""
FINGERPRINT_WORDS = 4
GENERATION_SLOTS = 8
