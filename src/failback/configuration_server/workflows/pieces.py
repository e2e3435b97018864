"""Moves that several workflows share: reading statuses, power with read-back, epochs and passes, bringing the source back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database import components, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.registry.parts import stream_parts
from failback.configuration_server.workflows.world import Work, World, carry_out_plainly
from failback.errors import ConflictError, FabricError, PeerError
from failback.fabric.interfaces import PowerState
from failback.model import orders
from failback.model.components import MasterTargetStatus, MobilityStatus, ReplicaStatus, Role, SyncMode
from failback.model.ids import DiskId, MachineId, new_id
from failback.protection import failback_rules as rules
from failback.protection.operations import Operation, Side
from failback.protection.repair_rules import Parts
from failback.protection.states import TABLE, Event, State, advance, direction_of, require
from failback.runtime import records


def state_of(item: ItemRow) -> State:
    return State(item.protection_state)


def require_operation(item: ItemRow, operation: Operation) -> None:
    """Raise ConflictError with the reason unless the item's state allows the operation."""
    state = state_of(item)
    require(operation, state, direction_of(state, Side(item.live_side)))


def advance_item(item: ItemRow, event: Event) -> None:
    item.protection_state = advance(state_of(item), event).value


def machine_of(item: ItemRow) -> MachineId:
    """The item's agent. Raises PeerError (95226) while none has been matched."""
    if not item.machine_id:
        raise PeerError(
            f"no mobility service has registered for {item.name}",
            code="95226",
            possible_causes="the machine cannot reach the configuration server, or the service is not installed or stopped",
            remedy="start failback-mobility on the machine and check its way to the configuration server",
        )
    return MachineId(item.machine_id)


def master_target_of(item: ItemRow) -> str:
    if not item.master_target_id:
        raise ConflictError(f"{item.name} has no master target", remedy="reprotect it first")
    return item.master_target_id


async def agent(context: StepContext, item: ItemRow) -> tuple[ComponentRow | None, MobilityStatus | None]:
    """The agent's row and what it last told from the live side; (None, None) before it registered."""
    if not item.machine_id:
        return None, None
    component_id = item.machine_id
    row = await context.look(lambda session: components.get(session, component_id))
    if not row.last_heartbeat_wall_ns or row.role != Role.MOBILITY.value:
        return row, None
    return row, records.decode(row.status, MobilityStatus, "status of the mobility service")


def enrolled_at_home(session: Session, item: ItemRow) -> ComponentRow | None:
    """The mobility service that enrolled anew on the on-premises hardware: disks of a point from before the first enrolment
    carry no identity, so the machine that boots from them is not the item's component."""
    at_home = (
        ComponentRow.role == Role.MOBILITY.value,
        ComponentRow.hardware_id == item.on_premises_hardware_id.lower(),
    )
    newcomers = select(ComponentRow).where(*at_home, ComponentRow.component_id != item.machine_id)
    found = session.scalars(newcomers.order_by(ComponentRow.last_heartbeat_wall_ns.desc()))  # one for each such boot
    return next((one for one in found if not one.revoked), None)


async def replica(context: StepContext, item: ItemRow) -> ReplicaStatus | None:
    """The item's replica as its master target last told it."""
    if not item.master_target_id:
        return None
    component_id = item.master_target_id
    row = await context.look(lambda session: components.get(session, component_id))
    status = records.decode(row.status, MasterTargetStatus, "status of the master target")
    return next((each for each in status.replicas if each.machine_id == item.machine_id), None)


async def parts(context: StepContext, item: ItemRow) -> Parts:
    """What agent, process server and master target last told of the item's stream."""
    return await context.look(lambda session: stream_parts(session, item))


def replica_work(item: ItemRow, kind: str, seconds: float, sentence: str) -> Work:
    """Release, resume, commit or detach the item's replica."""
    return Work(master_target_of(item), kind, orders.ReplicaOrder(machine_of(item)), seconds, sentence)


# --- power ------------------------------------------------------------------------------------------------------------


async def power_off(world: World, context: StepContext, fabric_name: str, fabric_id: str, what: str) -> None:
    """Power off unless it is off, and return only after the fabric itself said that it is off."""
    fabric = world.fabric(fabric_name)
    if await world.power(fabric_name, fabric_id) is not PowerState.OFF:
        await world.call(f"powering off {what}", lambda: fabric.power_off(fabric_id))
    await _until_power(world, context, fabric_name, fabric_id, PowerState.OFF, what)


async def power_on(world: World, context: StepContext, fabric_name: str, fabric_id: str, what: str) -> None:
    """Power on unless it is on, and read it back. Raises FabricError 8038 when it does not come up."""
    fabric = world.fabric(fabric_name)
    if await world.power(fabric_name, fabric_id) is not PowerState.ON:
        try:
            await world.call(f"powering on {what}", lambda: fabric.power_on(fabric_id))
        except FabricError as error:
            raise FabricError(
                f"{what} could not be started: {error.message}",
                code="8038",
                possible_causes=error.possible_causes
                or "the host lacks memory, or a disk of the machine is not accessible",
                remedy=error.remedy or "remove the cause on the host, then restart the job",
                retryable=True,
            ) from error
    await _until_power(world, context, fabric_name, fabric_id, PowerState.ON, what)


