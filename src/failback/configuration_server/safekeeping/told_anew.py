"""What a restored database is told before a server opens it: that the world has gone on since.

Every number that others compare (assignment generations, generations of items, epochs) goes far above what the lost database
can have given out, so that no component takes a new word for one that it knows. Jobs that ran on the day of the backup may have
ended since, in whatever way: they fail, and a person restarts or cancels them; their open orders are void. Groups of points,
health and statuses come again with the next heartbeats.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database import events, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.jobs import JobErrorRow, JobRow
from failback.configuration_server.database.orders import OrderRow
from failback.configuration_server.jobs import scenario as words
from failback.errors import StaleEpochError
from failback.model.components import OrderState

LEAP = 1_000_000
"""More than a database can have given out between a backup and its loss."""
RESTORED = "ConfigurationServerRestored"


def tell_anew(session: Session, made_wall_ns: int, now_wall_ns: int) -> list[str]:
    """Returns the names of the jobs that were stopped. ``made_wall_ns``: when the backup was made."""
    day = f"{datetime.fromtimestamp(made_wall_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
    for component in session.scalars(select(ComponentRow)):
        component.assignment_generation += LEAP
        component.assignment_digest = ""
    for item in items.all_items(session):
        item.generation += LEAP
        item.epoch_highest = max(item.epoch_highest, item.epoch, item.epoch_floor) + LEAP
        item.current_job_id = None
    stopped = []
    for job in session.scalars(select(JobRow).where(JobRow.state.not_in(sorted(words.FINAL_STATES)))):
        _fail(job, day, now_wall_ns)
        stopped.append(f"{job.friendly_name} of {job.target_name}")
    void = StaleEpochError(f"the order is from before the restore of a backup of {day}").as_dict()
    for order in session.scalars(select(OrderRow).where(OrderRow.finished_wall_ns == 0)):
        order.state, order.error, order.finished_wall_ns = OrderState.FAILED.value, void, now_wall_ns
    sentence = (
        f"The configuration server was restored from a backup of {day}; what happened since is not in its history."
    )
    if stopped:
        sentence += f" Stopped: {', '.join(stopped)}."
    events.record(session, now_wall_ns, RESTORED, sentence, severity="Warning", event_type="ServerHealth")
    return stopped


def _fail(job: JobRow, day: str, now_wall_ns: int) -> None:
    unfinished = [task for task in job.tasks if task.state == words.IN_PROGRESS]
    for task in unfinished:
        task.state, task.ended_wall_ns = words.FAILED, now_wall_ns
    leaf = next((task.name for task in reversed(unfinished)), "")
    job.errors.append(
        JobErrorRow(
            task_name=leaf, attempt=job.attempt, code=RESTORED, created_wall_ns=now_wall_ns, retryable=True,
            message=f"the job ran when the backup of {day} was made; how it ended is not known",
            possible_causes="the configuration server was restored from that backup",
            recommended_action="look at both machines, then restart the job (failback job restart) or leave it",
        )
    )  # fmt: skip
    job.state, job.ended_wall_ns, job.state_description = words.FAILED, now_wall_ns, ""
    job.cancel_requested = False
