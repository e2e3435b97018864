"""A protected machine's disks grew, joined or left: its replica follows (docs/decisions/0012).

Found by ``monitors.disk_changes``. The plan is fixed first and told in an event; then the master target enlarges, creates and
keeps disks; then one transaction changes the item and issues a new epoch, in which only what is new is sent: the part of a
grown disk behind its old size, a disk that joined as a whole. Where the stream was not in step anyway, all disks are
compared. The job ``IrCompletion`` follows. A job that is killed anywhere goes on with the same plan.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from failback.configuration_server.database import components, events
from failback.configuration_server.database.items import ItemDiskRow, ItemRow
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import FollowUp, Scenario, Task
from failback.configuration_server.workflows import pieces
from failback.configuration_server.workflows.finalize import IR_COMPLETION
from failback.configuration_server.workflows.inputs import DiskChangeInputs
from failback.configuration_server.workflows.world import Work, World, carry_out
from failback.errors import ConflictError, NotSupportedError
from failback.model import orders
from failback.model.components import DiskFacts, MasterTargetStatus, SyncMode
from failback.model.ids import DiskId, PassId, new_id
from failback.model.points import ReplicaDisk
from failback.model.stream import MAXIMUM_DISKS
from failback.protection import disk_rules, repair_rules
from failback.protection.disk_rules import DiskChanges, ProtectedDisk
from failback.protection.operations import Operation
from failback.protection.states import Event
from failback.runtime import records

UPDATE_DISKS = "UpdateReplicaDisks"
CHECK = "PlanDiskChanges"
ATTACH = "AttachChangedDisks"
DISKS_CHANGED = "FBK0012"


@dataclass(frozen=True, slots=True)
class JoinedDisk:
    disk_id: DiskId
    index: int
    device_match: str
    size_bytes: int
    path: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``in_step``: only what is new has to be sent. ``before``: sizes of the disks that grew."""

    in_step: bool
    grown: dict[DiskId, int] = field(default_factory=dict)
    before: dict[DiskId, int] = field(default_factory=dict)
    joined: tuple[JoinedDisk, ...] = ()
    gone: tuple[DiskId, ...] = ()


def scenario(world: World) -> Scenario:
    return Scenario(
        UPDATE_DISKS,
        "Update the replica's disks",
        (
            Task(CHECK, "Planning what follows from the machine's disks", partial(plan, world)),
            Task(ATTACH, "Changing the disks of the replica", partial(attach, world), cancellable=False),
            Task("StartReplicationOfDisks", "Beginning a new epoch", partial(begin, world), cancellable=False),
        ),
        follow_up=FollowUp(IR_COMPLETION, {}),
    )


def protected_disks(item: ItemRow) -> list[ProtectedDisk]:
    return [
        ProtectedDisk(DiskId(disk.disk_id), disk.device_match, disk.cloud_size_bytes or disk.size_bytes)
        for disk in item.disks
        if not disk.removed
    ]


def seen_changes(item: ItemRow, reported: tuple[DiskFacts, ...]) -> DiskChanges:
    return disk_rules.changes(protected_disks(item), reported, item.other_disks or [])


async def plan(world: World, context: StepContext) -> dict[str, Any]:
    """Of the changes that the monitor saw, those that are still to be seen."""
    asked = records.decode(context.inputs, DiskChangeInputs, "inputs of the disk change")
    item = await context.item()
    pieces.require_operation(item, Operation.REPAIR)
    _, status = await pieces.agent(context, item)
    found = seen_changes(item, status.disks if status else ()).only(asked.names)
    if not found:
        raise ConflictError(f"the disks of {item.name} are again as they were", code="DisksUnchanged")
    folder = await _folder(context, item)
    parts = await pieces.parts(context, item)
    because = repair_rules.resend_is_enough(pieces.state_of(item), item.epoch, PassId(item.pass_id), parts)
    first = max(disk.index for disk in item.disks) + 1
    if first + len(found.joined) > MAXIMUM_DISKS:
        raise NotSupportedError(f"{item.name} would have more than {MAXIMUM_DISKS} disks", code="TooManyDisks")

    def fix(session: Session) -> dict[str, Any]:
        labels = {DiskId(disk.disk_id): f"disk {disk.index}" for disk in item.disks}
        name = item.friendly_name or item.name
        events.record(
            session, world.clock.wall_ns(), DISKS_CHANGED, disk_rules.sentence(name, found, labels), severity="Warning",
            item_id=item.item_id, job_id=context.job_id, subject=name,
        )  # fmt: skip
        sizes = {disk.disk_id: disk.size_bytes for disk in protected_disks(item)}
        joined = tuple(
            JoinedDisk(DiskId(new_id()), index, facts.device_match, facts.size_bytes,
                       posixpath.join(folder, f"{item.name}-{index}.img"))
            for index, facts in enumerate(found.joined, first)
        )  # fmt: skip
        before = {disk_id: sizes[disk_id] for disk_id in found.grown}
        encoded: dict[str, Any] = records.encode(Plan(not because, found.grown, before, joined, found.gone))
        return encoded

    planned: dict[str, Any] = await context.remember_with("plan", fix)
    return planned


