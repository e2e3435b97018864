"""The real process on a real TLS port: first start, enrolment, certificates, heartbeats by the real control loop."""

import asyncio
import json
import socket
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from running_configuration_server import RunningConfigurationServer
from sqlalchemy import select

from failback.configuration_server.database import Database, components
from failback.configuration_server.database.access import ApiTokenRow, AuditRow
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.policies import PolicyRow
from failback.configuration_server.enrolment.authority import Authority
from failback.configuration_server.enrolment.desk import EnrolmentDesk
from failback.configuration_server.registry import News, Orders
from failback.errors import AuthenticationError, FailbackError, PeerError
from failback.model import orders as kinds
from failback.model.components import Enrolment, Order, ProcessServerAssignment, ProcessServerStatus, Role
from failback.runtime import host, records
from failback.transport import identity
from failback.transport.control import ControlLoop, ReportProgress
from failback.transport.https import HttpsClient


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConfigurationServer]:
    lines = 'addresses = ["failback.example.net", "192.0.2.9"]\ncrash_consistent_seconds = 7\nmonitor_seconds = 0.2\n'
    with RunningConfigurationServer(tmp_path_factory.mktemp("server"), lines) as running:
        yield running


@pytest.fixture
def database(server: RunningConfigurationServer) -> Iterator[Database]:
    opened = Database.in_directory(server.state)
    yield opened
    opened.close()


def _on_hardware(monkeypatch: pytest.MonkeyPatch, hardware_id: str) -> None:
    monkeypatch.setenv("FAILBACK_HARDWARE_ID", hardware_id)
    assert host.hardware_id() == hardware_id


def _request(**changes: Any) -> dict[str, Any]:
    _key, csr_pem = identity.key_and_request(Role.PROCESS_SERVER)
    request = Enrolment(
        Role.PROCESS_SERVER, "ps", csr_pem, "hw-request", "1", addresses=("192.0.2.3", "ps.example.net")
    )
    encoded: dict[str, Any] = records.encode(replace(request, **changes))
    return encoded


def _enrol(server: RunningConfigurationServer, body: dict[str, Any]) -> Any:
    client = HttpsClient(server.url, ca_file=server.ca_file)
    try:
        return client.post("/components/v1/enrol", body, timeout_seconds=20)
    finally:
        client.close()


