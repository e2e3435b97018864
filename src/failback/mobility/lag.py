"""How old written bytes are when they land: a histogram of fixed size, weighted by bytes.

Buckets grow by 5 %, from 0.05 ms to over two hours, so a percentile is right within 5 % and memory never grows. A batch knows
only its oldest and newest write; its bytes are taken as spread evenly between the two.
"""

from __future__ import annotations

import math

from failback.model.components import LagFigures

FIRST_MILLISECONDS = 0.05
GROWTH = 1.05
BUCKETS = 390
SPREAD = 8

_LOG_GROWTH = math.log(GROWTH)


def bucket_of(milliseconds: float) -> int:
    if milliseconds <= FIRST_MILLISECONDS:
        return 0
    return min(BUCKETS - 1, math.ceil(math.log(milliseconds / FIRST_MILLISECONDS) / _LOG_GROWTH))


class LagHistogram:
    """``landed`` once for each batch; ``figures`` at any time."""

    __slots__ = ("_maximum", "_samples", "_weights", "last_seconds")

    def __init__(self) -> None:
        self._weights = [0.0] * BUCKETS
        self._samples = 0
        self._maximum = 0.0
        self.last_seconds = 0.0
        """Of the oldest write of the batch that landed last."""

    def landed(self, oldest_milliseconds: float, newest_milliseconds: float, weight: int) -> None:
        """A batch of ``weight`` bytes landed; its oldest write was submitted so many milliseconds ago."""
        newest, oldest = sorted((max(0.0, newest_milliseconds), max(0.0, oldest_milliseconds)))
        share = max(1, weight) / SPREAD
        for step in range(SPREAD):
            self._weights[bucket_of(newest + (oldest - newest) * step / (SPREAD - 1))] += share
        self._samples += 1
        self.last_seconds = oldest / 1000
        self._maximum = max(self._maximum, oldest)

    def percentile(self, fraction: float) -> float:
        """Milliseconds below which ``fraction`` of the bytes landed; the upper edge of its bucket. 0 without samples."""
        wanted = sum(self._weights) * fraction
        reached = 0.0
        for index, weight in enumerate(self._weights):
            reached += weight
            if weight and reached >= wanted - 1e-9:
                return min(self._maximum, FIRST_MILLISECONDS * GROWTH**index)
        return 0.0

    def figures(self) -> LagFigures | None:
        if not self._samples:
            return None
        return LagFigures(
            p50=round(self.percentile(0.5), 3),
            p99=round(self.percentile(0.99), 3),
            maximum=round(self._maximum, 3),
            samples=self._samples,
        )
