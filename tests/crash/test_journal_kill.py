"""kill -9 at every fault point of the journal, restart, compare: the latest state and every recovery point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "doubles"))
import journal_driver as driver

from failback.journal.journal import Journal
from failback.model.points import PointChoice, PointSelector

COUNT = 60
FAULTS = {
    "journal.after_create": (1,),
    "journal.after_append": (2, 31),
    "journal.after_sync": (1, 17),
    "undo.after_write": (2, 19),
    "undo.after_sync": (1, 12),
    "apply.mid": (3, 41, 97),
    "apply.before_flush": (1, 5),
    "catalogue.before_commit": (4, 9, 14),
    "catalogue.after_commit": (3, 8),
    "rollback.after_save": (1, 2),
    "rollback.mid": (1, 6),
    "rollback.returning": (1, 3),
    "merge.before_commit": (1, 2),
    "merge.after_commit": (1,),
}


def _run(folder: Path, seed: int, faults: str) -> int:
    command = [sys.executable, driver.__file__, str(folder), str(seed), str(COUNT)]
    done = subprocess.run(
        command, env={**os.environ, "FAILBACK_FAULTS": faults}, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def _images(folder: Path) -> dict[int, bytes]:
    return {disk.index: Path(disk.path).read_bytes() for disk in driver.disks(folder)}


def verify(folder: Path, seed: int) -> int:
    """Latest and every point, by view and by rolling back; returns how many points there are."""
    latest = driver.Model(seed, driver.initial(seed)).advance(COUNT)
    assert _images(folder) == latest
    journal, devices = driver.open_world(folder, seed)
    journal.start(devices, lambda reply: None)
    points = journal.points()
    assert points[0].sequence == 0
    model = driver.Model(seed, driver.initial(seed))
    for point in points:
        expected = model.advance(point.sequence)
        for disk in driver.SIZES:
            view = journal.view(point.point_id, disk)
            assert view.read(0, view.size_bytes) == expected[disk], f"view of {point.sequence}"
            view.close()
        journal.prepare(PointChoice(PointSelector.POINT, point.point_id), lambda done, total: None)
        assert _images(folder) == expected, f"disks rolled back to {point.sequence}"
    journal.resume()
    assert _images(folder) == latest
    _verify_times(journal, folder, seed)
    journal.resume()
    assert _images(folder) == latest
    journal.close()
    return len(points)


def _verify_times(journal: Journal, folder: Path, seed: int) -> None:
    model = driver.Model(seed, driver.initial(seed))
    for sequence in (7, 23, 44, 58):
        choice = PointChoice(PointSelector.TIME, str(driver.START_NS + sequence * 1_000_000_000 + 5))
        found = journal.prepare(choice, lambda done, total: None)
        assert found.point.sequence == sequence
        assert _images(folder) == model.advance(sequence)


def test_without_faults(tmp_path: Path) -> None:
    assert _run(tmp_path / "world", 1, "") == 0
    assert verify(tmp_path / "world", 1) >= 4


@pytest.mark.parametrize(("name", "passage"), [(name, at) for name, times in FAULTS.items() for at in times])
def test_killed_once(tmp_path: Path, name: str, passage: int) -> None:
    seed = 100 + passage
    folder = tmp_path / "world"
    killed = _run(folder, seed, f"{name}=kill@{passage}")
    assert killed == -signal.SIGKILL, f"{name} was not passed {passage} times"
    assert _run(folder, seed, "") == 0
    assert verify(folder, seed) >= 3


def test_killed_again_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    names = ["apply.mid=kill@20", "undo.after_sync=kill@2", "catalogue.before_commit=kill@2", "rollback.mid=kill@2",
             "rollback.returning=kill@1", "journal.after_append=kill@5",
             "apply.before_flush=kill@2", "apply.mid=kill@9"]  # fmt: skip
    kills = sum(_run(folder, 77, name) != 0 for name in names)
    assert kills >= 6
    assert _run(folder, 77, "") == 0
    assert verify(folder, 77) >= 3
