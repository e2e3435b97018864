"""IrCompletion: the job that follows reprotect (and a cancelled failback, and a repair) and makes the item *protected*.

It waits until the pass is over, the master target says that the replica is consistent, and the first recovery point after
the pass is published; it shows bytes, rate and time left. There is no limit on its length, only on standing still.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import Scenario, Skipped, Task
from failback.configuration_server.workflows import pieces
from failback.configuration_server.workflows.inputs import CompletionInputs
from failback.configuration_server.workflows.world import World
from failback.errors import ConflictError, PeerError
from failback.model.components import MobilityStatus, ReplicaStatus
from failback.model.ids import PassId
from failback.protection import failback_rules as rules
from failback.protection import repair_rules
from failback.protection.states import Event, State
from failback.runtime import records

IR_COMPLETION = "IrCompletion"


def scenario(world: World) -> Scenario:
    return Scenario(
        IR_COMPLETION,
        "Finalize protection",
        (
            Task("ResumeReplicaTask", "Making the on-premises disks a replica again", partial(resume, world)),
            Task("IrCompletionTask", "Finalizing protection on the virtual machine", partial(complete, world)),
        ),
    )


async def resume(world: World, context: StepContext) -> None:
    """After a failover that was given up the master target may still hold the disks at a point, or have let them go."""
    if not records.decode(context.inputs, CompletionInputs, "inputs of the completion").resume:
        raise Skipped("the disks are a replica already")
    await pieces.resume_replica(world, context, world.timing.prepare_seconds)


async def complete(world: World, context: StepContext) -> dict[str, Any]:
    """Wait for the end of the pass, then move the item to *protected*."""
    moved = _Moved(world.clock.monotonic())
    while True:
        item = await context.item()
        if not item.replicating or pieces.state_of(item) not in (State.REPLICATING, State.PROTECTED):
            raise ConflictError(
                f"{item.name} does not replicate any more (state {item.protection_state})",
                possible_causes="the reprotect was cancelled or the protection disabled",
                remedy="reprotect the item again",
            )
        parts = await pieces.parts(context, item)
        over = repair_rules.ended(item.epoch, parts)
        if over is not None:
            raise _ended(item, over)
        _, status = await pieces.agent(context, item)
        held = parts.master_target
        missing = rules.protection_missing(status, held, item.epoch, PassId(item.pass_id))
        if not missing:
            await context.change_item(_protected)
            return {"epoch": item.epoch, "points": len(held.points) if held else 0}
        await _show(context, status, missing)
        await context.checkpoint()
        if moved.stalled(world, _signs(status, held)):
            raise _stuck(missing, world.timing.stall_seconds)
        await context.pause()


def _ended(item: ItemRow, over: repair_rules.StreamEnd) -> ConflictError:
    return ConflictError(
        f"the stream of epoch {item.epoch} cannot go on: {over.sentence}",
        code=over.code,
        possible_causes="a spool or a journal was lost, damaged, or restored from an old copy",
        remedy=f"the disks are compared anew by a job that begins by itself, or by: failback resync {item.name}",
    )


def _protected(item: ItemRow) -> None:
    if pieces.state_of(item) is State.REPLICATING:
        pieces.advance_item(item, Event.REPLICA_CONSISTENT)
    item.protection_stage = "differential"


async def _show(context: StepContext, status: MobilityStatus | None, missing: str) -> None:
    done, total = rules.sync_bytes(status) if status else (0, 0)
    await context.progress(missing, done, total)


def _signs(status: MobilityStatus | None, held: ReplicaStatus | None) -> tuple[object, ...]:
    """Whatever changes while a pass goes on."""
    if status is None:
        return (held is None,)
    figures = tuple((disk.bytes_compared, disk.bytes_sent) for disk in status.sync)
    return (status.epoch, status.pass_id, status.sync_done, figures, held.applied_sequence if held else 0)


class _Moved:
    """When something last changed."""

    def __init__(self, now_seconds: float) -> None:
        self._at = now_seconds
        self._seen: tuple[object, ...] = ()

    def stalled(self, world: World, seen: tuple[object, ...]) -> bool:
        now = world.clock.monotonic()
        if seen != self._seen:
            self._seen, self._at = seen, now
        return now - self._at > world.timing.stall_seconds


def _stuck(missing: str, seconds: float) -> PeerError:
    return PeerError(
        f"the initial replication made no progress for {seconds:.0f} s: {missing}",
        code="78169",
        possible_causes="the machine, the process server or the master target is away, or a volume is full",
        remedy="look at `failback component list` and the components' logs, then restart the job",
    )
