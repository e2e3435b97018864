"""The orders of a master target: arguments in, replica work in a thread, result out. Each may be repeated.

Orders on one machine run one after the other. A *prepare* that waits for its mark holds nothing, and gives up when a
newer order on the machine comes: a failback that was called off must not roll back the disks when its mark arrives late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from failback.errors import ConflictError, StorageError
from failback.master_target.intake import Intake
from failback.master_target.replica import ATTACHED, Replica
from failback.master_target.replicas import Replicas
from failback.model import orders
from failback.model.components import Order
from failback.model.ids import MachineId
from failback.model.points import PointSelector
from failback.runtime import logs, records
from failback.transport.control import OrderWork, ReportProgress
from failback.transport.probe import probe

log = logs.get(__name__)

_POLL_SECONDS = 0.05


class Orders:
    """``work()`` is what :class:`failback.transport.control.ControlLoop` takes."""

    def __init__(self, replicas: Replicas, intake: Intake) -> None:
        self._replicas = replicas
        self._intake = intake

    def work(self) -> dict[str, OrderWork]:
        return {
            orders.PROBE: probe,
            orders.ATTACH_REPLICA: self.attach,
            orders.PREPARE_POINT: self.prepare,
            orders.RELEASE_REPLICA: self.release,
            orders.RESUME_REPLICA: self.resume,
            orders.COMMIT_POINT: self.commit,
            orders.DETACH_REPLICA: self.detach,
            orders.OPEN_VIEW: self.open_view,
            orders.CLOSE_VIEW: self.close_view,
            orders.SCRUB: self.scrub,
        }

    async def attach(self, order: Order, _: ReportProgress) -> dict[str, Any]:
        arguments = records.decode(order.arguments, orders.AttachReplica, order.kind)
        self._replicas.supersede(arguments.machine_id)
        async with self._replicas.lock(arguments.machine_id):
            attached = await asyncio.to_thread(self._replicas.attach, arguments)
        result: dict[str, Any] = records.encode(attached)
        return result

    async def prepare(self, order: Order, progress: ReportProgress) -> dict[str, Any]:
        arguments = records.decode(order.arguments, orders.PreparePoint, order.kind)
        machine_id = arguments.machine_id
        serial = self._replicas.supersede(machine_id)
        replica = self._replicas.find(machine_id)
        await self._applied(replica, arguments, serial)
        loop = asyncio.get_running_loop()

        def report(done: int, total: int) -> None:
            loop.call_soon_threadsafe(progress, done, total)

        async with self._replicas.lock(machine_id):
            self._check_newest(machine_id, serial)
            prepared = await asyncio.to_thread(replica.prepare, arguments.choice, report)
        disks = replica.journal.catalogue.disks_at(prepared.point.epoch)
        result: dict[str, Any] = records.encode(orders.PreparedPoint(prepared.point, prepared.bytes_rolled_back, disks))
        return result

    async def _applied(self, replica: Replica, arguments: orders.PreparePoint, serial: int) -> None:
        """Wait for the mark; without one until everything landed is applied, unless a catalogued point is named.

        Raises ConflictError, StorageError.
        """
        journal = replica.journal
        is_new_mark = bool(arguments.after_mark) and journal.mark(arguments.after_mark) is None
        if journal.rollback_phase and is_new_mark and replica.state == ATTACHED:
            async with self._replicas.lock(arguments.machine_id):  # the disks are at the point of an earlier failback
                self._check_newest(arguments.machine_id, serial)
                await asyncio.to_thread(replica.resume)
        while not journal.rollback_phase:
            self._check_newest(arguments.machine_id, serial)
            damage = journal.damage
            if damage is not None and arguments.after_mark:
                raise damage.error()  # the mark lies behind it
            if replica.problem and damage is None:
                raise StorageError(f"applying stands still: {replica.problem}", retryable=True)
            is_known = arguments.choice.selector is PointSelector.POINT
            if not arguments.after_mark and (is_known or journal.caught_up or not journal.started):
                return
            mark = journal.mark(arguments.after_mark) if arguments.after_mark else None
            if mark is not None and mark.published:
                return
            if mark is not None:
                raise ConflictError(
                    "the last mark lies in a gap of the stream: the replica is not consistent there",
                    code="MarkInGap",
                    possible_causes="blocks were still being re-read when the machine was frozen",
                    remedy="wait until the replica is consistent and fail back again",
                    retryable=True,
                )
            await asyncio.sleep(_POLL_SECONDS)

    def _check_newest(self, machine_id: MachineId, serial: int) -> None:
        if not self._replicas.is_newest(machine_id, serial):
            raise ConflictError("a newer order on this replica came", code="Superseded")

    async def release(self, order: Order, _: ReportProgress) -> dict[str, Any]:
        return await self._plain(order, lambda replica: replica.release(), ends_link="the replica is released")

    async def resume(self, order: Order, _: ReportProgress) -> dict[str, Any]:
        return await self._plain(order, lambda replica: replica.resume())

    async def commit(self, order: Order, _: ReportProgress) -> dict[str, Any]:
        return await self._plain(order, lambda replica: replica.commit(), ends_link="the failback was committed")

    async def _plain(self, order: Order, work: Callable[[Replica], None], *, ends_link: str = "") -> dict[str, Any]:
        machine_id = records.decode(order.arguments, orders.ReplicaOrder, order.kind).machine_id
        self._replicas.supersede(machine_id)
        async with self._replicas.lock(machine_id):
            replica = self._replicas.find(machine_id)
            if ends_link:
                self._intake.drop(machine_id, ConflictError(ends_link, code="ReplicaReleased", retryable=True))
                await self._intake.quiet(machine_id)
            await asyncio.to_thread(work, replica)
        return {}

    async def open_view(self, order: Order, progress: ReportProgress) -> dict[str, Any]:
        """Takes no turn of the machine's: a failback waits for no view, and a view for no failback."""
        arguments = records.decode(order.arguments, orders.OpenView, order.kind)
        replica = self._replicas.find(arguments.replica_of)
        loop = asyncio.get_running_loop()

        def report(done: int, total: int) -> None:
            loop.call_soon_threadsafe(progress, done, total)

        result: dict[str, Any] = records.encode(
            await asyncio.to_thread(self._replicas.views.open, arguments, replica, report)
        )
        return result

    async def scrub(self, order: Order, _: ReportProgress) -> dict[str, Any]:
        arguments = records.decode(order.arguments, orders.Scrub, order.kind)
        self._replicas.find(arguments.replica_of)
        self._replicas.scrubs.request(arguments.replica_of)
        return {}

    async def close_view(self, order: Order, _: ReportProgress) -> dict[str, Any]:
        arguments = records.decode(order.arguments, orders.CloseView, order.kind)
        await asyncio.to_thread(self._replicas.views.close_view, arguments.view_id)
        return {}

    async def detach(self, order: Order, _: ReportProgress) -> dict[str, Any]:
        machine_id = records.decode(order.arguments, orders.ReplicaOrder, order.kind).machine_id
        self._replicas.supersede(machine_id)
        async with self._replicas.lock(machine_id):
            self._intake.drop(
                machine_id, ConflictError("the replica is detached", code="ReplicaReleased", retryable=True)
            )
            await self._intake.quiet(machine_id)
            await asyncio.to_thread(self._replicas.detach, machine_id)
        return {}
