"""What a reprotect will move and how long it will take, and what a failback will interrupt: said before anything is touched.

Pure arithmetic over :class:`TransferFacts`; what was never measured is None and shown as such, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from failback.protection.readiness.facts import TransferFacts

BOOT_SECONDS = 60.0
"""What a machine's start takes when none was measured yet."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """``bytes_expected``: by the share that had to be sent the last time, else all; ``seconds`` at the measured rate."""

    bytes_at_most: int
    bytes_expected: int
    bytes_per_second: float | None
    measured_by: str
    seconds: float | None
    downtime_seconds: float
    downtime_from: str


def estimate(facts: TransferFacts) -> Estimate:
    share = facts.sent_share if facts.sent_share is not None else 1.0
    expected = int(facts.bytes_at_most * share)
    rate = facts.measured_bytes_per_second
    gain = rate - (facts.changed_bytes_per_second or 0.0) if rate else 0.0
    seconds = expected / gain if gain > 0 else None
    rest = facts.backlog_bytes / rate if rate else 0.0
    if facts.last_downtime_seconds is not None:
        downtime, source = facts.last_downtime_seconds, "the last failback"
    elif facts.standstill_seconds:
        downtime = BOOT_SECONDS + facts.standstill_seconds
        source = "an ordinary start, and a comparison of all disks while the machine stands still"
    else:
        downtime, source = BOOT_SECONDS, "an ordinary start; no failback of this machine was measured yet"
    return Estimate(facts.bytes_at_most, expected, rate, facts.measured_by, seconds, downtime + rest, source)
