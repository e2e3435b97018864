"""Commit of a failback: the layer is merged, the newer points are abandoned, and the machine lives on premises.

From its second task on there is no way back: the disks take the layer's writes. That task cannot be cancelled, only restarted.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from failback.configuration_server.database import items
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import Scenario, Task
from failback.configuration_server.workflows import pieces
from failback.configuration_server.workflows.world import World, carry_out_plainly
from failback.errors import ConflictError
from failback.fabric.interfaces import PowerState
from failback.model import orders
from failback.protection.operations import Operation
from failback.protection.states import Event, State

COMMIT = "CommitFailover"
COMMITTING = "committing"
"""Stage of an item whose commit has begun: it can only be completed."""


def scenario(world: World) -> Scenario:
    return Scenario(
        COMMIT,
        "Commit",
        (
            Task("VmCommitPrerequisitesCheck", "Prerequisites check for commit", partial(check, world)),
            Task("VmCommit", "Commit the failover", partial(commit, world), cancellable=False),
        ),
    )


async def check(world: World, context: StepContext) -> None:
    """The failover is complete, and the source is still off."""
    item = await context.item()
    pieces.require_operation(item, Operation.COMMIT)
    if not item.layer_key:
        raise ConflictError(
            f"the failover of {item.name} is not complete: the on-premises machine was not laid out yet",
            code="FailoverIncomplete",
            remedy="restart the failed failover job, or cancel the failover",
        )
    power = await world.power(item.cloud_fabric, item.cloud_fabric_id)
    if power is not PowerState.OFF:
        raise ConflictError(
            f"the cloud machine is not off (its fabric says {power.value}): both would claim to be {item.name}",
            code="SourceNotOff",
            remedy="power it off, or cancel the failover",
        )


async def commit(world: World, context: StepContext) -> dict[str, Any]:
    """Close the journal for this direction, merge the layer, and let the on-premises hardware be the live one."""
    item = await context.item()

    def begin(row: ItemRow) -> None:
        row.protection_stage = COMMITTING

    await context.change_item(begin)
    sentence = "waiting for the master target to close the journal"
    work = pieces.replica_work(item, orders.COMMIT_POINT, world.timing.order_seconds, sentence)
    await carry_out_plainly(world, context, work)
    merged = await _merge(world, context, item)

    def end(session: Session) -> None:
        row = items.get(session, context.item_id)
        anew = pieces.enrolled_at_home(session, row)
        if anew is not None and anew.last_heartbeat_wall_ns > row.last_failover_wall_ns:
            row.machine_id = anew.component_id
        if pieces.state_of(row) is State.COMMIT_PENDING:
            pieces.advance_item(row, Event.FAILOVER_COMMITTED)
        row.live_side, row.replicating = items.ON_PREMISES, False
        row.layer_key, row.pass_id, row.protection_stage = "", "", ""

    await context.write(end)
    world.announce(await context.item())
    return {"bytes_merged": merged}


async def _merge(world: World, context: StepContext, item: ItemRow) -> int:
    """Merge in a thread while this task shows how far it is; a merge that began goes on after a crash."""
    if not item.layer_key:
        return 0
    fabric, key = world.fabric(item.on_premises_fabric), item.layer_key
    if not await world.call("looking for the layer", lambda: fabric.layered(item.on_premises_fabric_id, key)):
        return 0
    reached = [0, 0]

    def progress(done: int, total: int) -> None:
        reached[:] = [done, total]

    def work() -> None:
        fabric.merge(item.on_premises_fabric_id, key, progress)

    merging = asyncio.create_task(world.call("merging the layer", work, world.timing.merge_seconds))
    while not merging.done():
        await asyncio.wait({merging}, timeout=context.poll_seconds)
        await context.progress("merging the writes made on premises into the disks", reached[0], reached[1])
    merging.result()
    return reached[1]
