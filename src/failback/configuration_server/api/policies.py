"""``replicationPolicies``, read only: the failback policy is made at installation and applied to every reprotect."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import select

from failback.configuration_server.api.arm import Vault, VaultOf, envelope, listed
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.services import Services
from failback.configuration_server.database.policies import PolicyRow
from failback.errors import NotFoundError


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["policies"])

    @routes.get("/replicationPolicies")
    async def list_policies(vault: VaultOf) -> dict[str, Any]:
        rows = await services.database.look(lambda session: list(session.scalars(select(PolicyRow))))
        return listed(_policy(vault, row) for row in rows)

    @routes.get("/replicationPolicies/{name}")
    async def get_policy(vault: VaultOf, name: str) -> dict[str, Any]:
        row = await services.database.look(lambda session: session.get(PolicyRow, name))
        if row is None:
            raise NotFoundError(f"there is no policy {name!r}")
        return _policy(vault, row)

    return routes


def _policy(vault: Vault, row: PolicyRow) -> dict[str, Any]:
    details = {
        "instanceType": "InMage",
        "recoveryPointThresholdInMinutes": row.recovery_point_threshold_minutes,
        "recoveryPointHistory": row.recovery_point_history_minutes,
        "appConsistentFrequencyInMinutes": row.app_consistent_frequency_minutes,
        "crashConsistentSeconds": row.crash_consistent_seconds,
        "multiVmSyncStatus": "Enabled",
        "editable": row.editable,
    }
    resource = vault.resource("replicationPolicies", row.name)
    return envelope(resource, "replicationPolicies", {"friendlyName": row.name, "providerSpecificDetails": details})
