"""Repairs that begin by themselves: a stream that ended for good leads to a comparison of the disks, as a job (D6, D7).

Level-triggered: what the components say is looked at every few seconds, and the job's key is made of item, reason and epoch, so
that a restarted server finds the job that it began. Another job of the item is waited for. A repair that failed before it
issued its epoch is tried again; one that was cancelled is not. More than a few in an hour need a person.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database import Database, events, items
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.jobs import store
from failback.configuration_server.jobs.engine import JobEngine
from failback.configuration_server.monitors.due_jobs import STARTED_BY, DueJob, begin, due_now
from failback.configuration_server.registry.parts import stream_parts
from failback.configuration_server.workflows.repair import REPAIR, RESYNC_REQUIRED
from failback.errors import FailbackError
from failback.protection import repair_rules
from failback.protection.operations import Operation
from failback.protection.states import OPERATIONS, State
from failback.runtime import logs
from failback.runtime.clock import Clock, SystemClock

LOOK_EVERY_SECONDS = 5.0

log = logs.get(__name__)


class Repairs:
    """``run`` until cancelled; ``look`` is one round and returns the ids of the jobs that it began or restarted."""

    def __init__(self, database: Database, engine: JobEngine, clock: Clock | None = None) -> None:
        self._database = database
        self._engine = engine
        self._clock = clock or SystemClock()
        self._told: set[str] = set()

    async def run(self, pause_seconds: float = LOOK_EVERY_SECONDS) -> None:
        while True:
            await asyncio.sleep(pause_seconds)
            try:
                await self.look()
            except Exception:  # a round may fail (a busy database); watching goes on and the log says why
                log.exception("a round of repairs failed")

    async def look(self) -> list[str]:
        due, held_back = await self._database.look(self._find)
        for one in held_back:
            if one.key not in self._told:
                self._told.add(one.key)
                await self._database.run(lambda session, one=one: self._tell(session, one))  # type: ignore[misc]
        started = []
        for one in due:
            try:
                started.append(await self._start(one))
            except FailbackError as error:  # another job came first, mostly: the next round looks again
                log.info("a repair waits", item=one.name, reason=error.message)
        return started

    async def _start(self, due: DueJob) -> str:
        if not due.failed_job_id:
            log.warning("a stream ended for good: its disks are compared", item=due.name, reason=due.inputs["reason"])
        return await begin(self._engine, due)

    def _find(self, session: Session) -> tuple[list[DueJob], list[DueJob]]:
        due: list[DueJob] = []
        held_back: list[DueJob] = []
        for item, end in items_in_need(session):
            if Operation.REPAIR not in OPERATIONS[State(item.protection_state)]:
                continue
            if store.unfinished_of_item(session, item.item_id) is not None:
                continue
            found = self._due(session, item, end)
            if found is not None:
                (due if found.failed_job_id or self._may_begin(session, item) else held_back).append(found)
        return due, held_back

    def _due(self, session: Session, item: ItemRow, end: repair_rules.StreamEnd) -> DueJob | None:
        key = f"{REPAIR} {item.item_id} {end.code} {item.epoch}"
        name = item.friendly_name or item.name
        job = DueJob(REPAIR, item.item_id, name, key, {"reason": f"{end.code}: {end.sentence}"})
        return due_now(session, job, self._clock.wall_ns())

    def _may_begin(self, session: Session, item: ItemRow) -> bool:
        begun = session.scalars(
            select(JobRow.created_wall_ns).where(
                JobRow.item_id == item.item_id, JobRow.scenario == REPAIR, JobRow.started_by == STARTED_BY
            )
        )
        return repair_rules.may_begin(self._clock.wall_ns(), begun)

    def _tell(self, session: Session, one: DueJob) -> None:
        sentence = (
            f"The replication of {one.name} stopped again ({one.inputs['reason']}) after {repair_rules.MOST_REPAIRS} repairs "
            f"within the hour: find the cause, then failback resync {one.name}."
        )
        events.record(
            session, self._clock.wall_ns(), RESYNC_REQUIRED, sentence, severity="Critical", item_id=one.item_id,
            subject=one.name,
        )  # fmt: skip


def items_in_need(session: Session) -> list[tuple[ItemRow, repair_rules.StreamEnd]]:
    """Items whose stream ended for good under the epoch in force."""
    found = []
    for item in items.all_items(session):
        if item.replicating and item.machine_id:
            end = repair_rules.ended(item.epoch, stream_parts(session, item))
            if end is not None:
                found.append((item, end))
    return found
