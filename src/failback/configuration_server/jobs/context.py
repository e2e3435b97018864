"""What a step sees: its job's inputs, results of earlier steps, memory, waiting, progress, and fenced writes.

A step's only ways to touch the database are :meth:`StepContext.write` (one transaction that first proves that this owner is
not superseded) and :meth:`StepContext.look`. Its only way to wait is :meth:`StepContext.wait_until`: it shows what is
waited for, ends at the deadline with the caller's error, on a cancel, and for a superseded owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from failback.configuration_server.database import items
from failback.configuration_server.database.engine import Database
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs import store
from failback.configuration_server.jobs.progress import ProgressMeter
from failback.errors import FailbackError
from failback.runtime import faults
from failback.runtime.clock import Clock

T = TypeVar("T")

SHOWN_EVERY_SECONDS = 1.0
"""Progress and descriptions are written at most this often."""


class JobCancelled(Exception):
    """The job was asked to stop: raised where a step waits, never in the middle of an effect."""


@dataclass(slots=True)
class StepContext:
    database: Database
    clock: Clock
    job_id: str
    item_id: str
    scenario: str
    name: str
    """Name of the task that runs."""
    inputs: dict[str, Any]
    generation: int
    attempt: int
    cancellable: bool = True
    poll_seconds: float = 0.5
    _meter: ProgressMeter = field(default_factory=ProgressMeter)
    _shown: tuple[float, str, int] = (-1e9, "", -1)

    def key(self, purpose: str) -> str:
        """A key for find-or-create: the same in every execution of this task in this attempt."""
        return f"{self.job_id}:{self.attempt}:{self.name}:{purpose}"

    async def write(self, work: Callable[[Session], T]) -> T:
        """``work(session)`` in one transaction. Raises StaleEpochError, writing nothing, when a newer owner exists."""

        def fenced(session: Session) -> T:
            store.owned(session, self.job_id, self.generation)
            return work(session)

        return await self.database.run(fenced)

    async def look(self, work: Callable[[Session], T]) -> T:
        return await self.database.look(work)

    async def item(self) -> ItemRow:
        """The item as it stands now (detached: changes to it are not stored)."""
        return await self.look(lambda session: items.get(session, self.item_id))

    async def change_item(self, change: Callable[[ItemRow], T]) -> T:
        """Apply ``change`` to the item's row in one fenced transaction."""
        return await self.write(lambda session: change(items.get(session, self.item_id)))

    async def result_of(self, name: str) -> dict[str, Any]:
        """The recorded result of an earlier task of this job."""
        return await self.look(lambda session: dict(store.task(store.job(session, self.job_id), name).result))

    async def began(self, name: str) -> bool:
        """Whether the task of that name was begun in this job."""
        return await self.look(lambda session: store.task(store.job(session, self.job_id), name).started_wall_ns > 0)

    async def remember(self, key: str, make: Callable[[], Awaitable[Any]] | Callable[[], Any]) -> Any:
        """The value that this task remembered under ``key``, or ``make()``'s, stored before it is returned.

        For what must not be drawn or done anew when the step runs again: ids, clock readings, facts before an effect.
        """
        found = await self.recall(key)
        if found is not None:
            return found
        value = make()
        if asyncio.iscoroutine(value):
            value = await value
        await self.database.run(
            lambda session: store.remember(session, self.job_id, self.generation, self.name, (key, value))
        )
        faults.point(f"job.{self.name}.{key}")
        return value

    async def remember_with(self, key: str, work: Callable[[Session], Any]) -> Any:
        """Like :meth:`remember`, for an effect in the database: ``work(session)`` and its memory are one transaction."""

        def once(session: Session) -> Any:
            store.owned(session, self.job_id, self.generation)
            found = store.recall(session, self.job_id, self.name, key)
            if found is not None:
                return found
            value = work(session)
            store.remember(session, self.job_id, self.generation, self.name, (key, value))
            return value

        value = await self.database.run(once)
        faults.point(f"job.{self.name}.{key}")
        return value

    async def follow_with(self, scenario: str, inputs: dict[str, Any]) -> None:
        """Let another job of the item begin when this one has ended, however it ends (asked for by an undo)."""

        def ask(session: Session) -> None:
            row = store.job(session, self.job_id)
            row.custom_details = {**row.custom_details, store.FOLLOW_UP: {"scenario": scenario, "inputs": inputs}}

        await self.write(ask)

    async def recall(self, key: str, name: str = "") -> Any:
        """What this task (or the one of that name) remembered under ``key``; None when it did not."""
        return await self.look(lambda session: store.recall(session, self.job_id, name or self.name, key))

    async def say(self, sentence: str) -> None:
        """Show what the step is doing or waiting for."""
        await self.progress(sentence, 0, 0)

    async def progress(self, sentence: str, bytes_done: int, bytes_total: int) -> None:
        """Show bytes, rate and time left beside the sentence; written at most once a second."""
        now = self.clock.monotonic()
        shown_at, shown, shown_bytes = self._shown
        changed = sentence != shown or bytes_done != shown_bytes
        if not changed or (now - shown_at < SHOWN_EVERY_SECONDS and bytes_done < max(bytes_total, 1) and bytes_total):
            return
        self._shown = (now, sentence, bytes_done)
        figures = self._meter.sample(now, bytes_done, bytes_total) if bytes_total else None

        def write(session: Session) -> None:
            row = store.task(store.owned(session, self.job_id, self.generation), self.name)
            row.state_description = sentence
            if figures is not None:
                row.bytes_done, row.bytes_total = figures.bytes_done, figures.bytes_total
                row.bytes_per_second, row.eta_seconds = figures.bytes_per_second, figures.remaining_seconds

        await self.database.run(write)

    async def checkpoint(self) -> None:
        """Raises JobCancelled when the job was asked to stop (and this task allows it), StaleEpochError when superseded."""

        def asked(session: Session) -> bool:
            return store.owned(session, self.job_id, self.generation).cancel_requested

        if await self.look(asked) and self.cancellable:
            raise JobCancelled

    async def pause(self) -> None:
        """Between two looks of a step that loops by itself (it calls :meth:`checkpoint` too)."""
        await asyncio.sleep(self.poll_seconds)

    async def wait_until(
        self, waiting_for: str, poll: Callable[[], Awaitable[T | None]], *, seconds: float,
        late: Callable[[], FailbackError],
    ) -> T:  # fmt: skip
        """Poll until ``poll()`` gives something; raises ``late()`` after ``seconds`` on the monotonic clock."""
        deadline = self.clock.monotonic() + seconds
        while True:
            await self.checkpoint()
            found = await poll()
            if found is not None:
                return found
            if self.clock.monotonic() >= deadline:
                raise late()
            await self.say(waiting_for) if waiting_for else None
            await asyncio.sleep(self.poll_seconds)
