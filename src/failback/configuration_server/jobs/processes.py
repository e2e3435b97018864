"""Which server processes live, so that one takes over the jobs of another that died (several on one PostgreSQL).

Every process counts up its own beat in the database, and watches the others' on its own monotonic clock: who has not counted for
``dead_seconds`` is dead, whatever the wall clocks say. A claim then takes a new generation of the item, so one that was only
slow can write nothing and give no order any more when it wakes up. The beats stand in the status of the one
component row that a configuration server has.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.engine import Database
from failback.model.components import Role
from failback.runtime.clock import Clock, SystemClock

BEAT_SECONDS = 3.0
DEAD_SECONDS = 15.0
"""Together with a beat and the executor's start well below 30 s."""
PROCESSES = "processes"


class Processes:
    """``process_id`` is stable over restarts of a process and unlike every other's."""

    def __init__(
        self, database: Database, process_id: str, clock: Clock | None = None, *, beat_seconds: float = BEAT_SECONDS,
        dead_seconds: float = DEAD_SECONDS,
    ) -> None:  # fmt: skip
        self._database = database
        self.process_id = process_id
        self.beat_seconds = beat_seconds
        self._dead_seconds = dead_seconds
        self._clock = clock or SystemClock()
        self._seen: dict[str, tuple[int, float]] = {}
        """Of each process: its newest beat and when it was seen to change."""

    async def beat(self) -> None:
        """Count up, and see who else did."""
        self.observe(await self._database.run(self._count))

    def observe(self, beats: dict[str, int]) -> None:
        now = self._clock.monotonic()
        for process_id, beat in beats.items():
            if process_id not in self._seen or self._seen[process_id][0] != beat:
                self._seen[process_id] = (beat, now)

    def may_take(self, owner: str, job_id: str) -> bool:
        """Whether a job of this owner is ours to run: it is our own, or its owner has been dead for long enough.

        An owner that was never seen, or a job that nobody began, is given the same time from the first look on.
        """
        if owner == self.process_id:
            return True
        now = self._clock.monotonic()
        _beat, changed = self._seen.setdefault(owner or f"job {job_id}", (-1, now))
        return now - changed > self._dead_seconds

    def _count(self, session: Session) -> dict[str, int]:
        row = session.scalars(select(ComponentRow).where(ComponentRow.role == Role.CONFIGURATION_SERVER.value)).one()
        beats: dict[str, int] = dict(row.status.get(PROCESSES, {}))
        beats = {other: beat for other, beat in beats.items() if not self._long_dead(other, beat)}
        beats[self.process_id] = beats.get(self.process_id, 0) + 1
        row.status = {**row.status, PROCESSES: beats}
        return beats

    def _long_dead(self, process_id: str, beat: int) -> bool:
        seen, changed = self._seen.get(process_id, (beat + 1, 0.0))
        return seen == beat and self._clock.monotonic() - changed > 100 * self._dead_seconds
