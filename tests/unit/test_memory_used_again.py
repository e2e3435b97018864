"""Memory of frames is used again only when nobody looks at it; recent records are consecutive, bounded, and go when applied."""

from __future__ import annotations

import pytest
from process_server_doubles import make_batch

from failback.journal import recent_redo
from failback.journal.recent_redo import RecentRedo, RedoMemory, RedoRecord
from failback.protocol.frame_memory import SMALLEST_BYTES, FrameMemory
from failback.protocol.frames import encode_item

BIG = 2 * SMALLEST_BYTES


def test_memory_is_not_given_out_while_any_view_of_it_lives() -> None:
    memory = FrameMemory(16 << 20)
    whole = memory.take(BIG)
    part = whole[100:200].toreadonly().cast("B")
    part_bytes = bytes(part)
    del whole
    for _ in range(5):
        other = memory.take(BIG)
        other[:] = b"x" * BIG
        assert bytes(part) == part_bytes
    del part, other
    assert len(memory._kept) <= 3
    again = memory.take(BIG)
    assert len(memory._kept) <= 3 and len(again) == BIG


def test_no_more_than_the_limit_is_kept() -> None:
    memory = FrameMemory(4 << 20)
    views = [memory.take(1 << 20) for _ in range(10)]
    for number, view in enumerate(views):
        view[:1] = bytes([number])
    assert sum(map(len, memory._kept)) <= 4 << 20
    assert [view[0] for view in views] == list(range(10))
    assert len(memory.take(32 << 20)) == 32 << 20


def test_small_frames_take_what_they_need() -> None:
    memory = FrameMemory(4 << 20)
    assert len(memory.take(100).obj) == 100  # type: ignore[arg-type]
    assert memory._kept == []


def _record(ordinal: int) -> RedoRecord:
    return RedoRecord(ordinal, encode_item(make_batch("00000000-0000-0000-0000-000000000001", ordinal)), proven=True)


def test_records_without_room_leave_no_hole_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(_record(1).item.buffer)
    monkeypatch.setattr(recent_redo, "SHARED", RedoMemory())
    monkeypatch.setattr(recent_redo, "LIMIT_BYTES", 3 * size)
    recent = RecentRedo()
    for ordinal in range(5, 10):
        recent.add(_record(ordinal))
    assert [ordinal for ordinal in range(12) if recent.get(ordinal)] == [5, 6, 7]
    recent.forget_up_to(6)
    recent.add(_record(10))  # behind a hole
    assert recent.get(10) is None
    recent.forget_up_to(9)
    recent.add(_record(11))
    assert recent.get(11) is not None
    recent.add(_record(12))
    recent.forget_after(11)  # a sync failed
    assert recent.get(12) is None
    assert recent_redo.SHARED._used_bytes == size
    recent.forget_after(0)
    assert recent_redo.SHARED._used_bytes == 0
