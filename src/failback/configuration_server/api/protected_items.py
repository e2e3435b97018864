"""``replicationProtectedItems``: read, import, reprotect, failover, its change, commit and cancel, resynchronize, disable.

Every change is checked against the state table first (the reason goes to the caller), starts one durable job under a key
made of the caller's request id (a repeated request finds its job again) and answers 202. Import answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.api import import_item, inputs
from failback.configuration_server.api.arm import CONTAINER_PATH, Vault, VaultOf, last_segment
from failback.configuration_server.api.containers import ItemName, check_container
from failback.configuration_server.api.fabric_calls import ask, site
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.item_shape import item_resource
from failback.configuration_server.api.item_view import ItemView, item_row, item_rows, view
from failback.configuration_server.api.long_running import accepted, job_row, unfinished
from failback.configuration_server.api.paging import Page, PageOf
from failback.configuration_server.api.readiness import volume_named
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.database import items, policies
from failback.configuration_server.database.components import find
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.database.policies import FAILBACK_POLICY_NAME
from failback.configuration_server.registry import announce_item
from failback.errors import ConfigurationError, NotFoundError
from failback.model.components import MasterTargetStatus, Role
from failback.model.ids import new_id
from failback.protection.bandwidth_rules import spoken_rate
from failback.protection.operations import Operation
from failback.runtime import records

SCENARIOS = {
    Operation.REPROTECT: "SwitchReplicationGroupProtection",
    Operation.FAILOVER: "UnplannedFailover",
    Operation.COMMIT: "CommitFailover",
    Operation.CHANGE_POINT: "ChangeRecoveryPoint",
    Operation.CANCEL_FAILOVER: "CancelFailover",
    Operation.REPAIR: "RepairVMReplication",
    Operation.MOVE: "SwitchProcessServer",
    Operation.CREATE_RECOVERY_POINT: "CreateRecoveryPoint",
    Operation.DISABLE: "DisableDr",
}
_ITEMS = "/replicationProtectedItems"
_ITEM = "/replicationProtectedItems/{item}"


@dataclass(frozen=True, slots=True)
class Change:
    """A request to change an item: on whose page, by whom, which item."""

    vault: Vault
    request: Request
    item: str


def _change(vault: VaultOf, request: Request, item: ItemName) -> Change:
    return Change(vault, request, item)


Asked = Annotated[Change, Depends(_change)]
Resolve = Callable[[Session, ItemView], Mapping[str, Any]]
"""From the item to the job's inputs; raises when the request names what is not there."""


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["protected items"])
    routes.include_router(_reading(services))
    routes.include_router(_operations(services))
    routes.include_router(_failovers(services))
    return routes


def _reading(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute)

    @routes.get(_ITEMS)
    async def list_all(vault: VaultOf, page: PageOf) -> dict[str, Any]:
        return await _listed(vault, page)

    @routes.get(CONTAINER_PATH + _ITEMS)
    async def list_in_container(vault: VaultOf, page: PageOf, fabric: str, container: str) -> dict[str, Any]:
        check_container(fabric, container)
        return await _listed(vault, page)

    async def _listed(vault: Vault, page: Page) -> dict[str, Any]:
        after, size = page.after(str), services.page_rows

        def look(session: Session) -> list[ItemView]:
            rows = item_rows(session, after=str(after[0]) if after else "", limit=size + 1)
            return [view(session, row, full=False) for row in rows]

        now, found = services.clock.wall_ns(), await services.database.look(look)
        return page.listed(
            found, size, lambda one: (one.row.name,), lambda one: item_resource(vault, one, now, full=False)
        )

    @routes.get(CONTAINER_PATH + _ITEM)
    async def get_item(vault: VaultOf, item: ItemName) -> dict[str, Any]:
        return await shown(services, vault, item)

    @routes.get(CONTAINER_PATH + _ITEM + "/operationresults/{job_id}")
    async def operation_result(vault: VaultOf, item: ItemName, job_id: str) -> Response:
        job = await services.database.look(lambda session: job_row(session, job_id))
        waiting = unfinished(vault, vault.item(item), job)
        if waiting is not None:
            return waiting
        if job.scenario == SCENARIOS[Operation.DISABLE]:
            return Response(status_code=204)
        return JSONResponse(await shown(services, vault, item))

    return routes


async def shown(services: Services, vault: Vault, item: str) -> dict[str, Any]:
    """The item as its GET answers it. Raises NotFoundError."""
    found = await services.database.look(lambda session: view(session, item_row(session, item)))
    return item_resource(vault, found, services.clock.wall_ns())


