"""What Azure's API knows and this server has not: lists that are truly empty, and operations that it refuses with the reason.

A client that walks all collections works; one that asks for something else is told what to use instead, in an answer that is
no surprise (400 ``OperationNotSupported``, 404) and not as if the path were misspelt. ``docs/api.md`` shows these tables.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request

from failback.configuration_server.api.arm import CONTAINER_PATH
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.services import Services
from failback.errors import NotFoundError, NotSupportedError

CODE = "OperationNotSupported"
_FABRIC = "/replicationFabrics/{fabric}"
_CONTAINER = f"{_FABRIC}/replicationProtectionContainers/{{name}}"
_ITEM = f"{CONTAINER_PATH}/replicationProtectedItems/{{item}}"
_MAPPING = f"{CONTAINER_PATH}/replicationProtectionContainerMappings/{{mapping}}"
_VCENTER = f"{_FABRIC}/replicationvCenters/{{vcenter}}"
_PROVIDER = f"{_FABRIC}/replicationRecoveryServicesProviders/{{provider}}"
_PLAN = "/replicationRecoveryPlans/{plan}"

_NETWORKS = "a machine keeps the networks of its own definition; none are mapped"
_STORAGE = "disks go back to where they were, or to the datastore that a reprotect names"
_PLANS = "there are no recovery plans yet; replication groups bring machines home together"

EMPTY: dict[str, str] = {
    "/replicationNetworks": _NETWORKS,
    f"{_FABRIC}/replicationNetworks": _NETWORKS,
    "/replicationNetworkMappings": _NETWORKS,
    f"{_FABRIC}/replicationNetworks/{{network}}/replicationNetworkMappings": _NETWORKS,
    f"{_FABRIC}/replicationLogicalNetworks": _NETWORKS,
    "/replicationStorageClassifications": _STORAGE,
    f"{_FABRIC}/replicationStorageClassifications": _STORAGE,
    "/replicationStorageClassificationMappings": _STORAGE,
    f"{_FABRIC}/replicationStorageClassifications/{{classification}}/replicationStorageClassificationMappings": _STORAGE,
    "/replicationMigrationItems": "nothing is migrated for good: machines are protected and come back",
    f"{CONTAINER_PATH}/replicationMigrationItems": "nothing is migrated for good: machines are protected and come back",
    "/replicationProtectionClusters": "clusters with shared disks are not protected",
    f"{CONTAINER_PATH}/replicationProtectionClusters": "clusters with shared disks are not protected",
    "/replicationProtectionIntents": "protection is never merely intended: an item is there or not",
    "/replicationAppliances": "there is no appliance: process servers and master targets stand in the fabric",
    "/replicationRecoveryPlans": _PLANS,
    "/replicationVaultSettings": "the vault has no settings of this kind",
}
"""Collections without members, and why. One that is asked for by name is not found."""

_CONFIGURED = ("it is configured in the server's TOML ([[fabrics]])", "edit the file and restart the server")
_OWN_CONTAINER = ("there is one container, made at installation", "use replicationProtectionContainers/machines")
_ONE_POLICY = (
    "the failback policy is made at installation and applied to every reprotect",
    "PATCH changes its figures",
)
_PUSH = ("the mobility service is not pushed from here", "failback mobility bundle makes an offline installer")
_FOLLOWED = ("disks that join or leave a machine are followed by themselves", "see the job UpdateReplicaDisks")
_NOT_YET = "this server cannot do it yet"
_NO_PLANS = (_NOT_YET, "use a replication group (failback group), or the operation of each item")

REFUSED: dict[tuple[str, str], tuple[str, str]] = {
    ("PUT", _FABRIC): _CONFIGURED,
    ("DELETE", _FABRIC): _CONFIGURED,
    ("POST", f"{_FABRIC}/remove"): _CONFIGURED,
    ("POST", f"{_FABRIC}/removeInfra"): _CONFIGURED,
    ("POST", f"{_FABRIC}/renewCertificate"): ("certificates renew themselves", "nothing is to be done"),
    ("POST", f"{_FABRIC}/migratetoaad"): ("clients sign in at this server itself", "failback client create"),
    ("POST", f"{_FABRIC}/reassociateGateway"): ("items move one by one", "POST switchProcessServer to each item"),
    ("PUT", _CONTAINER): _OWN_CONTAINER,
    ("POST", f"{_CONTAINER}/remove"): _OWN_CONTAINER,
    ("POST", f"{_CONTAINER}/discoverProtectableItem"): ("machines are found by their fabrics", "configure the fabric"),
    ("POST", f"{_CONTAINER}/switchprotection"): ("the direction is turned by reProtect of the item", "POST reProtect"),
    ("POST", f"{_CONTAINER}/switchClusterProtection"): ("clusters are not protected", "protect single machines"),
    ("DELETE", _ITEM): ("an item is not dropped while disks may still be attached", "POST remove ends the protection in order"),
    ("POST", f"{_ITEM}/plannedFailover"): (_NOT_YET, "POST unplannedFailover: it stops the machine and takes its last write"),
    ("POST", f"{_ITEM}/testFailover"): (_NOT_YET, "open a point as disks instead: failback view open"),
    ("POST", f"{_ITEM}/testFailoverCleanup"): (_NOT_YET, "there is no test failover to clean up"),
    ("POST", f"{_ITEM}/addDisks"): _FOLLOWED,
    ("POST", f"{_ITEM}/removeDisks"): _FOLLOWED,
    ("POST", f"{_ITEM}/resolveHealthErrors"): ("health is judged anew every few seconds", "do what the error recommends"),
    ("POST", f"{_ITEM}/switchProvider"): ("there is one provider", "nothing is to be switched"),
    ("POST", f"{_ITEM}/updateAppliance"): ("there is no appliance", "POST switchProcessServer moves an item"),
    ("POST", f"{_ITEM}/updateMobilityService"): _PUSH,
    ("POST", f"{_ITEM}/reinstallMobilityService"): _PUSH,
    ("PUT", _MAPPING): _ONE_POLICY,
    ("PATCH", _MAPPING): _ONE_POLICY,
    ("DELETE", _MAPPING): _ONE_POLICY,
    ("POST", f"{_MAPPING}/remove"): _ONE_POLICY,
    ("PUT", _VCENTER): _CONFIGURED,
    ("PATCH", _VCENTER): _CONFIGURED,
    ("DELETE", _VCENTER): _CONFIGURED,
    ("PUT", _PROVIDER): ("this server is its own provider", "nothing is to be registered"),
    ("DELETE", _PROVIDER): ("this server is its own provider", "nothing is to be removed"),
    ("POST", f"{_PROVIDER}/remove"): ("this server is its own provider", "nothing is to be removed"),
    ("PUT", "/replicationPolicies/{name}"): _ONE_POLICY,
    ("DELETE", "/replicationPolicies/{name}"): _ONE_POLICY,
    ("PUT", "/replicationAlertSettings/{setting}"): (
        "this server sends no mail", "let a monitor read GET /metrics or replicationEvents"),
    ("PUT", "/replicationVaultSettings/{setting}"): (_NOT_YET, "nothing is to be set"),
    ("PUT", "/replicationProtectionIntents/{intent}"): (_NOT_YET, "PUT the protected item itself"),
    ("PUT", _PLAN): _NO_PLANS,
    ("PATCH", _PLAN): _NO_PLANS,
    ("DELETE", _PLAN): _NO_PLANS,
    **{("POST", f"{_PLAN}/{action}"): _NO_PLANS for action in (
        "failoverCancel", "failoverCommit", "plannedFailover", "unplannedFailover", "testFailover", "testFailoverCleanup",
        "reProtect")},
}  # fmt: skip
"""Operations that are refused: the reason, and what to do instead."""


def router(_services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["not available"])
    for path, why in EMPTY.items():
        routes.add_api_route(path, _nothing(), methods=["GET"], name=f"list {path}", description=why)
        routes.add_api_route(f"{path}/{{member}}", _missing(why), methods=["GET"], name=f"get {path}", description=why)
    for (method, path), (reason, remedy) in REFUSED.items():
        routes.add_api_route(
            path, _refused(reason, remedy), methods=[method], name=f"{method} {path}", description=f"Refused: {reason}."
        )
    return routes


def _nothing() -> Callable[[], Awaitable[dict[str, Any]]]:
    async def nothing() -> dict[str, Any]:
        return {"value": [], "nextLink": None}

    return nothing


def _missing(why: str) -> Callable[[str], Awaitable[None]]:
    async def missing(member: str) -> None:
        raise NotFoundError(f"there is no {member!r}: {why}")

    return missing


def _refused(reason: str, remedy: str) -> Callable[[Request], Awaitable[None]]:
    async def refused(request: Request) -> None:
        raise NotSupportedError(f"not supported: {reason}", code=CODE, remedy=remedy)

    return refused
