"""Dirty bytes and unlanded generations: runs, limits, and that a later batch's block survives an earlier landing."""

from __future__ import annotations

import mmap

import pytest

from failback.mobility.capture.block_maps import ByteMap, GenerationMap, as_runs, blocks_of_bitmap, pages_for
from failback.model.stream import BLOCK_BYTES
from failback.protocol.extents import EXTENT


def test_lowest_blocks_come_first_as_runs_up_to_the_limit() -> None:
    blocks = ByteMap(mmap.mmap(-1, 8192))
    for first, count in ((10, 3), (100, 1), (4095, 2), (8000, 5)):
        blocks.set_run(first, count)
    assert blocks.runs(0, 8192, 100) == [(10, 3), (100, 1), (4095, 2), (8000, 5)]
    assert blocks.runs(0, 8192, 2) == [(10, 2)]
    assert blocks.runs(11, 8192 - 11, 4) == [(11, 2), (100, 1), (4095, 1)]
    assert blocks.runs(4096, 1, 100) == [(4096, 1)]
    assert blocks.count(0, 8192) == 11
    blocks.clear_run(4000, 4192)
    assert blocks.count(0, 8192) == 4
    assert blocks.any(0, 4000)
    assert not blocks.any(13, 87)


def test_a_run_may_reach_the_end() -> None:
    blocks = ByteMap(mmap.mmap(-1, 4096))
    blocks.set_run(4090, 6)
    assert blocks.runs(0, 4096, 100) == [(4090, 6)]


def test_landing_clears_only_what_no_later_batch_holds() -> None:
    blocks = GenerationMap(mmap.mmap(-1, 16384))
    blocks.set_run(5, 10, 7)
    blocks.set_run(8, 2, 9)
    blocks.clear_run(5, 10, 7)
    assert list(blocks.blocks(0, 8192)) == [8, 9]
    blocks.clear_run(8, 2, 9)
    assert list(blocks.blocks(0, 8192)) == []
    blocks.close()


@pytest.mark.parametrize(
    ("low", "high", "left"), [(2, 4, [0, 40]), (5, 1, [20, 30]), (1, 65535, []), (3, 3, [0, 20, 40])]
)
def test_generations_are_cleared_by_range_which_may_wrap(low: int, high: int, left: list[int]) -> None:
    blocks = GenerationMap(mmap.mmap(-1, 4096))
    for block, generation in ((0, 1), (20, 2), (30, 3), (40, 65535)):
        blocks.set_run(block, 1, generation)
    blocks.clear_generations(0, 2048, low, high)
    assert list(blocks.blocks(0, 2048)) == left
    blocks.close()


def test_bitmaps_and_runs() -> None:
    assert blocks_of_bitmap(100, b"\x05\x80") == [100, 102, 115]
    assert blocks_of_bitmap(0, b"") == []
    assert as_runs([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 1), (9, 2)]
    assert [pages_for(count) for count in (0, 1, 4096, 4097)] == [0, 1, 1, 2]


def test_extents_are_noted_block_by_block_and_only_their_own_generation_is_forgotten() -> None:
    blocks = GenerationMap(mmap.mmap(-1, 16384))
    bases = {0: 0, 3: 4096}
    small = EXTENT.pack(0, 1, 0, 4096, 5 * BLOCK_BYTES + 4096)
    across = EXTENT.pack(3, 1, 0, 8192, 2 * BLOCK_BYTES - 4096)
    long = EXTENT.pack(0, 2, 0, 4 * BLOCK_BYTES, 8 * BLOCK_BYTES)
    blocks.set_extents(small + across + long, bases, 7)
    assert list(blocks.blocks(0, 8192)) == [5, 8, 9, 10, 11, 4096 + 1, 4096 + 2]
    blocks.set_extents(
        EXTENT.pack(3, 1, 0, 512, 2 * BLOCK_BYTES) + EXTENT.pack(0, 1, 0, 512, 9 * BLOCK_BYTES), bases, 8
    )
    blocks.clear_extents(small + across + long, bases, 7)
    assert list(blocks.blocks(0, 8192)) == [9, 4096 + 2]
    blocks.clear_extents(across + long, bases, 8)
    assert not list(blocks.blocks(0, 8192))
    blocks.close()
