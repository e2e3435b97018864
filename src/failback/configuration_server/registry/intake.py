"""Heartbeats: storing what components say and answering what they should do.

A heartbeat from other hardware than the item's live side (a twin with a copy of the agent's certificate, D2) is recorded apart,
answered ``other-hardware`` with a silent assignment and no orders, and never touches the live side's status. Every other
heartbeat stores status and reports, and is answered at once when there is news for its sender, else held (long poll).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database import Database, certificates, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.database.orders import OrderRow
from failback.configuration_server.registry import desired, points_cache, scrubs
from failback.configuration_server.registry.admission import known
from failback.configuration_server.registry.news import News
from failback.errors import StaleEpochError
from failback.model.components import (
    DeniedCertificates,
    Heartbeat,
    HeartbeatReply,
    MasterTargetStatus,
    MobilityStatus,
    OrderReport,
    OrderState,
    ProcessServerStatus,
    Role,
)
from failback.model.ids import ComponentId, DiskId, MachineId
from failback.protection import assignment as rules
from failback.runtime import faults, logs, records
from failback.runtime.clock import Clock, SystemClock
from failback.transport.identity import PeerIdentity

log = logs.get(__name__)

EXPECTED = "expected"
OTHER_HARDWARE = "other-hardware"
LONGEST_WAIT_SECONDS = 60.0

STATUS_KINDS: dict[Role, type[Any]] = {
    Role.MOBILITY: MobilityStatus,
    Role.PROCESS_SERVER: ProcessServerStatus,
    Role.MASTER_TARGET: MasterTargetStatus,
}
_FINAL = (OrderState.SUCCEEDED, OrderState.FAILED)
_OPEN = (OrderState.PENDING.value, OrderState.RUNNING.value)


@dataclass(frozen=True, slots=True)
class _Answer:
    reply: HeartbeatReply
    news: bool
    """Something in the reply that the sender did not know when it sent its heartbeat."""
    woken: tuple[str, ...] = ()
    """Keys to announce after the transaction."""


class Registry:
    """The components' desk. All state is in the database; several processes may share it."""

    def __init__(self, database: Database, news: News, clock: Clock | None = None) -> None:
        self._database = database
        self._news = news
        self._clock = clock or SystemClock()

    async def heartbeat(
        self, component_id: str, role: Role, heartbeat: Heartbeat, *, skew_seconds: float, address: str = "",
        serial: str = "",
    ) -> HeartbeatReply:  # fmt: skip
        """Take one heartbeat of the certificate's owner and answer it, after up to ``wait_seconds`` for news.

        ``serial`` is that of the certificate. Raises AuthenticationError (unknown or revoked, another role) and
        ConfigurationError (malformed status).
        """
        if role is Role.MOBILITY and not heartbeat.addresses and address:
            heartbeat = replace(heartbeat, addresses=(address,))  # an agent is shown under where it calls from
        peer = PeerIdentity(ComponentId(component_id), role, serial)
        records.decode(heartbeat.status, STATUS_KINDS[role], "heartbeat: status")
        with self._news.subscribe(component_id) as subscription:
            answer = await self._database.run(lambda session: self._take(session, peer, heartbeat, skew_seconds))
            faults.point("heartbeat.stored")
            if answer.woken:
                self._news.announce(*answer.woken)
            deadline = self._clock.monotonic() + min(heartbeat.wait_seconds, LONGEST_WAIT_SECONDS)
            while not answer.news and not subscription.closed:
                left = deadline - self._clock.monotonic()
                if left <= 0 or not await subscription.wait(left):
                    break
                answer = await self._database.run(lambda session: self._again(session, peer, heartbeat))
        return answer.reply

    def _take(self, session: Session, peer: PeerIdentity, heartbeat: Heartbeat, skew_seconds: float) -> _Answer:
        component_id, role = peer.component_id, peer.role
        row = known(session, component_id, role, peer.serial)
        item = items.of_machine(session, component_id) if role is Role.MOBILITY else None
        now = self._clock.wall_ns()
        if _is_twin(row, item, heartbeat):
            _record_twin(row, heartbeat, now)
            answer = self._answer(session, row, heartbeat, item)
            return _Answer(answer.reply, answer.news, (item.item_id,) if item is not None else ())
        woken: list[str] = []  # not the component itself: its own long poll would wake for nothing
        if not _is_overtaken(row, heartbeat):
            woken, item = _store(session, row, item, heartbeat, now, skew_seconds)
        for report in heartbeat.reports:
            if self._report(session, component_id, report, now):
                woken.append(report.order_id)
        answer = self._answer(session, row, heartbeat, item)
        return _Answer(answer.reply, answer.news, tuple(woken))

    def _again(self, session: Session, peer: PeerIdentity, heartbeat: Heartbeat) -> _Answer:
        row = known(session, peer.component_id, heartbeat.role, peer.serial)
        item = items.of_machine(session, peer.component_id) if heartbeat.role is Role.MOBILITY else None
        return self._answer(session, row, heartbeat, item)

    def _answer(self, session: Session, row: ComponentRow, heartbeat: Heartbeat, item: ItemRow | None) -> _Answer:
        wanted = desired.refresh(session, row)
        twin = _is_twin(row, item, heartbeat)
        if heartbeat.assignment_generation > row.assignment_generation:
            # The component has seen more than this database knows (it was restored from an older copy).
            row.assignment_generation = heartbeat.assignment_generation + 1
        if twin:
            wanted = rules.silent(MachineId(row.component_id))
        changed = heartbeat.assignment_generation != row.assignment_generation
        open_orders = [] if twin else _open_orders(session, row.component_id)
        reported = {report.order_id for report in heartbeat.reports}
        denied = self._denied(session, heartbeat)
        listed = {order.order_id for order in open_orders}
        ended = any(report.state in _FINAL and report.order_id not in listed for report in heartbeat.reports)
        reply = HeartbeatReply(
            wall_ns=self._clock.wall_ns(),
            assignment_generation=row.assignment_generation,
            assignment=records.encode(wanted) if changed and wanted is not None else None,
            orders=tuple(order.order() for order in open_orders),
            known_as=OTHER_HARDWARE if twin else EXPECTED,
            denied=denied,
        )
        return _Answer(reply, changed or ended or bool(listed - reported) or denied is not None)

    def _denied(self, session: Session, heartbeat: Heartbeat) -> DeniedCertificates | None:
        """The revoked certificates when the sender has another list; None too for one that knows no such list."""
        if heartbeat.denied_digest is None:
            return None
        denied = certificates.denied(session, self._clock.wall_ns())
        return denied if denied.digest != heartbeat.denied_digest else None

    def _report(self, session: Session, component_id: str, report: OrderReport, now: int) -> bool:
        """Store one order report; True when it changed anything. Repeated and foreign reports change nothing."""
        row = session.get(OrderRow, report.order_id)
        if row is None or row.component_id != component_id or row.finished():
            return False
        if _is_stale(session, row):
            if _has_owner(session, row):
                return False  # the job that took over finds this order by its key, or replaces it
            log.warning("result of a stale order refused", kind=row.kind, order_id=row.order_id)
            stale = StaleEpochError(f"a newer job owned the item: the result of {row.kind} was not taken")
            row.state, row.error, row.finished_wall_ns = OrderState.FAILED.value, stale.as_dict(), now
            return True
        before = (row.state, row.bytes_done, row.bytes_total)
        row.state = report.state.value
        row.bytes_done, row.bytes_total = report.bytes_done, report.bytes_total
        if row.finished():
            row.result, row.error, row.finished_wall_ns = report.result, report.error, now
        return before != (row.state, row.bytes_done, row.bytes_total)


