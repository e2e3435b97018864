"""``views`` of an item (ours): recovery points that its master target serves by NBD.

A view is no change of the item, so it is no job: the request waits for the master target's answer. The caller chooses the id
(a UUID), which makes a repeated PUT the same view with a new lease. What is listed is what the master target told last; one
that ended stays listed for a while with the reason.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from failback.configuration_server.api import inputs
from failback.configuration_server.api.arm import CONTAINER_PATH, Vault, VaultOf, envelope, listed, timestamp
from failback.configuration_server.api.containers import ItemName
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.item_shape import ITEM_TYPE
from failback.configuration_server.api.item_view import item_row
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.registry.desired import endpoint
from failback.errors import ConfigurationError, ConflictError, NotFoundError
from failback.model import orders
from failback.model.components import MasterTargetStatus, ViewStatus
from failback.model.ids import MachineId, new_id
from failback.runtime import records

OPENING_SECONDS = 50.0
"""A place between two points may take a while; the caller asks again with the same id."""
_VIEWS = "/replicationProtectedItems/{item}/views"


class _Wire(BaseModel):
    model_config = ConfigDict(populate_by_name=True, extra="ignore")


class ViewProperties(_Wire):
    point: inputs.FailoverDetails = Field(default_factory=inputs.FailoverDetails)
    writable: bool = False
    lease_seconds: float = Field(default=14400.0, alias="leaseSeconds", gt=0)
    quota_bytes: int = Field(default=0, alias="quotaBytes", ge=0)
    certificate_request: str = Field(default="", alias="certificateRequest", max_length=16384)
    """A signing request (PEM): the answer then has a certificate with which this view alone is read from elsewhere."""


class ViewRequest(_Wire):
    properties: ViewProperties = Field(default_factory=ViewProperties)


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=CONTAINER_PATH, route_class=FaultRoute, tags=["views"])

    @routes.get(_VIEWS)
    async def list_views(vault: VaultOf, item: ItemName) -> dict[str, Any]:
        row, views = await services.database.look(lambda session: _told(session, item))
        return listed(_view(vault, row, view) for view in views)

    @routes.get(_VIEWS + "/{view_id}")
    async def get_view(vault: VaultOf, item: ItemName, view_id: str) -> dict[str, Any]:
        row, views = await services.database.look(lambda session: _told(session, item))
        for view in views:
            if view.view_id == view_id:
                return _view(vault, row, view)
        raise NotFoundError(f"{row.name} has no view {view_id!r}", remedy=f"failback view list {row.name}")

    @routes.put(_VIEWS + "/{view_id}")
    async def put_view(
        vault: VaultOf, request: Request, item: ItemName, view_id: str, body: ViewRequest
    ) -> dict[str, Any]:
        wanted = body.properties
        choice = inputs.point_choice(wanted.point)
        row = await services.database.look(lambda session: _replicated(session, item))
        arguments = orders.OpenView(
            _checked(view_id), MachineId(row.machine_id or ""), choice, wanted.writable, wanted.lease_seconds, wanted.quota_bytes
        )  # fmt: skip
        result = await services.orders.carry_out(
            row.master_target_id or "", orders.OPEN_VIEW, 0, arguments, f"view {view_id} {new_id()}", OPENING_SECONDS
        )
        opened = records.decode(result, ViewStatus, "the master target's answer")
        detail = f"view {view_id} of {opened.point.point_id}{', writable' if opened.writable else ''}"
        await services.database.run(
            lambda session: note(session, services.clock, request, "open view", row.name, detail=detail)
        )
        answer = _view(vault, row, opened)
        if wanted.certificate_request:
            target = await services.database.look(lambda session: session.get(ComponentRow, row.master_target_id))
            answer["properties"].update(_remote(services, target, opened, wanted.certificate_request))
        return answer

    @routes.delete(_VIEWS + "/{view_id}")
    async def delete_view(request: Request, item: ItemName, view_id: str) -> Response:
        row = await services.database.look(lambda session: _replicated(session, item))
        await services.orders.carry_out(
            row.master_target_id or "", orders.CLOSE_VIEW, 0, orders.CloseView(_checked(view_id)),
            f"close {view_id} {new_id()}", OPENING_SECONDS,
        )  # fmt: skip
        await services.database.run(
            lambda session: note(session, services.clock, request, "close view", row.name, detail=f"view {view_id}")
        )
        return Response(status_code=204)

    return routes


def _remote(services: Services, target: ComponentRow | None, view: ViewStatus, request_pem: str) -> dict[str, Any]:
    """How and with which certificate the view is read from another host, until its lease ends."""
    place = endpoint(target)
    if not view.remote_port or place is None:
        raise ConfigurationError(
            "the view is open, but its master target serves views on its own host only", code="ViewsNotRemote",
            remedy="set view_listen_host in the master target's configuration and restart it, then open the view again",
        )  # fmt: skip
    if services.view_certificates is None:
        raise ConfigurationError("this server has no certificate authority for views", code="ViewsNotRemote")
    life = timedelta(seconds=max(60.0, (view.expires_wall_ns - services.clock.wall_ns()) / 1e9))
    issued = services.view_certificates.issue_view_client(request_pem, view.view_id, life)
    host = f"[{place.host}]" if ":" in place.host else place.host
    return {
        "certificate": issued.certificate_pem,
        "certificateAuthority": services.view_certificates.ca_pem,
        "remoteUris": [f"nbds://{host}:{view.remote_port}/{view.view_id}%2F{export.index}" for export in view.exports],
    }


def _checked(view_id: str) -> str:
    try:
        return str(uuid.UUID(view_id))
    except ValueError:
        raise ConfigurationError(f"{view_id!r} is no id for a view", code="506", remedy="send a UUID") from None


def _replicated(session: Session, item: str) -> ItemRow:
    row = item_row(session, item)
    if not row.machine_id or not row.master_target_id:
        raise ConflictError(f"{row.name} has no replica: there is nothing to look at", code="NoReplica",
                            remedy=f"failback reprotect {row.name}")  # fmt: skip
    return row


def _told(session: Session, item: str) -> tuple[ItemRow, list[ViewStatus]]:
    row = item_row(session, item)
    target = session.get(ComponentRow, row.master_target_id) if row.master_target_id else None
    if target is None or not target.status:
        return row, []
    views = records.decode(target.status, MasterTargetStatus).views
    return row, [view for view in views if view.machine_id == row.machine_id]


def _view(vault: Vault, item: ItemRow, view: ViewStatus) -> dict[str, Any]:
    properties = {
        "state": "Ended" if view.ended else "Open",
        "reason": view.ended,
        "recoveryPointId": view.point.point_id,
        "recoveryPointTime": timestamp(view.point.wall_ns),
        "writable": view.writable,
        "opened": timestamp(view.opened_wall_ns),
        "expires": timestamp(view.expires_wall_ns),
        "layerBytes": view.layer_bytes,
        "quotaBytes": view.quota_bytes,
        "connections": view.connections,
        "masterTargetId": item.master_target_id,
        "remotePort": view.remote_port,
        "exports": [
            {"diskId": export.disk_id, "index": export.index, "sizeBytes": export.size_bytes, "uri": export.uri}
            for export in view.exports
        ],
    }
    return envelope(f"{vault.item(item.name)}/views/{view.view_id}", f"{ITEM_TYPE}/views", properties)
