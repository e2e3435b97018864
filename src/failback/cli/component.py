"""``failback component list``: process servers, master targets and agents, and when each was last heard from."""

from __future__ import annotations

from typing import Any

import typer

from failback.cli.output import AsJson, duration, print_json, print_table, server, size

app = typer.Typer(no_args_is_help=True, help="Registered process servers, master targets and agents.")


@app.callback()
def _group() -> None:
    """Registered process servers, master targets and agents."""


@app.command("list")
def list_components(as_json: AsJson = False) -> None:
    """All registered components."""
    with server() as api:
        fabric = api.get("/replicationFabrics/configuration-server")["properties"]["customDetails"]
    found = [*fabric["processServers"], *fabric["masterTargetServers"], *fabric["failback"]["agents"]]
    if as_json:
        print_json(found)
        return
    rows = []
    for component in found:
        own = component["failback"]
        rows.append(
            (
                component.get("friendlyName") or component.get("name") or "",
                own["role"],
                "alive" if own["alive"] else "lost",
                duration(own["secondsSinceHeartbeat"]),
                component["agentVersion"],
                component["ipAddress"],
                _note(component),
                component["id"],
            )
        )
    print_table(("name", "role", "heartbeat", "age", "version", "address", "note", "id"), rows, "none is registered")


def _note(component: dict[str, Any]) -> str:
    notes = []
    for volume in component.get("retentionVolumes", []):
        notes.append(f"retention {volume['volumeName']} ({size(volume['freeSpaceInBytes'])} free)")
    for store in component.get("dataStores", []):
        notes.append(f"datastore {store['symbolicName']} ({store['freeSpace']} GiB free)")
    for refused in component["failback"].get("refusedVolumes", []):
        notes.append(f"{refused['name']} not usable: {refused['reason']}")
    if component.get("item"):
        notes.append(f"item {component['item']}")
    return "; ".join(notes) or "-"
