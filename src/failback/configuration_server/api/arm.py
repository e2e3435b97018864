"""Azure Resource Manager's conventions: paths, ids, dates, lists, and the page of a vault that a request speaks of.

Ids echo whatever subscription, resource group and vault the caller used. Dates carry seven digits of fraction; a time that
has not come is ``0001-01-01T00:00:00`` as the real service prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request

from failback.configuration_server.api.forwarded import base_url

VAULT = (
    "/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/Microsoft.RecoveryServices/vaults/{vault}"
)
TYPE = "Microsoft.RecoveryServices/vaults"
DEFAULT_API_VERSION = "2025-08-01"

FABRIC = "configuration-server"
"""The fabric that stands for this server: process servers, master targets and the items' container."""
CONTAINER = "machines"
CONTAINER_PATH = "/replicationFabrics/{fabric}/replicationProtectionContainers/{container}"

NEVER = "0001-01-01T00:00:00"
NEVER_RUN = "1753-01-01T01:01:01.0000000Z"
"""Start of the scenario "None", as the real service prints it."""


@dataclass(frozen=True, slots=True)
class Vault:
    """Whose page a request asked for; makes ids and absolute URLs."""

    id: str
    base_url: str
    api_version: str

    def resource(self, *segments: str) -> str:
        """Id of a resource below the vault: ``resource("replicationJobs", job_id)``."""
        return "/".join((self.id, *segments))

    def container(self) -> str:
        return self.resource("replicationFabrics", FABRIC, "replicationProtectionContainers", CONTAINER)

    def item(self, name: str) -> str:
        return f"{self.container()}/replicationProtectedItems/{name}"

    def job(self, job_id: str) -> str:
        return self.resource("replicationJobs", job_id)

    def url(self, resource_id: str) -> str:
        """Absolute URL of an id, for Location and nextLink: names and version are the caller's words, so quoted."""
        return f"{self.base_url}{quote(resource_id)}?api-version={quote(self.api_version)}"


def _vault(request: Request, subscription: str, resource_group: str, vault: str) -> Vault:
    path = VAULT.format(subscription=subscription, resource_group=resource_group, vault=vault)
    version = request.query_params.get("api-version", DEFAULT_API_VERSION)
    return Vault(path, base_url(request), version)


VaultOf = Annotated[Vault, Depends(_vault)]


def timestamp(wall_ns: int) -> str:
    """``2026-11-23T03:15:00.1234567Z``; :data:`NEVER` for 0."""
    if not wall_ns:
        return NEVER
    moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{wall_ns % 1_000_000_000 // 100:07d}Z"


def envelope(resource_id: str, type_name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """A resource: id, name (the id's last segment), type and properties."""
    name = resource_id.rsplit("/", 1)[-1]
    return {"id": resource_id, "name": name, "type": f"{TYPE}/{type_name}", "properties": properties}


def listed(values: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {"value": list(values), "nextLink": None}


def last_segment(reference: str) -> str:
    """The name in a reference that may be a bare name, a GUID or a whole ARM id."""
    return reference.rstrip("/").rsplit("/", 1)[-1]


def filters(text: str | None) -> Callable[[str], str]:
    """An OData ``$filter`` of the form ``name eq 'value' and ...`` as a look-up; names ignore case, absent is empty.

    Raises ConfigurationError for a filter of another form: guessing would silently list the wrong rows.
    """
    from failback.errors import ConfigurationError

    wanted: dict[str, str] = {}
    for clause in (text or "").split(" and "):
        if not clause.strip():
            continue
        name, operator, value = [*clause.strip().split(None, 2), "", ""][:3]
        if operator.lower() not in ("eq", "ge", "le") or not value or name.lower() in wanted:
            raise ConfigurationError(
                f"the filter {clause.strip()!r} is not understood",
                code="InvalidFilter",
                remedy="use NAME eq 'VALUE', joined by and, each name once",
            )
        wanted[name.lower()] = value.strip("'\"")
    return lambda name: wanted.get(name.lower(), "")
