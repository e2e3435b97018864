"""The ways of an item: ``readiness``, ``reprotect``, ``failback``, ``change-point``, ``commit``, ``cancel``, ``resync``.

Each change says first what it will do to the running machine and asks (``--yes`` answers), then starts a job and follows it.
Interrupting the command does not interrupt the job.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from failback.cli import watch
from failback.cli.client import ITEMS, Api
from failback.cli.output import (
    FAILED,
    AsJson,
    ItemName,
    NoWait,
    Yes,
    age_seconds,
    confirm,
    duration,
    moment,
    only,
    print_json,
    print_table,
    server,
    tell,
)
from failback.errors import ConfigurationError

ProcessServer = Annotated[str, typer.Option(help="Host name or id; may be left out when there is one.")]
MasterTarget = Annotated[str, typer.Option(help="Host name or id; may be left out when there is one.")]
RetentionVolume = Annotated[str, typer.Option(help="Name on the master target; may be left out when there is one.")]
Datastore = Annotated[str, typer.Option(help="Where missing on-premises disks are created.")]
PeriodicComparison = Annotated[
    bool,
    typer.Option(
        "--periodic-comparison",
        help="Do not capture: compare the disks again and again. For machines whose kernel cannot be captured.",
    ),
]
Every = Annotated[int, typer.Option(metavar="MINUTES", min=1, help="How often, with --periodic-comparison.")]


def readiness(
    name: ItemName,
    *,
    process_server: ProcessServer = "",
    master_target: MasterTarget = "",
    retention_volume: RetentionVolume = "",
    datastore: Datastore = "",
    periodic_comparison: PeriodicComparison = False,
    every: Every = 15,
    failback: Annotated[
        bool, typer.Option("--failback", help="What a failback needs, instead of a reprotect.")
    ] = False,
    source_lost: Annotated[
        bool, typer.Option("--source-lost", help="With --failback: the cloud machine is lost.")
    ] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Have servers and agent report anew first (new volumes, disks).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check everything that a reprotect (or a failback) needs; nothing is touched. Exit status 1 when a check fails."""
    parameters = {
        "processServer": process_server,
        "masterTarget": master_target,
        "retentionVolume": retention_volume,
        "datastore": datastore,
        "comparisonMinutes": str(every) if periodic_comparison else "0",
        "operation": "failback" if failback else "reprotect",
        "sourceLost": str(source_lost).lower(),
        "refresh": str(refresh).lower(),
    }
    with server() as api:
        answer = api.get(f"{ITEMS}/{name}/readiness", parameters)
    if as_json:
        print_json(answer)
    else:
        rows = [(check["verdict"], check["name"], check["subject"], check["sentence"]) for check in answer["value"]]
        print_table(("verdict", "check", "object", "finding"), rows)
        for check in answer["value"]:
            if check["verdict"] in ("fail", "warning"):
                tell(f"{check['verdict']}: {check['name']} ({check['code']}): {check['remedy']}")
        for line in estimate_lines(answer["estimate"], failback):
            tell(line)
        tell("ready" if answer["ready"] else "not ready")
    if not answer["ready"]:
        raise typer.Exit(FAILED)


def estimate_lines(estimate: dict[str, Any], failback: bool) -> list[str]:
    """What it will take, in words; what was never measured is said to be so."""
    downtime = f"downtime of a failback: about {duration(estimate['downtime_seconds'])} ({estimate['downtime_from']})"
    if failback:
        return [downtime]
    at_most, expected = estimate["bytes_at_most"] / 1e9, estimate["bytes_expected"] / 1e9
    if estimate["seconds"] is None:
        took = "how long was not measured yet"
    else:
        rate = estimate["bytes_per_second"] / 1e6
        took = f"about {duration(estimate['seconds'])} at {rate:.1f} MB/s ({estimate['measured_by']})"
    return [f"to send: {expected:.2f} GB expected, {at_most:.2f} GB at most; {took}", downtime]


