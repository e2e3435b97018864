"""The read model of an item: lag and recovery point objective, progress of a pass, and what never leaks between disks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from failback.configuration_server.api.arm import Vault
from failback.configuration_server.api.item_shape import item_resource, rpo_seconds, sync_percentage
from failback.configuration_server.api.item_view import ItemView
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemDiskRow, ItemRow
from failback.model.components import LagFigures, MobilityStatus, SpooledMachine, SyncProgress
from failback.model.ids import DiskId, MachineId, PassId, PointId
from failback.model.points import PointKind, RecoveryPoint
from failback.model.policy import ReplicationPolicy
from failback.protection.operations import Direction, Side
from failback.protection.states import State

SECOND = 1_000_000_000
NOW = 1_000_000 * SECOND


def point(age_seconds: int) -> RecoveryPoint:
    return RecoveryPoint(
        PointId("p"),
        MachineId("m"),
        PointKind.CRASH_CONSISTENT,
        NOW - age_seconds * SECOND,
        epoch=1,
        sequence=1,
        ring=1,
    )


def item(**changes: Any) -> ItemView:
    disks = [
        ItemDiskRow(disk_id=f"d{index}", item_id="i", index=index, path=f"/{index}", format="raw", size_bytes=100,
                    cloud_size_bytes=100, create=False, serial="", cloud_target="vda", on_premises_target="vda")
        for index in (0, 1)
    ]  # fmt: skip
    row = ItemRow(
        item_id="i", name="ledger", friendly_name="ledger", machine_id="m", pass_id="pass", epoch=1, protection_stage="",
        replication_health="Normal", live_side="cloud", protection_state=State.PROTECTED.value, cloud_fabric="cloud",
        cloud_fabric_id="c", cloud_name="c", cloud_hardware_id="hc", on_premises_fabric="home", on_premises_fabric_id="h",
        on_premises_name="h", on_premises_hardware_id="hh", last_failover_wall_ns=0, chosen_point_id="", group_id="",
        os_family="Linux", datastore="", retention_volume="r", abandoned_reason="", disks=disks,
    )  # fmt: skip
    agent = ComponentRow(
        component_id="m",
        hostname="ledger",
        version="1",
        addresses=[],
        last_heartbeat_wall_ns=NOW - SECOND,
        os_family="Linux",
    )
    view = ItemView(
        row=row, state=State.PROTECTED, runs_at=Side.CLOUD, direction=Direction.TO_ON_PREMISES, agent=agent,
        mobility=MobilityStatus(lag=LagFigures(300.0, 900.0, 1000.0, 50)), process_server=None, spooled=None,
        master_target=None, replica=None, points=(), gaps=(), verdicts=(), policy=ReplicationPolicy("failback"), job=None,
    )  # fmt: skip
    return replace(view, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1),
        ({"mobility": MobilityStatus(lag=LagFigures(1500.0, 2000.0, 2000.0, 9))}, 2),
        ({"mobility": MobilityStatus()}, None),
        (
            {"mobility": MobilityStatus(gap="overflow", lag=LagFigures(1, 1, 1, 1)), "points": (point(40), point(90))},
            40,
        ),
        ({"mobility": MobilityStatus(gap="sync")}, None),
        ({"state": State.REPLICATING}, None),
        ({"agent": None}, None),
    ],
)
def test_the_recovery_point_objective_is_lag_or_the_age_of_the_newest_point(
    changes: dict[str, Any], expected: int | None
) -> None:
    assert rpo_seconds(item(**changes), NOW) == expected


def test_a_silent_agent_lets_the_objective_grow() -> None:
    silent = item()
    assert silent.agent is not None
    silent.agent.last_heartbeat_wall_ns = NOW - 120 * SECOND
    assert rpo_seconds(silent, NOW) == 121


def progress(disk_id: str, compared: int, *, done: bool = False) -> SyncProgress:
    return SyncProgress(DiskId(disk_id), 100, compared, 10, 5, done)


def test_the_progress_of_a_pass_is_over_all_disks_and_only_of_this_pass() -> None:
    running = MobilityStatus(pass_id=PassId("pass"), sync=(progress("d0", 50), progress("d1", 0, done=True)))
    assert sync_percentage(item(state=State.REPLICATING, mobility=running)) == 75
    stale = replace(running, pass_id=PassId("an older one"))
    assert sync_percentage(item(state=State.REPLICATING, mobility=stale)) == 0
    assert sync_percentage(item(mobility=stale)) == 100


def test_queue_depths_sum_up_to_the_machines() -> None:
    spooled = SpooledMachine(MachineId("m"), 1, True, True, 9, 9, 3 << 20)
    waiting = item(mobility=MobilityStatus(backlog_bytes=2 << 20), spooled=spooled)
    shaped = item_resource(Vault("/v", "https://h", "x"), waiting, NOW)
    disks = shaped["properties"]["providerSpecificDetails"]["protectedDisks"]
    assert [disk["sourceDataInMB"] for disk in disks] == [2.0, 0.0]
    assert [disk["psDataInMB"] for disk in disks] == [3.0, 0.0]


def test_the_list_view_leaves_out_disks_and_servers() -> None:
    details = item_resource(Vault("/v", "https://h", "x"), item(), NOW, full=False)["properties"][
        "providerSpecificDetails"
    ]
    assert (details["protectedDisks"], details["processServerId"], "failback" in details) == ([], None, False)


def test_disks_of_a_machine_committed_in_the_cloud_say_that_they_need_a_resynchronization() -> None:
    def first_disk(view: ItemView) -> dict[str, Any]:
        details = item_resource(Vault("/v", "https://h", "x"), view, NOW)["properties"]["providerSpecificDetails"]
        disk: dict[str, Any] = details["protectedDisks"][0]
        return disk

    away = first_disk(item(state=State.COMMITTED, direction=Direction.TO_CLOUD))
    assert (away["resyncRequired"], away["healthErrorCode"]) == ("Required", "ECH0007")
    home = first_disk(item(state=State.COMMITTED, runs_at=Side.ON_PREMISES))
    assert (home["resyncRequired"], home["healthErrorCode"]) == ("NotRequired", None)
    kept = first_disk(item())
    assert (kept["resyncRequired"], kept["healthErrorCode"]) == ("NotRequired", None)
