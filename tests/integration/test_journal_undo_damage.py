"""Undo that was durable and was changed: told, never skipped in silence, and nothing but the points that need it is lost."""

from __future__ import annotations

import functools
import shutil
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "doubles"))
import journal_driver as driver

from failback.block.device import BlockDevice
from failback.block.faulty import Failing
from failback.errors import FailbackError, IntegrityError, StorageError
from failback.journal import format as layout
from failback.journal.catalogue import Interval
from failback.journal.journal import Journal
from failback.journal.overwriting import RETURN_FILE
from failback.journal.undo import UNKNOWN, UndoDamagedError, UndoRecord, read_records
from failback.master_target.replica import Replica
from failback.master_target.witness import WitnessFile
from failback.model.components import POINTS_LOST
from failback.model.points import PointChoice, PointSelector, RecoveryPoint
from failback.model.stream import GapCause
from failback.runtime import faults

SEED = 5
COUNT, STOP = 60, 54
LATEST = PointChoice(PointSelector.LATEST)
HEADER, TABLE, CONTENT = 9, layout.UNDO_RECORD_BYTES + 8, -1
"""Which byte of a record is changed: of its header, of its first run's block number, its last one."""


def _nothing(*_: object) -> None:
    return


def _land(journal: Journal, last: int) -> None:
    for sequence in range(journal.landed.sequence + 1, last + 1):
        journal.append(driver.frame(driver.make_batch(SEED, sequence)))
        journal.sync()
        while journal.apply_step():
            pass
    journal.settle()


def _open(folder: Path) -> tuple[Journal, dict[int, BlockDevice]]:
    journal, devices = driver.open_world(folder, SEED)
    journal.start(devices, _nothing)
    return journal, devices


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("applied") / "world"
    journal, devices = _open(folder)
    journal.begin_epoch(1)
    _land(journal, STOP)
    journal.stop()
    _close(journal, devices)
    return folder


@pytest.fixture
def world(applied: Path, tmp_path: Path) -> Path:
    """A world with batch ``STOP`` applied and the journal closed."""
    return Path(shutil.copytree(applied, tmp_path / "world"))


def _close(journal: Journal, devices: dict[int, BlockDevice]) -> None:
    journal.close()
    for device in devices.values():
        device.close()


def _content(devices: dict[int, BlockDevice]) -> dict[int, bytes]:
    return {disk: device.read(0, device.size_bytes) for disk, device in devices.items()}


@functools.cache
def _model(sequence: int) -> dict[int, bytes]:
    return driver.Model(SEED, driver.initial(SEED)).advance(sequence)


def _choice(point: RecoveryPoint) -> PointChoice:
    return PointChoice(PointSelector.POINT, point.point_id)


def _records(journal: Journal, interval: Interval) -> list[UndoRecord]:
    return list(read_records(journal.directory / interval.file, UNKNOWN))


def _flip(path: Path, offset: int) -> None:
    with path.open("rb+") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 0x04]))


def _flip_in(record: UndoRecord, place: int) -> None:
    length = layout.UNDO_RECORD_BYTES + record.header.body_bytes
    _flip(record.path, record.offset + place % length)


def _at_every_offered_point(journal: Journal, devices: dict[int, BlockDevice]) -> None:
    for point in journal.points():
        journal.prepare(_choice(point), _nothing)
        assert _content(devices) == _model(point.sequence)
        view = journal.view(point.point_id, 0)
        assert view.read(0, view.size_bytes) == _model(point.sequence)[0]
        view.close()
    journal.resume()


