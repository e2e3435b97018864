"""Who calls: a bearer token whose SHA-256 stands in the database; and what a caller changed, in the audit.

A token has 256 random bits, so its hash needs no salt and the look-up by hash leaks nothing about it; the comparison
itself is constant-time all the same. The caller's name is put into ``request.state.caller``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable

from fastapi import Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.api.services import Services
from failback.configuration_server.database.access import METRICS, ApiTokenRow, audit
from failback.errors import AuthenticationError
from failback.runtime.clock import Clock


def signed_in(services: Services) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets only callers with a valid token pass; those of :mod:`gate` have shown theirs."""

    async def check(request: Request) -> None:
        if getattr(request.state, "caller", ""):
            return
        token = bearer(request.headers.get("authorization", ""))
        now = services.clock.wall_ns()
        name = await services.database.look(lambda session: caller_of(session, token, now))
        request.state.caller = name

    return check


def bearer(header: str) -> str:
    """The token of an Authorization header. Raises AuthenticationError."""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _refused("the call carries no bearer token")
    return token.strip()


def caller_of(session: Session, token: str, now_wall_ns: int, *, metrics_only: bool = False) -> str:
    """The name under which the token was issued. Raises AuthenticationError (unknown, expired, revoked, not for this).

    ``metrics_only``: the call only reads metrics, for which a token of that access is enough.
    """
    digest = hashlib.sha256(token.encode()).hexdigest()
    row = session.scalars(select(ApiTokenRow).where(ApiTokenRow.token_sha256 == digest)).first()
    if row is None or not hmac.compare_digest(row.token_sha256, digest):
        raise _refused("the bearer token is not known")
    if row.revoked_wall_ns:
        raise _refused("the bearer token was revoked")
    if row.expires_wall_ns and row.expires_wall_ns <= now_wall_ns:
        raise _refused("the bearer token has expired")
    if row.access == METRICS and not metrics_only:
        raise _refused("this bearer token reads metrics only")
    return row.name


def note(session: Session, clock: Clock, request: Request, action: str, target: str, *, detail: str = "") -> None:
    """Write the audit row of an accepted change in the caller's own transaction."""
    address = request.client.host if request.client else ""
    audit(session, clock.wall_ns(), request.state.caller, action, target, address=address, detail=detail)


def _refused(message: str) -> AuthenticationError:
    return AuthenticationError(
        message, remedy="send the administrator token: Authorization: Bearer (administrator.token of the server)"
    )
