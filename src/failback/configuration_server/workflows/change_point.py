"""Change of the recovery point before the commit: the machine that came home starts once more, at another point.

The way is that of a cancel up to where the disks are a replica again, and that of a failback from there on: the on-premises
machine is off and its layer dropped before the master target takes the disks, and the cloud machine stays off all the time
(no epoch begins, nothing streams). What the job needs is checked before the machine is stopped. Once the layer is gone the
failover counts as incomplete: it cannot be committed until the machine is laid out at a point again; a failed job is restarted
from its beginning, and a cancel of the failover is possible at any time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from failback.configuration_server.database import items
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.points import points_of
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import Scenario, Task
from failback.configuration_server.workflows import failback, pieces
from failback.configuration_server.workflows.commit import COMMITTING
from failback.configuration_server.workflows.inputs import ChangePointInputs
from failback.configuration_server.workflows.world import Work, World, carry_out
from failback.errors import ConflictError, NotFoundError, PreconditionError
from failback.fabric.interfaces import PowerState
from failback.model import orders
from failback.model.points import PointSelector
from failback.protection.operations import Operation
from failback.protection.states import Event
from failback.runtime import records

CHANGE_POINT = "ChangeRecoveryPoint"
CHECK = "VmChangePitPrerequisitesCheck"
DROP = "VmShutdownVmOnSecondary"
CHANGING = "changing-point"
"""Stage of an item whose machine is off, without a layer, until the disks are at the other point."""


def scenario(world: World) -> Scenario:
    def task(name: str, friendly_name: str, work: Any, task_id: str = "") -> Task:
        return Task(name, friendly_name, partial(work, world), task_id=task_id, restart_from=CHECK)

    return Scenario(
        CHANGE_POINT,
        "Change recovery point",
        (
            task(CHECK, "Prerequisites check for changing the recovery point", check),
            Task(DROP, "Shut down the on-premises machine and discard its layer", partial(drop, world),
                 restart_from=CHECK, cancellable=False),
            task(failback.PREPARE, "Bring the on-premises disks to the other point", prepare),
            task(failback.FAIL_OVER, "Start failover", lay, "FailoverTask"),
            Task(failback.START, "Start the on-premises virtual machine", partial(failback.start_target, world)),
        ),
    )  # fmt: skip


def _inputs(context: StepContext) -> ChangePointInputs:
    return records.decode(context.inputs, ChangePointInputs, "inputs of the change")


async def _waiting_item(context: StepContext) -> ItemRow:
    """The item; its failover waits for the commit. Raises ConflictError: a restarted job may come too late."""
    item = await context.item()
    pieces.require_operation(item, Operation.CHANGE_POINT)
    if item.protection_stage == COMMITTING:
        raise ConflictError(
            f"the commit of {item.name} has begun: its disks take the writes made on premises",
            code="CommitBegun",
            remedy="restart the commit job",
        )
    return item


async def check(world: World, context: StepContext) -> None:
    """The source is off, the point is there, fabric and master target answer: all of it before the machine is stopped."""
    item, inputs = await _waiting_item(context), _inputs(context)
    power = await world.power(item.cloud_fabric, item.cloud_fabric_id)
    if power is not PowerState.OFF:
        raise ConflictError(
            f"the cloud machine is not off (its fabric says {power.value}): nothing is started on premises",
            code="SourceNotOff",
            remedy="power it off, or cancel the failover",
        )
    known = await context.look(
        lambda session: [one.point_id for one in points_of(session, item.item_id) if not one.abandoned]
    )
    if not known or (inputs.selector is PointSelector.POINT and inputs.value not in known):
        raise NotFoundError(
            f"{item.name} has no reachable recovery point {inputs.value!r}",
            code="RecoveryPointNotFound",
            remedy=f"failback points {item.name}",
        )
    problem = await world.call("probing the fabric", world.fabric(item.on_premises_fabric).probe)
    if problem:
        raise ConflictError(
            f"the fabric {item.on_premises_fabric} does not answer: {problem}", remedy="repair it, then restart the job"
        )


async def drop(world: World, context: StepContext) -> None:
    """From here on the machine at home speaks for nobody, as before its first start."""
    await _waiting_item(context)
    await pieces.drop_target(world, context)

    def clear(row: ItemRow) -> None:
        row.layer_key, row.live_side, row.protection_stage = "", items.CLOUD, CHANGING

    await context.change_item(clear)
    world.announce(await context.item())


async def prepare(world: World, context: StepContext) -> dict[str, Any]:
    """The disks become a replica again, roll to the point, and are released."""
    item, inputs = await _waiting_item(context), _inputs(context)
    await _still_off(world, item)
    await pieces.resume_replica(world, context, world.timing.prepare_seconds)
    sentence = "bringing the on-premises disks to the chosen point"
    arguments = orders.PreparePoint(pieces.machine_of(item), inputs.choice())
    work = Work(pieces.master_target_of(item), orders.PREPARE_POINT, arguments, world.timing.prepare_seconds, sentence)
    prepared = await carry_out(world, context, work, orders.PreparedPoint)

    def change(session: Session) -> bool:
        row = items.get(session, context.item_id)
        pieces.advance_item(row, Event.POINT_CHANGED)
        row.chosen_point_id, row.chosen_point_wall_ns = prepared.point.point_id, prepared.point.wall_ns
        row.last_failover_wall_ns = world.clock.wall_ns()
        return True

    await context.remember_with("changed", change)
    await failback.release(world, context, item)
    return {"point_id": prepared.point.point_id, "bytes_rolled_back": prepared.bytes_rolled_back}


async def lay(world: World, context: StepContext) -> dict[str, Any]:
    await _still_off(world, await _waiting_item(context))
    return await failback.fail_over(world, context)


async def _still_off(world: World, item: ItemRow) -> None:
    power = await world.power(item.on_premises_fabric, item.on_premises_fabric_id)
    if power is not PowerState.OFF:
        raise PreconditionError(
            f"the on-premises machine is not off: its fabric says {power.value}",
            code="OnPremisesMachineOn",
            possible_causes="somebody started it while its disks were changed to another point",
            remedy="restart the job: it powers the machine off first",
            retryable=True,
        )
