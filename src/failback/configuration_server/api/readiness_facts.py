"""The snapshot that readiness looks at, gathered anew for every question: database, heartbeats, fabrics, probes.

The database is read in one transaction; fabrics are asked in threads and components by PROBE orders, all at once, each with a
deadline: what does not answer in time is a fact too.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import last_segment
from failback.configuration_server.api.fabric_calls import ask
from failback.configuration_server.api.item_view import ItemView, view
from failback.configuration_server.api.readiness_history import Neighbours, neighbours, transfer_facts
from failback.configuration_server.api.readiness_probes import Ends, alive, probed, refresh
from failback.configuration_server.api.services import Surroundings
from failback.configuration_server.database import groups, items
from failback.configuration_server.database.components import ComponentRow, all_components, find
from failback.configuration_server.database.policies import FAILBACK_POLICY_NAME, PolicyRow
from failback.configuration_server.workflows.group_point import member_facts
from failback.errors import FailbackError, NotFoundError
from failback.fabric.interfaces import DescribesAzure, DescribesVSphere, FabricMachine
from failback.model.components import MasterTargetStatus, Role, VolumeFacts
from failback.protection.group_rules import MemberFacts
from failback.protection.operations import Operation
from failback.protection.readiness import (
    AzureFacts,
    ComponentFacts,
    DiskFacts,
    ReadinessFacts,
    TransferFacts,
    VSphereFacts,
)
from failback.protection.readiness.retention import problem_of
from failback.runtime import records

MIGRATION_COMPLETED = "MigrationComplete"
"""The reason of a disabled protection that ends the way home (``disableProtectionReason`` on the wire)."""


@dataclass(frozen=True, slots=True)
class ReadinessChoice:
    """What would be done and with which servers; an empty server means the item's, or the only one registered."""

    process_server: str = ""
    master_target: str = ""
    retention_volume: str = ""
    datastore: str = ""
    operation: Operation = Operation.REPROTECT
    source_lost: bool = False
    refresh: bool = False
    comparison_minutes: int = 0
    """Above 0: a reprotect by periodic comparison. A failback is judged by what the item has."""
    probe: bool = True
    """Have the components try the connections; without, they are not applicable."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database says, read in one transaction."""

    item: ItemView
    process_server: ComponentRow | None
    master_target: ComponentRow | None
    target_status: MasterTargetStatus
    group_members: tuple[MemberFacts, ...]
    """The other members of its replication group."""
    neighbours: Neighbours
    transfer: TransferFacts
    policy_name: str
    """That a reprotect chooses by itself; empty when it is not there."""


@dataclass(frozen=True, slots=True)
class _Side:
    """A machine as its fabric sees it now; ``problem`` is why the fabric does not answer."""

    machine: FabricMachine | None
    problem: str
    machines: tuple[FabricMachine, ...] = ()
    vsphere: VSphereFacts | None = None
    azure: AzureFacts | None = None


