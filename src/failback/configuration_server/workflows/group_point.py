"""Common marks of replication groups: the barrier that their members meet at, and what becomes of each mark (D19).

Members wait here (``armed``) until a mark is due, and then walk through a round (:mod:`failback.protection.group_rules`). The
barrier lives in this process's memory: between the first hold and the last release no transaction, no order and no heartbeat
stands, only two round trips. The database knows each mark before anybody is held; one that this process did not live to
decide is void at its next start. Members that lose this process in a hold let go by themselves.

``run`` until cancelled; ``step`` answers a member; ``make`` asks for a mark now.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from failback.configuration_server.database import Database, groups, items, policies
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.groups import GroupPointRow, GroupRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.workflows import group_marks
from failback.errors import AuthenticationError, ConflictError, FailbackError
from failback.model.groups import HoldAction, HoldPhase, HoldReply, HoldStep
from failback.model.ids import MachineId, MarkId, new_id
from failback.protection import group_rules as rules
from failback.protection.group_rules import MemberFacts, Round
from failback.protection.states import State
from failback.runtime import faults, logs
from failback.runtime.clock import Clock, SystemClock

log = logs.get(__name__)

ARMED_SECONDS = 20.0
"""How long a member that waits for a mark is kept before it is told to ask again."""
PREPARE_SECONDS = 8.0
RELEASE_SECONDS = 5.0
LOOK_SECONDS = 0.25
IDLE_SECONDS = 2.0
CLEAN_SECONDS = 30.0
AGAIN_SECONDS = 5.0
"""After a mark that was void, unless the group's own distance is shorter."""
UNARMED_SECONDS = 15.0
"""A member that is not armed for so long is a problem to be shown; shorter is a link that comes back."""


@dataclass(slots=True)
class _Armed:
    """A member that waits. ``reason``: why it could not be held now."""

    epoch: int
    reason: str
    answer: asyncio.Future[HoldReply]


@dataclass(slots=True)
class _Desk:
    """One group's meeting place."""

    armed: dict[MachineId, _Armed] = field(default_factory=dict)
    round: Round | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    due: float = 0.0
    unarmed_since: float = 0.0
    trying: asyncio.Task[None] | None = None

    def move(self, now: Round | None) -> None:
        """Take the round's new state and wake all who wait for it."""
        self.round = now
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def missing(self, members: tuple[MemberFacts, ...]) -> str:
        """Why no round can begin: the first member that is not armed."""
        for member in members:
            known = self.armed.get(member.machine_id)
            if known is None or known.answer.done():
                return f"{member.name} does not take part: its mobility service has not asked"
            if known.reason:
                return f"{member.name} cannot be held still: {known.reason}"
            if known.epoch != member.epoch:
                return f"{member.name} has not begun its new stream"
        return ""


@dataclass(frozen=True, slots=True)
class _Known:
    group_id: str
    name: str
    frequency_seconds: int
    problem: str
    members: tuple[MemberFacts, ...]


