"""Keeping the cached points and gaps of items in step with what their master targets tell.

Called within the intake of a master target's heartbeat; a replica whose points and gaps are as they were last time costs
nothing. Points of a replica that is no longer told of stay as they are (the history of an item that came home).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from failback.configuration_server.database import items
from failback.configuration_server.database.points import GapRow, PointRow
from failback.model.components import MasterTargetStatus, ReplicaStatus


def refresh(
    session: Session, component_id: str, status: MasterTargetStatus, before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
    """Bring the cache up to date; ``before`` and ``now`` are the encoded statuses. Returns the ids of changed items."""
    old = {replica["machine_id"]: replica for replica in before.get("replicas", ())}
    new = {replica["machine_id"]: replica for replica in now.get("replicas", ())}
    changed: list[str] = []
    for replica in status.replicas:
        was, here = old.get(replica.machine_id), new[replica.machine_id]
        if was is not None and was.get("points") == here.get("points") and was.get("gaps") == here.get("gaps"):
            continue
        item = items.of_machine(session, replica.machine_id)
        if item is None or item.master_target_id != component_id:
            continue
        _points(session, item.item_id, replica)
        _gaps(session, item.item_id, replica)
        changed.append(item.item_id)
    return changed


def _points(session: Session, item_id: str, replica: ReplicaStatus) -> None:
    known = {row.point_id: row for row in session.scalars(select(PointRow).where(PointRow.item_id == item_id))}
    for point in replica.points:
        row = known.pop(point.point_id, None)
        if row is None:
            row = PointRow(item_id=item_id, point_id=point.point_id, machine_id=point.machine_id)
            session.add(row)
        row.kind, row.wall_ns = point.kind.value, point.wall_ns
        row.epoch, row.sequence, row.ring = point.epoch, point.sequence, point.ring
        row.abandoned = point.abandoned
    for gone in known.values():
        session.delete(gone)


def _gaps(session: Session, item_id: str, replica: ReplicaStatus) -> None:
    session.execute(delete(GapRow).where(GapRow.item_id == item_id))
    for gap in {(gap.started_wall_ns, gap.cause): gap for gap in replica.gaps}.values():
        session.add(
            GapRow(
                item_id=item_id, started_wall_ns=gap.started_wall_ns, cause=gap.cause, ended_wall_ns=gap.ended_wall_ns
            )
        )
