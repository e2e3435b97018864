"""The freeze lease, and when a replica protects: decisions without clocks or waiting."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from failback.model.components import MobilityStatus, ReplicaStatus, SyncMode, SyncProgress
from failback.model.ids import DiskId, MachineId, PassId, PointId
from failback.model.points import PointKind, RecoveryPoint
from failback.protection import failback_rules as rules
from failback.protection.failback_rules import LeaseStart

START = LeaseStart("boot-1", 1000.0, 600.0)
POINT = RecoveryPoint(PointId("p"), MachineId("m"), PointKind.CRASH_CONSISTENT, 1, 3, 10, 10)
STATUS = MobilityStatus(
    capture="capturing", self_test="passed", epoch=3, pass_id=PassId("pass"), sync_done=True,
    sync=(SyncProgress(DiskId("d"), 100, 40, 5, 5, False),),
)  # fmt: skip
REPLICA = ReplicaStatus(MachineId("m"), "attached", 3, "i", 10, 10, 10, True, points=(POINT,))


def test_a_lease_counts_from_before_the_order_and_keeps_a_margin() -> None:
    assert rules.lease_remaining_seconds(START, "boot-1", 1000.0) == 570.0
    assert rules.lease_remaining_seconds(START, "boot-1", 1569.0) == pytest.approx(1.0)
    assert rules.lease_remaining_seconds(START, "boot-1", 1570.0) == 0.0


def test_a_lease_of_another_boot_or_a_clock_before_its_start_is_over() -> None:
    assert rules.lease_remaining_seconds(START, "boot-2", 1001.0) == 0.0
    assert rules.lease_remaining_seconds(START, "boot-1", 999.0) == 0.0


@given(st.floats(0.1, 1e5), st.floats(0, 2e5))
def test_a_lease_never_lasts_longer_than_it_was_given(lease_seconds: float, waited: float) -> None:
    left = rules.lease_remaining_seconds(LeaseStart("b", 0.0, lease_seconds), "b", waited)
    assert 0 <= left < lease_seconds
    assert left == 0 or left + waited < lease_seconds


def test_created_disks_are_sent_whole() -> None:
    modes = rules.sync_modes([DiskId("a"), DiskId("b")], ["b"])
    assert modes == {DiskId("a"): SyncMode.COMPARE, DiskId("b"): SyncMode.FULL}


def test_capture_says_what_is_missing() -> None:
    assert rules.capture_missing(STATUS, 3) == ""
    assert "epoch 3" in rules.capture_missing(STATUS, 4)
    failed = dataclasses.replace(STATUS, capture="failed", capture_reason="no BTF")
    assert rules.capture_missing(failed, 3) == "the capture failed: no BTF"
    assert "self-test" in rules.capture_missing(dataclasses.replace(STATUS, self_test="not-run"), 3)
    assert rules.capture_missing(None, 3) != ""


def test_protected_needs_pass_replica_and_point() -> None:
    assert rules.protection_missing(STATUS, REPLICA, 3, PassId("pass")) == ""
    only_before = (dataclasses.replace(POINT, kind=PointKind.BEFORE_REPROTECT),)
    older = (dataclasses.replace(POINT, epoch=2),)
    abandoned = (dataclasses.replace(POINT, abandoned=True),)
    missing = [
        rules.protection_missing(None, REPLICA, 3, PassId("pass")),
        rules.protection_missing(STATUS, REPLICA, 4, PassId("pass")),
        rules.protection_missing(STATUS, REPLICA, 3, PassId("another")),
        rules.protection_missing(dataclasses.replace(STATUS, sync_done=False), REPLICA, 3, PassId("pass")),
        rules.protection_missing(STATUS, None, 3, PassId("pass")),
        rules.protection_missing(STATUS, dataclasses.replace(REPLICA, epoch=2), 3, PassId("pass")),
        rules.protection_missing(STATUS, dataclasses.replace(REPLICA, problem="full"), 3, PassId("pass")),
        rules.protection_missing(STATUS, dataclasses.replace(REPLICA, consistent=False), 3, PassId("pass")),
        *(
            rules.protection_missing(STATUS, dataclasses.replace(REPLICA, points=points), 3, PassId("pass"))
            for points in ((), only_before, older, abandoned)
        ),
    ]
    assert all(missing)
    assert missing[3] == "comparing disks: 40 of 100 bytes, 5 differ"


def test_an_application_consistent_point_is_due_after_its_frequency() -> None:
    minute = rules.MINUTE_NS
    first = dataclasses.replace(POINT, wall_ns=100 * minute)
    consistent = dataclasses.replace(POINT, wall_ns=130 * minute, kind=PointKind.APP_CONSISTENT)
    assert not rules.point_due(159 * minute, [first], 3, 60)
    assert rules.point_due(160 * minute, [first], 3, 60)
    assert not rules.point_due(160 * minute, [first, consistent], 3, 60)
    assert rules.point_due(190 * minute, [first, consistent], 3, 60)
    assert not rules.point_due(190 * minute, [first, consistent], 3, 0)
    assert not rules.point_due(190 * minute, [first, consistent], 4, 60)
