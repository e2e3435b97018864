"""What the kernel's counters prove of a disk that cannot be captured."""

from __future__ import annotations

from failback.mobility.capture.stillness import Activity, is_counted, is_unwritten, parse

LINE = "  100 2 8000 30   50 6 4096 20   0 44 50   7 0 512 1   9 3\n"


def test_the_kernels_line_is_read() -> None:
    assert parse(LINE) == Activity(8000, (50, 4096, 7, 512))
    assert parse("100 2 8000 30 50 6 4096 20 0 44 50") == Activity(8000, (50, 4096)), "before Linux 4.18: no discards"


def test_writes_and_discards_change_a_disk_and_flushes_do_not() -> None:
    before = [parse(LINE)]
    assert is_unwritten(before, [parse(LINE.replace(" 9 3", " 12 3").replace("100 2 8000", "900 2 99999"))])
    assert not is_unwritten(before, [parse(LINE.replace("50 6 4096", "51 6 4104"))])
    assert not is_unwritten(before, [parse(LINE.replace("7 0 512", "8 0 520"))])


def test_a_disk_whose_reads_are_not_counted_proves_nothing() -> None:
    before = [Activity(100, (1, 1)), Activity(0, (0, 0))]
    after = [Activity(100 + 2048, (1, 1)), Activity(2047, (0, 0))]
    assert is_counted(before, after, [1 << 20, 2047 * 512])
    assert not is_counted(before, after, [1 << 20, 1 << 20])
