"""Who may call the API, and what was changed by whom.

A client (a person's command line, a script, Azure's SDK) has an id, a secret and a role; it changes them for tokens of some
hours. Tokens in files of the state directory belong to no client and do not expire.
"""

from __future__ import annotations

from sqlalchemy import ForeignKey, String, delete, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from failback.configuration_server.database.base import Base, Id, Name, Sentence, Table, WallNs

METRICS = "metrics"
"""Access of a token that reads metrics and nothing else."""


class ApiClientRow(Base):
    """One that signs in with a secret. It stays after its deletion, so that the audit can be read."""

    __tablename__ = "api_clients"

    client_id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[Name]
    role: Mapped[str] = mapped_column(String(32))
    """reader | operator | administrator"""
    secret_argon2: Mapped[Sentence]
    created_wall_ns: Mapped[WallNs]
    created_by: Mapped[Name]
    deleted_wall_ns: Mapped[WallNs]
    last_sign_in_wall_ns: Mapped[WallNs]


class ApiTokenRow(Base):
    """A bearer token; 256 random bits, so a plain SHA-256 is stored."""

    __tablename__ = "api_tokens"

    token_id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[Name]
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    access: Mapped[str] = mapped_column(String(32), default="administrator")
    """reader | operator | administrator | metrics"""
    client_id: Mapped[str | None] = mapped_column(ForeignKey("api_clients.client_id"), index=True)
    """None: a token of a file in the state directory."""
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


def client_named(session: Session, name_or_id: str) -> ApiClientRow | None:
    """The client of that id, or of that name; None when there is none (any more)."""
    living = select(ApiClientRow).where(ApiClientRow.deleted_wall_ns == 0)
    by_id = session.scalars(living.where(ApiClientRow.client_id == name_or_id)).first()
    return by_id or session.scalars(living.where(ApiClientRow.name == name_or_id)).first()


def clients(session: Session) -> list[ApiClientRow]:
    return list(
        session.scalars(select(ApiClientRow).where(ApiClientRow.deleted_wall_ns == 0).order_by(ApiClientRow.name))
    )


def delete_client(session: Session, row: ApiClientRow, wall_ns: int) -> None:
    """With its tokens: from now on they let nobody in."""
    row.deleted_wall_ns, row.secret_argon2 = wall_ns, ""
    tokens = update(ApiTokenRow).where(ApiTokenRow.client_id == row.client_id, ApiTokenRow.revoked_wall_ns == 0)
    session.execute(tokens.values(revoked_wall_ns=wall_ns))


def forget_expired_tokens(session: Session, client_id: str, wall_ns: int) -> None:
    session.execute(
        delete(ApiTokenRow).where(
            ApiTokenRow.client_id == client_id, ApiTokenRow.expires_wall_ns > 0, ApiTokenRow.expires_wall_ns <= wall_ns
        )
    )
