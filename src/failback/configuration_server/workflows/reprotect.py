"""Reprotect: the on-premises disks become a replica of the machine that runs in the cloud.

Prerequisites, the agent heard from, the disks found (or to be created), then: the master target takes the disks, a new epoch
with a pass over all disks begins, and the agent captures. Until the machine captures nothing irreversible happened to the
disks: their content as found is the point *before reprotect* (D14). A job of its own (``IrCompletion``) waits for the end of
the pass. A cancelled reprotect puts the disks back to that point where the master target still offers it.
"""

from __future__ import annotations

import posixpath
from functools import partial
from typing import Any

from failback.configuration_server.database import components
from failback.configuration_server.database.items import ItemDiskRow, ItemRow
from failback.configuration_server.database.policies import FAILBACK_POLICY_NAME
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import JOB_TASK, FollowUp, Scenario, Skipped, Task
from failback.configuration_server.workflows import pieces
from failback.configuration_server.workflows.finalize import IR_COMPLETION
from failback.configuration_server.workflows.inputs import ReprotectInputs
from failback.configuration_server.workflows.preflight import pass_preflight
from failback.configuration_server.workflows.world import Work, World, carry_out, carry_out_plainly
from failback.errors import ConflictError, NotFoundError, PeerError, PreconditionError
from failback.fabric.interfaces import FabricMachine, PowerState
from failback.model import orders
from failback.model.components import MasterTargetStatus
from failback.model.ids import DiskId
from failback.model.points import PointChoice, PointKind, PointSelector, ReplicaDisk
from failback.protection import failback_rules as rules
from failback.protection.states import Event, State
from failback.runtime import logs, records

REPROTECT = "SwitchReplicationGroupProtection"

log = logs.get(__name__)


def scenario(world: World) -> Scenario:
    def step(work: Any) -> Any:
        return partial(work, world)

    return Scenario(
        REPROTECT,
        "Reprotect",
        (
            Task("SwitchReplicationGroupProtectionPreflightTask", "Prerequisite check", step(check_prerequisites)),
            Task("VmCommitFailover", "Committing failover", step(commit_failover), task_id="CommitFailoverTask"),
            Task(
                "DiscoverReplicaTask",
                "Discovering replica virtual machine",
                children=(
                    Task("DiscoverReplica", "Hearing from the mobility service", step(discover), task_type=JOB_TASK),
                ),
            ),
            Task("GetSwitchProtectionRequirementsTask", "Getting reprotection requirements", step(get_requirements)),
            Task(
                "ProtectReplicaTask",
                "Reprotecting virtual machine",
                children=(
                    Task("AttachReplicaDisks", "Attaching the disks to the master target", step(attach)),
                    Task("EnableDr", "Enabling replication", step(enable), task_type=JOB_TASK),
                ),
            ),
        ),
        follow_up=FollowUp(IR_COMPLETION, {}),
        undo=partial(undo, world),
    )


def _inputs(context: StepContext) -> ReprotectInputs:
    return records.decode(context.inputs, ReprotectInputs, "inputs of the reprotect")


async def check_prerequisites(world: World, context: StepContext) -> dict[str, Any]:
    """Every readiness check; the first that failed is the task's error, the others are named in its causes."""
    checks = await pass_preflight(world, context, _inputs(context))
    return {"checks": [f"{check.name}: {check.sentence}" for check in checks]}


async def commit_failover(_world: World, context: StepContext) -> None:
    if pieces.state_of(await context.item()) is State.COMMIT_PENDING:
        raise ConflictError("a failover waits for its commit or cancel", remedy="failback commit, or failback cancel")
    raise Skipped("the failover is committed already")


