"""Importing a machine that failed over: finding both its sides, pairing its disks, refusing what cannot come home.

Pure rules (``pair_disks``, ``refusal``) on what the fabrics say, then one transaction that finds or creates the item. A
machine without an on-premises origin is refused: there is nothing to bring it back to (asr.md row 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from failback.configuration_server.api.services import SiteFabric
from failback.configuration_server.database.components import ComponentRow, find
from failback.configuration_server.database.events import record
from failback.configuration_server.database.items import ItemDiskRow, ItemRow
from failback.configuration_server.database.policies import FAILBACK_POLICY_NAME
from failback.errors import ConflictError, NotFoundError, NotSupportedError
from failback.fabric.interfaces import FabricDisk, FabricMachine
from failback.model.components import Role
from failback.model.ids import new_id
from failback.protection.operations import Side
from failback.protection.states import INITIAL_DIRECTION_OF_IMPORT, INITIAL_STATE_OF_IMPORT, State, live_side

INSTANCE_TYPE = "FailbackImport"
MAXIMUM_NAME = 63


class Place(BaseModel):
    """A machine in a configured fabric, by name or by the fabric's id."""

    fabric: str = Field(min_length=1)
    machine: str = Field(min_length=1)


class ImportDetails(BaseModel):
    """``providerSpecificDetails`` of a PUT that imports."""

    model_config = ConfigDict(populate_by_name=True)

    instance_type: str = Field(alias="instanceType")
    on_premises: Place | None = Field(default=None, alias="onPremises")
    cloud: Place | None = None
    agent_component_id: str = Field(default="", alias="agentComponentId")
    friendly_name: str = Field(default="", alias="vmFriendlyName")