class GroupPoints:
    """See the module. ``hold_seconds`` bounds every hold."""

    def __init__(self, database: Database, clock: Clock | None = None, *, hold_seconds: float = 1.0) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._hold_seconds = hold_seconds
        self._desks: dict[str, _Desk] = {}
        self._closed = False
        self._cleaned = 0.0

    def close(self) -> None:
        """Let everybody go: the server stops."""
        self._closed = True
        for desk in self._desks.values():
            for armed in desk.armed.values():
                _tell(armed, HoldReply(HoldAction.WAIT))
            if desk.round is not None:
                desk.move(rules.spoil(desk.round, "the configuration server stops"))

    # --- the members' side --------------------------------------------------------------------------------------------

    async def step(self, machine_id: MachineId, step: HoldStep) -> HoldReply:
        """Answer a member when it is time. Raises AuthenticationError for a machine that is not in the group."""
        if step.phase is HoldPhase.ARMED:
            await self._database.look(lambda session: _check_member(session, machine_id, step))
            return await self._wait_armed(machine_id, step)
        desk = self._desks.get(step.group_id)
        known = desk.round if desk is not None else None
        if desk is None or known is None or known.mark_id != step.mark_id or machine_id not in known.members:
            return HoldReply(HoldAction.RELEASE, step.mark_id)
        desk.move(rules.arrive(known, machine_id, step))
        while True:
            now, changed = desk.round, desk.changed
            if now is None or now.mark_id != step.mark_id:
                return HoldReply(HoldAction.RELEASE, step.mark_id)
            action = rules.answer(now, step.phase)
            if action is not None:
                return HoldReply(action, step.mark_id)
            await changed.wait()

    async def _wait_armed(self, machine_id: MachineId, step: HoldStep) -> HoldReply:
        if self._closed:
            return HoldReply(HoldAction.WAIT)
        desk = self._desks.setdefault(step.group_id, _Desk())
        answer: asyncio.Future[HoldReply] = asyncio.get_running_loop().create_future()
        armed = _Armed(step.epoch, step.reason, answer)
        before = desk.armed.get(machine_id)
        if before is not None:
            _tell(before, HoldReply(HoldAction.WAIT))
        desk.armed[machine_id] = armed
        desk.wake()
        if step.reason:
            return HoldReply(HoldAction.WAIT)
        try:
            async with asyncio.timeout(ARMED_SECONDS):
                return await answer
        except TimeoutError:
            return HoldReply(HoldAction.WAIT)
        finally:
            answer.cancel()  # no effect on one that is answered

    # --- making marks -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Marks when they are due, and what became of the earlier ones; until cancelled."""
        try:
            await self._database.run(lambda session: group_marks.give_up_begun(session, self._clock.wall_ns()))
            pause = 0.0
            while True:
                await asyncio.sleep(pause)
                pause = await self._look()
        finally:
            self.close()
            for desk in self._desks.values():
                if desk.trying is not None:
                    desk.trying.cancel()

    async def _look(self) -> float:
        """One look at all groups; returns the pause until the next."""
        try:
            known = await self._database.look(self._known)
            if await self._database.look(group_marks.wants_settling):
                await self._database.run(lambda session: group_marks.settle(session, self._clock.wall_ns()))
            if self._clock.monotonic() - self._cleaned >= CLEAN_SECONDS:
                self._cleaned = self._clock.monotonic()
                await self._database.run(lambda session: group_marks.clean(session, self._clock.wall_ns()))
        except SQLAlchemyError as error:
            log.error("replication groups were not looked after", error=repr(error))
            return IDLE_SECONDS
        for gone in set(self._desks) - {group.group_id for group in known}:
            del self._desks[gone]
        pause = LOOK_SECONDS if known else IDLE_SECONDS
        for group in known:
            desk = self._desks.setdefault(group.group_id, _Desk())
            await self._show(group, desk)
            left = desk.due - self._clock.monotonic()
            if left <= 0 and desk.trying is None and not self._unready(group, desk):
                desk.trying = asyncio.create_task(self._scheduled(group, desk), name=f"mark of {group.name}")
            elif 0 < left < pause:
                pause = left
        return pause

    async def _scheduled(self, group: _Known, desk: _Desk) -> None:
        try:
            await self._try(group, desk)
        except (FailbackError, SQLAlchemyError) as error:
            log.warning("no common mark", group=group.name, reason=str(error))
        finally:
            desk.trying = None

    async def make(self, group_id: str, wait_seconds: float = 10.0) -> GroupPointRow:
        """A common mark now; waits a while for the members. Raises ConflictError: not ready, or void, and why."""
        deadline = self._clock.monotonic() + wait_seconds
        while True:
            known = next((one for one in await self._database.look(self._known) if one.group_id == group_id), None)
            if known is None:
                raise ConflictError("the replication group is gone")
            desk = self._desks.setdefault(group_id, _Desk())
            unready = self._unready(known, desk)
            if not unready and not desk.busy.locked():
                return await self._try(known, desk)
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise ConflictError(
                    f"no common mark of {known.name} can be made now: {unready or 'another one is being made'}",
                    code="GroupNotReady",
                    remedy=f"failback group show {known.name}",
                )
            await _wait(desk.changed, min(left, LOOK_SECONDS))

    def _unready(self, group: _Known, desk: _Desk) -> str:
        return rules.what_is_missing(group.members) or desk.missing(group.members)

    async def _try(self, group: _Known, desk: _Desk) -> GroupPointRow:
        """One round. Returns the confirmed mark; raises ConflictError when it is void."""
        async with desk.busy:
            began = self._clock.monotonic()
            mark_id = MarkId(new_id())
            await self._database.run(
                lambda session: group_marks.begin(session, group.group_id, mark_id, self._clock.wall_ns())
            )
            faults.point("group.begun")
            desk.due = began + group.frequency_seconds
            ended = await self._walk(group, desk, mark_id)
            faults.point("group.released")
            row = await self._database.run(
                lambda session: group_marks.decide(session, ended, _item_ids(group), self._clock.wall_ns())
            )
        if not ended.succeeded:
            desk.due = min(desk.due, self._clock.monotonic() + AGAIN_SECONDS)
            raise ConflictError(f"the common mark of {group.name} is void: {ended.void}", code="GroupMarkVoid",
                              remedy="the next one is tried by itself", retryable=True)  # fmt: skip
        return row

    async def _walk(self, group: _Known, desk: _Desk, mark_id: MarkId) -> Round:
        """Let the members go through the phases; the round as it ended."""
        desk.move(rules.begin(mark_id, group.members))
        order = HoldReply(HoldAction.PREPARE, mark_id, self._hold_seconds)
        for member in group.members:
            armed = desk.armed.pop(member.machine_id, None)
            if armed is not None:
                _tell(armed, order)
        limits = (
            (HoldPhase.PREPARED, PREPARE_SECONDS),
            (HoldPhase.HELD, self._hold_seconds),
            (HoldPhase.MARKED, self._hold_seconds),
            (HoldPhase.RELEASED, RELEASE_SECONDS),
        )
        for phase, seconds in limits:
            await self._until(desk, phase, seconds)
            if desk.round is not None and not desk.round.void:
                faults.point(f"group.all_{phase.value}")
        ended = desk.round
        assert ended is not None
        desk.move(None)
        return ended

    async def _until(self, desk: _Desk, phase: HoldPhase, seconds: float) -> None:
        """Until every member said ``phase`` or the mark became void; who is late makes it void."""
        deadline = self._clock.monotonic() + seconds
        while desk.round is not None and not desk.round.void and (late := desk.round.behind(phase)):
            left = deadline - self._clock.monotonic()
            if left <= 0:
                desk.move(rules.spoil(desk.round, f"{', '.join(late)} was not {phase.value} within {seconds:g} s"))
                return
            await _wait(desk.changed, left)

    # --- what is shown ------------------------------------------------------------------------------------------------

    async def _show(self, group: _Known, desk: _Desk) -> None:
        """Why no marks are made, in the group's row and as an event when it changes."""
        now = self._clock.monotonic()
        problem = rules.what_is_missing(group.members)
        unarmed = "" if problem or desk.busy.locked() else desk.missing(group.members)
        if not unarmed:
            desk.unarmed_since = now
        elif now - desk.unarmed_since >= UNARMED_SECONDS or group.problem:
            problem = unarmed
        if problem == group.problem:
            return
        await self._database.run(
            lambda session: group_marks.note_problem(session, group.group_id, problem, self._clock.wall_ns())
        )

    def _known(self, session: Session) -> list[_Known]:
        return [_group(session, row) for row in groups.all_groups(session)]