def _operations(services: Services) -> APIRouter:
    routes = APIRouter(prefix=CONTAINER_PATH + _ITEM, route_class=FaultRoute)

    @routes.put("")
    async def put(asked: Asked, body: import_item.ImportRequest) -> dict[str, Any]:
        await _import(services, asked, body.properties.details)
        return await shown(services, asked.vault, asked.item)

    @routes.patch("")
    async def set_up(asked: Asked, body: inputs.SettingsRequest) -> dict[str, Any]:
        await _set_up(services, asked, body.properties.details.bandwidth)
        return await shown(services, asked.vault, asked.item)

    @routes.post("/reProtect")
    async def reprotect(asked: Asked, body: inputs.ReprotectRequest) -> Response:
        def resolve(session: Session, found: ItemView) -> dict[str, Any]:
            inputs.check_reprotect(body, found.direction)
            return _reprotect_inputs(session, body.properties.details)

        await _refresh_disks(services, asked.item)
        return await _start(services, asked, Operation.REPROTECT, resolve)

    @routes.post("/repairReplication")
    async def repair(asked: Asked, body: inputs.RepairRequest | None = None) -> Response:
        wanted = body.properties.details if body else inputs.RepairDetails()
        named, minutes = wanted.process_server_id, wanted.comparison_minutes

        def resolve(session: Session, _found: ItemView) -> dict[str, Any]:
            found: dict[str, Any] = {} if minutes is None else {"comparison_minutes": minutes}
            if named:
                found["process_server_id"] = find(session, Role.PROCESS_SERVER, last_segment(named)).component_id
            return found

        return await _start(services, asked, Operation.REPAIR, resolve)

    @routes.post("/switchProcessServer")
    async def move(asked: Asked, body: inputs.RepairRequest) -> Response:
        wanted = body.properties.details.process_server_id
        if not wanted:
            raise ConfigurationError("processServerId is required", code="506", remedy="failback component list")

        def resolve(session: Session, _found: ItemView) -> dict[str, Any]:
            return {"process_server_id": find(session, Role.PROCESS_SERVER, last_segment(wanted)).component_id}

        return await _start(services, asked, Operation.MOVE, resolve)

    @routes.post("/createRecoveryPoint")
    async def create_point(asked: Asked) -> Response:
        return await _start(services, asked, Operation.CREATE_RECOVERY_POINT, _nothing)

    @routes.post("/remove")
    async def disable(asked: Asked, body: inputs.DisableRequest | None = None) -> Response:
        reason = body.properties.disable_protection_reason if body else "NotSpecified"
        return await _start(services, asked, Operation.DISABLE, lambda _session, _found: {"reason": reason})

    return routes


def _failovers(services: Services) -> APIRouter:
    routes = APIRouter(prefix=CONTAINER_PATH + _ITEM, route_class=FaultRoute)

    @routes.post("/unplannedFailover")
    async def failover(asked: Asked, body: inputs.FailoverRequest) -> Response:
        choice = inputs.point_choice(body.properties.details)

        def resolve(_session: Session, found: ItemView) -> dict[str, Any]:
            _check_point(found, choice.selector.value, choice.value)
            return {
                "selector": choice.selector.value,
                "value": choice.value,
                "shut_down_source": body.properties.source_site_operations != "NotRequired",
            }

        source_lost = body.properties.source_site_operations == "NotRequired"
        return await _start(services, asked, Operation.FAILOVER, resolve, source_lost=source_lost)

    @routes.post("/applyRecoveryPoint")
    async def change_point(asked: Asked, body: inputs.ApplyPointRequest) -> Response:
        choice = inputs.applied_point(body)

        def resolve(_session: Session, found: ItemView) -> dict[str, Any]:
            _check_point(found, choice.selector.value, choice.value)
            return {"selector": choice.selector.value, "value": choice.value}

        return await _start(services, asked, Operation.CHANGE_POINT, resolve)

    @routes.post("/failoverCommit")
    async def commit(asked: Asked) -> Response:
        return await _start(services, asked, Operation.COMMIT, _nothing)

    @routes.post("/failoverCancel")
    async def cancel(asked: Asked) -> Response:
        return await _start(services, asked, Operation.CANCEL_FAILOVER, _nothing)

    return routes


def _nothing(_session: Session, _found: ItemView) -> Mapping[str, Any]:
    return {}


async def _start(
    services: Services, asked: Change, operation: Operation, resolve: Resolve, *, source_lost: bool = False
) -> Response:
    """Check, start the job, audit, answer 202."""

    def decide(session: Session) -> tuple[str, str, Mapping[str, Any]]:
        found = view(session, item_row(session, asked.item))
        repeated = session.scalars(select(JobRow.job_id).where(JobRow.key == key)).first()
        if repeated is None:
            found.require(operation, source_lost=source_lost)
        return found.row.item_id, found.row.name, resolve(session, found)

    scenario = SCENARIOS[operation]
    key = f"{scenario} {asked.item} {asked.request.headers.get('x-ms-client-request-id') or new_id()}"[:255]
    item_id, name, arguments = await services.database.look(decide)
    job_id = await services.jobs.start(scenario, item_id, arguments, key, started_by=asked.request.state.caller)
    await services.database.run(
        lambda session: note(session, services.clock, asked.request, f"start {scenario}", name, detail=f"job {job_id}")
    )
    return accepted(asked.vault, asked.vault.item(name), job_id)


