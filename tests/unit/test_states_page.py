"""docs/reference/states.md is what the table says, and every difference from the recorded service has its reason."""

from pathlib import Path

import pytest

from failback.protection.operations import Direction
from failback.protection.recorded_states import REASONS, RECORDED, Recorded, differences, reached
from failback.protection.states import TABLE, State, active_location, description
from failback.protection.states_page import diagram, page


def test_the_page_is_current() -> None:
    stored = Path(__file__).parents[2] / "docs/reference/states.md"
    assert stored.read_text() == page(), "run: make states-page"


def test_the_diagram_draws_every_step_once_and_no_other() -> None:
    arrows = [line.strip() for line in diagram().splitlines() if "-->" in line and "[*]" not in line]
    expected = {
        f"{state.name} --> {after.name}: {event.value}"
        for state, steps in TABLE.items()
        for event, after in steps.items()
    }
    assert len(arrows) == len(expected)
    assert set(arrows) == expected


def test_every_difference_from_the_recordings_is_explained_and_nothing_else() -> None:
    assert set(differences()) == set(REASONS)


def test_replication_to_the_cloud_is_not_reached_yet() -> None:
    missing = {(row.state, row.direction) for row in RECORDED} - reached()
    assert missing == {(State.REPLICATING, Direction.TO_CLOUD), (State.PROTECTED, Direction.TO_CLOUD)}


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row.phase)
def test_words_are_those_of_the_recordings(row: Recorded) -> None:
    assert active_location(row.state) == row.location
    assert not row.description or description(row.state) == row.description
    assert not row.provider or row.direction.provider == row.provider
