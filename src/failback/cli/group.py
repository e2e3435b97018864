"""``failback group``: machines that share recovery points, so that what they tell each other is never torn apart."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from failback.cli import watch
from failback.cli.client import ITEMS, Api
from failback.cli.output import (
    FAILED,
    AsJson,
    NoWait,
    Yes,
    age_seconds,
    confirm,
    duration,
    moment,
    print_json,
    print_pairs,
    print_table,
    server,
    tell,
)
from failback.errors import ConfigurationError, PeerError

app = typer.Typer(no_args_is_help=True, help="Replication groups: machines that share recovery points.")

GROUPS = "/replicationGroups"
PUBLISH_SECONDS = 120.0

GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.", show_default=False)]
Members = Annotated[list[str], typer.Argument(metavar="ITEM...", help="Items that join.", show_default=False)]
Every = Annotated[
    int | None, typer.Option("--every", metavar="SECONDS", help="Distance of group points; 0: the policy's.")
]


@app.command()
def create(group: GroupName, items: Members, every: Every = None, as_json: AsJson = False) -> None:
    """Make a group of machines that replicate already, to one master target, of one operating system family.

    At each common mark every machine is held still for some milliseconds, so that no machine's point knows of something
    that another machine's point has not written yet.
    """
    properties: dict[str, Any] = {"members": items}
    if every is not None:
        properties["crashConsistentFrequencyInSeconds"] = every
    with server() as api:
        _print_group(api.put(f"{GROUPS}/{group}", {"properties": properties}), as_json)


@app.command()
def add(group: GroupName, item: str, as_json: AsJson = False) -> None:
    """Let another machine join; earlier group points stay those of the earlier members."""
    with server() as api:
        _print_group(api.post(f"{GROUPS}/{group}/addMember", {"properties": {"member": item}}), as_json)


@app.command()
def remove(
    group: GroupName,
    item: Annotated[str, typer.Argument(help="The item that leaves; without it the whole group ends.")] = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take a machine out of the group, or end the group: the machines stay protected, each by itself."""
    with server() as api:
        if item:
            _print_group(api.post(f"{GROUPS}/{group}/removeMember", {"properties": {"member": item}}), as_json)
            return
        confirm([f"{group} and its list of group points end; its machines stay protected."], f"End {group}?", yes)
        api.post(f"{GROUPS}/{group}/remove")
        if as_json:
            print_json({"removed": group})


@app.command("list")
def list_groups(as_json: AsJson = False) -> None:
    """All groups, with the age of their newest group point."""
    with server() as api:
        found = api.every(GROUPS)
    if as_json:
        print_json(found)
        return
    rows = []
    for each in found:
        properties = each["properties"]
        members = ", ".join(member["name"] for member in properties["members"])
        newest = duration(age_seconds(properties["newestRecoveryPointTime"]))
        rows.append((each["name"], members, str(properties["recoveryPoints"]), newest, properties["problem"] or "-"))
    print_table(("name", "members", "points", "newest", "problem"), rows, "no replication groups yet")


@app.command()
def show(group: GroupName, as_json: AsJson = False) -> None:
    """One group: its members, how often it is marked, and why it is not."""
    with server() as api:
        _print_group(api.get(f"{GROUPS}/{group}"), as_json)


