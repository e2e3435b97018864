"""The components' own HTTP API: ``POST /components/v1/enrol``, ``.../renew`` and ``.../heartbeat``.

Bodies are the encoded dataclasses of :mod:`failback.model.components`. Heartbeat and renewal need a client certificate of
our CA; enrolment carries its secret in the body. ``POST /components/v1/tokens`` makes one-time tokens for signed-in callers,
``.../revoke`` and ``.../readmit`` shut a component out and let it in again.
Errors are ``{"error": FailbackError.as_dict()}``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from failback.configuration_server.enrolment.desk import TOKEN_LIFE_SECONDS, TOO_MANY_ATTEMPTS, EnrolmentDesk
from failback.configuration_server.registry import Registry
from failback.errors import (
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    FailbackError,
    NotFoundError,
    OutOfSpaceError,
    PeerError,
    StaleEpochError,
)
from failback.model.components import Enrolment, Heartbeat, Renewal, Role
from failback.runtime import records
from failback.runtime.clock import Clock
from failback.transport.identity import PeerIdentity

T = TypeVar("T")

PEER = "failback.peer"
"""ASGI scope key: PeerIdentity of the client certificate, or None."""
ROUND_TRIP = "failback.round_trip_seconds"
"""ASGI scope key: the connection's smoothed round trip as the kernel measures it."""

LARGEST_HEARTBEAT_BYTES = 32 << 20
"""Of a master target, which tells all its recovery points."""
LARGEST_AGENT_HEARTBEAT_BYTES = 1 << 20
"""Of an agent: there are many, on machines that others administer."""
LARGEST_BODY_BYTES = 64 << 10
"""Of an enrolment (anybody may send one) and a request for a token."""
TOO_LARGE = "RequestTooLarge"
LONGEST_SENDING_SECONDS = 30.0
"""For a request's body to arrive."""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """``role`` None: the token enrols a component of any role."""

    role: Role | None = None
    life_seconds: float = TOKEN_LIFE_SECONDS


@dataclass(frozen=True, slots=True)
class ComponentNamed:
    """By id, or by host name when that is unique (among those of ``role``, when given)."""

    component: str
    role: Role | None = None


def component_router(desk: EnrolmentDesk, registry: Registry, clock: Clock) -> APIRouter:
    router = APIRouter(prefix="/components/v1")

    @router.post("/enrol")
    async def enrol(request: Request) -> JSONResponse:
        async def work() -> Any:
            enrolment = await body_of(request, Enrolment)
            address = request.client.host if request.client else ""
            return records.encode(await desk.enrol(enrolment, address))

        return await answered(work)

    @router.post("/heartbeat")
    async def heartbeat(request: Request) -> JSONResponse:
        async def work() -> Any:
            peer = _peer_of(request, "a heartbeat")
            is_agent = peer.role is Role.MOBILITY
            limit_bytes = LARGEST_AGENT_HEARTBEAT_BYTES if is_agent else LARGEST_HEARTBEAT_BYTES
            said = await body_of(request, Heartbeat, limit_bytes)
            skew = (said.wall_ns - clock.wall_ns()) / 1e9 + request.scope.get(ROUND_TRIP, 0.0) / 2
            if said.role is not peer.role:
                raise AuthenticationError(f"the certificate is for a {peer.role.value}, not a {said.role.value}")
            address = request.client.host if request.client else ""
            reply = await registry.heartbeat(
                peer.component_id, peer.role, said, skew_seconds=skew, address=address, serial=peer.serial
            )
            return records.encode(reply)

        return await answered(work)

    @router.post("/renew")
    async def renew(request: Request) -> JSONResponse:
        async def work() -> Any:
            peer = _peer_of(request, "a renewal")
            wanted = await body_of(request, Renewal)
            return records.encode(await desk.renew(peer.component_id, peer.role, peer.serial, wanted))

        return await answered(work)

    return router


def _peer_of(request: Request, what: str) -> PeerIdentity:
    """Who shows a certificate. Raises AuthenticationError."""
    peer: PeerIdentity | None = request.scope.get(PEER)
    if peer is None:
        raise AuthenticationError(f"{what} needs the component's client certificate", remedy="enrol the component")
    return peer


def token_router(desk: EnrolmentDesk) -> APIRouter:
    """``POST /components/v1/tokens`` ``{"role": ..., "life_seconds": ...}``; the app lets only signed-in callers here."""
    router = APIRouter(prefix="/components/v1")

    @router.post("/tokens")
    async def make(request: Request) -> JSONResponse:
        async def work() -> Any:
            wanted = await body_of(request, TokenRequest)
            token = await desk.make_token(wanted.role, wanted.life_seconds, caller=_caller(request))
            return {"token": token}

        return await answered(work)

    @router.post("/revoke")
    async def revoke(request: Request) -> JSONResponse:
        async def work() -> Any:
            named = await body_of(request, ComponentNamed)
            return {"id": await desk.revoke(named.role, named.component, caller=_caller(request))}

        return await answered(work)

    @router.post("/readmit")
    async def readmit(request: Request) -> JSONResponse:
        async def work() -> Any:
            named = await body_of(request, ComponentNamed)
            return {"id": await desk.readmit(named.role, named.component, caller=_caller(request))}

        return await answered(work)

    return router


def _caller(request: Request) -> str:
    return str(getattr(request.state, "caller", ""))


async def body_of(request: Request, kind: type[T], limit_bytes: int = LARGEST_BODY_BYTES) -> T:
    """The request's body, bounded and parsed. Raises ConfigurationError."""
    content = bytearray()
    try:
        async with asyncio.timeout(LONGEST_SENDING_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limit_bytes:
                    raise ConfigurationError(f"the request is larger than {limit_bytes} bytes", code=TOO_LARGE)
    except TimeoutError:
        raise ConfigurationError(f"the request did not come within {LONGEST_SENDING_SECONDS:.0f} s") from None
    try:
        table = records.parse_json(bytes(content), parse_constant=_no_number, parse_float=_finite)
    except ValueError as error:
        raise ConfigurationError(f"the request is not JSON: {error}") from error
    return records.decode(table, kind, "request")


def _no_number(word: str) -> float:
    """NaN and the infinities are no JSON, could not be shown again and compare with nothing."""
    raise ValueError(f"{word} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


async def answered(work: Callable[[], Awaitable[Any]]) -> JSONResponse:
    try:
        return JSONResponse(await work())
    except FailbackError as error:
        return error_response(error)


def status_of(error: FailbackError) -> int:
    if error.code == TOO_MANY_ATTEMPTS:
        return 429
    if error.code == TOO_LARGE:
        return 413
    statuses: tuple[tuple[type[FailbackError], int], ...] = (
        (AuthenticationError, 401),
        (ConfigurationError, 400),
        (NotFoundError, 404),
        (ConflictError, 409),
        (StaleEpochError, 409),
        (PeerError, 503),
        (OutOfSpaceError, 503),
    )
    return next((status for kind, status in statuses if isinstance(error, kind)), 500)


def error_response(error: FailbackError) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, AuthenticationError) else {}
    return JSONResponse({"error": error.as_dict()}, status_of(error), headers)
