"""Which recovery points are dropped (D14). Pure: points in, ids out.

Age is counted from the newest batch that was applied, on the source's clock, but never from a time that has not come
here: a replication that stands still loses no points, and a source clock that steps forward loses none either. The newest
point is never dropped: in a pass it is the last consistent one, before the first pass it is *before reprotect*. Older than
the policy's history: dropped. Older than a step of its thinning (by default two hours): in each of the step's slots (an hour)
one crash-consistent point stays, two common marks of a replication group, and every app-consistent one. A group point needs
the same mark on every member, and near the turn of a slot the members' clocks disagree about its last mark: of two, one is
the same on all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from failback.model.ids import PointId
from failback.model.points import PointKind, RecoveryPoint
from failback.model.policy import DEFAULT_THINNING, ThinningStep

MINUTE_NS = 60 * 1_000_000_000
KEPT_IN_A_SLOT = {PointKind.CRASH_CONSISTENT: 1, PointKind.GROUP_MARK: 2}


def to_drop(
    points: Sequence[RecoveryPoint], newest_wall_ns: int, history_minutes: int,
    thinning: Sequence[ThinningStep] = DEFAULT_THINNING,
) -> list[PointId]:  # fmt: skip
    """``points`` oldest first, ``thinning`` by growing age. Slots are those of the wall clock: asking again drops no more."""
    living = [point for point in points if not point.abandoned]
    if len(living) < 2:
        return []
    dropped: list[PointId] = []
    kept: Counter[tuple[PointKind, int, int]] = Counter()
    for point in reversed(living[:-1]):
        age_ns = newest_wall_ns - point.wall_ns
        if age_ns > history_minutes * MINUTE_NS:
            dropped.append(point.point_id)
            continue
        every_ns = _slot_ns(age_ns, thinning)
        if not every_ns or point.kind not in KEPT_IN_A_SLOT:
            continue
        slot = (point.kind, every_ns, point.wall_ns // every_ns)
        if kept[slot] >= KEPT_IN_A_SLOT[point.kind]:
            dropped.append(point.point_id)
        kept[slot] += 1
    return dropped[::-1]


def _slot_ns(age_ns: int, thinning: Sequence[ThinningStep]) -> int:
    """Of which length the slots are that points of this age share; 0: all stay."""
    steps = [step for step in thinning if age_ns > step.older_than_minutes * MINUTE_NS]
    return steps[-1].every_minutes * MINUTE_NS if steps else 0
