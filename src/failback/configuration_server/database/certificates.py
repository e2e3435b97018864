"""Every certificate that was issued to a component, and whether it was revoked.

One row for each until long after its end: which serials count for nothing is told to all components, which check it at
every handshake (:mod:`failback.transport.denied`).
"""

from __future__ import annotations

import hashlib

from sqlalchemy import ForeignKey, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from failback.configuration_server.database.base import Base, Id, Sentence, WallNs
from failback.configuration_server.database.components import ComponentRow
from failback.model.components import DeniedCertificates


class CertificateRow(Base):
    __tablename__ = "certificates"

    serial: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Hexadecimal, lower case."""
    component_id: Mapped[Id] = mapped_column(ForeignKey("components.component_id"), index=True)
    issued_wall_ns: Mapped[WallNs]
    expiry_wall_ns: Mapped[WallNs]
    revoked_wall_ns: Mapped[WallNs] = mapped_column(index=True)
    """0 while it counts."""
    reason: Mapped[Sentence]
    """Why it was revoked."""


def revoke_all(session: Session, component_id: str, wall_ns: int, reason: str) -> int:
    """Revoke what was issued to the component and counts; returns how many those were. May run twice."""
    statement = select(CertificateRow).where(
        CertificateRow.component_id == component_id, CertificateRow.revoked_wall_ns == 0
    )
    found = [row for row in session.scalars(statement) if row.expiry_wall_ns > wall_ns]
    for row in found:
        row.revoked_wall_ns, row.reason = wall_ns, reason
    return len(found)


def is_revoked(session: Session, serial: str) -> bool:
    row = session.get(CertificateRow, serial) if serial else None
    return row is not None and row.revoked_wall_ns > 0


def denied(session: Session, wall_ns: int) -> DeniedCertificates:
    """What every component has to refuse now."""
    revoked = select(CertificateRow.serial).where(
        CertificateRow.revoked_wall_ns > 0, CertificateRow.expiry_wall_ns > wall_ns
    )
    serials = tuple(session.scalars(revoked.order_by(CertificateRow.serial)))
    gone = select(ComponentRow.component_id).where(ComponentRow.revoked).order_by(ComponentRow.component_id)
    components = tuple(session.scalars(gone))
    if not serials and not components:
        return DeniedCertificates()
    digest = hashlib.sha256("\n".join((*serials, "", *components)).encode("ascii")).hexdigest()[:32]
    return DeniedCertificates(digest, serials, components)
