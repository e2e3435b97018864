"""``POST /components/v1/group-hold``: a member of a replication group says where it is, and is answered when all are (D19).

Bodies are the encoded dataclasses of :mod:`failback.model.groups`; the machine is known by its client certificate.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from failback.configuration_server.enrolment.routes import PEER, answered, body_of
from failback.configuration_server.workflows.group_point import GroupPoints
from failback.errors import AuthenticationError
from failback.model.components import Role
from failback.model.groups import HoldStep
from failback.model.ids import MachineId
from failback.runtime import records
from failback.transport.identity import PeerIdentity


def group_router(groups: GroupPoints) -> APIRouter:
    router = APIRouter(prefix="/components/v1")

    @router.post("/group-hold")
    async def group_hold(request: Request) -> JSONResponse:
        async def work() -> Any:
            peer: PeerIdentity | None = request.scope.get(PEER)
            if peer is None or peer.role is not Role.MOBILITY:
                raise AuthenticationError("a replication group's step needs a mobility service's certificate")
            step = await body_of(request, HoldStep)
            return records.encode(await groups.step(MachineId(peer.component_id), step))

        return await answered(work)

    return router
