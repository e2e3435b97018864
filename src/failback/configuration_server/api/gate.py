"""The gate before every route: who calls, and whether they may, is checked before a byte of the body is read.

FastAPI reads and parses a body before a route's dependencies run, so a dependency alone would let anybody fill the
server's memory and tell a known path from an unknown one. What is not in ``OPEN_PATHS`` needs a bearer token, whatever
the path; those have their own proof (a certificate, the enrolment's secret, a client's secret) or say nothing. Every change
that a known caller asked for and did not get leaves an audit row here; accepted ones write theirs in their own transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from failback.configuration_server.api.faults import answer
from failback.configuration_server.api.forwarded import Proxies, as_forwarded
from failback.configuration_server.api.letter_case import as_served
from failback.configuration_server.api.oauth import is_sign_in
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import Caller, bearer, caller_of
from failback.configuration_server.database.access import audit
from failback.configuration_server.enrolment.routes import LARGEST_BODY_BYTES as LARGEST_SIGN_IN_BYTES
from failback.configuration_server.enrolment.routes import LONGEST_SENDING_SECONDS, TOO_LARGE
from failback.errors import ConfigurationError, FailbackError

OPEN_PATHS = frozenset(
    {"/healthz", *(f"/components/v1/{name}" for name in ("enrol", "heartbeat", "renew", "group-hold"))}
)
LARGEST_BODY_BYTES = 1 << 20
_CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Gate:
    """ASGI middleware."""

    def __init__(
        self, application: ASGIApp, services: Services, proxies: Proxies = (), words: Mapping[str, str] | None = None
    ) -> None:
        self._application = application
        self._services = services
        self._proxies = proxies
        self._words = words or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._application(scope, receive, send)
            return
        as_forwarded(scope, self._proxies)
        scope["path"] = as_served(scope["path"], self._words)
        caller: Caller | None = None
        try:
            open_to_all = is_sign_in(scope["path"])
            if not open_to_all:
                caller = await self._caller(scope)
                caller.require(scope["method"], scope["path"])
            async with asyncio.timeout(LONGEST_SENDING_SECONDS):
                body = await _bounded(receive, LARGEST_SIGN_IN_BYTES if open_to_all else LARGEST_BODY_BYTES)
        except (TimeoutError, FailbackError) as error:
            if not isinstance(error, FailbackError):
                error = ConfigurationError(f"the request did not come within {LONGEST_SENDING_SECONDS:.0f} s")
            response = answer(error)
            await self._audit_refused(scope, caller, response.status_code, error.code)
            await response(scope, receive, send)
            return
        if caller is not None:
            scope.setdefault("state", {})["caller"] = caller.name
        if body is not None:
            await self._pass_on(scope, _replayed(body, receive), send, caller)

    async def _caller(self, scope: Scope) -> Caller:
        token = bearer(Headers(scope=scope).get("authorization", ""))
        now = self._services.clock.wall_ns()
        return await self._services.database.look(lambda session: caller_of(session, token, now))

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, caller: Caller | None) -> None:
        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":  # who hears of a refusal finds it in the audit
                await self._audit_refused(scope, caller, message["status"], "")
            await send(message)

        try:
            await self._application(scope, receive, seen)
        except Exception:  # the application's border answers it with 500, outside of this one
            await self._audit_refused(scope, caller, 500, "")
            raise

    async def _audit_refused(self, scope: Scope, caller: Caller | None, status: int, code: str) -> None:
        if caller is None or status < 400 or scope["method"] not in _CHANGES:
            return
        who, now = caller.name, self._services.clock.wall_ns()
        address = scope["client"][0] if scope.get("client") else ""
        action = f"{scope['method']} {scope['path'].rsplit('/vaults/', 1)[-1].partition('/')[2] or scope['path']}"
        outcome, detail = "refused" if status < 500 else "failed", f"status {status} {code}".strip()
        await self._services.database.run(
            lambda session: audit(session, now, who, action, "", address=address, outcome=outcome, detail=detail)
        )


async def _bounded(receive: Receive, limit_bytes: int) -> bytes | None:
    """The whole body; None when the caller went away. Raises ConfigurationError (too large)."""
    content = bytearray()
    is_more = True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        content += message.get("body", b"")
        is_more = bool(message.get("more_body", False))
        if len(content) > limit_bytes:
            raise ConfigurationError(
                f"the request is larger than {limit_bytes} bytes", code=TOO_LARGE, remedy="send less"
            )
    return bytes(content)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then whatever else the connection says."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
