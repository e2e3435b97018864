"""The gate before every route: who calls is checked before a byte of the body is read, and bodies are bounded.

FastAPI reads and parses a body before a route's dependencies run, so a dependency alone would let anybody fill the
server's memory and tell a known path from an unknown one. What is not in ``OPEN_PATHS`` needs a bearer token, whatever
the path; those have their own proof (a certificate, or the enrolment's secret) or say nothing.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from failback.configuration_server.api.faults import answer
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import bearer, caller_of
from failback.configuration_server.enrolment.routes import LONGEST_SENDING_SECONDS, TOO_LARGE
from failback.errors import ConfigurationError, FailbackError

METRICS_PATH = "/metrics"
OPEN_PATHS = frozenset(
    {"/healthz", *(f"/components/v1/{name}" for name in ("enrol", "heartbeat", "renew", "group-hold"))}
)
LARGEST_BODY_BYTES = 1 << 20


class Gate:
    """ASGI middleware."""

    def __init__(self, application: ASGIApp, services: Services) -> None:
        self._application = application
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._application(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            token = bearer(headers.get("authorization", ""))
            now = self._services.clock.wall_ns()
            is_scrape = scope["method"] == "GET" and scope["path"] == METRICS_PATH
            caller = await self._services.database.look(
                lambda session: caller_of(session, token, now, metrics_only=is_scrape)
            )
            async with asyncio.timeout(LONGEST_SENDING_SECONDS):
                body = await _bounded(receive)
        except TimeoutError:
            late = ConfigurationError(f"the request did not come within {LONGEST_SENDING_SECONDS:.0f} s")
            await answer(late)(scope, receive, send)
            return
        except FailbackError as error:
            await answer(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        if body is not None:
            await self._application(scope, _replayed(body, receive), send)


async def _bounded(receive: Receive) -> bytes | None:
    """The whole body; None when the caller went away. Raises ConfigurationError (too large)."""
    content = bytearray()
    is_more = True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        content += message.get("body", b"")
        is_more = bool(message.get("more_body", False))
        if len(content) > LARGEST_BODY_BYTES:
            raise ConfigurationError(
                f"the request is larger than {LARGEST_BODY_BYTES} bytes", code=TOO_LARGE, remedy="send less"
            )
    return bytes(content)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then whatever else the connection says."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