def test_the_first_start_makes_what_an_installation_needs(
    server: RunningConfigurationServer, database: Database
) -> None:
    for name in ("enrolment-passphrase", "administrator.token", "ca/key.pem", "server/key.pem"):
        assert stat.S_IMODE((server.state / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700
    passphrase = (server.state / "enrolment-passphrase").read_text().strip()
    with database.read() as session:
        policy = session.get(PolicyRow, "failback")
        tokens = {token.name: token.token_sha256 for token in session.scalars(select(ApiTokenRow))}
        [row] = components.all_components(session, Role.CONFIGURATION_SERVER)
    assert policy is not None
    assert (policy.recovery_point_threshold_minutes, policy.recovery_point_history_minutes) == (15, 1440)
    assert (policy.app_consistent_frequency_minutes, policy.crash_consistent_seconds) == (60, 7)
    assert set(tokens) == {"administrator", "metrics"}
    assert not {"", server.token} & set(tokens.values()) and row.addresses == ["failback.example.net", "192.0.2.9"]
    assert passphrase not in server.log and server.token not in server.log


def test_the_server_certificate_names_its_addresses(server: RunningConfigurationServer) -> None:
    pem = (server.state / "server" / "certificate.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(server.ca_file.read_bytes()))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"failback.example.net", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"192.0.2.9", "127.0.0.1"} <= {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}


def test_enrolling_twice_gives_the_same_component_and_a_new_certificate(server: RunningConfigurationServer) -> None:
    passphrase = (server.state / "enrolment-passphrase").read_text().strip()
    one = _enrol(server, _request(passphrase=passphrase))
    two = _enrol(server, _request(passphrase=passphrase))
    assert one["component_id"] == two["component_id"] and one["certificate_pem"] != two["certificate_pem"]
    other = _enrol(server, _request(passphrase=passphrase, hardware_id="hw-another"))
    assert other["component_id"] != one["component_id"]
    certificate = x509.load_pem_x509_certificate(two["certificate_pem"].encode())
    subject = {attribute.oid: attribute.value for attribute in certificate.subject}
    assert subject[NameOID.COMMON_NAME] == two["component_id"]
    assert subject[NameOID.ORGANIZATIONAL_UNIT_NAME] == "process-server"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["ps.example.net"]


async def test_a_token_enrols_once(server: RunningConfigurationServer, database: Database) -> None:
    desk = EnrolmentDesk(database, News(), Authority.open(server.state / "ca"))
    token = await desk.make_token(Role.PROCESS_SERVER)
    first = await asyncio.to_thread(_enrol, server, _request(token=token, hardware_id="hw-token"))
    again = await asyncio.to_thread(_enrol, server, _request(token=token, hardware_id="hw-token"))
    assert first["component_id"] == again["component_id"], "a lost answer may be asked for again"
    with pytest.raises(AuthenticationError, match="used already"):
        await asyncio.to_thread(_enrol, server, _request(token=token, hardware_id="hw-thief"))
    expired = await desk.make_token(life_seconds=-1.0)
    with pytest.raises(AuthenticationError, match="expired"):
        await asyncio.to_thread(_enrol, server, _request(token=expired))


def test_only_signed_in_callers_make_tokens(server: RunningConfigurationServer) -> None:
    def ask(bearer: str) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            server.url + "/components/v1/tokens",
            data=json.dumps({"role": "process-server"}).encode(),
            headers={"Authorization": f"Bearer {bearer}"},
        )
        context = ssl.create_default_context(cafile=str(server.ca_file))
        try:
            with urllib.request.urlopen(request, context=context, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    assert ask("somebody")[0] == 401
    status, made = ask(server.token)
    assert status == 200
    assert _enrol(server, _request(token=made["token"], hardware_id="hw-by-token"))["component_id"]
    with pytest.raises(AuthenticationError, match="for a process-server"):
        _enrol(server, _request(token=made["token"], role=Role.MASTER_TARGET))


@pytest.mark.parametrize("body", [{}, {"role": "mobility"}, "not a table"])
def test_malformed_enrolments_are_refused(server: RunningConfigurationServer, body: Any) -> None:
    with pytest.raises(FailbackError) as caught:
        _enrol(server, body)
    assert caught.value.code == "InvalidConfiguration"


def test_a_heartbeat_needs_a_certificate(server: RunningConfigurationServer) -> None:
    client = HttpsClient(server.url, ca_file=server.ca_file)
    with pytest.raises(AuthenticationError, match="client certificate"):
        client.post("/components/v1/heartbeat", {}, timeout_seconds=10)
    client.close()


def test_a_certificate_of_another_authority_gets_nowhere(server: RunningConfigurationServer, tmp_path: Path) -> None:
    stranger = Authority.open(tmp_path / "ca")
    certificate, key = stranger.issue_server(tmp_path / "server", "somebody", ())
    client = HttpsClient(server.url, ca_file=server.ca_file, certificate=(certificate, key))
    with pytest.raises((PeerError, AuthenticationError)):
        client.post("/components/v1/heartbeat", {}, timeout_seconds=10)
    client.close()


class Component:
    """A process server's side of the control loop, as the roles use it."""

    def __init__(self, who: identity.Identity, server: RunningConfigurationServer) -> None:
        self.assignments: list[ProcessServerAssignment] = []
        self.orders: list[Order] = []
        self.stop = asyncio.Event()
        self.loop = ControlLoop(
            who, server.control(0.5), status=lambda: ProcessServerStatus(listen_port=1234),
            assignment_kind=ProcessServerAssignment, apply_assignment=self.apply, orders={kinds.PROBE: self.probe},
        )  # fmt: skip

    async def apply(self, assignment: ProcessServerAssignment) -> None:
        self.assignments.append(assignment)

    async def probe(self, order: Order, progress: ReportProgress) -> dict[str, Any]:
        self.orders.append(order)
        progress(3, 4)
        return {"failures": {order.arguments["targets"][0]: "refused"}}


async def _until(condition: Any, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_component_enrols_is_assigned_and_executes_an_order(
    server: RunningConfigurationServer, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_hardware(monkeypatch, "hw-control")
    who = await identity.enrol_if_needed(tmp_path, server.control(), Role.PROCESS_SERVER)
    assert await identity.enrol_if_needed(tmp_path, server.control(), Role.PROCESS_SERVER) == who
    component = Component(who, server)
    running = asyncio.create_task(component.loop.run(component.stop))
    await _until(lambda: component.assignments == [ProcessServerAssignment()])
    orders = Orders(database, News())
    result = await orders.carry_out(
        who.component_id, kinds.PROBE, 0, kinds.Probe(("192.0.2.1:9",)), "probe-1", timeout_seconds=15.0
    )
    assert result == {"failures": {"192.0.2.1:9": "refused"}} and len(component.orders) == 1

    with database.read() as session:
        row = components.get(session, who.component_id)
    assert row.status["listen_port"] == 1234 and row.hardware_id == "hw-control"
    assert abs(row.clock_skew_seconds) < 0.5 and row.last_heartbeat_wall_ns > 0

    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    again = await orders.carry_out(
        who.component_id, kinds.PROBE, 0, kinds.Probe(("192.0.2.2:9",)), "probe-2", timeout_seconds=20.0
    )
    assert again == {"failures": {"192.0.2.2:9": "refused"}}, "after kill -9 and restart of the server"
    assert len(component.assignments) == 1, "the assignment's generation survived: it was not sent again"
    component.stop.set()
    await running


async def test_a_removed_component_is_refused(
    server: RunningConfigurationServer, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_hardware(monkeypatch, "hw-removed")
    who = await identity.enrol_if_needed(tmp_path, server.control(), Role.PROCESS_SERVER)
    with database.write() as session:
        row = session.get(ComponentRow, who.component_id)
        assert row is not None
        row.revoked = True
    passphrase = (server.state / "enrolment-passphrase").read_text().strip()
    with pytest.raises(AuthenticationError, match="removed"):
        await asyncio.to_thread(_enrol, server, _request(passphrase=passphrase, hardware_id="hw-removed"))


def test_a_stopped_and_restarted_server_keeps_its_secrets_and_certificate(server: RunningConfigurationServer) -> None:
    kept = ("enrolment-passphrase", "administrator.token", "ca/ca.pem", "server/certificate.pem")
    before = [(server.state / name).read_bytes() for name in kept]
    server.stop()
    server.start()
    assert [(server.state / name).read_bytes() for name in kept] == before


def test_wrong_passphrases_are_refused_audited_and_slowed_down(
    server: RunningConfigurationServer, database: Database
) -> None:
    """Last in this file: it uses up this address's failures."""
    codes: list[str] = []
    for _ in range(7):
        with pytest.raises(FailbackError) as caught:
            _enrol(server, _request(passphrase="wrong", hardware_id="hw-guesser"))
        codes.append(caught.value.code)
    assert codes[0] == "AuthenticationFailed" and codes[-1] == "TooManyAttempts"
    with database.read() as session:
        refused = session.scalars(select(AuditRow).where(AuditRow.actor == "hw-guesser")).all()
    assert refused and all(row.outcome == "refused" and row.address == "127.0.0.1" for row in refused)
    assert all("wrong" not in json.dumps(row.fields) for row in refused)


def test_plain_http_is_not_answered(server: RunningConfigurationServer) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        try:
            answer = plain.recv(4096)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(b"HTTP/")
