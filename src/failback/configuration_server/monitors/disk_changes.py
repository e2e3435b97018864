"""Looks for disks of protected machines that grew, appeared or went, and begins the job that follows them.

Level-triggered like ``repairs``: what the agent reports is compared with the item every few seconds; a change that was seen
long enough without a break (``disk_rules.SETTLED_SECONDS``) begins a job whose key is made of item, epoch and change, so that a
restarted server finds it again. Another job of the item is waited for. A job that failed is tried again after a while.
"""

from __future__ import annotations

import asyncio
import hashlib

from sqlalchemy.orm import Session

from failback.configuration_server.database import Database, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs import store
from failback.configuration_server.jobs.engine import JobEngine
from failback.configuration_server.monitors.due_jobs import DueJob, begin, due_now
from failback.configuration_server.workflows.disk_changes import UPDATE_DISKS, protected_disks, seen_changes
from failback.errors import FailbackError
from failback.model.components import MobilityStatus
from failback.protection import disk_rules
from failback.protection.operations import Operation
from failback.protection.states import OPERATIONS, State
from failback.runtime import logs, records
from failback.runtime.clock import Clock, SystemClock

LOOK_EVERY_SECONDS = 2.0

log = logs.get(__name__)


class DiskWatch:
    """``run`` until cancelled; ``look`` is one round and returns the ids of the jobs that it began or restarted."""

    def __init__(self, database: Database, engine: JobEngine, clock: Clock | None = None) -> None:
        self._database = database
        self._engine = engine
        self._clock = clock or SystemClock()
        self._since: dict[str, dict[str, float]] = {}

    async def run(self, pause_seconds: float = LOOK_EVERY_SECONDS) -> None:
        while True:
            await asyncio.sleep(pause_seconds)
            try:
                await self.look()
            except Exception:  # a round may fail (a busy database); watching goes on and the log says why
                log.exception("a round of watching disks failed")

    async def look(self) -> list[str]:
        unwritten, due = await self._database.look(self._find)
        if unwritten:
            await self._database.run(_note_others)
        started = []
        for one in due:
            try:
                started.append(await self._start(one))
            except FailbackError as error:  # another job came first, mostly: the next round looks again
                log.info("a change of disks waits", item=one.name, reason=error.message)
        return started

    async def _start(self, due: DueJob) -> str:
        if not due.failed_job_id:
            log.info("the disks of a machine changed", item=due.name, changes=" ".join(due.inputs["names"]))
        return await begin(self._engine, due)

    def _find(self, session: Session) -> tuple[bool, list[DueJob]]:
        """Whether some item's other disks are not noted yet, and the changes that are due."""
        due: list[DueJob] = []
        unwritten = False
        watched: set[str] = set()
        for item in items.all_items(session):
            status = _status(session, item)
            if status is None:
                continue
            watched.add(item.item_id)
            if item.other_disks is None:
                unwritten = True
                continue
            names = self._settled(item.item_id, seen_changes(item, status.disks))
            busy = store.unfinished_of_item(session, item.item_id) is not None
            if names and not busy and Operation.REPAIR in OPERATIONS[State(item.protection_state)]:
                found = self._due(session, item, names)
                due += [found] if found is not None else []
        for item_id in set(self._since) - watched:
            del self._since[item_id]
        return unwritten, due

    def _settled(self, item_id: str, found: disk_rules.DiskChanges) -> tuple[str, ...]:
        """Changes that were seen for long enough; while a lesser one is young, it waits for the next job."""
        now = self._clock.monotonic()
        before = self._since.get(item_id, {})
        since = {name: before.get(name, now) for name in found.names()}
        self._since[item_id] = since
        return tuple(sorted(name for name, at in since.items() if now - at >= disk_rules.settled_seconds(name)))

    def _due(self, session: Session, item: ItemRow, names: tuple[str, ...]) -> DueJob | None:
        digest = hashlib.sha256(repr(names).encode()).hexdigest()[:16]
        key = f"{UPDATE_DISKS} {item.item_id} {item.epoch} {digest}"
        name = item.friendly_name or item.name
        job = DueJob(UPDATE_DISKS, item.item_id, name, key, {"names": list(names)})
        return due_now(session, job, self._clock.wall_ns())


def _status(session: Session, item: ItemRow) -> MobilityStatus | None:
    """What the live side's agent says of its disks, under the epoch in force; None while it says nothing to be relied on."""
    row = session.get(ComponentRow, item.machine_id) if item.replicating and item.machine_id else None
    if row is None or not row.status:
        return None
    status = records.decode(row.status, MobilityStatus, f"stored status of {item.name}")
    trusted = status.epoch == item.epoch or status.capture == "failed"
    return status if trusted and status.disks and all(disk.device_match for disk in item.disks) else None


def _note_others(session: Session) -> None:
    """Disks that are there and not protected when the replication begins stay outside."""
    for item in items.all_items(session):
        status = _status(session, item)
        if status is not None and item.other_disks is None:
            item.other_disks = disk_rules.others(protected_disks(item), status.disks)
