"""docs/journal-format.md and journal/format.py say the same."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from failback.errors import IntegrityError
from failback.journal import catalogue
from failback.journal import format as layout

DOCUMENT = (Path(__file__).parents[2] / "docs" / "journal-format.md").read_text(encoding="utf-8")
STRUCTURES = {
    "File header": (layout.FILE_HEADER, layout.FILE_HEADER_BYTES),
    "Redo record": (layout.REDO_RECORD, layout.REDO_RECORD_BYTES),
    "Undo record": (layout.UNDO_RECORD, layout.UNDO_RECORD_BYTES),
    "Run": (layout.RUN, layout.RUN_BYTES),
}
MACHINE, INCARNATION = "11111111-2222-3333-4444-555555555555", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


def _section(title: str) -> str:
    found = re.search(rf"^##+ {re.escape(title)}.*?(?=^##|\Z)", DOCUMENT, re.M | re.S)
    assert found, f"no section {title}"
    return found[0]


def _fields(structure: struct.Struct) -> list[tuple[int, int]]:
    rows, offset = [], 0
    for count, code in re.findall(r"(\d*)([A-Za-z])", structure.format):
        for _ in range(1 if code == "s" else int(count or 1)):
            size = int(count) if code == "s" else struct.calcsize("<" + code)
            rows.append((offset, size))
            offset += size
    return rows


@pytest.mark.parametrize("title", STRUCTURES)
def test_offsets_and_sizes(title: str) -> None:
    structure, size = STRUCTURES[title]
    section = _section(title)
    assert f"{title}: {size} bytes" in section and structure.size == size
    rows = [(int(offset), int(length)) for offset, length in re.findall(r"^\| (\d+) \| (\d+) \|", section, re.M)]
    assert rows == _fields(structure)


def test_magics_constants_and_numbers() -> None:
    for magic in (layout.REDO_FILE_MAGIC, layout.UNDO_FILE_MAGIC, layout.REDO_RECORD_MAGIC, layout.UNDO_RECORD_MAGIC):
        assert f"`{magic.decode()}`" in DOCUMENT
    assert f"codec: {layout.UndoCodec.RAW:d} raw, {layout.UndoCodec.ZSTD:d} zstd" in DOCUMENT
    assert f"kind: {layout.RunKind.DATA:d} data, {layout.RunKind.ZERO:d} zero" in DOCUMENT
    for name, value in {
        "undo block, bytes": layout.UNDO_BLOCK_BYTES,
        "blocks of a record, at most": layout.UNDO_CHUNK_BLOCKS,
        "redo segment, bytes": layout.REDO_SEGMENT_BYTES,
        "catalogue format": catalogue.FORMAT,
    }.items():
        assert f"| {name} | {value} |" in DOCUMENT
    assert DOCUMENT.count(f"version: {layout.VERSION}") == 3


def test_headers_round_trip_and_damage_is_found() -> None:
    header = layout.FileHeader(layout.REDO_FILE_MAGIC, MACHINE, INCARNATION, 77, 123)
    packed = layout.pack_file_header(header)
    assert layout.parse_file_header(packed, layout.REDO_FILE_MAGIC, "x") == header
    undo = layout.UndoRecordHeader(layout.UndoCodec.ZSTD, 3, 100, 8192, 5, bytes(range(16)))
    assert layout.parse_undo_record(layout.pack_undo_record(undo)) == undo
    assert layout.parse_redo_record(layout.pack_redo_record(9, 4096)) == (9, 4096)
    for position in range(layout.FILE_HEADER_BYTES):
        damaged = bytearray(packed)
        damaged[position] ^= 0x10
        with pytest.raises(IntegrityError):
            layout.parse_file_header(bytes(damaged), layout.REDO_FILE_MAGIC, "x")
    for whole, parse in ((layout.pack_undo_record(undo), layout.parse_undo_record),
                         (layout.pack_redo_record(9, 4096), layout.parse_redo_record)):  # fmt: skip
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 0x01
            assert parse(bytes(damaged)) is None  # type: ignore[operator]
        assert parse(whole[:-1]) is None  # type: ignore[operator]
