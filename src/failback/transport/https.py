"""A small HTTPS client for the component API of the configuration server: JSON in, JSON out, one kept-alive connection.

The standard library's client, so that a protected machine needs nothing more. It blocks: callers run it in a thread.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from failback.errors import AuthenticationError, ConfigurationError, FailbackError, PeerError, from_dict


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """The ``[configuration_server]`` table of every role's TOML."""

    url: str
    ca_file: Path
    passphrase_file: Path | None = None
    token_file: Path | None = None
    heartbeat_seconds: float = 5.0
    addresses: tuple[str, ...] = ()
    """Names and addresses under which other components reach this one (server roles)."""


class HttpsClient:
    """One connection, re-opened when it broke. Not for use by two threads at once."""

    def __init__(self, url: str, *, ca_file: Path, certificate: tuple[Path, Path] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ConfigurationError(f"{url!r} is not an https URL", remedy='set url = "https://HOST:PORT"')
        self._host, self._port = parts.hostname, parts.port or 443
        try:
            self._context = ssl.create_default_context(cafile=str(ca_file))
            if certificate is not None:
                self._context.load_cert_chain(*certificate)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"cannot use the certificates for {url}: {error}", remedy="check ca_file"
            ) from error
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._connection: http.client.HTTPSConnection | None = None

    def post(self, path: str, body: Any, *, timeout_seconds: float) -> Any:
        """POST and return the decoded answer.

        Raises PeerError (away, too slow), AuthenticationError (401, 403, certificates) and what the answer's error
        body says otherwise.
        """
        encoded = json.dumps(body).encode("utf-8")
        try:
            status, content = self._exchange(path, encoded, timeout_seconds)
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise AuthenticationError(
                f"the certificate of {self._host}:{self._port} is not trusted: {error.verify_message}",
                possible_causes="ca_file belongs to another configuration server, or the address is not in its certificate",
                remedy="copy ca.pem from the configuration server; list the address under its addresses",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise PeerError(
                f"the configuration server at {self._host}:{self._port} does not answer: {error or type(error).__name__}",
                remedy="check that it runs and that the port is open from here",
            ) from error
        if status == 200:
            return json.loads(content)
        raise _error(status, content)

    def _exchange(self, path: str, encoded: bytes, timeout_seconds: float) -> tuple[int, bytes]:
        fresh = self._connection is None
        connection = self._connection or http.client.HTTPSConnection(self._host, self._port, context=self._context)
        self._connection = connection
        connection.timeout = timeout_seconds
        if connection.sock is not None:
            connection.sock.settimeout(timeout_seconds)
        try:
            connection.request("POST", path, encoded, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self.close()
            if fresh:
                raise
            return self._exchange(path, encoded, timeout_seconds)  # the kept-alive connection had gone: once more

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """Wake a thread that waits in :meth:`post` from another thread; that call raises PeerError."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)


def _error(status: int, content: bytes) -> FailbackError:
    try:
        fields = json.loads(content).get("error") or {}
    except (json.JSONDecodeError, AttributeError):
        fields = {}
    message = str(fields.get("message") or f"the configuration server answered with status {status}")
    if status in (401, 403):
        return AuthenticationError(message, remedy=str(fields.get("remedy", "enrol this component again")))
    if status >= 500:
        return PeerError(message, remedy=str(fields.get("remedy", "see the configuration server's log")))
    return from_dict({**{key: str(value) for key, value in fields.items()}, "message": message})
