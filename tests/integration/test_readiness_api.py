"""Every check of the readiness catalogue through the API: once it passes, once it does not, with its code and remedy.

Two whole configuration servers: one between simulated sites, one whose sites also tell what vSphere and Azure would. Facts come
by the real intake: heartbeats, fabrics, probe orders, the database.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from api_client import CONTAINER, ITEM, SiteProcess
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from failback.configuration_server.database import Database
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.groups import GroupRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.database.points import PointRow
from failback.configuration_server.database.policies import FAILBACK_POLICY_NAME, PolicyRow
from failback.model.points import PointKind
from failback.protection.readiness import ROWS

AGENT, SERVER, TARGET, CLOUD, HOME = "cloud-vm", "process-server", "master-target-1", "cloud-vm", "home-vm"
GIB = 1 << 30
Rows = Callable[[Session, ItemRow], None]


def volume(name: str = "retention", **changes: Any) -> dict[str, Any]:
    sound = {"name": name, "path": f"/{name}", "filesystem": "xfs", "capacity_bytes": 100 * GIB, "free_bytes": 90 * GIB}
    return {**sound, **changes}


def told(who: str, **changes: Any) -> dict[str, Any]:
    return {"told": {who: changes}}


def status(who: str, **changes: Any) -> dict[str, Any]:
    return told(who, status=changes)


def retention(**changes: Any) -> dict[str, Any]:
    return status(TARGET, retention_volumes=[volume(**changes)])


def store(**changes: Any) -> dict[str, Any]:
    return status(TARGET, datastores=[volume("store", **changes)])


def machine(**changes: Any) -> dict[str, Any]:
    return status(AGENT, machine=changes, firmware=changes.pop("firmware", "bios"))


def fabric(who: str, **changes: Any) -> dict[str, Any]:
    return {"fabric": {who: changes}}


def vsphere(part: str, **changes: Any) -> dict[str, Any]:
    return {"vsphere": {part: changes}}


def item(**changes: Any) -> Rows:
    def change(_session: Session, row: ItemRow) -> None:
        for name, value in changes.items():
            setattr(row, name, value)

    return change


def job(scenario: str, state: str, **changes: Any) -> Rows:
    def add(session: Session, row: ItemRow) -> None:
        session.add(JobRow(job_id="case-job", key="case", scenario=scenario, friendly_name=scenario, state=state,
                           item_id=row.item_id, inputs={}, started_wall_ns=1, **changes))  # fmt: skip
        if state == "InProgress":
            row.current_job_id = "case-job"

    return add


def both(*changes: Rows) -> Rows:
    def change(session: Session, row: ItemRow) -> None:
        for each in changes:
            each(session, row)

    return change


def point(session: Session, row: ItemRow) -> None:
    session.add(PointRow(item_id=row.item_id, point_id="case-point", machine_id="m", wall_ns=time.time_ns(),
                         kind=PointKind.CRASH_CONSISTENT.value, epoch=1, sequence=1, ring=1))  # fmt: skip


def no_policy(session: Session, _row: ItemRow) -> None:
    policy = session.get(PolicyRow, FAILBACK_POLICY_NAME)
    assert policy is not None
    policy.name = "hidden"


def component(role: str, hardware_id: str, **changes: Any) -> Rows:
    def add(session: Session, _row: ItemRow) -> None:
        session.add(ComponentRow(component_id=f"case-{role}", role=role, hostname=f"case-{role}",
                                 hardware_id=hardware_id, version="1", enrolled_wall_ns=1, **changes))  # fmt: skip

    return add


def member(**changes: Any) -> Rows:
    """Another machine in the same replication group."""

    def add(session: Session, row: ItemRow) -> None:
        session.add(GroupRow(group_id="case-group", name="sales", created_wall_ns=1))
        row.group_id = "case-group"
        session.add(ItemRow(item_id="case-item", name="shop", friendly_name="shop", group_id="case-group",
                            created_wall_ns=1, **changes))  # fmt: skip

    return add


PROTECTED = both(item(protection_state="Protected"), point)
FAILBACK = "operation=failback"
CHOSEN = "retentionVolume=retention&datastore=store"
KERNEL = {"version": "6.1.0", "drivers": ["mptspi", "vmxnet3"]}
REPLICAS = [
    {"machine_id": f"m{n}", "state": "attached", "epoch": 1, "incarnation": "i", "landed_sequence": 1, "landed_ring": 1,
     "applied_sequence": 1, "consistent": True,
     "disks": [{"disk_id": f"d{n}-{d}", "index": d, "path": "/x", "format": "raw", "size_bytes": 1} for d in range(8)]}
    for n in range(8)
]  # fmt: skip
LIMITED = {"bytes_per_second": 1_000_000, "windows": [], "time_zone": "UTC"}
CHURNING = status(AGENT, capture="capturing", epoch=1, bytes_changed=1 << 62)


@dataclass(frozen=True)
class Case:
    row: str
    bad: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    good: dict[str, Any] = field(default_factory=dict)
    query: str = CHOSEN
    bad_query: str = ""
    rows: Rows | None = None
    good_rows: Rows | None = None
    verdict: str = "fail"
    described: bool = False
    power: tuple[str, str] = ("On", "Off")
    """Of the cloud machine and the on-premises machine when it is bad."""


SPHERE = {"described": True}
GONE = {"vsphere": {"machine": None}}
CASES = [
    Case("6", rows=PROTECTED, code="OperationNotAllowed"),
    Case("7", good_rows=PROTECTED, code="OperationNotAllowed", query=FAILBACK),
    Case("X1", rows=job("Scrub", "InProgress"), code="JobInProgress"),
    Case("1", rows=item(abandoned_reason="MigrationComplete", protection_state="Disabled"), code="MigrationCompleted"),
    Case("2", {"azure": {"resource_group": "rg-2"}}, "MachineMoved", described=True),
    Case("3", fabric(CLOUD, gone=True), "CloudMachineDeleted"),
    Case("4", rows=item(protection_state="Disabled"), code="ProtectionDisabled"),
    Case("5", rows=item(on_premises_fabric_id=""), code="NoOnPremisesOrigin"),
    Case("8", fabric(HOME, kind="appliance"), "SourceKindNotSupported"),
    Case("9", {**fabric(HOME, kind="physical"), **told(AGENT, os_version="Windows Server 2008 R2 SP1")},
         "OsNotSupportedAsPhysical", good=told(AGENT, os_version="debian 12")),
    Case("10", told(AGENT, os_version="rhel 5.11"), "78052", good=told(AGENT, os_version="Windows Server 2016")),
    Case("X2", fabric(HOME, problem="connection refused"), "FabricUnreachable"),
    Case("11", vsphere("facts", hypervisor="Hyper-V"), "TargetPlatformNotSupported", described=True),
    Case("12", vsphere("facts", licence="free"), "FreeHypervisorLicence", described=True),
    Case("13", vsphere("facts", missing_privileges=["Datastore.Browse"]), "VCenterPrivilegesMissing", described=True),
    Case("14", vsphere("facts", account_read_only=True), "VCenterAccountReadOnly", described=True),
    Case("15", vsphere("facts", original_vcenter="vc-0", vcenter_connected=False), "VCenterNotDiscovered",
         good=vsphere("facts", original_vcenter="vc-0"), described=True),
    Case("L1", vsphere("facts", vcenter_connected=False), "VCenterNotConnected", described=True),
    Case("L2", {**fabric(HOME, kind="physical"), **vsphere("facts", master_target_host="")}, "AlternateLocationNeedsHost",
         good=fabric(HOME, kind="physical"), described=True),
    Case("X9", machine(firmware="uefi"), "FirmwareMismatch", good=machine(firmware="bios")),
    Case("18", code="BackupOld", verdict="warning"),
    Case("24", code="78093", power=("Off", "Off")),
    Case("22", {"silent cloud-vm": True}, "95226"),
    Case("19", {"silent cloud-vm": True}, "95226", power=("On", "On")),
    Case("23", machine(service_start="disabled"), "95226", good=machine(service_start="enabled")),
    Case("X4", status(AGENT, self_test="failed"), "CaptureSelfTest"),
    Case("L4", told(TARGET, version="2"), "VersionTooNew"),
    Case("X7", told(SERVER, skew_seconds=-901.0), "ACS50008"),
    Case("L8", {"azure": {"addresses": ["10.0.0.5"]}}, "SecondNetworkCardNeeded", described=True),
    Case("72", rows=no_policy, code="78253"),
    Case("77", code="OnPremisesMachineOn", power=("On", "On")),
    Case("80", status(AGENT, backlog_bytes=1 << 40), "BacklogTooLong", query=FAILBACK,
         good_rows=item(bandwidth=LIMITED), rows=item(bandwidth=LIMITED)),
    Case("31", code="806", bad_query="processServer=nobody"),
    Case("28", {"silent process server": True}, "806"),
    Case("35", {"silent master target": True}, "78022"),
    Case("36", status(TARGET, replicas=REPLICAS), "MasterTargetShared", verdict="warning",
         rows=component("configuration-server", "hw-mt")),
    Case("38", told(TARGET, os_family="Windows"), "OsFamilyMismatch"),
    Case("39", good_rows=member(os_family="linux"), rows=member(os_family="Windows"), code="GroupNeedsOneOperatingSystem"),
    Case("40", good_rows=member(master_target_id=TARGET, replicating=True),
         rows=member(master_target_id="process-server-1", replicating=True), code="GroupNeedsOneMasterTarget"),
    Case("41", status(TARGET, disk_ids=["serial:serial-1"]), "DiskIdentityClash", good=status(TARGET, disk_ids=["serial:x"])),
    Case("42", verdict="warning", code="DiskIdentityShared", rows=component("mobility", "hw-9", status={
        "disks": [{"device": "/dev/vda", "device_match": "serial:serial-0", "size_bytes": 1, "is_system": True}]})),
    Case("43", fabric(HOME, others=[["home-vm", "hw-8"]]), "78052"),
    Case("51", status(TARGET, replicas=REPLICAS), "TooManyDisks"),
    Case("44", vsphere("master_target", disk_enable_uuid=False), "DiskUuidNotEnabled", described=True),
    Case("45", vsphere("master_target", storage_vmotion_excluded=False), "StorageVmotionNotExcluded", described=True),
    Case("47", vsphere("master_target", tools=""), "VMwareToolsMissing", good=vsphere("master_target", tools="open-vm-tools"),
         described=True),
    Case("48", vsphere("datastore", kind="NFS"), "NoUsableDatastore", described=True),
    Case("49", vsphere("master_target", snapshots=1), "MasterTargetHasSnapshots", described=True),
    Case("50", vsphere("master_target", scsi_controllers=["pvscsi"]), "ScsiControllerNotSupported", described=True),
    Case("52", vsphere("machine", snapshots=2, snapshots_consolidate=False), "SnapshotsNotMergeable",
         good=vsphere("machine", snapshots=2), described=True),
    Case("L5", status(TARGET, root_on_lvm=True), "MasterTargetOnLvm", good=status(TARGET, root_on_lvm=False), described=True),
    Case("L10", vsphere("machine", disk_enable_uuid=False), "MachineDiskUuidNotEnabled", described=True),
    Case("53", retention(problem="it is not there"), "RetentionVolumeUnsuitable"),
    Case("54", retention(holds=["the datastore store"]), "RetentionVolumeInUse"),
    Case("55", retention(locked=True), "RetentionVolumeLocked"),
    Case("56", retention(holds=["the installation (its state)"]), "RetentionVolumeHoldsProduct"),
    Case("57", retention(filesystem="vfat"), "RetentionVolumeFat"),
    Case("58", retention(capacity_bytes=0), "RetentionVolumeEmpty"),
    Case("60", retention(shares_with=["the installation (its state)"]), "RetentionVolumeNotItsOwn", verdict="warning"),
    Case("X5b", retention(free_bytes=1 << 20), "RetentionVolumeFull"),
    Case("X3", fabric(HOME, size_bytes=1 << 21), "DiskSizeMismatch"),
    Case("62", store(filesystem="nfs4", path="/store"), "DatastoreKind"),
    Case("63", fabric(HOME, path="/elsewhere/0.img"), "8061"),
    Case("64", fabric(HOME, gone=True), "OnPremisesMachineMissing"),
    Case("65", store(read_only=True), "8061"),
    Case("66", fabric(HOME, missing=True), "8061", query="retentionVolume=retention", good={}),
    Case("84", {**store(problem="it is not there"), **fabric(HOME, missing=True)}, "NoDatastore"),
    Case("L7", {**GONE}, "8061", good=GONE, bad_query="datastore=elsewhere", described=True),
    Case("L9", {**GONE}, "DatastoreKind", good=GONE, bad_query="datastore=elsewhere", described=True),
    Case("X6", {**store(free_bytes=1), **fabric(HOME, missing=True)}, "DatastoreFull", good=fabric(HOME, missing=True)),
    Case("20", {"azure": {"path_home": ""}}, "NoPrivatePath", described=True),
    Case("X5", {"silent cloud-vm": True}, "", verdict="not-applicable"),
    Case("25", {"blocked": ["127.0.0.1:9443"]}, "78186"),
    Case("26", {"silent process server": True}, "", verdict="not-applicable"),
    Case("30", {"blocked": ["127.0.0.1:9444"]}, "Unreachable", good=status(TARGET, listen_port=9444),),
    Case("29", CHURNING, "BandwidthLow", verdict="warning", good=status(AGENT, capture="capturing", epoch=1, bytes_changed=1),
         good_rows=both(item(bandwidth=LIMITED), job("IrCompletion", "Succeeded")),
         rows=both(item(bandwidth=LIMITED), job("IrCompletion", "Succeeded"))),
    Case("32", {"milliseconds": 80.0}, "LatencyHigh", verdict="warning"),
    Case("33", fabric(HOME, others=[["ps", "hw-ps"]]), "ProcessServerPlacement", verdict="warning", described=True,
         good={**fabric(HOME, others=[["ps", "hw-ps"]]), "azure": {"path_home": "expressroute-private"}}),
    Case("X10", machine(kernels=[{"version": "6.1.0", "drivers": ["ata_piix"]}]), "DiskDriverMissing", verdict="warning",
         good=machine(kernels=[KERNEL]), described=True),
    Case("X11", machine(unstable_names=["/etc/fstab: /dev/sda1"]), "UnstableDiskNames", good=machine(), query=FAILBACK,
         verdict="warning"),
    Case("X12", machine(firmware="uefi"), "EfiFallbackMissing", verdict="warning",
         good=machine(firmware="uefi", efi_fallback=True)),
    Case("81", machine(), "NetworkServiceMissing", verdict="warning", good=machine(network_renderer="networkmanager")),
    Case("82", machine(dhcp_interfaces=["eth0"]), "AddressByDhcp", verdict="warning", good=machine()),
    Case("83", told(AGENT, os_family="linux"), "", verdict="not-applicable", good_rows=item(os_family="windows")),
    Case("X13", machine(bound_to_hardware=["70-persistent-net.rules"]), "NetworkBoundToCard", verdict="warning",
         good=machine()),
]  # fmt: skip
PROBED = {"25", "26", "30", "32"}
"""Rows for which the connections are tried; the others are looked at without, which is quicker."""
OLD_INVENTORY = "61"
"""Its warning takes a master target that is silent for 15 minutes; the pure rule is tried in tests/unit."""


def test_every_check_has_a_case() -> None:
    assert {row.number for row in ROWS if row.check is not None} - {OLD_INVENTORY} == {case.row for case in CASES}


class Asked:
    def __init__(self, site: SiteProcess, described: bool) -> None:
        self.site = site
        self.base = {"described": described}
        self.database = Database.in_directory(site.directory / "state")
        with self.database.write() as session:
            row = session.scalars(select(ItemRow).where(ItemRow.name == "ledger")).one()
            self.sound = {
                name: getattr(row, name)
                for name in ("protection_state", "abandoned_reason", "current_job_id", "on_premises_fabric_id", "group_id",
                             "bandwidth", "os_family")
            }  # fmt: skip

    def arrange(self, knobs: dict[str, Any], rows: Rows | None = None, power: tuple[str, str] = ("On", "Off")) -> None:
        """The site as it is when nothing is wrong, but for this."""
        with self.database.write() as session:
            row = session.scalars(select(ItemRow).where(ItemRow.name == "ledger")).one()
            for name, value in self.sound.items():
                setattr(row, name, value)
            for kind, key in ((ItemRow, ItemRow.item_id), (JobRow, JobRow.job_id), (GroupRow, GroupRow.group_id),
                              (PointRow, PointRow.point_id), (ComponentRow, ComponentRow.component_id)):  # fmt: skip
                session.execute(delete(kind).where(key.like("case-%")))
            hidden = session.get(PolicyRow, "hidden")
            if hidden is not None:
                hidden.name = FAILBACK_POLICY_NAME
            session.flush()
            if rows is not None:
                rows(session, row)
        wanted = {**self.base, **knobs}
        with self.site.sites.change() as state:
            state["knobs"] = wanted
            state["power"] = {CLOUD: power[0], HOME: power[1]}

    def wait(self, row: str, verdict: str, query: str) -> dict[str, Any]:
        """Until the row's finding is that."""
        deadline = time.monotonic() + 40
        probe = "true" if row in PROBED else "false"
        while True:
            code, answer, _ = self.site.call("GET", f"{ITEM}/readiness?{query}&probe={probe}")
            assert code == 200, answer
            found = [check for check in answer["value"] if row in check["rows"]]
            wrong = [check for check in found if check["verdict"] == verdict]
            if wrong and (verdict != "pass" or all(check["verdict"] == "pass" for check in found)):
                return dict(wrong[0])
            assert time.monotonic() < deadline, found
            time.sleep(0.1)


