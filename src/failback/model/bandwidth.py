"""How fast one machine's stream may be: a limit, and windows of the week in which another one holds."""

from __future__ import annotations

from dataclasses import dataclass

MINUTES_OF_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class BandwidthWindow:
    """``begin_minute`` to ``end_minute`` of the days on which it begins; an end at or before the begin lies on the next day."""

    days: tuple[int, ...]
    """0 Monday to 6 Sunday."""
    begin_minute: int
    end_minute: int
    bytes_per_second: int
    """0: no limit while the window is open."""


@dataclass(frozen=True, slots=True)
class BandwidthLimit:
    """``bytes_per_second`` holds while no window is open (0: no limit); the lowest one of several open windows holds."""

    bytes_per_second: int = 0
    windows: tuple[BandwidthWindow, ...] = ()
    time_zone: str = "UTC"
    """IANA name: windows are meant in its wall time."""


NO_LIMIT = BandwidthLimit()


@dataclass(frozen=True, slots=True)
class BandwidthFigures:
    """What a sender makes of its limit now."""

    bytes_per_second: int = 0
    """In force now; 0: none."""
    held_back: bool = False
    """It waited for the limit in the last seconds."""
    waited_seconds: float = 0.0
    """All its waiting since it began."""
    problem: str = ""
    """Why the windows cannot be followed as meant; empty while they can."""
