"""Which batch ends become points, and which points are dropped."""

from __future__ import annotations

import pytest

from failback.errors import ConfigurationError
from failback.journal.pacing import Pace, decide
from failback.journal.retention import to_drop
from failback.model.ids import MachineId, PointId
from failback.model.points import PointKind, RecoveryPoint
from failback.model.policy import ReplicationPolicy, ThinningStep
from failback.model.stream import GapCause, MarkKind
from failback.protection import policy_rules

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE


def test_no_point_in_a_gap_whatever_the_mark() -> None:
    for mark in MarkKind:
        decision = decide(Pace(0, False), GapCause.OVERFLOW, mark, 10**18, 1)
        assert decision.point is None and decision.gap == "OVERFLOW" and decision.after_pass


def test_marks_name_their_kind_and_time_paces_the_rest() -> None:
    assert decide(Pace(0, False), GapCause.NONE, MarkKind.FINAL, SECOND, 300).point is PointKind.FINAL
    assert decide(Pace(0, False), GapCause.NONE, MarkKind.APP_CONSISTENT, SECOND, 300).point is PointKind.APP_CONSISTENT
    assert decide(Pace(0, False), GapCause.NONE, MarkKind.NONE, 299 * SECOND, 300).point is None
    assert decide(Pace(0, False), GapCause.NONE, MarkKind.NONE, 300 * SECOND, 300).point is PointKind.CRASH_CONSISTENT
    stepped_back = decide(Pace(500 * SECOND, False), GapCause.NONE, MarkKind.NONE, 400 * SECOND, 300)
    assert stepped_back.point is PointKind.CRASH_CONSISTENT


def test_the_first_consistent_place_after_a_pass_is_a_point_at_once() -> None:
    decision = decide(Pace(0, True), GapCause.NONE, MarkKind.NONE, SECOND, 300)
    assert decision.point is PointKind.CRASH_CONSISTENT and not decision.after_pass
    short = decide(Pace(0, False), GapCause.OVERLAP, MarkKind.NONE, SECOND, 300)
    assert not short.after_pass  # overlapping writes happen often: they do not hurry a point


def _point(
    name: str, wall_ns: int, kind: PointKind = PointKind.CRASH_CONSISTENT, abandoned: bool = False
) -> RecoveryPoint:
    return RecoveryPoint(PointId(name), MachineId("m"), kind, wall_ns, 1, 1, 1, abandoned)


def test_the_newest_point_stays_however_old() -> None:
    before = _point("before", 0, PointKind.BEFORE_REPROTECT)
    assert to_drop([before], 100 * HOUR, 60) == []
    assert to_drop([before, _point("new", HOUR)], 100 * HOUR, 60) == ["before"]


def test_history_and_hourly_thinning() -> None:
    points = [_point(f"{minutes}", minutes * MINUTE) for minutes in range(0, 26 * 60, 5)]
    points[13] = _point("app", points[13].wall_ns, PointKind.APP_CONSISTENT)  # 1:05, older than the history
    points[40] = _point("app-2", points[40].wall_ns, PointKind.APP_CONSISTENT)
    newest = points[-1].wall_ns
    dropped = set(to_drop(points, newest, 24 * 60))
    kept = [point for point in points if point.point_id not in dropped]
    assert "app" in dropped and "app-2" not in dropped
    assert all(newest - point.wall_ns <= 24 * HOUR for point in kept)
    recent = [point for point in kept if newest - point.wall_ns <= 2 * HOUR]
    assert len(recent) == 25
    crash = [point for point in kept if point.kind is PointKind.CRASH_CONSISTENT and newest - point.wall_ns > 2 * HOUR]
    hours = [point.wall_ns // HOUR for point in crash]
    assert hours == sorted(set(hours)) and len(hours) >= 21


def test_abandoned_points_are_not_counted() -> None:
    assert to_drop([_point("old", 0), _point("gone", 99 * HOUR, abandoned=True)], 100 * HOUR, 60) == []


def test_a_group_mark_is_a_point_of_its_own_kind() -> None:
    assert decide(Pace(0, False), GapCause.NONE, MarkKind.GROUP, SECOND, 300).point is PointKind.GROUP_MARK


@pytest.mark.parametrize("skew_ns", [0, SECOND // 50, 3 * SECOND, -7 * SECOND])
def test_members_whose_clocks_differ_keep_common_marks_of_every_hour(skew_ns: int) -> None:
    """Each master target thins by its own member's clock; other points of the members are not the same either."""

    def kept(offset_ns: int, local_minutes: int) -> set[str]:
        marks = [
            _point(f"mark {n}", n * 10 * SECOND + offset_ns, PointKind.GROUP_MARK) for n in range(6 * 60 * 6)
        ]  # every 10 s for 6 hours
        local = [_point(f"local {n}", n * local_minutes * MINUTE + offset_ns) for n in range(360 // local_minutes)]
        points = sorted([*marks, *local], key=lambda point: point.wall_ns)
        dropped = set(to_drop(points, points[-1].wall_ns, 24 * 60))
        return {point.point_id for point in points if point.point_id not in dropped}

    common = {name for name in kept(0, 5) & kept(skew_ns, 7) if name.startswith("mark")}
    assert len(common) < 2000  # thinned
    for hour in range(4):
        of_hour = range(hour * 360 - 2, (hour + 1) * 360 + 2)
        assert any(f"mark {n}" in common for n in of_hour), f"hour {hour}"


def test_thinning_by_steps_of_the_policy() -> None:
    """All for ten minutes, one a minute for two hours, one an hour from then on; asking again drops no more."""
    steps = (ThinningStep(10, 1), ThinningStep(120, 60))
    points = [_point(f"{second}", second * SECOND) for second in range(0, 6 * 3600, 10)]
    newest = points[-1].wall_ns
    dropped = set(to_drop(points, newest, 24 * 60, steps))
    kept = [point for point in points if point.point_id not in dropped]
    assert to_drop(kept, newest, 24 * 60, steps) == []
    by_age = {limit: [p for p in kept if p.wall_ns >= newest - limit] for limit in (10 * MINUTE, 2 * HOUR)}
    assert len(by_age[10 * MINUTE]) == 61
    middle = [point.wall_ns // MINUTE for point in by_age[2 * HOUR][: -len(by_age[10 * MINUTE])]]
    assert middle == sorted(set(middle)) and 108 <= len(middle) <= 112
    oldest = [point.wall_ns // HOUR for point in kept if point.wall_ns < newest - 2 * HOUR]
    assert oldest == sorted(set(oldest)) and 4 <= len(oldest) <= 5
    assert to_drop(points, newest, 24 * 60, ()) == []


@pytest.mark.parametrize("thinning", [((10, 60), (5, 120)), ((10, 7), (20, 60)), ((0, 1),), ((10, 0),)])
def test_steps_that_do_not_fit_are_refused(thinning: tuple[tuple[int, int], ...]) -> None:
    policy = ReplicationPolicy("p", thinning=tuple(ThinningStep(*step) for step in thinning))
    with pytest.raises(ConfigurationError):
        policy_rules.check(policy)
    policy_rules.check(ReplicationPolicy("p", crash_consistent_seconds=1, thinning=()))
