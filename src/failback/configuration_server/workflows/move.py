"""Moving an item to another process server while it is protected: the machine keeps running, its disks are not compared.

The new server is tried first, on both of its links, by those who will use them: a move that would only interrupt the
replication does not begin. Then one transaction names the new server under a higher epoch (D6): nothing of the old one is
accepted any more, the agent reads again the blocks that had not landed, and the old server deletes its spool, at once or when
it comes back. Should re-sending not be enough (something else was lost too), the disks are compared, as in a repair.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from failback.configuration_server.database import components, events
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import FollowUp, Scenario, Task
from failback.configuration_server.registry import desired
from failback.configuration_server.workflows import pieces, repair
from failback.configuration_server.workflows.finalize import IR_COMPLETION
from failback.configuration_server.workflows.inputs import RepairInputs
from failback.configuration_server.workflows.world import World
from failback.errors import ConflictError, OutOfSpaceError, PeerError
from failback.model import orders
from failback.model.components import ProcessServerStatus, SyncMode
from failback.protection.operations import Operation
from failback.runtime import records

MOVE = "SwitchProcessServer"
CHECK = "SwitchProcessServerPrerequisitesCheck"
_LEAST_FREE_SHARE = 0.05


def scenario(world: World) -> Scenario:
    return Scenario(
        MOVE,
        "Move to another process server",
        (
            Task(CHECK, "Prerequisites check for the move", partial(check, world)),
            Task("SwitchToProcessServer", "Beginning a new epoch on the other process server", partial(begin, world),
                 cancellable=False),
        ),
        follow_up=FollowUp(IR_COMPLETION, {}),
    )  # fmt: skip


async def check(world: World, context: StepContext) -> dict[str, Any]:
    """Whether the move is allowed and can work, and what the epoch has to begin with."""
    asked = records.decode(context.inputs, RepairInputs, "inputs of the move")
    item = await context.item()
    pieces.require_operation(item, Operation.MOVE)
    machine_id = pieces.machine_of(item)
    if asked.process_server_id == item.process_server_id:
        raise ConflictError(
            f"{item.name} replicates through that process server already", remedy="name another one, or none to resync"
        )
    ways = await context.look(lambda session: _ways(world, session, item, asked.process_server_id, machine_id))
    for component_id, target, what in ways:
        await context.say(f"trying {what}")
        await _try(world, context, component_id, target, what)
    because = await repair.why_compare(world, context)
    mode = SyncMode.COMPARE if because else SyncMode.NONE
    return {"mode": mode.value, "process_server_id": asked.process_server_id, "because": because}


def _ways(
    world: World, session: Session, item: ItemRow, new_id: str, machine_id: str
) -> tuple[tuple[str, str, str], ...]:
    """(who connects, to where, in words) of the two links that will carry the stream. Raises when the server is unfit."""
    server = repair.usable(world, session, new_id)
    status = records.decode(server.status or {}, ProcessServerStatus, "status of the process server")
    if status.spool_capacity_bytes and status.spool_free_bytes < status.spool_capacity_bytes * _LEAST_FREE_SHARE:
        raise OutOfSpaceError(
            f"the spool of {server.hostname} has hardly any room left",
            remedy="give it room, or move to another process server",
        )
    target = components.get(session, pieces.master_target_of(item))
    here, there = desired.endpoint(server), desired.endpoint(target)
    if here is None or there is None:
        raise PeerError(f"the address of {(target if there is None else server).hostname} is not known yet")
    return (
        (str(machine_id), f"{here.host}:{here.port}", f"the way from the machine to {server.hostname}"),
        (new_id, f"{there.host}:{there.port}", f"the way from {server.hostname} to {target.hostname}"),
    )


async def _try(world: World, context: StepContext, component_id: str, target: str, what: str) -> None:
    answer = await world.orders.carry_out(
        component_id, orders.PROBE, 0, orders.Probe((target,)), context.key(f"probe {component_id}"),
        world.timing.connect_seconds,
    )  # fmt: skip
    failure = records.decode(answer, orders.ProbeResult).failures.get(target, "it was not tried")
    if failure:
        raise PeerError(
            f"{what} ({target}) is closed: {failure}",
            possible_causes="a firewall is between, or the address that the server reports is not its own",
            remedy="open the way, then restart the job; the item replicates as before",
        )


async def begin(world: World, context: StepContext) -> dict[str, Any]:
    item = await context.item()
    old = await context.remember("from", lambda: item.process_server_id or "")
    decided = await context.result_of(CHECK)
    begun = await repair.switch(world, context, decided)
    how = "its disks are compared" if begun["mode"] == SyncMode.COMPARE.value else "what had not landed is sent again"
    await context.remember_with(
        "event", lambda session: _say(world, session, item, (old, decided["process_server_id"]), how)
    )
    return begun


def _say(world: World, session: Session, item: ItemRow, servers: tuple[str, str], how: str) -> bool:
    old, new = (components.get(session, one).hostname if one else "none" for one in servers)
    name = item.friendly_name or item.name
    events.record(
        session, world.clock.wall_ns(), "ProcessServerSwitched",
        f"{name} moved from process server {old} to {new}: {how}.",
        event_type="Protection", item_id=item.item_id, subject=name,
    )  # fmt: skip
    return True
