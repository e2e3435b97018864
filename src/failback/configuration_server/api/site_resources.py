"""How Azure shows a site around its fabric: providers, vCenters, container mappings, the vault's health, alert settings.

All of it is read from what this server has: the configured fabrics (asked whether they answer), the components' last words, the
monitors' verdicts, the policies. *Refresh* asks every living component and fabric now, instead of waiting for its next word.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import (
    CONTAINER,
    CONTAINER_PATH,
    FABRIC,
    Vault,
    VaultOf,
    envelope,
    listed,
    timestamp,
)
from failback.configuration_server.api.containers import CONTAINER_TYPE, check_container
from failback.configuration_server.api.fabric_calls import away_reasons
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.item_view import item_rows
from failback.configuration_server.api.services import Services, SiteFabric
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.database.components import ComponentRow, all_components
from failback.configuration_server.database.events import VerdictRow
from failback.configuration_server.database.policies import PolicyRow
from failback.errors import FailbackError, NotFoundError
from failback.model import orders
from failback.model.components import Role
from failback.model.ids import new_id
from failback.protection.operations import Direction, Side
from failback.protection.readiness.support_matrix import SUPPORTED

VCENTER_TYPE = "replicationFabrics/replicationvCenters"
PROVIDER_TYPE = "replicationFabrics/replicationRecoveryServicesProviders"
MAPPING_TYPE = f"{CONTAINER_TYPE}/replicationProtectionContainerMappings"
ALERTS = "defaultAlertSetting"
HEALTH_PATH = "/replicationVaultHealth"
_ORDER = ("Normal", "Warning", "Critical")


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["site"])
    for part in (_vcenters, _providers, _mappings, _health, _alerts, _systems):
        routes.include_router(part(services))
    return routes


def _vcenters(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute)

    async def found(vault: Vault) -> list[dict[str, Any]]:
        sites = [site for site in services.fabrics.values() if site.side is Side.ON_PREMISES]
        reasons = await away_reasons(services, sites)
        return [_vcenter(vault, site, reasons[site.name], services.clock.wall_ns()) for site in sites]

    @routes.get("/replicationvCenters")
    async def list_all(vault: VaultOf) -> dict[str, Any]:
        return listed(await found(vault))

    @routes.get("/replicationFabrics/{fabric}/replicationvCenters")
    async def list_in_fabric(vault: VaultOf, fabric: str) -> dict[str, Any]:
        return listed(await found(vault) if fabric == FABRIC else [])

    @routes.get("/replicationFabrics/{fabric}/replicationvCenters/{vcenter}")
    async def get_one(vault: VaultOf, fabric: str, vcenter: str) -> dict[str, Any]:
        check_fabric(fabric)
        return _named(await found(vault), vcenter, "vCenter")

    return routes


def _providers(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute)
    own = "/replicationFabrics/{fabric}/replicationRecoveryServicesProviders"

    async def found(vault: Vault) -> list[dict[str, Any]]:
        def look(session: Session) -> tuple[ComponentRow, int]:
            rows = all_components(session, Role.CONFIGURATION_SERVER)
            return rows[0], len(item_rows(session))

        row, count = await services.database.look(look)
        return [_provider(vault, row, count, services)]

    @routes.get("/replicationRecoveryServicesProviders")
    async def list_all(vault: VaultOf) -> dict[str, Any]:
        return listed(await found(vault))

    @routes.get(own)
    async def list_in_fabric(vault: VaultOf, fabric: str) -> dict[str, Any]:
        return listed(await found(vault) if fabric == FABRIC else [])

    @routes.get(own + "/{provider}")
    async def get_one(vault: VaultOf, fabric: str, provider: str) -> dict[str, Any]:
        check_fabric(fabric)
        return _named(await found(vault), provider, "provider")

    @routes.post(own + "/{provider}/refreshProvider")
    async def refresh_provider(vault: VaultOf, request: Request, fabric: str, provider: str) -> dict[str, Any]:
        check_fabric(fabric)
        shown = _named(await found(vault), provider, "provider")
        answered, silent = await refresh(services)
        detail = f"{len(answered)} answered, {len(silent)} did not"
        await services.database.run(
            lambda session: note(session, services.clock, request, "refresh", FABRIC, detail=detail)
        )
        shown["properties"]["failback"] = {"answered": answered, "silent": silent}
        return shown

    return routes


async def refresh(services: Services) -> tuple[list[str], list[str]]:
    """Ask every component that is not revoked for its word now; who answered within ``probe_seconds``, and who did not."""
    rows = await services.database.look(
        lambda session: [row for row in all_components(session) if row.role != Role.CONFIGURATION_SERVER.value]
    )

    async def asked(row: ComponentRow) -> bool:
        try:
            await services.orders.carry_out(
                row.component_id, orders.PROBE, 0, orders.Probe(()), f"refresh {new_id()}", services.probe_seconds
            )
        except FailbackError:
            return False
        return True

    living = [row for row in rows if not row.revoked]
    came = await asyncio.gather(*(asked(row) for row in living))
    pairs = list(zip(living, came, strict=True))
    return [row.hostname for row, here in pairs if here], [row.hostname for row, here in pairs if not here]


def _mappings(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute)
    own = CONTAINER_PATH + "/replicationProtectionContainerMappings"

    async def found(vault: Vault) -> list[dict[str, Any]]:
        rows = await services.database.look(lambda session: list(session.scalars(select(PolicyRow))))
        return [_mapping(vault, row) for row in rows]

    @routes.get("/replicationProtectionContainerMappings")
    async def list_all(vault: VaultOf) -> dict[str, Any]:
        return listed(await found(vault))

    @routes.get(own)
    async def list_in_container(vault: VaultOf, fabric: str, container: str) -> dict[str, Any]:
        check_container(fabric, container)
        return listed(await found(vault))

    @routes.get(own + "/{mapping}")
    async def get_one(vault: VaultOf, fabric: str, container: str, mapping: str) -> dict[str, Any]:
        check_container(fabric, container)
        return _named(await found(vault), mapping, "mapping")

    return routes


def _health(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute)

    async def shown(vault: Vault) -> dict[str, Any]:
        reasons = await away_reasons(services, list(services.fabrics.values()))
        return await services.database.look(lambda session: _vault_health(session, vault, reasons))

    @routes.get(HEALTH_PATH)
    async def get_health(vault: VaultOf) -> dict[str, Any]:
        return await shown(vault)

    @routes.post(f"{HEALTH_PATH}/default/refresh")
    async def refresh_health(vault: VaultOf, request: Request) -> dict[str, Any]:
        await refresh(services)
        await services.database.run(lambda session: note(session, services.clock, request, "refresh", "vault health"))
        return await shown(vault)

    return routes


def _alerts(_services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute)

    def setting(vault: Vault) -> dict[str, Any]:
        properties = {"sendToOwners": "DoNotSend", "customEmailAddresses": [], "locale": ""}
        return envelope(vault.resource("replicationAlertSettings", ALERTS), "replicationAlertSettings", properties)

    @routes.get("/replicationAlertSettings")
    async def list_settings(vault: VaultOf) -> dict[str, Any]:
        return listed([setting(vault)])

    @routes.get("/replicationAlertSettings/{setting_name}")
    async def get_setting(vault: VaultOf, setting_name: str) -> dict[str, Any]:
        return _named([setting(vault)], setting_name, "alert setting")

    return routes


def _systems(_services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute)

    @routes.get("/replicationSupportedOperatingSystems")
    async def supported(vault: VaultOf, provider: Annotated[str, Query(alias="instanceType")] = "") -> dict[str, Any]:
        """Those that are tried; a system that is not in the list is judged by readiness and its capture's self-test."""
        wanted = [one.provider for one in Direction if provider in ("", one.provider)]
        systems = [
            {
                "osName": name,
                "osType": family.capitalize(),
                "osVersions": [
                    {"version": one.version, "servicePack": None}
                    for one in SUPPORTED
                    if (one.family, one.name) == (family, name)
                ],
            }
            for family, name in dict.fromkeys((one.family, one.name) for one in SUPPORTED)
        ]
        properties = {"supportedOsList": [{"instanceType": one, "supportedOs": systems} for one in wanted]}
        path = "replicationSupportedOperatingSystems"
        return envelope(vault.resource(path), path, properties)

    return routes


