"""Views of points while the disks go on: content, isolation, layers, places between points, and what a view keeps."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import journal_driver as driver
import pytest

from failback.block.device import BlockDevice
from failback.errors import ConflictError, IntegrityError, NotSupportedError, OutOfSpaceError
from failback.journal.journal import Journal
from failback.journal.view import View
from failback.model.points import PointChoice, PointKind, PointSelector, RecoveryPoint
from failback.model.policy import ReplicationPolicy

SEED = 12
COUNT = 60


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Journal, dict[int, BlockDevice]]]:
    journal, devices = driver.open_world(tmp_path / "world", SEED)
    journal.start(devices, lambda reply: None)
    journal.begin_epoch(1)
    yield journal, devices
    journal.close()
    for device in devices.values():
        device.close()


def _feed(journal: Journal, up_to: int) -> None:
    for sequence in range(journal.landed.sequence + 1, up_to + 1):
        journal.append(driver.frame(driver.make_batch(SEED, sequence)))
    journal.sync()
    while journal.apply_step():
        pass
    journal.settle()


def _model(sequence: int) -> dict[int, bytes]:
    return driver.Model(SEED, driver.initial(SEED)).advance(sequence)


def _whole(view: View) -> bytes:
    return view.read(0, view.size_bytes)


def _at(point: RecoveryPoint) -> PointChoice:
    return PointChoice(PointSelector.POINT, point.point_id)


def test_every_point_reads_as_it_was_and_stays_so(world: tuple[Journal, dict[int, BlockDevice]]) -> None:
    journal, _ = world
    _feed(journal, COUNT // 2)
    opened = [journal.views.open(_at(point)) for point in journal.points()]
    assert len(opened) > 4
    _feed(journal, COUNT)
    for opening in opened:
        expected = _model(opening.point.sequence)
        for disk, view in opening.disks.items():
            assert _whole(view) == expected[disk]
            assert not view.writable
            with pytest.raises(NotSupportedError):
                view.write(0, b"x" * 512)
            filled = bytearray(view.size_bytes)
            for offset, length in view.data_ranges(0, view.size_bytes):
                filled[offset : offset + length] = expected[disk][offset : offset + length]
            assert filled == expected[disk]  # what is not named as data is zero
    chance = random.Random(4)
    for _ in range(200):
        opening = chance.choice(opened)
        disk = chance.choice((0, 1))
        offset = chance.randrange(driver.SIZES[disk])
        length = chance.randrange(1, min(70_000, driver.SIZES[disk] - offset) + 1)
        assert (
            opening.disks[disk].read(offset, length) == _model(opening.point.sequence)[disk][offset : offset + length]
        )
    for opening in opened:
        opening.close()


def test_a_view_keeps_its_undo_while_older_points_are_thinned(world: tuple[Journal, dict[int, BlockDevice]]) -> None:
    journal, _ = world
    ages_all = -(10**8)  # the driver's clock is ahead of ours
    journal.policy = ReplicationPolicy(name="test", crash_consistent_seconds=5, recovery_point_history_minutes=ages_all)
    _feed(journal, COUNT)
    points = [point for point in journal.points() if point.kind is not PointKind.BEFORE_REPROTECT]
    middle = points[len(points) // 2]
    opening = journal.views.open(_at(middle))
    assert journal.thin() == len(points) // 2 + 1
    kept = [point.point_id for point in journal.points()]
    assert kept == [point.point_id for point in points[len(points) // 2 :]]
    with pytest.raises(ConflictError, match="a view"):
        journal.drop_point(middle.point_id)
    assert {disk: _whole(view) for disk, view in opening.disks.items()} == _model(middle.sequence)
    opening.close()
    assert journal.thin() == len(kept) - 1
    assert [point.point_id for point in journal.points()] == kept[-1:]
    with pytest.raises(Exception, match="closed"):
        opening.disks[0].read(0, 512)


def test_a_writable_view_has_a_layer_of_its_own(world: tuple[Journal, dict[int, BlockDevice]], tmp_path: Path) -> None:
    journal, devices = world
    _feed(journal, COUNT)
    point = journal.points()[2]
    first = journal.views.open(_at(point), writable=True)
    second = journal.views.open(_at(point), writable=True)
    expected = {disk: bytearray(data) for disk, data in _model(point.sequence).items()}
    before = {disk: device.read(0, device.size_bytes) for disk, device in devices.items()}
    chance = random.Random(8)
    for _ in range(300):
        disk = chance.choice((0, 1))
        size = driver.SIZES[disk]
        offset = chance.randrange(size // 512) * 512
        length = min(chance.choice((512, 4096, 4608, 40_960)), size - offset)
        if chance.random() < 0.3:
            first.disks[disk].zero(offset, length)
            expected[disk][offset : offset + length] = bytes(length)
        else:
            data = chance.randbytes(length)
            first.disks[disk].write(offset, data)
            expected[disk][offset : offset + length] = data
    assert {disk: _whole(view) for disk, view in first.disks.items()} == expected
    assert {disk: _whole(view) for disk, view in second.disks.items()} == _model(point.sequence)
    assert {disk: device.read(0, device.size_bytes) for disk, device in devices.items()} == before
    assert first.layer_bytes > 0 and second.layer_bytes == 0
    filled = bytearray(driver.SIZES[0])
    for offset, length in first.disks[0].data_ranges(0, driver.SIZES[0]):
        filled[offset : offset + length] = expected[0][offset : offset + length]
    assert filled == expected[0]
    first.close()
    second.close()
    left = [path.name for path in (tmp_path / "world/journal").iterdir()]
    assert sorted(name for name in left if not name.startswith("catalogue")) == ["redo", "undo"]


def test_a_layer_ends_at_its_quota(world: tuple[Journal, dict[int, BlockDevice]]) -> None:
    journal, _ = world
    _feed(journal, 10)
    opening = journal.views.open(_at(journal.points()[0]), writable=True, quota_bytes=256 * 1024)
    with pytest.raises(OutOfSpaceError, match="quota"):
        for offset in range(0, 1 << 20, 65536):
            opening.disks[0].write(offset, b"a" * 65536)
    assert opening.layer_bytes <= 256 * 1024
    assert opening.disks[0].read(0, 65536) == b"a" * 65536
    opening.close()


def test_any_batch_boundary_within_the_redo_window(world: tuple[Journal, dict[int, BlockDevice]]) -> None:
    journal, _ = world
    _feed(journal, COUNT)
    between = 0
    catalogued = {point.sequence for point in journal.points()}
    for sequence in range(4, COUNT + 1):
        if 20 <= sequence <= 22:  # a gap
            continue
        wall_ns = driver.START_NS + sequence * 1_000_000_000 + 500_000_000
        opening = journal.views.open(PointChoice(PointSelector.TIME, str(wall_ns)))
        assert opening.point.sequence == sequence
        between += sequence not in catalogued
        assert {disk: _whole(view) for disk, view in opening.disks.items()} == _model(sequence)
        assert not opening.disks[0].writable
        opening.close()
    assert between > 10
    opening = journal.views.open(PointChoice(PointSelector.LATEST), writable=True)
    assert {disk: _whole(view) for disk, view in opening.disks.items()} == _model(COUNT)
    opening.disks[0].write(0, b"z" * 512)
    opening.close()


def test_views_are_right_while_batches_are_applied_and_disks_roll_back(
    world: tuple[Journal, dict[int, BlockDevice]],
) -> None:
    """Readers compare whole disks again and again while another thread applies, publishes, rolls back and returns."""
    journal, _ = world
    _feed(journal, COUNT)
    chosen = [journal.points()[index] for index in (0, 2, -1)]
    openings = [journal.views.open(_at(point)) for point in chosen]
    expected = [_model(point.sequence) for point in chosen]
    stop, wrong, looks = threading.Event(), [], itertools.count()

    def look(number: int) -> None:
        while not stop.is_set():
            for disk, view in openings[number].disks.items():
                next(looks)
                if _whole(view) != expected[number][disk]:
                    wrong.append((number, disk))
                    return

    threads = [threading.Thread(target=look, args=(number,)) for number in range(len(openings))]
    for thread in threads:
        thread.start()
    chance = random.Random(3)
    for up_to in range(COUNT + 10, COUNT + 130, 10):
        _feed(journal, up_to)
        if chance.random() < 0.3:
            journal.prepare(_at(chance.choice(journal.points())), lambda done, total: None)
            journal.resume()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert next(looks) > 20
    for opening in openings:
        opening.close()


def test_damaged_undo_is_told_and_not_read(world: tuple[Journal, dict[int, BlockDevice]]) -> None:
    journal, _ = world
    _feed(journal, COUNT)
    points = journal.points()
    interval = journal.catalogue.intervals()[1]
    opening = journal.views.open(_at(points[1]))
    path = journal.directory / interval.file
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged"):
        for view in opening.disks.values():
            _whole(view)
    opening.close()
    assert points[1].point_id not in {point.point_id for point in journal.points()}
    with pytest.raises(IntegrityError, match="cannot be reached"):
        journal.views.open(_at(points[1]))
