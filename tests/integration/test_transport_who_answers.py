"""The control link trusts one peer only, the configuration server, and says clearly why it does not trust another one."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from answering_server import component, listening
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from running_configuration_server import RunningConfigurationServer

from failback.configuration_server.enrolment import authority as authorities
from failback.configuration_server.enrolment.authority import Authority
from failback.errors import AuthenticationError, ConfigurationError, FailbackError, PeerError
from failback.model.components import Role
from failback.transport.https import HttpsClient

SERVER_NAMES = ("failback.example.net", "192.0.2.10")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    directory = tmp_path_factory.mktemp("authority")
    opened = Authority.open(directory / "ca")
    opened.issue_server(directory / "server", "the-server", SERVER_NAMES)
    return opened


def _names(certificate: Path) -> list[str]:
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    try:
        found = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in found]


def test_another_component_cannot_pose_as_the_configuration_server(tmp_path: Path) -> None:
    """Its certificate is of the same CA and names the very address; only the role tells it apart."""
    authority = Authority.open(tmp_path / "ca")  # issues every name: it has made no server certificate
    pair = component(authority, Role.PROCESS_SERVER, tmp_path / "one", ("127.0.0.1",))
    assert _names(pair[0]) == ["127.0.0.1"]
    with listening(*pair) as answers:
        client = HttpsClient(answers.url, ca_file=authority.ca_path)
        with pytest.raises(AuthenticationError, match=r"process-server.*not to a configuration server"):
            client.post("/components/v1/enrol", {"passphrase": "secret"}, timeout_seconds=10)
        client.close()


def test_no_certificate_is_issued_with_the_servers_names(authority: Authority, tmp_path: Path) -> None:
    asked = ("FAILBACK.example.net", "192.0.2.10", "localhost", "ps.example.net", "192.0.2.3")
    certificate, _key = component(authority, Role.PROCESS_SERVER, tmp_path / "ps", asked)
    assert _names(certificate) == ["ps.example.net", "192.0.2.3"]
    with pytest.raises(ConfigurationError, match="wildcard"):
        component(authority, Role.MASTER_TARGET, tmp_path / "mt", ("*.example.net",))


def test_an_agents_certificate_serves_nobody(authority: Authority, tmp_path: Path) -> None:
    certificate, _key = component(authority, Role.MOBILITY, tmp_path / "agent", ("192.0.2.77",))
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    usage = loaded.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH] and _names(certificate) == []


@pytest.mark.parametrize(
    ("status", "content"), [(200, b"<html>"), (200, b"\xff\xfe"), (502, b"bad gateway"), (204, b"")]
)
def test_an_answer_that_is_not_ours_is_an_absent_server(
    authority: Authority, tmp_path: Path, status: int, content: bytes
) -> None:
    pair = authority.issue_server(tmp_path / "server", "the-server", ("127.0.0.1",))
    with listening(*pair, status, content) as answers:
        client = HttpsClient(answers.url, ca_file=authority.ca_path)
        with pytest.raises(FailbackError) as caught:
            client.post("/x", {}, timeout_seconds=10)
        client.close()
    assert isinstance(caught.value, PeerError), repr(caught.value)


def test_an_expired_certificate_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LongAgo(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(days=authorities.CERTIFICATE_DAYS + 2)

    with RunningConfigurationServer(tmp_path) as server:
        issuer = Authority.open(server.state / "ca")
        with monkeypatch.context() as patched:
            patched.setattr(authorities, "datetime", LongAgo)
            pair = component(issuer, Role.PROCESS_SERVER, tmp_path / "old", ())
        client = HttpsClient(server.url, ca_file=server.ca_file, certificate=pair)
        with pytest.raises(AuthenticationError, match="has expired") as caught:
            client.post("/components/v1/heartbeat", json.loads("{}"), timeout_seconds=10)
        assert "enrol" in caught.value.remedy
        client.close()
