"""The passes: read facts, judge, compare with the verdicts stored, write what changed and one event for each change.

A pass that finds no change writes nothing. When the wall clock steps (or this server was away), silence is measured anew
from now: a step forward must not report every component as lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from failback.configuration_server.database import Database, components, events, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.events import VerdictRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.orders import OrderRow
from failback.configuration_server.monitors import facts
from failback.configuration_server.registry import News
from failback.model.components import Role
from failback.protection import health
from failback.protection.health import Level, Verdict
from failback.runtime import logs
from failback.runtime.clock import Clock, SystemClock

log = logs.get(__name__)

CLOCK_STEP_SECONDS = 5.0
HOUSEKEEPING_SECONDS = 3600.0
ORDERS_KEPT_SECONDS = 7 * 86_400.0
EVENTS_KEPT_SECONDS = 90 * 86_400.0
_SEVERITY = {Level.NORMAL: "OK", Level.WARNING: "Warning", Level.CRITICAL: "Critical"}


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdicts on one item or component."""

    subject_id: str
    name: str
    verdicts: tuple[Verdict, ...]
    item: bool


class Monitors:
    """``run`` until cancelled; ``watch_once`` is one pass and returns the number of changes."""

    def __init__(
        self, database: Database, news: News, *, alarm_seconds: float, pause_seconds: float, clock: Clock | None = None
    ) -> None:
        self._database = database
        self._news = news
        self._clock = clock or SystemClock()
        self._alarm_seconds = alarm_seconds
        self._pause_seconds = pause_seconds
        self._since = (self._clock.wall_ns(), self._clock.monotonic())
        self._last = self._since
        self._cleaned = -HOUSEKEEPING_SECONDS

    async def run(self) -> None:
        while True:
            try:
                await self.watch_once()
                await self._housekeep()
            except Exception:  # a pass may fail (a busy database); watching goes on and the log says why
                log.exception("a monitoring pass failed")
            await asyncio.sleep(self._pause_seconds)

    async def watch_once(self) -> int:
        moment = self._moment()

        def look(session: Session) -> tuple[list[Judged], bool]:
            judged = judge(session, moment)
            return judged, _differs(session, judged)

        judged, differs = await self._database.look(look)
        if not differs:
            return 0
        changed = await self._database.run(lambda session: store(session, judged, moment.wall_ns))
        for subject_id in changed:
            self._news.announce(subject_id)
        return len(changed)

    def _moment(self) -> facts.Moment:
        now = (self._clock.wall_ns(), self._clock.monotonic())
        stepped = abs((now[0] - self._last[0]) / 1e9 - (now[1] - self._last[1]))
        if stepped > CLOCK_STEP_SECONDS:
            log.warning("the wall clock stepped", seconds=round(stepped))
            self._since = now
        self._last = now
        return facts.Moment(now[0], self._since[0], self._alarm_seconds)

    async def _housekeep(self) -> None:
        now = self._clock.monotonic()
        if now - self._cleaned < HOUSEKEEPING_SECONDS:
            return
        self._cleaned = now
        wall_ns = self._clock.wall_ns()

        def clean(session: Session) -> None:
            _forget_orders(session, wall_ns - int(ORDERS_KEPT_SECONDS * 1e9))
            session.execute(
                delete(events.EventRow).where(events.EventRow.wall_ns < wall_ns - int(EVENTS_KEPT_SECONDS * 1e9))
            )

        await self._database.run(clean)


def _forget_orders(session: Session, before_wall_ns: int) -> None:
    """Drop old finished orders; each component's newest stays, because probes take its generation."""
    for row in components.all_components(session):
        newest = (
            select(OrderRow.order_id)
            .where(OrderRow.component_id == row.component_id)
            .order_by(OrderRow.generation.desc(), OrderRow.given_wall_ns.desc())
            .limit(1)
        )
        keep = session.scalar(newest)
        session.execute(
            delete(OrderRow).where(
                OrderRow.component_id == row.component_id,
                OrderRow.finished_wall_ns > 0,
                OrderRow.finished_wall_ns < before_wall_ns,
                OrderRow.order_id != keep,
            )
        )


