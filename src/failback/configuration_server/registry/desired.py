"""What a component should be doing, read from the items; a change makes a new, durable generation.

The rules themselves are pure and stand in :mod:`failback.protection.assignment`; here rows become their facts.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database import items, policies
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.model.components import Endpoint, Role, SourceDisk, SyncMode
from failback.model.ids import ComponentId, DiskId, GroupId, MachineId, PassId
from failback.protection import assignment as rules

PROCESS_SERVER_PORT = 9443
MASTER_TARGET_PORT = 9444
_PORTS = {Role.PROCESS_SERVER.value: PROCESS_SERVER_PORT, Role.MASTER_TARGET.value: MASTER_TARGET_PORT}


def endpoint(row: ComponentRow | None) -> Endpoint | None:
    """Where a data-plane server is reached: its first address and the port it says it listens on. None when unknown."""
    if row is None or row.revoked:
        return None
    host = row.addresses[0] if row.addresses else row.hostname
    port = int(row.status.get("listen_port") or 0) or _PORTS.get(row.role, 0)
    return Endpoint(host, port, ComponentId(row.component_id)) if host and port else None


def machine_of(session: Session, item: ItemRow) -> rules.ProtectedMachine:
    """The item as the rules want it."""
    return rules.ProtectedMachine(
        machine_id=MachineId(item.machine_id or ""),
        live_hardware_id=item.live_hardware_id(),
        replicating=item.replicating,
        epoch=item.epoch,
        epoch_floor=item.epoch_floor,
        group_id=GroupId(item.group_id),
        pass_id=PassId(item.pass_id),
        process_server_id=ComponentId(item.process_server_id or ""),
        master_target_id=ComponentId(item.master_target_id or ""),
        process_server=endpoint(_component(session, item.process_server_id)),
        master_target=endpoint(_component(session, item.master_target_id)),
        policy=policies.policy_of(session, item.policy_name),
        disks=tuple(
            SourceDisk(
                DiskId(disk.disk_id), disk.index, disk.device_match,
                disk.cloud_size_bytes or disk.size_bytes, SyncMode(disk.sync), disk.sync_from_bytes,
            )
            for disk in item.disks
            if not disk.removed
        ),
        bandwidth=items.bandwidth_of(item, policies.bandwidth_of(session, item.policy_name)),
        comparison_seconds=item.comparison_minutes * 60,
    )  # fmt: skip


def assignment_of(session: Session, row: ComponentRow) -> tuple[rules.Assignment | None, str]:
    """The component's assignment and its fingerprint; None for a role that gets none."""
    component_id = ComponentId(row.component_id)
    if row.role == Role.MOBILITY.value:
        item = session.scalars(select(ItemRow).where(ItemRow.machine_id == row.component_id)).first()
        machine = machine_of(session, item) if item is not None else None
        wanted = rules.mobility_assignment(MachineId(component_id), machine)
        return wanted, rules.fingerprint(wanted, machine.live_hardware_id if machine else row.hardware_id)
    if row.role == Role.PROCESS_SERVER.value:
        served = _machines(session, ItemRow.process_server_id == row.component_id)
        routes = rules.process_server_assignment(component_id, served)
        return routes, rules.fingerprint(routes)
    if row.role == Role.MASTER_TARGET.value:
        served = _machines(session, ItemRow.master_target_id == row.component_id)
        replicas = rules.master_target_assignment(component_id, served)
        return replicas, rules.fingerprint(replicas)
    return None, ""


def refresh(session: Session, row: ComponentRow) -> rules.Assignment | None:
    """The assignment now; ``row.assignment_generation`` grows when it is another than before (in this transaction)."""
    wanted, print_of_it = assignment_of(session, row)
    if wanted is not None and print_of_it != row.assignment_digest:
        row.assignment_generation += 1
        row.assignment_digest = print_of_it
    return wanted


def _machines(session: Session, condition: object) -> list[rules.ProtectedMachine]:
    statement = select(ItemRow).where(condition, ItemRow.replicating, ItemRow.machine_id.is_not(None))  # type: ignore[arg-type]
    return [machine_of(session, item) for item in session.scalars(statement)]


def _component(session: Session, component_id: str | None) -> ComponentRow | None:
    return session.get(ComponentRow, component_id) if component_id else None
