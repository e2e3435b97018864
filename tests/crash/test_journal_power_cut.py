"""Power cuts: about half of the unflushed sectors of the disks are lost, the undo file ends where it was last synced. What
the journal called durable has to be enough. Also: a full volume, damaged redo, old positions."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "doubles"))
import journal_driver as driver

from failback.block.faulty import Failing, Torn
from failback.errors import IntegrityError, OutOfSpaceError, ProtocolError, StaleEpochError, StorageError
from failback.journal.journal import Journal
from failback.model.points import PointChoice, PointKind, PointSelector
from failback.runtime import faults

COUNT = 40
PLACES = ("apply.mid", "apply.before_flush", "undo.after_write", "undo.after_sync", "catalogue.before_commit",
          "catalogue.after_commit", "rollback.mid", "rollback.after_save", "rollback.returning")  # fmt: skip


def _nothing(*_: object) -> None:
    return


def _open(folder: Path, seed: int) -> tuple[Journal, dict[int, Torn]]:
    journal, devices = driver.open_world(folder, seed)
    torn = {index: Torn(device) for index, device in devices.items()}
    return journal, torn


def _cut_power(journal: Journal, devices: dict[int, Torn], chance: random.Random) -> None:
    faults.arm("")
    for device in devices.values():
        device.lose(chance)
        device.close()
    journal.close()


def _go_on(journal: Journal, seed: int, chance: random.Random) -> None:
    """Land and apply to the end, with a rollback and a return now and then."""
    if journal.epoch == 0:
        journal.begin_epoch(1)
    if journal.destination is not None:
        journal.resume()
    while journal.landed.sequence < COUNT:
        journal.append(driver.frame(driver.make_batch(seed, journal.landed.sequence + 1)))
        journal.sync()
        journal.apply_step()
        if chance.random() < 0.1:
            journal.prepare(PointChoice(PointSelector.POINT, chance.choice(journal.points()).point_id), _nothing)
            journal.resume()
    while journal.apply_step():
        pass


@pytest.mark.parametrize("seed", range(1, 9))
def test_what_was_durable_is_enough(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "world"
    chance = random.Random(seed)
    cuts = 0
    for _ in range(12):
        journal, devices = _open(folder, seed)
        place = chance.choice(PLACES)
        faults.arm(f"{place}=error@{chance.randint(1, 30 if place == 'apply.mid' else 6)}")
        try:
            journal.start(devices, _nothing)
            _go_on(journal, seed, chance)
        except OSError:
            cuts += 1
        _cut_power(journal, devices, chance)
    assert cuts >= 2
    journal, devices = _open(folder, seed)
    journal.start(devices, _nothing)
    _go_on(journal, seed, random.Random(0))
    _verify(journal, devices, seed)
    journal.close()


def _verify(journal: Journal, devices: dict[int, Torn], seed: int) -> None:
    model = driver.Model(seed, driver.initial(seed))
    points = journal.points()
    assert points[0].kind is PointKind.BEFORE_REPROTECT and len(points) > 3
    for point in points:
        expected = model.advance(point.sequence)
        journal.prepare(PointChoice(PointSelector.POINT, point.point_id), _nothing)
        assert {disk: device.read(0, device.size_bytes) for disk, device in devices.items()} == expected
    journal.resume()
    expected = model.advance(COUNT)
    assert {disk: device.read(0, device.size_bytes) for disk, device in devices.items()} == expected


def _landed_world(folder: Path, count: int) -> tuple[Journal, dict[int, Any]]:
    journal, devices = driver.open_world(folder, 3)
    journal.begin_epoch(1)
    for sequence in range(1, count + 1):
        journal.append(driver.frame(driver.make_batch(3, sequence)))
    journal.sync()
    return journal, devices


def test_undo_is_durable_before_every_overwrite(tmp_path: Path) -> None:
    journal, devices = _landed_world(tmp_path / "world", 20)

    class Watching(Failing):
        def _count(self) -> None:
            files = list((tmp_path / "world" / "journal" / "undo").glob("*.undo"))
            sizes = {path.name: path.stat().st_size for path in files}
            assert journal._applier is not None and journal._applier._file is not None
            file = journal._applier._file
            assert file.synced_bytes == file.size_bytes == sizes[file.path.name] > 64

        def flush(self) -> None:
            self.device.flush()

    journal.start({index: Watching(device) for index, device in devices.items()}, _nothing)
    with pytest.raises(AssertionError):
        Watching(devices[0]).write(0, b"x" * 512)  # the watcher can fail: nothing was saved yet
    while journal.apply_step():
        pass
    assert journal.caught_up
    journal.close()


def test_a_failing_disk_stops_applying_and_heals(tmp_path: Path) -> None:
    journal, devices = _landed_world(tmp_path / "world", 20)
    failing = {index: Failing(device, after=9) for index, device in devices.items()}
    journal.start(failing, _nothing)
    with pytest.raises(StorageError, match="injected"):
        while journal.apply_step():
            pass
    for device in failing.values():
        device.heal()
    while journal.apply_step():
        pass
    model = driver.Model(3, driver.initial(3)).advance(20)
    assert {index: device.read(0, device.size_bytes) for index, device in devices.items()} == model
    journal.close()


def test_damaged_redo_is_named_and_not_applied(tmp_path: Path) -> None:
    journal, devices = _landed_world(tmp_path / "world", 20)
    (segment,) = (tmp_path / "world" / "journal" / "redo").glob("*.redo")
    with segment.open("rb+") as stream:
        stream.seek(segment.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    journal.start(devices, _nothing)
    with pytest.raises(IntegrityError):
        while journal.apply_step():
            pass
    assert journal.applied.sequence < 20
    journal.close()


def test_streams_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    journal, _ = _landed_world(tmp_path / "world", 5)
    assert not journal.append(driver.frame(driver.make_batch(3, 5)))  # re-sent: it has landed
    with pytest.raises(ProtocolError, match="came after"):
        journal.append(driver.frame(driver.make_batch(3, 7)))
    journal.begin_epoch(4)
    assert journal.landed.sequence == 0
    with pytest.raises(StaleEpochError):
        journal.append(driver.frame(driver.make_batch(3, 6)))
    with pytest.raises(StaleEpochError):
        journal.begin_epoch(3)
    assert journal.append(driver.frame(driver.make_batch(3, 1, epoch=4)))
    journal.close()  # not synced: it may be lost, and was not acknowledged
    again = Journal.open(tmp_path / "world" / "journal")
    assert again.epoch == 4
    again.close()


def test_a_full_volume_refuses_and_loses_nothing(tmp_path: Path) -> None:
    journal, devices = _landed_world(tmp_path / "world", 5)
    journal.redo._reserve_bytes = 1 << 60
    with pytest.raises(OutOfSpaceError, match="full"):
        journal.append(driver.frame(driver.make_batch(3, 6)))
    assert journal.sync().sequence == 5
    journal.redo._reserve_bytes = 0
    assert journal.append(driver.frame(driver.make_batch(3, 6))) and journal.sync().sequence == 6
    journal.start(devices, _nothing)
    while journal.apply_step():
        pass
    model = driver.Model(3, driver.initial(3)).advance(6)
    assert {index: device.read(0, device.size_bytes) for index, device in devices.items()} == model
    journal.close()


def test_a_failed_sync_takes_nothing_for_landed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, devices = _landed_world(tmp_path / "world", 5)
    for sequence in (6, 7):
        journal.append(driver.frame(driver.make_batch(3, sequence)))
    whole = os.fdatasync

    def failing(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(StorageError, match="durable"):
        journal.sync()
    monkeypatch.setattr(os, "fdatasync", whole)
    assert journal.landed.sequence == 5
    for sequence in (6, 7, 8):
        assert journal.append(driver.frame(driver.make_batch(3, sequence)))
    assert journal.sync().sequence == 8
    journal.start(devices, _nothing)
    while journal.apply_step():
        pass
    model = driver.Model(3, driver.initial(3)).advance(8)
    assert {index: device.read(0, device.size_bytes) for index, device in devices.items()} == model
    journal.close()


def test_a_view_is_written_on_a_layer_that_is_thrown_away(tmp_path: Path) -> None:
    journal, devices = _landed_world(tmp_path / "world", 20)
    journal.start(devices, _nothing)
    while journal.apply_step():
        pass
    before = {index: device.read(0, device.size_bytes) for index, device in devices.items()}
    point = journal.points()[1]
    expected = bytearray(driver.Model(3, driver.initial(3)).advance(point.sequence)[0])
    view = journal.view(point.point_id, 0)
    view.write(1000, b"throw-away" * 500)
    view.zero(70_000, 9_000)
    expected[1000:6000] = b"throw-away" * 500
    expected[70_000:79_000] = bytes(9_000)
    for sequence in range(21, 31):  # the applier goes on below the view
        journal.append(driver.frame(driver.make_batch(3, sequence)))
    journal.sync()
    while journal.apply_step():
        pass
    assert view.read(0, view.size_bytes) == expected
    view.close()
    after = driver.Model(3, driver.initial(3)).advance(30)
    assert before != after
    assert {index: device.read(0, device.size_bytes) for index, device in devices.items()} == after
    journal.close()