def check_fabric(fabric: str) -> None:
    """Raises NotFoundError naming the fabric that has what is asked for."""
    if fabric != FABRIC:
        raise NotFoundError(f"there is none in a fabric {fabric!r}", remedy=f"use replicationFabrics/{FABRIC}")


def _named(found: Sequence[dict[str, Any]], name: str, what: str) -> dict[str, Any]:
    for one in found:
        if one["name"].lower() == name.lower():
            return one
    known = ", ".join(one["name"] for one in found) or "none"
    raise NotFoundError(f"there is no {what} {name!r}", remedy=f"there are: {known}")


def _vcenter(vault: Vault, site: SiteFabric, reason: str, now_ns: int) -> dict[str, Any]:
    properties = {
        "friendlyName": site.name,
        "internalId": site.name,
        "lastHeartbeat": None if reason else timestamp(now_ns),
        "discoveryStatus": f"Failed: {reason}" if reason else "Completed",
        "infrastructureId": site.name,
        "fabricArmResourceName": FABRIC,
        "healthErrors": [fabric_error(site.name, reason)] if reason else [],
        "failback": {"driver": site.driver},
    }
    resource = vault.resource("replicationFabrics", FABRIC, "replicationvCenters", site.name)
    return envelope(resource, VCENTER_TYPE, properties)


