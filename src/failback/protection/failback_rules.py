"""The decisions inside reprotect and failback, as pure functions: the freeze lease, and when a replica protects.

Rules kept here (data-path rules D14, D20):

* a lease is measured from the moment *before* the freeze was ordered, on one boot of one machine's monotonic clock, and
  counts only while a margin is left: the agent's lease began later, so it ends later;
* the on-premises machine may start only if the source was read back as off inside that lease;
* an item is protected when the pass that was asked for is over, the replica says that it is consistent, and a point of
  the new epoch was published: each of the three may be late, so the sentence says which one is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from failback.model.components import MobilityStatus, ReplicaStatus, SyncMode
from failback.model.ids import DiskId, PassId
from failback.model.points import PointKind, RecoveryPoint

MINUTE_NS = 60_000_000_000
MINIMUM_MARGIN_SECONDS = 5.0
MARGIN_SHARE = 0.05
"""Two clocks that tick at rates 0.05 % apart differ by 0.3 s in ten minutes; the rest covers a slow last read-back."""


@dataclass(frozen=True, slots=True)
class LeaseStart:
    """Where a freeze lease began on the configuration server's clock; stored before the order is given."""

    boot_id: str
    boottime_seconds: float
    lease_seconds: float


def margin_seconds(lease_seconds: float) -> float:
    """How much of a lease is never used: 5 s or 5 %, and never more than a third of a short one."""
    return min(max(MINIMUM_MARGIN_SECONDS, lease_seconds * MARGIN_SHARE), lease_seconds / 3)


def lease_remaining_seconds(start: LeaseStart, boot_id: str, boottime_seconds: float) -> float:
    """Usable seconds left; 0 when it is over or when this is another boot, whose clock cannot be compared."""
    if boot_id != start.boot_id or boottime_seconds < start.boottime_seconds:
        return 0.0
    usable = start.lease_seconds - margin_seconds(start.lease_seconds)
    return max(0.0, usable - (boottime_seconds - start.boottime_seconds))


def sync_modes(disk_ids: Iterable[DiskId], created: Iterable[str]) -> dict[DiskId, SyncMode]:
    """How each disk is brought in step: a disk that was just created is sent whole, the others are compared."""
    new = set(created)
    return {disk_id: SyncMode.FULL if disk_id in new else SyncMode.COMPARE for disk_id in disk_ids}


def capture_missing(  # noqa: PLR0911 - one return for each thing that may be missing
    status: MobilityStatus | None, epoch: int
) -> str:
    """Empty when the agent captures under ``epoch`` and its self-test passed, else what is missing."""
    if status is None:
        return "the mobility service has not reported yet"
    if status.capture == "failed":
        return f"the capture failed: {status.capture_reason or 'no reason given'}"
    if status.epoch != epoch:
        return f"the mobility service reports epoch {status.epoch}, not the new epoch {epoch}"
    if status.capture == "comparing" and status.comparison is not None:
        return ""  # without capture, as the operator chose: there is nothing to test
    if status.capture != "capturing":
        return f"the capture is {status.capture}" + (f": {status.capture_reason}" if status.capture_reason else "")
    if status.self_test != "passed":
        return f"the self-test of the capture is {status.self_test}"
    return ""


def protection_missing(  # noqa: PLR0911 - one return for each thing that may be missing
    status: MobilityStatus | None, replica: ReplicaStatus | None, epoch: int, pass_id: PassId
) -> str:
    """Empty when the item is protected, else what it still waits for."""
    if status is None:
        return "the mobility service has not reported yet"
    if status.epoch != epoch or status.pass_id != pass_id:
        return "the mobility service has not begun this pass" + _because(status)
    if not status.sync_done:
        return sync_sentence(status)
    if replica is None or replica.epoch != epoch:
        return f"the master target has not taken the stream of epoch {epoch}"
    if replica.stands_still:
        return f"the master target reports: {replica.problem}"
    if status.comparison is not None:
        return ""  # what consistent places there are, the item's health tells: a failback makes one by a freeze
    if not replica.consistent:
        return "the last re-read blocks are being applied"
    if not any(_counts(point.epoch, point.kind, epoch) and not point.abandoned for point in replica.points):
        return "the first recovery point after the pass is not published yet"
    return ""


def _because(status: MobilityStatus) -> str:
    return f": {status.capture_reason}" if status.capture == "failed" and status.capture_reason else ""


def _counts(point_epoch: int, kind: PointKind, epoch: int) -> bool:
    """No point is published while a pass is open (D9), so a point of its epoch lies after the pass."""
    return point_epoch == epoch and kind is not PointKind.BEFORE_REPROTECT


def sync_sentence(status: MobilityStatus) -> str:
    done, total = sync_bytes(status)
    if not total:
        return "the comparison of the disks begins"
    return f"comparing disks: {done} of {total} bytes, {sum(disk.bytes_differing for disk in status.sync)} differ"


def sync_bytes(status: MobilityStatus) -> tuple[int, int]:
    """Bytes read by the pass and bytes in all, over all disks."""
    return sum(disk.bytes_compared for disk in status.sync), sum(disk.bytes_total for disk in status.sync)


def landed(replica: ReplicaStatus | None, epoch: int, sequence: int) -> bool:
    """Whether item ``sequence`` of ``epoch`` is durable in the journal (D13)."""
    return replica is not None and replica.epoch == epoch and replica.landed_sequence >= sequence


def point_due(now_wall_ns: int, points: Iterable[RecoveryPoint], epoch: int, frequency_minutes: int) -> bool:
    """Whether an application-consistent point is due: the frequency has passed since the last one of this epoch, or
    since the epoch's first point when there is none yet. A frequency of 0 asks for none."""
    of_epoch = [point for point in points if point.epoch == epoch and not point.abandoned]
    if not frequency_minutes or not of_epoch:
        return False
    consistent = [point.wall_ns for point in of_epoch if point.kind is PointKind.APP_CONSISTENT]
    since = max(consistent) if consistent else min(point.wall_ns for point in of_epoch)
    return now_wall_ns - since >= frequency_minutes * MINUTE_NS
