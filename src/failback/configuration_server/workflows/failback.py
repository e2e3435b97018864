"""Failback: the machine stops in the cloud and starts on premises, and nothing that it acknowledged is lost (D20, D21).

The one rule above all: nothing starts on premises unless the source was read back as off inside the freeze lease. So freeze,
last mark, the prepared point and the power-off are one task under the lease, whose start was stored before the
freeze was ordered; when the lease cannot be proven (it is over, or this server booted in between) the source is started
again, compared anew, and the job fails as one that may be repeated. After the confirmed power-off the epoch floor rises: the
cloud side can never write into this stream again (D2). The machine then runs on a disposable layer until commit or cancel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from failback.configuration_server.database import items
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import Scenario, Task
from failback.configuration_server.workflows import pieces
from failback.configuration_server.workflows.finalize import IR_COMPLETION
from failback.configuration_server.workflows.inputs import FailoverInputs
from failback.configuration_server.workflows.preflight import pass_preflight
from failback.configuration_server.workflows.world import ORDER_TIMED_OUT, Work, World, carry_out, carry_out_plainly
from failback.errors import ConflictError, FailbackError, FreezeError, PeerError, PreconditionError
from failback.fabric.interfaces import AddsDisks, PowerState
from failback.model import orders
from failback.model.components import MobilityStatus
from failback.model.ids import MarkId, PassId, new_id
from failback.protection import failback_rules as rules
from failback.protection.operations import Operation
from failback.protection.states import Event, State
from failback.runtime import logs, records

FAILOVER = "UnplannedFailover"
CHECK = "VmUfoPrerequisitesCheck"
SHUT_DOWN = "VmShutdownVmOnPrimary"
PREPARE = "VmPrepareForUnPlannedFailover"
FAIL_OVER = "VmFailover"
START = "VmFoStartVmOnSecondary"

T = TypeVar("T")

log = logs.get(__name__)


def scenario(world: World) -> Scenario:
    def step(work: Any) -> Any:
        return partial(work, world)

    return Scenario(
        FAILOVER,
        "Failover",
        (
            Task(
                CHECK, "Prerequisites check for failover", step(check), task_id="UnplannedFailoverPreflightChecksTask"
            ),
            Task(SHUT_DOWN, "Shut down the virtual machine", step(shut_down), restart_from=CHECK),
            Task(PREPARE, "Preparing for failover", step(prepare)),
            Task(FAIL_OVER, "Start failover", step(fail_over), task_id="FailoverTask"),
            Task(START, "Start the on-premises virtual machine", step(start_target)),
        ),
        undo=partial(undo, world),
    )


def _inputs(context: StepContext) -> FailoverInputs:
    return records.decode(context.inputs, FailoverInputs, "inputs of the failover")


async def check(world: World, context: StepContext) -> None:
    """The item is protected now, its parts are heard from, both fabrics answer, and the on-premises machine is off.

    A source that was lost in the middle of a pass leaves the points before the pass: they can be failed over to (D14).
    """
    item, inputs = await context.item(), _inputs(context)
    if inputs.shut_down_source or pieces.state_of(item) is not State.REPLICATING:
        pieces.require_operation(item, Operation.FAILOVER)
    power = await world.power(item.on_premises_fabric, item.on_premises_fabric_id)
    if power is not PowerState.OFF:
        raise PreconditionError(
            f"the on-premises machine is not off: its fabric says {power.value}",
            code="OnPremisesMachineOn",
            remedy="power it off, then restart the job",
            retryable=True,
        )
    source = await world.power(item.cloud_fabric, item.cloud_fabric_id)
    if inputs.shut_down_source and source is not PowerState.ON:
        raise PreconditionError(
            f"the cloud machine is not running (its fabric says {source.value}): it cannot be frozen for the last mark",
            code="78093",
            remedy="start it, or fail over without shutting it down (its last recovery point is used)",
            retryable=True,
        )
    held = await pieces.replica(context, item)
    if held is None or not any(not point.abandoned for point in held.points):
        raise PreconditionError(
            f"{item.name} has no recovery point", code="NoRecoveryPoint", remedy="wait for one", retryable=True
        )
    await pass_preflight(world, context, inputs)
    if inputs.shut_down_source:
        await _in_step(world, context)


async def _in_step(world: World, context: StepContext) -> None:
    """A short gap may be open just now; it closes by itself or names what keeps it open."""
    missing = ""

    async def closed() -> bool | None:
        nonlocal missing
        item = await context.item()
        _, status = await pieces.agent(context, item)
        held = await pieces.replica(context, item)
        missing = rules.protection_missing(status, held, item.epoch, PassId(item.pass_id))
        await context.say(f"waiting: {missing}" if missing else "the replica is in step")
        return None if missing else True

    await context.wait_until(
        "",
        closed,
        seconds=world.timing.heard_seconds,
        late=lambda: PreconditionError(
            f"the replica is not in step: {missing}",
            code="NotInStep",
            possible_causes="blocks are being re-read after an overflow, or a component is away",
            remedy="look at `failback item show`, then restart the job",
            retryable=True,
        ),
    )


async def shut_down(world: World, context: StepContext) -> dict[str, Any]:
    """Freeze under a lease, mark, prepare the point, power off, read back as off: all inside the lease, or nothing."""
    inputs, item = _inputs(context), await context.item()
    if not inputs.shut_down_source:
        power = await world.power(item.cloud_fabric, item.cloud_fabric_id)
        if power is not PowerState.OFF:
            raise PreconditionError(
                f"the cloud machine is not off: its fabric says {power.value}; two machines would write",
                code="SourceNotOff",
                remedy="fail over with shutting it down, or power it off",
            )
        return {"source": "was off"}
    lease = await _lease(world, context, inputs)
    await context.say("freezing the machine's file systems")
    marked = await _freeze(world, context, item, lease)
    prepared = await _prepare(world, context, item, inputs, lease)
    await _still_frozen(world, context, item, lease)
    await context.checkpoint()
    await _power_off_in_lease(world, context, item, lease)
    return {"source": "off", "marked": records.encode(marked), "prepared": records.encode(prepared)}


async def _lease(world: World, context: StepContext, inputs: FailoverInputs) -> rules.LeaseStart:
    """The lease's start on this server's clock, stored before anything is ordered."""
    seconds = inputs.lease_seconds or world.timing.lease_seconds
    start = await context.remember(
        "lease",
        lambda: records.encode(rules.LeaseStart(world.boot_id, world.clock.monotonic(), seconds)) | {"mark": new_id()},
    )
    return records.decode(start, rules.LeaseStart, "lease")


def _left(world: World, lease: rules.LeaseStart) -> float:
    """Usable seconds of the lease. Raises FreezeError when it is over."""
    left = rules.lease_remaining_seconds(lease, world.boot_id, world.clock.monotonic())
    if left <= 0:
        raise _lost("the freeze lease ended before the source was confirmed to be off")
    return left


def _lost(sentence: str) -> FreezeError:
    return FreezeError(
        f"{sentence}; the source goes on and is compared anew, nothing was started on premises",
        code="FreezeLeaseLost",
        possible_causes="rolling back to an older point, the power-off or a restart of this server took longer than the lease",
        remedy="wait until the item is protected again, then restart the job; a longer lease helps with older points",
        retryable=True,
    )


async def _mark(context: StepContext) -> MarkId:
    return MarkId((await context.recall("lease"))["mark"])


async def _freeze(world: World, context: StepContext, item: ItemRow, lease: rules.LeaseStart) -> orders.Marked:
    arguments = orders.FreezeLease(await _mark(context), lease.lease_seconds)
    seconds = min(_left(world, lease), world.timing.order_seconds)
    work = Work(
        pieces.machine_of(item), orders.FREEZE_LEASE, arguments, seconds, "waiting for the freeze and its last mark"
    )
    return await _in_lease(carry_out(world, context, work, orders.Marked), work)


async def _prepare(
    world: World, context: StepContext, item: ItemRow, inputs: FailoverInputs, lease: rules.LeaseStart | None
) -> orders.PreparedPoint:
    """Wait until the last mark is applied and bring the disks to the chosen point."""
    await context.remember("prepare", lambda: True)
    mark = await _mark(context) if lease is not None else MarkId("")
    arguments = orders.PreparePoint(pieces.machine_of(item), inputs.choice(), mark)
    seconds = _left(world, lease) if lease is not None else world.timing.prepare_seconds
    sentence = "bringing the on-premises disks to the chosen point"
    work = Work(pieces.master_target_of(item), orders.PREPARE_POINT, arguments, seconds, sentence)
    prepared = carry_out(world, context, work, orders.PreparedPoint)
    return await (_in_lease(prepared, work) if lease is not None else prepared)


async def _in_lease(carried_out: Awaitable[T], work: Work) -> T:
    """An order whose result came too late for the lease costs the lease."""
    try:
        return await carried_out
    except PeerError as error:
        if error.code != ORDER_TIMED_OUT:
            raise
        raise _lost(f"{work.sentence}: no result while the lease lasted") from error


async def _still_frozen(world: World, context: StepContext, item: ItemRow, lease: rules.LeaseStart) -> None:
    """Any thaw ends the lease: the agent has to say that it is frozen, and to say it now. A word from before may be older than a
    thaw of which it could not tell. (A machine that is off already was powered off by an earlier run of this step.)"""
    asked_wall_ns = world.clock.wall_ns()
    is_off = await world.power(item.cloud_fabric, item.cloud_fabric_id) is PowerState.OFF

    async def frozen() -> bool | None:
        row, status = await pieces.agent(context, item)
        is_new = row is not None and row.last_heartbeat_wall_ns > asked_wall_ns
        return True if _says_frozen(status) and (is_new or is_off) else None

    await context.wait_until(
        "waiting for the agent to confirm that it is still frozen",
        frozen,
        seconds=min(_left(world, lease), world.timing.heard_seconds),
        late=lambda: _lost("the machine was thawed before it was powered off"),
    )


async def _power_off_in_lease(world: World, context: StepContext, item: ItemRow, lease: rules.LeaseStart) -> None:
    fabric = world.fabric(item.cloud_fabric)
    _left(world, lease)
    await context.say("powering off the cloud machine")
    await world.call("powering off the cloud machine", lambda: fabric.power_off(item.cloud_fabric_id))
    while True:
        power = await world.power(item.cloud_fabric, item.cloud_fabric_id)
        _left(world, lease)  # after the read-back: only what was read inside the lease counts
        if power is PowerState.OFF:
            break
        await asyncio.sleep(min(0.1, context.poll_seconds))
    _, status = await pieces.agent(context, item)
    if not _says_frozen(status):
        raise _lost("the machine was thawed while it was powered off")


def _says_frozen(status: MobilityStatus | None) -> bool:
    return status is not None and status.freeze == "frozen"


async def prepare(world: World, context: StepContext) -> dict[str, Any]:
    """Raise the epoch floor, move the item to *commit pending*, and have the disks released to the hypervisor."""
    item, inputs = await context.item(), _inputs(context)
    shut = await context.result_of(SHUT_DOWN)
    if "prepared" in shut:
        prepared = records.decode(shut["prepared"], orders.PreparedPoint, "prepared point")
    elif pieces.state_of(item) is State.COMMIT_PENDING:
        prepared = records.decode(await context.recall("point"), orders.PreparedPoint, "prepared point")
    else:
        prepared = await _prepare(world, context, item, inputs, None)
        await context.remember("point", lambda: records.encode(prepared))

    def fence(session: Session) -> bool:
        row = items.get(session, context.item_id)
        pieces.advance_item(row, Event.FAILED_OVER)
        row.replicating = False
        row.epoch_floor = max(row.epoch_floor, row.epoch + 1)
        row.chosen_point_id, row.chosen_point_wall_ns = prepared.point.point_id, prepared.point.wall_ns
        row.last_failover_wall_ns = world.clock.wall_ns()
        row.protection_stage = "releasing"
        return True

    await context.remember_with("fenced", fence)
    world.announce(await context.item())
    await release(world, context, item)
    return {"point_id": prepared.point.point_id, "bytes_rolled_back": prepared.bytes_rolled_back}


async def release(world: World, context: StepContext, item: ItemRow) -> None:
    sentence = "waiting for the master target to release the disks"
    await carry_out_plainly(
        world, context, pieces.replica_work(item, orders.RELEASE_REPLICA, world.timing.order_seconds, sentence)
    )


async def fail_over(world: World, context: StepContext) -> dict[str, Any]:
    """Lay the disposable layer over the on-premises disks."""

    def name_layer(session: Session) -> str:
        row = items.get(session, context.item_id)
        row.layer_key = f"failback-{context.job_id[:8]}"
        return row.layer_key

    key: str = await context.remember_with("layer", name_layer)
    item = await context.item()
    fabric = world.fabric(item.on_premises_fabric)
    if not await world.call("looking for the layer", lambda: fabric.layered(item.on_premises_fabric_id, key)):
        await _add_joined_disks(world, context, item)
        await context.say("laying a disposable layer over the on-premises disks")
        await world.call("laying the layer", lambda: fabric.lay(item.on_premises_fabric_id, key))
    return {"layer_key": key}


async def _add_joined_disks(world: World, context: StepContext, item: ItemRow) -> None:
    """Disks that joined the machine in the cloud are not in the definition of the machine at home yet.

    One that left stays there: it is read again when somebody goes back to a point from before.
    """
    fabric = world.fabric(item.on_premises_fabric)
    if not isinstance(fabric, AddsDisks):
        return
    machine = await world.call("reading the machine", lambda: fabric.machine(item.on_premises_fabric_id))
    had = {disk.path for disk in machine.disks}
    for disk in item.disks:
        if disk.removed or disk.on_premises_target or not disk.path or disk.path in had:
            continue
        await context.say(f"adding disk {disk.index} to the on-premises machine")
        add = partial(fabric.add_disk, item.on_premises_fabric_id, disk.path, disk.format, disk.serial)
        target = await world.call("adding a disk that joined", add)

        def known(row: ItemRow, disk_id: str = disk.disk_id, target: str = target) -> None:
            for each in row.disks:
                if each.disk_id == disk_id:
                    each.on_premises_target = target

        await context.change_item(known)


async def start_target(world: World, context: StepContext) -> dict[str, Any]:
    """Start the on-premises machine and wait for the first word of its mobility service."""
    item = await context.item()
    power = await world.power(item.cloud_fabric, item.cloud_fabric_id)
    if power is not PowerState.OFF:
        raise ConflictError(
            f"the cloud machine is not off any more (its fabric says {power.value}): nothing is started on premises",
            code="SourceNotOff",
            possible_causes="somebody powered it on",
            remedy="cancel the failover to go on in the cloud, or power it off and restart the job",
        )
    since: int = await context.remember("since", world.clock.wall_ns)
    await pieces.power_on(
        world, context, item.on_premises_fabric, item.on_premises_fabric_id, "the on-premises machine"
    )
    seen = await context.wait_until(
        "waiting for the mobility service of the on-premises machine",
        partial(_twin_heard, context, item, since),
        seconds=world.timing.twin_seconds,
        late=_twin_silent,
    )

    def moved(row: ItemRow) -> None:
        row.live_side, row.protection_stage = items.ON_PREMISES, ""

    await context.change_item(moved)
    world.announce(await context.item())
    return {"heard_after_seconds": round((seen - since) / 1e9, 3)}


async def _twin_heard(context: StepContext, item: ItemRow, since_wall_ns: int) -> int | None:
    """Wall time of the first heartbeat from the on-premises hardware after ``since_wall_ns``."""
    row, _ = await pieces.agent(context, item)
    anew = await context.look(lambda session: pieces.enrolled_at_home(session, item))
    heard = [anew.last_heartbeat_wall_ns] if anew is not None else []
    if row is not None and row.twin_hardware_id.lower() == item.on_premises_hardware_id.lower():
        heard.append(row.twin_last_seen_wall_ns)
    if row is not None and item.on_premises_hardware_id == item.cloud_hardware_id:
        heard.append(row.last_heartbeat_wall_ns)  # a fabric that keeps the SMBIOS UUID: any word counts
    return next((wall_ns for wall_ns in heard if wall_ns > since_wall_ns), None)


def _twin_silent() -> PeerError:
    return PeerError(
        "the on-premises machine was started but its mobility service was not heard from",
        code="95226",
        possible_causes="the guest does not boot, has no network on premises, or cannot reach the configuration server",
        remedy="look at its console; then restart the job to wait again, commit if the machine is well, or cancel",
    )


async def undo(world: World, context: StepContext, reason: str) -> None:
    """Before the fence: thaw, or start the source again. After it: a failure waits for restart, a cancel goes back."""
    item = await context.item()
    if pieces.state_of(item) is State.COMMIT_PENDING:
        if reason == "Cancelled":
            await pieces.drop_target(world, context)
            await _go_on_in_the_cloud(world, context)
        return
    prepared = await context.recall("prepare", SHUT_DOWN) or await context.recall("prepare", PREPARE)
    if not _inputs(context).shut_down_source:
        if prepared:  # the source is lost or off: its points stay as they are, and the job can be restarted
            await pieces.resume_replica(world, context, world.timing.prepare_seconds)
        return
    if await context.recall("lease", SHUT_DOWN) is None:
        return
    if await _source_runs(world, item):
        await _thaw(world, context, item)
    if prepared or not await _source_runs(world, item):
        await _go_on_in_the_cloud(world, context)


async def _go_on_in_the_cloud(world: World, context: StepContext) -> None:
    """The source runs before anything else is put in order: the job that follows resumes the replica."""
    await context.follow_with(IR_COMPLETION, {"resume": True})
    await pieces.replicate_again(world, context)
    await pieces.start_source(world, context)


async def _source_runs(world: World, item: ItemRow) -> bool:
    return await world.power(item.cloud_fabric, item.cloud_fabric_id) is PowerState.ON


async def _thaw(world: World, context: StepContext, item: ItemRow) -> None:
    """Best effort: the lease's own end thaws a machine that cannot be told."""
    work = Work(
        pieces.machine_of(item), orders.THAW, {}, world.timing.heard_seconds, "waiting for the machine to be thawed"
    )
    try:
        await carry_out_plainly(world, context, work)
    except FailbackError as error:
        log.warning(
            "the machine was not thawed by order; its lease ends by itself", item=item.name, error=error.message
        )
