"""What the database knows beside the item: who else uses its master target, and how long such things took before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.api.item_view import FINAL_JOB_STATES, ItemView
from failback.configuration_server.database import items
from failback.configuration_server.database.components import ComponentRow, all_components
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.jobs import JobRow, TaskRow
from failback.configuration_server.workflows.failback import FAILOVER, SHUT_DOWN, START
from failback.configuration_server.workflows.finalize import IR_COMPLETION
from failback.configuration_server.workflows.reprotect import REPROTECT
from failback.model.components import MasterTargetStatus, MobilityStatus, Role
from failback.protection.readiness import TransferFacts
from failback.runtime import records


@dataclass(frozen=True, slots=True)
class Neighbours:
    """``target_disks``: of other machines, attached to the master target or about to be by jobs in flight."""

    target_disks: int
    target_machines: int
    shares_host_with: tuple[str, ...]
    disks: tuple[tuple[str, str], ...]
    """(machine, match) of disks that agents of other machines report."""


def neighbours(session: Session, item: ItemRow, target: ComponentRow | None, status: MasterTargetStatus) -> Neighbours:
    components = all_components(session)
    disks = tuple(
        (row.hostname, disk.device_match)
        for row in components
        if row.role == Role.MOBILITY.value and row.component_id != item.machine_id and not row.revoked
        for disk in records.decode(row.status or {}, MobilityStatus).disks
        if disk.device_match.startswith(("serial:", "wwid:"))
    )
    if target is None:
        return Neighbours(0, 0, (), disks)
    attached = {
        replica.machine_id: len(replica.disks)
        for replica in status.replicas
        if replica.state != "released" and replica.machine_id != item.machine_id
    }
    coming = {
        other.machine_id or other.item_id: len(other.disks)
        for other in _in_flight(session, item, target)
        if other.machine_id not in attached
    }
    return Neighbours(
        target_disks=sum(attached.values()) + sum(coming.values()),
        target_machines=len(attached) + len(coming),
        shares_host_with=tuple(
            sorted(
                f"{row.role} {row.hostname}"
                for row in components
                if row.hardware_id == target.hardware_id and row.component_id != target.component_id and not row.revoked
            )
        ),
        disks=disks,
    )


def _in_flight(session: Session, item: ItemRow, target: ComponentRow) -> Iterable[ItemRow]:
    """Items whose unfinished reprotect goes to the master target (it may not have attached their disks yet)."""
    statement = select(JobRow).where(
        JobRow.scenario == REPROTECT, JobRow.state.not_in(FINAL_JOB_STATES), JobRow.item_id != item.item_id
    )
    for job in session.scalars(statement):
        if job.inputs.get("master_target_id") == target.component_id and job.item_id:
            yield items.get(session, job.item_id)


def transfer_facts(session: Session, item: ItemView, wall_ns: int) -> TransferFacts:
    """This machine's own figures where it has any, else those of any other."""
    rate, measured_by = _rate(session, item.row.item_id)
    limit = item.bandwidth.bytes_per_second
    compared_by = item.mobility.comparison if item.row.comparison_minutes else None
    if limit and (rate is None or limit < rate):
        rate, measured_by = float(limit), "its bandwidth limit"
    compared = sum(each.bytes_compared for each in item.mobility.sync)
    sent = sum(each.bytes_sent for each in item.mobility.sync)
    return TransferFacts(
        bytes_at_most=sum(disk.cloud_size_bytes or disk.size_bytes for disk in item.row.disks if not disk.removed),
        measured_bytes_per_second=rate,
        measured_by=measured_by,
        changed_bytes_per_second=_changed(session, item, wall_ns),
        last_downtime_seconds=_last_downtime(session, item.row.item_id),
        backlog_bytes=item.mobility.backlog_bytes,
        standstill_seconds=compared_by.seconds if compared_by else 0.0,
        sent_share=sent / compared if compared else None,
    )


def _rate(session: Session, item_id: str) -> tuple[float | None, str]:
    """Of the newest synchronisation that was measured."""
    statement = (
        select(TaskRow, JobRow)
        .join(JobRow, TaskRow.job_id == JobRow.job_id)
        .where(JobRow.scenario == IR_COMPLETION, JobRow.state == "Succeeded", TaskRow.bytes_total > 0)
        .order_by((JobRow.item_id == item_id).desc(), JobRow.ended_wall_ns.desc())
        .limit(1)
    )
    found = session.execute(statement).first()
    if found is None:
        return None, ""
    task, job = found
    seconds = (task.ended_wall_ns - task.started_wall_ns) / 1e9
    if seconds <= 0:
        return None, ""
    whose = "its last synchronisation" if job.item_id == item_id else f"the last synchronisation of {job.target_name}"
    return task.bytes_total / seconds, whose


def _changed(session: Session, item: ItemView, wall_ns: int) -> float | None:
    """Bytes changed a second since the epoch began, while the machine is captured."""
    if item.mobility.capture != "capturing" or not item.mobility.epoch:
        return None
    statement = (
        select(JobRow.started_wall_ns)
        .where(JobRow.item_id == item.row.item_id, JobRow.scenario == IR_COMPLETION)
        .order_by(JobRow.started_wall_ns.desc())
        .limit(1)
    )
    began = session.scalar(statement)
    if not began or wall_ns <= began:
        return None
    return item.mobility.bytes_changed / ((wall_ns - began) / 1e9)


def _last_downtime(session: Session, item_id: str) -> float | None:
    """From the beginning of the shutdown to the end of the start on premises, of this machine's newest failback."""
    statement = (
        select(JobRow)
        .where(JobRow.scenario == FAILOVER, JobRow.state == "Succeeded", JobRow.item_id == item_id)
        .order_by(JobRow.ended_wall_ns.desc())
        .limit(1)
    )
    job = session.scalar(statement)
    if job is None:
        return None
    tasks = {task.name: task for task in job.tasks}
    if SHUT_DOWN not in tasks or START not in tasks:
        return None
    return (tasks[START].ended_wall_ns - tasks[SHUT_DOWN].started_wall_ns) / 1e9
