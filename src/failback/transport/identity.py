"""Who a component is: its certificate from the configuration server's CA, and the TLS contexts made of it.

The identity directory holds ``component.json``, ``certificate.pem``, ``ca.pem`` and ``key.pem`` (mode 0600). The key is
made here and never leaves the machine; enrolment sends a signing request with the passphrase or a one-time token.
``component.json`` is written last, so that a half-written identity counts as none and enrolment starts again;
enrolling the same hardware in the same role again gives the same component id. A pair that follows another one is written
as ``next-key.pem``, ``next-certificate.pem`` and then renamed, which :func:`load` finishes after a crash.

Peers are known by their certificate: the subject's CN is the component id, its OU the role.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failback import __version__
from failback.errors import AuthenticationError, ConfigurationError, FailbackError, PeerError
from failback.model.components import Enrolled, Enrolment, Renewal, Role
from failback.model.ids import ComponentId
from failback.runtime import faults, host, logs, records
from failback.runtime.durable_files import PUBLIC, rename_file, replace_file
from failback.transport.denied import DenyList
from failback.transport.https import ControlConfig, HttpsClient

log = logs.get(__name__)

_RETRY_SECONDS = 5.0
_KEY, _CERTIFICATE = "key.pem", "certificate.pem"
_NEXT_KEY, _NEXT_CERTIFICATE = "next-key.pem", "next-certificate.pem"


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    component_id: ComponentId
    role: Role
    serial: str = ""
    """Of its certificate: hexadecimal, lower case, without leading zeros."""


class Identity:
    """A component's own certificate and what is made of it. ``denied``: the certificates of others that were revoked.

    Contexts follow the certificate: after :meth:`reload` every new connection shows the new one, whatever context was
    handed out before; connections that live are not touched.
    """

    def __init__(self, component_id: ComponentId, role: Role, directory: Path) -> None:
        self.component_id = component_id
        self.role = role
        self.directory = directory
        self.denied = DenyList(directory / "revoked.json")
        self.generation = 0
        """Grows with every :meth:`reload`."""
        self._contexts: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[ComponentId, Role, Path]:
        return self.component_id, self.role, self.directory

    @property
    def certificate_path(self) -> Path:
        return self.directory / _CERTIFICATE

    @property
    def key_path(self) -> Path:
        return self.directory / _KEY

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
        self.follow(context)
        return context

    def follow(self, context: ssl.SSLContext) -> None:
        """The context, which shows this identity, shall show its certificate of then after a :meth:`reload` too."""
        self._contexts.add(context)

    def reload(self) -> None:
        """The files hold another pair: use it for every connection that is opened from now on."""
        for context in list(self._contexts):
            context.load_cert_chain(self.certificate_path, self.key_path)
        self.generation += 1


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket) -> PeerIdentity:
    """Who is on the other end of a mutual TLS connection. Raises AuthenticationError when it does not say."""
    certificate: Any = connection.getpeercert() or {}
    subject = {name: value for parts in certificate.get("subject", ()) for name, value in parts}
    try:
        serial = f"{int(certificate.get('serialNumber', '0'), 16):x}"
        return PeerIdentity(ComponentId(subject["commonName"]), Role(subject["organizationalUnitName"]), serial)
    except (KeyError, ValueError):
        raise AuthenticationError(
            "the peer's certificate names no component and role",
            possible_causes="it was not issued by a configuration server",
            remedy="enrol the peer again",
        ) from None


def load(directory: Path) -> Identity | None:
    """The identity stored in the directory, or None when enrolment has not finished there."""
    try:
        stored = records.parse_json((directory / "component.json").read_text(encoding="utf-8"))
        role = Role(stored["role"])
        component_id = stored["component_id"]
        if not isinstance(component_id, str):
            raise TypeError(component_id)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning(
            "the stored identity cannot be read: the component enrols again", directory=directory, reason=str(error)
        )
        return None
    _finish_following(directory)
    return Identity(ComponentId(component_id), role, directory)


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
    if not may_enrol(config):
        raise ConfigurationError(
            "this component is not enrolled and has no passphrase_file or token_file",
            remedy="set one in [configuration_server]; the configuration server wrote its passphrase at first start",
        )
    key_pem, enrolled = _ask_enrolment(config, role)
    _store(directory, role, key_pem, enrolled)
    log.info("enrolled", role=role.value, component_id=enrolled.component_id)
    return Identity(enrolled.component_id, role, directory)


def may_enrol(config: ControlConfig) -> bool:
    """Whether a secret is there to enrol with. Raises ConfigurationError for a file that cannot be read."""
    return bool(_secret(config.passphrase_file) or _secret(config.token_file))


def _ask_enrolment(config: ControlConfig, role: Role) -> tuple[bytes, Enrolled]:
    """(key, what the server answered)."""
    facts = host.gather()
    key_pem, csr_pem = key_and_request(role)
    request = Enrolment(
        role=role, hostname=facts.hostname, csr_pem=csr_pem, hardware_id=facts.hardware_id, version=__version__,
        passphrase=_secret(config.passphrase_file), token=_secret(config.token_file), addresses=config.addresses,
    )  # fmt: skip
    client = HttpsClient(config.url, ca_file=config.ca_file)
    try:
        answer = client.post("/components/v1/enrol", records.encode(request), timeout_seconds=30.0)
    finally:
        client.close()
    return key_pem, records.decode(answer, Enrolled, "enrolment answer")


def renew(identity: Identity, config: ControlConfig) -> None:
    """Get a certificate that follows the one of now, which has to be valid. Blocks; ``identity.reload`` comes after it.

    Raises PeerError, AuthenticationError and what the server answers.
    """
    facts = host.gather()
    key_pem, csr_pem = key_and_request(identity.role)
    request = Renewal(facts.hostname, csr_pem, facts.hardware_id, __version__, config.addresses)
    client = HttpsClient(
        config.url, ca_file=identity.ca_path, certificate=(identity.certificate_path, identity.key_path)
    )
    try:
        answer = client.post("/components/v1/renew", records.encode(request), timeout_seconds=30.0)
    finally:
        client.close()
    _store_following(identity, key_pem, records.decode(answer, Enrolled, "renewal answer"))


def enrol_again(identity: Identity, config: ControlConfig) -> None:
    """As :func:`renew`, with the passphrase or a token: the certificate of now has expired."""
    key_pem, enrolled = _ask_enrolment(config, identity.role)
    _store_following(identity, key_pem, enrolled)


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


def key_and_request(role: Role | str) -> tuple[bytes, str]:
    """A fresh EC P-256 key (PEM) and a signing request for it; the CA decides the subject."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, role if isinstance(role, str) else role.value)]
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _store(directory: Path, role: Role, key_pem: bytes, enrolled: Enrolled) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left_over in (_NEXT_CERTIFICATE, _NEXT_KEY):
        (directory / left_over).unlink(missing_ok=True)
    replace_file(directory / _KEY, key_pem)
    replace_file(directory / _CERTIFICATE, enrolled.certificate_pem.encode("ascii"), PUBLIC)
    replace_file(directory / "ca.pem", enrolled.ca_pem.encode("ascii"), PUBLIC)
    stored = {"component_id": enrolled.component_id, "role": role.value}
    replace_file(directory / "component.json", json.dumps(stored).encode("utf-8"), PUBLIC)


