"""``…/providers/Microsoft.RecoveryServices/operations``: what can be done here, with the weakest role that may do it.

Made from the routes themselves, so it cannot tell of what is not served; the names are formed as Azure forms them
(``Microsoft.RecoveryServices/vaults/replicationJobs/cancel/action``).
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from failback.configuration_server.api.access_rules import needed
from failback.configuration_server.api.arm import TYPE, VAULT
from failback.configuration_server.api.faults import FaultRoute

PATH = "/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/Microsoft.RecoveryServices/operations"
_VERBS = {"get": "read", "put": "write", "patch": "write", "delete": "delete"}


def router() -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["operations"])

    @routes.get(PATH)
    async def list_operations(request: Request) -> dict[str, Any]:
        schema: dict[str, Any] = request.app.openapi()
        return {"value": operations(schema["paths"]), "nextLink": None}

    return routes


def operations(paths: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """From the paths of the OpenAPI document, each operation once, by name; those that are only refused are left out."""
    found: dict[str, dict[str, Any]] = {}
    for path, methods in paths.items():
        if not path.startswith(VAULT):
            continue
        for method, described in methods.items():
            if described["tags"] != ["not available"]:
                made = _operation(method, path)
                found.setdefault(made["name"], made)
    return [found[name] for name in sorted(found)]


def _operation(method: str, path: str) -> dict[str, Any]:
    words = [part for part in path.removeprefix(VAULT).strip("/").split("/") if not part.startswith("{")]
    verb = _VERBS.get(method, "action")
    display = {
        "provider": "Failback", "resource": "/".join(words if verb != "action" else words[:-1]),
        "operation": verb if verb != "action" else words[-1],
        "description": f"needs the role {needed(method.upper(), path).word}",
    }  # fmt: skip
    return {"name": "/".join((TYPE, *words, verb)), "display": display, "origin": "user"}
