"""Resolving a group of batches equals applying its extents one after the other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from failback.errors import ProtocolError
from failback.journal import last_write
from failback.model.stream import Operation
from failback.protocol.extents import EXTENT

SECTORS = 40
EXTENTS = st.tuples(
    st.integers(0, 1), st.sampled_from(list(Operation)), st.integers(0, SECTORS - 1), st.integers(1, 12)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(EXTENTS, max_size=8), min_size=1, max_size=4))
def test_equals_applying_in_order(batches: list[list[tuple[int, Operation, int, int]]]) -> None:
    expected = {disk: bytearray(SECTORS * 512) for disk in (0, 1)}
    tables, payload = [], b""
    chance = random.Random(1)
    for batch in batches:
        packed = b""
        for disk, operation, start, count in batch:
            sectors = min(count, SECTORS - start)
            offset, length = start * 512, sectors * 512
            packed += EXTENT.pack(disk, operation, 0, length, offset)
            data = bytes(length)
            if operation is Operation.DATA:
                data = chance.randbytes(length)
                payload += data
            expected[disk][offset : offset + length] = data
        tables.append(last_write.extent_table(packed))
    found = {disk: bytearray(SECTORS * 512) for disk in (0, 1)}
    for disk, pieces in last_write.resolve(tables).items():
        assert (pieces.offset[1:] >= pieces.end[:-1]).all()
        for offset, length, source, operation in zip(
            pieces.offset.tolist(),
            pieces.length.tolist(),
            pieces.source.tolist(),
            pieces.operation.tolist(),
            strict=True,
        ):
            is_data = operation == Operation.DATA
            found[disk][offset : offset + length] = payload[source : source + length] if is_data else bytes(length)
    assert found == expected


def test_fresh_zeroes_become_one_piece() -> None:
    packed = b"".join(EXTENT.pack(0, Operation.ZERO, 0, 65536, index * 65536) for index in range(100))
    (pieces,) = last_write.resolve([last_write.extent_table(packed)]).values()
    assert pieces.offset.tolist() == [0] and pieces.length.tolist() == [6553600]


@pytest.mark.parametrize(
    ("extent", "payload", "reason"),
    [
        ((5, 1, 0, 512, 0), 512, "does not have"),
        ((0, 1, 0, 1024, 1 << 20), 1024, "outside"),
        ((0, 1, 0, 512, (1 << 64) - 512), 512, "outside"),
        ((0, 1, 0, 100, 0), 100, "whole sectors"),
        ((0, 1, 0, 0, 0), 0, "whole sectors"),
        ((0, 9, 0, 512, 0), 0, "unknown operation"),
        ((0, 1, 0, 512, 0), 1024, "length that its extents say"),
        ((0, 2, 0, 512, 0), 512, "length that its extents say"),
    ],
)
def test_impossible_extents_are_refused(extent: tuple[int, int, int, int, int], payload: int, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        last_write.check(EXTENT.pack(*extent), {0: 1 << 20}, payload)