def _is_twin(row: ComponentRow, item: ItemRow | None, heartbeat: Heartbeat) -> bool:
    """Whether the heartbeat comes from other hardware than the one that may speak for this component (D2)."""
    expected = (item.live_hardware_id() if item is not None else "") or row.hardware_id
    return row.role == Role.MOBILITY.value and heartbeat.hardware_id.lower() != expected.lower()


def _is_stale(session: Session, row: OrderRow) -> bool:
    """Whether a newer owner of the item exists than the one which gave this order."""
    if row.item_id is None:
        return False
    item = session.get(ItemRow, row.item_id)
    return item is None or item.generation > row.generation


def _has_owner(session: Session, row: OrderRow) -> bool:
    """Whether an unfinished job has the order's item."""
    item = session.get(ItemRow, row.item_id)
    job = session.get(JobRow, item.current_job_id) if item is not None and item.current_job_id else None
    return job is not None and not job.ended_wall_ns


def _is_overtaken(row: ComponentRow, heartbeat: Heartbeat) -> bool:
    """Whether a newer heartbeat of this boot was stored already (a component may have two under way)."""
    return row.boot_id == heartbeat.boot_id and heartbeat.monotonic < row.monotonic


def _store(  # noqa: PLR0917
    session: Session, row: ComponentRow, item: ItemRow | None, heartbeat: Heartbeat, now: int, skew_seconds: float
) -> tuple[list[str], ItemRow | None]:
    """Store the status of the live side and what follows from it; returns who is to be woken, and the agent's item."""
    woken: list[str] = []
    before, status_before = desired.endpoint(row), row.status or {}
    _record(row, heartbeat, now, skew_seconds)
    if heartbeat.role is Role.MOBILITY:
        item = item or _adopt(session, row)
        if item is not None:
            _match_disks(item, heartbeat)
            scrubs.note(session, item, heartbeat.status, status_before, now)
            woken.append(item.item_id)
    elif desired.endpoint(row) != before:
        woken.extend(_dependents(session, row.component_id))
    if heartbeat.role is Role.MASTER_TARGET:
        status = records.decode(heartbeat.status, MasterTargetStatus, "heartbeat: status")
        woken.extend(points_cache.refresh(session, row.component_id, status, status_before, heartbeat.status))
    return woken, item


