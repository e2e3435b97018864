"""Whether the owner of a certificate may speak here at all: known, in that role, and not revoked."""

from __future__ import annotations

from sqlalchemy.orm import Session

from failback.configuration_server.database import certificates
from failback.configuration_server.database.components import ComponentRow
from failback.errors import AuthenticationError
from failback.model.components import Role


def known(session: Session, component_id: str, role: Role, serial: str) -> ComponentRow:
    """The component of the certificate with this serial number. Raises AuthenticationError."""
    row = session.get(ComponentRow, component_id)
    if row is None or row.revoked or row.role != role.value:
        raise AuthenticationError(
            "this certificate names no component that is registered here in that role",
            possible_causes="the component was removed, or the certificate belongs to another configuration server",
            remedy="delete the component's identity directory and enrol it again",
        )
    if certificates.is_revoked(session, serial):
        raise AuthenticationError(
            "this certificate was revoked",
            code="CertificateRevoked",
            possible_causes="the component was enrolled again, here or on a copy of its disk",
            remedy="delete the component's identity directory and enrol it again",
        )
    return row
