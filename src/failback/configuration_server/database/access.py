"""Who may call the API, and what was changed by whom."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, Session, mapped_column

from failback.configuration_server.database.base import Base, Id, Name, Sentence, Table, WallNs

METRICS = "metrics"
"""Access of a token that reads metrics and nothing else."""


class ApiTokenRow(Base):
    """A bearer token; 256 random bits, so a plain SHA-256 is stored."""

    __tablename__ = "api_tokens"

    token_id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[Name]
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    access: Mapped[str] = mapped_column(String(32), default="administrator")
    """administrator | metrics"""
    created_wall_ns: Mapped[WallNs]
    expires_wall_ns: Mapped[WallNs]
    """0: does not expire."""
    revoked_wall_ns: Mapped[WallNs]


class AuditRow(Base):
    """One attempt to change something, whoever made it and however it ended."""

    __tablename__ = "audit"

    audit_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    wall_ns: Mapped[WallNs] = mapped_column(index=True)
    actor: Mapped[Name]
    """Token name, component id, or what an unknown caller said it was."""
    address: Mapped[str] = mapped_column(String(64), default="")
    action: Mapped[Name]
    target: Mapped[Name]
    outcome: Mapped[str] = mapped_column(String(32), default="accepted")
    """accepted | refused | failed"""
    detail: Mapped[Sentence]
    fields: Mapped[Table]


def audit(
    session: Session, wall_ns: int, actor: str, action: str, target: str, *,
    address: str = "", outcome: str = "accepted", detail: str = "",
) -> None:  # fmt: skip
    """Write one audit row; secrets never go into ``detail``."""
    session.add(
        AuditRow(wall_ns=wall_ns, actor=actor[:255], action=action[:255], target=target[:255], address=address[:64],
                 outcome=outcome, detail=detail)
    )  # fmt: skip
