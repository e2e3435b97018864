"""``replicationJobs``: list (with ``$filter``), show, cancel, restart, resume.

``$filter`` knows ``jobStatus``, ``jobName`` (scenario), ``startTime`` and ``endTime`` (a range of start times), and ours:
``itemName``. The three actions answer 200 with the job: they are requests to it, and the job itself is what is polled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import Vault, VaultOf, filters, last_segment
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.job_shape import exported, job_resource
from failback.configuration_server.api.long_running import job_row
from failback.configuration_server.api.paging import Key, Page, PageOf
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.database.items import ItemRow, named
from failback.configuration_server.database.jobs import JobRow
from failback.errors import ConfigurationError, NotSupportedError
from failback.runtime.clock import from_iso


class ExportRequest(BaseModel):
    """``JobQueryParameter``."""

    model_config = ConfigDict(populate_by_name=True, extra="ignore")
    start: str = Field(default="", alias="startTime")
    end: str = Field(default="", alias="endTime")
    status: str = Field(default="", alias="jobStatus")
    name: str = Field(default="", alias="jobName")
    output: str = Field(default="", alias="jobOutputType")


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["jobs"])

    async def _listed(vault: Vault, page: Page, wanted: str | None, *, full: bool) -> dict[str, Any]:
        after, size = page.after(int, str), services.page_rows
        rows = await services.database.look(lambda session: _rows(session, wanted, after, size + 1))
        return page.listed(
            rows, size,
            lambda found: (found[0].created_wall_ns, found[0].job_id),
            lambda found: job_resource(vault, found[0], item_name=found[1], full=full),
        )  # fmt: skip

    @routes.get("/replicationJobs")
    async def list_jobs(
        vault: VaultOf, page: PageOf, wanted: Annotated[str | None, Query(alias="$filter")] = None
    ) -> dict[str, Any]:
        return await _listed(vault, page, wanted, full=False)

    @routes.post("/replicationJobs/export")
    async def export(vault: VaultOf, request: Request, body: ExportRequest | None = None) -> dict[str, Any]:
        """Answered at once, as a job that is over; its ``blobUri`` is where the exported jobs are read."""
        wanted = body or ExportRequest()
        if wanted.output not in ("", "Json"):
            raise NotSupportedError(
                f"jobs are not exported as {wanted.output}",
                code="OperationNotSupported",
                remedy='"jobOutputType": "Json"',
            )
        clause = " and ".join(
            f"{name} eq '{value}'"
            for name, value in (("jobStatus", wanted.status), ("jobName", wanted.name),
                                ("startTime", wanted.start), ("endTime", wanted.end)) if value
        )  # fmt: skip
        now = services.clock.wall_ns()
        await services.database.look(lambda session: _rows(session, clause, None, 1))  # the filter is understood
        await services.database.run(lambda session: note(session, services.clock, request, "export jobs", clause))
        return exported(vault, clause, now)

    @routes.get("/failback/exportedJobs")
    async def exported_jobs(
        vault: VaultOf, page: PageOf, wanted: Annotated[str | None, Query(alias="$filter")] = None
    ) -> dict[str, Any]:
        return await _listed(vault, page, wanted, full=True)

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


def _rows(session: Session, wanted: str | None, after: Key | None, limit: int) -> list[tuple[JobRow, str]]:
    """Newest first, with the names of their items."""
    value = filters(wanted)
    statement = select(JobRow).order_by(JobRow.created_wall_ns.desc(), JobRow.job_id.desc()).limit(limit)
    if after is not None:
        statement = statement.where(tuple_(JobRow.created_wall_ns, JobRow.job_id) < tuple_(*after))
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
