"""Replication policies (asr.md section 9). The failback policy is made with the forward one and is not edited."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThinningStep:
    """Of points older than ``older_than_minutes`` one in ``every_minutes`` stays, until the next step takes over."""

    older_than_minutes: int
    every_minutes: int


DEFAULT_THINNING = (ThinningStep(120, 60),)


@dataclass(frozen=True, slots=True)
class ReplicationPolicy:
    """``thinning``: by growing age; younger points than the first step's all stay.

    ``recovery_point_threshold_minutes`` raises an alert only; ``crash_consistent_seconds`` paces catalogued points.
    """

    name: str
    recovery_point_threshold_minutes: int = 15
    recovery_point_history_minutes: int = 1440
    app_consistent_frequency_minutes: int = 60
    crash_consistent_seconds: int = 300
    redo_window_seconds: int = 3600
    thinning: tuple[ThinningStep, ...] = DEFAULT_THINNING
