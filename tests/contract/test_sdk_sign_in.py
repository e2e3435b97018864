"""``azure.identity`` signs in at our server unchanged, and each role may do what its table says and nothing more."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest
from api_client import CONTAINER as CONTAINER_PATH
from api_client import ITEM as ITEM_PATH
from api_client import VAULT
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure_clients import GROUP, ITEM, connect, credential, register, send
from running_configuration_server import RunningConfigurationServer

from failback.configuration_server.api.access_rules import Access, needed


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningConfigurationServer]:
    lines = "token_seconds = 900.0\n"
    if request.param == "postgresql":
        lines += f'database_url = "{request.getfixturevalue("postgres").fresh()}"\n'
    with RunningConfigurationServer(tmp_path_factory.mktemp("server"), lines) as running:
        yield running


def refused(server: RunningConfigurationServer, method: str, path: str, body: object = None, token: str = "") -> int:
    """The status with which a call is refused."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        send(server, method, path, body, token)
    return caught.value.code


def test_a_secret_becomes_a_token_that_opens_the_api(server: RunningConfigurationServer) -> None:
    client = connect(server, "script", "reader")
    assert [policy.name for policy in client.replication_policies.list(*GROUP)] == ["failback"]
    token = credential(server, *register(server, "lasts", "reader")).get_token("https://failback/.default")
    assert token.token
    listed = send(server, "GET", f"{VAULT}/failback/clients")["value"]
    script = next(one for one in listed if one["name"] == "script")
    assert script["properties"]["lastSignIn"] and "secret" not in script["properties"]


def test_a_wrong_secret_a_deleted_client_and_an_old_token_are_shut_out(server: RunningConfigurationServer) -> None:
    client_id, secret = register(server, "leaver", "operator")
    with pytest.raises(ClientAuthenticationError, match="wrong"):
        credential(server, client_id, "not-the-secret").get_token("https://failback/.default")
    held = credential(server, client_id, secret).get_token("https://failback/.default").token
    assert send(server, "GET", f"{VAULT}/replicationJobs", token=held)["value"] == []
    send(server, "DELETE", f"{VAULT}/failback/clients/leaver")
    assert refused(server, "GET", f"{VAULT}/replicationJobs", token=held) == 401
    with pytest.raises(ClientAuthenticationError, match="wrong"):
        credential(server, client_id, secret).get_token("https://failback/.default")


def test_guessing_is_slowed_down(tmp_path_factory: pytest.TempPathFactory) -> None:
    with RunningConfigurationServer(tmp_path_factory.mktemp("guessed")) as guessed:
        client_id, _ = register(guessed, "victim", "reader")
        path = "/failback/oauth2/v2.0/token"
        said = []
        for number in range(7):
            form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": f"guess {number}"}
            said.append(token_status(guessed, path, urllib.parse.urlencode(form).encode()))
        assert said == [401] * 5 + [429] * 2


def token_status(server: RunningConfigurationServer, path: str, body: bytes) -> int:
    import ssl

    context = ssl.create_default_context(cafile=str(server.ca_file))
    request = urllib.request.Request(server.url + path, body)
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        assert set(json.loads(error.read())) == {"error", "error_description"}
        return error.code


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"grant_type=password&username=x", b"grant_type=client_credentials"]
)
def test_what_is_no_request_for_a_token_is_refused(server: RunningConfigurationServer, body: bytes) -> None:
    assert token_status(server, "/any.tenant/oauth2/token", body) in (400, 401)


def test_readers_change_nothing_operators_nothing_lasting(server: RunningConfigurationServer) -> None:
    reader, operator = connect(server, "reads", "reader"), connect(server, "operates", "operator")
    for client in (reader, operator):
        with pytest.raises(HttpResponseError) as caught:
            client.replication_protected_items.begin_purge(*ITEM).result()
        assert (caught.value.status_code, caught.value.error and caught.value.error.code) == (
            403,
            "AuthorizationFailed",
        )
        assert "administrator" in caught.value.message
    with pytest.raises(HttpResponseError) as caught:
        reader.replication_protected_items.begin_failover_commit(*ITEM).result()
    assert caught.value.status_code == 403
    with pytest.raises(ResourceNotFoundError):  # the role lets it through: there is no such item
        operator.replication_protected_items.begin_failover_commit(*ITEM).result()
    for name in ("reads", "operates"):
        with pytest.raises(urllib.error.HTTPError):
            send(server, "GET", f"{VAULT}/failback/clients", token="x")
        assert name in {row["name"] for row in send(server, "GET", f"{VAULT}/failback/clients")["value"]}


def test_components_are_admitted_by_administrators_only(server: RunningConfigurationServer) -> None:
    token = (
        credential(server, *register(server, "operates-too", "operator")).get_token("https://failback/.default").token
    )
    for path in ("/components/v1/tokens", "/components/v1/revoke", "/components/v1/readmit"):
        assert refused(server, "POST", path, {}, token) == 403
    assert refused(server, "PUT", f"{VAULT}/failback/clients/mine", {"properties": {}}, token) == 403
    assert refused(server, "GET", f"{VAULT}/failback/clients", None, token) == 403


def test_every_change_asked_for_is_in_the_audit(server: RunningConfigurationServer) -> None:
    register(server, "audited", "reader")
    assert refused(server, "PUT", f"{VAULT}/failback/clients/audited", {"properties": {}}) == 409
    token = credential(server, *register(server, "watches", "reader")).get_token("https://failback/.default").token
    assert refused(server, "POST", f"{ITEM_PATH}/failoverCommit", None, token) == 403
    rows = [row["properties"] for row in send(server, "GET", f"{VAULT}/failback/audit", token=token)["value"]]
    told = {(row["actor"], row["action"], row["target"], row["outcome"]) for row in rows}
    assert ("administrator", "create client", "audited", "accepted") in told
    assert ("administrator", "PUT failback/clients/audited", "", "refused") in told
    assert ("watches", "sign in") in {(actor, action) for actor, action, _, _ in told}
    refusals = [row for row in rows if row["actor"] == "watches" and row["outcome"] == "refused"]
    assert refusals and refusals[0]["action"].endswith("replicationProtectedItems/ledger/failoverCommit")
    assert "AuthorizationFailed" in refusals[0]["detail"] and refusals[0]["address"] == "127.0.0.1"
    only = send(server, "GET", f"{VAULT}/failback/audit?$filter=outcome%20eq%20'refused'")["value"]
    assert only and {row["properties"]["outcome"] for row in only} == {"refused"}


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", f"{VAULT}/replicationJobs", Access.READER),
        ("GET", f"{VAULT}/failback/audit", Access.READER),
        ("GET", f"{VAULT}/failback/clients", Access.ADMINISTRATOR),
        ("POST", f"{ITEM_PATH}/reProtect", Access.OPERATOR),
        ("POST", f"{VAULT}/replicationJobs/j/restart", Access.OPERATOR),
        ("PUT", f"{ITEM_PATH}/views/v", Access.OPERATOR),
        ("PUT", ITEM_PATH, Access.ADMINISTRATOR),
        ("POST", f"{ITEM_PATH}/remove", Access.ADMINISTRATOR),
        ("PATCH", f"{VAULT}/replicationPolicies/failback", Access.ADMINISTRATOR),
        ("POST", f"{CONTAINER_PATH}/discoverProtectableItem", Access.ADMINISTRATOR),
        ("POST", "/nothing/that/is/known", Access.ADMINISTRATOR),
    ],
)
def test_roles(method: str, path: str, role: Access) -> None:
    assert needed(method, path) is role
