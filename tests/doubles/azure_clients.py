"""Azure's own clients against a running server, signed in as a client of a role with an id and a secret, over TLS."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from api_client import VAULT
from azure.identity import ClientSecretCredential
from azure.identity.aio import ClientSecretCredential as AsyncClientSecretCredential
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient
from azure.mgmt.recoveryservicessiterecovery.aio import (
    SiteRecoveryManagementClient as AsyncSiteRecoveryManagementClient,
)

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
GROUP = ("any-group", "any-vault")
CONTAINER = (*GROUP, "configuration-server", "machines")
ITEM = (*CONTAINER, "ledger")
SCOPES = ["https://failback/.default"]


class Server(Protocol):
    """RunningConfigurationServer and SiteProcess are both."""

    @property
    def ca_file(self) -> Any: ...
    @property
    def token(self) -> str: ...

    url: Any


def send(server: Server, method: str, path: str, body: Any = None, token: str = "") -> Any:
    """A call with the administrator's token (or another); the decoded answer."""
    request = urllib.request.Request(
        server.url + path, None if body is None else json.dumps(body).encode(), method=method,
        headers={"Authorization": f"Bearer {token or server.token}", "Content-Type": "application/json"},
    )  # fmt: skip
    context = ssl.create_default_context(cafile=str(server.ca_file))
    with urllib.request.urlopen(request, context=context, timeout=30) as answer:
        content = answer.read()
    return json.loads(content) if content else None


def register(server: Server, name: str, role: str) -> tuple[str, str]:
    """A new client's id and secret."""
    made = send(server, "PUT", f"{VAULT}/failback/clients/{name}", {"properties": {"role": role}})
    return made["properties"]["clientId"], made["properties"]["secret"]


def credential(server: Server, client_id: str, secret: str) -> ClientSecretCredential:
    return ClientSecretCredential(
        "failback", client_id, secret, authority=server.url, disable_instance_discovery=True,
        connection_verify=str(server.ca_file), retry_total=0,
    )  # fmt: skip


def connect(server: Server, name: str, role: str = "administrator", **options: Any) -> SiteRecoveryManagementClient:
    """A signed-in client of its own."""
    return SiteRecoveryManagementClient(
        credential(server, *register(server, name, role)), SUBSCRIPTION, base_url=server.url,
        connection_verify=str(server.ca_file), credential_scopes=SCOPES, **{"polling_interval": 0.2, **options},
    )  # fmt: skip


@asynccontextmanager
async def connect_async(
    server: Server, name: str, role: str = "administrator"
) -> AsyncIterator[AsyncSiteRecoveryManagementClient]:
    """The asyncio client, and its credential's own connections."""
    ca_file = str(server.ca_file)
    credentials = AsyncClientSecretCredential(
        "failback", *register(server, name, role), authority=server.url, disable_instance_discovery=True,
        connection_verify=ca_file,
    )  # fmt: skip
    client = AsyncSiteRecoveryManagementClient(
        credentials,
        SUBSCRIPTION,
        base_url=server.url,
        connection_verify=ca_file,
        credential_scopes=SCOPES,
        polling_interval=0.2,
    )
    async with credentials, client:
        yield client