def fabric_error(name: str, reason: str) -> dict[str, Any]:
    """The health error of a fabric that does not answer."""
    return {
        "errorSource": "Failback", "errorType": "fabric", "errorLevel": "Critical", "errorCategory": "FabricInfrastructure",
        "errorCode": "FabricFailed", "summaryMessage": f"the fabric {name} does not answer", "errorMessage": reason,
        "recommendedAction": "check the hypervisor's service and the network to it", "entityId": name,
        "customerResolvability": "Allowed", "innerHealthErrors": [],
    }  # fmt: skip


def _provider(vault: Vault, row: ComponentRow, protected: int, services: Services) -> dict[str, Any]:
    properties = {
        "fabricType": "VMware",
        "friendlyName": row.hostname,
        "providerVersion": services.version,
        "serverVersion": services.version,
        "providerVersionState": "UpToDate",
        "fabricFriendlyName": FABRIC,
        "lastHeartBeat": timestamp(services.clock.wall_ns()),
        "connectionStatus": "Connected",
        "protectedItemCount": protected,
        "allowedScenarios": [],
        "healthErrorDetails": [],
        "draIdentifier": row.component_id,
        "machineId": row.component_id,
        "machineName": row.hostname,
        "biosId": row.hardware_id,
        "providerVersionDetails": {"version": services.version, "status": "NotRequired"},
    }
    resource = vault.resource("replicationFabrics", FABRIC, "replicationRecoveryServicesProviders", FABRIC)
    return envelope(resource, PROVIDER_TYPE, properties)


def _mapping(vault: Vault, row: PolicyRow) -> dict[str, Any]:
    properties = {
        "targetProtectionContainerId": vault.container(),
        "targetProtectionContainerFriendlyName": CONTAINER,
        "sourceProtectionContainerFriendlyName": CONTAINER,
        "sourceFabricFriendlyName": FABRIC,
        "targetFabricFriendlyName": FABRIC,
        "policyId": vault.resource("replicationPolicies", row.name),
        "policyFriendlyName": row.name,
        "state": "Paired",
        "health": "Normal",
        "healthErrorDetails": [],
        "providerSpecificDetails": {"instanceType": "InMage"},
    }
    return envelope(f"{vault.container()}/replicationProtectionContainerMappings/{row.name}", MAPPING_TYPE, properties)


def _vault_health(session: Session, vault: Vault, away: dict[str, str]) -> dict[str, Any]:
    items = item_rows(session)
    verdicts = list(session.scalars(select(VerdictRow).where(VerdictRow.level != "Normal")))
    of_items = [one for one in verdicts if one.subject_id in {item.item_id for item in items}]
    of_servers = [one for one in verdicts if one.subject_id in {row.component_id for row in all_components(session)}]
    own = max((one.level for one in of_servers), key=_ORDER.index, default="Normal")
    fabrics = [own, *("Critical" if reason else "Normal" for reason in away.values())]
    issues = _issues(of_servers, "Server")
    issues += [
        _issue("FabricFailed", "FabricInfrastructure", "Error", why, "Fabric", [name])
        for name, why in away.items()
        if why
    ]
    levels = [item.replication_health if item.replication_health in _ORDER else "None" for item in items]
    properties = {
        "vaultErrors": [],
        "protectedItemsHealth": _summary(levels, _issues(of_items, "ProtectedItem")),
        "fabricsHealth": _summary(fabrics, issues),
        "containersHealth": _summary(["Normal"], []),
    }
    return envelope(vault.resource("replicationVaultHealth", "default"), "replicationVaultHealth", properties)


def _summary(levels: Sequence[str], issues: list[dict[str, Any]]) -> dict[str, Any]:
    return {"resourceCount": len(levels), "categorizedResourceCounts": dict(Counter(levels)), "issues": issues}


def _issues(verdicts: Sequence[VerdictRow], kind: str) -> list[dict[str, Any]]:
    """One for each code and level, with all that it is said of."""
    groups: dict[tuple[str, str], list[VerdictRow]] = {}
    for one in verdicts:
        groups.setdefault((one.code or one.rule, one.level), []).append(one)
    severities = {"Critical": "Error", "Warning": "Warning"}
    return [
        _issue(code, "Replication", severities[level], members[0].sentence, kind, [one.subject_id for one in members])
        for (code, level), members in sorted(groups.items())
    ]


def _issue(code: str, category: str, severity: str, sentence: str, kind: str, ids: list[str]) -> dict[str, Any]:  # noqa: PLR0917
    return {
        "summaryCode": code, "category": category, "severity": severity, "summaryMessage": sentence,
        "affectedResourceType": kind, "affectedResourceSubtype": "", "affectedResourceCorrelationIds": ids,
    }  # fmt: skip
