"""Long-running operations as Azure's clients poll them.

A change answers 202 with ``Azure-AsyncOperation`` (the status document) and ``Location`` (the result: 202 while it runs,
then the resource or the error). Both name the job. A cancelled job's status is ``Canceled``: "Cancelled" would make the
clients poll for ever.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import Vault, VaultOf, timestamp
from failback.configuration_server.api.faults import FaultRoute, error_body
from failback.configuration_server.api.services import Services
from failback.configuration_server.database.jobs import JobRow
from failback.errors import ConflictError, FailbackError, NotFoundError, from_dict

RETRY_AFTER_SECONDS = 1
STATUSES = {
    "Succeeded": "Succeeded",
    "CompletedWithInformation": "Succeeded",
    "Failed": "Failed",
    "Cancelled": "Canceled",
}
"""Status of the operation for a job's state; any other state is still InProgress."""


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["operations"])

    @routes.get("/replicationOperationStatus/{job_id}")
    async def operation_status(vault: VaultOf, job_id: str) -> JSONResponse:
        job = await services.database.look(lambda session: job_row(session, job_id))
        return JSONResponse(_document(job), headers={"Retry-After": str(RETRY_AFTER_SECONDS)})

    return routes


def job_row(session: Session, job_id: str) -> JobRow:
    """The job. Raises NotFoundError."""
    row = session.get(JobRow, job_id)
    if row is None:
        raise NotFoundError(f"there is no job {job_id!r}", remedy="failback job list")
    return row


def accepted(vault: Vault, resource_id: str, job_id: str) -> Response:
    """202 for a job that was started on a resource."""
    headers = {
        "Location": vault.url(f"{resource_id}/operationresults/{job_id}"),
        "Azure-AsyncOperation": vault.url(vault.resource("replicationOperationStatus", job_id)),
        "Retry-After": str(RETRY_AFTER_SECONDS),
        "x-ms-request-id": quote(vault.job(job_id)),
    }
    return Response(status_code=202, headers=headers)


def unfinished(vault: Vault, resource_id: str, job: JobRow) -> Response | None:
    """The 202 of an operation that still runs; None when it is over well. Raises the job's error when it failed."""
    status = STATUSES.get(job.state)
    if status is None:
        return accepted(vault, resource_id, job.job_id)
    if status != "Succeeded":
        raise failure_of(job)
    return None


def failure_of(job: JobRow) -> FailbackError:
    """Why the job ended without success: the newest error of its last attempt."""
    if job.state == "Cancelled":
        return ConflictError(
            f"the job {job.friendly_name} was cancelled", code="OperationCanceled", remedy="start it again when ready"
        )
    errors = [error for error in job.errors if error.attempt == job.attempt] or list(job.errors)
    if not errors:
        return FailbackError(job.state_description or f"the job {job.friendly_name} failed", remedy="failback job show")
    newest = errors[-1]
    error = from_dict(
        {
            "code": newest.code,
            "message": newest.message,
            "possible_causes": newest.possible_causes,
            "remedy": newest.recommended_action,
        }
    )
    # A failed job is a conflict with the state of the world, whatever class its error had inside.
    return ConflictError(error.message, code=newest.code, remedy=error.remedy, possible_causes=error.possible_causes)


def _document(job: JobRow) -> dict[str, Any]:
    status = STATUSES.get(job.state, "InProgress")
    done = [task for task in job.tasks if task.state in ("Succeeded", "Other")]
    return {
        "id": None,
        "name": job.job_id,
        "status": status,
        "startTime": timestamp(job.started_wall_ns or job.created_wall_ns),
        "endTime": timestamp(job.ended_wall_ns) if job.ended_wall_ns else None,
        "error": error_body(failure_of(job))["error"] if status in ("Failed", "Canceled") else None,
        "properties": None,
        "percentComplete": 100 * len(done) / len(job.tasks) if job.tasks else None,
    }
