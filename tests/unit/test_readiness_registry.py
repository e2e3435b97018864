"""The catalogue is whole: no row missing, none merely documented that must change what a command does, the page is current."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from failback.protection.readiness import BY_NUMBER, CATALOGUE, ROWS, Kind, Place, Row
from failback.protection.readiness.document import page
from failback.protection.readiness.rows import MERELY_DOCUMENTED

DECIDED_OTHERWISE = {"L12"}
"""Row 7.13 (2) decides against it."""


def test_every_row_of_the_catalogue_is_there_once() -> None:
    assert len(BY_NUMBER) == len(ROWS)
    assert [number for number in CATALOGUE if number not in BY_NUMBER] == []
    assert {row.number[0] for row in ROWS if row.number not in CATALOGUE} == {"X"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_a_row_is_handled_where_it_says(row: Row) -> None:
    if row.place is Place.DOCUMENTED:
        assert row.kinds <= MERELY_DOCUMENTED or row.number in DECIDED_OTHERWISE
        assert row.reason
    elif row.place is Place.CHECK:
        target = BY_NUMBER[row.with_row] if row.with_row else row
        assert target.check is not None and target.operations
    else:
        assert row.by, "where is it handled?"
    for place in row.by:
        module, _, name = place.partition(":")
        assert hasattr(importlib.import_module(module), name), place


def test_a_check_that_can_fail_names_code_and_remedy() -> None:
    for row in ROWS:
        if row.check is not None and row.number != "83":  # Windows gets its address back: nothing to mend
            assert row.code, row.number
    printed = {"22": "95226", "23": "95226", "10": "78052", "43": "78052", "24": "78093", "63": "8061", "65": "8061"}
    assert {number: BY_NUMBER[number].code for number in printed} == printed


def test_kinds_are_those_of_the_catalogue() -> None:
    blocks = {row.number for row in ROWS if Kind.BLOCKS in row.kinds}
    assert blocks == {"1", "2", "3", "4", "5", "8", "9"}
    assert {row.number for row in ROWS if Kind.USER_INTERFACE in row.kinds} == {"68", "69", "74"}


def test_the_page_is_current() -> None:
    stored = Path(__file__).parents[2] / "docs/readiness.md"
    assert stored.read_text() == page(), "run: make readiness-page"