async def _folder(context: StepContext, item: ItemRow) -> str:
    """Where a disk that joined is made: the item's datastore, else beside its first disk."""
    row = await context.look(lambda session: components.get(session, pieces.master_target_of(item)))
    status = records.decode(row.status, MasterTargetStatus, "status of the master target")
    named = next((store.path for store in status.datastores if store.name == item.datastore), "")
    return named or posixpath.dirname(item.disks[0].path)


async def _planned(context: StepContext) -> Plan:
    return records.decode(await context.result_of(CHECK), Plan, "plan of the disk change")


async def attach(world: World, context: StepContext) -> dict[str, Any]:
    """The master target's files and its journal; the item itself still says what was."""
    item, planned = await context.item(), await _planned(context)
    disks = [
        ReplicaDisk(
            DiskId(disk.disk_id), disk.index, disk.path, disk.format,
            planned.grown.get(DiskId(disk.disk_id), disk.size_bytes), disk.create,
            removed=disk.removed or disk.disk_id in planned.gone,
        )
        for disk in item.disks
    ]  # fmt: skip
    known = {disk.disk_id for disk in disks}
    disks += [
        ReplicaDisk(each.disk_id, each.index, each.path, "raw", each.size_bytes, create=True)
        for each in planned.joined
        if each.disk_id not in known
    ]
    arguments = orders.AttachReplica(pieces.machine_of(item), item.retention_volume, tuple(disks))
    sentence = "waiting for the master target to change the replica's disks"
    work = Work(pieces.master_target_of(item), orders.ATTACH_REPLICA, arguments, world.timing.order_seconds, sentence)
    attached = await carry_out(world, context, work, orders.AttachedReplica)
    return {"created": list(attached.created)}


async def begin(world: World, context: StepContext) -> dict[str, Any]:
    planned = await _planned(context)
    created = set((await context.result_of(ATTACH))["created"])

    def adjust(row: ItemRow) -> None:
        known = {disk.disk_id for disk in row.disks}
        for each in planned.joined:
            if each.disk_id not in known:
                row.disks.append(_row(row, each))
        for disk in row.disks:
            _change(disk, planned, created)
        row.protection_stage = "disks changed"

    return await pieces.begin_epoch(world, context, [], Event.REPAIR_STARTED, adjust)


def _row(item: ItemRow, each: JoinedDisk) -> ItemDiskRow:
    return ItemDiskRow(
        disk_id=each.disk_id, item_id=item.item_id, index=each.index, device_match=each.device_match, path=each.path,
        format="raw", size_bytes=each.size_bytes, cloud_size_bytes=each.size_bytes, create=True, sync_from_bytes=0,
        removed=False,
    )  # fmt: skip


def _change(disk: ItemDiskRow, planned: Plan, created: set[str]) -> None:
    disk_id = DiskId(disk.disk_id)
    disk.sync_from_bytes = 0
    if disk_id in planned.gone:
        disk.removed = True
    if disk_id in planned.grown:
        disk.size_bytes = disk.cloud_size_bytes = planned.grown[disk_id]
    mode = SyncMode.NONE if planned.in_step or disk.removed else SyncMode.COMPARE
    if any(each.disk_id == disk_id for each in planned.joined):
        mode = SyncMode.FULL if disk_id in created else SyncMode.COMPARE
    elif disk_id in planned.grown and planned.in_step:
        mode, disk.sync_from_bytes = SyncMode.FULL, planned.before[disk_id]
    disk.sync = mode.value
