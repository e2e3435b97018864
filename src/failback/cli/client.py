"""Calls to the configuration server's REST API, blocking, with errors of our tree.

A change carries a request id, so repeating it after a broken connection finds the job that the first try started. A server
that is away for a moment (a restart) is waited for; one that was never reached only briefly, for then an address is wrong.
"""

from __future__ import annotations

import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from failback.cli.settings import Settings
from failback.errors import AuthenticationError, ConfigurationError, FailbackError, PeerError

if TYPE_CHECKING:
    import httpx

API_VERSION = "2025-08-01"
VAULT = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/failback"
    "/providers/Microsoft.RecoveryServices/vaults/failback"
)
CONTAINER = "/replicationFabrics/configuration-server/replicationProtectionContainers/machines"
ITEMS = f"{CONTAINER}/replicationProtectedItems"
TIMEOUT_SECONDS = 60.0
PATIENCE_SECONDS = 120.0
PATIENCE_AT_FIRST_SECONDS = 3.0


class ApiError(FailbackError):
    """What the server answered instead of a result; ``status`` is the HTTP status."""

    status: int = 0


class Api:
    """One server. Use as a context manager."""

    def __init__(
        self, settings: Settings, *, patience_seconds: float = 60.0, tell: Callable[[str], None] | None = None
    ):
        import httpx

        try:
            context = ssl.create_default_context(cafile=str(settings.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"cannot use the CA file {settings.ca_file}: {error}",
                remedy="copy ca.pem from the configuration server's state directory",
            ) from error
        self.server = settings.server
        self._patience_seconds = PATIENCE_AT_FIRST_SECONDS
        self._tell = tell or (lambda _sentence: None)
        self._client = httpx.Client(
            base_url=settings.server,
            verify=context,
            timeout=TIMEOUT_SECONDS,
            headers={"Authorization": f"Bearer {settings.token()}"},
            trust_env=False,
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """The decoded answer of a GET below the vault."""
        return self._send("GET", path, parameters, None).json()

    def every(self, path: str, parameters: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """All values of a list, page after page."""
        page = self.get(path, parameters)
        values = list(page["value"])
        while page.get("nextLink"):
            page = self._answer(self._client.get(page["nextLink"])).json()
            values += page["value"]
        return values

    def some(self, path: str, limit: int, parameters: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The first values of a list, at most ``limit``; no more pages are asked for than that takes."""
        page = self.get(path, parameters)
        values = list(page["value"])
        while page.get("nextLink") and len(values) < limit:
            page = self._answer(self._client.get(page["nextLink"])).json()
            values += page["value"]
        return values[:limit]

    def put(self, path: str, body: Any) -> Any:
        return self._send("PUT", path, None, body).json()

    def patch(self, path: str, body: Any) -> Any:
        return self._send("PATCH", path, None, body).json()

    def post(self, path: str, body: Any = None) -> Any:
        """The decoded answer; None when there is no body."""
        answer = self._send("POST", path, None, body)
        return answer.json() if answer.content else None

    def component_call(self, path: str, body: Any) -> Any:
        """The decoded answer of a POST below ``/components/v1``, which lies outside of the vault."""
        return self._send("POST", path, None, body, below="/components/v1").json()

    def delete(self, path: str) -> None:
        self._send("DELETE", path, None, None)

    def start(self, path: str, body: Any = None) -> str:
        """Begin a long-running operation; returns the id of its job."""
        answer = self._send("POST", path, None, body)
        location = str(answer.headers.get("location", ""))
        return location.split("?", maxsplit=1)[0].rstrip("/").rsplit("/", 1)[-1]

    def _send(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: Any, below: str = VAULT
    ) -> httpx.Response:
        import httpx

        request_id = str(uuid.uuid4())
        deadline = time.monotonic() + self._patience_seconds
        told = False
        while True:
            try:
                answer = self._client.request(
                    method,
                    below + path,
                    params={"api-version": API_VERSION, **(parameters or {})},
                    json=body,
                    headers={"x-ms-client-request-id": request_id},
                )
                self._patience_seconds = PATIENCE_SECONDS
                return self._answer(answer)
            except httpx.TransportError as error:
                failure = _away(self.server, error)
                if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):  # it was there, and may have begun
                    deadline += PATIENCE_SECONDS - self._patience_seconds
                    self._patience_seconds = PATIENCE_SECONDS
                if isinstance(failure, AuthenticationError) or time.monotonic() >= deadline:
                    raise failure from error
            if not told:
                self._tell(f"the configuration server at {self.server} does not answer; waiting for it")
                told = True
            time.sleep(0.5)

    def _answer(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        try:
            fields = answer.json().get("error") or {}
        except (ValueError, AttributeError):
            fields = {}
        failure = ApiError(
            str(fields.get("message") or f"the server answered with status {answer.status_code}"),
            code=str(fields.get("code") or answer.status_code),
            possible_causes=str(fields.get("possibleCauses") or ""),
            remedy=str(fields.get("recommendedAction") or fields.get("remedy") or ""),
        )
        failure.status = answer.status_code
        raise failure


def _away(server: str, error: Exception) -> FailbackError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return AuthenticationError(
            f"the certificate of {server} is not trusted: {error}",
            possible_causes="ca_file belongs to another server, or the address is not in the server's certificate",
            remedy="copy ca.pem from this server; list the address under its addresses",
        )
    return PeerError(
        f"{server} does not answer: {error or type(error).__name__}",
        possible_causes="the configuration server is stopped, or the address, port or firewall is wrong",
        remedy="check --server and the service failback-configuration-server",
    )
