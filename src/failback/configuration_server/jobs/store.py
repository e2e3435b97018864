"""Job and task rows: what is written, in which transaction, and under which generation.

Every function works in its caller's transaction. Those of a running job pass ``fenced`` first: a newer owner of the item
(a restart, another process that took the job over) makes them raise StaleEpochError, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from failback.configuration_server.database import events, items
from failback.configuration_server.database.jobs import JobErrorRow, JobRow, TaskRow
from failback.configuration_server.database.orders import OrderRow
from failback.configuration_server.jobs import scenario as words
from failback.configuration_server.jobs.scenario import Scenario, Task
from failback.errors import ConflictError, FailbackError, NotFoundError, StaleEpochError
from failback.model.ids import new_id

REMEMBERED = "remembered"
"""Key within a task's result under which ids and effects are kept while the step still runs."""

FOLLOW_UP = "follow_up"
"""Key within a job's details: the job that an undo asked to begin after this one."""


def job(session: Session, job_id: str) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None:
        raise NotFoundError(f"there is no job {job_id!r}", remedy="failback job list")
    return row


def owned(session: Session, job_id: str, generation: int) -> JobRow:
    """The job's row for the owner of ``generation``. Raises StaleEpochError for an older owner, or after its end."""
    row = job(session, job_id)
    if row.generation != generation or row.state in words.FINAL_STATES:
        raise StaleEpochError(
            f"this owner (generation {generation}) of job {row.friendly_name} was superseded; nothing was changed",
            possible_causes="the job was taken over by another process, restarted or ended",
            remedy=f"failback job show {job_id}",
        )
    if row.item_id is not None:
        items.fenced(session, row.item_id, generation)
    return row


def task(row: JobRow, name: str) -> TaskRow:
    return next(found for found in row.tasks if found.name == name)


def unfinished_of_item(session: Session, item_id: str) -> JobRow | None:
    """The item's one unfinished job."""
    item = items.get(session, item_id)
    found = session.get(JobRow, item.current_job_id) if item.current_job_id else None
    return found if found is not None and found.state not in words.FINAL_STATES else None


def take_item(session: Session, item_id: str, job_id: str) -> int:
    """Give the item's only place to the job; returns its new generation. Raises ConflictError naming the other job."""
    other = unfinished_of_item(session, item_id)
    if other is not None and other.job_id != job_id:
        item = items.get(session, item_id)
        raise ConflictError(
            f"the job {other.friendly_name} ({other.job_id}) is working on {item.friendly_name or item.name}",
            code="OperationInProgress",
            possible_causes="only one job works on an item at a time",
            remedy=f"wait for it (failback job watch {other.job_id}) or cancel it (failback job cancel {other.job_id})",
        )
    generation = items.take_generation(session, item_id)
    items.get(session, item_id).current_job_id = job_id
    return generation


def take_over(session: Session, row: JobRow) -> None:
    """Become the job's newest owner; its open orders come along, so that a result on its way is not refused."""
    assert row.item_id is not None
    old, row.generation = row.generation, take_item(session, row.item_id, row.job_id)
    session.execute(
        update(OrderRow)
        .where(OrderRow.item_id == row.item_id, OrderRow.generation == old, OrderRow.finished_wall_ns == 0)
        .values(generation=row.generation)
    )


def create(  # noqa: PLR0917
    session: Session, scenario: Scenario, item_id: str, inputs: Mapping[str, Any], key: str, wall_ns: int,
    *, started_by: str = "", parent_job_id: str | None = None,
) -> JobRow:  # fmt: skip
    """Find the job of this key, or make it with all its tasks and give it the item's place."""
    found = session.scalars(select(JobRow).where(JobRow.key == key)).first()
    if found is not None:
        return found
    item = items.get(session, item_id)
    job_id = new_id()
    generation = take_item(session, item_id, job_id)
    row = JobRow(
        job_id=job_id, key=key, scenario=scenario.name, friendly_name=scenario.friendly_name, item_id=item_id,
        target_name=item.friendly_name or item.name, inputs=dict(inputs), state=words.NOT_STARTED, generation=generation,
        attempt=1, started_by=started_by, parent_job_id=parent_job_id, created_wall_ns=wall_ns,
        tasks=[_task_row(index, made, parent) for index, (made, parent) in enumerate(scenario.rows())],
    )  # fmt: skip
    session.add(row)
    session.flush()
    _event(session, row, wall_ns, "JobStarted", f"{scenario.friendly_name} of {row.target_name} was started")
    return row


def _task_row(index: int, made: Task, parent: str) -> TaskRow:
    kind = words.GROUP_TASK if made.children else made.task_type
    return TaskRow(
        index=index, name=made.name, task_id=made.task_id or made.name, friendly_name=made.friendly_name,
        task_type=kind, parent_name=parent, child_scenario=made.name if kind == words.JOB_TASK else "",
        state=words.NOT_STARTED,
    )  # fmt: skip


