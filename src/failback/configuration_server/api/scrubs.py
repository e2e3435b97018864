"""``scrub`` of an item (ours): compare its disks with the replica now, in the background.

No job: the machine goes on replicating and nothing waits for it. How far it is and what it found stands in the item
(``failback.scrub``) and in events.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import CONTAINER_PATH
from failback.configuration_server.api.containers import ItemName
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.item_view import item_row
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.database.items import ItemRow
from failback.errors import ConflictError
from failback.model import orders
from failback.model.ids import MachineId, new_id

BEGINNING_SECONDS = 30.0


class ScrubProperties(BaseModel):
    model_config = ConfigDict(populate_by_name=True, extra="ignore")
    bytes_per_second: float = Field(default=0.0, alias="bytesPerSecond", ge=0)


class ScrubRequest(BaseModel):
    properties: ScrubProperties = Field(default_factory=ScrubProperties)


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=CONTAINER_PATH, route_class=FaultRoute, tags=["scrub"])

    @routes.post("/replicationProtectedItems/{item}/scrub")
    async def scrub(request: Request, item: ItemName, body: ScrubRequest | None = None) -> dict[str, Any]:
        row = await services.database.look(lambda session: _replicating(session, item))
        arguments = orders.Scrub(new_id(), body.properties.bytes_per_second if body else 0.0)
        await services.orders.carry_out(
            row.machine_id or "", orders.SCRUB, 0, arguments, f"scrub {arguments.scrub_id}", BEGINNING_SECONDS
        )
        proving = replace(arguments, replica_of=MachineId(row.machine_id or ""), bytes_per_second=0.0)
        await services.orders.carry_out(
            row.master_target_id or "", orders.SCRUB, 0, proving, f"prove {arguments.scrub_id}", BEGINNING_SECONDS
        )
        await services.database.run(
            lambda session: note(session, services.clock, request, "scrub", row.name, detail=arguments.scrub_id)
        )
        return {"scrubId": arguments.scrub_id}

    return routes


def _replicating(session: Session, item: str) -> ItemRow:
    row = item_row(session, item)
    if not row.replicating or not row.machine_id or not row.master_target_id:
        raise ConflictError(f"{row.name} does not replicate: there is nothing to compare", code="NotReplicating",
                            remedy="reprotect the machine first")  # fmt: skip
    return row
