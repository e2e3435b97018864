"""``failback item import | list | show | disable``: machines that failed over, and how their protection stands."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from failback.cli import watch
from failback.cli.client import ITEMS, Api
from failback.cli.output import (
    AsJson,
    ItemName,
    NoWait,
    Yes,
    confirm,
    duration,
    moment,
    only,
    print_json,
    print_pairs,
    print_table,
    server,
    size,
    tell,
)

app = typer.Typer(no_args_is_help=True, help="Protected machines: import, list, show.")

Place = Annotated[str, typer.Option(metavar="[FABRIC:]MACHINE", help="Name or id of the machine in its fabric.")]


@app.command("import")
def import_item(
    name: ItemName,
    on_premises: Place = "",
    cloud: Place = "",
    agent: Annotated[str, typer.Option(help="Its mobility service, when its hardware id does not tell.")] = "",
    as_json: AsJson = False,
) -> None:
    """Register a machine that failed over: where it came from and where it runs now.

    Without --on-premises or --cloud the machine of the item's name is looked for in the one fabric of that side.
    """
    with server() as api:
        details: dict[str, Any] = {
            "instanceType": "FailbackImport",
            "onPremises": _place(api, on_premises or name, "onprem", "--on-premises"),
            "cloud": _place(api, cloud or name, "cloud", "--cloud"),
            "agentComponentId": agent,
        }
        item = api.put(f"{ITEMS}/{name}", {"properties": {"providerSpecificDetails": details}})
    if as_json:
        print_json(item)
        return
    own = item["properties"]["providerSpecificDetails"]["failback"]
    tell(f"{name} is registered: it runs in {_spoken(own['cloud'])} and came from {_spoken(own['onPremises'])}")
    _print_disks(item)


def _place(api: Api, text: str, side: str, option: str) -> dict[str, str]:
    fabric, separator, machine = text.partition(":")
    if separator:
        return {"fabric": fabric, "machine": machine}
    fabrics = api.every("/replicationFabrics")
    sites = [one for one in fabrics if one["properties"]["customDetails"].get("site") == side]
    fabric = only(sites, lambda one: str(one["name"]), f"fabric of the side {side}", f"{option} FABRIC:MACHINE")
    return {"fabric": fabric, "machine": text}


def _spoken(place: dict[str, str]) -> str:
    return f"{place['fabric']} ({place['machine']})"


@app.command("list")
def list_items(as_json: AsJson = False) -> None:
    """All items and their state."""
    with server() as api:
        items = api.every(ITEMS)
    if as_json:
        print_json(items)
        return
    rows = []
    for item in items:
        properties = item["properties"]
        details = properties["providerSpecificDetails"]
        rows.append(
            (
                item["name"],
                properties["protectionState"],
                details["activeSiteType"],
                properties["replicationHealth"],
                duration(details["rpoInSeconds"]),
                _scenario(properties),
            )
        )
    print_table(("name", "state", "runs at", "health", "rpo", "job"), rows, "no items; see failback item import")


def _scenario(properties: dict[str, Any]) -> str:
    scenario = properties["currentScenario"]
    return (
        "-" if scenario["scenarioName"] == "None" else f"{scenario['scenarioName']} {scenario['jobId'].split('/')[-1]}"
    )


@app.command()
def show(name: ItemName, as_json: AsJson = False) -> None:
    """Everything about one item: state, disks, lag, what may be done."""
    with server() as api:
        item = api.get(f"{ITEMS}/{name}")
    if as_json:
        print_json(item)
        return
    properties = item["properties"]
    details = properties["providerSpecificDetails"]
    own = details["failback"]
    lag = own["lagMilliseconds"]
    print_pairs(
        [
            ("name", item["name"]),
            ("state", f"{properties['protectionState']} ({properties['protectionStateDescription']})"),
            ("runs at", f"{details['activeSiteType']}, direction {own['direction']}"),
            ("health", properties["replicationHealth"]),
            ("allowed", ", ".join(properties["allowedOperations"]) or "nothing now"),
            ("job", _scenario(properties)),
            ("cloud", _spoken(own["cloud"])),
            ("on premises", _spoken(own["onPremises"])),
            ("agent", f"{own['capture']['state']}, last heard {moment(details['lastHeartbeat'])}"),
            ("replication", _replication(own)),
            ("process server", own["processServer"] or "-"),
            ("master target", own["masterTarget"] or "-"),
            ("retention", own["retentionVolume"] or "-"),
            ("recovery points", f"{own['recoveryPoints']}, newest {moment(details['retentionWindowEnd'])}"),
            ("rpo", duration(details["rpoInSeconds"])),
            ("lag", (f"p50 {lag['p50']:.0f} ms, p99 {lag['p99']:.0f} ms" if lag else "-") + _held_back(own["bandwidth"])),
            ("bandwidth", _bandwidth(own["bandwidth"])),
            ("changed / sent", f"{size(own['bytesChanged'])} / {size(own['bytesSent'])}"),
            ("waiting", f"{size(own['stream']['backlogBytes'])} at the machine, {size(own['stream']['spooledBytes'])} spooled"),
            ("gap", own["gap"] or "none"),
            ("scrub", _scrub(own["scrub"])),
            ("undo proven", moment(own["undoProven"])),
        ]
    )  # fmt: skip
    for error in properties["healthErrors"]:
        tell(f"{error['errorLevel'].lower()} {error['errorCode']}: {error['errorMessage']}")
        if error["recommendedAction"]:
            tell(f"  what to do: {error['recommendedAction']}")
    _print_disks(item)


def _replication(own: dict[str, Any]) -> str:
    now = own["comparison"]
    if now is None:
        return str(own["replication"])
    last = f"last one took {now['lastSeconds']:.0f} s, ended {moment(now['lastFinished'])}"
    smeared = f"; the machine wrote during the last {now['smearedSince']}" if now["smearedSince"] else ""
    return f"{own['replication']} every {now['everyMinutes']} min ({last}{smeared})"


def _scrub(scrub: dict[str, Any] | None) -> str:
    if scrub is None:
        return "-"
    wrong = f"{size(scrub['repairedBytes'])} were wrong and are repaired" if scrub["repairedBytes"] else "nothing wrong"
    if scrub["state"] == "finished":
        return f"{moment(scrub['finished'])}, {wrong}"
    return f"{scrub['state']}, {size(scrub['bytesCompared'])} of {size(scrub['bytesTotal'])} compared, {wrong}"


def _held_back(bandwidth: dict[str, Any]) -> str:
    if not bandwidth["heldBack"]:
        return ""
    return f", held back by the bandwidth limit of {size(bandwidth['nowBytesPerSecond'])}/s"


def _bandwidth(bandwidth: dict[str, Any]) -> str:
    windows = "; ".join(bandwidth["schedule"])
    text = "no limit" if bandwidth["limit"] == "none" else str(bandwidth["limit"])
    if windows:
        text += f"; {windows} ({bandwidth['timeZone']})"
    if bandwidth["from"] == "policy" and bandwidth["limit"] != "none":
        text += " (by its policy)"
    return f"{text}; {bandwidth['problem']}" if bandwidth["problem"] else text


@app.command("set")
def set_up(
    name: ItemName,
    bandwidth_limit: Annotated[
        str | None,
        typer.Option(
            metavar="RATE", help="At most so much on each link: 50MB/s, 100Mbit/s; none; policy: as its policy says."
        ),
    ] = None,
    bandwidth_schedule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WINDOW", help='Another limit at times: "mon-fri 08:00-18:00 10MB/s". Several; none ends all.'
        ),
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(help="Whose wall time windows mean, e.g. Europe/Berlin. At first: that of this machine."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change how an item replicates. A limit is in force within seconds, and its stream is not interrupted."""
    wanted: dict[str, Any] = {"limit": bandwidth_limit, "timeZone": time_zone}
    if bandwidth_schedule is not None:
        wanted["schedule"] = [] if bandwidth_schedule == ["none"] else bandwidth_schedule
    with server() as api:
        if bandwidth_schedule is not None and time_zone is None:
            before = api.get(f"{ITEMS}/{name}")["properties"]["providerSpecificDetails"]["failback"]["bandwidth"]
            wanted["timeZone"] = before["timeZone"] if before["schedule"] else _own_time_zone()
        details = {"instanceType": "FailbackSettings", "bandwidth": wanted}
        item = api.patch(f"{ITEMS}/{name}", {"properties": {"providerSpecificDetails": details}})
    if as_json:
        print_json(item)
    else:
        tell(f"{name}: bandwidth {_bandwidth(item['properties']['providerSpecificDetails']['failback']['bandwidth'])}")