async def discover(world: World, context: StepContext) -> dict[str, Any]:
    """Wait for a sign of life of the agent on the cloud machine, which has to run (78093, 95226)."""
    item = await context.item()
    power = await world.power(item.cloud_fabric, item.cloud_fabric_id)
    if power is not PowerState.ON:
        raise PreconditionError(
            f"the cloud machine {item.cloud_name} is not running: its fabric says {power.value}",
            code="78093",
            possible_causes="it was stopped, is suspended, or was moved",
            remedy="start it, wait until its mobility service registers, then restart the job",
            retryable=True,
        )

    async def heard() -> dict[str, Any] | None:
        now = await context.item()
        row, status = await pieces.agent(context, now)
        if row is None or status is None:
            return None
        age = (world.clock.wall_ns() - row.last_heartbeat_wall_ns) / 1e9
        if age > world.timing.heard_seconds:
            return None
        return {"machine_id": row.component_id, "hostname": row.hostname, "version": row.version}

    return await context.wait_until(
        "waiting for a heartbeat of the mobility service", heard, seconds=world.timing.agent_seconds, late=_not_heard
    )


def _not_heard() -> PeerError:
    return PeerError(
        "the mobility service of the cloud machine was not heard from",
        code="95226",
        possible_causes="the machine cannot reach the configuration server (VPN, firewall, port 443), or the service is stopped",
        remedy="check the way from the machine to the configuration server, start failback-mobility, then restart the job",
    )


async def get_requirements(world: World, context: StepContext) -> dict[str, Any]:
    """Fix process server, master target, volume and the path of every disk in the item; find what is missing."""
    inputs, item = _inputs(context), await context.item()
    fabric = world.fabric(item.on_premises_fabric)
    machine = await world.call("reading the machine", lambda: fabric.machine(item.on_premises_fabric_id))
    if machine.power is not PowerState.OFF:
        raise PreconditionError(
            f"the on-premises machine {machine.name} is not off: its fabric says {machine.power.value}",
            code="OnPremisesMachineOn",
            remedy="power it off (its disks are about to be overwritten), then restart the job",
            retryable=True,
        )
    folder = await _datastore_folder(context, inputs)

    def fix(row: ItemRow) -> dict[str, Any]:
        row.process_server_id, row.master_target_id = inputs.process_server_id, inputs.master_target_id
        row.retention_volume, row.datastore = inputs.retention_volume, inputs.datastore
        row.policy_name = inputs.policy_name or FAILBACK_POLICY_NAME
        row.protection_stage = "attaching"
        row.other_disks = None
        row.comparison_minutes = inputs.comparison_minutes
        for disk in row.disks:
            disk.removed = False  # a new journal begins, without points from before
            _fix_disk(row, disk, machine, folder)
        return {"missing": [disk.disk_id for disk in row.disks if disk.create]}

    return await context.change_item(fix)


async def _datastore_folder(context: StepContext, inputs: ReprotectInputs) -> str:
    row = await context.look(lambda session: components.get(session, inputs.master_target_id))
    status = records.decode(row.status, MasterTargetStatus, "status of the master target")
    return next((store.path for store in status.datastores if store.name == inputs.datastore), "")


def _fix_disk(item: ItemRow, disk: ItemDiskRow, machine: FabricMachine, folder: str) -> None:
    """Where the disk lies; one that is missing gets a place and the cloud disk's size."""
    found = next((each for each in machine.disks if each.index == disk.index), None)
    disk.create = found is None or found.missing
    if found is not None and found.path:
        disk.path, disk.format = found.path, found.format or disk.format
    if disk.create:
        disk.size_bytes = disk.cloud_size_bytes or disk.size_bytes
        if not disk.path:
            if not folder:
                raise PreconditionError(
                    f"disk {disk.index} of {item.name} is missing on premises and no accessible datastore was named",
                    code="8061",
                    remedy="name a datastore that the master target reports (--datastore)",
                )
            disk.path, disk.format = posixpath.join(folder, f"{item.name}-{disk.index}.img"), "raw"
    elif found is not None and found.size_bytes:
        disk.size_bytes = found.size_bytes


