"""The heartbeat, assignment and order loop between a component and the configuration server.

A long poll listens for news; a second, short heartbeat goes out when the component has something to tell
(:meth:`ControlLoop.nudge`, a finished order). Assignments are applied one at a time, newest wins; a failing one is
tried again. Orders run as tasks of their own, at least once, and their results are repeated until the server stops
listing the order. While the server is away the component goes on with the assignment it has: ``assignment_file``
keeps it over a restart, bound to the hardware it was made for (D2). The talking has threads of its own: whatever else
fills the process's shared threads (five on a machine with one processor), it never makes a component silent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from failback import __version__
from failback.errors import FailbackError, StaleEpochError
from failback.model.components import Heartbeat, HeartbeatReply, Order, OrderReport, OrderState
from failback.model.ids import OrderId
from failback.runtime import host, logs, records
from failback.runtime.clock import SystemClock, boot_id
from failback.runtime.durable_files import PUBLIC, replace_file
from failback.transport.https import ControlConfig, HttpsClient
from failback.transport.identity import Identity
from failback.transport.renewal import CertificateKeeper

log = logs.get(__name__)

Assignment = TypeVar("Assignment")
ReportProgress = Callable[[int, int], None]
OrderWork = Callable[[Order, ReportProgress], Awaitable[dict[str, Any]]]

_LONGEST_BACKOFF_SECONDS = 30.0
_ANSWER_SECONDS = 15.0
_TALKING_THREADS = 2
"""The long poll and the short heartbeat."""


class ControlLoop(Generic[Assignment]):
    """See the module. ``status`` is called for each heartbeat and must not block."""

    def __init__(
        self,
        identity: Identity,
        config: ControlConfig,
        *,
        status: Callable[[], object],
        assignment_kind: type[Assignment],
        apply_assignment: Callable[[Assignment], Awaitable[None]],
        orders: Mapping[str, OrderWork],
        assignment_file: Path | None = None,
        on_known_as: Callable[[str], None] | None = None,
    ) -> None:
        self._identity = identity
        self._config = config
        self._status = status
        self._kind = assignment_kind
        self._apply = apply_assignment
        self._work = orders
        self._file = assignment_file
        self._on_known_as = on_known_as
        self._facts = host.gather()
        self._boot_id = boot_id()
        self._clock = SystemClock()
        self._reports: dict[OrderId, OrderReport] = {}
        self._running: dict[OrderId, asyncio.Task[None]] = {}
        self._newest_order: dict[str, int] = {}
        self._taken_generation = 0
        self._seen_generation = 0
        self._offered: tuple[int, Assignment] | None = None
        self._offer = asyncio.Event()
        self._nudged = asyncio.Event()
        self._listener: HttpsClient | None = None
        self._threads = ThreadPoolExecutor(_TALKING_THREADS, thread_name_prefix="control")

    def nudge(self) -> None:
        """Send a heartbeat now: the status changed in a way that somebody waits for."""
        self._nudged.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set. Never raises for a server that is away."""
        self._restore()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._listen(group)),
                    group.create_task(self._tell(group)),
                    group.create_task(self._apply_offers()),
                    group.create_task(CertificateKeeper(self._identity, self._config).run(), name="certificate"),
                ]
                await stop.wait()
                if self._listener is not None:
                    self._listener.abort()
                for task in (*tasks, *self._running.values()):
                    task.cancel()
        finally:
            self._threads.shutdown(wait=False)

    # --- talking ----------------------------------------------------------------------------------------------------

    async def _listen(self, group: asyncio.TaskGroup) -> None:
        self._listener = self._client()
        await self._heartbeats(group, self._listener, self._config.heartbeat_seconds, self._pause_briefly)

    async def _tell(self, group: asyncio.TaskGroup) -> None:
        await self._heartbeats(group, self._client(), 0.0, self._wait_for_nudge)

    async def _pause_briefly(self) -> None:
        await asyncio.sleep(0.05)  # bounds the rate when the server answers at once

    async def _wait_for_nudge(self) -> None:
        await self._nudged.wait()
        await asyncio.sleep(0.02)  # gather what happens at the same time into one heartbeat
        self._nudged.clear()

    async def _heartbeats(self, group: asyncio.TaskGroup, client: HttpsClient, wait_seconds: float,
                          pause: Callable[[], Awaitable[None]]) -> None:  # fmt: skip
        backoff = 0.5
        failing = ""
        while True:
            await pause()
            try:
                self._take(await self._exchange(client, wait_seconds), group)
            except FailbackError as error:  # away, refused, or of a version that speaks otherwise: the work goes on
                if failing != error.message:
                    log.warning("no heartbeat", reason=error.message, remedy=error.remedy)
                    failing = error.message
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS, max(1.0, self._config.heartbeat_seconds * 2))
                continue
            if failing:
                log.info("heartbeat is back")
                failing = ""
            backoff = 0.5

    async def _exchange(self, client: HttpsClient, wait_seconds: float) -> HeartbeatReply:
        heartbeat = Heartbeat(
            role=self._identity.role,
            hostname=self._facts.hostname,
            version=__version__,
            hardware_id=self._facts.hardware_id,
            boot_id=self._boot_id,
            os_family=self._facts.os_family,
            os_version=self._facts.os_version,
            kernel=self._facts.kernel,
            wall_ns=self._clock.wall_ns(),
            monotonic=self._clock.monotonic(),
            addresses=self._config.addresses,
            status=records.encode(self._status()),
            reports=tuple(self._reports.values()),
            assignment_generation=self._seen_generation,
            wait_seconds=wait_seconds,
            denied_digest=self._identity.denied.digest,
        )
        body = records.encode(heartbeat)
        post = partial(client.post, "/components/v1/heartbeat", body, timeout_seconds=wait_seconds + _ANSWER_SECONDS)
        answer = await asyncio.get_running_loop().run_in_executor(self._threads, post)
        return records.decode(answer, HeartbeatReply, "heartbeat answer")

    def _client(self) -> HttpsClient:
        return HttpsClient.of(self._identity, self._config.url)

    # --- taking what the server says --------------------------------------------------------------------------------

    def _take(self, reply: HeartbeatReply, group: asyncio.TaskGroup) -> None:
        if self._on_known_as is not None:
            self._on_known_as(reply.known_as)
        if reply.denied is not None:
            self._identity.denied.take(reply.denied)
        if reply.assignment is not None and reply.assignment_generation > self._seen_generation:
            assignment = records.decode(reply.assignment, self._kind, "assignment")
            self._seen_generation = reply.assignment_generation
            self._offered = (reply.assignment_generation, assignment)
            self._offer.set()
        listed = {order.order_id for order in reply.orders}
        for order_id in [known for known in self._reports if known not in listed]:
            if self._reports[order_id].state in (OrderState.SUCCEEDED, OrderState.FAILED):
                del self._reports[order_id]  # the server has the result
        for order in reply.orders:
            if order.order_id not in self._reports:
                self._start(order, group)

    def _start(self, order: Order, group: asyncio.TaskGroup) -> None:
        self._reports[order.order_id] = OrderReport(order.order_id, OrderState.RUNNING)
        task = group.create_task(self._execute(order), name=f"order {order.kind}")
        self._running[order.order_id] = task
        task.add_done_callback(lambda _: self._running.pop(order.order_id, None))

    async def _execute(self, order: Order) -> None:
        def progress(done: int, total: int) -> None:
            self._reports[order.order_id] = replace(self._reports[order.order_id], bytes_done=done, bytes_total=total)

        log.info("order begins", kind=order.kind, order_id=order.order_id)
        try:
            result = await self._work_for(order)(order, progress)
            report = OrderReport(order.order_id, OrderState.SUCCEEDED, result)
        except FailbackError as error:
            report = OrderReport(order.order_id, OrderState.FAILED, error=error.as_dict())
        except Exception as error:  # the border of one order: it fails, the component goes on
            log.exception("order failed unexpectedly", kind=order.kind, order_id=order.order_id)
            wrapped = FailbackError(f"{order.kind} failed: {error!r}", remedy="see the component's log")
            report = OrderReport(order.order_id, OrderState.FAILED, error=wrapped.as_dict())
        last = self._reports[order.order_id]
        self._reports[order.order_id] = replace(report, bytes_done=last.bytes_done, bytes_total=last.bytes_total)
        self.nudge()

    def _work_for(self, order: Order) -> OrderWork:
        work = self._work.get(order.kind)
        if work is None:
            raise FailbackError(
                f"this {self._identity.role.value} does not know the order {order.kind!r}",
                code="UnknownOrder",
                remedy=f"upgrade it: it runs version {__version__}",
            )
        machine = str(order.arguments.get("machine_id", ""))
        newest = self._newest_order.get(machine, 0)
        if order.generation < newest:
            raise StaleEpochError(
                f"order {order.kind} comes from generation {order.generation}, but generation {newest} has spoken already",
                remedy="none: a newer job owns this machine",
            )
        self._newest_order[machine] = order.generation
        return work

    # --- assignments ------------------------------------------------------------------------------------------------

    async def _apply_offers(self) -> None:
        while True:
            await self._offer.wait()
            self._offer.clear()
            offered = self._offered
            if offered is None:
                continue
            generation, assignment = offered
            try:
                await self._apply(assignment)
            except FailbackError as error:
                log.error("assignment could not be taken", code=error.code, reason=error.message, remedy=error.remedy)
                await self._offer_again()
                continue
            except OSError:
                log.exception("assignment could not be taken")
                await self._offer_again()
                continue
            self._taken_generation = generation
            try:
                await asyncio.to_thread(self._remember, generation, assignment)
            except OSError as error:
                log.error("assignment cannot be remembered: a restart will not know it", reason=str(error))
            self.nudge()

    async def _offer_again(self) -> None:
        """The same one again, or a newer one, in a moment."""
        await asyncio.sleep(2.0)
        self._offer.set()

    def _remember(self, generation: int, assignment: Assignment) -> None:
        if self._file is None:
            return
        content = {
            "hardware_id": self._facts.hardware_id,
            "generation": generation,
            "assignment": records.encode(assignment),
        }
        replace_file(self._file, json.dumps(content).encode("utf-8"), PUBLIC)

    def _restore(self) -> None:
        """Take the remembered assignment, as something older than whatever the server will say."""
        if self._file is None or not self._file.exists():
            return
        try:
            stored = records.parse_json(self._file.read_text(encoding="utf-8"))
            if stored["hardware_id"] != self._facts.hardware_id:
                log.warning("remembered assignment belongs to other hardware and is ignored")
                return
            assignment = records.decode(stored["assignment"], self._kind, str(self._file))
        except (OSError, ValueError, KeyError, TypeError, FailbackError) as error:
            log.warning("remembered assignment cannot be read and is ignored", reason=str(error))
            return
        self._offered = (0, assignment)
        self._offer.set()
