"""Redo that was really damaged on disk (D7): what lies before it is applied and stays reachable, nothing behind it is, a
comparison under a higher epoch makes the disks identical again; with kill -9 at every step between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "doubles"))
import comparing_source
import journal_driver as driver

from failback.block.device import BlockDevice
from failback.errors import IntegrityError, StaleEpochError
from failback.journal import format as layout
from failback.journal.damage import Witness
from failback.journal.journal import Journal
from failback.model.points import PointChoice, PointKind, PointSelector
from failback.model.stream import GapCause

SEED, COUNT = 5, 40
DOUBLES = Path(driver.__file__).parent


def _nothing(*_: object) -> None:
    return


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "REDO_SEGMENT_BYTES", comparing_source.SEGMENT_BYTES)


def _landed(folder: Path, *, applied: int) -> None:
    """``COUNT`` batches landed, about ``applied`` of them applied; the process ended without a farewell."""
    journal, devices = driver.open_world(folder, SEED)
    journal.start(devices, _nothing)
    journal.begin_epoch(1)
    for sequence in range(1, COUNT + 1):
        journal.append(driver.frame(driver.make_batch(SEED, sequence)))
        journal.sync()
        if sequence == applied:
            comparing_source.apply_all(journal)
            journal.settle()
    assert journal.landed.sequence == COUNT and journal.applied.sequence == applied
    assert len(list((folder / "journal" / "redo").glob("*.redo"))) > 3
    for device in devices.values():
        device.close()
    journal.close()


def _images(devices: Mapping[int, BlockDevice]) -> dict[int, bytes]:
    return {index: device.read(0, device.size_bytes) for index, device in devices.items()}


def _model(sequence: int) -> dict[int, bytes]:
    return driver.Model(SEED, driver.initial(SEED)).advance(sequence)


def _verify(folder: Path, *, before: int) -> None:
    """Every point is what it says, the disks are the source's, and the gap stands in the timeline."""
    journal, devices = driver.open_world(folder, SEED)
    journal.start(devices, _nothing)
    final = _model(COUNT)
    assert journal.damage is None and _images(devices) == final
    points = [point for point in journal.points() if not point.abandoned]
    assert points[0].kind is PointKind.BEFORE_REPROTECT and points[-1].epoch > 1
    old = [point.sequence for point in points if point.epoch <= 1]
    assert len(old) > 3 and max(old) <= before
    for point in points:
        journal.prepare(PointChoice(PointSelector.POINT, point.point_id), _nothing)
        assert _images(devices) == (_model(point.sequence) if point.epoch <= 1 else final), point
    journal.resume()
    assert _images(devices) == final
    assert "DAMAGED" in [gap.cause for gap in journal.gaps()]
    assert all(gap.ended_wall_ns for gap in journal.gaps())
    journal.close()


@pytest.mark.parametrize("header", [False, True], ids=["frame", "record-header"])
def test_damage_is_shown_and_a_comparison_repairs_it(tmp_path: Path, header: bool) -> None:
    folder = tmp_path / "world"
    _landed(folder, applied=12)
    comparing_source.damage(folder / "journal", 25, header=header)
    journal, devices = driver.open_world(folder, SEED)
    journal.start(devices, _nothing)
    with pytest.raises(IntegrityError, match="record 25") as raised:
        while journal.apply_step():
            pass
    assert raised.value.code == "RedoDamaged"
    assert _images(devices) == _model(24) and journal.applied.sequence == 24
    # 24 is no point: the life before may have written what landed behind the damage, and cannot be asked
    assert journal.points()[-1].sequence == 23
    assert journal.damage is not None and journal.applied.gap == "DAMAGED" and not journal.apply_step()
    with pytest.raises(IntegrityError) as refused:
        journal.append(driver.frame(driver.make_batch(SEED, COUNT + 1)))
    assert refused.value.code == "RedoDamaged"

    # a higher epoch that only re-sends what had not landed does not repair what was lost here
    journal.begin_epoch(2)
    resend = comparing_source.Source(2, _model(COUNT), driver.START_NS)
    with pytest.raises(IntegrityError):
        journal.append(driver.frame(resend.batch(GapCause.RESEND)))
    assert journal.damage is not None and journal.damage.refuses(2) and not journal.damage.refuses(3)

    assert comparing_source.repair(journal, _model(COUNT), 3) > 0
    assert journal.damage is None and journal.applied.gap == ""
    journal.stop()
    journal.close()
    _verify(folder, before=23)


