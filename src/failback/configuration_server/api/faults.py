"""Errors on the wire: ``{"error": {"code", "message", "details"}}`` with the status that ARM clients expect.

``details`` carries the possible causes and the recommended action, so that the official clients print them too; our
own clients read the same texts from ``possibleCauses`` and ``recommendedAction``. A route class turns errors of our
tree into such answers; anything else is a 500 that tells nothing of the inside, with the traceback in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from failback import errors
from failback.configuration_server.enrolment.routes import TOO_LARGE
from failback.runtime import logs

log = logs.get(__name__)

_STATUSES: tuple[tuple[type[errors.FailbackError], int], ...] = (
    (errors.ConfigurationError, 400),
    (errors.NotSupportedError, 400),
    (errors.AuthenticationError, 401),
    (errors.PermissionDeniedError, 403),
    (errors.NotFoundError, 404),
    (errors.ConflictError, 409),
    (errors.PreconditionError, 409),
    (errors.StaleEpochError, 409),
    (errors.PeerError, 503),
    (errors.OutOfSpaceError, 503),
    (errors.FabricError, 502),
)


def status_of(error: errors.FailbackError) -> int:
    if error.code == TOO_LARGE:
        return 413
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def error_body(error: errors.FailbackError) -> dict[str, Any]:
    details = [
        {"code": name, "message": text}
        for name, text in (("PossibleCauses", error.possible_causes), ("RecommendedAction", error.remedy))
        if text
    ]
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "details": details,
            "possibleCauses": error.possible_causes,
            "recommendedAction": error.remedy,
        }
    }


def answer(error: errors.FailbackError) -> JSONResponse:
    headers = {"WWW-Authenticate": 'Bearer realm="failback"'} if isinstance(error, errors.AuthenticationError) else {}
    if isinstance(error, errors.PeerError):
        headers["Retry-After"] = "5"
    return JSONResponse(error_body(error), status_of(error), headers)


class FaultRoute(APIRoute):
    """A route whose errors become ARM answers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        serve = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await serve(request)
            except errors.FailbackError as error:
                return answer(error)
            except RequestValidationError as error:
                return answer(invalid(error))

        return guarded


def refused(error: HTTPException) -> JSONResponse:
    """What the framework answers by itself (no such path, another method), in our form."""
    known = {404: ("ResourceNotFound", "nothing is served at this path"),
             405: ("MethodNotAllowed", "this path does not know the method")}  # fmt: skip
    code, sentence = known.get(error.status_code, ("RequestFailed", str(error.detail)))
    body = error_body(errors.FailbackError(sentence, code=code, remedy="check path and method"))
    return JSONResponse(body, error.status_code, error.headers)


def invalid(error: RequestValidationError) -> errors.ConfigurationError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
    return errors.ConfigurationError(
        f"{place or 'the request'}: {first.get('msg', 'invalid')}", code="InvalidRequest", remedy="correct the request"
    )
