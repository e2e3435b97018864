"""Habits of the code that a linter does not know."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "src/failback"


def lines() -> list[tuple[str, str]]:
    """(place, line) of all of the product."""
    return [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for path in sorted(ROOT.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]


def test_nothing_waits_in_a_way_that_loses_cancels() -> None:
    """``asyncio.wait_for`` of Python 3.11 does (tests/unit/test_cancels_are_not_lost.py): ``asyncio.timeout`` is used."""
    assert [place for place, line in lines() if "asyncio.wait_for(" in line] == []


def test_who_catches_everything_says_why() -> None:
    caught = [(place, line) for place, line in lines() if re.search(r"except Exception\b", line)]
    assert [place for place, line in caught if "#" not in line and not place.startswith("sim/")] == []
