"""What the database knows of common marks: begun, decided, published by all members, or void and why (D19).

Each function is one step inside the caller's transaction; :mod:`group_point` calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from failback.configuration_server.database import events, groups
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.groups import GroupPointRow, GroupRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.points import PointRow
from failback.model.ids import MachineId, MarkId
from failback.protection.group_rules import Round
from failback.runtime import logs

log = logs.get(__name__)

EVENT_CODE = "GroupMarkVoid"
PROBLEM_CODE = "GroupWithoutMarks"
RESTARTED = "the configuration server was restarted before the mark was decided"
REPEAT_NS = 60_000_000_000
"""Marks that are void for the same reason are one event in this time."""
KEPT_NS = 24 * 3600 * 1_000_000_000
"""How long void marks are shown."""


def os_family(session: Session, item: ItemRow) -> str:
    agent = session.get(ComponentRow, item.machine_id) if item.machine_id else None
    return item.os_family or (agent.os_family if agent is not None else "")


def begin(session: Session, group_id: str, mark_id: MarkId, wall_ns: int) -> None:
    session.add(GroupPointRow(point_id=mark_id, group_id=group_id, state=groups.BEGUN, wall_ns=wall_ns, marks=[]))


def decide(session: Session, ended: Round, item_ids: Mapping[MachineId, str], wall_ns: int) -> GroupPointRow:
    """The round is over: the mark is confirmed, or void with an event."""
    row = session.get_one(GroupPointRow, ended.mark_id)
    row.marks = [
        {
            "item_id": item_ids[machine],
            "name": ended.members[machine],
            "epoch": mark.epoch,
            "ring": mark.ring,
            "enter_milliseconds": mark.enter_milliseconds,
            "held_milliseconds": mark.held_milliseconds,
        }
        for machine, mark in sorted(ended.marks.items())
    ]
    row.held_milliseconds = max((mark.held_milliseconds for mark in ended.marks.values()), default=0.0)
    if ended.succeeded:
        row.state = groups.CONFIRMED
    else:
        make_void(session, row, ended.void or "not every machine was released in time", wall_ns)
    session.flush()
    return row


def make_void(session: Session, row: GroupPointRow, reason: str, wall_ns: int) -> None:
    group = session.get_one(GroupRow, row.group_id)
    row.state, row.reason = groups.VOID, reason
    log.info("common mark is void", group=group.name, mark=row.point_id, reason=reason)
    said = f"{group.name}: a common mark is void: {reason}. The machines go on."
    repeated = select(events.EventRow).where(
        events.EventRow.code == EVENT_CODE,
        events.EventRow.description == said,
        events.EventRow.wall_ns > wall_ns - REPEAT_NS,
    )
    if session.scalars(repeated).first() is None:
        events.record(session, wall_ns, EVENT_CODE, said, severity="Warning", subject=group.name)


def give_up_begun(session: Session, wall_ns: int) -> int:
    """Marks that an earlier life of this server began and did not decide."""
    left = list(session.scalars(select(GroupPointRow).where(GroupPointRow.state == groups.BEGUN)))
    for row in left:
        make_void(session, row, RESTARTED, wall_ns)
    return len(left)


def wants_settling(session: Session) -> bool:
    return (
        session.scalars(select(GroupPointRow.point_id).where(GroupPointRow.state == groups.CONFIRMED)).first()
        is not None
    )


def settle(session: Session, wall_ns: int) -> None:
    """What became of confirmed marks, by the points that the master targets list."""
    for row in session.scalars(select(GroupPointRow).where(GroupPointRow.state == groups.CONFIRMED)):
        published = [_published(session, row.point_id, mark) for mark in row.marks]
        lacking = [mark["name"] for mark, one in zip(row.marks, published, strict=True) if one is False]
        if lacking:
            reason = f"no recovery point was made of {', '.join(lacking)} at the mark (a gap lay there)"
            make_void(session, row, reason, wall_ns)
        elif all(published):
            row.state = groups.COMPLETE
            log.info("group point", mark=row.point_id, held_milliseconds=row.held_milliseconds)


def _published(session: Session, point_id: str, mark: Mapping[str, Any]) -> bool | None:
    """Whether the member's master target made the mark a point; None while that may still come (points come in order)."""
    if session.get(PointRow, (mark["item_id"], point_id)) is not None:
        return True
    later = select(PointRow.point_id).where(
        PointRow.item_id == mark["item_id"],
        (PointRow.epoch > mark["epoch"]) | ((PointRow.epoch == mark["epoch"]) & (PointRow.ring > mark["ring"])),
    )
    return None if session.scalars(later.limit(1)).first() is None else False


def clean(session: Session, wall_ns: int) -> None:
    """Group points that a member does not have any more, and old void marks, go."""
    for group in groups.all_groups(session):
        _forget_thinned(session, group.group_id)
    session.execute(
        delete(GroupPointRow).where(GroupPointRow.state == groups.VOID, GroupPointRow.wall_ns < wall_ns - KEPT_NS)
    )


def _forget_thinned(session: Session, group_id: str) -> None:
    """A group point lives as long as every member's."""
    complete = groups.marks_of(session, group_id, groups.COMPLETE)
    if not complete:
        return
    living: dict[str, set[str]] = {}
    for row in complete:
        for mark in row.marks:
            item_id = mark["item_id"]
            if item_id not in living:
                rows = select(PointRow.point_id).where(PointRow.item_id == item_id, PointRow.abandoned.is_(False))
                living[item_id] = set(session.scalars(rows))
        if any(row.point_id not in living[mark["item_id"]] for mark in row.marks):
            session.delete(row)


def note_problem(session: Session, group_id: str, problem: str, wall_ns: int) -> None:
    """Why no marks are made (empty: they are again), and one event for the change."""
    row = session.get(GroupRow, group_id)
    if row is None:
        return
    row.problem, row.problem_since_wall_ns = problem, wall_ns if problem else 0
    said = f"{row.name}: no common marks: {problem}." if problem else f"{row.name}: common marks can be made."
    severity = "Warning" if problem else "OK"
    events.record(session, wall_ns, PROBLEM_CODE, said, severity=severity, subject=row.name)
