"""``failback view``: open, list and close recovery points that the master target serves by NBD.

A view is a point as a disk, without rolling anything back: replication goes on. It ends by ``close``, with its lease, or
with the replica (a failback, a restart of the master target); what was written to it is thrown away then.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from failback.cli.client import ITEMS
from failback.cli.operation import point_input
from failback.cli.output import AsJson, ItemName, moment, print_json, print_pairs, print_table, server, size, tell
from failback.errors import ConfigurationError
from failback.runtime.durable_files import replace_file
from failback.transport.identity import key_and_request

app = typer.Typer(no_args_is_help=True, help="Recovery points as disks (NBD): open, list, close.")

VIEW_CLIENT = "view-client"
ViewId = Annotated[str, typer.Argument(metavar="VIEW", help="The view's id.", show_default=False)]
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command("open")
def open_(
    name: ItemName,
    *,
    point: Annotated[
        str, typer.Option(metavar="latest|latest-app-consistent|ID|TIME", help="The recovery point to look at.")
    ] = "latest",
    writable: Annotated[
        bool, typer.Option("--writable", help="Let clients write, to a layer that is thrown away with the view.")
    ] = False,
    quota: Annotated[
        str, typer.Option(metavar="SIZE", help="Most that the layer may take, like 10G; a quarter of what is free.")
    ] = "",
    lease: Annotated[str, typer.Option(metavar="TIME", help="When it ends by itself, like 30m, 4h, 2d.")] = "4h",
    remote: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Read it from this host: put key and certificate of this view there, print nbds addresses.",
        ),
    ] = None,
    view_id: Annotated[str, typer.Option("--view", metavar="VIEW", help="An open view: give it a new lease.")] = "",
    as_json: AsJson = False,
) -> None:
    """Serve a recovery point by NBD, each disk under its own address, on the master target's host."""
    with server() as api:
        points = api.every(f"{ITEMS}/{name}/recoveryPoints")
        details, _ = point_input(point, points)
        properties: dict[str, Any] = {
            "point": details, "writable": writable, "leaseSeconds": _time(lease), "quotaBytes": _size(quota) if quota else 0,
        }  # fmt: skip
        key_pem = b""
        if remote is not None:
            key_pem, properties["certificateRequest"] = key_and_request(VIEW_CLIENT)
        opened = api.put(f"{ITEMS}/{name}/views/{view_id or uuid.uuid4()}", {"properties": properties})
    own = opened["properties"]
    if remote is not None:
        _store(remote, key_pem, own)
    if as_json:
        print_json(opened)
        return
    uris = [export["uri"] for export in own["exports"]]
    if remote is not None:
        uris = [f"{uri}?tls-certificates={quote(str(remote.absolute()))}" for uri in own["remoteUris"]]
    print_pairs(
        [
            ("view", opened["name"]),
            ("point", f"{own['recoveryPointId']} ({moment(own['recoveryPointTime'])})"),
            ("ends", moment(own["expires"])),
            *((f"disk {export['index']}", uri) for export, uri in zip(own["exports"], uris, strict=True)),
        ]
    )
    if remote is not None:
        tell(f"from this host, until the view ends: nbdcopy '{uris[0]}' disk.img")
    else:
        tell(f"on the master target: nbdcopy '{uris[0]}' disk.img, or qemu-nbd --connect=/dev/nbd0 '{uris[0]}'")


def _store(directory: Path, key_pem: bytes, own: dict[str, Any]) -> None:
    """Under the names that libnbd, nbdcopy and QEMU look for."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(directory / "client-key.pem", key_pem)
    replace_file(directory / "client-cert.pem", own["certificate"].encode("ascii"))
    replace_file(directory / "ca-cert.pem", own["certificateAuthority"].encode("ascii"))


@app.command("list")
def list_(name: ItemName, as_json: AsJson = False) -> None:
    """Views of the item, and those that ended lately with the reason."""
    with server() as api:
        found = api.every(f"{ITEMS}/{name}/views")
    if as_json:
        print_json(found)
        return
    rows = []
    for view in found:
        own = view["properties"]
        kind = f"writable, {size(own['layerBytes'])} written" if own["writable"] else "read-only"
        state = f"ended: {own['reason']}" if own["reason"] else f"open until {moment(own['expires'])}"
        rows.append((view["name"], moment(own["recoveryPointTime"]), kind, str(own["connections"]), state))
    print_table(("view", "point", "kind", "clients", "state"), rows, "no views")


@app.command()
def close(name: ItemName, view: ViewId) -> None:
    """End a view; its clients are disconnected and what they wrote is gone."""
    with server() as api:
        api.delete(f"{ITEMS}/{name}/views/{view}")
    typer.echo(f"view {view} is closed")


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ConfigurationError(f"{text!r} is no size", remedy="write it like 10G or 512M")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _time(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if found is None:
        raise ConfigurationError(f"{text!r} is no time", remedy="write it like 30m, 4h or 2d")
    return float(found[1]) * _SECONDS[found[2]]
