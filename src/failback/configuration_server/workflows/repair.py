"""Repair (Azure's "Resynchronize"): a new epoch on the same replica and journal, with a comparison of all disks by hash.

Begun by an operator, or by itself when a stream cannot go on (``monitors.repairs``). With another process server and nothing
else lost, only the blocks that had not landed are read again (D6, docs/decisions/0006). The job ``IrCompletion`` follows and
waits for the end of the pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from failback.configuration_server.database import components, events
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import FollowUp, Scenario, Task
from failback.configuration_server.workflows import pieces, reprotect
from failback.configuration_server.workflows.finalize import IR_COMPLETION
from failback.configuration_server.workflows.inputs import RepairInputs
from failback.configuration_server.workflows.world import World
from failback.errors import ConfigurationError, ConflictError, PeerError
from failback.model.components import Role, SyncMode
from failback.model.ids import PassId
from failback.protection import repair_rules
from failback.protection.operations import Operation
from failback.protection.states import Event
from failback.runtime import records

REPAIR = "RepairVMReplication"
CHECK = "RepairReplicationPrerequisitesCheck"
RESYNC_REQUIRED = "ECH0007"
_SETTLING_SECONDS = 10.0
"""For the master target's word on what landed to come after the agent's."""


def scenario(world: World) -> Scenario:
    return Scenario(
        REPAIR,
        "Resynchronize",
        (
            Task(CHECK, "Prerequisites check for resynchronization", partial(check, world)),
            Task("StartResynchronization", "Beginning a new epoch", partial(begin, world), cancellable=False),
        ),
        follow_up=FollowUp(IR_COMPLETION, {}),
    )


async def check(world: World, context: StepContext) -> dict[str, Any]:
    """Whether it is allowed, and what the epoch has to begin with; a repair that began by itself says why in an event."""
    asked = records.decode(context.inputs, RepairInputs, "inputs of the repair")
    item = await context.item()
    pieces.require_operation(item, Operation.REPAIR)
    pieces.machine_of(item)
    pieces.master_target_of(item)
    if asked.reason:
        await context.remember_with("event", lambda session: _say(world, session, item, asked.reason))
    moves = bool(asked.process_server_id) and asked.process_server_id != item.process_server_id
    if moves:
        await context.look(lambda session: usable(world, session, asked.process_server_id))
    if not moves or asked.comparison_minutes is not None:
        server = asked.process_server_id if moves else item.process_server_id
        return {"mode": SyncMode.COMPARE.value, "process_server_id": server, "because": asked.reason,
                "comparison_minutes": asked.comparison_minutes}  # fmt: skip
    because = await why_compare(world, context)
    mode = SyncMode.COMPARE if because else SyncMode.NONE
    return {"mode": mode.value, "process_server_id": asked.process_server_id, "because": because}


def _say(world: World, session: Session, item: ItemRow, reason: str) -> bool:
    name = item.friendly_name or item.name
    sentence = f"The replication of {name} cannot go on ({reason}): its disks are compared by hash under a new epoch."
    events.record(
        session,
        world.clock.wall_ns(),
        RESYNC_REQUIRED,
        sentence,
        severity="Warning",
        item_id=item.item_id,
        subject=name,
    )
    return True


def usable(world: World, session: Session, component_id: str) -> ComponentRow:
    row = components.get(session, component_id)
    if row.role != Role.PROCESS_SERVER.value or row.revoked:
        raise ConfigurationError(f"{row.hostname} is no process server in service", remedy="failback component list")
    if (world.clock.wall_ns() - row.last_heartbeat_wall_ns) / 1e9 > world.timing.heard_seconds:
        raise PeerError(
            f"the process server {row.hostname} is not heard from",
            possible_causes="its service is stopped, or it cannot reach the configuration server",
            remedy="start it, then restart the job",
        )
    return row


async def why_compare(world: World, context: StepContext) -> str:
    """Why re-sending what had not landed is not enough; empty when it is."""
    deadline = world.clock.monotonic() + _SETTLING_SECONDS
    while True:
        item = await context.item()
        found = await pieces.parts(context, item)
        because = repair_rules.resend_is_enough(pieces.state_of(item), item.epoch, PassId(item.pass_id), found)
        if because != repair_rules.JOURNAL_LACKS or world.clock.monotonic() >= deadline:
            return because
        await context.checkpoint()
        await context.pause()


async def begin(world: World, context: StepContext) -> dict[str, Any]:
    return await switch(world, context, await context.result_of(CHECK))


async def switch(world: World, context: StepContext, decided: dict[str, Any]) -> dict[str, Any]:
    """The epoch, its pass and its process server in one transaction; from then on nothing of the old epoch is accepted.

    ``decided``: ``mode`` and ``process_server_id``, and ``comparison_minutes`` when that is to change.
    """
    item = await context.item()
    created = await _replica_ready(world, context, item)
    before = await context.remember("server", lambda: item.process_server_id or "")

    def adjust(row: ItemRow) -> None:
        row.process_server_id = decided["process_server_id"]
        if decided.get("comparison_minutes") is not None:
            row.comparison_minutes = decided["comparison_minutes"]
        if decided["mode"] == SyncMode.NONE.value:
            row.protection_stage = "re-sending"
            for disk in row.disks:
                disk.sync = SyncMode.NONE.value

    begun = await pieces.begin_epoch(world, context, created, Event.REPAIR_STARTED, adjust)
    world.news.announce(before or None)  # it deletes what it still holds
    return {**begun, "mode": decided["mode"]}


async def _replica_ready(world: World, context: StepContext, item: ItemRow) -> list[str]:
    """The disks in the master target's hands; ids of those that it had to create.

    A journal that is gone is made anew only when an operator asks: a volume that is just not mounted looks the same, and with
    the journal all recovery points are given up.
    """
    held = await pieces.replica(context, item)
    if held is None or not held.incarnation:
        if records.decode(context.inputs, RepairInputs, "inputs of the repair").reason:
            raise ConflictError(
                f"the master target has no replica of {item.name}{': ' + held.problem if held else ''}",
                possible_causes="its retention volume is not mounted, or was lost",
                remedy=f"mount the retention volume; if it is lost for good: failback resync {item.name}",
            )
        return list((await reprotect.attach(world, context))["created"])
    if held.state != "attached":
        await pieces.resume_replica(world, context, world.timing.order_seconds)
    return []
