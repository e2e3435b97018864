"""Every readiness check: passes on a sound site, fails for its own cause with a remedy, and does not fail for another's."""

from dataclasses import replace
from typing import Any

import pytest

from failback.model.components import BootKernel, MachineFacts, Role, VolumeFacts
from failback.model.ids import MachineId
from failback.protection import readiness
from failback.protection.group_rules import MemberFacts
from failback.protection.operations import Direction, Operation
from failback.protection.readiness import (
    BY_NUMBER,
    ROWS,
    ComponentFacts,
    DiskFacts,
    ProbedEdge,
    ReadinessFacts,
    Verdict,
    evaluate,
    first_failure,
    ready,
    version_key,
)
from failback.protection.states import State

GIB = 1 << 30


def component(role: Role, **changes: Any) -> ComponentFacts:
    sound = ComponentFacts(
        component_id=f"id-{role.value}",
        hostname=f"{role.value}-1",
        role=role,
        version="0.1.0",
        os_family="linux",
        seconds_since_heartbeat=2.0,
        clock_skew_seconds=0.2,
    )
    return replace(sound, **changes)


def volume(name: str, free: int = 50 * GIB, problem: str = "") -> VolumeFacts:
    return VolumeFacts(name, f"/{name}", "xfs", 100 * GIB, free, problem)


SHOP = MemberFacts("item-shop", "shop", MachineId("shop"), "Linux", "id-master-target", True, True, "sales")

SOUND = ReadinessFacts(
    item_name="ledger",
    state=State.COMMITTED,
    direction=Direction.TO_CLOUD,
    cloud_machine="ledger-cloud",
    cloud_fabric="cloud",
    cloud_power="On",
    on_premises_machine="ledger",
    on_premises_fabric="onprem",
    on_premises_driver="kvm",
    on_premises_power="Off",
    on_premises_firmware="bios",
    source_firmware="bios",
    source_service="enabled",
    source_machine=MachineFacts(
        "enabled", (BootKernel("6.1.0", ("virtio_blk", "virtio_net")),), network_renderer="ifupdown"
    ),
    disks=(DiskFacts("disk 0", 4 * GIB, 4 * GIB, seen_by_agent=True), DiskFacts("disk 1", GIB, 0, target_missing=True)),
    agent=component(Role.MOBILITY),
    agent_self_test="passed",
    process_server=component(Role.PROCESS_SERVER),
    process_server_asked="ps",
    master_target=component(Role.MASTER_TARGET),
    master_target_asked="mt",
    retention_volume_asked="retention",
    retention_volume=volume("retention"),
    datastore_asked="store",
    datastore=volume("store"),
    datastores=(volume("store"),),
    retention_volumes=(volume("retention"),),
    inventory_age_seconds=2.0,
    policy_name="failback-policy",
    master_target_on_lvm=False,
    master_target_disk_ids=("serial:mt",),
    seconds_since_backup=3600.0,
    backups_known=True,
    configuration_server_nics=1,
    group="sales",
    group_members=(SHOP,),
    probes=(ProbedEdge("ledger", "ps:9443", "agent to process server", ""),),
    configuration_server_version="0.1.0",
)


def failures(**changes: Any) -> dict[str, str]:
    checks = evaluate(replace(SOUND, **changes))
    failed = {check.name: check.code for check in checks if check.verdict is Verdict.FAIL}
    for check in checks:
        assert bool(check.remedy) == check.blames == bool(check.code), check
        assert check.sentence and check.name and check.rows
    return failed


