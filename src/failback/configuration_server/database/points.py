"""Recovery points and gaps as the master targets last told them (they own the truth; this is the cache for people and API)."""

from __future__ import annotations

from sqlalchemy import ForeignKey, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from failback.configuration_server.database.base import Base, Count, Id, WallNs
from failback.model.ids import MachineId, PointId
from failback.model.points import PointKind, RecoveryPoint


class PointRow(Base):
    __tablename__ = "recovery_points"

    item_id: Mapped[str] = mapped_column(ForeignKey("items.item_id", ondelete="CASCADE"), primary_key=True)
    point_id: Mapped[Id] = mapped_column(primary_key=True)
    machine_id: Mapped[Id]
    kind: Mapped[str] = mapped_column(String(32))
    """Value of PointKind."""
    wall_ns: Mapped[WallNs] = mapped_column(index=True)
    epoch: Mapped[Count]
    sequence: Mapped[Count]
    ring: Mapped[Count]
    abandoned: Mapped[bool] = mapped_column(default=False)

    def point(self) -> RecoveryPoint:
        return RecoveryPoint(
            PointId(self.point_id), MachineId(self.machine_id), PointKind(self.kind), self.wall_ns,
            self.epoch, self.sequence, self.ring, self.abandoned,
        )  # fmt: skip


class GapRow(Base):
    """A stretch without points and its cause; ``ended_wall_ns`` 0 while it is open."""

    __tablename__ = "gaps"

    item_id: Mapped[str] = mapped_column(ForeignKey("items.item_id", ondelete="CASCADE"), primary_key=True)
    started_wall_ns: Mapped[WallNs] = mapped_column(primary_key=True)
    cause: Mapped[str] = mapped_column(String(64), primary_key=True)
    ended_wall_ns: Mapped[WallNs]


def points_of(session: Session, item_id: str, *, abandoned: bool = True) -> list[RecoveryPoint]:
    """Points of an item, newest first."""
    statement = select(PointRow).where(PointRow.item_id == item_id)
    if not abandoned:
        statement = statement.where(PointRow.abandoned.is_(False))
    statement = statement.order_by(PointRow.wall_ns.desc(), PointRow.epoch.desc(), PointRow.sequence.desc())
    return [row.point() for row in session.scalars(statement)]


def gaps_of(session: Session, item_id: str) -> list[GapRow]:
    """Gaps of an item, newest first."""
    statement = select(GapRow).where(GapRow.item_id == item_id).order_by(GapRow.started_wall_ns.desc())
    return list(session.scalars(statement))
