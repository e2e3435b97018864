"""What a master target remembers beside the retention volume never becomes less (D6, D7)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from failback.journal.damage import Witness
from failback.master_target.witness import WitnessFile

FIRST = Witness("4a0f5d0e-0000-4000-8000-000000000001", 1, 3, 10, 2)


def test_an_epoch_is_remembered_before_the_journal_takes_it(tmp_path: Path) -> None:
    witness = WitnessFile(tmp_path / "witness")
    witness.keep(FIRST, now=True)
    witness.expect_epoch(5)
    assert WitnessFile(tmp_path / "witness").read() == replace(FIRST, epoch=5)
    witness.keep(replace(FIRST, ordinal=11), now=True)  # the journal has not begun it yet
    witness.expect_epoch(4)
    assert WitnessFile(tmp_path / "witness").read() == replace(FIRST, epoch=5, ordinal=11)


def test_another_journal_begins_anew(tmp_path: Path) -> None:
    witness = WitnessFile(tmp_path / "witness")
    witness.keep(replace(FIRST, epoch=7), now=True)
    other = replace(FIRST, incarnation="4a0f5d0e-0000-4000-8000-000000000002", ordinal=0)
    witness.keep(other, now=True)
    assert WitnessFile(tmp_path / "witness").read() == other
