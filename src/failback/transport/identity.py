"""Who a component is: its certificate from the configuration server's CA, and the TLS contexts made of it.

The identity directory holds ``component.json``, ``certificate.pem``, ``ca.pem`` and ``key.pem`` (mode 0600). The key is
made here and never leaves the machine; enrolment sends a signing request with the passphrase or a one-time token.
``component.json`` is written last, so that a half-written identity counts as none and enrolment starts again;
enrolling the same hardware in the same role again gives the same component id.

Peers are known by their certificate: the subject's CN is the component id, its OU the role.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failback import __version__
from failback.errors import AuthenticationError, ConfigurationError, FailbackError, PeerError
from failback.model.components import Enrolled, Enrolment, Role
from failback.model.ids import ComponentId
from failback.runtime import host, logs, records
from failback.transport.https import ControlConfig, HttpsClient

log = logs.get(__name__)

_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    component_id: ComponentId
    role: Role


@dataclass(frozen=True, slots=True)
class Identity:
    component_id: ComponentId
    role: Role
    directory: Path

    @property
    def certificate_path(self) -> Path:
        return self.directory / "certificate.pem"

    @property
    def key_path(self) -> Path:
        return self.directory / "key.pem"

    @property
    def ca_path(self) -> Path:
        return self.directory / "ca.pem"

    def server_context(self) -> ssl.SSLContext:
        """For accepting links: the peer must show a certificate of our CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        return self._finish(context)

    def client_context(self) -> ssl.SSLContext:
        """For opening links: names are not checked, the caller compares :func:`peer_identity` with whom it wants."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return self._finish(context)

    def _finish(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.certificate_path, self.key_path)
        context.load_verify_locations(self.ca_path)
        return context


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket) -> PeerIdentity:
    """Who is on the other end of a mutual TLS connection. Raises AuthenticationError when it does not say."""
    certificate: Any = connection.getpeercert() or {}
    subject = {name: value for parts in certificate.get("subject", ()) for name, value in parts}
    try:
        return PeerIdentity(ComponentId(subject["commonName"]), Role(subject["organizationalUnitName"]))
    except (KeyError, ValueError):
        raise AuthenticationError(
            "the peer's certificate names no component and role",
            possible_causes="it was not issued by a configuration server",
            remedy="enrol the peer again",
        ) from None


def load(directory: Path) -> Identity | None:
    """The identity stored in the directory, or None when enrolment has not finished there."""
    try:
        stored = json.loads((directory / "component.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return Identity(ComponentId(stored["component_id"]), Role(stored["role"]), directory)


async def enrol_if_needed(state_directory: Path, config: ControlConfig, role: Role) -> Identity:
    """The component's identity; enrols first when there is none, and waits for the configuration server if it is away.

    Raises AuthenticationError (wrong passphrase or token) and ConfigurationError (no passphrase or token given).
    """
    directory = state_directory / "identity"
    found = await asyncio.to_thread(load, directory)
    if found is not None:
        if found.role is not role:
            raise ConfigurationError(
                f"{directory} holds the identity of a {found.role.value}, not of a {role.value}",
                remedy="give each role a state_directory of its own",
            )
        return found
    while True:
        try:
            return await asyncio.to_thread(_enrol, directory, config, role)
        except PeerError as error:
            log.warning("enrolment waits for the configuration server", url=config.url, reason=error.message)
            await asyncio.sleep(_RETRY_SECONDS)


def _enrol(directory: Path, config: ControlConfig, role: Role) -> Identity:
    passphrase = _secret(config.passphrase_file)
    token = _secret(config.token_file)
    if not passphrase and not token:
        raise ConfigurationError(
            "this component is not enrolled and has no passphrase_file or token_file",
            remedy="set one in [configuration_server]; the configuration server wrote its passphrase at first start",
        )
    facts = host.gather()
    key_pem, csr_pem = _key_and_request(role)
    request = Enrolment(
        role=role, hostname=facts.hostname, csr_pem=csr_pem, hardware_id=facts.hardware_id, version=__version__,
        passphrase=passphrase, token=token, addresses=config.addresses,
    )  # fmt: skip
    client = HttpsClient(config.url, ca_file=config.ca_file)
    try:
        answer = client.post("/components/v1/enrol", records.encode(request), timeout_seconds=30.0)
    finally:
        client.close()
    enrolled = records.decode(answer, Enrolled, "enrolment answer")
    _store(directory, role, key_pem, enrolled)
    log.info("enrolled", role=role.value, component_id=enrolled.component_id)
    return Identity(enrolled.component_id, role, directory)


def _secret(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        if path.stat().st_mode & 0o077:
            log.warning("other users of this machine may read a file that enrols components", path=path,
                        remedy=f"chmod 600 {path}, or delete it after the enrolment")  # fmt: skip
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}", remedy="check [configuration_server]"
        ) from error


def _key_and_request(role: Role) -> tuple[bytes, str]:
    """A fresh EC P-256 key (PEM) and a signing request for it; the CA decides the subject."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, role.value)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _store(directory: Path, role: Role, key_pem: bytes, enrolled: Enrolled) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(directory / "key.pem", key_pem, 0o600)
    _write(directory / "certificate.pem", enrolled.certificate_pem.encode("ascii"), 0o644)
    _write(directory / "ca.pem", enrolled.ca_pem.encode("ascii"), 0o644)
    stored = {"component_id": enrolled.component_id, "role": role.value}
    _write(directory / "component.json", json.dumps(stored).encode("utf-8"), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace the file durably: never half-written, and with its mode from the first byte."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


__all__ = ["ControlConfig", "FailbackError", "Identity", "PeerIdentity", "enrol_if_needed", "load", "peer_identity"]
