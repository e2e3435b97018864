"""Replication groups and their common marks (D19). Members are the items whose ``group_id`` names the group.

A mark's row is written before any machine is asked to hold still, so that no mark is forgotten by a restart:

    begun -> confirmed    every member was held from before the first mark to after the last
          -> void         it is no point; ``reason`` says why
    confirmed -> complete every member's master target published it: a group point
              -> void     one of them made no point there (a gap lay at the mark)

A complete point whose members' points were thinned away is deleted.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from failback.configuration_server.database.base import Base, Count, Id, Name, Sentence, WallNs
from failback.configuration_server.database.items import ItemRow
from failback.errors import NotFoundError

BEGUN, CONFIRMED, COMPLETE, VOID = "begun", "confirmed", "complete", "void"


class GroupRow(Base):
    __tablename__ = "replication_groups"

    group_id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[Name] = mapped_column(unique=True)
    frequency_seconds: Mapped[Count]
    """Distance of common marks; 0: the distance of crash-consistent points in the members' policy."""
    problem: Mapped[Sentence]
    """Why no common mark is made now; empty while they are."""
    problem_since_wall_ns: Mapped[WallNs]
    created_wall_ns: Mapped[WallNs]


class GroupPointRow(Base):
    __tablename__ = "group_points"
    __table_args__ = (Index("ix_group_points_group_state", "group_id", "state", "wall_ns"),)

    point_id: Mapped[Id] = mapped_column(primary_key=True)
    """The mark's id, which every member's recovery point carries too."""
    group_id: Mapped[str] = mapped_column(ForeignKey("replication_groups.group_id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(String(16), default=BEGUN)
    wall_ns: Mapped[WallNs]
    """This server's time before the hold."""
    reason: Mapped[Sentence]
    marks: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    """One table a member: item_id, name, epoch, ring, enter_milliseconds, held_milliseconds."""
    held_milliseconds: Mapped[float] = mapped_column(Float, default=0.0)
    """The longest hold of a member."""


def named(session: Session, name: str) -> GroupRow:
    """By name or id. Raises NotFoundError."""
    row = session.scalars(select(GroupRow).where((GroupRow.name == name) | (GroupRow.group_id == name))).first()
    if row is None:
        raise NotFoundError(f"there is no replication group {name!r}", remedy="failback group list")
    return row


def all_groups(session: Session) -> list[GroupRow]:
    return list(session.scalars(select(GroupRow).order_by(GroupRow.name)))


def members_of(session: Session, group_id: str) -> list[ItemRow]:
    return list(session.scalars(select(ItemRow).where(ItemRow.group_id == group_id).order_by(ItemRow.name)))


def marks_of(session: Session, group_id: str, *states: str) -> list[GroupPointRow]:
    """Newest first; of any state when none is named."""
    statement = select(GroupPointRow).where(GroupPointRow.group_id == group_id)
    if states:
        statement = statement.where(GroupPointRow.state.in_(states))
    return list(session.scalars(statement.order_by(GroupPointRow.wall_ns.desc())))


def complete_point(session: Session, point_id: str) -> GroupPointRow | None:
    """The group point of this id, if it is one."""
    row = session.get(GroupPointRow, point_id)
    return row if row is not None and row.state == COMPLETE else None