def reprotect(
    name: ItemName,
    *,
    process_server: ProcessServer = "",
    master_target: MasterTarget = "",
    retention_volume: RetentionVolume = "",
    datastore: Datastore = "",
    periodic_comparison: PeriodicComparison = False,
    every: Every = 15,
    yes: Yes = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Replicate a machine that runs in the cloud back to its on-premises disks."""
    with server() as api:
        item = api.get(f"{ITEMS}/{name}")
        own = item["properties"]["providerSpecificDetails"]["failback"]
        chosen = _chosen(api, process_server, master_target, retention_volume)
        confirm(
            [
                f"{name} keeps running in {own['cloud']['fabric']} while it replicates to {own['onPremises']['fabric']}.",
                f"The on-premises disks of {own['onPremises']['machine']} are overwritten where they differ; as they were,",
                "they stay reachable as the recovery point BeforeReprotect. The on-premises machine must stay off.",
                *(_by_comparison(every) if periodic_comparison else ()),
            ],
            f"Reprotect {name}?",
            yes,
        )
        body = {
            "properties": {
                "failoverDirection": "RecoveryToPrimary",
                "providerSpecificDetails": {
                    "instanceType": "InMage",
                    "profileId": item["properties"]["policyId"],
                    "datastoreName": datastore,
                    "comparisonMinutes": every if periodic_comparison else 0,
                    **chosen,
                },
            }
        }
        _run(api, f"{ITEMS}/{name}/reProtect", body, no_wait, as_json)


def _by_comparison(every: int) -> tuple[str, ...]:
    return (
        f"Periodic comparison every {every} min instead of capture: what the machine wrote since the last one is nowhere else.",
        "Recovery points come only of comparisons during which it does not write. A failback, or an app-consistent point,",
        "holds it still while all its disks are read once.",
    )


def _chosen(api: Api, process_server: str, master_target: str, retention_volume: str) -> dict[str, str]:
    """The servers as named, or the only ones there are."""
    fabric = api.get("/replicationFabrics/configuration-server")["properties"]["customDetails"]
    if not process_server:
        servers = fabric["processServers"]
        process_server = only(servers, lambda one: str(one["friendlyName"]), "process server", "--process-server")
    targets = fabric["masterTargetServers"]
    if not master_target:
        master_target = only(targets, lambda one: str(one["name"]), "master target", "--master-target")
    if not retention_volume:
        target = next((one for one in targets if master_target in (one["name"], one["id"])), None)
        volumes = target["retentionVolumes"] if target else []
        retention_volume = only(
            volumes, lambda one: str(one["volumeName"]), "retention volume", "--retention-volume"
        )  # fmt: skip
    return {"processServerId": process_server, "masterTargetId": master_target, "retentionDrive": retention_volume}


def failback(
    name: ItemName,
    *,
    point: Annotated[
        str,
        typer.Option(
            metavar="latest|latest-app-consistent|ID|TIME|group:ID|group:latest",
            help="The recovery point to go back to; group:... is one that its replication group shares.",
        ),
    ] = "latest",
    source_lost: Annotated[
        bool, typer.Option("--source-lost", help="The cloud machine is off for good: use what has arrived.")
    ] = False,
    yes: Yes = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Stop the machine in the cloud and start it on premises; commit or cancel afterwards."""
    with server() as api:
        item = api.get(f"{ITEMS}/{name}")
        details, loss = _chosen_point(api, name, point)
        own = item["properties"]["providerSpecificDetails"]["failback"]
        confirm(_impact(own, loss, source_lost), f"Fail {name} back?", yes)
        body = {
            "properties": {
                "failoverDirection": "PrimaryToRecovery",
                "sourceSiteOperations": "NotRequired" if source_lost else "Required",
                "providerSpecificDetails": details,
            }
        }
        _run(api, f"{ITEMS}/{name}/unplannedFailover", body, no_wait, as_json)


def _chosen_point(api: Api, name: str, point: str) -> tuple[dict[str, Any], str]:
    """What ``--point`` names, as :func:`point_input` says it."""
    points = api.every(f"{ITEMS}/{name}/recoveryPoints")
    if point.startswith("group:"):
        points = [one for one in points if one["properties"]["providerSpecificDetails"]["isMultiVmSyncPoint"] == "Yes"]
        point = shared_point(point.removeprefix("group:"), points)
    return point_input(point, points)


def _impact(own: dict[str, Any], loss: str, source_lost: bool) -> list[str]:
    away, home = own["cloud"], own["onPremises"]
    if source_lost:
        first = f"{away['machine']} in {away['fabric']} has to be off already; what did not arrive from it is lost."
    else:
        comparison = own["comparison"]
        first = (
            f"{away['machine']} in {away['fabric']} is frozen, compared once more (about {comparison['lastSeconds']:.0f} s: it "
            "is replicated by periodic comparison) and powered off: its downtime begins."
            if comparison
            else f"{away['machine']} in {away['fabric']} is frozen, brought in step and powered off: its downtime begins."
        )
    return [
        first,
        f"{home['machine']} in {home['fabric']} is started. {loss}",
        "Until the commit the on-premises disks are untouched: cancel brings the cloud machine back.",
    ]


def shared_point(wanted: str, points: list[dict[str, Any]]) -> str:
    """The id of a group point, newest first. Raises ConfigurationError for what the group does not share."""
    names = [one["name"] for one in points if not one["properties"]["failback"]["abandoned"]]
    if wanted == "latest" and names:
        return str(names[0])
    if wanted in names:
        return wanted
    raise ConfigurationError(
        "no recovery point of this item belongs to its replication group"
        if wanted == "latest"
        else f"{wanted!r} is no point that all machines of the replication group share",
        remedy="failback group points GROUP",
    )


def point_input(point: str, points: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The wire form of ``--point``, and what going there loses. Raises ConfigurationError for what is no point."""
    if point == "latest":
        return _inmage("LatestTime"), "It has everything that was acknowledged up to then."
    if point == "latest-app-consistent":
        newest = next(
            (one for one in points if one["properties"]["recoveryPointType"] == "ApplicationConsistent"), None
        )
        if newest is None:
            raise ConfigurationError(
                "there is no app-consistent recovery point", remedy="failback point create NAME, or --point latest"
            )
        return _inmage("LatestTag"), _loss(newest["properties"]["recoveryPointTime"])
    for one in points:
        if one["name"] == point:
            return _inmage("Custom", recoveryPointId=point), _loss(one["properties"]["recoveryPointTime"])
    if point[:1].isdigit() and "T" in point:
        return _inmage("Custom", recoveryPointTime=point), _loss(point)
    raise ConfigurationError(
        f"{point!r} is no recovery point of this item",
        remedy="failback points NAME; or a time like 2026-11-23T03:15:00Z",
    )


def _inmage(kind: str, **more: str) -> dict[str, Any]:
    return {"instanceType": "InMage", "recoveryPointType": kind, **more}


def _loss(when: str) -> str:
    return f"What changed since {moment(when)} ({duration(age_seconds(when))} ago) will not be there."


def change_point(
    name: ItemName,
    *,
    point: Annotated[
        str,
        typer.Option(
            metavar="latest|latest-app-consistent|ID|TIME|group:ID|group:latest",
            help="The recovery point to start from instead.",
        ),
    ],
    yes: Yes = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Before the commit of a failback: start the on-premises machine again, at another recovery point."""
    with server() as api:
        details, loss = _chosen_point(api, name, point)
        statement = [
            f"{name} stops on premises, and everything it wrote there since the failback is thrown away.",
            f"It is started on premises again at the other point. {loss}",
            "The cloud machine stays off; commit or cancel afterwards.",
        ]
        confirm(statement, f"Change the recovery point of {name}?", yes)
        body = {"properties": {"recoveryPointId": details.get("recoveryPointId"), "providerSpecificDetails": details}}
        _run(api, f"{ITEMS}/{name}/applyRecoveryPoint", body, no_wait, as_json)


def commit(name: ItemName, yes: Yes = False, no_wait: NoWait = False, as_json: AsJson = False) -> None:
    """Keep a failback: merge what the machine wrote on premises; newer points and the way back are given up."""
    statement = [
        f"{name} stays on premises. What it wrote since the failback is merged into its disks.",
        "The cloud machine stays off and cannot be gone back to by a cancel any more; other recovery points are dropped.",
    ]
    confirm(statement, f"Commit the failback of {name}?", yes)
    with server() as api:
        _run(api, f"{ITEMS}/{name}/failoverCommit", None, no_wait, as_json)


def cancel(name: ItemName, yes: Yes = False, no_wait: NoWait = False, as_json: AsJson = False) -> None:
    """Undo a failback: the on-premises machine stops, the cloud machine runs again and replicates."""
    statement = [
        f"{name} stops on premises, and everything it wrote there since the failback is thrown away.",
        "The cloud machine is started as it was when it was powered off; replication goes on after a comparison.",
    ]
    confirm(statement, f"Cancel the failback of {name}?", yes)
    with server() as api:
        _run(api, f"{ITEMS}/{name}/failoverCancel", None, no_wait, as_json)


def resync(
    name: ItemName,
    *,
    process_server: Annotated[
        str, typer.Option(help="Replicate through this process server from now on; host name or id.")
    ] = "",
    periodic_comparison: Annotated[
        bool | None,
        typer.Option(
            "--periodic-comparison/--capture",
            help="From now on compare the disks again and again, or capture again; as before when left out.",
        ),
    ] = None,
    every: Every = 15,
    yes: Yes = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Compare the on-premises disks with the machine by hash and send what differs; the machine keeps running."""
    statement = [
        f"{name} keeps running. Its disks are read and compared with the replica; what differs is sent again.",
        "Until that is over there is no new recovery point, and a failback can only go to the points that there are.",
    ]
    if process_server:
        statement.append(
            f"It replicates through {process_server}; the other process server forgets what it holds of it."
        )
    if periodic_comparison:
        statement += _by_comparison(every)
    confirm(statement, f"Resynchronize {name}?", yes)
    details: dict[str, Any] = {"processServerId": process_server} if process_server else {}
    if periodic_comparison is not None:
        details["comparisonMinutes"] = every if periodic_comparison else 0
    with server() as api:
        body = {"properties": {"providerSpecificDetails": details}}
        _run(api, f"{ITEMS}/{name}/repairReplication", body, no_wait, as_json)


def scrub(
    name: ItemName,
    *,
    rate: Annotated[
        float,
        typer.Option(metavar="MB/S", help="How fast, in 10^6 bytes a second; 0: the machine's own setting.", min=0),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compare the disks with the replica in the background; what is wrong there is repaired and becomes an event."""
    with server() as api:
        begun = api.post(f"{ITEMS}/{name}/scrub", {"properties": {"bytesPerSecond": rate * 1e6}})
    if as_json:
        print_json(begun)
    else:
        typer.echo(f"scrub {begun['scrubId']} has begun; failback item show {name} says how far it is")


def _run(api: Api, path: str, body: Any, no_wait: bool, as_json: bool) -> None:
    job_id = api.start(path, body)
    if not no_wait:
        watch.follow_all(api, job_id, as_json=as_json)
    elif as_json:
        print_json({"jobId": job_id})
    else:
        typer.echo(job_id)
