"""Absolute URLs are those under which the caller reached the server: directly, or through a proxy that is trusted."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from api_client import VAULT
from azure_clients import GROUP, connect
from running_configuration_server import RunningConfigurationServer

PROXY = {
    "X-Forwarded-Host": "dr.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/failback",
    "X-Forwarded-For": "203.0.113.9",
}  # fmt: skip


@pytest.fixture(scope="module", params=["127.0.0.1", "192.0.2.1"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningConfigurationServer]:
    """One whose proxy stands where we are, and one whose proxy stands elsewhere."""
    lines = f'trusted_proxies = ["{request.param}"]\npage_rows = 2\n'
    with RunningConfigurationServer(tmp_path_factory.mktemp("server"), lines) as running:
        running.believes = request.param == "127.0.0.1"  # type: ignore[attr-defined]
        yield running


def ask(server: RunningConfigurationServer, method: str, path: str, body: Any = None) -> Any:
    context = ssl.create_default_context(cafile=str(server.ca_file))
    request = urllib.request.Request(
        server.url + path, None if body is None else json.dumps(body).encode(), method=method,
        headers={"Authorization": f"Bearer {server.token}", "Content-Type": "application/json", **PROXY},
    )  # fmt: skip
    with urllib.request.urlopen(request, context=context, timeout=30) as answer:
        return json.loads(answer.read())


def test_urls_and_addresses(server: RunningConfigurationServer) -> None:
    base = "https://dr.example/failback" if server.believes else server.url  # type: ignore[attr-defined]
    for number in range(3):
        ask(server, "PUT", f"{VAULT}/failback/clients/through-{number}", {"properties": {"role": "reader"}})
    page = ask(server, "GET", f"{VAULT}/failback/audit?api-version=2020-01-01")
    assert page["nextLink"].startswith(f"{base}{VAULT}/failback/audit?")
    address = "203.0.113.9" if server.believes else "127.0.0.1"  # type: ignore[attr-defined]
    assert {row["properties"]["address"] for row in page["value"]} == {address}
    discovery = ask(server, "GET", "/failback/v2.0/.well-known/openid-configuration")
    assert discovery["token_endpoint"] == f"{base}/failback/oauth2/v2.0/token"


def test_the_client_itself_needs_no_proxy(server: RunningConfigurationServer) -> None:
    client = connect(server, "direct", "reader")
    assert [policy.name for policy in client.replication_policies.list(*GROUP)] == ["failback"]
