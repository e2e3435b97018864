"""Discarded ranges: joined, cut by writes, kept over a restart, and told apart by a scrub."""

from __future__ import annotations

import random
from pathlib import Path

from failback.mobility import discards
from failback.mobility.discards import Discards
from failback.model.stream import ExtentFlag, Operation
from failback.protocol.extents import EXTENT


def row(operation: Operation, offset: int, length: int, disk: int = 0) -> bytes:
    return EXTENT.pack(disk, operation, int(ExtentFlag.NONE), length, offset)


def test_against_a_model_of_sectors(tmp_path: Path) -> None:
    chance, found, model = random.Random(7), Discards(tmp_path / "discards.json"), [False] * 200
    for _ in range(3000):
        operation = chance.choice((Operation.DISCARD, Operation.DATA, Operation.ZERO))
        first = chance.randrange(199)
        count = chance.randrange(1, 200 - first)
        if chance.random() < 0.7:
            count = min(count, 6)
        found.take(row(operation, first * 512, count * 512))
        model[first : first + count] = [operation is Operation.DISCARD] * count
        expected, at = [], 0
        while at < 200:
            end = at
            while end < 200 and model[end]:
                end += 1
            if end > at:
                expected.append((at * 512, end * 512))
            at = end + 1
        assert found.ranges(0) == expected
        first, count = chance.randrange(190), chance.randrange(1, 10)
        assert found.touch(0, first * 512, count * 512) == any(model[first : first + count])
    found.save(100.0)
    assert Discards(tmp_path / "discards.json").ranges(0) == found.ranges(0)


def test_bounded_and_a_torn_file_is_an_empty_one(tmp_path: Path) -> None:
    found = Discards(tmp_path / "discards.json")
    found.take(row(Operation.DISCARD, 1 << 40, 1 << 20, 3))
    found.take(b"".join(row(Operation.DISCARD, at * 8192, 4096, 3) for at in range(discards.MOST_RANGES)))
    assert len(found.ranges(3)) <= discards.MOST_RANGES and found.touch(3, 1 << 40, 512), "the largest stay"
    assert not found.touch(0, 0, 1 << 50)
    for torn in ("", "{", "[1]", '{"0": 5}', '{"0": [[1]]}'):
        (tmp_path / "torn.json").write_text(torn)
        assert Discards(tmp_path / "torn.json").ranges(0) == []