def _store_following(identity: Identity, key_pem: bytes, enrolled: Enrolled) -> None:
    """Replace key and certificate as one. Raises AuthenticationError for an answer that is about somebody else."""
    if enrolled.component_id != identity.component_id:
        raise AuthenticationError(
            f"the configuration server knows this machine as {enrolled.component_id} now, not as {identity.component_id}",
            possible_causes="its database is another one, or this component runs on other hardware than before",
            remedy=f"stop this component, remove {identity.directory} and start it: it enrols as what it is now",
        )
    directory = identity.directory
    _finish_following(directory)  # of a try before this one, if a full disk stopped it in the middle
    replace_file(directory / _NEXT_KEY, key_pem)
    faults.point("identity.key_written")
    replace_file(directory / _NEXT_CERTIFICATE, enrolled.certificate_pem.encode("ascii"), PUBLIC)
    faults.point("identity.certificate_written")
    _finish_following(directory)


def _finish_following(directory: Path) -> None:
    """The pair that was written last takes its place, once both halves are there. May run again after a crash anywhere."""
    key, certificate = directory / _NEXT_KEY, directory / _NEXT_CERTIFICATE
    if certificate.exists():
        if key.exists():
            rename_file(key, directory / _KEY)
            faults.point("identity.key_replaced")
        rename_file(certificate, directory / _CERTIFICATE)


__all__ = [
    "ControlConfig",
    "FailbackError",
    "Identity",
    "PeerIdentity",
    "enrol_again",
    "enrol_if_needed",
    "load",
    "may_enrol",
    "peer_identity",
    "renew",
]
