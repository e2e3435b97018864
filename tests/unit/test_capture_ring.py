"""Walking the ring: what becomes one extent, where a collect ends, what a cut tears. The ring is a memory file."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from failback.mobility.capture.layout import BUSY, DISCARDED, FLAG_FIRST, FLAG_LAST, PAGE_BYTES, RECORD, RECORD_MARK
from failback.mobility.capture.ring import Ring
from failback.mobility.capture.values import Collected
from failback.protocol.extents import EXTENT

SIZE = 1 << 20
WHOLE = FLAG_FIRST | FLAG_LAST


class RingFile:
    """Lays records into memory as the kernel does; the second mapping of the data is left empty."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("ring")
        os.ftruncate(self.descriptor, 2 * PAGE_BYTES + 2 * SIZE)
        self.produced = 0
        self.records: list[int] = []

    def add(
        self, offset: int, data: bytes = b"", *, flags: int = WHOLE, operation: int = 1, disk: int = 0, extent_bytes: int = 0,
        state: int = 0, padding: int = 0,
    ) -> int:  # fmt: skip
        length = RECORD.size - 8 + len(data) + padding
        at = self.produced
        record = RECORD.pack(
            length | state, 0, offset, 100 + len(self.records), len(data), operation, flags, disk, extent_bytes
        )
        os.pwrite(self.descriptor, record + data, 2 * PAGE_BYTES + at)
        self.records.append(at)
        self.produced += (length + 15) & ~7
        os.pwrite(self.descriptor, self.produced.to_bytes(8, "little"), PAGE_BYTES)
        return at

    def set_state(self, at: int, state: int) -> None:
        (length,) = (int.from_bytes(os.pread(self.descriptor, 4, 2 * PAGE_BYTES + at), "little") & (DISCARDED - 1),)
        os.pwrite(self.descriptor, (length | state).to_bytes(4, "little"), 2 * PAGE_BYTES + at)


@pytest.fixture
def kernel() -> Iterator[RingFile]:
    made = RingFile()
    yield made
    os.close(made.descriptor)


def rows(collected: Collected | None) -> list[tuple[int, int, int, int]]:
    """(disk, operation, offset, length)."""
    assert collected is not None
    return [
        (disk, operation, offset, length)
        for disk, operation, _, length, offset in EXTENT.iter_unpack(collected.extents)
    ]


def test_padding_is_trimmed_and_neighbours_are_one_extent(kernel: RingFile) -> None:
    kernel.add(4096, b"a" * 512, padding=512)
    kernel.add(4608, b"b" * 1024)
    kernel.add(8192, b"c" * 512)
    ring = Ring(kernel.descriptor, SIZE)
    collected = ring.collect(SIZE, None)
    assert rows(collected) == [(0, 1, 4096, 1536), (0, 1, 8192, 512)]
    assert collected is not None
    assert b"".join(collected.payload) == b"a" * 512 + b"b" * 1024 + b"c" * 512
    assert (collected.first_position, collected.end_position, collected.payload_bytes) == (0, kernel.produced, 2048)
    assert collected.oldest_ktime_ns == 100
    assert ring.collect(SIZE, None) is None


def test_other_disks_and_operations_do_not_join(kernel: RingFile) -> None:
    kernel.add(0, b"a" * 512)
    kernel.add(512, b"b" * 512, disk=1)
    kernel.add(512, operation=2, extent_bytes=4096)
    kernel.add(4608, operation=3, extent_bytes=8192)
    kernel.add(12800, b"c" * 512)
    assert rows(Ring(kernel.descriptor, SIZE).collect(SIZE, None)) == [
        (0, 1, 0, 512), (1, 1, 512, 512), (0, 2, 512, 4096), (0, 3, 4608, 8192), (0, 1, 12800, 512),
    ]  # fmt: skip


def test_nothing_is_read_past_a_busy_record(kernel: RingFile) -> None:
    kernel.add(0, b"a" * 512)
    busy = kernel.add(8192, b"b" * 512, state=BUSY)
    kernel.add(16384, b"c" * 512)
    ring = Ring(kernel.descriptor, SIZE)
    collected = ring.collect(SIZE, None)
    assert rows(collected) == [(0, 1, 0, 512)]
    assert collected is not None
    assert collected.end_position == busy
    assert ring.collect(SIZE, None) is None
    kernel.set_state(busy, 0)
    assert rows(ring.collect(SIZE, None)) == [(0, 1, 8192, 512), (0, 1, 16384, 512)]


def test_discarded_records_are_passed_over(kernel: RingFile) -> None:
    kernel.add(0, b"x" * 512, state=DISCARDED)
    kernel.add(512, b"y" * 512)
    assert rows(Ring(kernel.descriptor, SIZE).collect(SIZE, None)) == [(0, 1, 512, 512)]