@app.command()
def move(
    name: ItemName,
    *,
    process_server: Annotated[str, typer.Option(help="The process server to replicate through; host name or id.")],
    yes: Yes = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Replicate through another process server from now on; the machine keeps running, nothing is compared."""
    statement = [
        f"{name} keeps running. What has not landed yet is read again and sent through {process_server}.",
        "The process server of before forgets what it holds of it, now or when it comes back.",
        "There is no new recovery point until what had not landed has arrived; the earlier points stay.",
    ]
    confirm(statement, f"Move {name}?", yes)
    body = {"properties": {"providerSpecificDetails": {"processServerId": process_server}}}
    with server() as api:
        job_id = api.start(f"{ITEMS}/{name}/switchProcessServer", body)
        if no_wait:
            print_json({"jobId": job_id}) if as_json else typer.echo(job_id)
        else:
            watch.follow_all(api, job_id, as_json=as_json)


def _own_time_zone() -> str:
    """The IANA name behind /etc/localtime; UTC where that does not tell."""
    _, found, name = os.path.realpath("/etc/localtime").partition("/zoneinfo/")
    return name if found and name not in ("Etc/UTC", "") else "UTC"


def _disk_note(disk: dict[str, Any]) -> str:
    if disk.get("removed"):
        return " (the machine has it no more; kept for older points)"
    return " (will be created)" if disk["created"] else ""


def _print_disks(item: dict[str, Any]) -> None:
    disks = item["properties"]["providerSpecificDetails"]["protectedDisks"]
    rows = [
        (
            disk["diskName"],
            size(disk["diskCapacityInBytes"]),
            disk["onPremisesPath"] + _disk_note(disk),
            disk["protectionStage"] or "-",
            f"{disk['resyncProgressPercentage']} %",
            size(disk["resyncTotalTransferredBytes"]),
        )
        for disk in disks
    ]
    print_table(("disk", "size", "on premises", "stage", "in step", "sent"), rows)


@app.command()
def disable(name: ItemName, yes: Yes = False, no_wait: NoWait = False, as_json: AsJson = False) -> None:
    """End the protection: replication stops, the replica's disks stay as they are."""
    statement = [
        f"The protection of {name} ends: replication stops and its recovery points cannot be used any more.",
        "The machine goes on running where it is; the on-premises disks stay as they are.",
    ]
    confirm(statement, "Disable the protection?", yes)
    body = {"properties": {"disableProtectionReason": "NotSpecified"}}
    with server() as api:
        job_id = api.start(f"{ITEMS}/{name}/remove", body)
        if no_wait:
            print_json({"jobId": job_id}) if as_json else typer.echo(job_id)
        else:
            watch.follow_all(api, job_id, as_json=as_json)
