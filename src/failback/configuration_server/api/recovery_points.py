"""``recoveryPoints`` of an item, newest first: what a failback may go back to. Abandoned points are marked, not hidden.

``gaps`` (ours) are the stretches between them in which no point could be made, with the cause.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from failback.configuration_server.api.arm import CONTAINER_PATH, Vault, VaultOf, envelope, listed, timestamp
from failback.configuration_server.api.containers import ItemName
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.item_shape import ITEM_TYPE
from failback.configuration_server.api.item_view import item_row
from failback.configuration_server.api.paging import PageOf
from failback.configuration_server.api.services import Services
from failback.configuration_server.database import groups
from failback.configuration_server.database.points import GapRow, gaps_of, points_of
from failback.errors import NotFoundError
from failback.model.points import PointKind, RecoveryPoint

_TYPES = {
    PointKind.APP_CONSISTENT: "ApplicationConsistent",
    PointKind.CRASH_CONSISTENT: "CrashConsistent",
    PointKind.GROUP_MARK: "CrashConsistent",
}


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=CONTAINER_PATH, route_class=FaultRoute, tags=["recovery points"])

    @routes.get("/replicationProtectedItems/{item}/recoveryPoints")
    async def list_points(vault: VaultOf, page: PageOf, item: ItemName) -> dict[str, Any]:
        name, points, common = await _points(item)
        return page.of_all(
            points, services.page_rows, lambda point: point.point_id,
            lambda point: _point(vault, name, point, point.point_id in common),
        )  # fmt: skip

    @routes.get("/replicationProtectedItems/{item}/recoveryPoints/{point_id}")
    async def get_point(vault: VaultOf, item: ItemName, point_id: str) -> dict[str, Any]:
        name, points, common = await _points(item)
        for point in points:
            if point.point_id == point_id:
                return _point(vault, name, point, point_id in common)
        raise NotFoundError(f"{name} has no recovery point {point_id!r}", remedy=f"failback points {name}")

    @routes.get("/replicationProtectedItems/{item}/gaps")
    async def list_gaps(vault: VaultOf, item: ItemName) -> dict[str, Any]:
        def look(session: Any) -> tuple[str, list[GapRow]]:
            row = item_row(session, item)
            return row.name, gaps_of(session, row.item_id)

        name, gaps = await services.database.look(look)
        return listed(_gap(vault, name, gap) for gap in gaps)

    async def _points(item: str) -> tuple[str, list[RecoveryPoint], set[str]]:
        """With the ids of those which are points of a replication group too."""

        def look(session: Any) -> tuple[str, list[RecoveryPoint], set[str]]:
            row = item_row(session, item)
            common = {mark.point_id for mark in groups.marks_of(session, row.group_id, groups.COMPLETE)}
            return row.name, points_of(session, row.item_id), common

        return await services.database.look(look)

    return routes


def _gap(vault: Vault, item_name: str, gap: GapRow) -> dict[str, Any]:
    properties = {
        "cause": gap.cause,
        "started": timestamp(gap.started_wall_ns),
        "ended": timestamp(gap.ended_wall_ns) if gap.ended_wall_ns else None,
    }
    resource = f"{vault.item(item_name)}/gaps/{gap.cause}-{gap.started_wall_ns}"
    return envelope(resource, f"{ITEM_TYPE}/gaps", properties)


def _point(vault: Vault, item_name: str, point: RecoveryPoint, is_common: bool) -> dict[str, Any]:
    properties = {
        "recoveryPointTime": timestamp(point.wall_ns),
        "recoveryPointType": _TYPES.get(point.kind, point.kind.value),
        "providerSpecificDetails": {
            "instanceType": "InMageAzureV2",
            "isMultiVmSyncPoint": "Yes" if is_common else "No",
        },
        "failback": {
            "kind": point.kind.value,
            "epoch": point.epoch,
            "sequence": point.sequence,
            "abandoned": point.abandoned,
        },
    }
    resource = f"{vault.item(item_name)}/recoveryPoints/{point.point_id}"
    return envelope(resource, f"{ITEM_TYPE}/recoveryPoints", properties)