def test_a_collect_ends_directly_after_a_mark(kernel: RingFile) -> None:
    kernel.add(0, b"a" * 512)
    mark = kernel.add(7, operation=RECORD_MARK, disk=0xFFFF)
    kernel.add(512, b"b" * 512)
    ring = Ring(kernel.descriptor, SIZE)
    collected = ring.collect(SIZE, None)
    assert collected is not None
    assert collected.marks == ((7, mark),)
    assert rows(collected) == [(0, 1, 0, 512)]
    assert ring.find_mark(0, 7) == mark
    assert rows(ring.collect(SIZE, None)) == [(0, 1, 512, 512)]


def test_records_of_one_bio_join_although_others_lie_between(kernel: RingFile) -> None:
    kernel.add(0, b"a" * 700, flags=FLAG_FIRST)  # a segment that is no whole sector
    kernel.add(65536, b"z" * 512)
    kernel.add(700, b"b" * 836, flags=FLAG_LAST)
    ring = Ring(kernel.descriptor, SIZE)
    collected = ring.collect(SIZE, None)
    assert rows(collected) == [(0, 1, 0, 1536), (0, 1, 65536, 512)]
    assert collected is not None
    assert b"".join(collected.payload) == b"a" * 700 + b"b" * 836 + b"z" * 512
    assert ring.torn == []


def test_the_limit_does_not_cut_a_bio(kernel: RingFile) -> None:
    kernel.add(0, b"a" * 4096)
    kernel.add(8192, b"b" * 4096, flags=FLAG_FIRST)
    kernel.add(12288, b"c" * 4096, flags=FLAG_LAST)
    kernel.add(65536, b"d" * 4096)
    ring = Ring(kernel.descriptor, SIZE)
    assert rows(ring.collect(5000, None)) == [(0, 1, 0, 4096), (0, 1, 8192, 8192)]
    assert rows(ring.collect(5000, None)) == [(0, 1, 65536, 4096)]


def test_an_unfinished_bio_waits_and_is_cut_when_its_rest_never_comes(kernel: RingFile) -> None:
    kernel.add(0, b"a" * 4096)
    second = kernel.add(4096, b"b" * 4096, flags=FLAG_FIRST)
    ring = Ring(kernel.descriptor, SIZE)
    collected = ring.collect(SIZE, None)
    assert rows(collected) == [(0, 1, 0, 4096)]
    assert collected is not None
    assert collected.end_position == second
    assert ring.collect(SIZE, None) is None
    ring._open_since = (second, ring._open_since[1] - 1.0)  # a second later
    assert rows(ring.collect(SIZE, None)) == [(0, 1, 4096, 4096)]


def test_a_neighbour_never_takes_the_place_of_an_open_bios_rest(kernel: RingFile) -> None:
    """Overlapping writes in flight: the second begins where the first one's rest belongs."""
    kernel.add(0, b"a" * 4096, flags=FLAG_FIRST)
    kernel.add(4096, b"x" * 512)
    kernel.add(4096, b"b" * 4096, flags=FLAG_LAST)
    collected = Ring(kernel.descriptor, SIZE).collect(SIZE, None)
    assert rows(collected) == [(0, 1, 0, 8192), (0, 1, 4096, 512)]
    assert collected is not None
    assert b"".join(collected.payload) == b"a" * 4096 + b"b" * 4096 + b"x" * 512


def test_a_forced_cut_inside_a_sector_drops_and_reports_it(kernel: RingFile) -> None:
    kernel.add(65536, b"a" * 700, flags=FLAG_FIRST)
    p0 = kernel.produced
    kernel.add(65536 + 700, b"b" * 836, flags=FLAG_LAST)
    ring = Ring(kernel.descriptor, SIZE)
    assert rows(ring.collect(SIZE, p0)) == [(0, 1, 65536, 512)]
    assert ring.torn == [(0, 65536 + 699)]
    collected = ring.collect(SIZE, None)
    assert rows(collected) == [(0, 1, 65536 + 1024, 512)]
    assert collected is not None
    assert b"".join(collected.payload) == b"b" * 512
    assert ring.torn == [(0, 65536 + 699), (0, 65536 + 700)]


def test_release_never_goes_back(kernel: RingFile) -> None:
    for index in range(4):
        kernel.add(index * 8192, b"a" * 512)
    ring = Ring(kernel.descriptor, SIZE)
    ring.collect(SIZE, kernel.records[2])
    ring.release(kernel.records[2])
    ring.release(kernel.records[1])
    assert ring.consumed() == kernel.records[2]
    again = Ring(kernel.descriptor, SIZE)
    assert again.cursor == kernel.records[2]
    assert rows(again.collect(SIZE, None)) == [(0, 1, 16384, 512), (0, 1, 24576, 512)]