def _group(session: Session, row: GroupRow) -> _Known:
    members = groups.members_of(session, row.group_id)
    frequency = row.frequency_seconds
    if not frequency and members:
        frequency = policies.policy_of(session, members[0].policy_name).crash_consistent_seconds
    facts = tuple(member_facts(session, item) for item in members)
    return _Known(row.group_id, row.name, max(rules.MINIMUM_FREQUENCY_SECONDS, frequency), row.problem, facts)


def member_facts(session: Session, item: ItemRow) -> MemberFacts:
    """The item as the rules of groups want it."""
    return MemberFacts(
        item_id=item.item_id,
        name=item.friendly_name or item.name,
        machine_id=MachineId(item.machine_id or ""),
        os_family=group_marks.os_family(session, item),
        master_target_id=item.master_target_id or "",
        replicating=item.replicating,
        protected=item.protection_state == State.PROTECTED.value,
        group_id=item.group_id,
        epoch=item.epoch,
    )


def _item_ids(group: _Known) -> dict[MachineId, str]:
    return {member.machine_id: member.item_id for member in group.members}


def _check_member(session: Session, machine_id: MachineId, step: HoldStep) -> None:
    component = session.get(ComponentRow, machine_id)
    if component is None or component.revoked:
        raise AuthenticationError("this certificate names no mobility service that is registered here")
    item = items.of_machine(session, machine_id)
    if item is None or not step.group_id or item.group_id != step.group_id:
        raise AuthenticationError(f"machine {machine_id} is not in replication group {step.group_id}")


def _tell(armed: _Armed, reply: HoldReply) -> None:
    if not armed.answer.done():
        armed.answer.set_result(reply)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
