"""Keeping a stream below its bandwidth limit: a token bucket, and the pacer that a sender waits for.

:class:`TokenBucket` is a calculation over the monotonic time that it is given. :class:`Pacer` looks at the wall clock (windows of
a schedule) every second, so that a changed limit or an opened window is in force within about a second, also in the middle
of a long wait. Without a limit it costs one comparison.
"""

from __future__ import annotations

import asyncio
import zoneinfo
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from failback.model.bandwidth import NO_LIMIT, BandwidthFigures, BandwidthLimit
from failback.protection.bandwidth_rules import rate_at
from failback.runtime import logs

log = logs.get(__name__)

Pace = Callable[[int], Awaitable[None]]
"""Awaited before so many bytes are written."""

BURST_SECONDS = 0.25
SMALLEST_BURST_BYTES = 64 << 10
LOOK_SECONDS = 1.0
LONGEST_SLEEP_SECONDS = 0.5
SHORTEST_WAIT_SECONDS = 1e-4
HELD_BACK_SECONDS = 10.0
"""So long after a wait a sender still counts as held back."""


@dataclass(slots=True)
class TokenBucket:
    """Bytes may be taken while ``level`` is not negative; taking more than there is leaves a debt that time pays."""

    rate: float
    level: float = 0.0
    at: float = 0.0

    def refill(self, now: float) -> None:
        burst = max(self.rate * BURST_SECONDS, SMALLEST_BURST_BYTES)
        self.level = min(burst, self.level + max(0.0, now - self.at) * self.rate)
        self.at = now

    def set_rate(self, rate: float, now: float) -> None:
        """A debt stays, at the new rate."""
        self.refill(now)
        self.rate = rate

    def wait_seconds(self, now: float) -> float:
        """0 when bytes may be taken now; less than a timer can measure counts as now."""
        self.refill(now)
        wait = -self.level / self.rate
        return wait if wait > SHORTEST_WAIT_SECONDS else 0.0

    def take(self, count: int) -> None:
        self.level -= count


class Pacer:
    """``await pacer.pace(count)`` before writing ``count`` bytes. ``limit`` may be replaced at any time."""

    def __init__(self, limit: BandwidthLimit = NO_LIMIT, *, wall: Callable[[], datetime] | None = None) -> None:
        self._limit = limit
        self._zone: tzinfo = UTC
        self._problem = ""
        self._wall = wall or (lambda: datetime.now(UTC))
        self._bucket = TokenBucket(0.0)
        self._looked = float("-inf")
        self._waited_seconds = 0.0
        self._waited_at = float("-inf")
        self._open_zone()

    @property
    def limit(self) -> BandwidthLimit:
        return self._limit

    @limit.setter
    def limit(self, limit: BandwidthLimit) -> None:
        if limit != self._limit:
            self._limit = limit
            self._looked = float("-inf")
            self._open_zone()

    async def pace(self, count: int) -> None:
        if self._limit.bytes_per_second == 0 and not self._limit.windows:
            return
        loop = asyncio.get_running_loop()
        while self._look(loop.time()):
            wait = self._bucket.wait_seconds(loop.time())
            if not wait:
                self._bucket.take(count)
                return
            pause = min(wait, LONGEST_SLEEP_SECONDS)
            self._waited_seconds += pause
            await asyncio.sleep(pause)
            self._waited_at = loop.time()

    def figures(self) -> BandwidthFigures:
        now = asyncio.get_running_loop().time()
        rate = self._look(now)
        return BandwidthFigures(
            rate,
            bool(rate) and now - self._waited_at < HELD_BACK_SECONDS,
            round(self._waited_seconds, 3),
            self._problem,
        )

    def _look(self, now: float) -> int:
        """The rate in force, looked up once a second."""
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            rate = rate_at(self._limit, self._wall().astimezone(self._zone))
            if rate != self._bucket.rate:
                log.info("bandwidth limit", bytes_per_second=rate or "none")
                self._bucket.set_rate(float(rate), now)
                if not rate:
                    self._bucket.level = 0.0
        return int(self._bucket.rate)

    def _open_zone(self) -> None:
        self._problem = ""
        try:
            self._zone = zoneinfo.ZoneInfo(self._limit.time_zone) if self._limit.time_zone != "UTC" else UTC
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            self._zone = UTC
            self._problem = (
                f"the time zone {self._limit.time_zone} is not known here (package tzdata): windows count in UTC"
            )
            log.warning("windows of the bandwidth limit count in UTC", time_zone=self._limit.time_zone)
