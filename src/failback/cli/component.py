"""``failback component list | token | revoke | readmit``: process servers, master targets and agents, and who may be one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from failback.cli.output import AsJson, Yes, confirm, duration, print_json, print_table, server, size, tell
from failback.model.components import Role

app = typer.Typer(no_args_is_help=True, help="Registered process servers, master targets and agents.")


Name = Annotated[str, typer.Argument(metavar="NAME", help="Host name or id (failback component list).")]
OfRole = Annotated[Role | None, typer.Option("--role", help="When several components have that host name.")]


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
    notes = ["revoked"] if component["failback"].get("revoked") else []
    for volume in component.get("retentionVolumes", []):
        notes.append(f"retention {volume['volumeName']} ({size(volume['freeSpaceInBytes'])} free)")
    for store in component.get("dataStores", []):
        notes.append(f"datastore {store['symbolicName']} ({store['freeSpace']} GiB free)")
    for refused in component["failback"].get("refusedVolumes", []):
        notes.append(f"{refused['name']} not usable: {refused['reason']}")
    if component.get("item"):
        notes.append(f"item {component['item']}")
    return "; ".join(notes) or "-"


@app.command()
def token(
    role: Annotated[Role | None, typer.Option(help="The token enrols a component of this role only.")] = None,
    hours: Annotated[float, typer.Option(help="How long it may be used.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Make a one-time token that enrols one component; for its token_file. It is shown once."""
    with server() as api:
        made = api.component_call("/tokens", {"role": role.value if role else None, "life_seconds": hours * 3600})
    print_json(made) if as_json else typer.echo(made["token"])


@app.command()
def revoke(name: Name, role: OfRole = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Shut a component out: its certificates count for nothing any more, its links are cut."""
    statement = [
        f"{name} is shut out: every certificate that it has is revoked, on the configuration server and on all links.",
        "Streams through it stop. What they had not carried stays with the machines and is sent when there is a way again.",
    ]
    confirm(statement, "Revoke the component?", yes)
    _admission("/revoke", name, role, as_json, f"{name} is revoked")


@app.command()
def readmit(name: Name, role: OfRole = None, as_json: AsJson = False) -> None:
    """Let a revoked component enrol again, under its old id; its old certificates stay revoked."""
    _admission("/readmit", name, role, as_json, f"{name} may enrol again (failback component token)")


def _admission(path: str, name: str, role: Role | None, as_json: bool, said: str) -> None:
    with server() as api:
        answer = api.component_call(path, {"component": name, "role": role.value if role else None})
    print_json(answer) if as_json else tell(said)
