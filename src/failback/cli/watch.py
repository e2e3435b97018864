"""Following a job: its tasks with bytes, rate and time left, live on a terminal, as plain lines elsewhere.

``rows_of`` and ``changes`` are pure; ``follow`` polls. A server that restarts meanwhile is waited for: jobs go on by themselves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from failback.cli.client import Api
from failback.cli.output import CANCELLED, FAILED, duration, moment, print_json, size, style_of, tell

if TYPE_CHECKING:
    from rich.table import Table

FINAL = ("Succeeded", "Failed", "Cancelled", "CompletedWithInformation")
POLL_SECONDS = 0.5
PROGRESS_LINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Row:
    """A task as it is shown. ``depth`` 1 is a child of a group."""

    name: str
    depth: int
    state: str
    sentence: str
    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    eta_seconds: float | None

    def figures(self) -> str:
        """``1.2 GiB of 4.0 GiB, 80 MiB/s, 35 s left``; empty for a task that moves nothing."""
        if not self.bytes_total:
            return ""
        if self.state != "InProgress":
            return size(self.bytes_done)
        parts = [f"{size(self.bytes_done)} of {size(self.bytes_total)}", f"{size(self.bytes_per_second)}/s"]
        if self.eta_seconds is not None:
            parts.append(f"{duration(self.eta_seconds)} left")
        return ", ".join(parts)


def rows_of(job: dict[str, Any]) -> list[Row]:
    return [row for task in job["properties"]["tasks"] for row in _rows(task, 0)]


def _rows(task: dict[str, Any], depth: int) -> Iterator[Row]:
    own = task.get("failback") or {}
    sentence = task["stateDescription"] if task["stateDescription"] != task["state"] else ""
    yield Row(
        task["friendlyName"] or task["name"],
        depth,
        task["state"],
        sentence,
        own.get("bytesDone", 0),
        own.get("bytesTotal", 0),
        own.get("bytesPerSecond", 0.0),
        own.get("etaSeconds"),
    )
    for child in (task.get("groupTaskCustomDetails") or {}).get("childTasks") or []:
        yield from _rows(child, depth + 1)


def changes(before: list[Row], after: list[Row], *, with_progress: bool) -> list[str]:
    """Lines for what changed between two looks; figures only when asked for, so that a log stays short."""
    known = {(row.depth, row.name): row for row in before}
    lines = []
    for row in after:
        old = known.get((row.depth, row.name))
        if row.state == "NotStarted":
            continue
        news = old is None or (old.state, old.sentence) != (row.state, row.sentence)
        moved = with_progress and old is not None and row.state == "InProgress" and row.bytes_done != old.bytes_done
        if news or moved:
            parts = [part for part in (row.sentence, row.figures()) if part]
            lines.append(f"{'  ' * row.depth}{row.name}: {row.state}" + (f" ({'; '.join(parts)})" if parts else ""))
    return lines


def follow(api: Api, job_id: str, *, quiet: bool = False) -> dict[str, Any]:
    """Show the job until it is over; returns it as it ended."""
    if quiet:
        return _poll(api, job_id)
    return _follow_live(api, job_id) if sys.stderr.isatty() else _follow_plainly(api, job_id)


def follow_all(api: Api, job_id: str, *, as_json: bool) -> None:
    """Follow a job and those that it begins; prints how it ended and exits with 1 or 6 when not well."""
    ended = []
    following: str | None = job_id
    while following is not None:
        job = follow(api, following, quiet=as_json)
        ended.append(job)
        following = _successor(api, job) if job["properties"]["state"] == "Succeeded" else None
    if as_json:
        print_json(ended[0] if len(ended) == 1 else {**ended[0], "followUps": ended[1:]})
    else:
        for job in ended:
            typer.echo(_ending(job))
    last = ended[-1]
    state = last["properties"]["state"]
    if state in ("Failed", "Cancelled"):
        if not as_json:
            _explain(last)
        raise typer.Exit(FAILED if state == "Failed" else CANCELLED)


def _successor(api: Api, job: dict[str, Any]) -> str | None:
    """The id of the job that this one began at its end."""
    own = job["properties"]
    item = (own.get("failback") or {}).get("itemName", "")
    clauses = [f"itemName eq '{item}'"] * bool(item) + [f"startTime eq '{own['startTime']}'"]
    for other in api.every("/replicationJobs", {"$filter": " and ".join(clauses)}):
        if (other["properties"].get("failback") or {}).get("parentJobId") == job["name"]:
            return str(other["name"])
    return None


def get(api: Api, job_id: str) -> dict[str, Any]:
    return dict(api.get(f"/replicationJobs/{job_id}"))


def _poll(api: Api, job_id: str) -> dict[str, Any]:
    while True:
        job = get(api, job_id)
        if job["properties"]["state"] in FINAL:
            return job
        time.sleep(POLL_SECONDS)


def _follow_plainly(api: Api, job_id: str) -> dict[str, Any]:
    before: list[Row] = []
    next_progress = 0.0
    while True:
        job = get(api, job_id)
        if not before:
            tell(f"{job['properties']['friendlyName']}: job {job_id}")
        now = time.monotonic()
        after = rows_of(job)
        due = now >= next_progress
        for line in changes(before, after, with_progress=due):
            tell(line)
        if due:
            next_progress, before = now + PROGRESS_LINE_SECONDS, after
        else:
            before = _without_progress(before, after)
        if job["properties"]["state"] in FINAL:
            return job
        time.sleep(POLL_SECONDS)


def _without_progress(before: list[Row], after: list[Row]) -> list[Row]:
    """The newest states, but the byte counts last shown: the next due line then shows that they moved."""
    shown = {(row.depth, row.name): row for row in before}
    kept = []
    for row in after:
        old = shown.get((row.depth, row.name))
        if old is not None and (old.state, old.sentence) == (row.state, row.sentence):
            kept.append(old)
        else:
            kept.append(row)
    return kept


def _follow_live(api: Api, job_id: str) -> dict[str, Any]:
    from rich.console import Console
    from rich.live import Live

    job = get(api, job_id)
    with Live(_table(job), console=Console(stderr=True), refresh_per_second=4) as live:
        while job["properties"]["state"] not in FINAL:
            time.sleep(POLL_SECONDS)
            job = get(api, job_id)
            live.update(_table(job))
    return job


def _table(job: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    properties = job["properties"]
    table = Table(box=None, pad_edge=False, title_justify="left", show_header=False)
    table.title = f"{properties['friendlyName']} of {properties['targetObjectName']}: {properties['state']}"
    table.add_column("")
    table.add_column("")
    table.add_column("", overflow="fold")
    for row in rows_of(job):
        note = "; ".join(part for part in (row.sentence, row.figures()) if part)
        name = Text("  " * row.depth + row.name, style="" if row.state != "NotStarted" else "dim")
        table.add_row(name, Text(row.state, style=style_of(row.state)), Text(note))
    return table


def _ending(job: dict[str, Any]) -> str:
    properties = job["properties"]
    return (
        f"{properties['friendlyName']} of {properties['targetObjectName']}: {properties['state']} "
        f"at {moment(properties['endTime'])} (job {job['name']})"
    )


def _explain(job: dict[str, Any]) -> None:
    for error in job["properties"]["errors"][-1:]:
        details = error["serviceErrorDetails"]
        tell(f"error {details['code']}: {details['message']}")
        if details["possibleCauses"]:
            tell(f"  possible cause: {details['possibleCauses']}")
        if details["recommendedAction"]:
            tell(f"  what to do: {details['recommendedAction']}")
    if "Restart" in job["properties"]["allowedActions"]:
        tell(f"  then: failback job restart {job['name']}")
