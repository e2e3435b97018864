"""``replicationJobs``: list (with ``$filter``), show, cancel, restart, resume.

``$filter`` knows ``jobStatus``, ``jobName`` (scenario), ``startTime`` and ``endTime`` (a range of start times), and ours:
``itemName``. The three actions answer 200 with the job: they are requests to it, and the job itself is what is polled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import Vault, VaultOf, filters, last_segment, listed
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.job_shape import job_resource
from failback.configuration_server.api.long_running import job_row
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.database.items import ItemRow, named
from failback.configuration_server.database.jobs import JobRow
from failback.errors import ConfigurationError
from failback.runtime.clock import from_iso

PAGE = 500


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["jobs"])

    @routes.get("/replicationJobs")
    async def list_jobs(vault: VaultOf, wanted: Annotated[str | None, Query(alias="$filter")] = None) -> dict[str, Any]:
        rows = await services.database.look(lambda session: _rows(session, wanted))
        return listed(job_resource(vault, row, item_name=name, full=False) for row, name in rows)

    @routes.get("/replicationJobs/{job_id}")
    async def get_job(vault: VaultOf, job_id: str) -> dict[str, Any]:
        return await _shown(vault, job_id)

    @routes.post("/replicationJobs/{job_id}/cancel")
    async def cancel(vault: VaultOf, request: Request, job_id: str) -> dict[str, Any]:
        return await _asked(vault, request, job_id, "cancel job", services.jobs.cancel)

    @routes.post("/replicationJobs/{job_id}/restart")
    async def restart(vault: VaultOf, request: Request, job_id: str) -> dict[str, Any]:
        return await _asked(vault, request, job_id, "restart job", services.jobs.restart)

    @routes.post("/replicationJobs/{job_id}/resume")
    async def resume(vault: VaultOf, request: Request, job_id: str) -> dict[str, Any]:
        return await _asked(vault, request, job_id, "resume job", services.jobs.resume)

    async def _asked(
        vault: Vault, request: Request, job_id: str, action: str, ask: Callable[[str], Awaitable[object]]
    ) -> dict[str, Any]:
        await services.database.look(lambda session: job_row(session, job_id))
        await ask(job_id)
        await services.database.run(lambda session: note(session, services.clock, request, action, job_id))
        return await _shown(vault, job_id)

    async def _shown(vault: Vault, job_id: str) -> dict[str, Any]:
        def look(session: Session) -> tuple[JobRow, str]:
            row = job_row(session, last_segment(job_id))
            return row, _item_name(session, row)

        row, name = await services.database.look(look)
        return job_resource(vault, row, item_name=name)

    return routes


def _item_name(session: Session, row: JobRow) -> str:
    item = session.get(ItemRow, row.item_id) if row.item_id else None
    return item.name if item else ""


def _rows(session: Session, wanted: str | None) -> list[tuple[JobRow, str]]:
    value = filters(wanted)
    statement = select(JobRow).order_by(JobRow.created_wall_ns.desc()).limit(PAGE)
    if value("jobStatus"):
        statement = statement.where(JobRow.state == value("jobStatus"))
    if value("jobName"):
        statement = statement.where(JobRow.scenario == value("jobName"))
    if value("itemName"):
        statement = statement.where(JobRow.item_id == named(session, value("itemName")).item_id)
    for name, compare in (("startTime", JobRow.created_wall_ns.__ge__), ("endTime", JobRow.created_wall_ns.__le__)):
        if value(name):
            statement = statement.where(compare(_moment(value(name))))
    return [(row, _item_name(session, row)) for row in session.scalars(statement)]


def _moment(text: str) -> int:
    try:
        return from_iso(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is not a time", code="InvalidFilter", remedy="use ISO 8601") from None
