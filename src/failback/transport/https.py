"""A small HTTPS client for the component API of the configuration server: JSON in, JSON out, one kept-alive connection.

The standard library's client, so that a protected machine needs nothing more. It blocks: callers run it in a thread.
The server is known by its name *and* its role: other components have certificates of the same CA.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from failback.errors import AuthenticationError, ConfigurationError, FailbackError, PeerError, from_dict
from failback.model.components import Role
from failback.runtime import records

if TYPE_CHECKING:
    from failback.transport.identity import Identity


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


class _ConfigurationServerSocket(ssl.SSLSocket):
    """A connection that is refused, before a byte is sent, unless the peer's certificate names a configuration server."""

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        certificate: Any = self.getpeercert() or {}
        subject = {name: value for parts in certificate.get("subject", ()) for name, value in parts}
        role = subject.get("organizationalUnitName", "")
        if role != Role.CONFIGURATION_SERVER.value:
            error = ssl.SSLCertVerificationError(1, "the peer is no configuration server")
            error.verify_message = f"it belongs to a component of role {role!r}, not to a configuration server"
            raise error


class HttpsClient:
    """One connection, re-opened when it broke. Not for use by two threads at once."""

    def __init__(self, url: str, *, ca_file: Path, certificate: tuple[Path, Path] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ConfigurationError(f"{url!r} is not an https URL", remedy='set url = "https://HOST:PORT"')
        self._host, self._port = parts.hostname, parts.port or 443
        self._certificate = certificate[0] if certificate else None
        try:
            self._context = ssl.create_default_context(cafile=str(ca_file))
            self._context.sslsocket_class = _ConfigurationServerSocket
            if certificate is not None:
                self._context.load_cert_chain(*certificate)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"cannot use the certificates for {url}: {error}", remedy="check ca_file"
            ) from error
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._identity: Identity | None = None
        self._generation = 0
        self._connection: http.client.HTTPSConnection | None = None

    @classmethod
    def of(cls, identity: Identity, url: str) -> HttpsClient:
        """A client that shows the identity's certificate, and the one that follows it once that was loaded."""
        client = cls(url, ca_file=identity.ca_path, certificate=(identity.certificate_path, identity.key_path))
        client._identity, client._generation = identity, identity.generation
        identity.follow(client._context)
        return client

    def post(self, path: str, body: Any, *, timeout_seconds: float) -> Any:
        """POST and return the decoded answer.

        Raises PeerError (away, too slow), AuthenticationError (401, 403, certificates) and what the answer's error
        body says otherwise.
        """
        encoded = json.dumps(body).encode("utf-8")
        if self._identity is not None and self._generation != self._identity.generation:
            self._generation = self._identity.generation
            self.close()  # the next connection shows the new certificate
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
            if isinstance(error, (ssl.SSLError, ConnectionError)) and not isinstance(error, ConnectionRefusedError):
                self._check_own_certificate()  # the peer ended the connection: the alert that says why may be lost
            raise PeerError(
                f"the configuration server at {self._host}:{self._port} does not answer: {error or type(error).__name__}",
                remedy="check that it runs and that the port is open from here",
            ) from error
        if status != 200:
            raise _error(status, content)
        try:
            return records.parse_json(content)
        except ValueError as error:
            raise PeerError(
                f"{self._host}:{self._port} answers what is not JSON",
                possible_causes="something else listens at this address",
                remedy="check url in [configuration_server]",
            ) from error

    def _check_own_certificate(self) -> None:
        """Raises AuthenticationError when the certificate that this side shows is over."""
        if self._certificate is None:
            return
        from cryptography import x509

        try:
            end = x509.load_pem_x509_certificate(self._certificate.read_bytes()).not_valid_after_utc
        except (OSError, ValueError):
            return
        if end <= datetime.now(UTC):
            raise AuthenticationError(
                f"this component's certificate has expired on {end:%Y-%m-%d}",
                code="CertificateExpired",
                possible_causes="it was enrolled more than a year ago, or this machine's clock is wrong",
                remedy="put a one-time token (failback component token) into its token_file: it enrols again by itself",
            )

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
        fields = records.parse_json(content).get("error") or {}
    except (ValueError, AttributeError):
        fields = {}
    message = str(fields.get("message") or f"the configuration server answered with status {status}")
    if status in (401, 403):
        return AuthenticationError(message, remedy=str(fields.get("remedy", "enrol this component again")))
    if not 400 <= status < 500:
        return PeerError(message, remedy=str(fields.get("remedy", "see the configuration server's log")))
    return from_dict({**{key: str(value) for key, value in fields.items()}, "message": message})