def begin_task(session: Session, job_id: str, generation: int, name: str, wall_ns: int) -> str:
    """Mark the task (and its group) as in progress; returns its state before."""
    row = owned(session, job_id, generation)
    found = task(row, name)
    before = found.state
    if before in (words.SUCCEEDED, words.OTHER):
        return before
    for each in (found, _group(row, found)):
        if each is not None:
            each.state = words.IN_PROGRESS
            each.generation = generation
            each.started_wall_ns = each.started_wall_ns or wall_ns
            each.ended_wall_ns = 0
    return before


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """``result`` None leaves what the task remembered; ``description`` is shown beside the state."""

    state: str
    result: Mapping[str, Any] | None = None
    description: str = ""
    error: FailbackError | None = None


def end_task(session: Session, job_id: str, generation: int, name: str, end: TaskEnd, wall_ns: int) -> None:  # noqa: PLR0917
    """Record how the task ended, with its result or its error; a group ends with its last child or its first failure."""
    row = owned(session, job_id, generation)
    found = task(row, name)
    found.state, found.ended_wall_ns, found.state_description = end.state, wall_ns, end.description
    if end.result is not None:
        found.result = {REMEMBERED: found.result.get(REMEMBERED, {}), **end.result}
    group = _group(row, found)
    if group is not None:
        children = [each for each in row.tasks if each.parent_name == group.name]
        if end.state not in (words.SUCCEEDED, words.OTHER):
            group.state, group.ended_wall_ns = end.state, wall_ns
        elif all(each.state in (words.SUCCEEDED, words.OTHER) for each in children):
            group.state, group.ended_wall_ns = words.SUCCEEDED, wall_ns
    if end.error is not None:
        row.errors.append(_error_row(row, name, end.error, wall_ns))


def _error_row(row: JobRow, name: str, error: FailbackError, wall_ns: int) -> JobErrorRow:
    return JobErrorRow(
        task_name=name, attempt=row.attempt, code=error.code, message=error.message,
        possible_causes=error.possible_causes, recommended_action=error.remedy, retryable=error.retryable,
        created_wall_ns=wall_ns,
    )  # fmt: skip


def _group(row: JobRow, found: TaskRow) -> TaskRow | None:
    return task(row, found.parent_name) if found.parent_name else None


def recall(session: Session, job_id: str, name: str, key: str) -> Any:
    """What the task remembered under ``key``; None when it did not (yet)."""
    return task(job(session, job_id), name).result.get(REMEMBERED, {}).get(key)


def remember(session: Session, job_id: str, generation: int, name: str, remembered: tuple[str, Any]) -> None:
    found = task(owned(session, job_id, generation), name)
    key, value = remembered
    found.result = {**found.result, REMEMBERED: {**found.result.get(REMEMBERED, {}), key: value}}


def finish(session: Session, job_id: str, generation: int, state: str, wall_ns: int) -> JobRow:
    """End the job and give the item's place back."""
    row = owned(session, job_id, generation)
    row.state, row.ended_wall_ns, row.state_description = state, wall_ns, ""
    if row.item_id is not None:
        item = items.get(session, row.item_id)
        if item.current_job_id == job_id:
            item.current_job_id = None
    severity = "Critical" if state == words.FAILED else "OK"
    reason = f": {row.errors[-1].message}" if state == words.FAILED and row.errors else ""
    sentence = f"{row.friendly_name} of {row.target_name} {state.lower()}{reason}"
    _event(session, row, wall_ns, f"Job{state}", sentence, severity)
    return row


def _event(  # noqa: PLR0917
    session: Session, row: JobRow, wall_ns: int, code: str, sentence: str, severity: str = "OK"
) -> None:
    events.record(
        session, wall_ns, code, sentence, severity=severity, event_type="Job", item_id=row.item_id,
        job_id=row.job_id, subject=row.target_name,
    )  # fmt: skip


def reopen(session: Session, row: JobRow, scenario: Scenario) -> None:
    """Prepare a failed job for its next attempt: from its failed task, or from where that task says; all of it after an
    undone cancel."""
    leaves = [leaf.name for leaf in scenario.leaves()]
    stopped = next((name for name in leaves if task(row, name).state not in (words.SUCCEEDED, words.OTHER)), None)
    if row.state == words.CANCELLED and scenario.undo is not None:
        again = set(leaves)
    else:
        again = set(scenario.restarted(stopped)) if stopped else set()
    for each in row.tasks:
        children = {child.name for child in row.tasks if child.parent_name == each.name}
        if each.name in again or children & again:
            each.state, each.state_description = words.NOT_STARTED, ""
            each.result, each.started_wall_ns, each.ended_wall_ns = {}, 0, 0
            each.bytes_done = each.bytes_total = 0
            each.bytes_per_second, each.eta_seconds = 0.0, None
    assert row.item_id is not None
    row.generation = take_item(session, row.item_id, row.job_id)
    row.attempt += 1
    row.state, row.cancel_requested, row.ended_wall_ns = words.NOT_STARTED, False, 0


def unfinished(session: Session) -> list[JobRow]:
    return list(session.scalars(select(JobRow).where(JobRow.state.not_in(sorted(words.FINAL_STATES)))))
