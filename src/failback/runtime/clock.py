"""Time as an argument: code that decides takes a number, code that waits takes a :class:`Clock`.

Durations are measured on the monotonic clock only; wall time is for people and for the timeline. A wall clock that
steps back therefore never shortens a lease nor reorders a stream.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds on a clock that never steps and that counts while the machine sleeps (CLOCK_BOOTTIME)."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        return time.time_ns()


def boot_id() -> str:
    """The kernel's id of this boot; monotonic readings compare only under an equal boot id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def iso(wall_ns: int) -> str:
    """``2026-11-23T03:15:00.123456Z`` for a wall time in nanoseconds."""
    moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{wall_ns % 1_000_000_000 // 1000:06d}Z"


def from_iso(text: str) -> int:
    """Wall nanoseconds of an ISO 8601 time; a time without a zone is UTC.

    Raises ValueError when the text is no time.
    """
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * 1_000_000_000 + moment.microsecond * 1000
