"""Jobs that a monitor begins by itself.

Each has a key, so that a restarted server finds the job that it began. One that failed is tried again after a while; one that
succeeded or was cancelled is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.jobs import scenario as words
from failback.configuration_server.jobs.engine import JobEngine

AGAIN_AFTER_SECONDS = 60.0
STARTED_BY = "monitor"


@dataclass(frozen=True, slots=True)
class DueJob:
    """``name`` is the item's, for people; ``failed_job_id``: the job of this key that is to be restarted."""

    scenario: str
    item_id: str
    name: str
    key: str
    inputs: dict[str, Any] = field(default_factory=dict)
    failed_job_id: str = ""


def due_now(session: Session, job: DueJob, now_wall_ns: int) -> DueJob | None:
    """The job as it has to be begun or restarted now; None when it runs, is over or failed a moment ago."""
    known = session.scalars(select(JobRow).where(JobRow.key == job.key)).first()
    if known is None:
        return job
    rested = now_wall_ns - known.ended_wall_ns > AGAIN_AFTER_SECONDS * 1e9
    return replace(job, failed_job_id=known.job_id) if known.state == words.FAILED and rested else None


async def begin(engine: JobEngine, due: DueJob) -> str:
    """The id of the job that was begun or restarted. Raises FailbackError, ConflictError when another job came first."""
    if due.failed_job_id:
        await engine.restart(due.failed_job_id)
        return due.failed_job_id
    return await engine.start(due.scenario, due.item_id, due.inputs, due.key, started_by=STARTED_BY)
