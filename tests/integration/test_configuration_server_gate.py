"""Who has not signed in learns nothing and costs nothing; every refusal has the same form (a real server over TLS)."""

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_client import ITEM, VAULT
from running_configuration_server import RunningConfigurationServer

from failback.errors import AuthenticationError, FailbackError
from failback.model.components import Enrolment, Heartbeat, MobilityStatus, Role
from failback.runtime import records
from failback.transport import identity
from failback.transport.https import HttpsClient


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConfigurationServer]:
    with RunningConfigurationServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def _ask(
    server: RunningConfigurationServer, method: str, path: str, body: bytes | None = None, *, signed_in: bool = True,
    **headers: str,
) -> tuple[int, Any]:  # fmt: skip
    context = ssl.create_default_context(cafile=str(server.ca_file))
    connection = http.client.HTTPSConnection(
        "127.0.0.1", int(server.url.rsplit(":", 1)[1]), context=context, timeout=20
    )
    try:
        sent = {"Authorization": f"Bearer {server.token}"} if signed_in else {}
        connection.request(method, path, body, {"Content-Type": "application/json", **sent, **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path", [ITEM, f"{VAULT}/nothing", "/", "/docs", "/redoc", "/openapi.json", "/components/v1/x"]
)
def test_every_path_asks_for_a_sign_in(server: RunningConfigurationServer, path: str) -> None:
    status, answer = _ask(server, "GET", path, signed_in=False)
    assert (status, answer["error"]["code"]) == (401, "AuthenticationFailed")


def test_a_body_is_not_looked_at_before_the_sign_in(server: RunningConfigurationServer) -> None:
    status, answer = _ask(server, "POST", f"{ITEM}/reProtect", b"{not json", signed_in=False)
    assert (status, answer["error"]["code"]) == (401, "AuthenticationFailed")
    # The body is announced and never sent: whoever waits for it does not answer within the time.
    status, _ = _ask(server, "POST", f"{ITEM}/reProtect", b"", signed_in=False, **{"Content-Length": "99999999999"})
    assert status == 401


def test_a_body_is_bounded(server: RunningConfigurationServer) -> None:
    large = json.dumps({"properties": {"filler": "x" * (2 << 20)}}).encode()
    status, answer = _ask(server, "POST", f"{ITEM}/reProtect", large)
    assert (status, answer["error"]["code"]) == (413, "RequestTooLarge")
    status, answer = _ask(server, "POST", "/components/v1/enrol", large, signed_in=False)
    assert (status, answer["error"]["code"]) == (413, "RequestTooLarge")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", f"{VAULT}/nothing", None, 404, "ResourceNotFound"),
        ("GET", "/nothing", None, 404, "ResourceNotFound"),
        ("DELETE", f"{VAULT}/replicationJobs", None, 405, "MethodNotAllowed"),
        ("POST", "/healthz", b"{}", 405, "MethodNotAllowed"),
        ("GET", "/components/v1/heartbeat", None, 405, "MethodNotAllowed"),
        ("GET", f"{VAULT}/replicationEvents/not-a-number", None, 400, "InvalidRequest"),
        ("POST", f"{ITEM}/reProtect", b"{not json", 400, "InvalidRequest"),
        ("POST", "/components/v1/tokens", b'{"life_seconds": NaN}', 400, "InvalidConfiguration"),
        ("POST", "/components/v1/tokens", b'{"life_seconds": 1e300}', 400, "InvalidConfiguration"),
        ("POST", "/components/v1/tokens", b'{"role": "configuration-server"}', 400, "InvalidConfiguration"),
        ("GET", ITEM.replace("/s/", "/%E2%82%AC%0d%0a/"), None, 404, "ResourceNotFound"),
    ],
)
def test_refusals_have_one_form(  # noqa: PLR0917
    server: RunningConfigurationServer, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    found, answer = _ask(server, method, path, body)
    assert (found, answer["error"]["code"]) == (status, code), answer
    assert answer["error"]["message"]


def test_the_health_check_needs_no_sign_in(server: RunningConfigurationServer) -> None:
    assert _ask(server, "GET", "/healthz", signed_in=False)[0] == 200


def _agent(server: RunningConfigurationServer, directory: Path) -> tuple[HttpsClient, dict[str, Any]]:
    """An enrolled agent's client, and a heartbeat that is taken."""
    key_pem, csr_pem = identity.key_and_request(Role.MOBILITY)
    passphrase = (server.state / "enrolment-passphrase").read_text().strip()
    anonymous = HttpsClient(server.url, ca_file=server.ca_file)
    enrolment = Enrolment(Role.MOBILITY, "guest", csr_pem, "hw-guest", "1", passphrase=passphrase)
    enrolled = anonymous.post("/components/v1/enrol", records.encode(enrolment), timeout_seconds=20)
    anonymous.close()
    (directory / "key.pem").write_bytes(key_pem)
    (directory / "certificate.pem").write_text(enrolled["certificate_pem"])
    pair = (directory / "certificate.pem", directory / "key.pem")
    heartbeat = Heartbeat(
        role=Role.MOBILITY, hostname="guest", version="1", hardware_id="hw-guest", boot_id="b", os_family="Linux",
        os_version="", kernel="", wall_ns=1, monotonic=1.0, addresses=(), status=records.encode(MobilityStatus()),
    )  # fmt: skip
    return HttpsClient(server.url, ca_file=server.ca_file, certificate=pair), records.encode(heartbeat)


def test_an_agent_can_neither_fill_the_server_nor_break_its_answers(
    server: RunningConfigurationServer, tmp_path: Path
) -> None:
    """Its machine may be in anybody's hands."""
    client, heartbeat = _agent(server, tmp_path)
    path = "/components/v1/heartbeat"
    assert client.post(path, heartbeat, timeout_seconds=20)["known_as"] == "expected"
    for harm, code in (
        ({"status": {**heartbeat["status"], "filler": "x" * (2 << 20)}}, "RequestTooLarge"),
        ({"monotonic": float("nan")}, "InvalidConfiguration"),
        ({"monotonic": float("inf")}, "InvalidConfiguration"),
    ):
        with pytest.raises(FailbackError) as caught:
            client.post(path, {**heartbeat, **harm}, timeout_seconds=20)
        assert caught.value.code == code
    context = ssl.create_default_context(cafile=str(server.ca_file))
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    raw = json.dumps(heartbeat).replace('"monotonic": 1.0', '"monotonic": 1e999').encode()
    connection = http.client.HTTPSConnection(
        "127.0.0.1", int(server.url.rsplit(":", 1)[1]), context=context, timeout=20
    )
    connection.request("POST", path, raw)
    assert b"1e999" in raw and connection.getresponse().status == 400
    connection.close()
    with pytest.raises(AuthenticationError, match="is for a mobility"):
        client.post(path, {**heartbeat, "role": "process-server"}, timeout_seconds=20)
    client.close()
    assert _ask(server, "GET", f"{VAULT}/replicationFabrics")[0] == 200
    connection = http.client.HTTPSConnection(
        "127.0.0.1", int(server.url.rsplit(":", 1)[1]), context=context, timeout=20
    )
    connection.request("GET", f"{VAULT}/replicationFabrics")
    assert connection.getresponse().status == 401, "a component's certificate opens no door of the API"
    connection.close()
