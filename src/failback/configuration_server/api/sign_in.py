"""Who calls: a bearer token whose SHA-256 stands in the database; and what a caller changed, in the audit.

A token has 256 random bits, so its hash needs no salt and the look-up by hash leaks nothing about it; the comparison
itself is constant-time all the same. The caller's name is put into ``request.state.caller``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.api.access_rules import BY_WORD, Access, needed
from failback.configuration_server.api.services import Services
from failback.configuration_server.database.access import METRICS, ApiTokenRow, audit
from failback.errors import AuthenticationError, PermissionDeniedError
from failback.runtime.clock import Clock

METRICS_PATH = "/metrics"


@dataclass(frozen=True, slots=True)
class Caller:
    """``name`` is the token's or the client's; ``access`` None: reads metrics and nothing else."""

    name: str
    access: Access | None

    def require(self, method: str, path: str) -> None:
        """Raises AuthenticationError (a token for metrics elsewhere) and PermissionDeniedError."""
        if self.access is None:
            if (method, path) != ("GET", METRICS_PATH):
                raise _refused("this bearer token reads metrics only")
            return
        wanted = needed(method, path)
        if self.access < wanted:
            raise PermissionDeniedError(
                f"{self.name} is a {self.access.word}; this needs the role {wanted.word}",
                remedy=f"sign in with a client of the role {wanted.word} (failback client create, by an administrator)",
            )


def signed_in(services: Services) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets only callers with a valid token pass; those of :mod:`gate` have shown theirs."""

    async def check(request: Request) -> None:
        if getattr(request.state, "caller", ""):
            return
        token = bearer(request.headers.get("authorization", ""))
        now = services.clock.wall_ns()
        caller = await services.database.look(lambda session: caller_of(session, token, now))
        caller.require(request.method, request.url.path)
        request.state.caller = caller.name

    return check


def bearer(header: str) -> str:
    """The token of an Authorization header. Raises AuthenticationError."""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _refused("the call carries no bearer token")
    return token.strip()


def caller_of(session: Session, token: str, now_wall_ns: int) -> Caller:
    """Whose token it is, with what access. Raises AuthenticationError (unknown, expired, revoked)."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    row = session.scalars(select(ApiTokenRow).where(ApiTokenRow.token_sha256 == digest)).first()
    if row is None or not hmac.compare_digest(row.token_sha256, digest):
        raise _refused("the bearer token is not known")
    if row.revoked_wall_ns:
        raise _refused("the bearer token was revoked")
    if row.expires_wall_ns and row.expires_wall_ns <= now_wall_ns:
        raise _refused("the bearer token has expired")
    if row.access != METRICS and row.access not in BY_WORD:
        raise _refused(f"this server knows no role {row.access!r}")
    return Caller(row.name, BY_WORD.get(row.access))


def note(session: Session, clock: Clock, request: Request, action: str, target: str, *, detail: str = "") -> None:
    """Write the audit row of an accepted change in the caller's own transaction."""
    address = request.client.host if request.client else ""
    audit(session, clock.wall_ns(), request.state.caller, action, target, address=address, detail=detail)


def _refused(message: str) -> AuthenticationError:
    return AuthenticationError(
        message,
        remedy="sign in (failback login), or send the administrator token: Authorization: Bearer (administrator.token "
        "of the server)",
    )
