"""A catalogue whose bytes changed is not used: not one that SQLite cannot read, and not one in which a row says another thing."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from failback.errors import FailbackError, IntegrityError
from failback.journal.catalogue import Applied, Catalogue, Interval, Mark
from failback.model.ids import MachineId, PointId
from failback.model.points import PointKind, RecoveryPoint

MACHINE = MachineId("machine")


def filled(path: Path, points: int = 40) -> None:
    catalogue = Catalogue(path)
    catalogue.set("machine_id", MACHINE)
    for number in range(points):
        with catalogue.transaction():
            catalogue.set_applied(Applied(number, 1, number, number * 1000, number, ""))
            catalogue.add_point(
                RecoveryPoint(
                    PointId(f"point-{number}"), MACHINE, PointKind.CRASH_CONSISTENT, number, 1, number, number
                ),
                number,
            )
            catalogue.put_interval(Interval(number, number, f"undo/{number:012d}.undo"))
            catalogue.add_mark(Mark(f"mark-{number % 7}", number, True))
    catalogue.rename_point("point-3", "other")
    catalogue.remove_point("point-4")
    catalogue.abandon_after(30)
    catalogue.remove_interval(5)
    catalogue.open_gap("overflow", 7)
    catalogue.close_gap(9)
    catalogue.close()


def test_every_change_is_counted(tmp_path: Path) -> None:
    filled(tmp_path / "catalogue.sqlite")
    again = Catalogue(tmp_path / "catalogue.sqlite")
    assert len(again.points()) == 39
    again.close()
    Catalogue(tmp_path / "catalogue.sqlite").close()


def test_a_transaction_that_fails_changes_no_digest(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue.sqlite")
    with pytest.raises(RuntimeError), catalogue.transaction():
        catalogue.set("epoch", 5)
        raise RuntimeError
    catalogue.close()
    Catalogue(tmp_path / "catalogue.sqlite").close()


def test_a_row_that_says_another_thing_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    filled(path)
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute("UPDATE points SET sequence = sequence + 1 WHERE point_id = 'point-9'")
    stranger.close()
    with pytest.raises(IntegrityError, match="checksum") as refused:
        Catalogue(path)
    assert refused.value.code == "CatalogueDamaged"


def test_flipped_bytes_are_noticed_or_mean_nothing(tmp_path: Path) -> None:
    """Anywhere in the file: what opens is what was written."""
    path = tmp_path / "catalogue.sqlite"
    filled(path)
    whole = path.read_bytes()
    opened = Catalogue(path)
    wanted = (opened.points(), opened.intervals(), opened.applied, opened.gaps())
    opened.close()
    chance = random.Random(5)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        for beside in tmp_path.glob("catalogue.sqlite-*"):
            beside.unlink()
        try:
            opened = Catalogue(path)
        except FailbackError:
            refused += 1
            continue
        assert (opened.points(), opened.intervals(), opened.applied, opened.gaps()) == wanted
        opened.close()
    assert refused > 10