def _reprotect_inputs(session: Session, details: inputs.ReprotectDetails) -> dict[str, Any]:
    """Names and paths become ids and names; what is not known is left as it is for the prerequisite check to tell."""
    server = find(session, Role.PROCESS_SERVER, last_segment(details.process_server_id))
    target = find(session, Role.MASTER_TARGET, last_segment(details.master_target_id))
    status = records.decode(target.status or {}, MasterTargetStatus)
    volume = volume_named(status.retention_volumes, details.retention_drive)
    store = volume_named(status.datastores, details.datastore_name) if details.datastore_name else None
    return {
        "process_server_id": server.component_id,
        "master_target_id": target.component_id,
        "retention_volume": volume.name if volume else details.retention_drive,
        "datastore": store.name if store else details.datastore_name,
        "policy_name": FAILBACK_POLICY_NAME,
        "comparison_minutes": details.comparison_minutes,
    }


def _check_point(found: ItemView, selector: str, value: str) -> None:
    """Refuse early what the master target would refuse later: a point that is not there."""
    reachable = [point for point in found.points if not point.abandoned]
    if selector == "point" and value not in {point.point_id for point in reachable}:
        raise NotFoundError(
            f"{found.row.name} has no reachable recovery point {value!r}",
            code="RecoveryPointNotFound",
            remedy=f"failback points {found.row.name}",
        )
    if selector == "latest-app-consistent" and not any(point.kind.value == "AppConsistent" for point in reachable):
        raise NotFoundError(
            f"{found.row.name} has no app-consistent recovery point",
            code="RecoveryPointNotFound",
            remedy=f"failback point create {found.row.name}, or choose latest",
        )


async def _set_up(services: Services, asked: Change, wanted: inputs.BandwidthSettings) -> None:
    """Store the settings; the item's components are told at once."""

    def work(session: Session) -> items.ItemRow:
        row = item_row(session, asked.item)
        of_policy = policies.bandwidth_of(session, row.policy_name)
        if wanted.limit == inputs.OF_POLICY:
            row.bandwidth, limit = {}, of_policy
        else:
            limit = inputs.changed_bandwidth(items.bandwidth_of(row, of_policy), wanted)
            row.bandwidth = records.encode(limit)
        rate = spoken_rate(limit.bytes_per_second)
        detail = f"bandwidth {rate}, {len(limit.windows)} windows in {limit.time_zone}"
        note(session, services.clock, asked.request, "set up item", row.name, detail=detail)
        return row

    announce_item(services.news, await services.database.run(work))


async def _origin(services: Services, on_premises: import_item.Place, cloud: import_item.Place) -> import_item.Origin:
    home, away = site(services, on_premises.fabric), site(services, cloud.fabric)
    import_item.check_sides(home, away)
    try:
        here = await ask(services, lambda: home.fabric.machine(on_premises.machine), home.name)
    except NotFoundError as error:
        raise import_item.not_found_is_no_origin(error, on_premises) from None
    there = await ask(services, lambda: away.fabric.machine(cloud.machine), away.name)
    return import_item.Origin(home, here, away, there)


async def _import(services: Services, asked: Change, details: import_item.ImportDetails) -> None:
    name = asked.item
    if details.instance_type != import_item.INSTANCE_TYPE:
        raise ConfigurationError(
            f"instanceType {details.instance_type!r} cannot be enabled here yet",
            code="506",
            remedy=f"use {import_item.INSTANCE_TYPE} to register a machine that has failed over",
        )
    if not name.isascii() or not name.replace("-", "").isalnum() or len(name) > import_item.MAXIMUM_NAME:
        raise ConfigurationError(
            f"{name!r} is not a name for an item", code="InvalidName", remedy="use 1 to 63 letters, digits and hyphens"
        )
    if details.on_premises is None:
        raise import_item.no_origin("none was named")
    if details.cloud is None:
        raise ConfigurationError("cloud is required: where the machine runs now", code="506")
    origin = await _origin(services, details.on_premises, details.cloud)

    def work(session: Session) -> items.ItemRow:
        row, created = import_item.store_import(session, name, details, origin, services.clock.wall_ns())
        outcome = "created" if created else "was there already"
        note(session, services.clock, asked.request, "import item", name, detail=outcome)
        return row

    announce_item(services.news, await services.database.run(work))


async def _refresh_disks(services: Services, item: str) -> None:
    """A disk file may have been removed (or put back) since the import: a reprotect sees the disks of now."""
    found = await services.database.look(lambda session: view(session, item_row(session, item)))
    row = found.row
    reachable = row.on_premises_fabric in services.fabrics and row.cloud_fabric in services.fabrics
    if not reachable or Operation.REPROTECT not in found.allowed():
        return  # the check of the operation, or the job's prerequisite check, says what is wrong
    origin = await _origin(
        services,
        import_item.Place(fabric=row.on_premises_fabric, machine=row.on_premises_fabric_id),
        import_item.Place(fabric=row.cloud_fabric, machine=row.cloud_fabric_id),
    )

    def work(session: Session) -> None:
        now = view(session, items.get(session, row.item_id))
        if Operation.REPROTECT in now.allowed():
            import_item.refresh_disks(now.row, origin)

    await services.database.run(work)
