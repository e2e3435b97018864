"""``replicationFabrics``: this server with its process servers and master targets, and each configured hypervisor.

The fabric ``configuration-server`` has ``VMware`` details, as the real service shows a configuration server. Retention
volumes that may not be used are left out of the wire's list (asr.md rows 54-58); ``failback.refusedVolumes`` says why.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import FABRIC, Vault, VaultOf, envelope, listed, timestamp
from failback.configuration_server.api.fabric_calls import away_reasons
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.item_view import item_rows
from failback.configuration_server.api.services import Services, SiteFabric
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.api.site_resources import fabric_error, refresh
from failback.configuration_server.database.components import ComponentRow, all_components
from failback.configuration_server.database.items import ItemRow
from failback.errors import NotFoundError
from failback.model.components import MasterTargetStatus, ProcessServerStatus, Role, VolumeFacts
from failback.runtime import records

FABRIC_TYPE = "replicationFabrics"


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["fabrics"])

    @routes.get("/replicationFabrics")
    async def list_fabrics(vault: VaultOf) -> dict[str, Any]:
        own = await services.database.look(lambda session: _own(session, vault, services))
        reasons = await away_reasons(services, list(services.fabrics.values()))
        return listed([own, *(_hypervisor(vault, site, reasons[site.name]) for site in services.fabrics.values())])

    @routes.get("/replicationFabrics/{fabric}")
    async def get_fabric(vault: VaultOf, fabric: str) -> dict[str, Any]:
        if fabric == FABRIC:
            return await services.database.look(lambda session: _own(session, vault, services))
        if fabric in services.fabrics:
            found = services.fabrics[fabric]
            return _hypervisor(vault, found, (await away_reasons(services, [found]))[fabric])
        raise unknown_fabric(services, fabric)

    @routes.post("/replicationFabrics/{fabric}/checkConsistency")
    async def check_consistency(vault: VaultOf, request: Request, fabric: str) -> dict[str, Any]:
        """Asks every component now, then shows the fabric as they told it."""
        shown = await get_fabric(vault, fabric)
        answered, silent = await refresh(services)
        detail = f"{len(answered)} answered, {len(silent)} did not"
        await services.database.run(
            lambda session: note(session, services.clock, request, "check consistency", fabric, detail=detail)
        )
        return await get_fabric(vault, fabric) if fabric == FABRIC else shown

    return routes


def unknown_fabric(services: Services, name: str) -> NotFoundError:
    known = ", ".join([FABRIC, *sorted(services.fabrics)])
    return NotFoundError(f"there is no fabric {name!r}", remedy=f"fabrics: {known}")


def _own(session: Session, vault: Vault, services: Services) -> dict[str, Any]:
    components, items = all_components(session), item_rows(session)
    now = services.clock.wall_ns()
    by_role = {role: [row for row in components if row.role == role.value] for role in Role}
    servers = [_process_server(row, items, now, services) for row in by_role[Role.PROCESS_SERVER]]
    targets = [_master_target(row, now, services) for row in by_role[Role.MASTER_TARGET]]
    agents = [_agent(row, items, now, services) for row in by_role[Role.MOBILITY]]
    details = {
        "instanceType": "VMware",
        "processServers": servers,
        "masterTargetServers": targets,
        "runAsAccounts": [],
        "replicationPairCount": str(sum(len(item.disks) for item in items)),
        "processServerCount": str(len(servers)),
        "agentCount": str(len(agents)),
        "protectedServers": str(len(items)),
        "csServiceStatus": "Running",
        "agentVersion": services.version,
        "versionStatus": "UpToDate",
        "failback": {"agents": agents},
    }
    return envelope(
        vault.resource("replicationFabrics", FABRIC),
        FABRIC_TYPE,
        {"friendlyName": FABRIC, "bcdrState": "Valid", "health": "Normal", "customDetails": details},
    )


def _hypervisor(vault: Vault, site: SiteFabric, away: str) -> dict[str, Any]:
    details = {"instanceType": site.driver, "site": site.side.value}
    return envelope(
        vault.resource("replicationFabrics", site.name),
        FABRIC_TYPE,
        {
            "friendlyName": site.name,
            "bcdrState": "Valid",
            "health": "Critical" if away else "Normal",
            "healthErrorDetails": [fabric_error(site.name, away)] if away else [],
            "customDetails": details,
        },
    )


def _heard(row: ComponentRow, now_ns: int, services: Services) -> dict[str, Any]:
    age = (now_ns - row.last_heartbeat_wall_ns) / 1e9 if row.last_heartbeat_wall_ns else None
    alive = age is not None and age <= services.heartbeat_alarm_seconds
    return {
        "id": row.component_id,
        "ipAddress": row.addresses[0] if row.addresses else "",
        "osType": row.os_family,
        "agentVersion": row.version,
        "lastHeartbeat": timestamp(row.last_heartbeat_wall_ns),
        "versionStatus": "UpToDate",
        "healthErrors": [],
        "failback": {
            "role": row.role,
            "alive": alive,
            "secondsSinceHeartbeat": age,
            "clockSkewSeconds": row.clock_skew_seconds,
            "osVersion": row.os_version,
            "kernel": row.kernel,
            "certificateExpires": timestamp(row.certificate_expiry_wall_ns),
            "assignmentTaken": row.assignment_taken == row.assignment_generation,
            "revoked": row.revoked,
        },
    }


def _process_server(row: ComponentRow, items: list[ItemRow], now_ns: int, services: Services) -> dict[str, Any]:
    status = records.decode(row.status or {}, ProcessServerStatus)
    heard = _heard(row, now_ns, services)
    used = [item for item in items if item.process_server_id == row.component_id]
    return heard | {
        "friendlyName": row.hostname,
        "hostId": row.component_id,
        "machineCount": str(len(used)),
        "replicationPairCount": str(sum(len(item.disks) for item in used)),
        "psServiceStatus": "Running" if heard["failback"]["alive"] else "NotRunning",
        "health": "Normal" if heard["failback"]["alive"] else "Critical",
        "totalSpaceInBytes": status.spool_capacity_bytes,
        "availableSpaceInBytes": status.spool_free_bytes,
        "throughputUploadPendingDataInBytes": sum(machine.pending_bytes for machine in status.machines),
    }


def _master_target(row: ComponentRow, now_ns: int, services: Services) -> dict[str, Any]:
    status = records.decode(row.status or {}, MasterTargetStatus)
    heard = _heard(row, now_ns, services)
    refused = [volume for volume in (*status.retention_volumes, *status.datastores) if volume.problem]
    heard["failback"] |= {"refusedVolumes": [{"name": each.name, "reason": each.problem} for each in refused]}
    return heard | {
        "name": row.hostname,
        "osVersion": row.os_version,
        "diskCount": sum(len(replica.disks) for replica in status.replicas if replica.state != "released"),
        "retentionVolumes": [
            {
                "volumeName": volume.name,
                "capacityInBytes": volume.capacity_bytes,
                "freeSpaceInBytes": volume.free_bytes,
                "thresholdPercentage": None,
            }
            for volume in status.retention_volumes
            if not volume.problem
        ],
        "dataStores": [_datastore(store) for store in status.datastores if not store.problem],
        "validationErrors": [],
    }


def _datastore(store: VolumeFacts) -> dict[str, Any]:
    return {
        "symbolicName": store.name,
        "uuid": store.path,
        "capacity": f"{store.capacity_bytes / (1 << 30):.1f}",
        "freeSpace": f"{store.free_bytes / (1 << 30):.1f}",
        "type": store.filesystem,
    }


def _agent(row: ComponentRow, items: list[ItemRow], now_ns: int, services: Services) -> dict[str, Any]:
    item = next((item for item in items if item.machine_id == row.component_id), None)
    return _heard(row, now_ns, services) | {
        "friendlyName": row.hostname,
        "item": item.name if item else "",
        "twinLastSeen": timestamp(row.twin_last_seen_wall_ns),
    }
