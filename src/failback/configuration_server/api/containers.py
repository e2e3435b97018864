"""``replicationProtectionContainers`` and the machines that could be protected, as the fabrics know them now."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from failback.configuration_server.api.arm import CONTAINER, FABRIC, Vault, VaultOf, envelope, listed
from failback.configuration_server.api.fabric_calls import ask, site
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.item_view import item_rows
from failback.configuration_server.api.paging import PageOf
from failback.configuration_server.api.services import Services, SiteFabric
from failback.configuration_server.database.items import ItemRow
from failback.errors import NotFoundError
from failback.fabric.interfaces import FabricMachine
from failback.protection.operations import Side

CONTAINER_TYPE = "replicationFabrics/replicationProtectionContainers"
PROTECTABLE_TYPE = f"{CONTAINER_TYPE}/replicationProtectableItems"


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["containers"])

    @routes.get("/replicationProtectionContainers")
    @routes.get("/replicationFabrics/{fabric}/replicationProtectionContainers")
    async def list_containers(vault: VaultOf, fabric: str = FABRIC) -> dict[str, Any]:
        return listed([await container(vault)] if fabric == FABRIC else [])

    @routes.get("/replicationFabrics/{fabric}/replicationProtectionContainers/{name}")
    async def get_container(vault: VaultOf, fabric: str, name: str) -> dict[str, Any]:
        check_container(fabric, name)
        return await container(vault)

    @routes.get("/replicationFabrics/{fabric}/replicationProtectionContainers/{name}/replicationProtectableItems")
    async def list_protectable(vault: VaultOf, page: PageOf, fabric: str, name: str) -> dict[str, Any]:
        check_container(fabric, name)
        items = await services.database.look(item_rows)
        found = []
        for one in services.fabrics.values():
            for machine in await ask(services, one.fabric.machines, one.name):
                found.append(_protectable(vault, one, machine, items))
        return page.of_all(found, services.page_rows, lambda one: str(one["name"]), lambda one: one)

    @routes.get(
        "/replicationFabrics/{fabric}/replicationProtectionContainers/{name}/replicationProtectableItems/{protectable}"
    )
    async def get_protectable(vault: VaultOf, fabric: str, name: str, protectable: str) -> dict[str, Any]:
        check_container(fabric, name)
        site_name, _, machine_id = protectable.partition(".")
        known = site(services, site_name)
        machine = await ask(services, lambda: known.fabric.machine(machine_id), known.name)
        return _protectable(vault, known, machine, await services.database.look(item_rows))

    async def container(vault: Vault) -> dict[str, Any]:
        items = await services.database.look(item_rows)
        properties = {
            "friendlyName": CONTAINER,
            "fabricFriendlyName": FABRIC,
            "fabricType": "VMware",
            "protectedItemCount": len(items),
            "pairingStatus": "Paired",
            "role": "",
        }
        return envelope(vault.container(), CONTAINER_TYPE, properties)

    return routes


def check_container(fabric: str, name: str) -> None:
    """Items live in one container. Raises NotFoundError naming it for another path."""
    if (fabric.lower(), name.lower()) != (FABRIC, CONTAINER):
        raise NotFoundError(
            f"there is no container {name!r} in a fabric {fabric!r}",
            remedy=f"use replicationFabrics/{FABRIC}/replicationProtectionContainers/{CONTAINER}",
        )


def _item_in_container(fabric: str, container: str, item: str) -> str:
    check_container(fabric, container)
    return item


ItemName = Annotated[str, Depends(_item_in_container)]
"""The ``{item}`` of a path under the container, with fabric and container checked."""


def _protectable(vault: Vault, site: SiteFabric, machine: FabricMachine, items: list[ItemRow]) -> dict[str, Any]:
    mine = next((item for item in items if _belongs(item, site, machine)), None)
    properties = {
        "friendlyName": machine.name,
        "protectionStatus": "Protected" if mine else "Unprotected",
        "replicationProtectedItemId": vault.item(mine.name) if mine else None,
        "protectionReadinessErrors": [],
        "supportedReplicationProviders": ["InMageAzureV2" if site.side is Side.ON_PREMISES else "InMage"],
        "customDetails": {
            "instanceType": "VMwareVirtualMachine",
            "poweredOn": machine.power.value,
            "discoveryType": "vCenter" if site.side is Side.ON_PREMISES else "Physical",
            "vCenterInfrastructureId": site.name,
            "diskDetails": [
                {
                    "diskId": disk.serial or disk.target,
                    "diskName": disk.target,
                    "diskSizeInMB": str(disk.size_bytes >> 20),
                    "diskType": "OperatingSystem" if disk.index == 0 else "Data",
                }
                for disk in machine.disks
            ],
            "validationErrors": [],
        },
    }
    resource = f"{vault.container()}/replicationProtectableItems/{site.name}.{machine.fabric_id}"
    return envelope(resource, PROTECTABLE_TYPE, properties)


def _belongs(item: ItemRow, site: SiteFabric, machine: FabricMachine) -> bool:
    places = ((item.on_premises_fabric, item.on_premises_fabric_id), (item.cloud_fabric, item.cloud_fabric_id))
    return (site.name, machine.fabric_id) in places