def _damaged_closed(
    world: Path, place: int | None
) -> tuple[Journal, dict[int, BlockDevice], Interval, list[RecoveryPoint]]:
    """An interval in the middle has damage in the middle; the journal is open again."""
    journal, devices = _open(world)
    points = journal.points()
    closed = [item for item in journal.catalogue.intervals()[1:-1] if len(_records(journal, item)) >= 3]
    interval = closed[len(closed) // 2]
    if place is not None:
        _flip_in(_records(journal, interval)[1], place)
    return journal, devices, interval, points


@pytest.mark.parametrize("place", [HEADER, TABLE, CONTENT])
@pytest.mark.parametrize("way", ["prepare", "view", "drop"])
def test_damage_in_a_closed_interval(world: Path, place: int, way: str) -> None:
    journal, devices, interval, points = _damaged_closed(world, place)
    ordinals = {entry.point.point_id: entry.ordinal for entry in journal.catalogue.points()}
    older = [point for point in points if ordinals[point.point_id] <= interval.first_ordinal]
    newer = [point for point in points if ordinals[point.point_id] > interval.first_ordinal]
    assert len(older) > 1 and newer
    before = _content(devices)
    if way == "prepare":
        with pytest.raises(UndoDamagedError, match=f"interval {interval.interval_id} is damaged at byte") as caught:
            journal.prepare(_choice(older[0]), _nothing)
        assert str(journal.directory / interval.file) in caught.value.message
        assert caught.value.code == "UndoDamaged"
    elif way == "view":
        with pytest.raises(
            UndoDamagedError, match=f"interval {interval.interval_id} is"
        ):  # at the latest when it is read
            for disk in (0, 1):
                view = journal.view(older[0].point_id, disk)
                try:
                    view.read(0, view.size_bytes)
                finally:
                    view.close()
    else:
        journal.drop_point(older[-1].point_id)  # its interval is the damaged one: nothing of it joins the one before
        older.pop()
    assert journal.rollback_phase == "" and _content(devices) == before
    assert journal.points() == newer
    assert f"interval {interval.interval_id} is damaged at byte" in journal.lost.reason
    with pytest.raises(IntegrityError, match="cannot be reached"):
        journal.prepare(_choice(older[0]), _nothing)
    with pytest.raises(IntegrityError, match="as old as that"):
        journal.prepare(PointChoice(PointSelector.TIME, str(older[-1].wall_ns)), _nothing)
    _close(journal, devices)
    journal, devices = _open(world)
    assert journal.points() == newer and journal.lost.reason
    _land(journal, COUNT)
    _at_every_offered_point(journal, devices)
    assert _content(devices) == _model(COUNT)
    for point in [*older, *newer]:  # the lost ones age out, and the reason with the last of them
        assert journal.lost.reason or point in newer
        journal.drop_point(point.point_id)
    assert not journal.lost.reason
    _at_every_offered_point(journal, devices)
    _close(journal, devices)


def test_a_merge_into_a_damaged_interval_loses_only_what_is_lost(world: Path) -> None:
    journal, devices, interval, points = _damaged_closed(world, HEADER)
    entry = next(item for item in journal.catalogue.points() if item.ordinal > interval.first_ordinal)
    journal.drop_point(entry.point.point_id)
    assert journal.points() == points[points.index(entry.point) + 1 :]
    _land(journal, COUNT)
    _at_every_offered_point(journal, devices)
    _close(journal, devices)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_closed_file_that_is_cut_is_found_when_the_journal_is_opened(world: Path, damage: str) -> None:
    journal, devices = _open(world)
    intervals = journal.catalogue.intervals()
    interval = intervals[len(intervals) // 2]
    assert interval.durable.size_bytes == (journal.directory / interval.file).stat().st_size
    points = journal.points()
    _close(journal, devices)
    path = world / "journal" / interval.file
    if damage == "cut":
        with path.open("rb+") as stream:
            stream.truncate(interval.durable.size_bytes - 1)
    else:
        path.unlink()
    journal, devices = _open(world)
    assert 0 < len(journal.points()) < len(points) and f"interval {interval.interval_id} is" in journal.lost.reason
    _at_every_offered_point(journal, devices)
    _close(journal, devices)


@pytest.mark.parametrize("place", [HEADER, TABLE, CONTENT, -(1 << 30)])
def test_damage_in_the_open_interval_below_what_is_durable(world: Path, place: int) -> None:
    """All points before are lost; the disks, the stream, *latest* and the points after are not."""
    journal, devices = _open(world)
    points = journal.points()
    interval = journal.catalogue.intervals()[-1]
    records = _records(journal, interval)
    assert len(records) >= 2 and interval.durable.records == len(records)
    _close(journal, devices)
    path = world / "journal" / interval.file
    if place < -1:
        _flip(path, 20)  # in the file header
    else:
        _flip_in(records[0], place)
    size_bytes = path.stat().st_size
    journal, devices = _open(world)
    assert path.stat().st_size == size_bytes, "nothing is cut"
    assert journal.points() == [] and f"interval {interval.interval_id} is damaged at byte" in journal.lost.reason
    with pytest.raises(IntegrityError, match="cannot be reached"):
        journal.prepare(_choice(points[-1]), _nothing)
    journal.publish_latest()
    assert journal.prepare(LATEST, _nothing).point.sequence == STOP
    assert _content(devices) == _model(STOP)
    journal.resume()
    _land(journal, COUNT)
    assert len(journal.points()) >= 1
    _at_every_offered_point(journal, devices)
    assert _content(devices) == _model(COUNT)
    for point in points:
        journal.drop_point(point.point_id)
    assert not journal.lost.reason
    _at_every_offered_point(journal, devices)
    _close(journal, devices)


@pytest.mark.parametrize("name", ["undo.before_fresh", "catalogue.before_commit", "catalogue.after_commit"])
def test_a_crash_while_a_fresh_interval_begins(world: Path, name: str) -> None:
    journal, devices = _open(world)
    interval = journal.catalogue.intervals()[-1]
    _flip_in(_records(journal, interval)[0], HEADER)
    _close(journal, devices)
    journal, devices = driver.open_world(world, SEED)
    faults.arm(f"{name}=error@1")
    with pytest.raises(OSError, match=name):
        journal.start(devices, _nothing)
    faults.arm("")
    _close(journal, devices)
    journal, devices = _open(world)
    assert [item.interval_id for item in journal.catalogue.intervals()[-2:]] == [
        interval.interval_id, interval.interval_id + 1,
    ]  # fmt: skip
    _land(journal, COUNT)
    assert len(journal.points()) >= 1
    _at_every_offered_point(journal, devices)
    _close(journal, devices)


@pytest.mark.parametrize("place", [HEADER, TABLE, CONTENT])
def test_damage_behind_what_is_durable_is_a_torn_tail(world: Path, place: int) -> None:
    journal, devices = _open(world)
    points = journal.points()
    interval = journal.catalogue.intervals()[-1]
    whole = (journal.directory / interval.file).read_bytes()
    record = _records(journal, interval)[0]
    torn = bytearray(whole[record.offset : record.offset + layout.UNDO_RECORD_BYTES + record.header.body_bytes])
    torn[place] ^= 0x04
    _close(journal, devices)
    (world / "journal" / interval.file).write_bytes(whole + torn)
    journal, devices = _open(world)
    assert (journal.directory / interval.file).read_bytes() == whole
    assert journal.points() == points and not journal.lost.reason
    _at_every_offered_point(journal, devices)
    _close(journal, devices)


def test_a_rollback_that_a_crash_interrupted_and_damage_stops_is_given_back(world: Path) -> None:
    journal, raw, interval, points = _damaged_closed(world, None)
    journal.stop()
    devices = {index: Failing(device, after=3) for index, device in raw.items()}
    journal.start(devices, _nothing)
    with pytest.raises(StorageError, match="injected"):
        journal.prepare(_choice(points[0]), _nothing)
    assert journal.rollback_phase == "rolling" and _content(raw) not in (_model(STOP), _model(0))
    _close(journal, raw)
    _flip_in(_records(journal, interval)[1], HEADER)
    journal, raw = _open(world)
    assert journal.rollback_phase == "" and _content(raw) == _model(STOP)
    assert 0 < len(journal.points()) < len(points) and journal.lost.reason
    _land(journal, COUNT)
    _at_every_offered_point(journal, raw)
    _close(journal, raw)


@pytest.mark.parametrize("when", ["resume", "start", "another point", "half returned"])
def test_a_damaged_return_file_leaves_the_disks_at_the_point(world: Path, when: str) -> None:
    """The point stays, newer ones are abandoned, and a comparison under a higher epoch makes the stream go on."""
    journal, devices = _open(world)
    points = journal.points()
    chosen = points[len(points) // 2]
    older = [point.point_id for point in points[: len(points) // 2 + 1]]
    journal.prepare(_choice(chosen), _nothing)
    path = journal.directory / RETURN_FILE
    records = list(read_records(path, UNKNOWN))
    assert len(records) >= 2
    _flip_in(records[-1 if when == "half returned" else 0], HEADER if when != "half returned" else CONTENT)
    if when == "another point":
        with pytest.raises(FailbackError, match="abandoned"):
            journal.prepare(_choice(points[-1]), _nothing)
    elif when == "start":
        journal.catalogue.set("rollback_phase", "returning")
        _close(journal, devices)
        journal, devices = _open(world)
    else:
        journal.resume()
    assert _content(devices) == _model(chosen.sequence) and not journal.rollback_phase
    assert [point.point_id for point in journal.points() if not point.abandoned] == older
    damage = journal.damage
    assert damage is not None and damage.code == "RedoDamaged" and "cannot be brought back" in damage.reason
    assert journal.apply_step() is False and _content(devices) == _model(chosen.sequence)
    with pytest.raises(IntegrityError, match="cannot be brought back"):
        journal.append(driver.frame(driver.make_batch(SEED, journal.landed.sequence + 1)))
    _close(journal, devices)
    journal, devices = _open(world)
    for point in (journal.points()[0], chosen):
        journal.prepare(_choice(point), _nothing)
        assert _content(devices) == _model(point.sequence)
    journal.resume()
    journal.begin_epoch(2)
    batch = replace(driver.make_batch(SEED, 1, epoch=2), gap=GapCause.SYNC)
    journal.append(driver.frame(batch))
    journal.sync()
    assert journal.damage is None
    assert journal.apply_step()
    _close(journal, devices)


def test_a_catalogue_without_sizes_is_read_as_before(world: Path) -> None:
    with sqlite3.connect(world / "journal" / "catalogue.sqlite") as connection:
        connection.execute("DROP TABLE undo_files")
        connection.execute("DROP TABLE digest")  # a catalogue of before had neither
    connection.close()
    journal, devices = _open(world)
    assert all(interval.durable == UNKNOWN for interval in journal.catalogue.intervals())
    with (journal.directory / journal.catalogue.intervals()[2].file).open("ab") as stream:
        stream.write(b"torn")
    _at_every_offered_point(journal, devices)
    journal.drop_point(journal.points()[3].point_id)
    _land(journal, COUNT)
    assert journal.catalogue.intervals()[2].durable != UNKNOWN, "the merge tells the size"
    _at_every_offered_point(journal, devices)
    _close(journal, devices)


def test_the_status_tells_why_points_are_gone(world: Path, tmp_path: Path) -> None:
    journal, devices, interval, _ = _damaged_closed(world, CONTENT)
    replica = Replica(journal, tmp_path, WitnessFile(tmp_path / "witness"))
    assert replica.status().problem == ""
    with pytest.raises(UndoDamagedError):
        replica.prepare(_choice(journal.points()[0]), _nothing)
    replica.refresh_status()
    status = replica.status()
    assert status.problem.startswith(POINTS_LOST) and f"interval {interval.interval_id} is damaged" in status.problem
    assert not status.stands_still
    assert status.points == tuple(journal.points()) and len(status.points) > 0
    _close(journal, devices)