def test_a_sound_site_is_ready_and_what_was_not_looked_at_says_why() -> None:
    checks = evaluate(SOUND)
    assert failures() == {}
    assert ready(checks)
    assert first_failure(checks) is None
    assert not [check for check in checks if check.verdict is Verdict.WARNING]
    named = {row for check in checks for row in check.rows}
    assert named == {row.number for row in ROWS if row.check and Operation.REPROTECT in row.operations} | {
        row.number for row in ROWS if row.with_row and Operation.REPROTECT in BY_NUMBER[row.with_row].operations
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state": State.PROTECTED}, {"item state": "OperationNotAllowed"}),
        ({"running_job": "job 9"}, {"no other job": "JobInProgress"}),
        ({"has_on_premises_origin": False}, {"on-premises origin": "NoOnPremisesOrigin"}),
        ({"cloud_fabric_problem": "connection refused"}, {"fabric reachable": "FabricUnreachable"}),
        ({"on_premises_fabric_problem": "no"}, {"fabric reachable": "FabricUnreachable"}),
        ({"cloud_power": "Off"}, {"cloud machine running": "78093"}),
        ({"cloud_power": ""}, {"cloud machine not deleted": "CloudMachineDeleted"}),
        ({"on_premises_power": "On"}, {"on-premises machine off": "OnPremisesMachineOn"}),
        ({"on_premises_power": ""}, {"on-premises machine found": "OnPremisesMachineMissing"}),
        ({"disks": (DiskFacts("d", GIB, 2 * GIB),)}, {"disks match": "DiskSizeMismatch"}),
        ({"disks": (DiskFacts("d", GIB, GIB, seen_by_agent=False),)}, {"disks match": "DiskNotSeen"}),
        ({"agent": None}, {"agent heartbeat": "95226"}),
        ({"agent": component(Role.MOBILITY, seconds_since_heartbeat=901.0)}, {"agent heartbeat": "95226"}),
        ({"agent": component(Role.MOBILITY, seconds_since_heartbeat=None)}, {"agent heartbeat": "95226"}),
        ({"agent_self_test": "failed", "agent_problem": "no BTF"}, {"capture self-test": "CaptureSelfTest"}),
        ({"agent_self_test": "not-run"}, {"capture self-test": "CaptureSelfTest"}),
        ({"process_server": None}, {"process server": "806"}),
        ({"process_server": None, "process_server_asked": ""}, {"process server": "806"}),
        (
            {"process_server": component(Role.PROCESS_SERVER, seconds_since_heartbeat=5000.0)},
            {"process server heartbeat": "806"},
        ),
        ({"master_target": None}, {"master target heartbeat": "78022"}),
        (
            {"master_target": component(Role.MASTER_TARGET, seconds_since_heartbeat=5000.0)},
            {"master target heartbeat": "78022"},
        ),
        (
            {"master_target": component(Role.MASTER_TARGET, os_family="windows")},
            {"operating system family": "OsFamilyMismatch"},
        ),
        ({"master_target_disks": 59}, {"master target disk slots": "TooManyDisks"}),
        ({"retention_volume": None}, {"retention volume suitable": "RetentionVolumeMissing"}),
        (
            {"retention_volume": volume("retention", problem="The file system is FAT32.")},
            {"retention volume suitable": "RetentionVolumeUnsuitable"},
        ),
        ({"retention_volume": volume("retention", free=100 << 20)}, {"retention capacity": "RetentionVolumeFull"}),
        ({"datastore": None}, {"datastore accessible": "8061"}),
        ({"datastore": None, "datastore_asked": ""}, {"datastore for new disks": "8061"}),
        ({"datastore": volume("store", problem="Read-only.")}, {"datastore accessible": "8061"}),
        ({"datastore": volume("store", free=GIB - 1)}, {"datastore capacity": "DatastoreFull"}),
        ({"configuration_server_version": "0.0.9"}, {"versions": "VersionTooNew"}),
        ({"master_target": component(Role.MASTER_TARGET, version="0.10.0")}, {"versions": "VersionTooNew"}),
        ({"agent": component(Role.MOBILITY, version="1.0")}, {"versions": "VersionTooNew"}),
        ({"agent": component(Role.MOBILITY, clock_skew_seconds=-901.0)}, {"clock skew": "ACS50008"}),
        (
            {"group_members": (replace(SHOP, os_family="Windows"),)},
            {"replication group: one system": "GroupNeedsOneOperatingSystem"},
        ),
        (
            {"group_members": (replace(SHOP, master_target_id="another"),)},
            {"replication group: one master target": "GroupNeedsOneMasterTarget"},
        ),
        (
            {"probes": (ProbedEdge("a", "b:9443", "agent to process server", "timed out", "78186"),)},
            {"connectivity: agent to process server": "78186"},
        ),
    ],
)
def test_one_fault_fails_one_check(changes: dict[str, Any], expected: dict[str, str]) -> None:
    assert failures(**changes) == expected


def test_a_member_that_does_not_replicate_binds_nobody_to_its_master_target() -> None:
    assert failures(group_members=(replace(SHOP, master_target_id="another", replicating=False),)) == {}


def test_an_edge_that_nobody_can_try_is_not_a_pass() -> None:
    checks = evaluate(replace(SOUND, probes=(ProbedEdge("a", "b:1", "agent to process server", None),)))
    assert [check.verdict for check in checks if check.subject == "a -> b:1"] == [Verdict.NOT_APPLICABLE]


def test_no_datastore_is_needed_when_every_disk_is_there() -> None:
    disks = (DiskFacts("d", GIB, GIB),)
    assert failures(datastore=None, datastore_asked="", disks=disks) == {}


def test_the_job_fails_with_the_first_check_and_tells_of_the_others() -> None:
    error = first_failure(evaluate(replace(SOUND, cloud_power="Off", agent=None)))
    assert error is not None
    assert error.code == "78093"
    assert error.retryable
    assert "1 more" in error.message
    assert "No mobility service" in error.possible_causes


@pytest.mark.parametrize(("older", "newer"), [("0.9.9", "0.10.0"), ("1.0", "1.0.1"), ("0.1.0.dev3", "0.1.1")])
def test_versions_are_compared_by_number(older: str, newer: str) -> None:
    assert version_key(older) < version_key(newer)


def test_only_a_failed_way_may_pass_soon() -> None:
    way = readiness.Check("connectivity: agent to process server", "a -> b", readiness.Verdict.FAIL, "timed out")
    other = readiness.Check("capture self-test", "a", readiness.Verdict.FAIL, "failed")
    fine = readiness.Check("item state", "a", readiness.Verdict.PASS, "fine")
    assert readiness.may_pass_soon([way, fine])
    assert not readiness.may_pass_soon([way, other])
    assert not readiness.may_pass_soon([fine])
