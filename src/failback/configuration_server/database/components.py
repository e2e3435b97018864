"""Registered components (agents, process servers, master targets, this server) and what each last told.

A component is found again by (hardware id, role). The heartbeat of *other* hardware than the live side's, carrying the same
certificate (a booted twin, D2), is kept apart in the ``twin_*`` columns and never overwrites the live side's status.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, String, UniqueConstraint, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from failback.configuration_server.database.base import Base, Count, Id, Name, Sentence, Table, WallNs
from failback.errors import NotFoundError
from failback.model.components import Role


class ComponentRow(Base):
    """``component_id`` is the certificate's CN and, for a mobility service, the machine id."""

    __tablename__ = "components"
    __table_args__ = (UniqueConstraint("role", "hardware_id", name="uq_components_role_hardware"),)

    component_id: Mapped[Id] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(String(32))
    """Value of :class:`failback.model.components.Role`."""
    hostname: Mapped[Name]
    hardware_id: Mapped[Id]
    """SMBIOS UUID under which it enrolled; the live side of a failed-back item may be other hardware (see items)."""
    version: Mapped[Name]
    os_family: Mapped[str] = mapped_column(String(64), default="")
    os_version: Mapped[str] = mapped_column(String(255), default="")
    kernel: Mapped[str] = mapped_column(String(255), default="")
    addresses: Mapped[list[str]] = mapped_column(JSON, default=list)
    enrolled_wall_ns: Mapped[WallNs]
    certificate_serial: Mapped[str] = mapped_column(String(64), default="")
    certificate_expiry_wall_ns: Mapped[WallNs]
    revoked: Mapped[bool] = mapped_column(default=False)

    last_heartbeat_wall_ns: Mapped[WallNs]
    boot_id: Mapped[str] = mapped_column(String(64), default="")
    monotonic: Mapped[float] = mapped_column(default=0.0)
    """The component's monotonic reading at its last heartbeat; compares under an equal boot id only."""
    clock_skew_seconds: Mapped[float] = mapped_column(default=0.0)
    """Its wall clock minus ours, half the round trip taken off; positive: it is ahead."""
    status: Mapped[Table]
    """The encoded status dataclass of its role, as it last came from the live side."""
    assignment_generation: Mapped[Count]
    assignment_digest: Mapped[str] = mapped_column(String(64), default="")
    """Digest of the assignment that the generation stands for: another digest makes a new generation."""
    assignment_taken: Mapped[Count]
    """The newest generation that the component says it has taken."""

    twin_hardware_id: Mapped[str] = mapped_column(String(64), default="")
    twin_last_seen_wall_ns: Mapped[WallNs]
    twin_boot_id: Mapped[str] = mapped_column(String(64), default="")
    twin_status: Mapped[Table]


class EnrolmentTokenRow(Base):
    """A one-time permission to enrol; only its SHA-256 is stored."""

    __tablename__ = "enrolment_tokens"

    token_id: Mapped[Id] = mapped_column(primary_key=True)
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(32), default="")
    """Empty: any role."""
    created_wall_ns: Mapped[WallNs]
    expires_wall_ns: Mapped[WallNs]
    used_wall_ns: Mapped[WallNs]
    used_by: Mapped[str | None] = mapped_column(ForeignKey("components.component_id"))


class PassphraseRow(Base):
    """The installation's enrolment passphrase (argon2id). A new one retires the old; history is kept for the audit."""

    __tablename__ = "passphrases"

    passphrase_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    argon2_hash: Mapped[Sentence]
    created_wall_ns: Mapped[WallNs]
    retired_wall_ns: Mapped[WallNs]


def get(session: Session, component_id: str) -> ComponentRow:
    """The component's row. Raises NotFoundError."""
    row = session.get(ComponentRow, component_id)
    if row is None:
        raise NotFoundError(f"no component {component_id!r} is registered", remedy="failback component list")
    return row


def find(session: Session, role: Role, name_or_id: str) -> ComponentRow:
    """A component by id, or by host name when that is unique. Raises NotFoundError."""
    row = session.get(ComponentRow, name_or_id)
    if row is not None and row.role == role.value:
        return row
    statement = select(ComponentRow).where(ComponentRow.role == role.value, ComponentRow.hostname == name_or_id)
    rows = session.scalars(statement).all()
    if len(rows) == 1:
        return rows[0]
    reason = "more than one has that name: give its id" if rows else "none has that name or id"
    raise NotFoundError(f"no {role.value} {name_or_id!r}: {reason}", remedy="failback component list")


def find_any(session: Session, name_or_id: str, role: Role | None = None) -> ComponentRow:
    """A component by id, or by host name when that is unique among those of the role. Raises NotFoundError."""
    row = session.get(ComponentRow, name_or_id)
    if row is not None and role in (None, Role(row.role)):
        return row
    rows = [row for row in all_components(session, role) if row.hostname == name_or_id]
    if len(rows) == 1:
        return rows[0]
    reason = "more than one has that name: give its id, or its role" if rows else "none has that name or id"
    raise NotFoundError(f"no component {name_or_id!r}: {reason}", remedy="failback component list")


def all_components(session: Session, role: Role | None = None) -> list[ComponentRow]:
    statement = select(ComponentRow).order_by(ComponentRow.role, ComponentRow.hostname, ComponentRow.component_id)
    if role is not None:
        statement = statement.where(ComponentRow.role == role.value)
    return list(session.scalars(statement))


def status_of(row: ComponentRow) -> dict[str, Any]:
    return dict(row.status or {})
