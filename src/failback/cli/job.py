"""``failback job list | show | watch | cancel | restart | resume``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from failback.cli import watch
from failback.cli.output import (
    FAILED,
    AsJson,
    moment,
    print_json,
    print_pairs,
    print_table,
    server,
    tell,
)

app = typer.Typer(no_args_is_help=True, help="Jobs: list, show, watch, cancel, restart.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]
Follow = Annotated[bool, typer.Option("--no-wait", help="Do not follow the job afterwards.")]


@app.command("list")
def list_jobs(
    item: Annotated[str, typer.Option(help="Only jobs of this item.")] = "",
    state: Annotated[str, typer.Option(help="Only jobs in this state, e.g. Failed.")] = "",
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 200,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first."""
    clauses = [f"itemName eq '{item}'"] * bool(item) + [f"jobStatus eq '{state}'"] * bool(state)
    with server() as api:
        jobs = api.some("/replicationJobs", limit, {"$filter": " and ".join(clauses)} if clauses else None)
    if as_json:
        print_json(jobs)
        return
    rows = [
        (
            job["name"],
            job["properties"]["friendlyName"],
            job["properties"]["targetObjectName"],
            job["properties"]["state"],
            moment(job["properties"]["startTime"]),
            moment(job["properties"]["endTime"]),
        )
        for job in jobs
    ]
    print_table(("id", "job", "item", "state", "began", "ended"), rows, "no jobs")


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """One job with its tasks and errors."""
    with server() as api:
        job = watch.get(api, job_id)
    if as_json:
        print_json(job)
        return
    properties = job["properties"]
    own = properties["failback"]
    print_pairs(
        [
            ("job", job["name"]),
            (
                "what",
                f"{properties['friendlyName']} ({properties['scenarioName']}) of {properties['targetObjectName']}",
            ),
            ("state", properties["state"]),
            ("began", moment(properties["startTime"])),
            ("ended", moment(properties["endTime"])),
            ("started by", own["startedBy"] or "-"),
            ("attempt", str(own["attempt"])),
            ("allowed", ", ".join(properties["allowedActions"]) or "nothing"),
        ]
    )
    rows = [
        ("  " * row.depth + row.name, row.state, "; ".join(part for part in (row.sentence, row.figures()) if part))
        for row in watch.rows_of(job)
    ]
    print_table(("task", "state", "note"), rows)
    for error in properties["errors"]:
        print_error(error)


def print_error(error: dict[str, Any]) -> None:
    details = error["serviceErrorDetails"]
    tell(f"error {details['code']} in {error['taskId']}: {details['message']}")
    if details["possibleCauses"]:
        tell(f"  possible cause: {details['possibleCauses']}")
    if details["recommendedAction"]:
        tell(f"  what to do: {details['recommendedAction']}")


@app.command("watch")
def watch_job(job_id: JobId, as_json: AsJson = False) -> None:
    """Follow a job until it is over. Exit status 1 when it failed, 6 when it was cancelled."""
    with server() as api:
        watch.follow_all(api, job_id, as_json=as_json)


@app.command()
def cancel(job_id: JobId, no_wait: Follow = False, as_json: AsJson = False) -> None:
    """Ask a job to stop at the next moment where it is safe."""
    with server() as api:
        job = api.post(f"/replicationJobs/{job_id}/cancel")
        if not no_wait:
            job = watch.follow(api, job_id, quiet=as_json)
    if as_json:
        print_json(job)
    else:
        typer.echo(f"job {job_id}: {job['properties']['state']}")
    if job["properties"]["state"] == "Failed":
        raise typer.Exit(FAILED)


@app.command()
def restart(job_id: JobId, no_wait: Follow = False, as_json: AsJson = False) -> None:
    """Run a failed job again from its failed task on."""
    _again(job_id, "restart", no_wait, as_json)


@app.command()
def resume(job_id: JobId, no_wait: Follow = False, as_json: AsJson = False) -> None:
    """Go on with a suspended job."""
    _again(job_id, "resume", no_wait, as_json)


def _again(job_id: str, action: str, no_wait: bool, as_json: bool) -> None:
    with server() as api:
        job = api.post(f"/replicationJobs/{job_id}/{action}", {"properties": {"comments": ""}})
        if not no_wait:
            watch.follow_all(api, job_id, as_json=as_json)
        elif as_json:
            print_json(job)
        else:
            typer.echo(f"job {job_id}: {job['properties']['state']}")
