"""An application-consistent recovery point now: scripts, freeze, mark, thaw on the machine; then the point is published (D18)."""

from __future__ import annotations

from functools import partial
from typing import Any

from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.scenario import Scenario, Task
from failback.configuration_server.workflows import pieces
from failback.configuration_server.workflows.world import Work, World, carry_out
from failback.errors import PeerError
from failback.model import orders
from failback.model.ids import MarkId, new_id
from failback.protection.operations import Operation
from failback.runtime import records

CREATE_RECOVERY_POINT = "CreateRecoveryPoint"


def scenario(world: World) -> Scenario:
    return Scenario(
        CREATE_RECOVERY_POINT,
        "Create recovery point",
        (
            Task("InsertConsistencyTag", "Freezing, marking and thawing the machine", partial(mark, world)),
            Task("PublishRecoveryPoint", "Publishing the recovery point", partial(publish, world)),
        ),
    )


async def mark(world: World, context: StepContext) -> dict[str, Any]:
    item = await context.item()
    pieces.require_operation(item, Operation.CREATE_RECOVERY_POINT)
    mark_id = MarkId(await context.remember("mark", new_id))
    work = Work(
        pieces.machine_of(item), orders.APP_CONSISTENT_MARK, orders.AppConsistentMark(mark_id), world.timing.point_seconds,
        "waiting for the machine's scripts, freeze and mark",
    )  # fmt: skip
    encoded: dict[str, Any] = records.encode(await carry_out(world, context, work, orders.Marked))
    return encoded


async def publish(world: World, context: StepContext) -> dict[str, Any]:
    """Wait until the master target lists the point (its id is the mark's)."""
    marked = records.decode(await context.result_of("InsertConsistencyTag"), orders.Marked, "mark")
    item = await context.item()

    async def listed() -> dict[str, Any] | None:
        held = await pieces.replica(context, item)
        points = held.points if held is not None else ()
        found = next((point for point in points if str(point.point_id) == marked.mark_id), None)
        return (
            None if found is None else {"point_id": found.point_id, "kind": found.kind.value, "wall_ns": found.wall_ns}
        )

    return await context.wait_until(
        "waiting for the master target to publish the point",
        listed,
        seconds=world.timing.point_seconds,
        late=lambda: PeerError(
            "the master target did not publish the application-consistent point in time",
            code="78144",
            possible_causes="it lags behind, or a gap is open at the mark",
            remedy="look at `failback item show` (gap, lag), then try again",
        ),
    )
