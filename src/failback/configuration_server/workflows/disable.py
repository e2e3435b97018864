"""Disable protection: the stream ends, the master target lets the disks go as they are, and the item is kept for its history.

The impact is the caller's to confirm: the on-premises disks stay at the newest applied batch, and there are no points any more.
"""

from __future__ import annotations

from functools import partial

from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import Scenario, Task
from failback.configuration_server.workflows import pieces
from failback.configuration_server.workflows.world import World, carry_out_plainly
from failback.model import orders
from failback.protection.operations import Operation
from failback.protection.states import Event, State

DISABLE = "DisableDr"


def scenario(world: World) -> Scenario:
    return Scenario(
        DISABLE,
        "Disable protection",
        (
            Task("VmDisableProtectionPrerequisitesCheck", "Prerequisites check", partial(check, world)),
            Task("VmDisableProtection", "Disabling protection", partial(disable, world), cancellable=False),
        ),
    )


async def check(_world: World, context: StepContext) -> None:
    pieces.require_operation(await context.item(), Operation.DISABLE)


async def disable(world: World, context: StepContext) -> None:
    await pieces.stop_stream(world, context)
    item = await context.item()
    if item.master_target_id and item.machine_id and pieces.state_of(item) in (State.REPLICATING, State.PROTECTED):
        sentence = "waiting for the master target to let the disks go"
        work = pieces.replica_work(item, orders.DETACH_REPLICA, world.timing.order_seconds, sentence)
        await carry_out_plainly(world, context, work)

    def end(row: ItemRow) -> None:
        if pieces.state_of(row) is not State.DISABLED:
            pieces.advance_item(row, Event.PROTECTION_DISABLED)
        row.group_id = ""
        row.protection_stage, row.abandoned_reason = "", str(context.inputs.get("reason", "disabled by an operator"))

    await context.change_item(end)
