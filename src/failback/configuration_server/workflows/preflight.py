"""The prerequisite check of a job: the same findings as readiness shows, and the job fails with all of them.

A component that cannot be reached may be starting again (a kill, an upgrade): it is asked again for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.workflows.inputs import FailoverInputs, ReprotectInputs
from failback.configuration_server.workflows.world import World
from failback.protection import readiness
from failback.protection.readiness import Check


async def pass_preflight(
    world: World, context: StepContext, inputs: ReprotectInputs | FailoverInputs
) -> Sequence[Check]:
    """All findings when nothing failed. Raises the first failure; the others are named in its causes."""
    await context.say("checking the prerequisites")
    deadline = world.clock.monotonic() + world.timing.connect_seconds
    while True:
        checks = await world.preflight(context.item_id, inputs, context.job_id)
        failed = readiness.first_failure(checks)
        if failed is None:
            return checks
        if not readiness.may_pass_soon(checks) or world.clock.monotonic() >= deadline:
            raise failed
        await context.say(f"waiting: {failed.message}")
        await context.checkpoint()
        await asyncio.sleep(1.0)