async def gather(services: Surroundings, item: str, choice: ReadinessChoice, *, own_job_id: str = "") -> ReadinessFacts:
    """The facts of the item by name or id. ``own_job_id`` is the job that asks: it is not "another job"."""
    known = await services.database.look(lambda session: _known(services, session, item, choice))
    if choice.refresh:
        asked = (known.item.agent, known.process_server, known.master_target)
        await refresh(services, tuple(row.component_id for row in asked if row is not None and alive(services, row)))
        known = await services.database.look(lambda session: _known(services, session, item, choice))
    row = known.item.row
    ends = Ends(known.item.agent, known.process_server, known.master_target)
    target_hardware = known.master_target.hardware_id if known.master_target else ""
    cloud, home, probes = await asyncio.gather(
        _look_at(services, row.cloud_fabric, row.cloud_fabric_id),
        _look_at(services, row.on_premises_fabric, row.on_premises_fabric_id, target_hardware),
        probed(services, ends, probe=choice.probe),
    )
    other_job = known.item.job is not None and known.item.job.job_id != own_job_id
    agent, status, target = known.item.agent, known.item.mobility, known.target_status
    site = services.fabrics.get(row.on_premises_fabric)
    return ReadinessFacts(
        item_name=row.name,
        state=known.item.state,
        direction=known.item.direction,
        operation=choice.operation,
        source_lost=choice.source_lost,
        migration_completed=row.abandoned_reason == MIGRATION_COMPLETED,
        running_job=known.item.running_job if other_job else "",
        source_kind=home.machine.kind if home.machine else "virtual",
        has_on_premises_origin=bool(row.on_premises_fabric_id),
        cloud_machine=row.cloud_name or row.cloud_fabric_id,
        cloud_fabric=row.cloud_fabric,
        cloud_fabric_problem=cloud.problem,
        cloud_power=cloud.machine.power.value if cloud.machine else "",
        on_premises_machine=row.on_premises_name or row.on_premises_fabric_id,
        on_premises_fabric=row.on_premises_fabric,
        on_premises_driver=site.driver if site else "",
        on_premises_fabric_problem=home.problem,
        on_premises_power=home.machine.power.value if home.machine else "",
        on_premises_firmware=home.machine.firmware if home.machine else "",
        same_named_machines=tuple(
            each.fabric_id
            for each in home.machines
            if each.name == row.on_premises_name and each.fabric_id != row.on_premises_fabric_id
        ),
        disks=_disks(known.item, cloud.machine, home.machine),
        other_machines_disks=known.neighbours.disks,
        source_os_family=row.os_family,
        source_firmware=status.firmware,
        source_service=status.machine.service_start if status.machine else "",
        source_machine=status.machine,
        agent=_component(services, agent, (cloud, home)),
        agent_heard_elsewhere=_heard_elsewhere(agent),
        agent_self_test=status.self_test,
        agent_problem=status.capture_reason,
        comparison_minutes=row.comparison_minutes
        if choice.operation is Operation.FAILOVER
        else choice.comparison_minutes,
        recovery_points=sum(not point.abandoned for point in known.item.points),
        process_server=_component(services, known.process_server, (cloud, home)),
        process_server_asked=choice.process_server,
        master_target=_component(services, known.master_target, (cloud, home)),
        master_target_asked=choice.master_target,
        master_target_disks=known.neighbours.target_disks,
        master_target_machines=known.neighbours.target_machines,
        master_target_shares_host_with=known.neighbours.shares_host_with,
        master_target_disk_ids=target.disk_ids,
        master_target_on_lvm=target.root_on_lvm,
        retention_volume_asked=choice.retention_volume or row.retention_volume,
        retention_volume=volume_named(target.retention_volumes, choice.retention_volume or row.retention_volume),
        retention_volumes=target.retention_volumes,
        datastore_asked=choice.datastore,
        datastore=volume_named(target.datastores, choice.datastore) if choice.datastore else None,
        datastores=target.datastores,
        inventory_age_seconds=_age(services, known.master_target),
        group=known.item.group.name if known.item.group else "",
        group_members=known.group_members,
        probes=probes,
        policy_name=known.policy_name,
        configuration_server_version=services.version,
        configuration_server_nics=network_cards(services.network_cards),
        seconds_since_backup=_since_backup(services),
        backups_known=services.backup_marker is not None,
        vsphere=home.vsphere,
        azure=cloud.azure,
        transfer=known.transfer,
        heartbeat_alarm_seconds=services.heartbeat_alarm_seconds,
    )


def _known(services: Surroundings, session: Session, item: str, choice: ReadinessChoice) -> _Known:
    row = items.named(session, last_segment(item))
    process_server = _server(session, Role.PROCESS_SERVER, choice.process_server or row.process_server_id or "")
    master_target = _server(session, Role.MASTER_TARGET, choice.master_target or row.master_target_id or "")
    status = records.decode(master_target.status or {}, MasterTargetStatus) if master_target else MasterTargetStatus()
    members = groups.members_of(session, row.group_id) if row.group_id else []
    others = tuple(member_facts(session, each) for each in members if each.item_id != row.item_id)
    seen = view(session, row)
    return _Known(
        seen,
        process_server,
        master_target,
        status,
        others,
        neighbours(session, row, master_target, status),
        transfer_facts(session, seen, services.clock.wall_ns()),
        FAILBACK_POLICY_NAME if session.get(PolicyRow, FAILBACK_POLICY_NAME) is not None else "",
    )


def _server(session: Session, role: Role, asked: str) -> ComponentRow | None:
    """The server asked for; without a name the only one of its role; None when there is none (a check says so)."""
    if asked:
        try:
            return find(session, role, last_segment(asked))
        except NotFoundError:
            return None
    rows = [row for row in all_components(session, role) if not row.revoked]
    return rows[0] if len(rows) == 1 else None


