"""``GET /metrics``: the figures of every component, from its last heartbeat, and what only this server knows.

For Prometheus, with the token in ``metrics.token`` (or an administrator's). One scrape reads one consistent view of the
database. Names of agents' and servers' figures stand in :mod:`failback.protection.figures`.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from failback.configuration_server.api.services import Services
from failback.configuration_server.database.components import ComponentRow, all_components
from failback.configuration_server.database.items import ItemRow, all_items
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.database.points import PointRow
from failback.model.components import MasterTargetStatus, MobilityStatus, ProcessServerStatus, Role
from failback.model.ids import ComponentId, MachineId
from failback.protection import figures
from failback.protection.states import State
from failback.runtime import records
from failback.runtime.metrics import CONTENT_TYPE, Metric, Sample, render

_COMPONENT = ("component", "role", "host")
_ITEM = ("item", "machine")

UP = Metric("failback_component_up", "gauge", "1 while the component is heard from.", _COMPONENT)
HEARD = Metric("failback_component_heartbeat_age_seconds", "gauge", "Since its last heartbeat.", _COMPONENT)
SKEW = Metric("failback_component_clock_skew_seconds", "gauge", "Its wall clock less this server's.", _COMPONENT)
CERTIFICATE = Metric("failback_certificate_left_seconds", "gauge", "Until its certificate ends.", _COMPONENT)
ITEM = Metric("failback_item", "gauge", "1 for each item in its state.", ("item", "machine", "state"))
HEALTH = Metric("failback_item_health", "gauge", "0 normal, 1 warning, 2 critical.", _ITEM)
POINT_AGE = Metric("failback_newest_point_age_seconds", "gauge", "Age of the newest recovery point.", _ITEM)
JOBS = Metric("failback_jobs", "gauge", "Jobs on record, by state.", ("state",))

SERVER_METRICS = (UP, HEARD, SKEW, CERTIFICATE, ITEM, HEALTH, POINT_AGE, JOBS)
_LEVELS = {"Warning": 1, "Critical": 2}


def router(services: Services) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/metrics")
    async def metrics() -> Response:
        now, alarm = services.clock.wall_ns(), services.heartbeat_alarm_seconds
        text = await services.database.look(lambda session: render(samples(session, now, alarm)))
        return Response(text, media_type=CONTENT_TYPE)

    return routes


def samples(session: Session, now_wall_ns: int, alarm_seconds: float) -> Iterator[Sample]:
    for row in all_components(session):
        if row.role != Role.CONFIGURATION_SERVER.value and not row.revoked:
            yield from _of_component(row, now_wall_ns, alarm_seconds)
            yield from _of_status(row)
    for item in all_items(session):
        if item.protection_state != State.DISABLED.value:
            yield from _of_item(session, item, now_wall_ns)
    for state, count in session.execute(select(JobRow.state, func.count()).group_by(JobRow.state)):
        yield JOBS(count, state)


def _of_component(row: ComponentRow, now_wall_ns: int, alarm_seconds: float) -> Iterator[Sample]:
    labels = (row.component_id, row.role, row.hostname)
    age = (now_wall_ns - (row.last_heartbeat_wall_ns or row.enrolled_wall_ns)) / 1e9
    yield UP(bool(row.last_heartbeat_wall_ns) and age <= alarm_seconds, *labels)
    yield HEARD(round(age, 3), *labels)
    yield SKEW(round(row.clock_skew_seconds, 3), *labels)
    if row.certificate_expiry_wall_ns:
        yield CERTIFICATE(round((row.certificate_expiry_wall_ns - now_wall_ns) / 1e9), *labels)


def _of_status(row: ComponentRow) -> Iterator[Sample]:
    if not row.status:
        return
    where = f"stored status of {row.hostname}"
    if row.role == Role.MOBILITY.value:
        yield from figures.of_agent(MachineId(row.component_id), records.decode(row.status, MobilityStatus, where))
    elif row.role == Role.PROCESS_SERVER.value:
        status = records.decode(row.status, ProcessServerStatus, where)
        yield from figures.of_process_server(ComponentId(row.component_id), status)
    elif row.role == Role.MASTER_TARGET.value:
        target = records.decode(row.status, MasterTargetStatus, where)
        yield from figures.of_master_target(ComponentId(row.component_id), target)


def _of_item(session: Session, item: ItemRow, now_wall_ns: int) -> Iterator[Sample]:
    machine = item.machine_id or ""
    yield ITEM(1, item.name, machine, item.protection_state)
    yield HEALTH(_LEVELS.get(item.replication_health, 0), item.name, machine)
    newest = session.scalar(
        select(func.max(PointRow.wall_ns)).where(PointRow.item_id == item.item_id, PointRow.abandoned.is_(False))
    )
    if newest and item.replicating:
        yield POINT_AGE(round((now_wall_ns - newest) / 1e9, 3), item.name, machine)