@contextmanager
def served(directory: Path, described: bool) -> Iterator[Asked]:
    (directory / "network-cards" / "lo").mkdir(parents=True)
    (directory / "network-cards" / "eth0" / "device").mkdir(parents=True)
    running = SiteProcess(directory)
    with running.sites.change() as state:
        state["knobs"]["described"] = described
    with running as site:
        (directory / "state" / "last-backup").touch()
        site.import_ledger()
        yield Asked(site, described)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with served(tmp_path_factory.mktemp("plain"), False) as asked:
        yield asked


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with served(tmp_path_factory.mktemp("described"), True) as asked:
        yield asked


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.row))
def test_a_row_passes_and_is_found(case: Case, request: pytest.FixtureRequest) -> None:
    asked: Asked = request.getfixturevalue("described" if case.described else "plain")
    marker = asked.site.directory / "state" / "last-backup"
    marker.touch()
    asked.arrange(case.good, case.good_rows)
    asked.wait(case.row, "pass", case.query)
    asked.arrange(case.bad, case.rows, case.power)
    if case.row == "18":
        os.utime(marker, (1, 1))
    found = asked.wait(case.row, case.verdict, case.bad_query or case.query)
    assert found["code"] == case.code
    assert bool(found["remedy"]) == bool(case.code)


