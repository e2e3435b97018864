"""The installation's own certificate authority: EC P-256, made at the first start, its key never leaving ``ca/key.pem``.

Component certificates: subject CN = component id, OU = role, SANs = addresses, one year (``certificate_days``), for both ends
of a link. Only the public key of a signing request is used; what it says of its subject is not believed. Validity begins a
day early, so that a component whose clock is behind can still connect and be told so.

No component can pose as the configuration server, whatever addresses it enrols with: names of the server's own certificate
are left out (links compare ids, not names), wildcards are refused, and an agent's certificate is for the client's end only.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from failback.errors import AuthenticationError, ConfigurationError
from failback.model.components import Role
from failback.runtime import faults
from failback.runtime.durable_files import PUBLIC, replace_file

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
RENEW_DAYS = CERTIFICATE_DAYS // 3
"""The server renews its own certificate when less than this is left."""
VIEW_CLIENT = "view-client"
_EARLY = timedelta(days=1)
"""A certificate is valid from so long ago on, but never for more than a twentieth of its life."""
_HOST_NAME = re.compile(r"^(?=.{1,253}$)(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_-]{1,63}$")


@dataclass(frozen=True, slots=True)
class Issued:
    certificate_pem: str
    serial: str
    expiry_wall_ns: int


class Authority:
    """The CA in a directory; made when there is none."""

    def __init__(self, directory: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.directory = directory
        self._key = key
        self._certificate = certificate
        self._own_names: frozenset[object] = frozenset()
        self.component_life = timedelta(days=CERTIFICATE_DAYS)
        """Of the certificates that :meth:`issue` makes."""
        self.ca_pem = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    @property
    def ca_path(self) -> Path:
        return self.directory / "ca.pem"

    @classmethod
    def open(cls, directory: Path) -> Authority:
        """Find or create. Raises ConfigurationError when what is there cannot be used."""
        key_path, ca_path = directory / "key.pem", directory / "ca.pem"
        if ca_path.exists():  # written last
            try:
                certificate = x509.load_pem_x509_certificate(ca_path.read_bytes())
                key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"the certificate authority in {directory} cannot be read: {error}",
                    remedy="restore the directory from a backup: every enrolled component trusts this authority",
                ) from error
            if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
                raise ConfigurationError(f"{key_path} is not the key of {ca_path}", remedy="restore both from a backup")
            return cls(directory, key, certificate)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key)
        replace_file(key_path, _key_pem(key))
        faults.point("authority.key_written")
        replace_file(ca_path, certificate.public_bytes(serialization.Encoding.PEM), PUBLIC)
        return cls(directory, key, certificate)

    def issue(self, csr_pem: str, component_id: str, role: Role, addresses: tuple[str, ...]) -> Issued:
        """A component's certificate. Raises AuthenticationError for a request that is not what it should be."""
        public = _public_key(csr_pem)
        if any("*" in address for address in addresses):
            raise ConfigurationError("a component's addresses are its own: no wildcards", remedy="correct addresses")
        return self._sign(public, component_id, role, addresses, self.component_life)

    def issue_view_client(self, csr_pem: str, view_id: str, life: timedelta) -> Issued:
        """For whoever reads one open view from elsewhere: CN is the view's id, OU no component's role, so that every other
        door stays shut. Raises AuthenticationError as :meth:`issue` does."""
        return self._sign(_public_key(csr_pem), view_id, VIEW_CLIENT, (), life)

    def issue_server(self, directory: Path, component_id: str, addresses: tuple[str, ...]) -> tuple[Path, Path]:
        """This server's own certificate and key in ``directory``; renewed when names changed or it ends soon."""
        certificate_path, key_path = directory / "certificate.pem", directory / "key.pem"
        wanted = _unique((*addresses, "localhost", "127.0.0.1", "::1"))
        self._own_names = frozenset(_compared(name) for name in _names(wanted))
        if certificate_path.exists() and key_path.exists() and self._good(certificate_path, component_id, wanted):
            return certificate_path, key_path
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._sign(
            key.public_key(), component_id, Role.CONFIGURATION_SERVER, wanted, timedelta(days=CERTIFICATE_DAYS)
        )
        certificate_path.unlink(missing_ok=True)
        replace_file(key_path, _key_pem(key))
        faults.point("server_certificate.key_written")
        replace_file(certificate_path, (issued.certificate_pem + self.ca_pem).encode("ascii"), PUBLIC)
        return certificate_path, key_path

    def _good(self, path: Path, component_id: str, addresses: tuple[str, ...]) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, InvalidSignature):
            return False
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        [common_name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        return (
            set(names) == set(_names(addresses))
            and common_name.value == component_id
            and left > timedelta(days=RENEW_DAYS)
        )

    def _sign(
        self, public: ec.EllipticCurvePublicKey, component_id: str, role: Role | str, addresses: tuple[str, ...],
        life: timedelta,
    ) -> Issued:  # fmt: skip
        now = datetime.now(UTC).replace(microsecond=0)
        end = now + life
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, component_id),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role if isinstance(role, str) else role.value),
            ]
        )
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        names: list[x509.GeneralName] = []
        if role is not Role.MOBILITY and isinstance(role, Role):
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names = _names(addresses)
        if role is not Role.CONFIGURATION_SERVER:
            names = [name for name in names if _compared(name) not in self._own_names]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - min(_EARLY, life / 20))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(_issuer_id(self._certificate), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
        return Issued(pem, f"{certificate.serial_number:x}", int(end.timestamp()) * 1_000_000_000)


def _public_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode("ascii"))
        valid = request.is_signature_valid
        public = request.public_key()
    except (ValueError, UnicodeEncodeError, InvalidSignature) as error:
        raise AuthenticationError(f"the certificate signing request cannot be read: {error}") from error
    if not valid or not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise AuthenticationError("the certificate signing request is not signed by its own EC P-256 key")
    return public


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = datetime.now(UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Failback installation authority")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _issuer_id(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)


def _names(addresses: tuple[str, ...]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for address in _unique(addresses):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            if not _HOST_NAME.match(address):
                raise ConfigurationError(
                    f"{address!r} is neither an IP address nor a host name", remedy="correct addresses"
                ) from None
            names.append(x509.DNSName(address))
    return names


def _compared(name: x509.GeneralName) -> object:
    return name.value.lower() if isinstance(name, x509.DNSName) else name


def _unique(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(addresses))


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
