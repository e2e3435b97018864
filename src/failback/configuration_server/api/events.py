"""``replicationEvents``: what changed, newest first. ``$filter`` knows ``itemName``, ``severity``, ``eventType``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import FABRIC, Vault, VaultOf, envelope, filters, timestamp
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.paging import Key, PageOf
from failback.configuration_server.api.services import Services
from failback.configuration_server.database.events import EventRow
from failback.configuration_server.database.items import named
from failback.errors import NotFoundError

LAST_EVENT_ID = (1 << 31) - 1
"""Of the column's type; a larger number is no event's and no database's integer."""


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["events"])

    @routes.get("/replicationEvents")
    async def list_events(
        vault: VaultOf, page: PageOf, wanted: Annotated[str | None, Query(alias="$filter")] = None
    ) -> dict[str, Any]:
        after, size = page.after(int), services.page_rows
        rows = await services.database.look(lambda session: _rows(session, wanted, after, size + 1))
        return page.listed(rows, size, lambda row: (row.event_id,), lambda row: _event(vault, row))

    @routes.get("/replicationEvents/{event_id}")
    async def get_event(vault: VaultOf, event_id: int) -> dict[str, Any]:
        known = 0 < event_id <= LAST_EVENT_ID
        row = await services.database.look(lambda session: session.get(EventRow, event_id)) if known else None
        if row is None:
            raise NotFoundError(f"there is no event {event_id}")
        return _event(vault, row)

    return routes


def _rows(session: Session, wanted: str | None, after: Key | None, limit: int) -> list[EventRow]:
    value = filters(wanted)
    statement = select(EventRow).order_by(EventRow.event_id.desc()).limit(limit)
    if after is not None:
        statement = statement.where(EventRow.event_id < after[0])
    if value("itemName"):
        statement = statement.where(EventRow.item_id == named(session, value("itemName")).item_id)
    if value("severity"):
        statement = statement.where(EventRow.severity == value("severity"))
    if value("eventType"):
        statement = statement.where(EventRow.event_type == value("eventType"))
    return list(session.scalars(statement))


def _event(vault: Vault, row: EventRow) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "eventCode": row.code,
        "description": row.description,
        "eventType": row.event_type,
        "affectedObjectFriendlyName": row.subject,
        "affectedObjectCorrelationId": row.item_id or row.component_id,
        "severity": row.severity,
        "timeOfOccurrence": timestamp(row.wall_ns),
        "fabricId": vault.resource("replicationFabrics", FABRIC),
        "healthErrors": [],
        "failback": {"jobId": row.job_id, "itemId": row.item_id, "componentId": row.component_id},
    }
    return envelope(vault.resource("replicationEvents", str(row.event_id)), "replicationEvents", properties)
