"""Whether a batch's end may become a recovery point, and if not, why (D9). Pure.

The end of a batch is fixed first and the capture's counters are read afterwards: what rose since the previous reading may
concern any write of the batch, so the batch is in a gap. The gap stays open while a pass is open or any block is dirty
or pending, and until a batch ends at or after ``consistent_from`` (the ring position sampled when the last read of a
longer pass returned, D8).
"""

from __future__ import annotations

import dataclasses

from failback.mobility.capture.values import Counters
from failback.model.stream import GapCause

NOTHING = Counters(**{field.name: 0 for field in dataclasses.fields(Counters)})

COMPARISON_NEEDED = ("recursion_misses", "unsupported")
"""Counters whose rise means writes of unknown extent: the disks have to be compared by hash."""

_CAUSES = (
    ("recursion_misses", GapCause.MISSED),
    ("unsupported", GapCause.MISSED),
    ("drops", GapCause.OVERFLOW),
    ("untracked", GapCause.OVERFLOW),
    ("unreadable_pages", GapCause.OVERFLOW),
    ("write_errors", GapCause.WRITE_ERROR),
    ("overlaps", GapCause.OVERLAP),
    ("unannounced", GapCause.OVERFLOW),
    ("skipped", GapCause.OVERFLOW),
)


def risen(before: Counters, after: Counters) -> GapCause:
    """The gravest cause whose counter rose; NONE when nothing did."""
    for name, cause in _CAUSES:
        if getattr(after, name) > getattr(before, name):
            return cause
    return GapCause.NONE


def comparison_needed(before: Counters, after: Counters) -> bool:
    return any(getattr(after, name) > getattr(before, name) for name in COMPARISON_NEEDED)


class GapRule:
    """``decide`` once for each batch, in order. ``open_cause`` is what holds points back now."""

    def __init__(self, counters: Counters, *, cause: GapCause = GapCause.NONE, consistent_from: int = 0) -> None:
        self._counters = counters
        self.open_cause = cause
        self.consistent_from = consistent_from

    def decide(self, counters: Counters, *, dirty_blocks: int, pass_open: bool, end_position: int) -> GapCause:
        """The gap that the batch ending at ``end_position`` carries."""
        cause = risen(self._counters, counters)
        self._counters = counters
        if pass_open:
            self.open_cause = GapCause.MISSED if self.open_cause is GapCause.MISSED else GapCause.SYNC
            return self.open_cause
        if cause is not GapCause.NONE:
            if self.open_cause is GapCause.NONE:
                self.open_cause = cause
            return self.open_cause
        if dirty_blocks or end_position < self.consistent_from:
            if self.open_cause is GapCause.NONE:
                self.open_cause = GapCause.OVERFLOW
            return self.open_cause
        self.open_cause = GapCause.NONE
        return GapCause.NONE
