"""Cancel of a failback: the machine goes back to the cloud, exactly as it was at its last mark (D21).

What was written on premises since is thrown away with the layer. The on-premises disks become a replica again (and so cannot be
started, D22), under a new epoch and with a comparison of all disks, before the cloud machine is started. A master target
that is away holds this up for a moment only: the machine matters more, and the job that follows asks it again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import FollowUp, Scenario, Task
from failback.configuration_server.workflows import pieces
from failback.configuration_server.workflows.commit import COMMITTING
from failback.configuration_server.workflows.finalize import IR_COMPLETION
from failback.configuration_server.workflows.world import World
from failback.errors import ConflictError, FailbackError, StaleEpochError
from failback.protection.operations import Operation
from failback.runtime import logs

CANCEL_FAILOVER = "CancelFailover"

log = logs.get(__name__)


def scenario(world: World) -> Scenario:
    def task(name: str, friendly_name: str, work: Any) -> Task:
        return Task(name, friendly_name, partial(work, world), cancellable=False)

    return Scenario(
        CANCEL_FAILOVER,
        "Cancel failover",
        (
            task("VmCancelFailoverPrerequisitesCheck", "Prerequisites check for cancelling the failover", check),
            task("VmShutdownVmOnSecondary", "Shut down the on-premises machine and discard its layer", drop),
            task("VmResumeReplication", "Make the on-premises disks a replica again", resume),
            task("VmStartVmOnPrimary", "Start the cloud virtual machine", start),
        ),
        follow_up=FollowUp(IR_COMPLETION, {"resume": True}),
    )


async def check(world: World, context: StepContext) -> None:
    item = await context.item()
    pieces.require_operation(item, Operation.CANCEL_FAILOVER)
    if item.protection_stage == COMMITTING:
        raise ConflictError(
            f"the commit of {item.name} has begun: its disks take the writes made on premises",
            code="CommitBegun",
            remedy="restart the commit job",
        )
    for name in (item.cloud_fabric, item.on_premises_fabric):
        problem = await world.call("probing the fabric", world.fabric(name).probe)
        if problem:
            raise ConflictError(
                f"the fabric {name} does not answer: {problem}", remedy="repair it, then restart the job"
            )


async def drop(world: World, context: StepContext) -> None:
    await pieces.drop_target(world, context)


async def resume(world: World, context: StepContext) -> None:
    """A new epoch, and the disks in the master target's hands if it answers soon."""
    await pieces.replicate_again(world, context)
    try:
        await pieces.resume_replica(world, context, world.timing.resume_seconds)
    except FailbackError as error:
        if isinstance(error, StaleEpochError):
            raise
        log.warning("the master target does not take the disks yet; it will be asked again", reason=error.message)


async def start(world: World, context: StepContext) -> None:
    await pieces.start_source(world, context)
