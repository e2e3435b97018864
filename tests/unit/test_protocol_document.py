"""docs/protocol.md says what the code does: sizes, offsets, numbers, limits."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from failback.model.stream import Codec, ExtentFlag, GapCause, MarkKind, Operation
from failback.protocol import layout
from failback.protocol.connection import CONVERSATION, SPOKEN_BY, End, Event, State
from failback.protocol.extents import EXTENT
from failback.protocol.layout import FrameType

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table below the heading (or the line that contains the text)."""
    lines = DOCUMENT[DOCUMENT.index(heading) :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table[2:]


def sizes_of(structure: struct.Struct) -> list[int]:
    """Field sizes of a little-endian format, in order."""
    fields = re.findall(r"(\d*)([a-zA-Z])", structure.format)
    sizes: list[int] = []
    for count, code in fields:
        if code == "s":
            sizes.append(int(count))
        else:
            sizes += [struct.calcsize("<" + code)] * int(count or 1)
    return sizes


TABLES = {
    "### Frame header: 32 bytes": (layout.FRAME_HEADER, 0),
    "### ACK: 104 bytes": (layout.ACK, 0),
    "### Every item begins with: 40 bytes": (layout.ITEM_PREFIX, 0),
    "### BATCH: 160 bytes": (layout.BATCH, 4),
    "### DIGESTS: 104 bytes": (layout.DIGESTS, 4),
    "### DIGEST_REPLY: 80 bytes": (layout.DIGEST_REPLY, 0),
    "Extent: 16 bytes": (EXTENT, 0),
}


@pytest.mark.parametrize("heading", sorted(TABLES))
def test_offsets_and_sizes(heading: str) -> None:
    structure, prefix_fields = TABLES[heading]
    sizes = sizes_of(structure)
    if prefix_fields:
        assert sizes[:prefix_fields] == sizes_of(layout.ITEM_PREFIX)
        sizes = [sum(sizes[:prefix_fields]), *sizes[prefix_fields:]]
    documented = [(int(offset), int(size)) for offset, size, _ in rows_below(heading)]
    assert documented == [(sum(sizes[:index]), size) for index, size in enumerate(sizes)]
    assert int(re.search(r"(\d+) bytes", heading).group(1)) == structure.size  # type: ignore[union-attr]


def test_types() -> None:
    documented = {(name, int(number), int(size)) for name, number, size, _ in rows_below("### Types")}
    assert documented == {(kind.name, kind.value, layout.TYPED_HEADERS[kind].size) for kind in FrameType}


def test_limits_magic_and_version() -> None:
    assert [int(size) for _, size in rows_below("| limit |")] == [
        layout.MAXIMUM_FRAME_BYTES,
        layout.MAXIMUM_CONTROL_BYTES,
        layout.MAXIMUM_PAYLOAD_BYTES,
        layout.MAXIMUM_DIGEST_BLOCK_BYTES,
    ]
    assert f"magic `{layout.MAGIC.decode()}`" in DOCUMENT
    assert f"# The replication protocol, version {layout.VERSION}\n" in DOCUMENT
    assert layout.FRAME_HEADER.size == layout.FRAME_HEADER_BYTES and layout.CHECKED_BYTES == 24


@pytest.mark.parametrize(
    ("label", "numbers"),
    [
        ("| gap (", GapCause),
        ("| mark kind (", MarkKind),
        ("| codec of the payload (", Codec),
        ("| operation (", Operation),
    ],
)
def test_numbers(label: str, numbers: type) -> None:
    text = DOCUMENT[DOCUMENT.index(label) + len(label) :].split(")")[0]
    documented = {
        int(part.split(" ", 1)[0]): part.split(" ", 1)[1].replace(" ", "_").replace("-", "_")
        for part in text.split(", ")
    }
    assert documented == {member.value: member.name.lower() for member in numbers}  # type: ignore[attr-defined]
    assert ExtentFlag.REREAD == 1


def test_the_conversation() -> None:
    speakers = {"sender": (End.SENDING,), "receiver": (End.RECEIVING,), "both": (End.SENDING, End.RECEIVING)}
    rows = rows_below("| state | message |")
    table: dict[State, dict[Event, State]] = {state: {} for state in State}
    for state, message, speaker, following in rows:
        event = next(event for event in Event if event.value.lower() == message.lower())
        assert SPOKEN_BY[event] == speakers[speaker]
        for source in [State(state)] if state != "any" else [State.NEW, State.GREETED, State.OPEN]:
            table[source][event] = source if following == "unchanged" else State(following)
    assert table == CONVERSATION
