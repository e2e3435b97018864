"""``replicationPolicies``: the failback policy is made at installation and applied to every reprotect.

PATCH changes its figures, and master targets keep to them with their next heartbeat. Nothing else of a policy changes: it
is neither made nor removed here.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.api import inputs
from failback.configuration_server.api.arm import Vault, VaultOf, envelope, listed
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.database.items import all_items
from failback.configuration_server.database.policies import PolicyRow
from failback.configuration_server.registry import announce_item
from failback.errors import NotFoundError
from failback.protection import policy_rules
from failback.protection.bandwidth_rules import spoken_rate, spoken_window
from failback.runtime import records


class Step(BaseModel):
    older_than_minutes: int = Field(alias="olderThanInMinutes")
    every_minutes: int = Field(alias="everyInMinutes")


class Settings(BaseModel):
    recovery_point_threshold_minutes: int | None = Field(default=None, alias="recoveryPointThresholdInMinutes")
    recovery_point_history_minutes: int | None = Field(default=None, alias="recoveryPointHistory")
    app_consistent_frequency_minutes: int | None = Field(default=None, alias="appConsistentFrequencyInMinutes")
    crash_consistent_seconds: int | None = Field(default=None, alias="crashConsistentSeconds")
    redo_window_seconds: int | None = Field(default=None, alias="redoWindowInSeconds")
    thinning: list[Step] | None = None
    bandwidth: inputs.BandwidthSettings | None = None
    """Our extension: of each machine under the policy that has no limit of its own."""


class PolicyProperties(BaseModel):
    settings: Settings = Field(default_factory=Settings, alias="replicationProviderSettings")


class PolicyRequest(BaseModel):
    properties: PolicyProperties


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

    @routes.patch("/replicationPolicies/{name}")
    async def change_policy(vault: VaultOf, request: Request, name: str, body: PolicyRequest) -> dict[str, Any]:
        def work(session: Session) -> PolicyRow:
            row = session.get(PolicyRow, name)
            if row is None:
                raise NotFoundError(f"there is no policy {name!r}")
            settings = body.properties.settings
            changed = settings.model_dump(exclude_none=True)
            steps = changed.pop("thinning", None)
            if changed.pop("bandwidth", None) is not None and settings.bandwidth is not None:
                row.bandwidth = records.encode(inputs.changed_bandwidth(row.bandwidth_limit(), settings.bandwidth))
            for field, value in changed.items():
                setattr(row, field, value)
            if steps is not None:
                row.thinning = {"steps": [[step["older_than_minutes"], step["every_minutes"]] for step in steps]}
            policy_rules.check(row.policy())
            note(
                session,
                services.clock,
                request,
                "change policy",
                name,
                detail=json.dumps(sorted(settings.model_fields_set)),
            )
            return row

        row = await services.database.run(work)
        for item in await services.database.look(all_items):
            announce_item(services.news, item)
        return _policy(vault, row)

    return routes


def _policy(vault: Vault, row: PolicyRow) -> dict[str, Any]:
    details = {
        "instanceType": "InMage",
        "recoveryPointThresholdInMinutes": row.recovery_point_threshold_minutes,
        "recoveryPointHistory": row.recovery_point_history_minutes,
        "appConsistentFrequencyInMinutes": row.app_consistent_frequency_minutes,
        "crashConsistentSeconds": row.crash_consistent_seconds,
        "redoWindowInSeconds": row.redo_window_seconds,
        "thinning": [
            {"olderThanInMinutes": step.older_than_minutes, "everyInMinutes": step.every_minutes}
            for step in row.policy().thinning
        ],
        "bandwidth": {
            "limit": spoken_rate(row.bandwidth_limit().bytes_per_second),
            "schedule": [spoken_window(window) for window in row.bandwidth_limit().windows],
            "timeZone": row.bandwidth_limit().time_zone,
        },
        "multiVmSyncStatus": "Enabled",
        "editable": row.editable,
    }
    resource = vault.resource("replicationPolicies", row.name)
    return envelope(resource, "replicationPolicies", {"friendlyName": row.name, "providerSpecificDetails": details})
