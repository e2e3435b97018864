"""Byte tables of the redo segments and undo files (docs/journal-format.md; a test compares the two). Pure.

All numbers are little-endian; reserved fields are zero when written and ignored when read. A redo segment is a file
header and then records: record header and one item frame exactly as the replication protocol carried it. An undo file
is a file header and then records: record header, run table, content. Every record proves itself by checksums, so that
a torn tail is found and cut without any other knowledge.
"""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass

import xxhash

from failback.errors import IntegrityError

VERSION = 1

REDO_FILE_MAGIC = b"FBRF"
REDO_RECORD_MAGIC = b"FBRR"
UNDO_FILE_MAGIC = b"FBUF"
UNDO_RECORD_MAGIC = b"FBUR"

FILE_HEADER = struct.Struct("<4sHH16s16sQQQ")
"""magic, version, reserved, machine id, incarnation, number (first ordinal or interval id), wall ns, checksum."""
REDO_RECORD = struct.Struct("<4sHHIIQQ")
"""magic, version, reserved, frame bytes, reserved, ordinal, checksum."""
UNDO_RECORD = struct.Struct("<4sHBBIIIIQ16s8sQ")
"""magic, version, codec, reserved, runs, stored bytes, raw bytes, reserved, interval id, body and table checksum, checksum."""
RUN = struct.Struct("<HBBIQ")
"""disk index, kind, reserved, blocks, first block."""

FILE_HEADER_BYTES = 64
REDO_RECORD_BYTES = 32
UNDO_RECORD_BYTES = 64
RUN_BYTES = 16

UNDO_BLOCK_BYTES = 4096
UNDO_CHUNK_BLOCKS = 256
REDO_SEGMENT_BYTES = 64 << 20

RUN_DTYPE = [("disk", "<u2"), ("kind", "u1"), ("reserved", "u1"), ("blocks", "<u4"), ("first", "<u8")]


class RunKind(enum.IntEnum):
    DATA = 1
    """The run's old content is in the record's content, in the order of the table."""
    ZERO = 2
    """The blocks read as zeroes."""


class UndoCodec(enum.IntEnum):
    RAW = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class FileHeader:
    magic: bytes
    machine_id: str
    incarnation: str
    number: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class UndoRecordHeader:
    codec: UndoCodec
    runs: int
    stored_bytes: int
    raw_bytes: int
    interval_id: int
    body_checksum: bytes
    table_checksum: bytes = bytes(8)
    """Of the run table alone, so that the table can be used without reading the content; zeroes: not recorded."""

    @property
    def body_bytes(self) -> int:
        return self.runs * RUN_BYTES + self.stored_bytes


def pack_file_header(header: FileHeader) -> bytes:
    machine, incarnation = uuid.UUID(header.machine_id).bytes, uuid.UUID(header.incarnation).bytes
    body = FILE_HEADER.pack(header.magic, VERSION, 0, machine, incarnation, header.number, header.wall_ns, 0)[:-8]
    return body + _sum64(body)


def parse_file_header(data: bytes, magic: bytes, name: str) -> FileHeader:
    """Raises IntegrityError when the bytes are not that kind of header."""
    if len(data) != FILE_HEADER_BYTES or data[-8:] != _sum64(data[:-8]):
        raise IntegrityError(f"{name}: the file header is cut or damaged")
    found, version, _, machine, incarnation, number, wall_ns, _ = FILE_HEADER.unpack(data)
    if found != magic or version != VERSION:
        raise IntegrityError(f"{name}: {found!r} version {version} is not {magic!r} version {VERSION}")
    return FileHeader(found, str(uuid.UUID(bytes=machine)), str(uuid.UUID(bytes=incarnation)), number, wall_ns)


def pack_redo_record(ordinal: int, frame_bytes: int) -> bytes:
    body = REDO_RECORD.pack(REDO_RECORD_MAGIC, VERSION, 0, frame_bytes, 0, ordinal, 0)[:-8]
    return body + _sum64(body)


def parse_redo_record(data: bytes) -> tuple[int, int] | None:
    """(ordinal, frame bytes), or None when no whole record header stands here (a torn tail)."""
    if len(data) != REDO_RECORD_BYTES or data[-8:] != _sum64(data[:-8]) or data[:4] != REDO_RECORD_MAGIC:
        return None
    _, version, _, frame_bytes, _, ordinal, _ = REDO_RECORD.unpack(data)
    if version != VERSION:
        raise IntegrityError(f"redo record version {version} is not known")
    return ordinal, frame_bytes


def pack_undo_record(header: UndoRecordHeader) -> bytes:
    body = UNDO_RECORD.pack(
        UNDO_RECORD_MAGIC, VERSION, header.codec, 0, header.runs, header.stored_bytes, header.raw_bytes, 0,
        header.interval_id, header.body_checksum, header.table_checksum, 0,
    )[:-8]  # fmt: skip
    return body + _sum64(body)


def parse_undo_record(data: bytes) -> UndoRecordHeader | None:
    """The header, or None when no whole record header stands here (a torn tail)."""
    if len(data) != UNDO_RECORD_BYTES or data[-8:] != _sum64(data[:-8]) or data[:4] != UNDO_RECORD_MAGIC:
        return None
    _, version, codec, _, runs, stored, raw, _, interval_id, checksum, table, _ = UNDO_RECORD.unpack(data)
    if version != VERSION:
        raise IntegrityError(f"undo record version {version} is not known")
    try:
        known_codec = UndoCodec(codec)
    except ValueError:
        raise IntegrityError(f"undo records with codec {codec} cannot be read by this version") from None
    return UndoRecordHeader(known_codec, runs, stored, raw, interval_id, checksum, table)


def body_checksum(*parts: bytes | memoryview) -> bytes:
    """XXH3-128, canonical form, over the parts one after the other."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.digest()


def table_checksum(table: bytes) -> bytes:
    """XXH3-64, little-endian."""
    return _sum64(table)


def _sum64(data: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(data).to_bytes(8, "little")
