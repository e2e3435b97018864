"""Replication by periodic comparison: when to compare again, and what of it may be called consistent.

For machines whose writes cannot be captured, chosen by the operator. Between two comparisons nothing is known of what is
written, so the stream's gap stays open, and a place is a recovery point only when no disk was written from the beginning of a
comparison until after its last read (``capture.stillness``): on a machine at rest, or one that is held still for a mark. A
comparison during which the machine wrote leaves a smeared replica: useful as a start for the next one, never a point.
"""

from __future__ import annotations

import time

from failback.mobility.capture.comparison import ComparisonSession, too_long
from failback.model.components import ComparisonStatus

SAFETY = 1.5
"""A comparison under a freeze is allowed to take that much longer than the one before."""


class Periodic:
    """For one stream. ``begin`` and ``ask`` belong into the source's own thread."""

    def __init__(self, session: ComparisonSession, every_seconds: int) -> None:
        self._stillness = session.stillness
        self._every_seconds = every_seconds
        self._asked = False
        self._began_at = time.monotonic()
        self._ended_at: float | None = None
        self._seconds: float | None = None
        self._ended_wall_ns = self._consistent_wall_ns = 0
        self._smeared = 0

    @property
    def written(self) -> bool:
        """Whether the machine was seen to write since the newest comparison began."""
        return self._stillness.written

    def begin(self) -> None:
        """A comparison begins now."""
        self._asked = False
        self._stillness.begin()
        self._began_at, self._ended_at = time.monotonic(), None

    def ask(self) -> None:
        """Somebody waits for a consistent place: what is read since the machine wrote does not count."""
        self._stillness.still_ns()
        self._asked = True

    def is_due(self, now: float, *, comparing: bool) -> bool:
        """Whether to begin (again) now, on the monotonic clock. A machine that wrote nothing needs no comparison."""
        if not self.written:
            return False
        if self._asked:
            return True
        return not comparing and self._ended_at is not None and now - self._ended_at >= self._every_seconds

    def ended(self, *, consistent: bool) -> None:
        """What the comparison found has landed."""
        self._ended_at = time.monotonic()
        self._seconds = self._ended_at - self._began_at
        self._ended_wall_ns = time.time_ns()
        self._smeared = 0 if consistent else self._smeared + 1

    def consistent(self, wall_ns: int) -> None:
        """A place without a gap landed."""
        self._consistent_wall_ns, self._smeared = wall_ns, 0

    def waits_for(self, limit_seconds: float) -> str:
        """Why a mark within so long a freeze is not to be tried yet; empty when it is. Raises NotSupportedError when never."""
        if self._seconds is None:
            return "the first comparison of the disks is not over"
        if self._seconds * SAFETY > limit_seconds:
            raise too_long(self._seconds * SAFETY, limit_seconds)
        return ""

    def status(self) -> ComparisonStatus:
        return ComparisonStatus(
            every_seconds=self._every_seconds, running=self._ended_at is None, seconds=self._seconds or 0.0,
            finished_wall_ns=self._ended_wall_ns, consistent_wall_ns=self._consistent_wall_ns,
            smeared=self._smeared,
        )  # fmt: skip
