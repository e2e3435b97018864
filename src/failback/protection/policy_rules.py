"""What a replication policy may say. Pure.

A policy is taken as a whole or refused with the reason; master targets get it with their next assignment.
"""

from __future__ import annotations

from failback.errors import ConfigurationError
from failback.model.policy import ReplicationPolicy

LONGEST_HISTORY_MINUTES = 366 * 24 * 60


def check(policy: ReplicationPolicy) -> None:
    """Raises ConfigurationError."""
    _within("the time between crash-consistent points", policy.crash_consistent_seconds, 1, 86_400, "seconds")
    _within("the history", policy.recovery_point_history_minutes, 0, LONGEST_HISTORY_MINUTES, "minutes")
    _within("the redo window", policy.redo_window_seconds, 0, 7 * 86_400, "seconds")
    _within("the time between app-consistent points", policy.app_consistent_frequency_minutes, 0, 10_080, "minutes")
    _within("the threshold", policy.recovery_point_threshold_minutes, 1, 10_080, "minutes")
    before = None
    for step in policy.thinning:
        _within("a step of the thinning", step.older_than_minutes, 1, LONGEST_HISTORY_MINUTES, "minutes")
        _within("what a step of the thinning keeps one in", step.every_minutes, 1, LONGEST_HISTORY_MINUTES, "minutes")
        if before is not None and (
            step.older_than_minutes <= before.older_than_minutes or step.every_minutes % before.every_minutes
        ):
            raise ConfigurationError(
                "the steps of the thinning do not fit one another", code="InvalidPolicy",
                remedy="give them by growing age, each keeping one point in a multiple of the time of the one before",
            )  # fmt: skip
        before = step


def _within(what: str, value: int, low: int, high: int, unit: str) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{what} is {value} {unit}", code="InvalidPolicy",
                                 remedy=f"choose {low} to {high} {unit}")  # fmt: skip