def _age(services: Surroundings, row: ComponentRow | None) -> float | None:
    if row is None or not row.last_heartbeat_wall_ns:
        return None
    return max(0.0, (services.clock.wall_ns() - row.last_heartbeat_wall_ns) / 1e9)


def _component(services: Surroundings, row: ComponentRow | None, sides: tuple[_Side, _Side]) -> ComponentFacts | None:
    if row is None:
        return None
    heard = row.last_heartbeat_wall_ns
    shown = [any(machine.hardware_id == row.hardware_id for machine in side.machines) for side in sides]
    return ComponentFacts(
        component_id=row.component_id,
        hostname=row.hostname,
        role=Role(row.role),
        version=row.version,
        os_family=row.os_family,
        os_version=row.os_version,
        kernel=row.kernel,
        seconds_since_heartbeat=_age(services, row),
        clock_skew_seconds=row.clock_skew_seconds if heard else None,
        side="cloud" if shown[0] else "onprem" if shown[1] else "",
    )


def _heard_elsewhere(agent: ComponentRow | None) -> str:
    """The twin's hardware when it was heard later than the live side (D2)."""
    if agent is None or agent.twin_last_seen_wall_ns <= agent.last_heartbeat_wall_ns:
        return ""
    return agent.twin_hardware_id


def volume_named(volumes: tuple[VolumeFacts, ...], asked: str) -> VolumeFacts | None:
    """By name or path; without a name the only one that may be used."""
    if asked:
        return next((volume for volume in volumes if asked in (volume.name, volume.path)), None)
    usable = [volume for volume in volumes if not problem_of(volume)[0]]
    return usable[0] if len(usable) == 1 else None


async def _look_at(services: Surroundings, name: str, fabric_id: str, target_hardware_id: str = "") -> _Side:
    site = services.fabrics.get(name)
    if site is None:
        return _Side(None, "it is not in the configuration server's configuration any more")
    fabric = site.fabric

    def look() -> _Side:
        """In a thread: one visit for all that the fabric can tell."""
        try:
            machine = fabric.machine(fabric_id)
        except NotFoundError:
            machine = None
        return _Side(
            machine,
            "",
            fabric.machines(),
            fabric.vsphere(fabric_id, target_hardware_id) if isinstance(fabric, DescribesVSphere) else None,
            fabric.azure(fabric_id) if isinstance(fabric, DescribesAzure) else None,
        )

    try:
        return await ask(services, look, name)
    except FailbackError as error:
        return _Side(None, error.message)


def _disks(item: ItemView, cloud: FabricMachine | None, home: FabricMachine | None) -> tuple[DiskFacts, ...]:
    """Sizes as the fabrics say now, else as they were when the item was imported."""
    reported = {disk.device_match: disk.size_bytes for disk in item.mobility.disks}
    found = []
    for disk in item.row.disks:
        there = next((each for each in cloud.disks if each.target == disk.cloud_target), None) if cloud else None
        here = next((each for each in home.disks if each.target == disk.on_premises_target), None) if home else None
        seen = disk.device_match in reported if item.agent and item.mobility.disks else None
        source = reported.get(disk.device_match) or (there.size_bytes if there else 0) or disk.cloud_size_bytes
        found.append(
            DiskFacts(
                name=f"disk {disk.index} ({disk.serial or disk.cloud_target})",
                source_size_bytes=source or disk.size_bytes,
                target_size_bytes=here.size_bytes if here else disk.size_bytes,
                target_missing=here.missing if here else disk.create,
                seen_by_agent=seen,
                match=disk.device_match if disk.device_match.startswith(("serial:", "wwid:")) else "",
                path=here.path if here else "",
                backing=here.backing if here else False,
            )
        )
    return tuple(found)


def network_cards(root: Path) -> int | None:
    """Cards of this server (devices of a bus; without any, interfaces other than the loopback); None: unknown."""
    try:
        names = [each for each in root.iterdir() if each.name != "lo"]
    except OSError:
        return None
    cards = [each for each in names if (each / "device").exists()]
    return len(cards) or len(names)


def _since_backup(services: Surroundings) -> float | None:
    """The age of the marker that a backup leaves; wall time, as files have it."""
    try:
        return max(0.0, time.time() - services.backup_marker.stat().st_mtime) if services.backup_marker else None
    except OSError:
        return None