def judge(session: Session, moment: facts.Moment) -> list[Judged]:
    """Every component and item, judged now."""
    judged: list[Judged] = []
    for row in components.all_components(session):
        if row.role != Role.CONFIGURATION_SERVER.value and not row.revoked:
            verdicts = health.judge_component(facts.component_facts(session, row, moment))
            judged.append(Judged(row.component_id, row.hostname, tuple(verdicts), item=False))
    for item in items.all_items(session):
        verdicts = health.judge_item(facts.item_facts(session, item, moment))
        judged.append(Judged(item.item_id, item.friendly_name or item.name, tuple(verdicts), item=True))
    return judged


def store(session: Session, judged: Iterable[Judged], wall_ns: int) -> list[str]:
    """Write the changed verdicts and one event for each; returns the subjects that changed."""
    judged = list(judged)
    stored = _stored(session)
    changed: list[str] = []
    for one in judged:
        for verdict in _changes(one, stored):
            _put(session, one, verdict, wall_ns)
            changed.append(one.subject_id)
        if one.item and _rate(session, one):
            changed.append(one.subject_id)
    for key in _orphans(judged, stored):
        session.execute(delete(VerdictRow).where(VerdictRow.subject_id == key[0], VerdictRow.rule == key[1]))
        changed.append(key[0])
    return changed


def _stored(session: Session) -> dict[tuple[str, str], Level]:
    return {(row.subject_id, row.rule): Level(row.level) for row in session.scalars(select(VerdictRow))}


def _changes(one: Judged, stored: dict[tuple[str, str], Level]) -> list[Verdict]:
    """Verdicts whose level is another than the stored one; a rule never judged before counts as Normal."""
    return [
        verdict
        for verdict in one.verdicts
        if stored.get((one.subject_id, verdict.rule), Level.NORMAL) is not verdict.level
    ]


def _differs(session: Session, judged: list[Judged]) -> bool:
    """Whether :func:`store` would write anything."""
    stored = _stored(session)
    if any(_changes(one, stored) for one in judged) or _orphans(judged, stored):
        return True
    rows = {item.item_id: item for item in items.all_items(session)}
    return any(
        one.item and rows[one.subject_id].replication_health != rating(one, rows[one.subject_id].replicating)
        for one in judged
    )


def _orphans(judged: Iterable[Judged], stored: dict[tuple[str, str], Level]) -> list[tuple[str, str]]:
    """Stored verdicts that no rule speaks of any more (the subject went, or the rule does not apply now)."""
    spoken = {(one.subject_id, verdict.rule) for one in judged for verdict in one.verdicts}
    return [key for key in stored if key not in spoken]


def _put(session: Session, one: Judged, verdict: Verdict, wall_ns: int) -> None:
    row = session.get(VerdictRow, (one.subject_id, verdict.rule))
    if row is None:
        row = VerdictRow(subject_id=one.subject_id, rule=verdict.rule)
        session.add(row)
    row.level, row.code, row.since_wall_ns = verdict.level.value, verdict.code, wall_ns
    row.sentence, row.remedy = verdict.sentence, verdict.remedy
    component = None if one.item else session.get(ComponentRow, one.subject_id)
    events.record(
        session, wall_ns, verdict.code, verdict.sentence, severity=_SEVERITY[verdict.level], subject=one.name,
        event_type="VmHealth" if one.item else "ServerHealth", item_id=one.subject_id if one.item else None,
        component_id=component.component_id if component is not None else None,
    )  # fmt: skip
    log.info(
        "verdict changed", subject=one.name, rule=verdict.rule, level=verdict.level.value, sentence=verdict.sentence
    )


def rating(one: Judged, replicating: bool) -> str:
    """The item's health in Azure Site Recovery's words."""
    level = health.worst(one.verdicts)
    return "None" if level is Level.NORMAL and not replicating else level.value


def _rate(session: Session, one: Judged) -> bool:
    item = session.get(ItemRow, one.subject_id)
    if item is None or item.replication_health == rating(one, item.replicating):
        return False
    item.replication_health = rating(one, item.replicating)
    return True
