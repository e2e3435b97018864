"""What was written and not declared applied is written again after a start or a failure: the disks are ahead of each place in
between, so no place becomes a point there that was none before, whatever the policy says now (D13)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "doubles"))
import comparing_source
import journal_driver as driver

from failback.journal import applier
from failback.journal.journal import Journal
from failback.model.points import PointKind
from failback.model.policy import ReplicationPolicy

SEED, COUNT = 6, 40  # no batch between 23 and 42 is marked


def _nothing(*_: object) -> None:
    return


@pytest.fixture(autouse=True)
def one_record_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applier, "GROUP_BYTES", 1)
    monkeypatch.setattr(applier, "FLUSH_SECONDS", 3600.0)


def _land(journal: Journal, count: int) -> None:
    journal.begin_epoch(1)
    for sequence in range(journal.landed.sequence + 1, count + 1):
        journal.append(driver.frame(driver.make_batch(SEED, sequence)))
    journal.sync()


def _check_points(journal: Journal) -> int:
    points = [point for point in journal.points() if point.kind is not PointKind.BEFORE_REPROTECT]
    for point in points:
        wanted = driver.Model(SEED, driver.initial(SEED)).advance(point.sequence)
        for disk, content in wanted.items():
            view = journal.view(point.point_id, disk)
            assert view.read(0, len(content)) == content, point
            view.close()
    return len(points)


def test_a_shorter_pace_after_a_start_makes_no_point_of_a_mixture(tmp_path: Path) -> None:
    journal, devices = driver.open_world(tmp_path, SEED)
    journal.policy = ReplicationPolicy("slow", crash_consistent_seconds=10_000)
    journal.start(devices, _nothing)
    _land(journal, COUNT)
    comparing_source.apply_all(journal)
    assert journal.applied.sequence < COUNT - 1  # the rest is written and not declared
    journal.close()

    journal, devices = driver.open_world(tmp_path, SEED)
    journal.policy = ReplicationPolicy("fast", crash_consistent_seconds=1)
    journal.start(devices, _nothing)
    before = _check_points(journal)
    comparing_source.apply_all(journal)
    assert _check_points(journal) == before  # nothing new was consistent on the disks
    _land(journal, COUNT + 5)
    comparing_source.apply_all(journal)
    assert _check_points(journal) >= before + 4  # now the new pace holds
    journal.close()


def test_a_failed_write_makes_no_point_of_what_was_written_before_it(tmp_path: Path) -> None:
    """The state is taken from the files again; *latest* is not the place that they name."""
    journal, devices = driver.open_world(tmp_path, SEED)
    journal.policy = ReplicationPolicy("slow", crash_consistent_seconds=10_000)
    journal.start(devices, _nothing)
    _land(journal, 30)
    comparing_source.apply_all(journal)
    journal.settle()
    _land(journal, COUNT)
    comparing_source.apply_all(journal)
    assert journal.applied.sequence == 30 and journal._applier is not None
    before = _check_points(journal)
    journal._applier.forget()  # as after any failure
    journal.publish_latest()
    assert journal.unproven and _check_points(journal) == before
    journal.policy = ReplicationPolicy("fast", crash_consistent_seconds=1)
    comparing_source.apply_all(journal)
    assert _check_points(journal) == before
    journal.publish_latest()
    assert not journal.unproven and _check_points(journal) == before + 1
    assert journal.points()[-1].sequence == COUNT
    journal.close()
