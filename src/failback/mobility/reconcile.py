"""Makes the machine follow its assignment (D2): captures and sends nothing until told so, and what it is told then.

One loop (:meth:`Reconciler.run`) owns the capture: it opens the session on the assigned disks, proves it by a self-test, runs
the stream, and begins anew when the assignment changes or something failed. An inactive assignment ends the capture and
removes its pins; no assignment at all (a restarted agent whose configuration server is away) leaves them as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from failback.errors import ConflictError, FailbackError, NotSupportedError
from failback.mobility import facts
from failback.mobility.boot_facts import BootFacts
from failback.mobility.capture import pins
from failback.mobility.capture.comparison import ComparisonSession
from failback.mobility.capture.session import CaptureSession
from failback.mobility.capture.source import Source
from failback.mobility.capture.values import CaptureDisk, SelfTest
from failback.mobility.config import MobilityConfig
from failback.mobility.giving_way import GivingWay, Pressure
from failback.mobility.group import GroupMember
from failback.mobility.hold import release_left_over
from failback.mobility.leases import Leases, Running
from failback.mobility.memory import MemoryFile
from failback.mobility.periodic import Periodic
from failback.mobility.scrubs import Scrubs
from failback.mobility.selftest import self_test_without_capture
from failback.mobility.stream import Stream
from failback.model import orders
from failback.model.bandwidth import NO_LIMIT
from failback.model.components import DiskFacts, MobilityAssignment, MobilityStatus, Order
from failback.model.orders import SelfTestResult
from failback.runtime import logs, records
from failback.transport.https import HttpsClient
from failback.transport.identity import Identity
from failback.transport.limits import Pacer
from failback.transport.probe import probe

log = logs.get(__name__)

ENDING_CODES = frozenset({"JournalReplaced", "RedoDamaged", "ItemsMissing", "SpoolDamaged"})
"""Errors of a stream that only a new epoch cures."""
RETRY_SECONDS = 5.0
DISKS_EVERY_SECONDS = 3.0

OrderWork = Callable[[Order, Callable[[int, int], None]], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class _State:
    capture: str = "idle"
    reason: str = ""
    self_test: str = "not-run"


class Reconciler:
    """``apply`` takes an assignment, ``status`` says how things are, ``orders`` are what it executes."""

    def __init__(self, config: MobilityConfig, identity: Identity, changed: Callable[[], None]) -> None:
        self._config = config
        self._identity = identity
        self._changed = changed
        self._memory = MemoryFile(config.runtime_directory)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="capture")
        self._state = _State(self_test=self._memory.value.self_test)
        self._wanted: MobilityAssignment | None = None
        self._news = asyncio.Event()
        self._stream: Stream | None = None
        self._earlier: Stream | None = None
        self._session: Source | None = None
        self._devices: dict[int, str] = {}
        self._disks: tuple[DiskFacts, ...] = ()
        self._firmware = facts.firmware()
        self._boot_facts = BootFacts()
        self._pacer = Pacer()
        self._ended: tuple[int, str] = (0, "")
        """The epoch whose stream cannot go on, and why."""
        self._leases = Leases(config, self._memory, self._running, changed)
        self._giving_way = GivingWay(config.niceness)
        self._scrubs = Scrubs(config, self._memory, lambda: self._stream)

    # --- for the control loop ---------------------------------------------------------------------------------------

    async def apply(self, assignment: MobilityAssignment) -> None:
        """Take the newest assignment; the loop follows it. A process server that is only away keeps its address."""
        known = self._wanted
        if (
            assignment.active
            and assignment.process_server is None
            and known is not None
            and known.epoch == assignment.epoch
        ):
            assignment = replace(assignment, process_server=known.process_server)
        self._pacer.limit = assignment.bandwidth  # needs no other stream
        assignment = replace(assignment, bandwidth=NO_LIMIT)
        if assignment != self._wanted:
            self._wanted = assignment
            self._news.set()

    def orders(self) -> dict[str, OrderWork]:
        return {
            orders.PROBE: probe,
            orders.SELF_TEST: self._self_test,
            orders.APP_CONSISTENT_MARK: self._insisting(self._leases.app_consistent_mark),
            orders.FREEZE_LEASE: self._insisting(self._leases.freeze_lease),
            orders.THAW: self._leases.thaw,
            orders.SCRUB: self._scrubs.order,
        }

    def status(self) -> MobilityStatus:
        state, stream, wanted = self._state, self._stream, self._wanted
        basic = MobilityStatus(
            capture=state.capture, capture_reason=state.reason, self_test=state.self_test, disks=self._disks,
            freeze="frozen" if self._leases.frozen else "", firmware=self._firmware,
            machine=self._boot_facts.now(may_read=not self._leases.frozen),
        )  # fmt: skip
        if wanted is None or not wanted.active:
            return basic
        if stream is None:
            ended = self._ended[0] == wanted.epoch
            return replace(basic, epoch=wanted.epoch, problem=self._ended[1]) if ended else basic
        return MobilityStatus(
            capture=state.capture, capture_reason=stream.problem or state.reason, self_test=state.self_test,
            disks=self._disks, epoch=stream.assignment.epoch, pass_id=stream.assignment.pass_id,
            sync_done=stream.pass_done, sync=stream.progress(), sent_sequence=stream.sent_sequence,
            spooled_sequence=stream.spooled_sequence, landed_sequence=stream.landed_sequence,
            landed_ring=stream.landed_ring, backlog_bytes=stream.backlog_bytes, bytes_changed=stream.bytes_changed,
            bytes_sent=stream.bytes_sent, lag=stream.figures(), gap=stream.gap, freeze=basic.freeze,
            linked=stream.linked, firmware=self._firmware, machine=basic.machine, problem=self._problem(stream),
            scrub=stream.scrub_status(),
            comparison=stream.comparison, bandwidth=self._pacer.figures(), figures=stream.stream_figures(),
        )  # fmt: skip

    def _problem(self, stream: Stream) -> str:
        """Why the stream's epoch is over, if it is: only what a new epoch cures."""
        if self._ended[0] == stream.assignment.epoch:
            return self._ended[1]
        return stream.problem if stream.problem.partition(":")[0] in ENDING_CODES else ""

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. Leaves the capture going in the kernel: a restarted agent goes on from it (D11)."""
        self._disks = await asyncio.to_thread(facts.disks, self._config.disks, self._config.exclude_disks)
        self._changed()
        await asyncio.to_thread(release_left_over, self._config.runtime_directory)
        settling = asyncio.create_task(self._leases.settle(), name="post-script owed")
        scrubbing = asyncio.create_task(self._scrubs.run(), name="scrubs")
        watching = asyncio.create_task(self._watch_disks(), name="disks")
        yielding = asyncio.create_task(self._giving_way.run(self._pressure), name="giving way")
        try:
            if self._wanted is None:
                await self._first_self_test()
            while True:
                self._news.clear()
                wanted = self._wanted
                if wanted is None:
                    await self._news.wait()
                elif not wanted.active:
                    await self._end_capture()
                    await self._news.wait()
                elif wanted.process_server is None:
                    self._state.reason = "no process server is known for this machine yet"
                    await self._news.wait()  # what is captured already stays captured
                else:
                    await self._protect(wanted)
        finally:
            settling.cancel()
            scrubbing.cancel()
            watching.cancel()
            yielding.cancel()
            await self._leases.end()
            await asyncio.shield(self._close())
            self._thread.shutdown(wait=True)

    async def _watch_disks(self) -> None:
        """Disks that appear, grow or go are told as they are seen; what follows from it the configuration server decides."""
        while True:
            await asyncio.sleep(DISKS_EVERY_SECONDS)
            try:
                seen = await asyncio.to_thread(facts.disks, self._config.disks, self._config.exclude_disks)
            except OSError as error:  # one went while it was looked at
                log.info("the disks cannot be listed now", reason=str(error))
                continue
            replaced = self._session.replaced() if self._session is not None else []
            if replaced:
                log.error(
                    "another device lies under the name of a captured disk: it is compared", disks=",".join(replaced)
                )
                self._news.set()  # opened anew
            if seen != self._disks:
                log.info("the disks changed", disks=",".join(f"{disk.device}:{disk.size_bytes}" for disk in seen))
                self._disks = seen
                self._changed()

    async def _protect(self, wanted: MobilityAssignment) -> None:
        """Run the stream until the assignment changes; a failure is shown, and tried again after a pause."""
        try:
            stream = await self._open(wanted)
            running = asyncio.create_task(stream.run(), name="stream")
            news = asyncio.create_task(self._news.wait(), name="assignment")
            member = asyncio.create_task(self._take_part(stream), name="replication group")
            try:
                await asyncio.wait({running, news}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    await running
            finally:
                for task in (member, running, news):
                    task.cancel()
                await asyncio.gather(member, running, news, return_exceptions=True)
                self._earlier, self._stream = stream, None
                await self._close()
        except (FailbackError, OSError, BaseExceptionGroup) as error:
            self._fail(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS):
                    await self._news.wait()

    async def _take_part(self, stream: Stream) -> None:
        """In the common marks of the machine's replication group, if it is in one."""
        if not stream.assignment.group_id:
            return
        identity, config = self._identity, self._config
        client = HttpsClient(
            config.configuration_server.url, ca_file=identity.ca_path,
            certificate=(identity.certificate_path, identity.key_path),
        )  # fmt: skip
        member = GroupMember(
            stream, client, devices=tuple(self._devices.values()), named=config.hold_groups,
            runtime_directory=config.runtime_directory, leases=self._leases,
        )  # fmt: skip
        await member.run()

    def _fail(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        reason = error.message if isinstance(error, FailbackError) else repr(error)
        remedy = error.remedy if isinstance(error, FailbackError) else ""
        if not isinstance(error, (FailbackError, OSError)):
            log.error("the stream stopped unexpectedly", error=repr(error))
            raise error
        if isinstance(error, FailbackError) and error.code in ENDING_CODES and self._wanted is not None:
            self._ended = (self._wanted.epoch, f"{error.code}: {error.message}")
        if reason != self._state.reason:
            log.error("protection is interrupted", reason=reason, remedy=remedy)
        self._state.capture, self._state.reason = "failed", f"{reason}. {remedy}".strip()
        self._changed()

    async def _open(self, wanted: MobilityAssignment) -> Stream:
        self._state.capture, self._state.reason = "starting", ""
        self._disks = await asyncio.to_thread(facts.disks, self._config.disks, self._config.exclude_disks)
        by_match = {disk.device_match: disk for disk in self._disks}
        capture_disks = []
        for disk in wanted.disks:
            found = by_match.get(disk.device_match)
            if found is None or found.size_bytes < disk.size_bytes:
                raise NotSupportedError(
                    f"disk {disk.device_match} of {disk.size_bytes} bytes is not on this machine as it was assigned",
                    possible_causes="it was removed, replaced or resized",
                    remedy="bring the disk back, or protect the machine anew",
                )
            capture_disks.append(CaptureDisk(disk.index, found.device, disk.size_bytes))
        self._devices = {disk.index: disk.device for disk in capture_disks}
        every_seconds = wanted.comparison_seconds
        session = await self._call(self._open_comparison if every_seconds else self._open_session, capture_disks)
        self._session = session
        if every_seconds:
            tested = await self._call(session.self_test, None)
            if not tested.passed:
                raise NotSupportedError(tested.detail, code="DiskNotCounted", remedy="exclude the disk")
        elif not session.reattached:
            result = await self._call(session.self_test, None)
            self._note_self_test(result)
            if not result.passed:
                await self._end_capture()
                raise NotSupportedError(
                    f"the capture's self-test failed: {result.detail}",
                    remedy="report kernel version and this sentence; nothing is captured",
                )
        self._state.capture = "comparing" if every_seconds else "capturing"
        self._stream = Stream(
            session, self._thread, wanted, devices=self._devices, identity=self._identity, memory=self._memory,
            compression=self._config.compression, window_bytes=self._config.unacknowledged_megabytes << 20,
            changed=self._changed, pace=self._pacer.pace, periodic=Periodic(session, every_seconds) if every_seconds else None,
        )  # fmt: skip
        if self._earlier is not None:
            self._stream.carry_on(self._earlier)
            self._earlier = None
        self._changed()
        return self._stream

    def _open_session(self, disks: list[CaptureDisk]) -> CaptureSession:
        began = time.monotonic()
        session = CaptureSession.open(
            disks, ring_bytes=self._config.ring_megabytes << 20, pin_directory=self._config.pin_directory
        )
        log.info("capture is open", reattached=session.reattached, disks=",".join(disk.device for disk in disks),
                 milliseconds=round((time.monotonic() - began) * 1000, 1))  # fmt: skip
        return session

    def _open_comparison(self, disks: list[CaptureDisk]) -> ComparisonSession:
        """Without capture, as assigned. A capture that was begun before ends: it would only fill its ring."""
        if self._config.pin_directory.is_dir():
            pins.remove(self._config.pin_directory)
        log.warning("replicated by periodic comparison: nothing is captured", disks=",".join(d.device for d in disks))
        return ComparisonSession.open(disks)

    async def _call(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await self._call(session.close)

    async def _end_capture(self) -> None:
        """Stop capturing for good: this machine is not, or no longer, the live side."""
        session, self._session = self._session, None
        if session is not None:
            await self._call(session.detach)
        elif self._config.pin_directory.is_dir():
            await self._call(pins.remove, self._config.pin_directory)
        self._state.capture, self._state.reason = "idle", ""
        self._changed()

    # --- orders -----------------------------------------------------------------------------------------------------

    def _insisting(self, work: OrderWork) -> OrderWork:
        """The machine waits for the order: it begins, and what it starts goes on, with the ordinary share of the processor."""

        async def insist(order: Order, progress: Callable[[int, int], None]) -> dict[str, Any]:
            self._giving_way.insist()
            return await work(order, progress)

        return insist

    def _pressure(self) -> Pressure | None:
        stream = self._stream
        if stream is None or stream.assignment.group_id or self._leases.occupied():
            return None
        return stream.pressure()

    def _running(self) -> Running:
        if self._stream is None:
            raise ConflictError("this machine is not being captured now", code="NotCapturing",
                                possible_causes=self._state.reason, remedy="see the item's health")  # fmt: skip
        return Running(self._stream, tuple(self._devices.values()))

    async def _self_test(self, order: Order, progress: Callable[[int, int], None]) -> dict[str, Any]:
        if self._session is not None:
            result: SelfTest = await self._call(self._session.self_test, None)
        else:
            result = await self._call(self_test_without_capture)
        self._note_self_test(result)
        encoded: dict[str, Any] = records.encode(SelfTestResult(result.passed, result.detail))
        return encoded

    async def _first_self_test(self) -> None:
        """Before anything is assigned, so that readiness can be judged without touching a disk."""
        self._note_self_test(await self._call(self_test_without_capture))

    def _note_self_test(self, result: SelfTest) -> None:
        self._state.self_test = "passed" if result.passed else "failed"
        self._memory.update(self_test=self._state.self_test)
        if not result.passed and self._state.capture == "idle":
            self._state.reason = result.detail
        log.info("self-test", passed=result.passed, detail=result.detail)
        self._changed()
