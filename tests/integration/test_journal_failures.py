"""What fails in the middle of landing or of a rollback: nothing is answered as done that is not, and no item is skipped.

A rollback that a full volume or a failing disk interrupts; syncs that fail where one redo segment ends and the next begins;
redo that is freed while a rollback needs it; records that were written by a killed process and never synced.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "doubles"))
import journal_driver as driver

from failback.block.faulty import Failing
from failback.errors import StorageError
from failback.journal import format as layout
from failback.journal.journal import Journal
from failback.model.points import PointChoice, PointSelector

SEED = 3
COUNT = 40
LATEST = PointChoice(PointSelector.LATEST)


def _nothing(*_: object) -> None:
    return


def _land(journal: Journal, last: int) -> None:
    for sequence in range(journal.landed.sequence + 1, last + 1):
        journal.append(driver.frame(driver.make_batch(SEED, sequence)))


def _applied_world(folder: Path) -> tuple[Journal, dict[int, Failing]]:
    journal, devices = driver.open_world(folder, SEED)
    journal.begin_epoch(1)
    _land(journal, COUNT)
    journal.sync()
    failing = {index: Failing(device, after=1 << 30) for index, device in devices.items()}
    journal.start(failing, _nothing)
    while journal.apply_step():
        pass
    return journal, failing


def _content(devices: dict[int, Failing]) -> dict[int, bytes]:
    return {disk: device.read(0, device.size_bytes) for disk, device in devices.items()}


def _model(sequence: int) -> dict[int, bytes]:
    return driver.Model(SEED, driver.initial(SEED)).advance(sequence)


def _oldest(journal: Journal) -> PointChoice:
    return PointChoice(PointSelector.POINT, journal.points()[0].point_id)


@pytest.mark.parametrize("writes", [0, 1, 5])
def test_an_interrupted_rollback_is_finished_when_it_is_asked_for_again(tmp_path: Path, writes: int) -> None:
    """D15: the repeated order must not take the recorded destination for disks that are there."""
    journal, devices = _applied_world(tmp_path / "world")
    choice = _oldest(journal)
    for device in devices.values():
        device.left = writes
    with pytest.raises(StorageError, match="injected"):
        journal.prepare(choice, _nothing)
    assert journal.destination is None, "nothing is at the point yet"
    for device in devices.values():
        device.heal()
    assert journal.prepare(choice, _nothing).choice == choice
    assert _content(devices) == _model(0)
    assert journal.destination is not None
    journal.resume()
    assert _content(devices) == _model(COUNT)
    journal.close()


def test_after_an_interrupted_rollback_another_point_can_be_chosen(tmp_path: Path) -> None:
    journal, devices = _applied_world(tmp_path / "world")
    for device in devices.values():
        device.left = 4
    with pytest.raises(StorageError, match="injected"):
        journal.prepare(_oldest(journal), _nothing)
    for device in devices.values():
        device.heal()
    point = journal.points()[2]
    journal.prepare(PointChoice(PointSelector.POINT, point.point_id), _nothing)
    assert _content(devices) == _model(point.sequence)
    journal.close()


def test_an_interrupted_return_does_not_count_as_the_point(tmp_path: Path) -> None:
    journal, devices = _applied_world(tmp_path / "world")
    choice = _oldest(journal)
    journal.prepare(choice, _nothing)
    for device in devices.values():
        device.left = 2
    with pytest.raises(StorageError, match="injected"):
        journal.resume()
    for device in devices.values():
        device.heal()
    journal.prepare(choice, _nothing)
    assert _content(devices) == _model(0)
    journal.resume()
    assert _content(devices) == _model(COUNT)
    journal.close()


def test_redo_is_not_freed_under_a_rollback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that is full frees applied redo early, but not what a rollback still has to replay."""
    monkeypatch.setattr(layout, "REDO_SEGMENT_BYTES", 4096)
    journal, devices = _applied_world(tmp_path / "world")
    for device in devices.values():
        device.left = 1
    with pytest.raises(StorageError, match="injected"):
        journal.prepare(LATEST, _nothing)
    for device in devices.values():
        device.heal()
    journal.relieve()
    destination = journal.prepare(LATEST, _nothing)
    assert destination.ordinal > destination.base_ordinal, "the test replays redo"
    assert _content(devices) == _model(destination.point.sequence)
    journal.close()


