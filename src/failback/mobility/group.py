"""A machine's part in the common marks of its replication group (D19).

``run`` tells the configuration server that this machine could hold still (or why not), and waits. When a mark is due for all
members it walks through the phases of :mod:`failback.model.groups`: let the stream rest, hold the machine, put the mark, let
everything run again. Whatever fails, is late or is not answered on the way ends the hold at once and makes the mark void; the
stream itself never depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from failback.errors import FailbackError, FreezeError, PeerError
from failback.mobility.hold import HoldTimes, MachineHold, plan_hold
from failback.mobility.leases import Leases
from failback.mobility.stream import Stream
from failback.model.groups import HoldAction, HoldPhase, HoldReply, HoldStep
from failback.model.ids import MarkId
from failback.runtime import faults, logs, records
from failback.transport.https import HttpsClient

log = logs.get(__name__)
T = TypeVar("T")

PATH = "/components/v1/group-hold"
ARMED_SECONDS = 60.0
"""For an answer to ``armed``: the server holds it until a mark is due, or some seconds."""
PREPARED_SECONDS = 15.0
"""For all members' streams to rest; nothing is held yet."""
GAP_SECONDS = 3.0
REST_SECONDS = 3.0
RELEASED_SECONDS = 10.0
RETRY_SECONDS = 1.0


class GroupMember:
    """One machine in one group, beside one stream."""

    def __init__(self, stream: Stream, client: HttpsClient, *, devices: tuple[str, ...], named: tuple[str, ...],
                 runtime_directory: Path, leases: Leases) -> None:  # fmt: skip
        self._stream = stream
        self._client = client
        self._devices = devices
        self._named = named
        self._runtime_directory = runtime_directory
        self._leases = leases
        self._hold: MachineHold | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="group")
        """Its own: nothing else may stand before a step of a hold."""

    async def run(self) -> None:
        """Until cancelled. Never raises otherwise: a machine outside of its group's marks is still protected."""
        shown = ""
        try:
            while True:
                try:
                    reply = await self._armed()
                    if reply.action is HoldAction.PREPARE:
                        await self._mark(reply)
                    shown = ""
                except FailbackError as error:
                    if error.message != shown:
                        log.warning("no part in the group's marks now", reason=error.message, remedy=error.remedy)
                        shown = error.message
                    await asyncio.sleep(RETRY_SECONDS)
                except Exception:  # a defect here must not end the stream
                    log.exception("the part in the group's marks failed unexpectedly")
                    await asyncio.sleep(30 * RETRY_SECONDS)
        finally:
            await asyncio.shield(self._close())

    async def _armed(self) -> HoldReply:
        reason = self._stream.unmarkable() or self._leases.occupied()
        try:
            await self._call(self._arm)
        except FreezeError as error:
            reason = error.message
        reply = await self._say(HoldStep(HoldPhase.ARMED, **self._who(), reason=reason), ARMED_SECONDS)
        if reason:
            await asyncio.sleep(RETRY_SECONDS)
        return reply

    def _arm(self) -> None:
        """Have a watchdog ready and know what would be frozen. In the thread."""
        plan = plan_hold(self._devices, self._named)
        if self._hold is not None and (self._hold.lost or self._hold.plan != plan):
            self._end_hold()
        if self._hold is None:
            self._hold = MachineHold(plan, self._runtime_directory)
        else:
            self._hold.look()

    def _end_hold(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.close()

    async def _mark(self, order: HoldReply) -> None:
        """One round. Raises PeerError when the server cannot be told how it ended: then it counts as void there too."""
        reason, times = "", HoldTimes(0.0, 0.0)
        try:
            async with self._leases.exclusive:
                times = await self._walk(order)
        except (FailbackError, OSError) as error:
            reason = error.message if isinstance(error, FailbackError) else str(error)
            log.info("no common mark", mark=order.mark_id, reason=reason)
        step = HoldStep(
            HoldPhase.RELEASED, **self._who(), mark_id=order.mark_id, reason=reason,
            enter_milliseconds=times.enter_milliseconds, held_milliseconds=times.held_milliseconds,
        )  # fmt: skip
        await self._say(step, RELEASED_SECONDS)
        log.debug("released", mark=order.mark_id, held_milliseconds=times.held_milliseconds, reason=reason)

    async def _walk(self, order: HoldReply) -> HoldTimes:
        """Prepared, held, marked, released. Raises when the mark is void; the machine runs then, as it does afterwards."""
        hold, stream, mark_id, limit = self._hold, self._stream, order.mark_id, order.limit_seconds
        assert hold is not None
        await self._until_markable()
        await stream.rest(REST_SECONDS)
        try:
            await self._go_with(HoldPhase.PREPARED, mark_id, HoldAction.HOLD, PREPARED_SECONDS)
            try:
                await self._call(hold.enter, limit)
                faults.point("group.held")
                await self._go_with(HoldPhase.HELD, mark_id, HoldAction.MARK, limit)
                hold.check()
                faults.point("group.before_mark")
                ring = await stream.put_common_mark(mark_id)
                hold.check()
                faults.point("group.marked")
                await self._go_with(HoldPhase.MARKED, mark_id, HoldAction.RELEASE, limit, ring=ring)
                return await self._call(hold.leave)
            finally:
                if hold.held:
                    with contextlib.suppress(FailbackError):
                        await asyncio.shield(self._call(hold.leave))
        finally:
            stream.go_on()

    async def _until_markable(self) -> None:
        """A gap that is open now may be over in a moment, and nobody is held yet. Raises FreezeError when it is not."""
        deadline = time.monotonic() + GAP_SECONDS
        while unfit := self._stream.unmarkable():
            if time.monotonic() >= deadline:
                raise FreezeError(unfit, retryable=True)
            await asyncio.sleep(0.05)

    async def _go_with(
        self, phase: HoldPhase, mark_id: MarkId, wanted: HoldAction, seconds: float, ring: int = 0
    ) -> None:
        """Say a phase and wait until all members said it. Raises FreezeError when the answer is another than ``wanted``."""
        reply = await self._say(HoldStep(phase, **self._who(), mark_id=mark_id, ring=ring), seconds)
        if reply.action is not wanted:
            raise FreezeError("the common mark was given up", code="HoldLost", retryable=True)

    def _who(self) -> dict[str, Any]:
        assignment = self._stream.assignment
        return {"group_id": assignment.group_id, "epoch": assignment.epoch}

    async def _say(self, step: HoldStep, seconds: float) -> HoldReply:
        """Raises PeerError when there is no answer in time."""
        body = records.encode(step)
        try:
            answer = await self._call(lambda: self._client.post(PATH, body, timeout_seconds=seconds))
        except asyncio.CancelledError:
            self._client.abort()  # the thread waits for the answer, and a machine may be held
            raise
        try:
            return records.decode(answer, HoldReply, "group hold answer")
        except FailbackError as error:
            raise PeerError(error.message) from error

    async def _call(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _close(self) -> None:
        await self._call(self._end_hold)
        self._thread.shutdown(wait=False)
        self._client.close()
