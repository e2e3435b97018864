"""Rate and time left of a step that moves bytes, from the samples it reports. Pure: time is an argument.

The rate is taken over the last minute, so that a stall shows at once and an early burst is forgotten.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    remaining_seconds: float | None
    """None while there is no rate to tell by."""


@dataclass(slots=True)
class ProgressMeter:
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def sample(self, now_seconds: float, bytes_done: int, bytes_total: int) -> Progress:
        """Add a sample; a count that fell (a step that began again) starts a new measurement."""
        if self._samples and bytes_done < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now_seconds, bytes_done))
        while len(self._samples) > 2 and now_seconds - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()
        began, first = self._samples[0]
        elapsed = now_seconds - began
        rate = (bytes_done - first) / elapsed if elapsed > 0 else 0.0
        left = (bytes_total - bytes_done) / rate if rate > 0 else None
        if bytes_done >= bytes_total:
            left = 0.0
        return Progress(bytes_done, bytes_total, rate, left)