@app.command()
def points(
    group: GroupName,
    every_mark: Annotated[bool, typer.Option("--all", help="Also marks that are under way or void, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """The group's recovery points, newest first, and how long the machines stood still for them."""
    with server() as api:
        found = api.every(f"{GROUPS}/{group}/recoveryPoints", {"marks": "all"} if every_mark else {})
    if as_json:
        print_json(found)
        return
    rows = []
    for each in found:
        properties = each["properties"]
        when = properties["recoveryPointTime"]
        held = f"{properties['heldMilliseconds']:.1f} ms"
        row = (each["name"], moment(when), duration(age_seconds(when)), held, properties["state"], properties["reason"])
        rows.append(row)
    print_table(("id", "time", "age", "held", "state", "reason"), rows, "no group points yet")


@app.command()
def point(group: GroupName, no_wait: NoWait = False, as_json: AsJson = False) -> None:
    """Make a group point now, and wait until every machine's part of it is published."""
    with server() as api:
        made = api.post(f"{GROUPS}/{group}/createRecoveryPoint")
        if not no_wait:
            made = _published(api, group, made["name"])
    if as_json:
        print_json(made)
    else:
        typer.echo(made["name"])
        tell(f"the machines stood still for {made['properties']['heldMilliseconds']:.1f} ms at most")
    if made["properties"]["state"] == "void":
        tell(f"the mark is void: {made['properties']['reason']}")
        raise typer.Exit(FAILED)


def _published(api: Api, group: str, point_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + PUBLISH_SECONDS
    while True:
        found: dict[str, Any] = api.get(f"{GROUPS}/{group}/recoveryPoints/{point_id}")
        if found["properties"]["state"] in ("complete", "void"):
            return found
        if time.monotonic() > deadline:
            raise PeerError(
                f"the mark {point_id} is not published by every machine's master target yet",
                possible_causes="a machine's stream lags behind",
                remedy=f"failback group points {group} --all",
            )
        time.sleep(0.3)


@app.command()
def failback(
    group: GroupName,
    *,
    point: Annotated[str, typer.Option(metavar="latest|ID", help="The group point for all machines.")] = "latest",
    yes: Yes = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Bring all machines of the group home to one group point; commit or cancel each of them afterwards."""
    with server() as api:
        found = api.get(f"{GROUPS}/{group}")
        chosen = group_point(point, api.every(f"{GROUPS}/{group}/recoveryPoints"))
        names = [member["name"] for member in found["properties"]["members"]]
        when = chosen["properties"]["recoveryPointTime"]
        confirm(
            [
                f"{', '.join(names)} are stopped in the cloud and started on premises, all as they were at {moment(when)}.",
                f"What changed since then ({duration(age_seconds(when))} ago) will not be there.",
                "Until the commit the on-premises disks are untouched: cancel brings a cloud machine back.",
            ],
            f"Fail {len(names)} machines back?",
            yes,
        )
        details = {"instanceType": "InMage", "recoveryPointType": "Custom", "recoveryPointId": chosen["name"]}
        body = {"properties": {"failoverDirection": "PrimaryToRecovery", "providerSpecificDetails": details}}
        jobs = {name: api.start(f"{ITEMS}/{name}/unplannedFailover", body) for name in names}
        if no_wait:
            _print_jobs(jobs, as_json)
            return
        for name, job_id in jobs.items():
            tell(f"{name}:")
            watch.follow_all(api, job_id, as_json=as_json)


def _print_jobs(jobs: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json({"jobIds": jobs})
        return
    for job_id in jobs.values():
        typer.echo(job_id)


def group_point(wanted: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The group point that ``latest`` or an id names, newest first. Raises ConfigurationError."""
    if wanted == "latest" and found:
        return found[0]
    for each in found:
        if each["name"] == wanted:
            return each
    raise ConfigurationError(
        "the group has no recovery point yet"
        if wanted == "latest"
        else f"{wanted!r} is no recovery point of the group",
        remedy="failback group points GROUP",
    )


def _print_group(group: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(group)
        return
    properties = group["properties"]
    every = properties["crashConsistentFrequencyInSeconds"]
    print_pairs(
        [
            ("name", group["name"]),
            ("members", ", ".join(f"{each['name']} ({each['protectionState']})" for each in properties["members"])),
            ("marked every", duration(every) if every else "as the policy says"),
            ("points", str(properties["recoveryPoints"])),
            ("newest", moment(properties["newestRecoveryPointTime"])),
            ("problem", properties["problem"] or "none"),
        ]
    )