async def attach(world: World, context: StepContext) -> dict[str, Any]:
    """The master target locks and renames the disks (D22), creates what is missing, opens or creates the journal."""
    item = await context.item()
    disks = tuple(
        ReplicaDisk(
            DiskId(disk.disk_id), disk.index, disk.path, disk.format, disk.size_bytes, disk.create, disk.removed
        )
        for disk in item.disks
    )
    arguments = orders.AttachReplica(pieces.machine_of(item), item.retention_volume, disks)
    sentence = "waiting for the master target to attach the disks"
    work = Work(pieces.master_target_of(item), orders.ATTACH_REPLICA, arguments, world.timing.order_seconds, sentence)
    attached = await carry_out(world, context, work, orders.AttachedReplica)
    return {"incarnation": attached.incarnation, "created": list(attached.created)}


async def enable(world: World, context: StepContext) -> dict[str, Any]:
    """Issue the epoch and the pass, and wait until the agent captures under it and its self-test passed."""
    created = (await context.result_of("AttachReplicaDisks"))["created"]
    begun = await pieces.begin_epoch(world, context, created, Event.REPROTECT_STARTED)

    working = world.clock.monotonic()

    async def capturing() -> bool | None:
        nonlocal working
        _, status = await pieces.agent(context, await context.item())
        missing = rules.capture_missing(status, begun["epoch"])
        await context.say(f"waiting: {missing}" if missing else "the machine is captured")
        if status is None or status.capture != "failed":
            working = world.clock.monotonic()
        elif world.clock.monotonic() - working > world.timing.heard_seconds:  # it tries again by itself for so long
            raise PreconditionError(
                f"the mobility service cannot capture: {status.capture_reason or 'no reason given'}",
                code="CaptureFailed",
                possible_causes="the kernel has no BTF, a disk was replaced, or the capture program was refused",
                remedy="read the mobility service's log on the machine, then restart the job",
                retryable=True,
            )
        return None if missing else True

    await context.wait_until("", capturing, seconds=world.timing.agent_seconds, late=_not_capturing)
    return begun


def _not_capturing() -> PeerError:
    return PeerError(
        "the mobility service did not begin to capture in time",
        code="78169",
        possible_causes="it lost the configuration server, or it cannot connect to the process server (port 9443)",
        remedy="read the mobility service's log on the machine, then restart the job",
    )


async def undo(world: World, context: StepContext, reason: str) -> None:
    """After a cancel: stop the stream, put the disks back as they were found, release them. A failure stays for restart."""
    if reason != "Cancelled":
        return
    item = await context.item()
    await pieces.stop_stream(world, context)
    if await context.began("AttachReplicaDisks"):
        await _put_back(world, context, item)

    def abandon(row: ItemRow) -> None:
        if pieces.state_of(row) is State.REPLICATING:
            pieces.advance_item(row, Event.REPROTECT_ABANDONED)
        row.protection_stage = ""

    await context.change_item(abandon)


async def _put_back(world: World, context: StepContext, item: ItemRow) -> None:
    """The disks as they were found, where the master target still offers that point, and out of its hands."""
    held = await pieces.replica(context, item)
    found = (point for point in held.points if point.kind is PointKind.BEFORE_REPROTECT) if held is not None else ()
    before = next(iter(found), None)
    seconds = world.timing.prepare_seconds
    try:
        if before is not None:
            choice = PointChoice(PointSelector.POINT, before.point_id)
            arguments = orders.PreparePoint(pieces.machine_of(item), choice)
            sentence = "putting the on-premises disks back as they were found"
            work = Work(pieces.master_target_of(item), orders.PREPARE_POINT, arguments, seconds, sentence)
            await carry_out_plainly(world, context, work)
        sentence = "waiting for the master target to let the disks go"
        await carry_out_plainly(world, context, pieces.replica_work(item, orders.DETACH_REPLICA, seconds, sentence))
    except NotFoundError as error:
        log.info("there is no replica to detach", item=item.name, reason=error.message)