def test_lost_redo_that_was_applied_keeps_every_point(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    _landed(folder, applied=30)
    lost = sorted((folder / "journal" / "redo").glob("*.redo"))[1:]
    assert int(lost[0].stem) <= 30
    for segment in lost:
        segment.unlink()
    journal, devices = driver.open_world(folder, SEED)
    assert journal.damage is not None and journal.damage.code == "RedoDamaged"
    journal.close()
    journal, devices = driver.open_world(folder, SEED)  # opened again: still the same
    journal.start(devices, _nothing)
    assert not journal.apply_step() and _images(devices) == _model(30)
    comparing_source.repair(journal, _model(COUNT), 2)
    journal.stop()
    journal.close()
    _verify(folder, before=30)


KILLS = (
    "journal.after_damage=kill@1",
    "journal.before_cut=kill@1",
    "redo.mid_cut=kill@1",
    "journal.after_cut=kill@1",
    "journal.after_append=kill@1",
    "journal.before_cured=kill@1",
    "catalogue.before_commit=kill@2",
    "catalogue.after_commit=kill@3",
    "apply.mid=kill@2",
    "journal.after_sync=kill@3",
)


def test_killed_between_damage_and_repair(tmp_path: Path) -> None:
    running: list[tuple[Path, subprocess.Popen[bytes]]] = []
    for number, kill in enumerate(KILLS):
        folder = tmp_path / str(number)
        _landed(folder, applied=10)
        comparing_source.damage(folder / "journal", 23, header=number % 2 == 1)
        running.append((folder, _start(folder, kill)))
        if len(running) == 2:  # two at a time
            _finish(running)
    _finish(running)


def _finish(running: list[tuple[Path, subprocess.Popen[bytes]]]) -> None:
    for folder, process in running:
        assert process.wait(60) == -signal.SIGKILL, folder
        assert _start(folder, "").wait(60) == 0
        _verify(folder, before=22)
    running.clear()


def _start(folder: Path, kill: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(DOUBLES / "comparing_source.py"), str(folder), str(SEED), str(COUNT)]
    environment = {**os.environ, "FAILBACK_FAULTS": kill, "PYTHONPATH": str(DOUBLES)}
    return subprocess.Popen(command, env=environment)


def test_an_old_copy_offers_no_point_that_is_not_true(tmp_path: Path) -> None:
    """The journal was restored from a copy: its points miss undo, so none is offered, and nothing of it is applied."""
    folder = tmp_path / "world"
    _landed(folder, applied=12)
    subprocess.run(["cp", "-a", str(folder / "journal"), str(folder / "copy")], check=True)
    journal, devices = driver.open_world(folder, SEED)
    journal.start(devices, _nothing)
    comparing_source.apply_all(journal)
    journal.settle()
    newest = journal.witness
    journal.close()
    subprocess.run(["rm", "-r", str(folder / "journal")], check=True)
    (folder / "copy").rename(folder / "journal")

    journal, devices = driver.open_world(folder, SEED)
    assert "applied to the disks" in journal.distrust(newest)
    assert not newest.contradicts(journal.witness)
    journal.start(devices, _nothing)
    assert not journal.apply_step() and _images(devices) == _model(COUNT)  # nothing old was written over the disks
    assert all(point.abandoned for point in journal.points())
    journal.close()
    journal = Journal.open(folder / "journal")
    assert journal.damage is not None and journal.damage.code == "JournalReplaced"
    journal.close()
    journal, devices = driver.open_world(folder, SEED)
    journal.start(devices, _nothing)
    other = {0: driver.initial(SEED)[0], 1: _model(COUNT)[1]}  # the source changed meanwhile
    assert comparing_source.repair(journal, other, 2) > 0
    assert _images(devices) == other
    (point,) = [point for point in journal.points() if not point.abandoned]
    assert point.epoch == 2
    journal.prepare(PointChoice(PointSelector.LATEST), _nothing)
    assert _images(devices) == other
    journal.close()


def test_a_tail_that_was_cut_holds_points_back_over_further_starts(tmp_path: Path) -> None:
    """What was cut may have been written to the disks; a second start, which finds nothing to cut, may not forget that."""
    folder = tmp_path / "world"
    _landed(folder, applied=12)
    last = sorted((folder / "journal" / "redo").glob("*.redo"))[-1]
    damaged = int(last.stem) + 1
    assert damaged < COUNT
    comparing_source.damage(folder / "journal", damaged)
    for _ in range(3):
        journal, devices = driver.open_world(folder, SEED)
        journal.start(devices, _nothing)
        comparing_source.apply_all(journal)
        journal.publish_latest()
        assert journal.applied.sequence == damaged - 1 and journal.unproven
        assert max(point.sequence for point in journal.points()) < damaged - 1
        journal.close()
    journal, devices = driver.open_world(folder, SEED)
    journal.start(devices, _nothing)
    for sequence in range(damaged, COUNT + 1):  # sent again
        assert journal.unproven
        journal.append(driver.frame(driver.make_batch(SEED, sequence)))
        journal.sync()
        comparing_source.apply_all(journal)
        journal.settle()
    journal.publish_latest()
    assert not journal.unproven and journal.points()[-1].sequence == COUNT and _images(devices) == _model(COUNT)
    journal.close()


def test_an_old_copy_that_was_refused_once_takes_no_epoch_that_is_over(tmp_path: Path) -> None:
    """The copy already says that it is an old one; the epochs since then are known to the witness alone (D6)."""
    folder = tmp_path / "world"
    _landed(folder, applied=12)
    journal, devices = driver.open_world(folder, SEED)
    journal.distrust(Witness(journal.incarnation, 1, 99, 99, 0))
    journal.close()
    subprocess.run(["cp", "-a", str(folder / "journal"), str(folder / "copy")], check=True)
    journal, devices = driver.open_world(folder, SEED)
    journal.begin_life()
    journal.start(devices, _nothing)
    comparing_source.repair(journal, _model(COUNT), 4)
    witness = journal.witness
    journal.close()
    subprocess.run(["rm", "-r", str(folder / "journal")], check=True)
    (folder / "copy").rename(folder / "journal")
    journal, devices = driver.open_world(folder, SEED)
    assert journal.epoch == 1 and journal.distrust(witness)
    assert journal.epoch == 4 and journal.damage is not None and journal.damage.refuses(4)
    with pytest.raises(StaleEpochError):
        journal.begin_epoch(3)
    journal.close()
