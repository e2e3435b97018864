"""What workflows reach outside the database: orders to components, fabrics, clocks; every call bounded.

Fabric calls block, so they run in threads under a time limit; orders are given fenced by the job's generation, waited
for in short slices (so that a cancel and a takeover are noticed), and withdrawn when the wait ends without a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs.context import JobCancelled, StepContext
from failback.configuration_server.registry import News, Orders, announce_item
from failback.configuration_server.workflows.inputs import FailoverInputs, ReprotectInputs
from failback.errors import FabricError, FailbackError, NotFoundError, PeerError
from failback.fabric.interfaces import Fabric, PowerState
from failback.model.components import OrderReport, OrderState
from failback.model.ids import OrderId
from failback.protection.readiness import Check
from failback.runtime import records
from failback.runtime.clock import Clock, SystemClock, boot_id

T = TypeVar("T")

Preflight = Callable[[str, ReprotectInputs | FailoverInputs, str], Awaitable[Sequence[Check]]]
"""``preflight(item_id, inputs, own_job_id)``: gather the facts and evaluate the readiness checks."""

SLICE_SECONDS = 1.0
ORDER_TIMED_OUT = "OrderTimedOut"


@dataclass(frozen=True, slots=True)
class Timing:
    """Limits of every wait, in seconds. A wait that reaches its limit fails the task with cause and remedy."""

    agent_seconds: float = 900.0
    """For the mobility service to be heard from, and to begin to capture."""
    order_seconds: float = 300.0
    """For an order that moves no data."""
    prepare_seconds: float = 3600.0
    """For preparing a point when no lease runs (the source is off already)."""
    resume_seconds: float = 60.0
    """For a master target to take released disks again before the source is started without it."""
    fabric_seconds: float = 120.0
    merge_seconds: float = 6 * 3600.0
    power_seconds: float = 120.0
    twin_seconds: float = 900.0
    """From power-on on premises to the first word of its mobility service."""
    stall_seconds: float = 1800.0
    """A synchronisation without any progress for so long has failed."""
    point_seconds: float = 120.0
    lease_seconds: float = 600.0
    connect_seconds: float = 30.0
    """For a component that is starting again to be reached, when the prerequisites are checked."""
    hold_seconds: float = 1.0
    """The longest that a replication group's mark may hold a machine still; then it goes on and the mark is void."""
    heard_seconds: float = 90.0
    """A heartbeat older than this is not a sign of life."""


@dataclass(frozen=True, slots=True)
class World:
    orders: Orders
    news: News
    fabrics: Mapping[str, Fabric]
    preflight: Preflight
    timing: Timing = field(default_factory=Timing)
    clock: Clock = field(default_factory=SystemClock)
    boot_id: str = field(default_factory=boot_id)

    def fabric(self, name: str) -> Fabric:
        found = self.fabrics.get(name)
        if found is None:
            raise NotFoundError(
                f"the fabric {name!r} is not configured",
                possible_causes="it was removed from the configuration server's configuration",
                remedy=f"configured are: {', '.join(self.fabrics) or 'none'}",
            )
        return found

    def announce(self, item: ItemRow) -> None:
        """Tell the item's components of a change now instead of at their next heartbeat."""
        announce_item(self.news, item)

    async def call(self, what: str, work: Callable[[], T], seconds: float = 0.0) -> T:
        """A blocking fabric call in a thread. Raises FabricError when it does not answer in time."""
        limit = seconds or self.timing.fabric_seconds
        try:
            async with asyncio.timeout(limit):
                return await asyncio.to_thread(work)
        except TimeoutError:
            raise FabricError(
                f"{what}: the fabric did not answer within {limit:g} s",
                code="FabricTimedOut",
                possible_causes="the hypervisor or its management service hangs",
                remedy="check the fabric, then restart the job",
                retryable=True,
            ) from None

    async def power(self, fabric_name: str, fabric_id: str) -> PowerState:
        fabric = self.fabric(fabric_name)
        return await self.call("reading the power state", lambda: fabric.power_state(fabric_id))


@dataclass(frozen=True, slots=True)
class Work:
    """One order: to whom, which, with which arguments, and how long its result may take."""

    component_id: str
    kind: str
    arguments: object
    seconds: float
    sentence: str
    """What is shown while waiting."""


async def carry_out(world: World, context: StepContext, work: Work, result: type[T]) -> T:
    """Give the order (or find it again) and wait for its result. Raises what the component reported, or PeerError late."""
    return records.decode(await _carry_out(world, context, work), result, f"result of {work.kind}")


async def carry_out_plainly(world: World, context: StepContext, work: Work) -> None:
    """Like :func:`carry_out` for an order whose result says nothing."""
    await _carry_out(world, context, work)


async def _carry_out(world: World, context: StepContext, work: Work) -> dict[str, Any]:
    order_id = await world.orders.give(
        work.component_id, work.kind, context.generation, work.arguments, context.key(work.kind), context.item_id
    )
    deadline = world.clock.monotonic() + work.seconds
    try:
        while True:
            await context.checkpoint()
            left = deadline - world.clock.monotonic()
            report = await _await_slice(world, order_id, max(0.01, min(left, SLICE_SECONDS)))
            if report.state is OrderState.SUCCEEDED:
                return report.result
            if left <= 0:
                raise _late(work)
            await context.progress(work.sentence, report.bytes_done, report.bytes_total)
    except (JobCancelled, PeerError):
        await world.orders.withdraw(order_id, "its job does not wait for it any more")
        raise


async def _await_slice(world: World, order_id: OrderId, seconds: float) -> OrderReport:
    """The report after at most ``seconds``. Raises the error that the component reported."""
    try:
        return await world.orders.await_result(order_id, seconds)
    except FailbackError:
        report = await world.orders.read(order_id)
        if report.state is OrderState.FAILED:
            raise
        return report


def _late(work: Work) -> PeerError:
    return PeerError(
        f"{work.sentence}: no result within {work.seconds:.0f} s",
        code=ORDER_TIMED_OUT,
        possible_causes="the component is away, overloaded or cannot reach the configuration server",
        remedy="check the component's service and its log, then restart the job",
    )
