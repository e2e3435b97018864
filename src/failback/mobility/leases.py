"""Marks that need the machine to hold still: application-consistent points (D18) and the freeze lease of a failback (D20).

Order of things: pre-script, wait until the stream has no gap, freeze, mark, (lease: landed, stay frozen), thaw,
post-script. A lease's mark is begun at most once in the life of a boot: when the agent dies under a lease the watchdog
thaws, and the repeated order fails with ``FreezeLeaseLost`` instead of freezing a second time behind the configuration
server's back. A pre-script that was begun is always followed by its post-script, by the next life of the agent if need be
(``settle``): an application that was told to hold still is not left so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from failback.errors import ConflictError, FailbackError, FreezeError
from failback.mobility.config import MobilityConfig
from failback.mobility.freeze import Frozen, freeze, plan_for, run_script, sync_other
from failback.mobility.marks import Placed
from failback.mobility.memory import MemoryFile
from failback.mobility.stream import Stream
from failback.model.components import Order
from failback.model.orders import AppConsistentMark, FreezeLease, Marked
from failback.model.stream import MarkKind
from failback.runtime import faults, logs, records

log = logs.get(__name__)

BEGIN_SECONDS = 20.0
"""For a stream that is being opened (the service or its link has just come back) before an order is refused."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a mark needs of the running protection."""

    stream: Stream
    devices: tuple[str, ...]


