"""Pure pieces of the command line: settings, what a point means on the wire, what a follower prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from failback.cli import settings
from failback.cli.operation import estimate_lines, point_input
from failback.cli.output import duration, size
from failback.cli.watch import Row, changes, rows_of
from failback.errors import ConfigurationError


def point(point_id: str, kind: str) -> dict[str, Any]:
    return {
        "name": point_id,
        "properties": {"recoveryPointType": kind, "recoveryPointTime": "2026-11-23T03:15:00.0000000Z"},
    }


POINTS = [point("newest", "CrashConsistent"), point("application", "ApplicationConsistent")]


@pytest.mark.parametrize(
    ("asked", "wire"),
    [
        ("latest", {"recoveryPointType": "LatestTime"}),
        ("latest-app-consistent", {"recoveryPointType": "LatestTag"}),
        ("newest", {"recoveryPointType": "Custom", "recoveryPointId": "newest"}),
        ("2026-11-23T03:00:00Z", {"recoveryPointType": "Custom", "recoveryPointTime": "2026-11-23T03:00:00Z"}),
    ],
)
def test_a_point_has_its_wire_form(asked: str, wire: dict[str, str]) -> None:
    assert point_input(asked, POINTS)[0] == {"instanceType": "InMage", **wire}


def test_going_back_says_what_is_lost() -> None:
    assert "everything that was acknowledged" in point_input("latest", POINTS)[1]
    assert "2026-11-23T03:15:00Z" in point_input("application", POINTS)[1]


@pytest.mark.parametrize("asked", ["nothing", "", "yesterday"])
def test_what_is_no_point_is_refused(asked: str) -> None:
    with pytest.raises(ConfigurationError, match="no recovery point"):
        point_input(asked, POINTS)


def test_options_come_before_the_environment() -> None:
    environment = {
        "FAILBACK_SERVER": "one",
        "FAILBACK_CA_FILE": "/ca",
        "FAILBACK_TOKEN_FILE": "/token",
        "HOME": "/nowhere",
    }
    found = settings.find({"server": "https://two:8443/"}, environment)
    assert found == settings.Settings("https://two:8443", Path("/ca"), Path("/token"))
    assert settings.find({}, environment).server == "https://one"


def task(name: str, state: str, done: int = 0, sentence: str = "", children: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {
        "name": name, "friendlyName": name, "state": state, "stateDescription": sentence or state,
        "failback": {"bytesDone": done, "bytesTotal": 100 if done else 0, "bytesPerSecond": 10.0, "etaSeconds": 5.0},
        "groupTaskCustomDetails": {"childTasks": list(children)},
    }  # fmt: skip


def rows(*tasks: dict[str, Any]) -> list[Row]:
    return rows_of({"properties": {"tasks": list(tasks)}})


def test_a_follower_prints_what_changed_once() -> None:
    first = rows(task("check", "InProgress"), task("copy", "NotStarted"))
    second = rows(task("check", "Succeeded"), task("copy", "InProgress", 40, "comparing"))
    assert changes([], first, with_progress=False) == ["check: InProgress"]
    assert changes(first, second, with_progress=False) == [
        "check: Succeeded",
        "copy: InProgress (comparing; 40 B of 100 B, 10 B/s, 5 s left)",
    ]
    assert changes(second, second, with_progress=True) == []
    third = rows(task("check", "Succeeded"), task("copy", "InProgress", 60, "comparing"))
    assert changes(second, third, with_progress=False) == []
    assert changes(second, third, with_progress=True) == [
        "copy: InProgress (comparing; 60 B of 100 B, 10 B/s, 5 s left)"
    ]


def test_children_stand_below_their_group() -> None:
    found = rows(task("group", "InProgress", children=(task("child", "InProgress"),)))
    assert [(row.name, row.depth) for row in found] == [("group", 0), ("child", 1)]


def test_figures_are_for_people() -> None:
    assert [size(count) for count in (0, 1023, 1536, 5 << 30, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]
    assert [duration(value) for value in (None, 0.4, 75, 3700)] == ["-", "0 s", "1 min 15 s", "1 h 01 min"]


def test_what_a_reprotect_takes_is_said_and_never_guessed() -> None:
    measured: dict[str, Any] = {
        "bytes_at_most": 4_000_000_000, "bytes_expected": 1_000_000_000, "bytes_per_second": 50e6, "seconds": 20.0,
        "measured_by": "its last synchronisation", "downtime_seconds": 16.0, "downtime_from": "the last failback",
    }  # fmt: skip
    first, second = estimate_lines(measured, failback=False)
    assert first == "to send: 1.00 GB expected, 4.00 GB at most; about 20 s at 50.0 MB/s (its last synchronisation)"
    assert second == "downtime of a failback: about 16 s (the last failback)"
    assert "was not measured yet" in estimate_lines({**measured, "seconds": None}, failback=False)[0]
    assert estimate_lines(measured, failback=True) == [second]