class ImportProperties(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    details: ImportDetails = Field(alias="providerSpecificDetails")


class ImportRequest(BaseModel):
    properties: ImportProperties


@dataclass(frozen=True, slots=True)
class DiskPair:
    on_premises: FabricDisk
    cloud: FabricDisk


@dataclass(frozen=True, slots=True)
class Origin:
    """Both sides of the machine as their fabrics know it."""

    on_premises_site: SiteFabric
    on_premises: FabricMachine
    cloud_site: SiteFabric
    cloud: FabricMachine


def no_origin(reason: str) -> NotSupportedError:
    return NotSupportedError(
        f"this machine has no on-premises origin: {reason}",
        code="NoOnPremisesOrigin",
        possible_causes="it was born in the cloud, or its on-premises definition was removed",
        remedy="name its on-premises machine, or define that machine again (its disks may be missing)",
    )


def check_sides(on_premises: SiteFabric, cloud: SiteFabric) -> None:
    """Each fabric has to be of the side it is named for. Raises NotSupportedError."""
    if on_premises.side is not Side.ON_PREMISES:
        raise no_origin(f"the fabric {on_premises.name} is a cloud")
    if cloud.side is not Side.CLOUD:
        raise NotSupportedError(
            f"the fabric {cloud.name} is on premises, so the machine in it did not fail over to a cloud",
            code="NotFailedOver",
            remedy="name the cloud fabric that the machine runs in",
        )


def pair_disks(on_premises: Sequence[FabricDisk], cloud: Sequence[FabricDisk]) -> tuple[DiskPair, ...]:
    """Each cloud disk with its on-premises disk: by serial where both have one, then by index among what is left.

    Raises NotSupportedError for a cloud disk without a counterpart. On-premises disks without one stay out and untouched.
    """
    left = list(on_premises)
    pairs: list[DiskPair] = []
    without: list[FabricDisk] = []
    for disk in cloud:
        same = [other for other in left if disk.serial and other.serial.lower() == disk.serial.lower()]
        if len(same) == 1:
            pairs.append(DiskPair(same[0], disk))
            left.remove(same[0])
        else:
            without.append(disk)
    for disk in without:
        at_index = next((other for other in left if other.index == disk.index), None)
        if at_index is None or (at_index.serial and disk.serial and at_index.serial.lower() != disk.serial.lower()):
            label = f"{disk.target} (serial {disk.serial})" if disk.serial else disk.target
            raise NotSupportedError(
                f"the cloud disk {label} has no counterpart on premises",
                code="DiskWithoutOrigin",
                possible_causes="it was added in the cloud after the failover",
                remedy="define a disk with the same serial on the on-premises machine; its file may be missing",
            )
        pairs.append(DiskPair(at_index, disk))
        left.remove(at_index)
    if not pairs:
        raise NotSupportedError("the cloud machine has no disk to bring home", code="NoDisks")
    return tuple(sorted(pairs, key=lambda pair: pair.on_premises.index))


def store_import(
    session: Session, name: str, details: ImportDetails, origin: Origin, wall_ns: int
) -> tuple[ItemRow, bool]:
    """Find or create the item; True when it was created. Raises ConflictError when the name or a machine is taken."""
    pairs = pair_disks(origin.on_premises.disks, origin.cloud.disks)
    highest = _remove_disabled(session, name, origin)
    existing = session.scalars(select(ItemRow).where(ItemRow.name == name)).first()
    if existing is not None:
        _same_machine(existing, origin)
        _attach_agent(session, existing, details.agent_component_id)
        return existing, False
    _not_taken(session, origin)
    row = ItemRow(
        item_id=new_id(),
        name=name,
        friendly_name=details.friendly_name or name,
        on_premises_fabric=origin.on_premises_site.name,
        on_premises_fabric_id=origin.on_premises.fabric_id,
        on_premises_name=origin.on_premises.name,
        on_premises_hardware_id=origin.on_premises.hardware_id.lower(),
        cloud_fabric=origin.cloud_site.name,
        cloud_fabric_id=origin.cloud.fabric_id,
        cloud_name=origin.cloud.name,
        cloud_hardware_id=origin.cloud.hardware_id.lower(),
        firmware=origin.on_premises.firmware,
        live_side=live_side(INITIAL_STATE_OF_IMPORT, INITIAL_DIRECTION_OF_IMPORT).value,
        direction="PrimaryToRecovery",
        protection_state=INITIAL_STATE_OF_IMPORT.value,
        policy_name=FAILBACK_POLICY_NAME,
        epoch_highest=highest,
        epoch_floor=highest,
        created_wall_ns=wall_ns,
        disks=[_disk(pair) for pair in pairs],
    )
    session.add(row)
    session.flush()
    _attach_agent(session, row, details.agent_component_id)
    sentence = f"{row.friendly_name} was imported: it runs in {row.cloud_fabric} and came from {row.on_premises_fabric}"
    record(session, wall_ns, "ItemImported", sentence, event_type="Protection", item_id=row.item_id, subject=row.name)
    return row, True


def _remove_disabled(session: Session, name: str, origin: Origin) -> int:
    """Make room where the protection was disabled before; returns the highest epoch that must not come again (D2)."""
    old = session.scalars(
        select(ItemRow).where(
            ItemRow.protection_state == State.DISABLED.value, (ItemRow.name == name) | _of_machine(origin)
        )
    ).all()
    for row in old:
        session.delete(row)
    session.flush()
    return max((max(row.epoch_highest, row.epoch_floor) for row in old), default=0)


def _of_machine(origin: Origin) -> ColumnElement[bool]:
    away = (ItemRow.cloud_fabric == origin.cloud_site.name) & (ItemRow.cloud_fabric_id == origin.cloud.fabric_id)
    home = (ItemRow.on_premises_fabric == origin.on_premises_site.name) & (
        ItemRow.on_premises_fabric_id == origin.on_premises.fabric_id
    )
    return away | home


def refresh_disks(row: ItemRow, origin: Origin) -> None:
    """Take over paths, sizes and what is missing, as the fabrics say now, before a reprotect."""
    pairs = pair_disks(origin.on_premises.disks, origin.cloud.disks)
    known = {disk.index: disk for disk in row.disks}
    for pair in pairs:
        disk = known.get(pair.on_premises.index)
        if disk is not None:
            disk.path, disk.format = pair.on_premises.path or disk.path, pair.on_premises.format or disk.format
            disk.create = pair.on_premises.missing
            disk.size_bytes = pair.on_premises.size_bytes or pair.cloud.size_bytes
            disk.cloud_size_bytes, disk.cloud_target = pair.cloud.size_bytes, pair.cloud.target
            disk.on_premises_target = pair.on_premises.target


def _disk(pair: DiskPair) -> ItemDiskRow:
    home, away = pair.on_premises, pair.cloud
    return ItemDiskRow(
        disk_id=new_id(),
        index=home.index,
        serial=away.serial or home.serial,
        is_system=home.index == 0,
        path=home.path,
        format=home.format or "raw",
        size_bytes=home.size_bytes or away.size_bytes,
        on_premises_target=home.target,
        cloud_target=away.target,
        cloud_size_bytes=away.size_bytes,
        create=home.missing,
    )


def _attach_agent(session: Session, row: ItemRow, agent_component_id: str) -> None:
    """Join the item to its agent: the named one, or the one that enrolled on the cloud machine's hardware."""
    if row.machine_id is not None and not agent_component_id:
        return
    if agent_component_id:
        agent: ComponentRow | None = find(session, Role.MOBILITY, agent_component_id)
    else:
        statement = select(ComponentRow).where(
            ComponentRow.role == Role.MOBILITY.value, ComponentRow.hardware_id == row.cloud_hardware_id
        )
        agent = session.scalars(statement).first()
    if agent is None:
        return
    other = session.scalars(select(ItemRow).where(ItemRow.machine_id == agent.component_id)).first()
    if other is not None and other.item_id != row.item_id:
        raise ConflictError(f"the agent {agent.hostname} belongs to the item {other.name}", code="AgentTaken")
    row.machine_id = agent.component_id
    row.os_family = agent.os_family


def _same_machine(row: ItemRow, origin: Origin) -> None:
    asked = (origin.on_premises_site.name, origin.on_premises.fabric_id, origin.cloud_site.name, origin.cloud.fabric_id)
    if asked != (row.on_premises_fabric, row.on_premises_fabric_id, row.cloud_fabric, row.cloud_fabric_id):
        raise ConflictError(
            f"the name {row.name!r} belongs to another machine",
            code="ItemNameTaken",
            remedy=f"choose another name; see failback item show {row.name}",
        )


def _not_taken(session: Session, origin: Origin) -> None:
    """One machine is one item."""
    other = session.scalars(select(ItemRow).where(_of_machine(origin))).first()
    if other is not None:
        raise ConflictError(
            f"the machine is protected already as {other.name!r}", code="MachineTaken", remedy=f"use {other.name}"
        )


def not_found_is_no_origin(error: NotFoundError, place: Place) -> NotSupportedError:
    return no_origin(f"{place.fabric} knows no machine {place.machine!r} ({error.message})")
