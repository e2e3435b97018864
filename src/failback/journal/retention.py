"""Which recovery points are dropped (D14). Pure: points in, ids out.

Age is counted from the newest batch that was applied, on the source's clock, but never from a time that has not come
here: a replication that stands still loses no points, and a source clock that steps forward loses none either. The newest
point is never dropped: in a pass it is the last consistent one, before the first pass it is *before reprotect*. Older than
the policy's history: dropped. Older than two hours: one crash-consistent point an hour stays, two common marks of a replication
group, and every app-consistent one. A group point needs the same mark on every member, and near the turn of an hour the
members' clocks disagree about the hour's last mark: of two, one is the same on all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from failback.model.ids import PointId
from failback.model.points import PointKind, RecoveryPoint

FULL_DETAIL_NS = 2 * 3600 * 1_000_000_000
SLOT_NS = 3600 * 1_000_000_000
MINUTE_NS = 60 * 1_000_000_000
KEPT_AN_HOUR = {PointKind.CRASH_CONSISTENT: 1, PointKind.GROUP_MARK: 2}


def to_drop(points: Sequence[RecoveryPoint], newest_wall_ns: int, history_minutes: int) -> list[PointId]:
    """``points`` oldest first."""
    living = [point for point in points if not point.abandoned]
    if len(living) < 2:
        return []
    dropped: list[PointId] = []
    kept: Counter[tuple[PointKind, int]] = Counter()
    for point in reversed(living[:-1]):
        age_ns = newest_wall_ns - point.wall_ns
        if age_ns > history_minutes * MINUTE_NS:
            dropped.append(point.point_id)
            continue
        if age_ns <= FULL_DETAIL_NS or point.kind not in KEPT_AN_HOUR:
            continue
        slot = (point.kind, point.wall_ns // SLOT_NS)
        if kept[slot] >= KEPT_AN_HOUR[point.kind]:
            dropped.append(point.point_id)
        kept[slot] += 1
    return dropped[::-1]