def test_a_sound_site_is_ready_and_says_what_it_will_take(plain: Asked) -> None:
    plain.arrange({}, item(bandwidth=LIMITED))
    plain.wait("22", "pass", CHOSEN)
    _, answer, _ = plain.site.call("GET", f"{ITEM}/readiness?{CHOSEN}&refresh=true")
    assert answer["ready"], [check for check in answer["value"] if check["verdict"] == "fail"]
    assert answer["estimate"]["bytes_at_most"] == 2 << 20
    assert answer["estimate"]["bytes_per_second"] == 1_000_000
    assert answer["estimate"]["seconds"] == pytest.approx((2 << 20) / 1e6)
    assert answer["estimate"]["downtime_seconds"] > 0
    assert plain.site.call("GET", f"{CONTAINER}/replicationProtectedItems/nobody/readiness")[0] == 404


def test_the_job_fails_with_the_findings_that_readiness_shows(plain: Asked) -> None:
    plain.arrange({**status(AGENT, self_test="failed"), "blocked": ["127.0.0.1:9443"]})
    plain.wait("X4", "fail", CHOSEN)
    _, shown, _ = plain.site.call("GET", f"{ITEM}/readiness?{CHOSEN}")
    wrong = [check for check in shown["value"] if check["verdict"] == "fail"]
    body = {"properties": {"failoverDirection": "RecoveryToPrimary", "providerSpecificDetails": {
        "instanceType": "InMage", "masterTargetId": "master-target-1", "processServerId": "process-server-1",
        "retentionDrive": "retention", "datastoreName": "store", "profileId": "any"}}}  # fmt: skip
    code, _, headers = plain.site.call("POST", f"{ITEM}/reProtect", body)
    assert code == 202
    job_id = headers["location"].split("?")[0].rsplit("/", 1)[1]
    path = f"{ITEM.split('/replicationFabrics')[0]}/replicationJobs/{job_id}"
    deadline = time.monotonic() + 60
    while (found := plain.site.call("GET", path)[1])["properties"]["state"] != "Failed":
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    told_by_job = str(found["properties"]["errors"])
    for check in wrong:
        assert check["sentence"] in told_by_job and check["code"] in told_by_job