class Leases:
    """Executes the orders; one at a time. ``running`` raises when nothing is being captured."""

    def __init__(self, config: MobilityConfig, memory: MemoryFile, running: Callable[[], Running],
                 changed: Callable[[], None]) -> None:  # fmt: skip
        self._config = config
        self._memory = memory
        self._running = running
        self._changed = changed
        self.exclusive = asyncio.Lock()
        """Taken by whatever holds the machine still: one thing does so at a time."""
        self._hold: Frozen | None = None
        self._beginning: Frozen | None = None
        self._thaws = 0
        self._after: asyncio.Task[None] | None = None

    @property
    def frozen(self) -> bool:
        return self._hold is not None and not self._hold.ended.is_set()

    def occupied(self) -> str:
        """Why the machine cannot be held still for something else now; empty when it can."""
        return "a freeze lease is held" if self.frozen else "a freeze is under way" if self.exclusive.locked() else ""

    async def app_consistent_mark(self, order: Order, progress: Callable[[int, int], None]) -> dict[str, Any]:
        arguments = records.decode(order.arguments, AppConsistentMark, "app-consistent-mark")
        async with self.exclusive:
            self._refuse_while_frozen()
            running = await self._when_running()
            deadline = time.monotonic() + max(arguments.limit_seconds, self._config.script_timeout_seconds)
            plan = await asyncio.to_thread(plan_for, running.devices)
            await self._before("app-consistent", then="app-consistent")
            try:
                await _until_quiet(running.stream, deadline, arguments.limit_seconds)
                hold = await freeze(plan, arguments.limit_seconds)
                faults.point("mobility.frozen")
                try:
                    placed = await running.stream.mark(MarkKind.APP_CONSISTENT, arguments.mark_id, hold.check)
                    hold.check()
                finally:
                    await hold.thaw()
            finally:
                await self._afterwards("app-consistent")
            return self._marked(order, placed, running, hold.frozen_seconds, plan.not_freezable + hold.unsupported)

    async def freeze_lease(self, order: Order, progress: Callable[[int, int], None]) -> dict[str, Any]:
        arguments = records.decode(order.arguments, FreezeLease, "freeze-lease")
        async with self.exclusive:
            self._refuse_while_frozen()
            if arguments.mark_id in self._memory.value.lease_marks:
                raise FreezeError("this freeze lease was begun before and was lost", code="FreezeLeaseLost",
                                  possible_causes="the mobility service was restarted under the lease",
                                  remedy="repeat the failback: it gives a new mark", retryable=True)  # fmt: skip
            thaws = self._thaws
            running = await self._when_running()
            self._memory.update(lease_marks=(*self._memory.value.lease_marks[-15:], arguments.mark_id))
            plan = await asyncio.to_thread(plan_for, running.devices)
            deadline = time.monotonic() + arguments.lease_seconds
            await self._before("failback", then="failback-cancelled")
            try:
                await _until_quiet(running.stream, deadline, arguments.lease_seconds)
                await asyncio.to_thread(sync_other, plan.not_freezable)
                hold = await freeze(plan, max(1.0, deadline - time.monotonic()))
                self._beginning = hold
                faults.point("mobility.frozen")
                try:
                    if self._thaws != thaws:
                        raise FreezeError("a thaw was ordered meanwhile", code="FreezeLeaseLost", retryable=True)
                    placed = await running.stream.mark(MarkKind.FINAL, arguments.mark_id, hold.check)
                    await running.stream.landed(placed.sequence, hold.check)
                    hold.check()
                except BaseException:
                    await hold.thaw()
                    raise
            except BaseException:
                with contextlib.suppress(FreezeError):
                    await self._afterwards("failback-cancelled")
                raise
            self._hold = hold
            self._after = asyncio.create_task(self._after_lease(hold), name="freeze lease")
            self._changed()
            return self._marked(order, placed, running, 0.0, plan.not_freezable + hold.unsupported)

    async def _when_running(self) -> Running:
        """The stream to mark; a service that has just started again, or looks for its link, gets a moment to find it."""
        deadline = time.monotonic() + BEGIN_SECONDS
        while True:
            try:
                return self._running()
            except ConflictError:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.2)

    async def thaw(self, order: Order, progress: Callable[[int, int], None]) -> dict[str, Any]:
        await self.end()
        return {}

    async def end(self) -> None:
        """Thaw if a lease is held; returns when the post-script ran."""
        self._thaws += 1
        for hold in (self._beginning, self._hold):
            if hold is not None:
                await hold.thaw()
        if self._after is not None:
            await self._after
            self._after = None

    async def _after_lease(self, hold: Frozen) -> None:
        await hold.ended.wait()
        self._changed()
        try:
            await self._afterwards("failback-cancelled")
        except FailbackError as error:
            log.error("the post-script failed", reason=error.message, remedy=error.remedy)

    async def settle(self) -> None:
        """Run the post-script that an earlier life of the agent, killed since its pre-script, has left owing."""
        occasion = self._memory.value.post_script_owed
        if not occasion:
            return
        async with self.exclusive:
            log.warning(
                "this service was killed between the scripts of a mark: running the post-script", occasion=occasion
            )
            try:
                await self._afterwards(occasion)
            except FailbackError as error:
                log.error("the post-script failed", reason=error.message, remedy=error.remedy)

    async def _before(self, occasion: str, *, then: str) -> None:
        """The pre-script, with the occasion of its post-script remembered first. One that fails cleans up by itself."""
        self._memory.update(post_script_owed=then if self._config.post_script else "")
        try:
            await self._script(self._config.pre_script, occasion)
        except FailbackError:
            self._memory.update(post_script_owed="")
            raise

    async def _afterwards(self, occasion: str) -> None:
        await self._script(self._config.post_script, occasion)
        self._memory.update(post_script_owed="")

    async def _script(self, script: str, occasion: str) -> None:
        await run_script(script, occasion, limit_seconds=self._config.script_timeout_seconds)

    def _refuse_while_frozen(self) -> None:
        if self.frozen:
            raise ConflictError("a freeze lease is held", remedy="wait for its end, or thaw first")

    def _marked(self, order: Order, placed: Placed, running: Running, frozen_seconds: float,
                not_frozen: tuple[str, ...]) -> dict[str, Any]:  # fmt: skip
        marked = Marked(
            mark_id=order.arguments["mark_id"], epoch=running.stream.assignment.epoch, sequence=placed.sequence,
            ring=placed.ring, frozen_milliseconds=round(frozen_seconds * 1000, 3), not_frozen=not_frozen,
        )  # fmt: skip
        encoded: dict[str, Any] = records.encode(marked)
        return encoded


async def _until_quiet(stream: Stream, deadline: float, limit_seconds: float) -> None:
    """Wait for the stream to have no gap, before the machine is held still for it."""
    while reason := stream.waits_for(limit_seconds):
        if time.monotonic() > deadline:
            raise FreezeError(
                f"no consistent mark is possible now: {reason}",
                possible_causes="a comparison is running, the ring overflowed, or the link is down",
                remedy="wait until the item is protected without a gap",
                retryable=True,
            )
        await asyncio.sleep(0.1)