def test_a_source_clock_that_steps_forward_drops_no_points(tmp_path: Path) -> None:
    """D14: one batch from the year 2100, and the history would be gone at the next thinning."""
    journal, _ = _applied_world(tmp_path / "world")
    before = [point.point_id for point in journal.points()]
    later = driver.make_batch(SEED, COUNT + 1)
    journal.append(driver.frame(replace(later, wall_ns=later.wall_ns + 70 * 365 * 86_400 * 1_000_000_000)))
    journal.sync()
    while journal.apply_step():
        pass
    journal.settle()
    assert journal.thin() == 0
    assert [point.point_id for point in journal.points()][: len(before)] == before
    journal.close()


class FailingSync:
    """``os.fdatasync`` that fails at its n-th call, once."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._real = os.fdatasync

    def __call__(self, descriptor: int) -> None:
        self._left -= 1
        if self._left == 0:
            raise OSError(errno.EIO, "injected")
        self._real(descriptor)


def _sequences(journal: Journal) -> list[int]:
    return [record.item.header.sequence for record in journal.redo.read_after(0)]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_sync_that_fails_at_a_segment_border_skips_and_repeats_no_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The sender goes on behind what the Welcome says; each item is in the redo log exactly once."""
    journal, _ = driver.open_world(tmp_path / "world", SEED)
    journal.begin_epoch(1)
    _land(journal, 3)
    journal.sync()
    monkeypatch.setattr(layout, "REDO_SEGMENT_BYTES", journal.redo.size_bytes + 60_000)
    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", FailingSync(at))
        with pytest.raises(StorageError):
            _land(journal, COUNT)
            journal.sync()
            pytest.fail("the sync did not fail: the segments are too large for this test")
    assert journal.landed.sequence < COUNT
    _land(journal, COUNT)
    assert journal.sync().sequence == COUNT
    assert _sequences(journal) == list(range(1, COUNT + 1))
    journal.close()
    again = Journal.open(tmp_path / "world" / "journal")
    assert again.landed.sequence == COUNT
    again.close()


def test_a_segment_that_cannot_be_begun_takes_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of a new segment does not fit; the records that follow do. They belong behind those before."""
    journal, _ = driver.open_world(tmp_path / "world", SEED)
    journal.begin_epoch(1)
    _land(journal, 10)
    journal.sync()
    monkeypatch.setattr(layout, "REDO_SEGMENT_BYTES", 1)
    real = os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        if bytes(data[:4]) == layout.REDO_FILE_MAGIC:
            raise OSError(errno.ENOSPC, "injected")
        return real(descriptor, data, offset)

    with monkeypatch.context() as failing:
        failing.setattr(os, "pwrite", full)
        with pytest.raises(StorageError):
            _land(journal, 11)
    monkeypatch.setattr(layout, "REDO_SEGMENT_BYTES", 64 << 20)
    _land(journal, COUNT)
    assert journal.sync().sequence == COUNT
    assert _sequences(journal) == list(range(1, COUNT + 1))
    journal.close()


def test_records_of_a_killed_process_are_synced_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in the page cache only: a power cut after the next Welcome would lose what it acknowledged."""
    journal, _ = driver.open_world(tmp_path / "world", SEED)
    journal.begin_epoch(1)
    _land(journal, 5)  # written, never synced; the process is gone
    (segment,) = (tmp_path / "world" / "journal" / "redo").glob("*.redo")
    synced: list[int] = []

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(os, "fsync", note)
    again = Journal.open(tmp_path / "world" / "journal")
    assert again.landed.sequence == 5
    assert segment.stat().st_ino in synced
    again.close()
    journal.close()
