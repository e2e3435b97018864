"""Which batch ends become recovery points, and what the timeline says about gaps (D4, D9, D14). Pure.

A batch's end becomes a point when it lies in no gap and the source marked it, or ``crash_consistent_seconds`` have passed
since the last point, or it is the first consistent place after a pass (so that the point from before the pass is no
longer the only good one). Time is the source's wall clock; a clock that steps back counts as time passed.
"""

from __future__ import annotations

from dataclasses import dataclass

from failback.model.points import PointKind
from failback.model.stream import GapCause, MarkKind

_PASSES = {GapCause.SYNC.name, GapCause.OVERFLOW.name, GapCause.MISSED.name, GapCause.RESEND.name}

_KINDS = {
    MarkKind.GROUP: PointKind.GROUP_MARK,
    MarkKind.APP_CONSISTENT: PointKind.APP_CONSISTENT,
    MarkKind.FINAL: PointKind.FINAL,
}


@dataclass(frozen=True, slots=True)
class Pace:
    """What was known before a batch. ``after_pass``: no point was published since the last pass (or since attaching)."""

    last_point_wall_ns: int
    after_pass: bool


@dataclass(frozen=True, slots=True)
class Decision:
    point: PointKind | None
    gap: str
    """The cause's name at the batch's end; empty when the place is consistent."""
    after_pass: bool


def decide(pace: Pace, gap: GapCause, mark: MarkKind, wall_ns: int, crash_consistent_seconds: int) -> Decision:
    """The batch that ends with these facts."""
    if gap is not GapCause.NONE:
        return Decision(None, gap.name, pace.after_pass or gap.name in _PASSES)
    elapsed_ns = wall_ns - pace.last_point_wall_ns
    due = elapsed_ns < 0 or elapsed_ns >= crash_consistent_seconds * 1_000_000_000
    if mark is MarkKind.NONE and not due and not pace.after_pass:
        return Decision(None, "", False)
    return Decision(_KINDS.get(mark, PointKind.CRASH_CONSISTENT), "", False)
