"""Events (what changed, once per change) and verdicts (what the monitors think now; an event is a change of one)."""

from __future__ import annotations

from sqlalchemy import String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from failback.configuration_server.database.base import Base, Id, Sentence, Table, WallNs


class EventRow(Base):
    """``event_id`` grows by time of writing: a reader resumes after the last one it saw."""

    __tablename__ = "events"
    __table_args__ = ({"sqlite_autoincrement": True},)

    event_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    wall_ns: Mapped[WallNs] = mapped_column(index=True)
    code: Mapped[str] = mapped_column(String(64))
    event_type: Mapped[str] = mapped_column(String(32), default="VmHealth")
    """VmHealth | ServerHealth | Job | Protection | Audit"""
    severity: Mapped[str] = mapped_column(String(16), default="OK")
    """OK | Warning | Critical"""
    item_id: Mapped[str | None] = mapped_column(String(64), index=True)
    component_id: Mapped[str | None] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(255), default="")
    """Name of the machine or component, for people."""
    description: Mapped[Sentence]
    details: Mapped[Table]


class VerdictRow(Base):
    """The newest verdict of one rule on one subject."""

    __tablename__ = "verdicts"

    subject_id: Mapped[Id] = mapped_column(primary_key=True)
    """Item id or component id."""
    rule: Mapped[str] = mapped_column(String(64), primary_key=True)
    level: Mapped[str] = mapped_column(String(16), default="Normal")
    """Normal | Warning | Critical"""
    code: Mapped[str] = mapped_column(String(64), default="")
    sentence: Mapped[Sentence]
    remedy: Mapped[Sentence]
    since_wall_ns: Mapped[WallNs]


def record(
    session: Session, wall_ns: int, code: str, description: str, *, severity: str = "OK", event_type: str = "VmHealth",
    item_id: str | None = None, component_id: str | None = None, job_id: str | None = None, subject: str = "",
) -> EventRow:  # fmt: skip
    """Store one event in the caller's transaction."""
    row = EventRow(
        wall_ns=wall_ns, code=code, description=description, severity=severity, event_type=event_type,
        item_id=item_id, component_id=component_id, job_id=job_id, subject=subject,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row


def events_after(session: Session, event_id: int = 0, limit: int = 1000) -> list[EventRow]:
    statement = select(EventRow).where(EventRow.event_id > event_id).order_by(EventRow.event_id).limit(limit)
    return list(session.scalars(statement))


def verdicts_on(session: Session, subject_id: str) -> list[VerdictRow]:
    """Verdicts on an item or component that are not Normal, most severe first."""
    statement = select(VerdictRow).where(VerdictRow.subject_id == subject_id, VerdictRow.level != "Normal")
    order = {"Critical": 0, "Warning": 1}
    return sorted(session.scalars(statement), key=lambda row: (order.get(row.level, 2), row.rule))