async def _until_power(  # noqa: PLR0917
    world: World, context: StepContext, fabric_name: str, fabric_id: str, wanted: PowerState, what: str
) -> None:
    deadline = world.clock.monotonic() + world.timing.power_seconds
    while True:
        seen = await world.power(fabric_name, fabric_id)
        if seen is wanted:
            return
        if world.clock.monotonic() >= deadline:
            raise FabricError(
                f"{what} does not become {wanted.value}: the fabric says {seen.value}",
                code="8038" if wanted is PowerState.ON else "PowerOffNotConfirmed",
                possible_causes="the hypervisor did not carry out the request, or somebody reversed it",
                remedy="look at the machine in its fabric, then restart the job",
                retryable=True,
            )
        await context.say(f"waiting until {what} is {wanted.value.lower()}")
        await asyncio.sleep(min(0.2, context.poll_seconds))


# --- epochs and passes --------------------------------------------------------------------------------------------------


async def begin_epoch(
    world: World, context: StepContext, created: list[str], event: Event | None,
    adjust: Callable[[ItemRow], None] = lambda item: None,
) -> dict[str, Any]:  # fmt: skip
    """Issue a new epoch with a new pass over all disks and let the stream flow: once a task, however often it runs.

    Returns ``{"epoch": ..., "pass_id": ...}``. ``event`` moves the item's state, and ``adjust`` changes what else the epoch is
    to begin with, in the same transaction.
    """
    seen = await _epochs_seen(context)

    def begin(session: Session) -> dict[str, Any]:
        item = items.get(session, context.item_id)
        item.epoch_highest = max(item.epoch_highest, seen)
        if event is not None and event in TABLE[state_of(item)]:  # a restarted job finds it taken
            advance_item(item, event)
        epoch = items.issue_epoch(item)
        item.pass_id = new_id()
        modes = rules.sync_modes((DiskId(disk.disk_id) for disk in item.disks), created)
        for disk in item.disks:
            disk.sync, disk.sync_from_bytes = modes.get(DiskId(disk.disk_id), SyncMode.COMPARE).value, 0
        item.replicating, item.live_side = True, items.CLOUD
        item.protection_stage = "comparing"
        adjust(item)
        return {"epoch": epoch, "pass_id": item.pass_id}

    begun: dict[str, Any] = await context.remember_with("epoch", begin)
    world.announce(await context.item())
    return begun


async def _epochs_seen(context: StepContext) -> int:
    """The highest epoch that agent or master target speak of: above this database's own after it was restored."""
    item = await context.item()
    _, status = await agent(context, item)
    held = await replica(context, item)
    return max(status.epoch if status else 0, held.epoch if held else 0)


async def stop_stream(world: World, context: StepContext) -> None:
    """Refuse the stream from now on: no epoch issued so far is accepted again (D2)."""

    def stop(item: ItemRow) -> None:
        item.replicating = False
        item.epoch_floor = max(item.epoch_floor, item.epoch + 1)

    await context.change_item(stop)
    world.announce(await context.item())


# --- the way back to the source -----------------------------------------------------------------------------------------


async def drop_target(world: World, context: StepContext) -> None:
    """Power off the on-premises machine and throw its disposable layer away: its disks are as they were released."""
    item = await context.item()
    name = item.on_premises_fabric
    await power_off(world, context, name, item.on_premises_fabric_id, "the on-premises machine")
    if item.layer_key:
        fabric, key = world.fabric(name), item.layer_key
        await context.say("discarding the writes that were made on premises")
        await world.call("discarding the layer", lambda: fabric.discard(item.on_premises_fabric_id, key))


async def resume_replica(world: World, context: StepContext, seconds: float) -> None:
    """The master target takes the disks again and rolls them forward to what has landed. May be repeated."""
    sentence = "waiting for the master target to take the disks as a replica again"
    await carry_out_plainly(
        world, context, replica_work(await context.item(), orders.RESUME_REPLICA, seconds, sentence)
    )


async def replicate_again(world: World, context: StepContext) -> None:
    """Let the source's stream flow again under a new epoch, with a comparison of all disks; the failover is forgotten.

    The master target need not be there: what lands while its disks are rolled back is applied once they are resumed, which the
    job that follows (``IrCompletion`` with ``resume``) asks for until it is done.
    """

    def clear(session: Session) -> bool:
        row = items.get(session, context.item_id)
        if state_of(row) is State.PROTECTED:  # a failover that could not be confirmed counts as begun and cancelled
            advance_item(row, Event.FAILED_OVER)
        if state_of(row) is State.COMMIT_PENDING:
            advance_item(row, Event.FAILOVER_CANCELLED)
        row.layer_key, row.chosen_point_id, row.chosen_point_wall_ns = "", "", 0
        return True

    await context.remember_with("cancelled", clear)
    await begin_epoch(world, context, [], None)


async def start_source(world: World, context: StepContext) -> None:
    item = await context.item()
    await power_on(world, context, item.cloud_fabric, item.cloud_fabric_id, "the cloud machine")
