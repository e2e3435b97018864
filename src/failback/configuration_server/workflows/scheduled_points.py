"""Application-consistent points by the policy's frequency (60 minutes in the failback policy; 0: none).

Not a job: nobody waits for it and it must not stand in the way of one. The order's key names the stretch of time that it
belongs to, so that a restarted server, or a second one, gives it once; a failed one is tried again in the next stretch,
and said so in an event (78144). Whether a point is due is decided by :func:`failback.protection.failback_rules.point_due`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from failback.configuration_server.database import Database, events, items, points, policies
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.jobs import store
from failback.configuration_server.registry import Orders
from failback.errors import FailbackError
from failback.model import orders
from failback.model.ids import MarkId, new_id
from failback.protection import failback_rules as rules
from failback.protection.states import State
from failback.runtime import logs
from failback.runtime.clock import Clock, SystemClock

LOOK_EVERY_SECONDS = 30.0
RESULT_SECONDS = 180.0

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _Due:
    item_id: str
    name: str
    machine_id: str
    generation: int
    stretch: int


class ScheduledPoints:
    """``run`` until cancelled; ``look`` is one round and returns the names of the items that were marked."""

    def __init__(self, database: Database, marks: Orders, clock: Clock | None = None) -> None:
        self._database = database
        self._orders = marks
        self._clock = clock or SystemClock()

    async def run(self, pause_seconds: float = LOOK_EVERY_SECONDS) -> None:
        while True:
            await asyncio.sleep(pause_seconds)
            try:
                await self.look()
            except (FailbackError, SQLAlchemyError) as error:
                log.error("points by the policy were not looked after", error=repr(error))

    async def look(self) -> list[str]:
        due = await self._database.look(self._due)
        marked = await asyncio.gather(*(self._mark(each) for each in due))
        return [each.name for each, done in zip(due, marked, strict=True) if done]

    def _due(self, session: Session) -> list[_Due]:
        found = (self._due_of(session, item) for item in items.all_items(session))
        return [each for each in found if each is not None]

    def _due_of(self, session: Session, item: ItemRow) -> _Due | None:
        if item.protection_state != State.PROTECTED.value or not item.machine_id or not item.replicating:
            return None
        if item.comparison_minutes:
            return None  # it would be held still for a whole comparison: only when somebody asks for it
        if store.unfinished_of_item(session, item.item_id) is not None:
            return None
        minutes = policies.policy_of(session, item.policy_name).app_consistent_frequency_minutes
        now = self._clock.wall_ns()
        if not rules.point_due(now, points.points_of(session, item.item_id), item.epoch, minutes):
            return None
        stretch = now // (minutes * rules.MINUTE_NS)
        return _Due(item.item_id, item.friendly_name or item.name, item.machine_id, item.generation, stretch)

    async def _mark(self, due: _Due) -> bool:
        key = f"app-consistent:{due.item_id}:{due.stretch}"
        try:
            order_id = await self._orders.give(
                due.machine_id, orders.APP_CONSISTENT_MARK, due.generation, orders.AppConsistentMark(MarkId(new_id())),
                key, due.item_id,
            )  # fmt: skip
            await self._orders.await_result(order_id, RESULT_SECONDS)
        except FailbackError as error:
            log.warning("no application-consistent point", item=due.name, code=error.code, reason=error.message)
            sentence = f"{due.name}: no application-consistent point was made: {error.message}"
            await self._database.run(lambda session: self._say(session, due, sentence))
            return False
        return True

    def _say(self, session: Session, due: _Due, sentence: str) -> None:
        events.record(
            session, self._clock.wall_ns(), "78144", sentence, severity="Warning", item_id=due.item_id, subject=due.name
        )
