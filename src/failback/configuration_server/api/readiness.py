"""``readiness`` of an item (our extension): all findings at once, before anything is touched, and what it will take.

The same evaluation is the prerequisite check of a reprotect and of a failback (:func:`preflight_of`). ``refresh=true`` makes
the process server, the master target and the agent report anew before they are judged, instead of waiting for their
next heartbeat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query

from failback.configuration_server.api.arm import CONTAINER_PATH, VaultOf
from failback.configuration_server.api.containers import ItemName
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.readiness_facts import ReadinessChoice, gather, volume_named
from failback.configuration_server.api.services import Services, Surroundings
from failback.configuration_server.workflows.inputs import FailoverInputs, ReprotectInputs
from failback.protection.operations import Operation
from failback.protection.readiness import Check, estimate, evaluate, ready
from failback.runtime import records

__all__ = ["preflight_of", "router", "volume_named"]


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=CONTAINER_PATH, route_class=FaultRoute, tags=["readiness"])

    @routes.get("/replicationProtectedItems/{item}/readiness")
    async def readiness(vault: VaultOf, item: ItemName, choice: Annotated[ReadinessChoice, Depends(_choice)]) -> Any:
        facts = await gather(services, item, choice)
        checks = evaluate(facts)
        return {
            "id": f"{vault.item(item)}/readiness",
            "operation": "failback" if choice.operation is Operation.FAILOVER else "reprotect",
            "ready": ready(checks),
            "value": records.encode(checks),
            "estimate": records.encode(estimate(facts.transfer)),
        }

    return routes


def _choice(
    *,
    process_server: Annotated[str, Query(alias="processServer")] = "",
    master_target: Annotated[str, Query(alias="masterTarget")] = "",
    retention_volume: Annotated[str, Query(alias="retentionVolume")] = "",
    datastore: str = "",
    operation: Literal["reprotect", "failback"] = "reprotect",
    source_lost: Annotated[bool, Query(alias="sourceLost")] = False,
    refresh: bool = False,
    comparison_minutes: Annotated[int, Query(alias="comparisonMinutes", ge=0)] = 0,
    probe: bool = True,
) -> ReadinessChoice:
    asked = Operation.FAILOVER if operation == "failback" else Operation.REPROTECT
    return ReadinessChoice(
        process_server, master_target, retention_volume, datastore, asked, source_lost=source_lost, refresh=refresh,
        comparison_minutes=comparison_minutes, probe=probe,
    )  # fmt: skip


def preflight_of(
    services: Surroundings,
) -> Callable[[str, ReprotectInputs | FailoverInputs, str], Awaitable[Sequence[Check]]]:
    """What the prerequisite check of a job calls with its item, inputs and own job's id."""

    async def preflight(item_id: str, inputs: ReprotectInputs | FailoverInputs, own_job_id: str) -> Sequence[Check]:
        if isinstance(inputs, FailoverInputs):
            choice = ReadinessChoice(operation=Operation.FAILOVER, source_lost=not inputs.shut_down_source)
        else:
            choice = ReadinessChoice(
                inputs.process_server_id, inputs.master_target_id, inputs.retention_volume, inputs.datastore,
                comparison_minutes=inputs.comparison_minutes,
            )  # fmt: skip
        return evaluate(await gather(services, item_id, choice, own_job_id=own_job_id))

    return preflight
