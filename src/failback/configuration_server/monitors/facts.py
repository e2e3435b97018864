"""Rows to facts: what the pure rules of :mod:`failback.protection.health` want to know of components and items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database import policies
from failback.configuration_server.database.certificates import CertificateRow
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.points import GapRow, PointRow
from failback.model.components import MasterTargetStatus, MobilityStatus, Role, VolumeFacts
from failback.protection import health
from failback.runtime import records


@dataclass(frozen=True, slots=True)
class Moment:
    """The time of a pass. ``listening_since_wall_ns``: silence before it says nothing (this server was away)."""

    wall_ns: int
    listening_since_wall_ns: int
    alarm_seconds: float

    def silent_seconds(self, row: ComponentRow) -> float:
        heard = max(row.last_heartbeat_wall_ns, row.enrolled_wall_ns, self.listening_since_wall_ns)
        return self.age(heard)

    def age(self, wall_ns: int) -> float:
        return max(0.0, (self.wall_ns - wall_ns) / 1e9)


def component_facts(session: Session, row: ComponentRow, moment: Moment) -> health.ComponentFacts:
    days_left = (row.certificate_expiry_wall_ns - moment.wall_ns) / 86_400e9 if row.certificate_expiry_wall_ns else None
    status: Mapping[str, Any] = row.status or {}
    return health.ComponentFacts(
        name=row.hostname,
        role=Role(row.role),
        silent_seconds=moment.silent_seconds(row),
        alarm_seconds=moment.alarm_seconds,
        clock_skew_seconds=row.clock_skew_seconds,
        certificate_days_left=days_left,
        certificate_life_days=_certificate_life_days(session, row),
        spool_capacity_bytes=int(status.get("spool_capacity_bytes", 0)),
        spool_free_bytes=int(status.get("spool_free_bytes", 0)),
        volumes_in_use=_volumes_in_use(session, row),
    )


def _certificate_life_days(session: Session, row: ComponentRow) -> float:
    issued = session.get(CertificateRow, row.certificate_serial) if row.certificate_serial else None
    return (issued.expiry_wall_ns - issued.issued_wall_ns) / 86_400e9 if issued is not None else 365.0


def _volumes_in_use(session: Session, row: ComponentRow) -> tuple[VolumeFacts, ...]:
    if row.role != Role.MASTER_TARGET.value or not row.status:
        return ()
    statement = select(ItemRow.retention_volume).where(
        ItemRow.master_target_id == row.component_id, ItemRow.replicating
    )
    used = set(session.scalars(statement))
    status = records.decode(row.status, MasterTargetStatus, "stored status")
    return tuple(volume for volume in status.retention_volumes if volume.name in used or volume.path in used)


def item_facts(session: Session, item: ItemRow, moment: Moment) -> health.ItemFacts:
    agent = _component(session, item.machine_id)
    servers = [_component(session, item.process_server_id), _component(session, item.master_target_id)]
    status = _mobility_status(agent, item)
    gap = _open_gap(session, item)
    newest = session.scalars(
        select(PointRow.wall_ns)
        .where(PointRow.item_id == item.item_id, PointRow.abandoned.is_(False))
        .order_by(PointRow.wall_ns.desc())
        .limit(1)
    ).first()
    replica = _replica(servers[1], item)
    return health.ItemFacts(
        name=item.friendly_name or item.name,
        state=item.protection_state,
        replicating=item.replicating,
        agent_lost=agent is None or _lost(agent, moment),
        servers_lost=tuple(f"{row.role} {row.hostname}" for row in servers if row is not None and _lost(row, moment)),
        capture=status.capture,
        capture_reason=status.capture_reason,
        self_test=status.self_test,
        comparison_minutes=item.comparison_minutes,
        smeared=status.comparison.smeared if status.comparison else 0,
        link_up=status.linked,
        sync_open=bool(item.pass_id) and not (status.pass_id == item.pass_id and status.sync_done),
        gap=gap.cause if gap is not None else "",
        gap_seconds=moment.age(gap.started_wall_ns) if gap is not None else None,
        point_age_seconds=moment.age(newest) if newest is not None else None,
        threshold_seconds=policies.policy_of(session, item.policy_name).recovery_point_threshold_minutes * 60.0,
        replica_problem=str(replica.get("problem", "")),
        spool=_spool_room(servers[0]),
        retention=_retention_room(servers[1], item),
        spool_problem=_spool_problem(servers[0], item),
        twin_hardware_id=agent.twin_hardware_id if agent is not None else "",
        twin_seen_seconds=_twin_seen(agent, item, moment),
        alarm_seconds=moment.alarm_seconds,
    )


def _lost(row: ComponentRow, moment: Moment) -> bool:
    return moment.silent_seconds(row) > moment.alarm_seconds


def _component(session: Session, component_id: str | None) -> ComponentRow | None:
    return session.get(ComponentRow, component_id) if component_id else None


def _mobility_status(agent: ComponentRow | None, item: ItemRow) -> MobilityStatus:
    if agent is None or not agent.status:
        return MobilityStatus()
    return records.decode(agent.status, MobilityStatus, f"stored status of {item.name}")


def _replica(master_target: ComponentRow | None, item: ItemRow) -> Mapping[str, Any]:
    replicas = (master_target.status or {}).get("replicas", []) if master_target is not None else []
    return next((found for found in replicas if found.get("machine_id") == item.machine_id), {})


def _spool_room(process_server: ComponentRow | None) -> health.Room | None:
    status = process_server.status if process_server is not None else None
    if process_server is None or not status or not status.get("spool_capacity_bytes"):
        return None
    return health.Room(
        process_server.hostname, int(status["spool_capacity_bytes"]), int(status.get("spool_free_bytes", 0))
    )


def _spool_problem(process_server: ComponentRow | None, item: ItemRow) -> str:
    machines = (process_server.status or {}).get("machines", []) if process_server is not None else []
    return next((str(one.get("problem", "")) for one in machines if one.get("machine_id") == item.machine_id), "")


def _retention_room(master_target: ComponentRow | None, item: ItemRow) -> health.Room | None:
    volumes = (master_target.status or {}).get("retention_volumes", []) if master_target is not None else []
    for volume in volumes:
        if item.retention_volume in (volume.get("name"), volume.get("path")) and volume.get("capacity_bytes"):
            return health.Room(volume["name"], int(volume["capacity_bytes"]), int(volume.get("free_bytes", 0)))
    return None


def _open_gap(session: Session, item: ItemRow) -> GapRow | None:
    statement = select(GapRow).where(GapRow.item_id == item.item_id, GapRow.ended_wall_ns == 0)
    return session.scalars(statement.order_by(GapRow.started_wall_ns)).first()


def _twin_seen(agent: ComponentRow | None, item: ItemRow, moment: Moment) -> float | None:
    """Age of the newest heartbeat from hardware that may not speak for the item; None when there was none."""
    if agent is None or not agent.twin_last_seen_wall_ns:
        return None
    if agent.twin_hardware_id == item.live_hardware_id().lower():
        return None  # that side became the live one since
    return moment.age(agent.twin_last_seen_wall_ns)