def _record_twin(row: ComponentRow, heartbeat: Heartbeat, now: int) -> None:
    if row.twin_hardware_id != heartbeat.hardware_id or row.twin_boot_id != heartbeat.boot_id:
        log.warning("heartbeat from other hardware", component_id=row.component_id, hardware_id=heartbeat.hardware_id)
    row.twin_hardware_id = heartbeat.hardware_id.lower()
    row.twin_boot_id = heartbeat.boot_id
    row.twin_status = heartbeat.status
    row.twin_last_seen_wall_ns = now


def _record(row: ComponentRow, heartbeat: Heartbeat, now: int, skew_seconds: float) -> None:
    row.hostname = heartbeat.hostname
    row.version = heartbeat.version
    row.os_family, row.os_version, row.kernel = heartbeat.os_family, heartbeat.os_version, heartbeat.kernel
    row.boot_id, row.monotonic = heartbeat.boot_id, heartbeat.monotonic
    if heartbeat.addresses:
        row.addresses = list(heartbeat.addresses)
    row.status = heartbeat.status
    row.last_heartbeat_wall_ns = now
    row.clock_skew_seconds = skew_seconds
    row.assignment_taken = heartbeat.assignment_generation


def _adopt(session: Session, row: ComponentRow) -> ItemRow | None:
    """The item that waits for an agent on this hardware, now joined to it."""
    hardware_id = row.hardware_id.lower()
    statement = select(ItemRow).where(
        ItemRow.machine_id.is_(None),
        (ItemRow.cloud_hardware_id == hardware_id) | (ItemRow.on_premises_hardware_id == hardware_id),
    )
    found = [item for item in session.scalars(statement) if item.live_hardware_id() == hardware_id]
    if len(found) != 1:
        return None
    found[0].machine_id = row.component_id
    log.info("agent matched to its item", item=found[0].name, component_id=row.component_id)
    return found[0]


def _match_disks(item: ItemRow, heartbeat: Heartbeat) -> None:
    """Fill ``device_match`` of the item's disks from what the agent reports.

    A match that the agent does not report any more (another side, another bus) is looked for again, but never while the
    item replicates: there a disk that went is an error to be shown, not another disk to be taken.
    """
    if item.replicating and all(disk.device_match for disk in item.disks):
        return
    reported = records.decode(heartbeat.status, MobilityStatus, "heartbeat: status").disks
    names = {facts.device_match for facts in reported}
    wanting = [
        disk
        for disk in item.disks
        if not disk.device_match or (reported and not item.replicating and disk.device_match not in names)
    ]
    if not wanting:
        return
    taken = {disk.device_match for disk in item.disks if disk not in wanting}
    known = [
        rules.KnownDisk(
            DiskId(disk.disk_id), disk.index, disk.serial, disk.cloud_size_bytes or disk.size_bytes, disk.is_system
        )
        for disk in wanting
    ]
    matched = rules.match_disks(known, [facts for facts in reported if facts.device_match not in taken])
    for disk in wanting:
        disk.device_match = matched.get(DiskId(disk.disk_id), disk.device_match)


def _dependents(session: Session, component_id: str) -> list[str]:
    """Components whose assignment names this server's address."""
    served = (ItemRow.process_server_id == component_id) | (ItemRow.master_target_id == component_id)
    found = session.scalars(select(ItemRow).where(served))
    return [key for item in found for key in (item.machine_id, item.process_server_id) if key]


def _open_orders(session: Session, component_id: str) -> list[OrderRow]:
    statement = (
        select(OrderRow)
        .where(OrderRow.component_id == component_id, OrderRow.state.in_(_OPEN))
        .order_by(OrderRow.given_wall_ns, OrderRow.order_id)
    )
    return list(session.scalars(statement))
